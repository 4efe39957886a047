"""A small arm seen by two cameras and a depth camera: clean, realistic episodes for the tests of `validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_spec

from vrl3data.manifest import DatasetSpec
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer

SIZE = 32
PERIOD_NS = 50_000_000
EPISODES = 14


def arm_schema() -> Schema:
    camera = {"dtype": "uint8", "shape": (SIZE, SIZE, 3), "rows": "state", "color": "rgb"}
    features = (
        Feature("obs.image.front", **camera),
        Feature("obs.image.side", **camera),
        Feature("obs.depth.front", "uint16", (SIZE, SIZE), "state", scale_m=0.001),
        Feature("obs.proprio", "float32", (6,), "state"),
        Feature("obs.goal", "float64", (3,), "state"),
        Feature("action", "float32", (3,), bounds=(-1.0, 1.0)),
        Feature("reward", "float64"),
        Feature("terminated", "bool"),
        Feature("timestamp", "int64", rows="state", unit="ns"),
        Feature("sim.scene", "float64", (2,), "episode"),
    )
    return Schema("episodes", features, ("preview.jpg",))


def arm_spec(**more: Any) -> DatasetSpec:
    return make_spec(arm_schema(), shard_size=2_000_000, license="mit", **more)


def arm_episode(number: int, home: bool = False) -> Episode:
    """Joints follow velocity commands towards a goal, with noise in motors, sensors and pixels.

    With `home` all start alike, and go much the same way.
    """
    rng = np.random.default_rng([11, number])
    joints, goal = rng.uniform(-1, 1, 3), rng.uniform(-1.5, 1.5, 3)
    if home:
        joints, goal = 0.2 * joints + 0.6, 0.3 * goal - 1
    velocity, wander = np.zeros(3), np.zeros(3)
    limit = int(rng.integers(36, 48))
    states, actions, rewards = [np.concatenate([joints, velocity])], [], []
    reached = False
    while len(actions) < limit and not reached:
        wander = 0.6 * wander + rng.normal(0, 0.35, 3)
        action = np.clip(1.5 * (goal - joints) + wander, -1, 1)
        velocity = 0.08 * action + rng.normal(0, 0.004, 3)
        joints = joints + velocity
        reached = bool(np.linalg.norm(goal - joints) < 0.12 and len(actions) > 20)
        states.append(np.concatenate([joints, velocity]))
        actions.append(action)
        rewards.append(-float(np.linalg.norm(goal - joints)) + 5.0 * reached)
    states_N6 = np.stack(states)
    count = len(states_N6)
    gain = rng.uniform(0.95, 1.05)
    tips_N32 = _tips(states_N6[:, :3])
    stamps = np.arange(count) * PERIOD_NS + np.r_[0, rng.normal(0, 500_000, count - 1)].astype(np.int64)
    values = {
        "obs.image.front": _film(tips_N32, 0, gain, rng),
        "obs.image.side": _film(tips_N32[:, :, ::-1] * [0.7, 1.0], 1, gain, rng),
        "obs.depth.front": _depth(tips_N32, rng),
        "obs.proprio": (states_N6 + rng.normal(0, 0.002, states_N6.shape)).astype(np.float32),
        "obs.goal": np.repeat(goal[None], count, axis=0),
        "action": np.stack(actions).astype(np.float32),
        "reward": np.array(rewards),
        "terminated": np.r_[np.zeros(len(actions) - 1, bool), reached],
        "timestamp": stamps.astype(np.int64),
        "sim.scene": rng.uniform(0, 1, (1, 2)),
    }
    end = {"terminated": int(reached), "truncated": int(not reached), "success": int(reached)}
    split = "val" if number >= EPISODES - 3 else "train"
    return Episode(f"arm-{number}", values, length=len(actions), final_observation=True, split=split,
                   task="reach", origin="scripted", **end)  # fmt: skip


def arm_episodes(count: int = EPISODES) -> list[Episode]:
    return [arm_episode(number) for number in range(count)]


def write_arm(path: Path, episodes: list[Episode] | None = None, spec: DatasetSpec | None = None) -> Path:
    with Writer(path, spec or arm_spec()) as writer:
        for episode in episodes or arm_episodes():
            writer.write(episode)
    return path


def _tips(joints_N3: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ends of the three links, in units of the picture: N x 3 x 2."""
    angles = np.cumsum(joints_N3 * 0.8, axis=1)
    steps = 0.22 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return np.cumsum(steps, axis=1) + np.array([0.1, 0.5])


def _blobs(tips_N32: np.ndarray[Any, Any], width: float) -> np.ndarray[Any, Any]:
    axis = (np.arange(SIZE) + 0.5) / SIZE
    y, x = np.meshgrid(axis, axis, indexing="ij")
    square = (x - tips_N32[:, :, 0, None, None]) ** 2 + (y - tips_N32[:, :, 1, None, None]) ** 2
    return np.exp(-square / width**2).max(axis=1)


def _film(tips_N32: np.ndarray[Any, Any], camera: int, gain: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A textured wall above a darker floor, and the arm before it."""
    scene = np.random.default_rng([5, camera])
    coarse = scene.uniform(40, 150, (8, 8, 3)).repeat(SIZE // 8, 0).repeat(SIZE // 8, 1)
    ramp = np.linspace(1.2, 0.5, SIZE)[:, None, None] * ([1.0, 0.9, 0.7] if camera else [0.8, 1.0, 1.1])
    color = np.array([[230, 60, 40], [50, 80, 220]][camera])
    alpha = _blobs(tips_N32, 0.1)[..., None]
    frames = (coarse * ramp * (1 - alpha) + color * alpha) * gain + rng.normal(0, 1.5, (*alpha.shape[:3], 3))
    return np.clip(frames, 0, 255).astype(np.uint8)


def _depth(tips_N32: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Millimetres: a floor that comes nearer, and the arm in front of it."""
    floor = np.linspace(1400, 700, SIZE)[:, None] * np.ones((SIZE, SIZE))
    return (floor - 250 * _blobs(tips_N32, 0.1) + rng.normal(0, 3, (len(tips_N32), SIZE, SIZE))).astype(np.uint16)
