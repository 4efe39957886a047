"""The replay loader of DrQ-v2 (Yarats et al. 2021), made anew from a description of what it does.

An .npz per episode, deflated, row 0 the reset, frames already stacked: (T + 1, 9, H, W) or (T + 1, 3, H, W, 3). A
torch IterableDataset whose workers keep their share of the episodes decoded in memory, look for new files every
`FETCH_EVERY` samples, draw an episode and then a step, compute one n-step transition at a time and leave the batch to
torch's default collation.
With the sensors that VRL3 added. Measured in steady state: everything is loaded, nothing new arrives.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from opponents.common import BATCH, FRAMES, GAMMA, STEPS, Array, Batch, Side, Source, Windows, split_span

FETCH_EVERY = 1000
FIELDS = ("observation", "sensor", "action", "reward", "discount")


def write(source: Source, folder: Path) -> None:
    """The file name carries a stamp, the number and the length, as the original's do."""
    for e, frames in enumerate(source.stored):
        length = len(frames) - 1
        back_TK = np.maximum(np.arange(length + 1)[:, None] - np.arange(FRAMES - 1, -1, -1), 0)
        action, reward = source.action[e], source.reward[e]
        np.savez_compressed(
            folder / f"20260101T000000_{e}_{length}.npz",
            observation=split_span(frames[back_TK], source.layout)["obs"], sensor=source.sensor[e],
            action=np.concatenate([np.zeros_like(action[:1]), action[:length]]),
            reward=np.concatenate([np.zeros(1, np.float32), reward[:length]])[:, None],
            discount=np.ones((length + 1, 1), np.float32),
        )  # fmt: skip


class Episodes(IterableDataset[Any]):
    """Transitions (observation, sensor, action, return, discount, next observation, next sensor), without an end.

    Two integers more than the original's, episode and step, are handed out for the check.
    """

    def __init__(self, folder: Path, seed: int, frames: int = 1_000_000) -> None:
        self.folder, self.seed, self.frames = folder, seed, frames
        self.paths: list[Path] = []
        self.loaded: dict[Path, dict[str, Array]] = {}
        self.numbers: dict[Path, int] = {}
        self.held, self.since_fetch = 0, FETCH_EVERY

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        chance = random.Random(self.seed + worker)
        while True:
            if self.since_fetch >= FETCH_EVERY:
                self._fetch(worker, workers)
                self.since_fetch = 0
            self.since_fetch += 1
            path = chance.choice(self.paths)
            episode = self.loaded[path]
            row = chance.randint(1, len(episode["reward"]) - STEPS)
            yield *_transition(episode, row), self.numbers[path], row - 1

    def _fetch(self, worker: int, workers: int) -> None:
        """Newest files first, up to one that is known; the oldest episodes make room."""
        fresh = 0
        for path in sorted(self.folder.glob("*.npz"), reverse=True):
            number, length = (int(part) for part in path.stem.split("_")[1:])
            if number % workers != worker:
                continue
            if path in self.loaded or fresh + length > self.frames // workers:
                break
            fresh += length
            with np.load(path) as archive:
                self._keep(path, {name: archive[name] for name in FIELDS}, self.frames // workers)

    def _keep(self, path: Path, episode: dict[str, Array], limit: int) -> None:
        length = len(episode["reward"]) - 1
        while self.held + length > limit:
            self.held -= len(self.loaded.pop(self.paths.pop(0))["reward"]) - 1
        self.paths = sorted([*self.paths, path])
        self.loaded[path], self.numbers[path] = episode, int(path.stem.split("_")[1])
        self.held += length


def _transition(episode: dict[str, Array], row: int) -> tuple[Array, ...]:
    """The n-step transition whose action is in `row`: its observation is the row before."""
    reward, discount = np.zeros_like(episode["reward"][row]), np.ones_like(episode["discount"][row])
    for ahead in range(row, row + STEPS):
        reward += discount * episode["reward"][ahead]
        discount *= episode["discount"][ahead] * GAMMA
    observation, sensor, after = episode["observation"], episode["sensor"], row + STEPS - 1
    before = observation[row - 1], sensor[row - 1]
    return *before, episode["action"][row], reward, discount, observation[after], sensor[after]


class DrQv2(Side):
    """`in process`: the work of one worker, without sending batches; `one worker`: a process beside the consumer."""

    versions = ("torch",)

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        write(source, folder)
        self.folder, self.workers = folder, {"in process": 0, "one worker": 1}[setting]

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        episodes = Episodes(self.folder, int(rng.integers(1 << 30)))
        for *found, episode_B, t_B in DataLoader(episodes, BATCH, num_workers=self.workers):
            yield Windows(episode_B.numpy(), t_B.numpy()), _named(*found)


def _named(obs: Any, sensor: Any, action: Any, reward: Any, discount: Any, next_obs: Any, next_sensor: Any) -> Batch:
    return {
        "obs": obs.numpy(), "sensor": sensor.numpy(), "action": action.numpy(), "return": reward.numpy()[:, 0],
        "discount": discount.numpy()[:, 0], "next_obs": next_obs.numpy(), "next_sensor": next_sensor.numpy(),
        "mask": np.ones(len(obs), np.float32),
    }  # fmt: skip
