"""The four Adroit tasks as VRL3 used them, on current MuJoCo: cameras, looks, rewards, scenes.

The models are gymnasium-robotics'. What VRL3's fork of mj_envs changed (cameras, looks, sparse rewards,
thresholds) is added here. Shapes: T steps, D observation entries, Q joints, 3 coordinates, HWC images.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vrl3data.envs.adroit_state import (
    Array,
    gymnasium_door_reward,
    gymnasium_hammer_reward,
    gymnasium_pen_reward,
    gymnasium_relocate_reward,
    reconstruct,
    vrl3_reward,
)
from vrl3data.envs.adroit_state import States as States
from vrl3data.envs.gl import apply_profile, load_mujoco, make_renderer
from vrl3data.errors import ConfigError, MissingExtra, SourceError, did_you_mean

if TYPE_CHECKING:
    import mujoco

Look = Literal["vrl3", "gymnasium"]
Variant = Literal["vrl3", "gymnasium"]
VARIANTS = ("vrl3", "gymnasium")


@dataclass(frozen=True)
class AdroitTask:
    """Facts of one task. `scene` names the entries of `init_state_dict` that place its objects, with
    their sizes; `sensor` is the part of qpos VRL3 gives to the policy; `horizon` counts 0.01 s steps;
    an episode succeeds in VRL3's eyes with more than `success_steps` steps at the goal."""

    observation_dim: int
    action_dim: int
    qpos_dim: int
    cameras: tuple[str, ...]
    horizon: int
    sensor: slice
    scene: tuple[tuple[str, int], ...]
    success_steps: int


TASKS: dict[str, AdroitTask] = {
    "door": AdroitTask(39, 28, 30, ("top",), 200, slice(4, -2), (("door_body_pos", 3),), 25),
    "hammer": AdroitTask(46, 26, 33, ("top",), 200, slice(2, -7), (("board_pos", 3),), 25),
    "pen": AdroitTask(45, 24, 30, ("vil_camera",), 100, slice(0, -6), (("desired_orien", 4),), 20),
    "relocate": AdroitTask(
        39, 30, 36, ("cam1", "cam2", "cam3"), 200, slice(6, -6), (("obj_pos", 3), ("target_pos", 3)), 25
    ),
}

# Position in metres and intrinsic xyz Euler angles in radians, as in the XML files VRL3 used.
_ADDED_CAMERAS: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "door": {"top": ((0, 0, 1.5), (0, 0, 3.14))},
    "hammer": {"top": ((0, 0, 1.1), (0, 0, 3.14))},
    "pen": {"left": ((0.4, -0.2, 0.2), (0, 1.57, 1.57)), "front": ((0, 0.4, 0.2), (-1.57, 0, 3.14))},
    "relocate": {
        "cam1": ((0, -0.04, -1.0), (-3.14, 0, 3.14)),
        "cam2": ((0, 0.8, 0.2), (-1.57, 0, 3.14)),
        "cam3": ((0.8, 0, 0.2), (0, 1.57, 1.57)),
    },
}
# Same name and direction in both models, another place: pen's vil_camera is a silent trap.
_MOVED_CAMERAS: dict[str, dict[str, tuple[float, ...]]] = {
    "pen": {"vil_camera": (0, -0.8, 0.8), "view_4": (0.4, -0.4, 0.4)},
}


def detect_task(observation_dim: int, action_dim: int, init_keys: Iterable[str]) -> str | None:
    """The task with these sizes whose scene can be set from these entries of `init_state_dict`."""
    keys = set(init_keys)
    for name, task in TASKS.items():
        sizes = (task.observation_dim, task.action_dim)
        if sizes == (observation_dim, action_dim) and keys.issuperset(key for key, _ in task.scene):
            return name
    return None


def task_named(task_name: str) -> AdroitTask:
    if task_name not in TASKS:
        raise ConfigError(f"unknown Adroit task {task_name!r}{did_you_mean(task_name, TASKS)}")
    return TASKS[task_name]


