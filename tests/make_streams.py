"""Stamps of topics as a robot's log has them: the moment a message was made, its header stamp, its log time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
SECOND, MS = 1_000_000_000, 1_000_000
EPOCH = 1_700_000_000 * SECOND


@dataclass
class Topic:
    """`true_N`: when each message was made, in file order. `header_N` None: a type without one."""

    true_N: Times
    header_N: Times | None
    log_N: Times

    def kept(self, index_N: NDArray[np.int64] | NDArray[np.bool_]) -> Topic:
        """Some of the messages, or all in another order (the log times too)."""
        header_N = None if self.header_N is None else self.header_N[index_N]
        return Topic(self.true_N[index_N], header_N, self.log_N[index_N])

    def arrived(self, order_N: NDArray[np.int64]) -> Topic:
        """The messages in another order, at the same log times."""
        header_N = None if self.header_N is None else self.header_N[order_N]
        return Topic(self.true_N[order_N], header_N, self.log_N)


def topic(
    seed: int, rate: float, seconds: float, delay_ms: float = 5, jitter: float = 0.02, latency_ms: float = 1.0
) -> Topic:
    """A clean one: stamps off an even rate by a normal share, log times by a delay and an exponential latency more."""
    random = np.random.default_rng(seed)
    count, period = int(seconds * rate), SECOND / rate
    even_N = EPOCH + int(random.integers(0, period)) + np.arange(count) * period
    true_N = np.maximum.accumulate((even_N + random.normal(0, jitter * period, count)).astype(np.int64))
    late_N = (random.exponential(latency_ms * MS, count) + delay_ms * MS).astype(np.int64)
    return Topic(true_N, true_N.copy(), np.maximum.accumulate(true_N + late_N))


def shuffled(seed: int, count: int, reach: float) -> NDArray[np.int64]:
    """An order in which no message is further than `reach` from its place."""
    return np.argsort(np.arange(count) + np.random.default_rng(seed).uniform(0, reach, count), kind="stable")
