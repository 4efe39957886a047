"""What is wrong with the timing of a log's topics: limits, and the findings beyond them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from converters.logs.timing import TopicTiming


@dataclass(frozen=True)
class Limit:
    """A value above `warn` is a warning, above `error` an error; None: never."""

    warn: float | None = None
    error: float | None = None

    def exceeded(self, value: float) -> str:
        """`error`, `warn` or nothing."""
        if self.error is not None and value > self.error:
            return "error"
        return "warn" if self.warn is not None and value > self.warn else ""


@dataclass(frozen=True)
class Thresholds:
    """What turns a measure into a finding. The name of a field is the name of its finding."""

    unset: Limit = Limit(0, None)
    """Header stamps that are zero, as a share of the messages."""
    stray: Limit = Limit(0, 0.05)
    """Stamps far from their neighbours, share."""
    clock_jump: Limit = Limit(0, None)
    """Times that a clock was set; carried on by the log time."""
    clock_reset: Limit = Limit(0, 0)
    """Times that the chosen clock was set back and could not be carried on."""
    other_epoch: Limit = Limit(0, None)
    """Seconds that stamps of another zero were moved by."""
    drift: Limit = Limit(50, 5000)
    """Parts per million between the stamps' clock and log time."""
    reordered: Limit = Limit(0, None)
    """Messages after one with a later stamp, share."""
    duplicates: Limit = Limit(0, None)
    """Stamps equal to the one before, share."""
    gaps: Limit = Limit(0, None)
    """Number of intervals with `gap_periods` messages missing or more."""
    drops: Limit = Limit(0, None)
    """Missing messages, as a share of those there should be."""
    jitter: Limit = Limit(0.5, None)
    """95th percentile of the interval's distance from the median one, in median intervals. Of topics with a rate."""
    skew: Limit = Limit(0.2, None)
    """95th percentile of log time less stamp, in seconds."""
    future: Limit = Limit(0.002, 0.2)
    """Median of stamp less log time, in seconds: messages that were written before they were made."""
    held: Limit = Limit(0.05, None)
    """Control steps whose value is older than a period and a half, share. Of topics with a rate."""
    invalid: Limit = Limit(0, 0.05)
    """Control steps without a message within the tolerance, share."""
    silent: Limit = Limit(0, 0)
    """1 for a topic without messages."""
    gap_periods: int = 5


@dataclass(frozen=True)
class Finding:
    """`time_ns` is the place in the log (of the first, or of the worst one), or -1."""

    name: str
    severity: str
    topic: str
    message: str
    time_ns: int = -1


def judge(timing: TopicTiming, limits: Thresholds) -> list[Finding]:
    """What is beyond the limits, in the order of `Thresholds`."""
    known = {**_of_clocks(timing), **_of_messages(timing), **_of_steps(timing)}
    found = []
    for entry in fields(limits):
        limit = getattr(limits, entry.name)
        if isinstance(limit, Limit):
            value, words, time_ns = known[entry.name]
            severity = limit.exceeded(value)
            if severity:
                found.append(Finding(entry.name, severity, timing.topic, words, time_ns))
    return found


Known = dict[str, tuple[float, str, int]]
"""Name of a finding: the value that a limit is held against, the words, the place."""


