"""Where the episodes of one log are, as an option says."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from converters.logs.clock_steps import Times
from converters.logs.cuts import Ranges, by_gaps, by_time, by_value, while_true
from converters.logs.gather import Track, gather
from converters.logs.messages import LogFile
from converters.logs.placing import chosen_clock
from converters.logs.streams import StreamSpec
from vrl3data.errors import ConfigError, SourceError, did_you_mean

CUTS = ("time", "gap", "topic")


def parse_cut(text: str) -> tuple[str, float, str]:
    """(how, seconds, topic); ConfigError for what is none."""
    how, _, what = text.partition(":")
    if not text:
        return "", 0.0, ""
    if how not in CUTS or not what:
        raise ConfigError(f"cut: expected time:SECONDS, gap:SECONDS or topic:/NAME, found {text!r}")
    if how == "topic":
        return how, 0.0, what
    try:
        seconds = float(what)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f"cut: expected seconds after {how}:, found {what!r}")
    return how, seconds, ""


def ranges(
    log: LogFile, specs: Sequence[StreamSpec], cut: str, topics: Collection[str], clock: str
) -> Sequence[tuple[int, int] | None]:
    """Episodes as half-open ranges of time; None: all of it. One pass over the log's stamps, if any."""
    how, seconds, topic = parse_cut(cut)
    if not how:
        return [None]
    if how == "topic":
        found = _by_topic(log, specs, topic, clock)
    else:
        times = _stamps(
            log, [name for name, about in log.topics().items() if name in topics and not about.error], clock
        )
        if not len(times):
            raise SourceError(f"cut: there are no messages of {', '.join(sorted(topics))}")
        if how == "gap":
            found = by_gaps(times, round(seconds * 1e9))
        else:
            found = by_time(int(times.min()), int(times.max()) + 1, round(seconds * 1e9), keep_rest=True)
    if not found:
        raise SourceError(f"cut {cut}: there is no episode in this log")
    return found


def _stamps(log: LogFile, names: Collection[str], clock: str) -> Times:
    """Of all messages, each by the clock of its topic: the one that its steps have as well."""
    tracks = {name: Track(name, name, ()) for name in names}
    for message in log.messages(names, decode=False):
        tracks[message.topic].stamp(message, message.header_ns)
    return np.concatenate([chosen_clock(track, clock).stamps_ns for track in tracks.values()] or [np.zeros(0, int)])


def _by_topic(log: LogFile, specs: Sequence[StreamSpec], name: str, clock: str) -> Ranges:
    """While its first number is true; of a topic of texts, from one text to the next."""
    mine = [spec for spec in specs if name in (spec.topic, spec.name) and spec.role in ("vector", "event", "text")]
    if not mine:
        known = {spec.topic for spec in specs if spec.role in ("vector", "event", "text")}
        raise SourceError(f"cut: no topic of numbers or texts is called {name!r}{did_you_mean(name, known)}")
    gathered = gather(log, mine[:1])
    (track,) = gathered.tracks.values()
    found = chosen_clock(track, clock)
    stop = int(found.stamps_ns.max()) + 1 if len(found.stamps_ns) else 0
    for last in (message.log_ns for message in log.messages(decode=False)):
        stop = max(stop, last + 1)
    if mine[0].role == "text":
        texts = track.texts[mine[0].name]
        place = np.argsort(found.order)  # message -> its stamp
        stamps = np.array([found.stamps_ns[place[number]] for number, _ in texts], np.int64)
        return by_value(stamps, np.array([text for _, text in texts], object), stop)
    return while_true(found.stamps_ns, track.rows(mine[0])[found.order, 0], stop)
