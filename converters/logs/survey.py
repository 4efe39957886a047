"""What a log holds, for people: topics, rates, gaps, clocks, first values, a picture of every camera."""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converters.logs.messages import LogFile, Message, Topic
from converters.logs.streams import Streams, StreamSpec, extract, find_streams
from converters.pictures import decode
from vrl3data import storage
from vrl3data.errors import SourceError
from vrl3data.schema import Array

SAMPLES = 5
"""First messages of a topic by which its streams are found."""
SHOWN = 6
CHECK_EVERY = 256
THUMBNAIL = 320


@dataclass(frozen=True)
class Clock:
    """Stamps of one kind. `zeros` were set by nobody; `back` lie before the one before them."""

    name: str
    rate: float
    """Messages per second, by the median distance; 0 for fewer than two."""
    largest_gap: float
    zeros: int
    back: int
    skew_ms: float
    """Median of log time minus this one."""


@dataclass(frozen=True)
class StreamFacts:
    path: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    unit: str
    first: Any


@dataclass(frozen=True)
class TopicFacts:
    name: str
    type: str
    encoding: str
    count: int
    looked_at: int
    clocks: tuple[Clock, ...]
    streams: tuple[StreamFacts, ...]
    left: tuple[tuple[str, str], ...]
    frames: Mapping[str, str]
    error: str = ""


@dataclass
class Survey:
    """Facts of one log. `complete` is False if the time was over before its end."""

    file: str
    info: Mapping[str, Any]
    topics: list[TopicFacts]
    problems: list[str]
    complete: bool
    start_ns: int
    seconds: float
    messages: int
    pictures: dict[str, Array] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "pictures"}


class _Seen:
    """What was seen of one topic."""

    def __init__(self) -> None:
        self.stamps: dict[str, array[int]] = {name: array("q") for name in ("log", "publish", "header")}
        self.samples: list[Any] = []

    def take(self, message: Message) -> None:
        self.stamps["log"].append(message.log_ns)
        self.stamps["publish"].append(message.publish_ns)
        if message.header_ns is not None:
            self.stamps["header"].append(message.header_ns)


def survey(log: LogFile, seconds: float, pictures: bool = False) -> Survey:
    """Look at a log from its front, for at most `seconds`; what its index says is known in any case."""
    topics = log.topics()
    seen = {name: _Seen() for name in topics}
    stopped = False
    for message in _until(log, time.monotonic() + seconds):
        if message is None:
            stopped = True
            break
        facts = seen.setdefault(message.topic, _Seen())
        facts.take(message)
        if len(facts.samples) < SAMPLES:
            facts.samples.append(bytes(message.value))  # not a view that keeps a chunk
    topics = {name: topics.get(name) or log.topics()[name] for name in seen}
    found = Survey(log.path.name, log.info(), [], [], not stopped, 0, 0.0, 0)
    for name, topic in topics.items():
        found.topics.append(_facts(log, topic, seen[name], found, pictures))
    stamps = [facts.stamps["log"] for facts in seen.values() if facts.stamps["log"]]
    if stamps:
        found.start_ns = min(min(part) for part in stamps)
        found.seconds = (max(max(part) for part in stamps) - found.start_ns) / 1e9
    found.messages = sum(len(part) for part in stamps)
    found.problems = log.problems
    return found


def thumbnails(found: Survey, folder: Path) -> list[Path]:
    """One PNG file per camera, at most 320 pixels wide."""
    written = []
    with storage.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, pixels in found.pictures.items():
            stem = re.sub(r"[^A-Za-z0-9]+", "_", f"{Path(found.file).stem}_{name}").strip("_")[:100]
            path = folder / f"{stem}.png"
            number = 1
            while path in written:
                number += 1
                path = folder / f"{stem}_{number}.png"
            image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
            image.thumbnail((THUMBNAIL, THUMBNAIL * 4))
            image.save(path)
            written.append(path)
    return written


def _until(log: LogFile, end: float) -> Iterator[Message | None]:
    """The messages, and None when the time is over."""
    for number, message in enumerate(log.messages(decode=False)):
        yield message
        if number % CHECK_EVERY == 0 and time.monotonic() > end:
            yield None
            return


def _facts(log: LogFile, topic: Topic, seen: _Seen, found: Survey, pictures: bool) -> TopicFacts:
    values, errors = [], []
    for data in seen.samples if not topic.error else ():
        try:
            values.append(log.decode(topic.name, data))
        except SourceError as error:
            errors.append(error.message)
    reason = topic.error or ("" if values or not errors else errors[0])
    streams = find_streams(topic, values) if values else Streams(())
    facts = [_stream(spec, values, found, pictures) for spec in streams.specs]
    clocks = tuple(_clocks(seen.stamps))
    looked_at = len(seen.stamps["log"])
    count = topic.count if topic.count >= 0 or not found.complete else looked_at
    return TopicFacts(topic.name, topic.type, topic.encoding, count, looked_at, clocks, tuple(facts), streams.left,
                      streams.frames, reason)  # fmt: skip


def _stream(spec: StreamSpec, values: list[Any], found: Survey, pictures: bool) -> StreamFacts:
    first: Any = None
    for value in values:
        try:
            row = extract(spec, value)
        except SourceError as error:
            first = error.message
            continue
        if row is None:
            continue
        if spec.role in ("picture", "depth"):
            if pictures:
                found.pictures.setdefault(spec.name, _shown(spec, row))
            first = f"{len(row):,} bytes" if isinstance(row, bytes) else None
        elif isinstance(row, str):
            first = row[:80]
        else:
            first = [float(number) if np.isfinite(number) else None for number in row[:SHOWN]]
        break
    dtype = f"{spec.dtype} {spec.encoding}".strip()
    return StreamFacts(spec.path, spec.role, dtype, spec.shape, spec.names, spec.unit, first)


def _shown(spec: StreamSpec, row: Any) -> Array:
    """A picture as uint8; depth from black (near) to white (far), without its outliers."""
    pixels: Array = decode(row, spec.shape) if isinstance(row, bytes) else row
    if spec.role == "picture":
        return pixels
    known = pixels[np.isfinite(pixels) & (pixels > 0)]
    low, high = np.percentile(known, (1, 99)) if known.size else (0.0, 1.0)
    scaled = (np.nan_to_num(pixels.astype(np.float64), posinf=0) - low) / max(high - low, 1e-9)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _clocks(stamps: Mapping[str, array[int]]) -> Iterator[Clock]:
    log = np.frombuffer(stamps["log"], np.int64)
    for name, given in stamps.items():
        own = np.frombuffer(given, np.int64)
        if not len(own) or (name == "publish" and np.array_equal(own, log)):
            continue
        set_ = (own != 0) | (name != "header")  # a simulated clock of the log begins at zero
        steps = np.diff(np.sort(own[set_]))
        median = float(np.median(steps)) if len(steps) else 0.0
        skew = float(np.median(log[: len(own)][set_] - own[set_])) / 1e6 if set_.any() and len(own) == len(log) else 0.0
        yield Clock(
            name,
            round(1e9 / median, 3) if median > 0 else 0.0,
            round(float(steps.max()) / 1e9, 6) if len(steps) else 0.0,
            int((~set_).sum()),
            int((np.diff(own[set_]) < 0).sum()),
            round(skew, 3),
        )
