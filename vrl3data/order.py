"""Which items are in which batch: a pure function of (seed, step), the same for any number of workers. Pure NumPy.

Legend: B items of a batch, N positions of an epoch, G = batch_size * world items of a step over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrl3data.errors import ConfigError
from vrl3data.sampling import Bools, Ints, Starts

PERMUTED = 2**20
"""Up to this many items an epoch is a true permutation (8 MB); above, a keyed bijection that takes no memory."""
ROUNDS = 8
KEPT = 8
"""Permutations kept at a time: batches lie in one or two, and workers run ahead by a few."""
EPOCH, BUFFER, DRAW, RUNS = range(4)
"""What a random generator is for: its seed is (seed, this, ...)."""


class Bijection:
    """Positions 0 .. total - 1 to numbers 0 .. total - 1, in an order given by `key`. O(1) memory.

    A balanced Feistel network over the next even power of two, walked until the number is below `total`
    (Black and Rogaway 2002; as a shuffle: Mitchell et al. 2021, "Bandwidth-optimal random shuffling for GPUs"). Its
    rounds are the finaliser of splitmix64.
    """

    def __init__(self, total: int, key: tuple[int, ...]) -> None:
        bits = max(2, (total - 1).bit_length())
        self.total, self.half = total, np.uint64((bits + 1) // 2)
        self.mask = np.uint64((1 << int(self.half)) - 1)
        self.keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def __call__(self, position_N: Ints) -> Ints:
        found = self._network(position_N.astype(np.uint64))
        while (outside := np.flatnonzero(found >= self.total)).size:
            found[outside] = self._network(found[outside])
        return found.astype(np.int64)

    def _network(self, value_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value_N >> self.half, value_N & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right ^ key) & self.mask)
        return (left << self.half) | right


def _mixed(value_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value_N ^ (value_N >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class OrderSpec:
    """In what order items come, and which of them a rank gets.

    Without `replacement` every item comes once in an epoch, over all ranks: step s of the epoch takes the next
    G = batch_size * world items of its order, of which rank r gets the r-th part. What is left at the end is shared out
    evenly: a shorter batch for each rank (`pad_last`: of full size, with `valid` False where a row only fills), or
    none with `drop_last`. With `replacement` items are drawn, and an epoch has as many batches. `epochs` None: endless.

    `shuffle_buffer` 0 is a full shuffle. Otherwise runs of `shuffle_run` neighbouring items are shuffled as wholes, and
    items within each `shuffle_buffer` of the result: any batch holds neighbours of at most
    shuffle_buffer / shuffle_run places, and reading needs no more than those at a time.
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    replacement: bool = False
    by: Literal["episode", "step"] = "step"
    epochs: int | None = 1
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    pad_last: bool = False
    shuffle_buffer: int = 0
    shuffle_run: int = 64

    def check(self) -> None:
        """ConfigError for what cannot be."""
        at_least = {"batch_size": 1, "world": 1, "seed": 0, "shuffle_buffer": 0, "shuffle_run": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs: expected at least 1, or None for endless, found {self.epochs}")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank: expected 0 to {self.world - 1}, found {self.rank}")
        if self.drop_last and self.pad_last:
            raise ConfigError("drop_last and pad_last exclude each other")
        if self.by not in ("episode", "step"):
            raise ConfigError(f"by: expected 'episode' or 'step', found {self.by!r}")
        if self.by == "episode" and not self.replacement:
            raise ConfigError("by 'episode' needs replacement=True: without it every window comes once")
        if self.replacement and (not self.shuffle or self.shuffle_buffer):
            raise ConfigError("replacement draws at random; leave shuffle and shuffle_buffer out")


