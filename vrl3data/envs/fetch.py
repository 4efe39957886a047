"""FetchReach from pixels, and a scripted demonstrator for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vrl3data.envs.gl import apply_profile, load_mujoco, make_renderer, renderer_name
from vrl3data.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    import mujoco

Observation = dict[str, NDArray[np.generic]]

# The goal is a red ball of 2 cm radius. Seen from here one goal in nine starts hidden behind the arm.
_CAMERA = {"distance": 1.0, "azimuth": 150.0, "elevation": -25.0, "lookat": (1.35, 0.75, 0.55)}


class FetchReach(gymnasium.Env[Observation, NDArray[np.float32]]):
    """gymnasium-robotics' FetchReach with an image in place of the goal's coordinates.

    Observation: `image` uint8 (image_size, image_size, 3), 0-255, and `proprio` float32 (3,), the
    gripper's position in metres. The goal is in the image only. Action: float32 (4,) in [-1, 1], the
    gripper's motion in units of 5 cm and the (blocked) fingers. Reward: 0 within 5 cm of the goal, else
    -1. Episodes never terminate; they are truncated after `max_steps` steps of `dt` = 0.04 s.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 - gymnasium declares it so
    render_mode = "rgb_array"
    task = "move the gripper to the red ball"
    cameras = ("main",)
    features: Mapping[str, str] = {"image": "obs.image.main", "proprio": "obs.proprio"}
    """Key of the observation -> name of the feature in a dataset."""
    reward_scale = 1.0

    def __init__(self, image_size: int = 84, max_steps: int = 50) -> None:
        if image_size < 1 or max_steps < 1:
            raise ConfigError(f"expected a positive size and step limit, got {image_size} and {max_steps}")
        self._mujoco = load_mujoco()
        self._env = _import_reach().MujocoFetchReachEnv()
        self._model: mujoco.MjModel = self._env.model
        self._data: mujoco.MjData = self._env.data
        apply_profile(self._model, "no-shadow")
        self._renderer = make_renderer(self._model, image_size, image_size)
        self.renderer = f"mujoco {self._mujoco.__version__}, {renderer_name()}, no-shadow"
        self._camera = self._mujoco.MjvCamera()
        for name, value in _CAMERA.items():
            setattr(self._camera, name, value)
        self.max_steps = max_steps
        self._steps = 0
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        image_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        proprio_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space: spaces.Dict = spaces.Dict({"image": image_space, "proprio": proprio_space})  # type: ignore[assignment]

    @property
    def dt(self) -> float:
        """Seconds between two steps."""
        return float(self._env.dt)

    @property
    def goal(self) -> NDArray[np.float64]:
        """Where the goal is (3,), metres, world frame. Not part of the observation."""
        return np.array(self._env.goal, dtype=np.float64)

    @property
    def gripper(self) -> NDArray[np.float64]:
        """Where the gripper is (3,), metres, world frame."""
        return np.array(self._data.site("robot0:grip").xpos)

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, object] | None = None,
    ) -> tuple[Observation, dict[str, float]]:
        """Draw a new goal. The same seed gives the same goal and, for the same actions, the same frames."""
        super().reset(seed=seed)
        self._env.reset(seed=seed)
        self._steps = 0
        self._place_goal()
        return self.observe(), {"is_success": self._is_success()}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, float]]:
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: NDArray[np.float32]) -> tuple[float, bool, bool, dict[str, float]]:
        """`step` without the observation: (reward, terminated, truncated, info)."""
        _, reward, _, _, info = self._env.step(np.asarray(action, dtype=np.float32))
        self._steps += 1
        return float(reward), False, self._steps >= self.max_steps, {"is_success": float(info["is_success"])}

    def observe(self) -> Observation:
        """The observation of this moment; renders."""
        return {"image": self.render(), "proprio": self.gripper.astype(np.float32)}

    def render(self) -> NDArray[np.uint8]:
        self._renderer.update_scene(self._data, self._camera)
        image_HWC: NDArray[np.uint8] = self._renderer.render()
        return image_HWC

    def sim_state(self) -> dict[str, NDArray[np.float64]]:
        """Copies of all that `set_sim_state` needs to draw this moment again."""
        return {
            "sim.qpos": np.array(self._data.qpos),
            "sim.qvel": np.array(self._data.qvel),
            "sim.goal": self.goal,
            "sim.mocap_pos": np.array(self._data.mocap_pos),
            "sim.mocap_quat": np.array(self._data.mocap_quat),
        }

    def set_sim_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Go to a moment that `sim_state` described, to render it. Stepping on from it is not bit-exact:
        the solver's warm start is not part of the state."""
        self._data.qpos[:] = state["sim.qpos"]
        self._data.qvel[:] = state["sim.qvel"]
        self._data.mocap_pos[:] = state["sim.mocap_pos"]
        self._data.mocap_quat[:] = state["sim.mocap_quat"]
        self._env.goal = np.array(state["sim.goal"], dtype=np.float64)
        self._place_goal()

    def close(self) -> None:
        self._renderer.close()
        self._env.close()

    def _place_goal(self) -> None:
        """Move the red ball to the goal. gymnasium-robotics does that only in its own `render`."""
        self._model.site("target0").pos[:] = self._env.goal - self._model.body("floor0").pos
        self._mujoco.mj_forward(self._model, self._data)

    def _is_success(self) -> float:
        return float(self._env._is_success(self.gripper, self.goal))


@dataclass(frozen=True)
class ScriptedReach:
    """Demonstrator that sees the goal: moves straight at it, with Gaussian noise on the motion."""

    gain: float = 10.0
    noise: float = 0.1

    def action(self, env: FetchReach, rng: np.random.Generator) -> NDArray[np.float32]:
        """float32 (4,) in [-1, 1]; the noise is drawn from `rng`, three numbers a call."""
        motion_3 = np.clip(self.gain * (env.goal - env.gripper), -1, 1) + rng.normal(0, self.noise, 3)
        return np.append(np.clip(motion_3, -1, 1), 0).astype(np.float32)


def _import_reach() -> ModuleType:
    """Import gymnasium-robotics' FetchReach without the notice about other environments that it prints."""
    with suppress(ImportError):
        importlib.import_module("farama_notifications").notifications.pop("gymnasium_robotics", None)
    try:
        return importlib.import_module("gymnasium_robotics.envs.fetch.reach")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"FetchReach: pip install gymnasium-robotics ({error})") from error
