"""The sync report: how the streams of a log were put onto one clock, and what is wrong with them.

N control steps. Times are int64 nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.logs.clock_steps import Times
from converters.logs.clocks import Clock
from converters.logs.sync_findings import Finding, Thresholds, judge
from converters.logs.timing import Aligned, TopicTiming, held, intervals, measure, missing

BINS = 1000
"""Columns of the picture's time line."""
EMPTY, FRESH, MIXED, HELD, INVALID = range(5)
"""What the control steps of a column are; the worst counts."""


@dataclass(frozen=True)
class Trace:
    """What the picture shows of one topic, in BINS columns from `SyncReport.start_ns` to `stop_ns`."""

    messages: NDArray[np.int64]
    state: NDArray[np.uint8]
    gaps: tuple[tuple[int, int], ...] = ()
    jumps: tuple[int, ...] = ()


@dataclass(frozen=True)
class SyncReport:
    """Of one log (or one episode of it)."""

    topics: tuple[TopicTiming, ...]
    findings: tuple[Finding, ...]
    control: str
    """A topic's name, or `30 Hz`."""
    steps: int
    start_ns: int
    stop_ns: int
    thresholds: Thresholds = field(default_factory=Thresholds)
    traces: Mapping[str, Trace] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """Always the same keys; the traces of the picture are left out."""
        return {
            "control": self.control,
            "steps": self.steps,
            "start_ns": self.start_ns,
            "stop_ns": self.stop_ns,
            "topics": [asdict(topic) for topic in self.topics],
            "findings": [asdict(finding) for finding in self.findings],
            "thresholds": asdict(self.thresholds),
        }


def report(
    streams: Sequence[Aligned], control_ns: Times, control: str, thresholds: Thresholds | None = None
) -> SyncReport:
    """Measure every stream; `control` is one of their names, or says the rate of `control_ns`."""
    limits = thresholds or Thresholds()
    control_N = np.asarray(control_ns, np.int64)
    clocks = [stream.clock.stamps_ns for stream in streams if len(stream.clock.stamps_ns)]
    ends = [*((int(times.min()), int(times.max())) for times in clocks)]
    ends += [(int(control_N[0]), int(control_N[-1]))] if len(control_N) else []
    start, stop = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0, 0)
    base = next((stream.clock.delay_median_ns for stream in streams if stream.topic == control), None)
    topics = tuple(measure(stream, control_N, base, limits.gap_periods) for stream in streams)
    findings = tuple(found for timing in topics for found in judge(timing, limits))
    traces = {
        stream.topic: _trace(stream, timing, control_N, (start, stop))
        for stream, timing in zip(streams, topics, strict=True)
    }
    return SyncReport(topics, findings, control, len(control_N), start, stop, limits, traces)


def _trace(stream: Aligned, timing: TopicTiming, control_N: Times, span: tuple[int, int]) -> Trace:
    start, width = span[0], max(1, span[1] - span[0] + 1)

    def column(times: Times) -> NDArray[np.int64]:
        return np.clip((times - start) / width * BINS, 0, BINS - 1).astype(np.int64)

    messages = np.bincount(column(stream.clock.stamps_ns), minlength=BINS)
    state = np.zeros(BINS, np.uint8)
    alignment = stream.alignment
    if alignment is not None and len(control_N):
        of_N = np.full(len(control_N), FRESH, np.uint8)
        of_N[alignment.mixed_N] = MIXED
        of_N[held(alignment, timing.period_ns if timing.regular else 0)] = HELD
        of_N[~alignment.valid_N] = INVALID
        np.maximum.at(state, column(control_N), of_N)
        state = _carried(state)
    gaps: tuple[tuple[int, int], ...] = ()
    if timing.regular:
        dt_K, at_K = intervals(stream.clock)
        long_K = np.flatnonzero(missing(dt_K, timing.period_ns) > 0)
        gaps = tuple(zip(at_K[long_K].tolist(), (at_K + dt_K)[long_K].tolist(), strict=True))
        gaps = tuple(sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:BINS]))
    jumps = tuple(_jump_times(stream.clock))
    return Trace(messages, state, gaps, jumps)


def _jump_times(clock: Clock) -> list[int]:
    """On the chosen clock."""
    place = np.empty(len(clock.order), np.int64)
    place[clock.order] = clock.stamps_ns
    return [int(place[jump.index]) for jump in clock.jumps]


def _carried(state: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Columns between two control steps look like the step before, up to the last one."""
    set_ = np.flatnonzero(state)
    before = np.maximum.accumulate(np.where(state > 0, np.arange(len(state)), -1))
    inside = (before >= 0) & (np.arange(len(state)) <= set_[-1])
    return np.where(inside, state[np.maximum(before, 0)], state).astype(np.uint8)