def build_model(task_name: str, look: Look = "vrl3") -> mujoco.MjModel:
    """Compile gymnasium-robotics' model of the task; `vrl3` adds the cameras and looks of VRL3's fork.

    Actuators are set as gymnasium-robotics' environments do, so stepping gives the same motion.
    """
    task_named(task_name)
    if look not in VARIANTS:
        raise ConfigError(f"unknown look {look!r}{did_you_mean(look, VARIANTS)}")
    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(_model_path(task_name)))
    if look == "vrl3":
        for name, (pos_3, euler_3) in _ADDED_CAMERAS[task_name].items():
            quat_4 = np.zeros(4)
            mujoco.mju_euler2Quat(quat_4, np.array(euler_3, dtype=np.float64), "xyz")
            spec.worldbody.add_camera(name=name, pos=pos_3, quat=quat_4)
        moved = _MOVED_CAMERAS.get(task_name, {})
        for camera in spec.cameras:
            camera.pos = moved.get(camera.name, camera.pos)
    model = spec.compile()
    if look == "vrl3":
        _apply_looks(task_name, model)
    _set_actuators(model)
    return model


def _model_path(task_name: str) -> Path:
    """The XML file, found without importing the package: it prints a notice and pulls in gymnasium."""
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise MissingExtra("the Adroit models are part of gymnasium-robotics: pip install gymnasium-robotics")
    path = Path(package.origin).parent / "envs" / "assets" / "adroit_hand" / f"adroit_{task_name}.xml"
    if not path.is_file():
        raise ConfigError(f"the installed gymnasium-robotics has no {path.name}; expected version 1.4")
    return path


def _apply_looks(task_name: str, model: mujoco.MjModel) -> None:
    """VRL3's colours. An alpha of 0 hides a geom: relocate's cam1 looks up through the table."""
    if task_name == "pen":
        for name in ("pen", "target"):
            model.geom(name).rgba[3] = 1.0
    if task_name == "relocate":
        model.light_castshadow[:] = False
        model.geom_rgba[model.geom_bodyid == model.body("table").id] = 0.0
        ball = model.geom("sphere").id
        model.geom_matid[ball] = -1
        model.geom_rgba[ball] = (1, 0, 0, 1)
        model.site("target").rgba[3] = 0.3


def _set_actuators(model: mujoco.MjModel) -> None:
    for first, last, gain in (("A_WRJ1", "A_WRJ0", 10), ("A_FFJ3", "A_THJ0", 1)):
        rows = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[rows, :3] = (gain, 0, 0)
        model.actuator_biasprm[rows, :3] = (0, -gain, 0)


def camera_names(model: mujoco.MjModel) -> tuple[str, ...]:
    return tuple(model.camera(index).name for index in range(model.ncam))


