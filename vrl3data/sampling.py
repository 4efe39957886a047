"""Index arithmetic over episodes: frame stacks, n-step returns, goals, chunks. Pure NumPy, no data, no torch.

Frames are stored once; everything a learner wants is rows of flat arrays, computed here. Legend: E episodes,
B items of a batch, K frames of a stack, L steps of a chunk. A step is (observation, action, reward); an episode of
T steps has T observations, or T + 1 when the one after its last step is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Layout:
    """Where the episodes lie in flat arrays of steps and of states."""

    lengths_E: Ints
    finals_E: Bools
    """Whether the observation after the last step is known."""
    terminated_E: Bools
    """Whether the episode ended in a terminal state, as opposed to a time limit or an unknown end."""
    step_starts_E: Ints
    state_starts_E: Ints

    @classmethod
    def packed(cls, lengths: Sequence[int] | Ints, finals: Sequence[bool] | Bools,
               terminated: Sequence[bool] | Bools) -> Layout:  # fmt: skip
        """Episodes one after the other, without gaps."""
        lengths_E, finals_E = np.asarray(lengths, np.int64), np.asarray(finals, bool)
        states_E = lengths_E + finals_E
        return cls(
            lengths_E, finals_E, np.asarray(terminated, bool), np.cumsum(lengths_E) - lengths_E,
            np.cumsum(states_E) - states_E,
        )  # fmt: skip

    @property
    def episodes(self) -> int:
        return len(self.lengths_E)

    @property
    def states_E(self) -> Ints:
        """Observations of each episode."""
        return self.lengths_E + self.finals_E

    @property
    def steps(self) -> int:
        return int(self.lengths_E.sum())

    @property
    def states(self) -> int:
        return int(self.states_E.sum())

    def step_rows(self, episode_B: Ints, t_B: Ints) -> Ints:
        return self.step_starts_E[episode_B] + t_B

    def state_rows(self, episode_B: Ints, t_B: Ints) -> Ints:
        return self.state_starts_E[episode_B] + t_B


def stack_rows(layout: Layout, episode_B: Ints, t_B: Ints, frames: int, stride: int = 1) -> Ints:
    """State rows (B, K) of the stack that ends at state t, oldest first; before the start, its first frame."""
    back_K = stride * np.arange(frames - 1, -1, -1)
    return layout.state_rows(episode_B[:, None], np.maximum(t_B[:, None] - back_K, 0))


@dataclass(frozen=True)
class NStep:
    """`returns_B` = sum over i < k of gamma^i r_{t+i}; `discount_B` = gamma^k, or 0 after a terminal state.

    k = n, or what is left of the episode. The bootstrap is the state `next_t_B` = t + k. `mask_B` is False where
    there is nothing to learn from: no observation follows step t and nobody said that it is terminal.
    """

    returns_B: Floats
    discount_B: Floats
    next_t_B: Ints
    mask_B: Bools


def horizon(layout: Layout) -> Ints:
    """(E,) the greatest t + k of a window: T, or T - 1 where the last step leads to an unknown, live state."""
    return layout.lengths_E - ~(layout.finals_E | layout.terminated_E)


def n_step(
    layout: Layout, reward_at: Callable[[Ints], Floats], window: tuple[Ints, Ints], n: int, gamma: float
) -> NStep:
    """n-step returns of the windows (episode_B, t_B), never across the end of an episode.

    `reward_at`: rewards of step rows, of the same shape.
    """
    episode_B, t_B = window
    steps_B = np.minimum(n, horizon(layout)[episode_B] - t_B)
    mask_B = steps_B > 0
    offsets_L = np.arange(n)
    t_BL = np.minimum(t_B[:, None] + offsets_L, layout.lengths_E[episode_B, None] - 1)
    weights_BL = np.where(offsets_L < steps_B[:, None], gamma**offsets_L, 0.0)
    returns_B = (reward_at(layout.step_rows(episode_B[:, None], t_BL)) * weights_BL).sum(1)
    end_B = t_B + np.maximum(steps_B, 0)
    terminal_B = layout.terminated_E[episode_B] & (end_B == layout.lengths_E[episode_B])
    discount_B = np.where(mask_B & ~terminal_B, gamma ** np.maximum(steps_B, 0), 0.0)
    # A terminal state without an observation is never bootstrapped from: any row of the episode will do.
    next_t_B = np.minimum(end_B, layout.states_E[episode_B] - 1)
    return NStep(returns_B, discount_B, next_t_B, mask_B)


@dataclass(frozen=True)
class Starts:
    """First steps of n-step windows: each episode offers t = 0 .. count - 1.

    `whole` leaves out windows that the episode's end cuts short, as DrQ-v2 and VRL3 do (episodes shorter than n then
    offer none). `by` episode: an episode first, then a step, as they do; `by` step: every step alike.
    """

    counts_E: Ints
    by: Literal["episode", "step"] = "step"

    @classmethod
    def of(cls, layout: Layout, n: int = 1, *, whole: bool = False, by: Literal["episode", "step"] = "step") -> Starts:
        counts_E = horizon(layout) - (n - 1 if whole else 0)
        return cls(np.maximum(counts_E, 0), by)

    @property
    def total(self) -> int:
        return int(self.counts_E.sum())

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """(episode_B, t_B), with replacement. ValueError if there are none."""
        if not self.total:
            raise ValueError("no episode is long enough for such a window")
        if self.by == "step":
            return self.place(rng.integers(0, self.total, batch))
        usable_E = np.flatnonzero(self.counts_E)
        episode_B = usable_E[rng.integers(0, len(usable_E), batch)]
        return episode_B, rng.integers(0, self.counts_E[episode_B])

    def place(self, number_B: Ints) -> tuple[Ints, Ints]:
        """(episode_B, t_B) of windows numbered 0 .. total - 1 through all episodes."""
        episode_B = np.searchsorted(self._ends_E, number_B, side="right")
        return episode_B, number_B - (self._ends_E[episode_B] - self.counts_E[episode_B])

    @cached_property
    def _ends_E(self) -> Ints:
        return np.cumsum(self.counts_E)


def future_states(
    layout: Layout, episode_B: Ints, t_B: Ints, gamma: float, rng: np.random.Generator
) -> Ints:  # fmt: skip
    """Goals of the same episode: t + a geometric offset >= 1 of parameter 1 - gamma, at most its last state."""
    offset_B = rng.geometric(1 - gamma, len(t_B))
    return np.minimum(t_B + offset_B, layout.states_E[episode_B] - 1)


def uniform_future_states(layout: Layout, episode_B: Ints, t_B: Ints, rng: np.random.Generator) -> Ints:
    """Goals of the same episode: drawn alike from the states after t; the last state where none follows."""
    last_B = layout.states_E[episode_B] - 1
    return np.minimum(t_B + 1 + np.floor(rng.random(len(t_B)) * (last_B - t_B)).astype(np.int64), last_B)


def ordered_states(layout: Layout, episode_B: Ints, count: int, rng: np.random.Generator) -> tuple[Ints, Bools]:
    """(B, count) different states of each episode in the order of time, every set of them alike.

    Episodes with fewer states repeat their last one, and have False in the mask (B,).
    """
    states_B = layout.states_E[episode_B]
    chosen_BM = np.empty((len(episode_B), 0), np.int64)
    for taken in range(count):
        left_B = np.maximum(states_B - taken, 1)
        t_B = np.floor(rng.random(len(episode_B)) * left_B).astype(np.int64)
        for earlier in range(taken):  # the number among those that are left becomes the number among all
            t_B += t_B >= chosen_BM[:, earlier]
        chosen_BM = np.sort(np.concatenate([chosen_BM, t_B[:, None]], 1), 1)
    return np.minimum(chosen_BM, states_B[:, None] - 1), states_B >= count


def random_states(layout: Layout, batch: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(episode_B, t_B) of states drawn alike from all episodes."""
    return Starts(layout.states_E).draw(batch, rng)


def chunk_rows(layout: Layout, episode_B: Ints, t_B: Ints, length: int) -> tuple[Ints, Bools]:
    """Step rows (B, L) of the steps t .. t + L - 1, and which are real: past the end, the last step is repeated."""
    t_BL = t_B[:, None] + np.arange(length)
    last_B1 = layout.lengths_E[episode_B, None] - 1
    return layout.step_rows(episode_B[:, None], np.minimum(t_BL, last_B1)), t_BL <= last_B1
