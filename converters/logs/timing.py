"""The measures of one topic of a log: rate, jitter, gaps, losses, clocks, and what the control steps got of it.

M messages in order of time, N control steps, K intervals. Times are int64 nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.logs.align import Alignment
from converters.logs.clock_steps import Times
from converters.logs.clocks import Clock

REGULAR_SHARE, FEWEST_REGULAR = 0.6, 20
"""A topic has a rate if this share of its intervals is within half of the median one, and there are enough."""
MANY_DUPLICATES = 0.05


@dataclass(frozen=True)
class Aligned:
    """One topic as it goes into a report. `alignment` None: it keeps its own rate, or is not used."""

    topic: str
    clock: Clock
    alignment: Alignment | None = None


@dataclass(frozen=True)
class TopicTiming:
    """The measures of one topic. Times are nanoseconds; what cannot be measured is 0, a place that is none is -1."""

    topic: str
    count: int
    clock: str
    reason: str
    regular: bool
    """Whether it has a rate; if not (events), jitter, gaps, drops and held steps mean nothing and are 0."""
    rate_hz: float = 0.0
    period_ns: int = 0
    jitter: float = 0.0
    gaps: int = 0
    longest_gap_ns: int = 0
    longest_gap_at_ns: int = -1
    drops: int = 0
    drops_at_ns: int = -1
    unset: int = 0
    stray: int = 0
    reordered: int = 0
    late_ns: int = 0
    duplicates: int = 0
    duplicates_at_ns: int = -1
    clock_jumps: int = 0
    largest_jump_ns: int = 0
    largest_jump_at_ns: int = -1
    clock_resets: int = 0
    offset_ns: int = 0
    drift_ppm: float = 0.0
    skew_mean_ns: int = 0
    """Log time less stamp."""
    skew_median_ns: int = 0
    skew_p95_ns: int = 0
    skew_to_control_ns: int = 0
    """Its median skew less that of the control topic: by how much the two would be apart if log time were used."""
    method: str = ""
    """Empty if it was not aligned."""
    steps: int = 0
    interpolated: float = 0.0
    held: float = 0.0
    invalid: float = 0.0
    invalid_at_ns: int = -1
    age_p50_us: int = 0
    """Of the size of the age, over valid steps."""
    age_p95_us: int = 0
    age_max_us: int = 0
    start_ns: int = -1
    stop_ns: int = -1


def measure(stream: Aligned, control_N: Times, base_ns: int | None = None, gap_periods: int = 5) -> TopicTiming:
    """The measures of one topic; `base_ns` is the control topic's median skew, None if there is no such topic."""
    clock, stamps_M = stream.clock, stream.clock.stamps_ns
    jump = max(clock.jumps, key=lambda one: abs(one.size_ns), default=None)
    same_K = np.flatnonzero(np.diff(stamps_M) == 0)
    known: dict[str, Any] = {
        "unset": clock.unset, "stray": clock.stray, "reordered": clock.reordered, "late_ns": clock.late_ns,
        "duplicates": clock.duplicates,
        "duplicates_at_ns": int(stamps_M[same_K[0] + 1]) if len(same_K) else -1,
        "clock_jumps": sum(one.mended or one.clock != clock.which for one in clock.jumps),
        "clock_resets": len(clock.splits),
        "largest_jump_ns": jump.size_ns if jump else 0,
        "largest_jump_at_ns": jump.at_ns if jump else -1,
        "offset_ns": clock.offset_ns, "drift_ppm": round(clock.drift_ppm, 1),
        "skew_mean_ns": clock.delay_mean_ns, "skew_median_ns": clock.delay_median_ns,
        "skew_p95_ns": clock.delay_p95_ns,
        "skew_to_control_ns": 0 if base_ns is None else clock.delay_median_ns - base_ns,
        "start_ns": int(stamps_M.min()) if len(stamps_M) else -1,
        "stop_ns": int(stamps_M.max()) if len(stamps_M) else -1,
    }  # fmt: skip
    known |= _intervals(clock, gap_periods)
    if stream.alignment is not None:
        known |= _steps(stream.alignment, control_N, known["period_ns"] if known["regular"] else 0)
    return TopicTiming(stream.topic, len(stamps_M), clock.which, clock.reason, **known)


