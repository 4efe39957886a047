"""A point on a plane that should go to another: an environment without images on which learning takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer


class PointReach(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Observation: where the point is and where it should be. Action: the step, at most 0.2 in each direction.
    Reward 1 within 0.15 of the goal, else 0."""

    cameras = ()
    features = {"proprio": "obs.proprio"}  # noqa: RUF012
    reward_scale = 1.0

    def __init__(self, image_size: int = 0, max_steps: int = 15, width: int = 4, actions: int = 2) -> None:
        self.max_steps = max_steps
        self.observation_space = spaces.Dict({"proprio": spaces.Box(-2, 2, (width,), np.float32)})
        self.action_space = spaces.Box(-1, 1, (actions,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.point = np.clip(self.point + 0.2 * np.clip(action, -1, 1), -1.5, 1.5)
        self.steps += 1
        near = bool(np.linalg.norm(self.point - self.goal) < 0.15)
        return self.observe(), float(near), False, self.steps >= self.max_steps, {"is_success": near}

    def observe(self) -> dict[str, np.ndarray]:
        return {"proprio": np.concatenate([self.point, self.goal]).astype(np.float32)}


def poor_demonstrations(path: Path, count: int = 10, seed: int = 1) -> Path:
    """A dataset of a demonstrator that heads for a place at two thirds of the goal's coordinates, noisily."""
    rng, env = np.random.default_rng(seed), PointReach()
    features = (Feature("obs.proprio", "float32", (4,), "state"), Feature("action", "float32", (2,)),
                Feature("reward", "float32"))  # fmt: skip
    spec = DatasetSpec(Schema("episodes", features, ()), "poor", Provenance("test", source_identity="poor"))
    with Writer(path, spec) as writer:
        for number in range(count):
            seen, actions, rewards = [env.reset(seed=seed * 1000 + number)[0]["proprio"]], [], []
            for _ in range(env.max_steps):
                action = np.clip((0.65 * env.goal - env.point) + rng.normal(0, 0.4, 2), -1, 1).astype(np.float32)
                observed, reward, _, _, _ = env.step(action)
                seen.append(observed["proprio"])
                actions.append(action)
                rewards.append(reward)
            values = {
                "obs.proprio": np.stack(seen),
                "action": np.stack(actions),
                "reward": np.array(rewards, np.float32),
            }
            writer.write(Episode(f"{number:03d}", values, length=env.max_steps, final_observation=True))
        writer.finish()
    return path