class AdroitScene:
    """One task's model with cameras, for states set from outside. Keep one and reuse it.

    The GL context is made at the first `render`.
    """

    def __init__(
        self,
        task_name: str,
        *,
        look: Look = "vrl3",
        profile: str = "exact",
        cameras: tuple[str, ...] | None = None,
        image_size: int = 84,
    ) -> None:
        self.task_name = task_name
        self.task = task_named(task_name)
        self.model = build_model(task_name, look)
        self.cameras = self.task.cameras if cameras is None else cameras
        known = camera_names(self.model)
        for camera in self.cameras:
            if camera not in known:
                raise ConfigError(
                    f"{task_name} has no camera {camera!r} in the {look} look; there are: {', '.join(known)}"
                )
        if image_size < 1:
            raise ConfigError(f"expected an image size of at least 1 pixel, got {image_size}")
        apply_profile(self.model, profile)
        self.image_size = image_size
        self.data = load_mujoco().MjData(self.model)
        self._renderer: mujoco.Renderer | None = None
        self._start_Q: Array | None = None

    def set_scene(self, init_state: Mapping[str, Array]) -> None:
        """Place door, board, target or ball as an episode's `init_state_dict` says; needed before
        `reconstruct`. Joint positions are taken only as the start of hammer's and pen's angles."""
        values = {name: self._entry(init_state, name, size) for name, size in self.task.scene}
        if self.task_name == "door":
            self.model.body("frame").pos[:] = values["door_body_pos"]
        elif self.task_name == "hammer":
            self.model.body("nail_board").pos[:] = values["board_pos"]
        elif self.task_name == "pen":
            self.model.body("target").quat[:] = values["desired_orien"]
        else:
            self.model.body("Object").pos[:] = values["obj_pos"]
            self.model.site("target").pos[:] = values["target_pos"]
        qpos_dim = self.task.qpos_dim
        has_qpos = "qpos" in init_state
        self._start_Q = self._entry(init_state, "qpos", qpos_dim) if has_qpos else np.zeros(qpos_dim)

    def _entry(self, init_state: Mapping[str, Array], name: str, size: int) -> Array:
        if name not in init_state:
            hint = did_you_mean(name, init_state)
            raise SourceError(f"{self.task_name}: the initial state has no {name!r}{hint}")
        value = np.asarray(init_state[name], dtype=np.float64)
        if value.shape != (size,) or not np.isfinite(value).all():
            raise SourceError(f"{self.task_name}: expected {size} finite numbers in {name!r}, got shape {value.shape}")
        return value

    def reconstruct(self, obs_TD: Array) -> States:
        """The state behind each recorded observation of the episode whose scene is set; see `States`."""
        obs_TD = _checked_observations(self.task_name, obs_TD)
        if self._start_Q is None:
            raise ConfigError("call set_scene with the episode's initial state before reconstruct")
        return reconstruct(self.task_name, self.model, self._start_Q, obs_TD)

    def render(self, qpos_Q: Array) -> dict[str, NDArray[np.uint8]]:
        """One image (image_size, image_size, 3) per camera, 0-255, top row first, of this state.

        Positions are brought up to date first, unlike in gymnasium, whose images lag by one substep.
        """
        if self._renderer is None:
            size = self.image_size
            self._renderer = make_renderer(self.model, size, size)
        self.data.qpos[:] = qpos_Q
        load_mujoco().mj_forward(self.model, self.data)
        images: dict[str, NDArray[np.uint8]] = {}
        for camera in self.cameras:
            self._renderer.update_scene(self.data, camera)
            images[camera] = self._renderer.render()
        return images

    def close(self) -> None:
        """Free the GL context. The scene may be used again; the next `render` makes another."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _checked_observations(task_name: str, obs_TD: Array) -> Array:
    obs_TD = np.asarray(obs_TD, dtype=np.float64)
    dim = task_named(task_name).observation_dim
    if obs_TD.ndim != 2 or obs_TD.shape[1] != dim or len(obs_TD) == 0:
        raise SourceError(f"{task_name}: expected observations of shape (steps, {dim}), got {obs_TD.shape}")
    if not np.isfinite(obs_TD).all():
        raise SourceError(f"{task_name}: observations hold a number that is not finite")
    return obs_TD


def rewards(
    task_name: str, variant: Variant, obs_TD: Array, states: States | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    """Reward (T,) and whether the goal is achieved (T,) for the transition that starts at each step.

    Both are evaluated at the observation that follows; the last transition's is not recorded, so it is
    evaluated at the last observation there is. `vrl3` is the "sparse" reward VRL3 trained with;
    `gymnasium` the dense one of gymnasium-robotics 1.4.2, whose +0.1 * distance pays for being far away
    (the original, and the human door demonstrations, have -0.1). `gymnasium` needs `states` but for pen:
    velocities and heights are not observed.
    """
    obs_TD = _checked_observations(task_name, obs_TD)
    next_T = np.minimum(np.arange(len(obs_TD)) + 1, len(obs_TD) - 1)
    obs_TD = obs_TD[next_T]
    if variant == "vrl3":
        return vrl3_reward(task_name, obs_TD)
    if variant != "gymnasium":
        raise ConfigError(f"unknown reward variant {variant!r}{did_you_mean(variant, VARIANTS)}")
    if task_name == "pen":
        return gymnasium_pen_reward(obs_TD)
    if states is None or len(states.qvel_TQ) != len(obs_TD):
        raise ConfigError(f"the gymnasium reward of {task_name} needs the states of {len(obs_TD)} steps")
    if task_name == "door":
        return gymnasium_door_reward(obs_TD, states.qvel_TQ[next_T])
    if task_name == "hammer":
        return gymnasium_hammer_reward(obs_TD, states.qvel_TQ[next_T])
    return gymnasium_relocate_reward(obs_TD, states.object_pos_T3[next_T])


def success(task_name: str, variant: Variant, goal_achieved_T: NDArray[np.bool_]) -> bool:
    """Whether the episode succeeded. VRL3 wants more than 25 steps at the goal (pen: 20);
    gymnasium reports only steps, so there any step at the goal counts."""
    if variant not in VARIANTS:
        raise ConfigError(f"unknown reward variant {variant!r}{did_you_mean(variant, VARIANTS)}")
    needed = task_named(task_name).success_steps if variant == "vrl3" else 0
    return int(np.sum(goal_achieved_T)) > needed