def _of_clocks(timing: TopicTiming) -> Known:
    count = max(1, timing.count)
    jump = seconds(timing.largest_jump_ns, sign=True)
    return {
        "unset": (timing.unset / count, f"{timing.unset:,} of {timing.count:,} header stamps are zero", -1),
        "stray": (
            timing.stray / count,
            f"{timing.stray:,} of {timing.count:,} stamps are far from their neighbours and from the log time",
            -1,
        ),
        "clock_jump": (
            timing.clock_jumps,
            f"a clock was set {times(timing.clock_jumps)}, by {jump} at most; its stamps were carried on or left out",
            timing.largest_jump_at_ns,
        ),
        "clock_reset": (
            timing.clock_resets,
            f"the clock was set back {times(timing.clock_resets)}, by {jump} at most; the topic is split there",
            timing.largest_jump_at_ns,
        ),
        "other_epoch": (
            abs(timing.offset_ns) / 1e9,
            (
                f"stamps of another clock, moved by {seconds(timing.offset_ns, sign=True)}; "
                "the least delay is taken for none"
            ),
            -1,
        ),
        "drift": (
            abs(timing.drift_ppm),
            f"its clock runs {_drift(timing)} in this log",
            -1,
        ),
        "skew": (
            timing.skew_p95_ns / 1e9,
            f"logged {seconds(timing.skew_mean_ns)} after its stamp on average, p95 {seconds(timing.skew_p95_ns)}",
            -1,
        ),
        "future": (
            -timing.skew_median_ns / 1e9,
            f"logged {seconds(-timing.skew_median_ns)} before its stamp: the clocks of sender and recorder differ",
            -1,
        ),
    }


def _drift(timing: TopicTiming) -> str:
    size, how = abs(timing.drift_ppm), "faster" if timing.drift_ppm > 0 else "slower"
    apart = round(size * 1e-6 * (timing.stop_ns - timing.start_ns))
    return f"{size:.0f} ppm {how} than log time, {seconds(apart)}"


def _of_messages(timing: TopicTiming) -> Known:
    count, due = max(1, timing.count), max(1, timing.count + timing.drops)
    return {
        "reordered": (
            timing.reordered / count,
            f"{timing.reordered:,} of {timing.count:,} messages out of order, by {seconds(timing.late_ns)} at most",
            -1,
        ),
        "duplicates": (
            timing.duplicates / count,
            f"{timing.duplicates:,} of {timing.count:,} stamps are the same as the one before",
            timing.duplicates_at_ns,
        ),
        "gaps": (
            timing.gaps,
            (
                f"{timing.gaps:,} gap{'s' * (timing.gaps != 1)}, the longest {seconds(timing.longest_gap_ns)} "
                f"(usual interval {seconds(timing.period_ns)})"
            ),
            timing.longest_gap_at_ns,
        ),
        "drops": (
            timing.drops / due,
            f"{timing.drops:,} of {due:,} messages missing ({share(timing.drops / due)})",
            timing.drops_at_ns,
        ),
        "jitter": (
            timing.jitter,
            f"intervals differ from the usual {seconds(timing.period_ns)} by {timing.jitter:.0%} at p95",
            -1,
        ),
        "silent": (float(timing.count == 0), "no messages", -1),
    }


def _of_steps(timing: TopicTiming) -> Known:
    return {
        "held": (
            timing.held,
            (
                f"{share(timing.held)} of {timing.steps:,} control steps hold a value older than its usual interval, "
                f"{timing.age_max_us / 1000:.1f} ms at most"
            ),
            -1,
        ),
        "invalid": (
            timing.invalid,
            f"{share(timing.invalid)} of {timing.steps:,} control steps have no message within the tolerance",
            timing.invalid_at_ns,
        ),
    }


def seconds(time_ns: int, sign: bool = False) -> str:
    """A time in the unit that suits it: `52.7 ms`, `-5.000 s`."""
    size, plus = abs(time_ns), "+" if sign else ""
    for unit, scale, digits in (("s", 1_000_000_000, 3), ("ms", 1_000_000, 1)):
        if size >= scale:
            return f"{time_ns / scale:{plus}.{digits}f} {unit}"
    return f"{time_ns / 1000:{plus}.0f} us"


def share(value: float) -> str:
    """`12.5 %`; small ones do not become 0."""
    return "< 0.1 %" if 0 < value < 0.001 else f"{value * 100:.1f} %"


def times(count: int) -> str:
    """`once`, `3 times`."""
    return "once" if count == 1 else f"{count:,} times"
