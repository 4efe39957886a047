"""Streams of their own rates onto one control clock, in whole nanoseconds.

N control steps, M messages of a stream (in order of time), K streams, D entries of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from converters.logs.clock_steps import Times
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.schema import Array

METHODS = ("hold", "nearest", "linear", "slerp")
PLAIN = ("picture", "depth", "text", "event")
"""Roles whose rows are taken as they are, never mixed."""
AGE_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Alignment:
    """Which messages make the row of each control step.

    `age_us_N` is the control time less the stamp of the source, rounded to microseconds: negative if the source lies in
    the future. Where two messages are mixed it is that of the one further away (the earlier one if equally far).
    Beyond the range of int32 (36 minutes) it stays at its end.
    """

    index_N: NDArray[np.int64]
    """The message taken, or the earlier of two; 0 where there is none, and then not valid."""
    index2_N: NDArray[np.int64]
    """The later of two; else as `index_N`."""
    weight_N: NDArray[np.float64]
    """Share of the later one, 0 to 1."""
    age_us_N: NDArray[np.int32]
    valid_N: NDArray[np.bool_]
    """A message within the tolerance, on both sides where two are mixed. Other rows hold the nearest there is."""
    method: str = "hold"

    @property
    def mixed_N(self) -> NDArray[np.bool_]:
        """Steps whose row is made of two messages."""
        return self.weight_N > 0


def align(control_ns: Times, stamps_ns: Times, method: str = "hold", tolerance_ns: int | None = None) -> Alignment:
    """For each control time the message(s) of a stream. ConfigError for stamps out of order.

    `hold`: the last one at or before it (what a policy could have known). `nearest`: of two equally near, the earlier.
    `linear` and `slerp`: the two around it, nothing is extrapolated. `tolerance_ns` None: however far away.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    if tolerance_ns is not None and tolerance_ns < 0:
        raise ConfigError(f"tolerance: expected nanoseconds, found {tolerance_ns}")
    control_N, stamps_M = np.asarray(control_ns, np.int64), np.asarray(stamps_ns, np.int64)
    if len(stamps_M) > 1 and (np.diff(stamps_M) < 0).any():
        place = int(np.argmax(np.diff(stamps_M) < 0)) + 1
        raise ConfigError(f"expected stamps in order of time, found one going back at {place} of {len(stamps_M)}")
    if not len(stamps_M):
        return _nothing(len(control_N), method)
    left_N = np.searchsorted(stamps_M, control_N, "right") - 1
    before_N = left_N >= 0
    last = len(stamps_M) - 1
    right_N = np.minimum(left_N + 1, last)
    left_N = np.maximum(left_N, 0)
    past_N, ahead_N = control_N - stamps_M[left_N], stamps_M[right_N] - control_N
    if method == "hold":
        return _one(left_N, past_N, before_N, tolerance_ns, method)
    exact_N = before_N & (past_N == 0)
    if method == "nearest":
        later_N = ~before_N | ((ahead_N >= 0) & (ahead_N < past_N))
        age_N = np.where(later_N, -ahead_N, past_N)
        return _one(np.where(later_N, right_N, left_N), age_N, np.ones(len(control_N), np.bool_), tolerance_ns, method)
    between_N = before_N & ~exact_N & (ahead_N >= 0)
    right_N = np.where(between_N, right_N, left_N)
    span_N = np.maximum(past_N + ahead_N, 1)
    weight_N = np.where(between_N, past_N / span_N, 0.0)
    age_N = np.where(between_N & (ahead_N > past_N), -ahead_N, past_N)
    valid_N = (exact_N | between_N) & _within(age_N, tolerance_ns)
    return Alignment(left_N, right_N, weight_N, _microseconds(age_N), valid_N, method)


def _nothing(count: int, method: str) -> Alignment:
    none_N = np.zeros(count, np.int64)
    age_N = np.full(count, AGE_LIMIT, np.int32)
    return Alignment(none_N, none_N, np.zeros(count), age_N, np.zeros(count, np.bool_), method)


def _one(
    index_N: NDArray[np.int64], age_N: Times, there_N: NDArray[np.bool_], tolerance_ns: int | None, method: str
) -> Alignment:
    valid_N = there_N & _within(age_N, tolerance_ns)
    return Alignment(index_N, index_N, np.zeros(len(index_N)), _microseconds(age_N), valid_N, method)


def _within(age_N: Times, tolerance_ns: int | None) -> NDArray[np.bool_]:
    return np.ones(len(age_N), np.bool_) if tolerance_ns is None else np.abs(age_N) <= tolerance_ns


