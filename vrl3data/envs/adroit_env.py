"""The four Adroit tasks from pixels, as VRL3 trained on them, for learning online.

What differs from gymnasium-robotics' AdroitHand environments (VRL3's fork of mj_envs, released code):

- Observations are the pictures of VRL3's cameras and the 24 angles of the hand's joints. The arm's joints and
  everything about the object are seen in the pictures only.
- Pictures show the state as it is after a step. gymnasium's lag one substep of 2 ms behind. The converter of
  recorded demonstrations draws by the same function, so both sides of a replay look alike.
- With `rewards="vrl3"` (the default): VRL3's sparse rewards divided by their greatest value per step; a goal that
  has to be held for more than 25 steps (pen: 20) before the episode counts as a success; pen ends when the pen
  is dropped and after 100 steps instead of 200; relocate's target is always 0.25 m high.
- With `rewards="gymnasium"`: gymnasium-robotics' dense rewards, thresholds, targets and 200 steps; an episode
  succeeds with any step at the goal.
- Actions outside [-1, 1] are clipped by both. The physics is the same to the bit.

Shapes: D state entries, Q joints, A actions, HWC pictures. Units: metres, radians, seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vrl3data.envs import adroit
from vrl3data.envs.adroit import TASKS, VARIANTS, AdroitScene, Variant
from vrl3data.envs.adroit_state import DT, Array, States, observe
from vrl3data.envs.gl import load_mujoco, renderer_name
from vrl3data.errors import ConfigError, SourceError, did_you_mean

if TYPE_CHECKING:
    import mujoco

Observation = dict[str, NDArray[np.generic]]

SUBSTEPS = 5
GYMNASIUM_HORIZON = 200
REWARD_SCALES = {"door": 1 / 20, "hammer": 1 / 100, "pen": 1 / 50, "relocate": 1 / 30}
"""VRL3's factors (released code, adroit.py): after them no step's reward exceeds 1."""
DROPPED_BELOW = 0.075
"""Height in metres under which VRL3's fork ends an episode of pen."""

_Range = tuple[float, float]
# Where gymnasium-robotics draws an episode's scene from, in its order; None: as in the model.
_SCENES: dict[str, dict[str, tuple[_Range | None, ...]]] = {
    "door": {"door_body_pos": ((-0.3, -0.2), (0.25, 0.35), (0.252, 0.35))},
    "hammer": {"board_pos": (None, None, (0.1, 0.25))},
    "pen": {"desired_orien": ((-1.0, 1.0), (-1.0, 1.0), (0.0, 0.0))},
    "relocate": {
        "obj_pos": ((-0.15, 0.15), (-0.15, 0.3), None),
        "target_pos": ((-0.2, 0.2), (-0.2, 0.2), (0.15, 0.35)),
    },
}
_VRL3_TARGET_HEIGHT: _Range = (0.25, 0.25)


class AdroitEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One Adroit task; use `Door`, `Hammer`, `Pen` or `Relocate`. How it differs from gymnasium's: see above.

    Observation: `image.<camera>` uint8 (image_size, image_size, 3), 0-255, for each camera, and `proprio`
    float32 (24,), the angles of the hand's joints. Action: float32 (A,) in [-1, 1], clipped, mapped to the range
    of each actuator. `info`: `goal_achieved` of this step, and `is_success` of the episode so far. Truncated after
    `max_steps` steps of `dt` = 0.01 s; terminated only when the pen is dropped under VRL3's rules.
    ConfigError for cameras, rewards or render profiles that do not exist and for sizes below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012 - gymnasium declares it so
    render_mode = "rgb_array"
    task_name: ClassVar[str]

    def __init__(
        self,
        image_size: int = 84,
        max_steps: int | None = None,
        *,
        cameras: Sequence[str] = (),
        rewards: Variant = "vrl3",
        render: str = "exact",
    ) -> None:
        if rewards not in VARIANTS:
            raise ConfigError(f"unknown reward variant {rewards!r}{did_you_mean(rewards, VARIANTS)}")
        cameras = tuple(cameras.split(",")) if isinstance(cameras, str) else tuple(cameras)
        if len(set(cameras)) != len(cameras):
            raise ConfigError(f"expected each camera once, found {', '.join(cameras)}")
        facts = TASKS[self.task_name]
        horizon = facts.horizon if rewards == "vrl3" else GYMNASIUM_HORIZON
        self.max_steps = horizon if max_steps is None else max_steps
        if self.max_steps < 1:
            raise ConfigError(f"expected a step limit of at least 1, found {max_steps}")
        self.rewards, self.task = rewards, f"{self.task_name}-v0"
        self.reward_scale = REWARD_SCALES[self.task_name] if rewards == "vrl3" else 1.0
        self._mujoco = load_mujoco()
        self._scene = AdroitScene(
            self.task_name, profile=render, cameras=tuple(cameras) or None, image_size=image_size
        )  # fmt: skip
        self._model: mujoco.MjModel = self._scene.model
        # The scene draws with data of its own, so that drawing cannot touch the physics.
        self._data: mujoco.MjData = self._mujoco.MjData(self._model)
        self._ctrl_mean_A = self._model.actuator_ctrlrange.mean(axis=1)
        self._ctrl_half_A = np.diff(self._model.actuator_ctrlrange, axis=1)[:, 0] / 2
        self._model_scene = self._current_scene()
        self._first_D: Array | None = None
        self._scene.render(self._data.qpos)
        self.renderer = f"mujoco {self._mujoco.__version__}, {renderer_name()}, {render}"
        self.action_space = spaces.Box(-1.0, 1.0, (facts.action_dim,), np.float32)
        image_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        proprio_space = spaces.Box(-np.inf, np.inf, self._data.qpos[facts.sensor].shape, np.float32)
        self.observation_space: spaces.Dict = spaces.Dict(  # type: ignore[assignment]
            {**{f"image.{camera}": image_space for camera in self.cameras}, "proprio": proprio_space}
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of the pictures."""
        return self._scene.cameras

    @property
    def features(self) -> dict[str, str]:
        """Key of the observation -> name of the feature in a dataset: the pictures, then the joints."""
        return {key: f"obs.{key}" for key in (*(f"image.{camera}" for camera in self.cameras), "proprio")}

    @property
    def dt(self) -> float:
        """Seconds between two steps."""
        return DT

    @property
    def state(self) -> Array:
        """The state vector (D,) float64 that gymnasium's environment observes, as recorded demonstrations hold it.

        Positions lag one substep of 2 ms behind joints, as there. Not part of the observation.
        """
        data, state_D = self._data, observe(self.task_name, self._data)
        if self.task_name == "door":
            state_D[38] = 1.0 if state_D[28] > 1.0 else -1.0
        elif self.task_name == "hammer":
            state_D[27:33] = np.clip(data.qvel[-6:], -1.0, 1.0)
            state_D[45] = np.clip(data.sensor("S_nail").data[0], -1.0, 1.0)
        elif self.task_name == "pen":
            state_D[27:33] = data.qvel[-6:]
        return state_D

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, dict[str, bool]]:
        """Draw a new scene. The same seed and actions give the same episode to the bit, whatever went before."""
        super().reset(seed=seed)
        self._begin(self._draw_scene(), self._model.qpos0, np.zeros(self._model.nv))
        return self.observe(), {"goal_achieved": False, "is_success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, bool]]:
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: NDArray[np.float32]) -> tuple[float, bool, bool, dict[str, bool]]:
        """`step` without the observation, which costs a hundred times more: (reward, terminated, truncated, info)."""
        if self._first_D is None:
            raise ConfigError("call reset before the first step")
        action_A = np.asarray(action, dtype=np.float64)
        if action_A.shape != self.action_space.shape or not np.isfinite(action_A).all():
            raise ConfigError(f"expected {self._model.nu} finite actions, found shape {action_A.shape}")
        self._data.ctrl[:] = self._ctrl_mean_A + np.clip(action_A, -1.0, 1.0) * self._ctrl_half_A
        self._mujoco.mj_step(self._model, self._data, nstep=SUBSTEPS)
        state_D = self.state
        reward, achieved = self._judge(np.stack([self._first_D, state_D]))
        self._achieved.append(achieved)
        info = {
            "goal_achieved": achieved,
            "is_success": adroit.success(self.task_name, self.rewards, np.array(self._achieved)),
        }
        dropped = self.task_name == "pen" and self.rewards == "vrl3" and bool(state_D[26] < DROPPED_BELOW)
        return reward, dropped, len(self._achieved) >= self.max_steps, info

    def observe(self) -> Observation:
        """The observation of this moment; renders."""
        images = {f"image.{camera}": image_HWC for camera, image_HWC in self._scene.render(self._data.qpos).items()}
        return {**images, "proprio": self._data.qpos[self._scene.task.sensor].astype(np.float32)}

    def render(self) -> NDArray[np.uint8]:
        """The cameras side by side (image_size, cameras * image_size, 3)."""
        return np.concatenate(list(self._scene.render(self._data.qpos).values()), axis=1)

    def sim_state(self) -> dict[str, Array]:
        """Copies of all that `set_sim_state` needs, under the names that converted demonstrations have."""
        scene = {f"sim.{name}": value for name, value in self._current_scene().items()}
        return {"sim.qpos": self._data.qpos.copy(), "sim.qvel": self._data.qvel.copy(), **scene}

    def set_sim_state(self, state: Mapping[str, Array]) -> None:
        """Begin an episode at a moment that `sim_state` or a converted demonstration describes.

        Pictures are those of that moment, to the byte. Stepping on from it is not bit-exact: the solver's warm
        start is not part of the state. To be at a moment exactly, reset with its seed and `advance` its actions.
        SourceError for a missing entry or another shape.
        """
        values = {name.removeprefix("sim."): np.asarray(value, np.float64) for name, value in state.items()}
        for name in ("qpos", "qvel"):
            if name not in values or values[name].shape != (self._model.nq,) or not np.isfinite(values[name]).all():
                found = values[name].shape if name in values else "none"
                raise SourceError(f"expected {self._model.nq} finite numbers in sim.{name}, found {found}")
        self._begin(values, values["qpos"], values["qvel"])

    def close(self) -> None:
        self._scene.close()

    def _begin(self, scene: Mapping[str, Array], qpos_Q: Array, qvel_Q: Array) -> None:
        self._scene.set_scene(scene)
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = qpos_Q
        self._data.qvel[:] = qvel_Q
        self._mujoco.mj_forward(self._model, self._data)
        self._achieved: list[bool] = []
        self._first_D = self.state

    def _judge(self, state_2D: Array) -> tuple[float, bool]:
        """Reward and goal of the step to the last of two states; the first is where the episode began, which
        hammer's distance is counted from."""
        object_3 = self._data.body("Object").xpos if self.task_name == "relocate" else np.zeros(3)
        qpos_2Q, qvel_2Q, object_23 = (np.stack([part, part]) for part in (self._data.qpos, self._data.qvel, object_3))
        states = States(qpos_2Q, qvel_2Q, np.zeros(2), object_23)
        reward_T, achieved_T = adroit.rewards(self.task_name, self.rewards, state_2D, states)
        return float(reward_T[-1]) * self.reward_scale, bool(achieved_T[-1])

    def _draw_scene(self) -> dict[str, Array]:
        scene: dict[str, Array] = {}
        for name, ranges in _SCENES[self.task_name].items():
            if name == "target_pos" and self.rewards == "vrl3":
                ranges = (*ranges[:2], _VRL3_TARGET_HEIGHT)
            drawn = [self._model_scene[name][axis] if span is None else self.np_random.uniform(*span)
                     for axis, span in enumerate(ranges)]  # fmt: skip
            scene[name] = np.array(drawn)
        if self.task_name == "pen":
            quat_4 = np.zeros(4)
            self._mujoco.mju_euler2Quat(quat_4, scene["desired_orien"], "xyz")
            scene["desired_orien"] = quat_4
        return scene

    def _current_scene(self) -> dict[str, Array]:
        """What `AdroitScene.set_scene` set, or what the model came with."""
        model = self._model
        if self.task_name == "door":
            return {"door_body_pos": model.body("frame").pos.copy()}
        if self.task_name == "hammer":
            return {"board_pos": model.body("nail_board").pos.copy()}
        if self.task_name == "pen":
            return {"desired_orien": model.body("target").quat.copy()}
        return {"obj_pos": model.body("Object").pos.copy(), "target_pos": model.site("target").pos.copy()}


class Door(AdroitEnv):
    """Turn the latch and open the door."""

    task_name = "door"


class Hammer(AdroitEnv):
    """Pick the hammer up and drive the nail in."""

    task_name = "hammer"


class Pen(AdroitEnv):
    """Turn the pen in the hand until it points as the target does."""

    task_name = "pen"


class Relocate(AdroitEnv):
    """Pick the ball up and bring it to the target."""

    task_name = "relocate"