def intervals(clock: Clock) -> tuple[Times, Times]:
    """Intervals between stamps, and where each begins; none across a split.

    A message with the stamp of the one before leaves a gap that is none, so its interval of 0 stays. Where that is the
    rule, each stamp counts once.
    """
    parts = [clock.stamps_ns[low:high] for low, high in clock.ranges]
    if clock.duplicates > MANY_DUPLICATES * len(clock.stamps_ns):
        parts = [np.unique(part) for part in parts]
    return np.concatenate([np.diff(part) for part in parts]), np.concatenate([part[:-1] for part in parts])


def _intervals(clock: Clock, gap_periods: int) -> dict[str, Any]:
    """Rate, jitter, gaps and missing messages."""
    dt_K, at_K = intervals(clock)
    if not len(dt_K):
        return {"regular": False, "period_ns": 0}
    period = max(1, int(np.median(dt_K)))
    off_K = np.abs(dt_K - period) / period
    regular = len(dt_K) >= FEWEST_REGULAR and float((off_K < 0.5).mean()) >= REGULAR_SHARE
    known: dict[str, Any] = {"regular": regular, "period_ns": period, "rate_hz": round(1e9 / period, 4)}
    if not regular:
        return known
    missing_K = missing(dt_K, period)
    if float(np.quantile(off_K, 0.9)) > 0.5:
        # Messages that come in bursts: one that is missing cannot be told from one that is late.
        missing_K[missing_K < gap_periods] = 0
    # An interval with something missing says nothing of the jitter of those that came.
    there_K = off_K[missing_K == 0]
    known["jitter"] = round(float(np.quantile(there_K, 0.95)), 4) if len(there_K) else 0.0
    known["drops"] = int(missing_K.sum())
    if known["drops"]:
        known["drops_at_ns"] = int(at_K[np.argmax(missing_K > 0)])
    longest = int(np.argmax(dt_K))
    known["gaps"] = int((missing_K >= gap_periods).sum())
    if known["gaps"]:
        known |= {"longest_gap_ns": int(dt_K[longest]), "longest_gap_at_ns": int(at_K[longest])}
    return known


def missing(dt_K: Times, period: int) -> NDArray[np.int64]:
    """Messages missing in each interval. After one that was only late come short intervals, which count against it."""
    missing_K = np.zeros(len(dt_K), np.int64)
    long_K = np.flatnonzero(dt_K > 1.5 * period)
    most = np.rint(dt_K[long_K] / period).astype(np.int64) - 1
    near = np.minimum(most + 2, 50)
    low, high = np.maximum(long_K - near, 0), np.minimum(long_K + 1 + near, len(dt_K))
    total = np.concatenate([[0], np.cumsum(dt_K)])
    excess = total[high] - total[low] - (high - low) * period
    missing_K[long_K] = np.clip(np.rint(excess / period).astype(np.int64), 0, most)
    return missing_K


def _steps(alignment: Alignment, control_N: Times, period: int) -> dict[str, Any]:
    """What the control steps got; `period` 0: nothing counts as held."""
    valid_N, size_N = alignment.valid_N, np.abs(alignment.age_us_N.astype(np.int64))
    known: dict[str, Any] = {"method": alignment.method, "steps": len(control_N)}
    if not len(control_N):
        return known
    known["interpolated"] = round(float((alignment.mixed_N & valid_N).mean()), 6)
    known["held"] = round(float(held(alignment, period).mean()), 6)
    known["invalid"] = round(float((~valid_N).mean()), 6)
    if not valid_N.all():
        known["invalid_at_ns"] = int(control_N[np.argmin(valid_N)])
    if valid_N.any():
        middle, high = np.quantile(size_N[valid_N], [0.5, 0.95])
        known |= {"age_p50_us": round(middle), "age_p95_us": round(high), "age_max_us": int(size_N[valid_N].max())}
    return known


def held(alignment: Alignment, period_ns: int) -> NDArray[np.bool_]:
    """Control steps whose value is older than a period and a half: where a message is missing. Half is for jitter."""
    if not period_ns:
        return np.zeros(len(alignment.valid_N), np.bool_)
    return alignment.valid_N & (np.abs(alignment.age_us_N.astype(np.int64)) * 2000 > 3 * period_ns)