def _microseconds(age_N: Times) -> NDArray[np.int32]:
    return np.clip((age_N + 500) // 1000, -AGE_LIMIT, AGE_LIMIT).astype(np.int32)


def interpolate(values: Array, alignment: Alignment, role: str = "vector") -> Array:
    """Rows for the control steps from a stream's rows (M first). Pictures, texts and events are never mixed.

    Whole numbers are rounded. Quaternions go the short way round at an even pace and have length 1; whether w stands
    first or last makes no difference.
    """
    values = np.asarray(values)
    if not len(values):
        return np.zeros((len(alignment.index_N), *values.shape[1:]), values.dtype)
    mixed_N = alignment.mixed_N
    rows = values[alignment.index_N]
    if not mixed_N.any():
        return rows
    if role in PLAIN or values.dtype.kind not in "iuf":
        what = role if role in PLAIN else str(values.dtype)
        raise ConfigError(f"{alignment.method} cannot be used for {what}: take hold or nearest")
    one, two = rows[mixed_N].astype(np.float64), values[alignment.index2_N[mixed_N]].astype(np.float64)
    weight = alignment.weight_N[mixed_N].reshape(-1, *[1] * (values.ndim - 1))
    if role == "quaternion":
        mixed = _slerp(one, two, weight, values.shape)
    elif alignment.method == "slerp":
        raise ConfigError(f"slerp is for quaternions, found {role}: take linear")
    else:
        # Not one + weight * (two - one): that overflows between large values of unlike sign.
        mixed = np.clip(one * (1 - weight) + two * weight, np.minimum(one, two), np.maximum(one, two))
    if values.dtype.kind in "iu":
        mixed = np.rint(mixed)
    rows[mixed_N] = mixed.astype(values.dtype)
    return rows


def _slerp(one_ND: Array, two_ND: Array, weight_N1: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) != 2 or shape[1] != 4:
        raise ConfigError(f"quaternion: expected rows of 4 numbers, found {shape[1:]}")
    length_one, length_two = (np.linalg.norm(part, axis=1, keepdims=True) for part in (one_ND, two_ND))
    # A quaternion of zeros (nobody set it) has no direction: such a row is held, not mixed.
    usable_N1 = (length_one > 0) & (length_two > 0)
    a_ND, b_ND = one_ND / np.where(usable_N1, length_one, 1), two_ND / np.where(usable_N1, length_two, 1)
    dot_N1 = np.sum(a_ND * b_ND, axis=1, keepdims=True)
    b_ND, dot_N1 = np.where(dot_N1 < 0, -b_ND, b_ND), np.minimum(np.abs(dot_N1), 1.0)
    angle_N1 = np.arccos(dot_N1)
    sine_N1 = np.sin(angle_N1)
    near_N1 = sine_N1 < 1e-6
    safe_N1 = np.where(near_N1, 1.0, sine_N1)
    share_one = np.where(near_N1, 1 - weight_N1, np.sin((1 - weight_N1) * angle_N1) / safe_N1)
    share_two = np.where(near_N1, weight_N1, np.sin(weight_N1 * angle_N1) / safe_N1)
    mixed_ND = share_one * a_ND + share_two * b_ND
    mixed_ND /= np.maximum(np.linalg.norm(mixed_ND, axis=1, keepdims=True), 1e-300)
    return np.where(usable_N1, mixed_ND, one_ND)


def fixed_rate(start_ns: int, stop_ns: int, rate: float | Fraction) -> Times:
    """Control times at `rate` per second in [start, stop), each rounded from the exact one: no drift."""
    exact = Fraction(rate).limit_denominator(1001)
    if exact <= 0 or exact > 1_000_000:
        raise ConfigError(f"expected a rate of 0.001 to 1,000,000 per second, found {rate}")
    whole, rest = divmod(1_000_000_000 * exact.denominator, exact.numerator)
    span = max(0, int(stop_ns) - int(start_ns))
    steps = np.arange(span * exact.numerator // (1_000_000_000 * exact.denominator) + 1, dtype=np.int64)
    # Period = whole + rest / numerator: in this order no product leaves int64.
    times_N = int(start_ns) + steps * whole + (steps * rest + exact.numerator // 2) // exact.numerator
    return times_N[times_N < stop_ns]


def topic_clock(stamps_ns: Times) -> Times:
    """A topic's own stamps as control times: each once."""
    return np.unique(np.asarray(stamps_ns, np.int64))


def slowest(stamps: Mapping[str, Times]) -> str:
    """The topic with the longest median interval (of three messages or more): by then all others have news."""
    period = {name: int(np.median(np.diff(times))) for name, times in sorted(stamps.items()) if len(times) >= 3}
    if not period:
        raise ConfigError("no topic has three messages: name a control topic or a rate")
    return max(period, key=lambda name: period[name])


def common_span(stamps: Mapping[str, Times]) -> tuple[int, int]:
    """[start, stop) in which every topic has begun and none has ended. ConfigError if there is no such time."""
    empty = sorted(name for name, times in stamps.items() if not len(times))
    if empty or not stamps:
        raise ConfigError(f"topics without messages: {', '.join(empty)}" if empty else "no topics to align")
    last_begin = max(stamps, key=lambda name: int(stamps[name][0]))
    first_end = min(stamps, key=lambda name: int(stamps[name][-1]))
    start, stop = int(stamps[last_begin][0]), int(stamps[first_end][-1]) + 1
    if start >= stop:
        raise ConfigError(f"the topics never overlap: {first_end} ends before {last_begin} begins")
    return start, stop


def usable(valid: Mapping[str, NDArray[np.bool_]], cut: bool = False, shortest: int = 1) -> list[tuple[int, int]]:
    """Half-open ranges of control steps to keep: without the steps before all needed topics have a message, or after.

    Steps in between that lack one stay (their value is held, its age says so), or with `cut` end one range and begin
    the next. Ranges of fewer than `shortest` steps are left out.
    """
    if not valid:
        raise ConfigError("no topics to align")
    all_N = np.logical_and.reduce([np.asarray(part) for part in valid.values()])
    places = np.flatnonzero(all_N)
    if not len(places):
        return []
    ranges = [(int(places[0]), int(places[-1]) + 1)]
    if cut:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], all_N, [False]]).astype(np.int8)))
        ranges = [(int(low), int(high)) for low, high in edges.reshape(-1, 2)]
    return [(low, high) for low, high in ranges if high - low >= shortest]
