"""The streams of a log on one control clock: which rows make each step of an episode.

N control steps, M messages of a track in order of time, D entries of a row. Times are int64 nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from converters.fields import Field
from converters.logs.align import Alignment, align, fixed_rate, interpolate, topic_clock
from converters.logs.clock_steps import Times
from converters.logs.clocks import LATEST, Clock, choose_clock
from converters.logs.gather import Files, Gathered, Track
from converters.logs.streams import StreamSpec
from converters.logs.sync import SyncReport, report
from converters.logs.timing import Aligned, TopicTiming, measure
from converters.pictures import Frames
from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array, Rows

PLAIN = ("picture", "depth", "text")
LATE = 1.5
"""Periods after its last message for which a topic with a rate still counts as there."""


@dataclass(frozen=True)
class How:
    """Options of the alignment. `control`: a topic, or a rate in Hz as text."""

    control: str
    align: str = "hold"
    tolerance_ns: int | None = None
    clock: str = "auto"


def rate_of(control: str) -> float | None:
    """The rate, if the control clock is one."""
    try:
        return float(control)
    except ValueError:
        return None


def chosen_clock(track: Track, which: str) -> Clock:
    """The clock that was asked for, where the topic has it; `auto`: the one that can be trusted."""
    header = np.frombuffer(track.header, np.int64) if track.stamped and which in ("auto", "header") else None
    publish = np.frombuffer(track.publish, np.int64) if which in ("auto", "publish") and len(track.log) else None
    return choose_clock(header, publish, np.frombuffer(track.log, np.int64) if len(track.log) else np.zeros(0, int))


class Placing:
    """A gathered log with its clocks. `used` are the streams that become features."""

    def __init__(self, gathered: Gathered, used: Sequence[StreamSpec], how: How) -> None:
        self.gathered, self.how = gathered, how
        self.clocks = {key: chosen_clock(track, how.clock) for key, track in gathered.tracks.items()}
        names = {spec.name for spec in used}
        self.tracks = [track for track in gathered.tracks.values() if any(spec.name in names for spec in track.specs)]
        self.used = [(track, spec) for track in self.tracks for spec in track.specs if spec.name in names]
        for track in self.tracks:
            _check_order(track.key, self.clocks[track.key])
        self._numbers: dict[str, tuple[Array, int]] = {}

    @cached_property
    def timings(self) -> dict[str, TopicTiming]:
        none = np.zeros(0, np.int64)
        return {track.key: measure(Aligned(track.key, self.clocks[track.key]), none) for track in self.tracks}

    @cached_property
    def control(self) -> str:
        """The key of the control track, or the rate in words."""
        rate = rate_of(self.how.control)
        if rate is not None:
            return f"{rate:g} Hz"
        keys = [track.key for track in self.tracks if track.topic == self.how.control and len(track.log)]
        if keys:
            return keys[0]
        raise SourceError(f"the control topic {self.how.control} has no messages that can be read")

    def steps(self, range_ns: tuple[int, int] | None, needed: Sequence[StreamSpec]) -> tuple[Times, dict[str, int]]:
        """(control times of one episode: those at which every needed stream is there, who cut how many off).

        SourceError if there are none.
        """
        first, last, who = self._common(needed)
        control_N = self._control_times(range_ns, first, last)
        if not len(control_N) and range_ns is not None:
            raise SourceError(f"there are no control steps ({self.control}) in this episode (--on-error skip)")
        kept = (control_N >= first) & (control_N <= last)
        if not kept.any():
            early = f"{who[0]} has not begun" if len(control_N) and control_N[-1] < first else ""
            late = f"{who[1]} has ended" if len(control_N) and control_N[0] > last else ""
            why = early or late or f"{who[0]} begins after {who[1]} has ended"
            fix = "leave it out in the mapping (--write-mapping, --mapping)"
            fix += ", or pass over such episodes (--on-error skip)" if range_ns is not None else ""
            raise SourceError(f"at no control step ({self.control}) are all topics there: {why}; {fix}")
        cut = {}
        if before := int((control_N < first).sum()):
            cut[f"before {who[0]} begins"] = before
        if after := int((control_N > last).sum()):
            cut[f"after {who[1]} ends"] = after
        return control_N[kept], cut

    def _control_times(self, range_ns: tuple[int, int] | None, first: int, last: int) -> Times:
        low, high = range_ns or (-LATEST, LATEST)
        rate = rate_of(self.how.control)
        if rate is None:
            control_N = topic_clock(self.clocks[self.control].stamps_ns)
            return control_N[(control_N >= low) & (control_N < high)]
        ends = [(int(times[0]), int(times[-1])) for track in self.tracks if len(times := self._stamps(track))]
        if not ends:
            raise SourceError("the topics have no messages that can be read")
        start = max(low, first, min(begin for begin, _ in ends))
        return fixed_rate(start, min(high, last + 1, max(end for _, end in ends) + 1), rate)

    def _common(self, needed: Sequence[StreamSpec]) -> tuple[int, int, tuple[str, str]]:
        """(when the last of the streams has begun, when the first has ended, their names)."""
        names = {spec.name for spec in needed}
        spans = {spec.name: self._span(track, spec) for track, spec in self.used
                 if spec.name in names and len(track.log)}  # fmt: skip
        if not spans:
            return -LATEST, LATEST, (self.control, self.control)
        begin, end = max(spans, key=lambda name: spans[name][0]), min(spans, key=lambda name: spans[name][1])
        return spans[begin][0], spans[end][1], (begin, end)

    def _span(self, track: Track, spec: StreamSpec) -> tuple[int, int]:
        """From the first whole row of a stream to its end; what comes now and then never ends."""
        stamps_M, timing = self._stamps(track), self.timings[track.key]
        start = 0 if spec.role in PLAIN else self.numbers(track, spec)[1]
        if not timing.regular:
            end = LATEST
        elif self.method(track, spec) in ("linear", "slerp"):
            end = int(stamps_M[-1])
        else:
            end = int(stamps_M[-1] + LATE * timing.period_ns)
        if self.method(track, spec) == "nearest":
            return int(stamps_M[start] - timing.period_ns), end
        return int(stamps_M[start]), end

    def _stamps(self, track: Track) -> Times:
        return self.clocks[track.key].stamps_ns

    def method(self, track: Track, spec: StreamSpec, hold: bool = False) -> str:
        """How a stream is put on the control clock; what has no rate is held."""
        if hold or not self.timings[track.key].regular or spec.role == "event":
            return "hold"
        if self.how.align == "linear":
            return {"vector": "linear", "quaternion": "slerp"}.get(spec.role, "hold")
        return self.how.align

    def alignment(self, track: Track, method: str, control_N: Times) -> Alignment:
        tolerance = self.how.tolerance_ns if self.timings[track.key].regular else None
        return align(control_N, self._stamps(track), method, tolerance)

    def numbers(self, track: Track, spec: StreamSpec) -> tuple[Array, int]:
        """(rows in order of time, first row that is whole). A number that is missing later keeps its last value."""
        if spec.name not in self._numbers:
            rows_MD = track.rows(spec)
            order_M = self.clocks[track.key].order
            if (np.diff(order_M) != 1).any():
                rows_MD = rows_MD[order_M]
            self._numbers[spec.name] = _filled(rows_MD)
        return self._numbers[spec.name]

    def aligned(self, track: Track, spec: StreamSpec, alignment: Alignment) -> Array | Rows | Frames:
        """The rows of the control steps."""
        if spec.role in ("picture", "depth"):
            return self._pictures(track, spec, self.clocks[track.key].order[alignment.index_N])
        rows_MD = self.numbers(track, spec)[0]
        with locate(feature=spec.name):
            return _row_shape(spec, interpolate(rows_MD, alignment, spec.role))

    def own(self, track: Track, spec: StreamSpec, low: int, high: int) -> Array | Rows | Frames:
        """The rows `low` to `high` at their own rate."""
        if spec.role in ("picture", "depth"):
            return self._pictures(track, spec, self.clocks[track.key].order[low:high])
        return _row_shape(spec, self.numbers(track, spec)[0][low:high])

    def _pictures(self, track: Track, spec: StreamSpec, index_N: NDArray[np.int64]) -> Rows | Frames:
        pictures = track.pictures[spec.name]
        return Frames(Files(pictures, index_N), spec.shape) if pictures.are_files else pictures.blocks(index_N)

    def within(self, track: Track, start_ns: int, stop_ns: int) -> tuple[int, int]:
        """Half-open range of a track's rows from `start_ns` to `stop_ns`, both included."""
        stamps_M = self._stamps(track)
        low, high = np.searchsorted(stamps_M, start_ns), np.searchsorted(stamps_M, stop_ns, "right")
        return int(low), int(high)

    def report(self, alignments: Mapping[str, Alignment], control_N: Times) -> SyncReport:
        streams = [Aligned(track.key, self.clocks[track.key], alignments.get(track.key)) for track in self.tracks]
        return report(streams, control_N, self.control)


