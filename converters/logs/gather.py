"""All messages that a conversion needs, in one pass: numbers in memory, pictures in an unlinked file.

M messages of a track, in file order.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from converters.logs.messages import LogFile, Message
from converters.logs.streams import StreamSpec, extract, stamp_of
from converters.pictures import BLOCK_FRAMES
from vrl3data import storage
from vrl3data.errors import SourceError
from vrl3data.schema import Array, Rows

MAX_TEXTS = 10_000


class Spool:
    """A temporary file without a name: it is gone when the process is."""

    def __init__(self) -> None:
        self.size = 0
        self._file: IO[bytes] | None = None

    def add(self, data: bytes | memoryview) -> int:
        """Where it was put."""
        with storage.writing(Path(tempfile.gettempdir()), "set TMPDIR to a folder with more room"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="vrl3data-log-")  # noqa: SIM115
            self._file.write(data)
        place = self.size
        self.size += len(data)
        return place

    def flush(self) -> None:
        if self._file is not None:
            with storage.writing(Path(tempfile.gettempdir()), "set TMPDIR to a folder with more room"):
                self._file.flush()

    def get(self, place: int, size: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), size, place)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass
class Pictures:
    """Pictures or depth of one stream in a spool, by the row that each has in its track."""

    spec: StreamSpec
    spool: Spool
    places: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, row: bytes | Array) -> None:
        data = row if isinstance(row, bytes) else np.ascontiguousarray(row).data.cast("B")
        self.places.append(self.spool.add(data))
        self.sizes.append(len(data))

    def get(self, number: int) -> bytes:
        return self.spool.get(self.places[number], self.sizes[number])

    @property
    def are_files(self) -> bool:
        return self.spec.encoding in ("jpeg", "png")

    def blocks(self, index_N: NDArray[np.int64]) -> Rows:
        """The rows of `index_N`; for raw pictures."""
        for start in range(0, len(index_N), BLOCK_FRAMES):
            rows = [np.frombuffer(self.get(number), self.spec.dtype).reshape(self.spec.shape)
                    for number in index_N[start : start + BLOCK_FRAMES].tolist()]  # fmt: skip
            yield np.stack(rows)


class Files(Sequence[bytes]):
    """The picture files of some rows, read when they are asked for."""

    def __init__(self, pictures: Pictures, index_N: NDArray[np.int64]) -> None:
        self.pictures, self.index_N = pictures, index_N

    def __len__(self) -> int:
        return len(self.index_N)

    @overload
    def __getitem__(self, key: int) -> bytes: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[bytes]: ...
    def __getitem__(self, key: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(key, slice):
            return Files(self.pictures, self.index_N[key])
        return self.pictures.get(int(self.index_N[key]))

    def __iter__(self) -> Iterator[bytes]:
        return (self.pictures.get(number) for number in self.index_N.tolist())


@dataclass
class Track:
    """The messages of a topic, or of one child frame of it: what has one clock."""

    key: str
    topic: str
    specs: tuple[StreamSpec, ...]
    log: array[int] = field(default_factory=lambda: array("q"))
    publish: array[int] = field(default_factory=lambda: array("q"))
    header: array[int] = field(default_factory=lambda: array("q"))
    stamped: bool = False
    """Whether any message has a stamp of its own."""
    numbers: dict[str, array[float]] = field(default_factory=dict)
    pictures: dict[str, Pictures] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """(message, text) where it changes."""
    broken: dict[str, int] = field(default_factory=dict)
    """Reason: messages left out."""

    def rows(self, spec: StreamSpec) -> Array:
        """float64 (M, D)."""
        return np.frombuffer(self.numbers[spec.name], np.float64).reshape(-1, spec.shape[0])

    def take(self, message: Message) -> None:
        try:
            found = [extract(spec, message.value) for spec in self.specs]
        except SourceError as error:
            self.broken[error.message] = self.broken.get(error.message, 0) + 1
            return
        if all(row is None for row in found):
            return
        number = len(self.log)
        self.stamp(message, stamp_of(self.specs[0], message))
        for spec, row in zip(self.specs, found, strict=True):
            self._put(spec, row, number)

    def stamp(self, message: Message, header_ns: int | None) -> None:
        self.log.append(message.log_ns)
        self.publish.append(message.publish_ns)
        self.stamped |= header_ns is not None
        self.header.append(header_ns or 0)

    def _put(self, spec: StreamSpec, row: Any, number: int) -> None:
        if spec.role in ("picture", "depth"):
            self.pictures[spec.name].add(row)
        elif spec.role == "text":
            texts = self.texts[spec.name]
            if isinstance(row, str) and len(texts) < MAX_TEXTS and (not texts or texts[-1][1] != row):
                texts.append((number, row))
        else:
            self.numbers[spec.name].extend(np.full(spec.shape, np.nan).tolist() if row is None else row.tolist())


@dataclass
class Gathered:
    """One log, read."""

    tracks: dict[str, Track]
    info: dict[str, Any]
    problems: list[str]
    spool: Spool


def track_key(spec: StreamSpec) -> str:
    return f"{spec.topic}:{spec.child}" if spec.child else spec.topic


def gather(log: LogFile, specs: Sequence[StreamSpec], placed: Callable[[StreamSpec], str] = track_key) -> Gathered:
    """One pass over the messages of the topics of `specs`."""
    spool, grouped = Spool(), dict[str, list[StreamSpec]]()
    for spec in specs:
        grouped.setdefault(placed(spec), []).append(spec)
    tracks = {key: Track(key, group[0].topic, tuple(group)) for key, group in grouped.items()}
    by_topic: dict[str, list[Track]] = {}
    for track in tracks.values():
        by_topic.setdefault(track.topic, []).append(track)
        for spec in track.specs:
            if spec.role in ("picture", "depth"):
                track.pictures[spec.name] = Pictures(spec, spool)
            elif spec.role == "text":
                track.texts[spec.name] = []
            else:
                track.numbers[spec.name] = array("d")
    there = log.topics()
    wanted = [name for name in by_topic if name in there and not there[name].error]
    try:
        for message in log.messages(wanted) if wanted else ():
            for track in by_topic[message.topic]:
                track.take(message)
        spool.flush()
    except BaseException:
        spool.close()
        raise
    problems = log.problems
    for track in tracks.values():
        problems += [f"{track.key}: {count:,} messages left out: {reason}" for reason, count in track.broken.items()]
    return Gathered(tracks, log.info(), problems, spool)
