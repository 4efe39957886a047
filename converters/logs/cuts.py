"""Where episodes begin and end in a log: half-open ranges [start, stop) in int64 nanoseconds, in order, apart.

M messages of a topic, in order of time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.logs.clock_steps import Times
from vrl3data.errors import ConfigError
from vrl3data.schema import Array

Ranges = list[tuple[int, int]]


def whole(start_ns: int, stop_ns: int) -> Ranges:
    """One episode; none if there is no time in it."""
    return [(int(start_ns), int(stop_ns))] if stop_ns > start_ns else []


def by_time(start_ns: int, stop_ns: int, length_ns: int, keep_rest: bool = False) -> Ranges:
    """Episodes of a fixed time, one after the other. A shorter rest at the end is left out unless `keep_rest`."""
    if length_ns <= 0:
        raise ConfigError(f"length of an episode: expected more than 0 ns, found {length_ns}")
    starts = range(int(start_ns), int(stop_ns), int(length_ns))
    ranges = [(start, min(start + length_ns, int(stop_ns))) for start in starts]
    return [(low, high) for low, high in ranges if keep_rest or high - low == length_ns]


def by_gaps(stamps_M: Times, gap_ns: int) -> Ranges:
    """An episode ends where the next message is more than `gap_ns` away. It ends just after its last message."""
    if gap_ns <= 0:
        raise ConfigError(f"gap: expected more than 0 ns, found {gap_ns}")
    times_M = np.sort(np.asarray(stamps_M, np.int64))
    if not len(times_M):
        return []
    last_K = np.flatnonzero(np.diff(times_M) > gap_ns)
    starts = times_M[np.concatenate([[0], last_K + 1])].tolist()
    stops = (times_M[np.concatenate([last_K, [len(times_M) - 1]])] + 1).tolist()
    return list(zip(starts, stops, strict=True))


def rising(stamps_M: Times, values_M: Array) -> Times:
    """Times at which a value becomes true: a change from false (or from nothing, at the first message) to true."""
    on_M = _truth(stamps_M, values_M)
    return np.asarray(stamps_M, np.int64)[on_M & ~np.concatenate([[False], on_M[:-1]])]


def falling(stamps_M: Times, values_M: Array) -> Times:
    """Times at which a value becomes false again."""
    on_M = _truth(stamps_M, values_M)
    return np.asarray(stamps_M, np.int64)[~on_M & np.concatenate([[False], on_M[:-1]])]


def while_true(stamps_M: Times, values_M: Array, stop_ns: int) -> Ranges:
    """Episodes for as long as a topic says true; the last may go on to `stop_ns`."""
    return between(rising(stamps_M, values_M), falling(stamps_M, values_M), stop_ns)


def between(start_M: Times, stop_M: Times, stop_ns: int) -> Ranges:
    """From each start marker to the first stop marker after it, or to `stop_ns`.

    A further start marker before that ends the episode and begins the next; stop markers outside do nothing.
    """
    starts = np.unique(np.asarray(start_M, np.int64))
    stops = np.unique(np.asarray(stop_M, np.int64))
    starts = starts[starts < stop_ns]
    ends = np.append(np.minimum(stops, stop_ns), stop_ns)[np.searchsorted(stops, starts, "right")]
    ends = np.minimum(ends, np.append(starts[1:], stop_ns))
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def from_each(start_M: Times, stop_ns: int) -> Ranges:
    """From each marker to the next."""
    return between(start_M, np.zeros(0, np.int64), stop_ns)


def by_value(stamps_M: Times, values_M: Array, stop_ns: int) -> Ranges:
    """A new episode whenever a topic's value (an episode's number, a name) changes; the same again is no change."""
    values_M = np.asarray(values_M)
    _same_length(stamps_M, values_M)
    if not len(values_M):
        return []
    change_M = np.concatenate([[True], values_M[1:] != values_M[:-1]])
    return from_each(np.asarray(stamps_M, np.int64)[change_M], stop_ns)


def at_jumps(ranges: Ranges, jumps_ns: Times) -> Ranges:
    """The same ranges, cut where a clock was set."""
    edges = np.unique(np.asarray(jumps_ns, np.int64)).tolist()
    cut: Ranges = []
    for low, high in ranges:
        inner = [low, *(edge for edge in edges if low < edge < high), high]
        cut += zip(inner, inner[1:], strict=False)
    return cut


def _truth(stamps_M: Times, values_M: Array) -> NDArray[np.bool_]:
    values_M = np.asarray(values_M)
    _same_length(stamps_M, values_M)
    if values_M.ndim != 1 or values_M.dtype.kind not in "biuf":
        raise ConfigError(f"expected one true or false per message, found {values_M.dtype} of shape {values_M.shape}")
    return np.asarray(np.nan_to_num(values_M) > 0.5) if values_M.dtype.kind == "f" else values_M.astype(np.bool_)


def _same_length(stamps_M: Times, values_M: Array) -> None:
    if len(stamps_M) != len(values_M):
        raise ConfigError(f"expected a value for each of {len(stamps_M)} messages, found {len(values_M)}")