def slowest_topic(periods: Mapping[str, int]) -> str:
    """Of topics with known periods; the first name of equal ones."""
    return max(sorted(periods), key=lambda name: periods[name])


def field_of(spec: StreamSpec, rows: str) -> Field:
    """What a stream is to a mapping. One number per message is a scalar."""
    if spec.role in ("picture", "depth"):
        jpeg = spec.encoding == "jpeg"
        return Field(spec.name, spec.dtype, spec.shape, rows, jpeg=jpeg, lossy=jpeg)
    if spec.shape == (1,):
        return Field(spec.name, "float64", (), rows)
    return Field(spec.name, "float64", spec.shape, rows, names=spec.names)


def _row_shape(spec: StreamSpec, rows_ND: Array) -> Array:
    return rows_ND[:, 0] if spec.shape == (1,) else rows_ND


def _filled(rows_MD: Array) -> tuple[Array, int]:
    """(rows without NaN where an earlier row has the number, the first row from which on none is missing).

    A column that never has a number says nothing about where the rows begin.
    """
    missing_MD = np.isnan(rows_MD)
    if not missing_MD.any():
        return rows_MD, 0
    ever_D = ~missing_MD.all(axis=0)
    first = int(np.argmax(~missing_MD[:, ever_D], axis=0).max()) if ever_D.any() else 0
    source_MD = np.maximum.accumulate(np.where(missing_MD, 0, np.arange(len(rows_MD))[:, None]), axis=0)
    return np.take_along_axis(rows_MD, source_MD, axis=0), first


def _check_order(key: str, clock: Clock) -> None:
    """A log time that was set back leaves messages that cannot be put in order."""
    if clock.splits and (np.diff(clock.stamps_ns) < 0).any():
        with locate(feature=key):
            count = f"{len(clock.splits)} times" if len(clock.splits) > 1 else "once"
            raise SourceError(
                f"the {clock.which} time was set back {count}, so that messages of one time were made at two; the log "
                "seems to hold several runs: split it where the time starts again"
            )
