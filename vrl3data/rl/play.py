"""Plays episodes: an environment, its frame stacks and sensors, and whoever chooses the actions.

Legend: K frames of a stack, T steps, C channels, H x W pixels, S sensor values, A action dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from vrl3data.envs import ENVS
from vrl3data.envs.repeat import ActionRepeat
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.replay import as_channels
from vrl3data.schema import Array

Choose = Callable[[Array | None, Array | None], Array]
"""(images (1, C, H, W) uint8 or None, sensors (1, S) float32 or None) -> action (A,) in [-1, 1]."""


@dataclass(frozen=True)
class EnvSpec:
    """An environment by name, and how the agent meets it."""

    name: str
    image_size: int = 84
    max_steps: int = 0
    """Raw frames of an episode; 0: the environment's own."""
    action_repeat: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Played:
    """An episode. `images` per camera (T + 1, H, W, 3) uint8, `sensor_TS` (T + 1, S), `action_TA`, `reward_T`."""

    images: Mapping[str, Array]
    sensor_TS: Array
    action_TA: Array
    reward_T: Array
    terminated: bool
    success_last: bool
    success_any: bool
    frames: int
    """Raw frames of the environment."""

    def values(self, sensor: str | None) -> dict[str, Array]:
        """As a replay takes it."""
        found = {**self.images, "action": self.action_TA, "reward": self.reward_T}
        return {**found, sensor: self.sensor_TS} if sensor else found


class Stage:
    """An environment with the frame stack and sensors that a policy sees."""

    def __init__(self, env: Any, spec: EnvSpec, frames: int) -> None:
        self.env, self.spec, self.frames = env, spec, frames
        self.features: dict[str, str] = dict(env.get_wrapper_attr("features"))
        self.cameras = tuple(name for name in self.features.values() if name.startswith("obs.image."))
        sensors = [key for key, name in self.features.items() if not name.startswith("obs.image.")]
        self._image_keys = {name: key for key, name in self.features.items() if name in self.cameras}
        self._sensor_key = sensors[0] if sensors else None
        self.sensor = self.features[self._sensor_key] if self._sensor_key else None
        self.action_dim = int(np.prod(env.action_space.shape))
        self._stack: deque[dict[str, Array]] = deque(maxlen=frames)
        if not (np.all(env.action_space.low == -1) and np.all(env.action_space.high == 1)):
            raise ConfigError(
                f"{spec.name}: expected actions in [-1, 1], found another range; wrap it in RescaleAction"
            )

    @property
    def sensor_dim(self) -> int:
        return int(self.env.observation_space[self._sensor_key].shape[0]) if self._sensor_key else 0

    def play(self, choose: Choose, seed: int, after_step: Callable[[], None] | None = None) -> Played:
        """One episode from `reset(seed)`. `after_step` is called after each step of the environment."""
        observation, _ = self.env.reset(seed=seed)
        self._stack.extend([observation] * self.frames)
        seen, actions, rewards, frames = [observation], [], [], 0
        success = any_success = terminated = truncated = False
        while not (terminated or truncated):
            action_A = np.asarray(choose(self._images(), self._sensor()), np.float32)
            observation, reward, terminated, truncated, info = self.env.step(action_A)
            self._stack.append(observation)
            seen.append(observation)
            actions.append(action_A)
            rewards.append(float(reward))
            success = bool(info.get("is_success", False))
            any_success |= success
            frames += int(info.get("frames", 1))
            if after_step is not None:
                after_step()
        sensor_TS = np.zeros((len(seen), 0), np.float32)
        if self._sensor_key is not None:
            sensor_TS = np.stack([item[self._sensor_key] for item in seen])
        return Played(
            {name: np.stack([item[key] for item in seen]) for name, key in self._image_keys.items()}, sensor_TS,
            np.stack(actions), np.asarray(rewards, np.float32), bool(terminated), success, any_success, frames,
        )  # fmt: skip

    def _images(self) -> Array | None:
        if not self.cameras:
            return None
        views = [np.stack([item[self._image_keys[camera]] for item in self._stack])[None] for camera in self.cameras]
        stack_1CHW: Array = as_channels(views)
        return stack_1CHW

    def _sensor(self) -> Array | None:
        if self._sensor_key is None:
            return None
        sensor_1S: Array = self._stack[-1][self._sensor_key].astype(np.float32)[None]
        return sensor_1S


@contextmanager
def open_stage(spec: EnvSpec, frames: int) -> Iterator[Stage]:
    """The environment of `spec`, closed at the end. ConfigError for names and options that do not exist."""
    env = make_env(spec)
    try:
        yield Stage(env, spec, frames)
    finally:
        env.close()


def make_env(spec: EnvSpec) -> Any:
    if spec.name not in ENVS:
        raise ConfigError(f"no environment {spec.name!r}{did_you_mean(spec.name, ENVS)}")
    module, name = ENVS[spec.name].split(":")
    limit = {"max_steps": spec.max_steps} if spec.max_steps else {}
    try:
        env = getattr(import_module(module), name)(image_size=spec.image_size, **limit, **spec.options)
    except TypeError as error:
        raise ConfigError(f"{spec.name}: {error}") from error
    return ActionRepeat(env, spec.action_repeat)
