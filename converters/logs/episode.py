"""One episode of a gathered log, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.fields import TIMESTAMP, Loaded
from converters.logs.align import Alignment
from converters.logs.clock_steps import Times
from converters.logs.gather import Track
from converters.logs.guess import TASKS, last_word
from converters.logs.placing import Placing
from converters.logs.streams import StreamSpec
from converters.mapping import FieldMap
from vrl3data.errors import SourceError, locate

MAX_TEXTS = 200
STREAM = "stream:"


@dataclass(frozen=True)
class Needs:
    """What one episode is to hold. `rows`: of every field that the mapping uses. `range_ns` None: all of the log."""

    rows: Mapping[str, str]
    mapping: FieldMap
    range_ns: tuple[int, int] | None
    refuse: bool = False
    """Errors of the sync report refuse the episode."""


class _Steps:
    """The control steps of an episode, and what each stream gives for them."""

    def __init__(self, placing: Placing, needs: Needs) -> None:
        self.placing, self.needs = placing, needs
        self.aligned = [(track, spec) for track, spec in placing.used if not self.is_own(spec)]
        self.control_N, self.cut = placing.steps(needs.range_ns, [spec for _, spec in self.aligned])
        self.alignments: dict[tuple[str, str], Alignment] = {}

    def is_own(self, spec: StreamSpec) -> bool:
        return self.needs.rows.get(spec.name, "").startswith(STREAM)

    def alignment(self, track: Track, spec: StreamSpec) -> Alignment:
        """Actions are what is in force: held, whatever the others are."""
        method = self.placing.method(track, spec, hold=self.needs.rows.get(spec.name) == "step")
        key = (track.key, method)
        if key not in self.alignments:
            self.alignments[key] = self.placing.alignment(track, method, self.control_N)
        return self.alignments[key]


def load(placing: Placing, needs: Needs) -> Loaded:
    """The episode. SourceError if no step is left, or the sync report refuses it."""
    steps = _Steps(placing, needs)
    control_N, rows = steps.control_N, needs.rows
    start = int(control_N[0])
    loaded = Loaded({}, length=len(control_N), start_time_ns=start)
    for track, spec in steps.aligned:
        if not len(track.log):
            continue
        alignment = steps.alignment(track, spec)
        if spec.name in rows:
            loaded.arrays[spec.name] = placing.aligned(track, spec, alignment)
        if f"age:{spec.name}" in rows:
            loaded.arrays[f"age:{spec.name}"] = alignment.age_us_N
    _own_rates(steps, loaded)
    if TIMESTAMP in rows:
        loaded.arrays[TIMESTAMP] = control_N - start
    found = placing.report({track.key: steps.alignment(track, spec) for track, spec in reversed(steps.aligned)},
                           control_N)  # fmt: skip
    if needs.refuse and found.errors:
        first = found.errors[0]
        with locate(feature=first.topic):
            raise SourceError(f"sync: {first.name}: {first.message} (of {len(found.errors)} errors; --on-sync warn)")
    texts = _texts(placing, start, int(control_N[-1]))
    loaded.task = _task(texts)
    loaded.success = _success(needs, loaded)
    loaded.source_meta = _meta(steps, found.to_json(), texts)
    return loaded


def _own_rates(steps: _Steps, loaded: Loaded) -> None:
    """Streams that keep their rate: the messages from the first control step to the last."""
    control_N, rows = steps.control_N, steps.needs.rows
    for track, spec in steps.placing.used:
        if not steps.is_own(spec):
            continue
        low, high = steps.placing.within(track, int(control_N[0]), int(control_N[-1]))
        if spec.role not in ("picture", "depth") and len(track.log):
            low = max(low, steps.placing.numbers(track, spec)[1])
        if high <= low:
            continue
        loaded.arrays[spec.name] = steps.placing.own(track, spec, low, high)
        clock = rows[spec.name].removeprefix(STREAM)
        if loaded.streams.setdefault(clock, high - low) != high - low:
            with locate(feature=spec.name):
                raise SourceError("its first numbers are missing, unlike those of the other parts of its topic")
        if f"timestamp:{track.key}" in rows:
            stamps_M = steps.placing.clocks[track.key].stamps_ns[low:high]
            loaded.arrays[f"timestamp:{track.key}"] = stamps_M - control_N[0]


def _texts(placing: Placing, start_ns: int, stop_ns: int) -> dict[str, list[tuple[int, str]]]:
    """Of each topic of texts: (nanoseconds since the first step, text), the one in force at the start first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for key, track in placing.gathered.tracks.items():
        for name, texts in track.texts.items():
            stamps_M = _in_file_order(placing, key)
            given = [(int(stamps_M[number]), text) for number, text in texts if stamps_M[number] <= stop_ns]
            before = [pair for pair in given if pair[0] < start_ns][-1:]
            inside = [*before, *(pair for pair in given if pair[0] >= start_ns)]
            if inside:
                found[name] = [(time - start_ns, text) for time, text in inside]
    return found


def _in_file_order(placing: Placing, key: str) -> Times:
    clock = placing.clocks[key]
    stamps_M = np.empty(len(clock.order), np.int64)
    stamps_M[clock.order] = clock.stamps_ns
    return stamps_M


def _task(texts: Mapping[str, list[tuple[int, str]]]) -> str:
    """What a topic called task or instruction said, if it said one thing."""
    said = {text for name, pairs in texts.items() if last_word(name.partition(":")[0]) in TASKS for _, text in pairs}
    return said.pop() if len(said) == 1 else ""


def _success(needs: Needs, loaded: Loaded) -> int:
    """The last value of the feature `success`."""
    rule = next((rule for rule in needs.mapping.rules if rule.name == "success"), None)
    value: Any = loaded.arrays.get(rule.source[0]) if rule is not None else None
    return -1 if not isinstance(value, np.ndarray) or not len(value) else int(np.ravel(value[-1])[0] > 0.5)


def _meta(steps: _Steps, sync: dict[str, Any], texts: Mapping[str, list[tuple[int, str]]]) -> dict[str, Any]:
    gathered = steps.placing.gathered
    meta: dict[str, Any] = {"log": gathered.info, "sync": sync}
    if gathered.problems:
        meta["problems"] = gathered.problems
    if steps.cut:
        meta["steps_cut_off"] = steps.cut
    if texts:
        meta["texts"] = {name: [list(pair) for pair in pairs[:MAX_TEXTS]] for name, pairs in texts.items()}
        meta |= {"texts_left_out": sum(len(pairs) - MAX_TEXTS for pairs in texts.values() if len(pairs) > MAX_TEXTS)}
    return meta
