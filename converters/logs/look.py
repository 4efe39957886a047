"""The first messages of a log's topics: what streams they have, and about how often they come."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.logs.messages import LogFile, Topic
from converters.logs.streams import StreamSpec, find_streams
from vrl3data.errors import SourceError

SAMPLES, TRANSFORMS = 5, 200
"""Messages that are decoded; more of transforms, since each may be of another frame."""
STAMPS = 25
"""Messages that are counted before a topic is taken for known."""
ENOUGH = 200_000
"""Messages after which one of each topic is enough."""
REGULAR, NEAR, FEWEST = 0.6, 0.5, 20
FEW, LATE = 3, 0.1
SYSTEM = ("/rosout", "/rosout_agg", "/parameter_events", "/diagnostics", "/diagnostics_agg", "/clock", "/log")
"""What the machinery says of itself: it becomes no feature, and its texts may name people and machines."""


@dataclass(frozen=True)
class Pace:
    """How often a topic's first messages came. `regular`: evenly."""

    count: int
    period_ns: int = 0
    regular: bool = False
    late: bool = False
    """Few messages, and none near the beginning of the log: whatever waits for it loses most of the log."""


@dataclass(frozen=True)
class Look:
    """Of one log. `left`: topics or parts of them that become nothing, and why."""

    specs: tuple[StreamSpec, ...]
    paces: Mapping[str, Pace]
    frames: Mapping[str, str]
    left: tuple[str, ...]
    finite: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """Of a stream's columns: whether any of the first messages had a number."""


@dataclass
class _Seen:
    log: array[int] = field(default_factory=lambda: array("q"))
    samples: list[Any] = field(default_factory=list)


def look(log: LogFile, whole: bool = False) -> Look:
    """Read from the front until every topic is known; all of it with `whole`, so that its defects are known as well."""
    topics = log.topics()
    seen = _read(log, topics, whole)
    topics = {name: topics.get(name) or log.topics()[name] for name in seen}
    specs: list[StreamSpec] = []
    left, frames, finite = [], {}, {}
    for name, topic in topics.items():
        values, error = _decoded(log, topic, seen[name].samples)
        if error or not values:
            left.append(f"{name} ({topic.type}): {error or 'no messages'}")
            continue
        found = find_streams(topic, values)
        left += [f"{name}{f':{path}' if path else ''} ({topic.type}): {reason}" for path, reason in found.left]
        specs += found.specs
        finite.update({spec.name: _finite(spec, values) for spec in found.specs if spec.role in ("vector", "event")})
        if found.frames:
            frames[name] = ", ".join(sorted(set(filter(None, found.frames.values()))))
    return Look(
        tuple(specs), _paces(seen), frames, tuple(left), finite
    )  # fmt: skip


def _read(log: LogFile, topics: Mapping[str, Topic], whole: bool) -> dict[str, _Seen]:
    seen = {name: _Seen() for name in topics}
    waiting = {name for name, topic in topics.items() if topic.count != 0}
    for number, message in enumerate(log.messages(decode=False)):
        facts = seen.setdefault(message.topic, _Seen())
        facts.log.append(message.log_ns)
        topic = topics.get(message.topic)
        samples = TRANSFORMS if topic is not None and topic.type.lower().endswith("tfmessage") else SAMPLES
        if len(facts.samples) < samples:
            facts.samples.append(message.value)
        want = max(STAMPS, samples) if number < ENOUGH else 1
        if topic is not None and len(facts.log) >= (want if topic.count < 0 else min(want, topic.count)):
            waiting.discard(message.topic)
        if whole:
            continue
        if not waiting or (number >= ENOUGH and not _silent(waiting, seen)):
            break
    return seen


def _silent(waiting: Collection[str], seen: Mapping[str, _Seen]) -> bool:
    return any(not seen[name].log for name in waiting)


def _decoded(log: LogFile, topic: Topic, samples: list[Any]) -> tuple[list[Any], str]:
    values, error = [], topic.error
    for data in () if topic.error else samples:
        try:
            values.append(log.decode(topic.name, data))
        except SourceError as wrong:
            error = wrong.message
    return values, "" if values else error


def _finite(spec: StreamSpec, values: list[Any]) -> tuple[bool, ...]:
    from converters.logs.streams import extract

    rows = [row for value in values if isinstance(row := extract(spec, value), np.ndarray)]
    known = np.isfinite(np.stack(rows)).any(axis=0) if rows else np.zeros(spec.shape, np.bool_)
    return tuple(bool(entry) for entry in known)


def _paces(seen: Mapping[str, _Seen]) -> dict[str, Pace]:
    there = {name: np.sort(np.frombuffer(facts.log, np.int64)) for name, facts in seen.items() if len(facts.log)}
    start = min((int(times[0]) for times in there.values()), default=0)
    stop = max((int(times[-1]) for times in there.values()), default=0)
    paces = {name: Pace(0) for name in seen}
    for name, times in there.items():
        late = len(times) < FEW and int(times[0]) - start > LATE * (stop - start)
        dt = np.diff(times)
        period = max(1, int(np.median(dt))) if len(times) >= FEW else 0
        regular = len(times) >= FEWEST and float((np.abs(dt - period) < NEAR * period).mean()) >= REGULAR
        paces[name] = Pace(len(times), period, regular, late)
    return paces