class Order:
    """The items of each step. `starts` numbers them 0 .. total - 1."""

    def __init__(self, spec: OrderSpec, starts: Starts) -> None:
        spec.check()
        self.spec, self.starts, self.total = spec, starts, starts.total
        group = spec.batch_size * spec.world
        if not self.total:
            raise ConfigError("no episode is long enough for such a window")
        self.steps_per_epoch = self.total // group if spec.drop_last else -(-self.total // group)
        if not self.steps_per_epoch:
            raise ConfigError(f"{self.total} items do not fill a batch of {group}, and drop_last leaves nothing else")
        self._kept: dict[tuple[int, ...], Ints] = {}

    @property
    def steps(self) -> int | None:
        """Batches of a rank over all epochs; None: endless."""
        return None if self.spec.epochs is None else self.spec.epochs * self.steps_per_epoch

    def numbers(self, step: int) -> tuple[Ints, Bools]:
        """Items of a step for this rank, and which rows count (all without `pad_last`)."""
        spec, size = self.spec, self.spec.batch_size
        group = size * spec.world
        if spec.replacement:
            return self._drawn(step, group)[spec.rank * size : (spec.rank + 1) * size], np.ones(size, bool)
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * group
        held = min(group, self.total - first)
        begin, end = (held * rank // spec.world for rank in (spec.rank, spec.rank + 1))
        number_B = self.at(np.arange(first + begin, first + end), epoch)
        if not spec.pad_last or len(number_B) == size:
            return number_B, np.ones(len(number_B), bool)
        # Rows that only fill show an item of their own batch, or the first there is.
        filler = np.full(size - len(number_B), number_B[0] if len(number_B) else 0, np.int64)
        return np.concatenate([number_B, filler]), np.arange(size) < len(number_B)

    def at(self, position_N: Ints, epoch: int) -> Ints:
        """The items at positions of an epoch."""
        spec = self.spec
        if not spec.shuffle:
            return position_N
        if spec.shuffle_buffer:
            return self._buffered(position_N, epoch)
        return self._permuted(position_N, self.total, (spec.seed, EPOCH, epoch))

    def rng(self, step: int) -> np.random.Generator:
        """For whatever else the batch of this step and rank draws."""
        return np.random.default_rng((self.spec.seed, DRAW, step, self.spec.rank, 1))

    def _drawn(self, step: int, count: int) -> Ints:
        rng = np.random.default_rng((self.spec.seed, DRAW, step))
        if self.spec.by == "step":
            return rng.integers(0, self.total, count)
        counts_E = self.starts.counts_E
        episode_B, t_B = Starts(counts_E, "episode").draw(count, rng)
        return (np.cumsum(counts_E) - counts_E)[episode_B] + t_B

    def _buffered(self, position_N: Ints, epoch: int) -> Ints:
        """Runs in random order from a random offset, and each buffer of them shuffled. Runs that are cut short by the
        end come last; the offset makes them others in each epoch."""
        spec, run = self.spec, min(self.spec.shuffle_run, self.total)
        size = max(1, spec.shuffle_buffer // run) * run
        moved_N = position_N.copy()
        for buffer in np.unique(position_N // size):
            inside = np.flatnonzero(position_N // size == buffer)
            count, key = min(size, self.total - buffer * size), (spec.seed, BUFFER, epoch, int(buffer))
            moved_N[inside] = buffer * size + self._permuted(position_N[inside] - buffer * size, count, key)
        whole, offset = self.total // run, int(np.random.default_rng((spec.seed, RUNS, epoch)).integers(self.total))
        number_N, in_whole = moved_N.copy(), np.flatnonzero(moved_N < whole * run)
        run_N, rest_N = np.divmod(moved_N[in_whole], run)
        number_N[in_whole] = run * self._permuted(run_N, whole, (spec.seed, RUNS, epoch, 1)) + rest_N
        return (number_N + offset) % self.total

    def _permuted(self, position_N: Ints, total: int, key: tuple[int, ...]) -> Ints:
        if total > PERMUTED:
            return Bijection(total, key)(position_N)
        order_N = self._kept.get(key)
        if order_N is None:
            order_N = np.random.default_rng(key).permutation(total)
            # Threads may do the same work twice here; they find the same.
            self._kept = dict([*list(self._kept.items())[1 - KEPT :], (key, order_N)])
        return order_N[position_N]
