"""Replay: the episodes of a dataset and those met online, in one object, sampled as one.

Frames are stored once, as uint8; frame stacks and n-step returns are computed when a batch is drawn (sampling.py).
Legend: B items of a batch, C channels, H x W pixels, S sensor values, A action dimensions, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from vrl3data.errors import ConfigError
from vrl3data.loader import EpisodeTable
from vrl3data.sampling import Ints, Layout, Starts, n_step, stack_rows
from vrl3data.schema import Array

Episodes = Literal["all", "offline", "online"]


@dataclass(frozen=True)
class BatchSpec:
    """What a batch consists of. `cameras` are image features, in channel order within a frame."""

    cameras: tuple[str, ...]
    sensor: str | None = None
    action: str = "action"
    reward: str = "reward"
    frames: int = 1
    n_step: int = 1
    gamma: float = 0.99
    whole_windows: bool = False
    by: Literal["episode", "step"] = "step"

    @property
    def features(self) -> tuple[str, ...]:
        return (*self.cameras, *((self.sensor,) if self.sensor else ()), self.action, self.reward)


class Replay:
    """Episodes that never leave (the dataset's) and episodes that make room for newer ones (online).

    Online episodes lie in a ring of `capacity` states; the oldest ones go when a new one needs their place. Steps and
    states of an online episode share row numbers. An episode becomes visible when it is added, whole.
    """

    def __init__(self, spec: BatchSpec, table: EpisodeTable | None = None, capacity: int = 0) -> None:
        if table is None and capacity < 2:
            raise ConfigError("a replay needs episodes of a dataset or room for online ones")
        self.spec, self.table, self.capacity = spec, table, capacity
        self._ring: dict[str, Array] = {}
        self._online: list[_Place] = []
        self._head = 0
        self.added = 0
        self._layout: Layout | None = None
        self._starts: dict[Any, Starts] = {}

    @property
    def layout(self) -> Layout:
        """All episodes: the dataset's first, then online ones from the oldest to the newest."""
        if self._layout is None:
            self._layout = _joined(self.table.layout if self.table else None, self._online)
            self._starts = {}
        return self._layout

    @property
    def offline_episodes(self) -> int:
        return self.table.layout.episodes if self.table else 0

    @property
    def online_numbers(self) -> list[int]:
        """Which of the added episodes are still there, by number, oldest first."""
        return [place.number for place in self._online]

    def add(self, values: Mapping[str, Array], *, terminated: bool) -> None:
        """Append an episode: T rows of action and reward, T + 1 of the rest. ConfigError if it cannot fit."""
        length = len(values[self.spec.action])
        states = length + 1
        if states > self.capacity:
            raise ConfigError(f"an episode of {states} states does not fit into a capacity of {self.capacity}")
        start = self._head if self._head + states <= self.capacity else 0
        self._online = [p for p in self._online if p.start >= start + states or p.start + p.length + 1 <= start]
        if start == 0 and self._head > 0:
            # What the wrapped write leaves behind the head is older than everything before it.
            self._online = [p for p in self._online if p.start < self._head]
        self._store(start, values)
        self._online.append(_Place(self.added, start, length, terminated))
        self._head = start + states
        self.added += 1
        self._layout = None

    def absorb(self, table: EpisodeTable) -> None:
        """Add the episodes of a dataset as if they had been met online: they make room as the others do.

        Without an observation after the last step, that step is left out.
        """
        layout = table.layout
        for episode in range(layout.episodes):
            length = int(layout.lengths_E[episode]) - int(not layout.finals_E[episode])
            states = layout.state_starts_E[episode] + np.arange(length + 1)
            steps = layout.step_starts_E[episode] + np.arange(length)
            stepwise = (self.spec.action, self.spec.reward)
            values = {n: _host(table.gather(n, steps if n in stepwise else states)) for n in self.spec.features}
            self.add(values, terminated=bool(layout.terminated_E[episode] and layout.finals_E[episode]))

    def sample(self, batch: int, rng: np.random.Generator, spec: BatchSpec | None = None, *,
               episodes: Episodes = "all", bootstrap: bool = True,
               share_offline: float | None = None) -> dict[str, Any]:  # fmt: skip
        """A batch of n-step transitions, drawn with replacement.

        obs, next_obs uint8 (B, C, H, W), C = frames x cameras x 3, oldest frame first; sensor, next_sensor float32
        (B, S) where there is a sensor; action float32 (B, A); return and discount float32 (B,); mask float32 (B,), 0
        where nothing follows that could be learned from. `episodes` offline: those of the dataset only. Without
        `bootstrap`: obs, sensor and action only, of every step that has an action.

        `share_offline`: this share of the rows, exactly and first, is of the dataset, the rest of online episodes (0.5:
        symmetric sampling, Ball et al. 2023). ConfigError if one of them has nothing to give; `offers` says whether.
        """
        spec = spec or self.spec
        if share_offline is None:
            episode_B, t_B = self._starts_for(spec, episodes, bootstrap).draw(batch, rng)
        else:
            episode_B, t_B = self._shared(spec, bootstrap, batch, share_offline, rng)
        action_BA = self._steps(spec.action, self.layout.step_rows(episode_B, t_B))
        found = {"obs": self.images(spec, episode_B, t_B), "action": action_BA.astype(np.float32)}
        if spec.sensor:
            found["sensor"] = self._sensor(spec.sensor, episode_B, t_B)
        return found | self._bootstrap(spec, episode_B, t_B) if bootstrap else found

    def _shared(
        self, spec: BatchSpec, bootstrap: bool, batch: int, share: float, rng: np.random.Generator
    ) -> tuple[Ints, Ints]:
        if not 0 <= share <= 1:
            raise ConfigError(f"share_offline: expected 0 to 1, found {share}")
        offline = round(batch * share)
        sizes: dict[Episodes, int] = {"offline": offline, "online": batch - offline}
        parts = [
            self._starts_for(spec, kind, bootstrap).draw(size, rng) for kind, size in sizes.items() if size
        ]  # fmt: skip
        episodes, steps = zip(*parts, strict=True)
        return np.concatenate(episodes), np.concatenate(steps)

    def _bootstrap(self, spec: BatchSpec, episode_B: Ints, t_B: Ints) -> dict[str, Any]:
        step = n_step(
            self.layout, lambda rows: self._steps(spec.reward, rows), (episode_B, t_B), spec.n_step, spec.gamma
        )  # fmt: skip
        found = {
            "next_obs": self.images(spec, episode_B, step.next_t_B),
            "return": step.returns_B.astype(np.float32),
            "discount": step.discount_B.astype(np.float32),
            "mask": step.mask_B.astype(np.float32),
        }
        if spec.sensor:
            found["next_sensor"] = self._sensor(spec.sensor, episode_B, step.next_t_B)
        return found

    def _sensor(self, feature: str, episode_B: Ints, t_B: Ints) -> Array:
        return self._states(feature, self.layout.state_rows(episode_B, t_B)).astype(np.float32)

    def images(self, spec: BatchSpec, episode_B: Ints, t_B: Ints) -> Any:
        """Stacks (B, frames * cameras * 3, H, W) uint8, frames outermost and oldest first; None without cameras."""
        if not spec.cameras:
            return None
        rows_BK = stack_rows(self.layout, episode_B, t_B, spec.frames)
        views = [self._states(camera, rows_BK) for camera in spec.cameras]
        return as_channels(views)

    def state(self) -> dict[str, Array]:
        """Where the online episodes lie; with the episodes themselves, what `restore` needs to go on exactly."""
        places = [(p.number, p.start, p.length, int(p.terminated)) for p in self._online]
        return {
            "places": np.array(places, np.int64).reshape(-1, 4),
            "counters": np.array([self._head, self.added], np.int64),
        }

    def restore(self, state: Mapping[str, Array], load: Callable[[int], Mapping[str, Array]]) -> None:
        """Go back to `state`; `load` gives the values of an online episode by its number. What this replay absorbed
        when it was made lies where it lay then."""
        absorbed, self._online = self.added, []
        for number, start, length, terminated in state["places"].tolist():
            if number >= absorbed:
                self._store(start, load(number))
            self._online.append(_Place(number, start, length, bool(terminated)))
        self._head, self.added = (int(value) for value in state["counters"])
        self._layout = None

    def _store(self, start: int, values: Mapping[str, Array]) -> None:
        for name in self.spec.features:
            value = np.asarray(values[name])
            if name not in self._ring:
                try:
                    self._ring[name] = np.zeros((self.capacity, *value.shape[1:]), value.dtype)
                except MemoryError as error:
                    raise ConfigError(f"{self.capacity} states of {name} do not fit in memory") from error
            self._ring[name][start : start + len(value)] = value

    @property
    def has_windows(self) -> bool:
        """Whether there is anything to draw a batch from."""
        return self.offers("all")

    def offers(self, episodes: Episodes) -> bool:
        """Whether `offline` or `online` episodes have a window to draw."""
        spec = self.spec
        counts_E = Starts.of(self.layout, spec.n_step, whole=spec.whole_windows).counts_E
        offline, online = np.split(counts_E, [self.offline_episodes])
        return bool({"all": counts_E, "offline": offline, "online": online}[episodes].sum())

    def check_windows(self) -> None:
        """ConfigError if no episode is long enough for an n-step window."""
        self._starts_for(self.spec, "all", True)

    def _starts_for(self, spec: BatchSpec, episodes: Episodes, bootstrap: bool) -> Starts:
        layout = self.layout
        key = (spec.n_step, spec.whole_windows, spec.by, episodes, bootstrap)
        if key not in self._starts:
            starts = Starts.of(layout, spec.n_step, whole=spec.whole_windows, by=spec.by)
            if not bootstrap:
                starts = Starts(layout.lengths_E, spec.by)
            if episodes != "all":
                offline_E = np.arange(layout.episodes) < self.offline_episodes
                counts_E = np.where(offline_E == (episodes == "offline"), starts.counts_E, 0)
                starts = Starts(counts_E, spec.by)
            if not starts.total:
                kind = "" if episodes == "all" else f"{episodes} "
                raise ConfigError(f"no {kind}episode has {spec.n_step} steps for an n-step return")
            self._starts[key] = starts
        return self._starts[key]

    def _states(self, feature: str, rows: Ints) -> Array:
        return self._gather(feature, rows, self.table.layout.states if self.table else 0)

    def _steps(self, feature: str, rows: Ints) -> Array:
        return self._gather(feature, rows, self.table.layout.steps if self.table else 0)

    def _gather(self, feature: str, rows: Ints, offline: int) -> Array:
        """Rows below `offline` are the dataset's, the others lie in the ring."""
        online = rows >= offline
        if self.table is not None and not online.any():
            return self.table.gather(feature, rows)
        ring = self._ring[feature]
        if self.table is None or online.all():
            return ring[rows - offline]
        found = np.empty((*rows.shape, *ring.shape[1:]), ring.dtype)
        found[online] = ring[rows[online] - offline]
        found[~online] = _host(self.table.gather(feature, rows[~online]))
        return found


def _host(values: Any) -> Array:
    """What lies on a device, in memory."""
    found: Array = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return found


def as_channels(views: list[Any]) -> Any:
    """Views of cameras, each (B, K, H, W, 3) -> (B, K * cameras * 3, H, W), as given: NumPy arrays or torch tensors."""
    module: Any = np
    if not isinstance(views[0], np.ndarray):
        module = import_module("torch")
    stack_BKVHWC = views[0][:, :, None] if len(views) == 1 else module.stack(views, 2)
    batch, frames, cameras, height, width, colours = stack_BKVHWC.shape
    planes = module.permute_dims if module is np else module.permute
    return planes(stack_BKVHWC, (0, 1, 2, 5, 3, 4)).reshape(batch, frames * cameras * colours, height, width)


@dataclass(frozen=True)
class _Place:
    number: int
    """Of the episode, counted from the first that was added."""
    start: int
    length: int
    terminated: bool


def _joined(offline: Layout | None, online: list[_Place]) -> Layout:
    """One layout; rows of the ring come after those of the dataset."""
    starts = np.array([p.start for p in online], np.int64)
    lengths = np.array([p.length for p in online], np.int64)
    ends = np.array([p.terminated for p in online], bool)
    if offline is None:
        return Layout(lengths, np.ones(len(online), bool), ends, starts, starts)
    return Layout(
        np.concatenate([offline.lengths_E, lengths]),
        np.concatenate([offline.finals_E, np.ones(len(online), bool)]),
        np.concatenate([offline.terminated_E, ends]),
        np.concatenate([offline.step_starts_E, starts + offline.steps]),
        np.concatenate([offline.state_starts_E, starts + offline.states]),
    )
