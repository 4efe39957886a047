"""ROS 1 bags (version 2.0), read from the front, so that an index is useful but not needed.

A record is: length of the header (u32), header, length of the data (u32), data. A header is a list of
length (u32), `name=value`. Little-endian. Messages lie in chunks; a recording that was not closed has no index,
and may have messages behind its last chunk.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from converters.logs.messages import Channel, LogFile, Raw
from converters.logs.reading import OpenFile
from converters.logs.unpack import MAX_CHUNK, unpack
from vrl3data.errors import SourceError

MAGIC = b"#ROSBAG V2.0\n"
MESSAGE, BAG_HEADER, INDEX, CHUNK, CHUNK_INFO, CONNECTION = 2, 3, 4, 5, 6, 7
MAX_HEADER = 2**20
U32 = struct.Struct("<I")


class Record(NamedTuple):
    """A record of a bag: the fields of its header, and where its data begins."""

    fields: dict[str, bytes]
    at: int
    length: int

    @property
    def kind(self) -> int:
        return self.fields.get("op", b"\0")[0] if self.fields.get("op") else 0

    def number(self, name: str) -> int:
        """A whole number of the header; SourceError if it is not there."""
        value = self.fields.get(name, b"")
        if len(value) not in (4, 8):
            raise SourceError(f"a record (op {self.kind}) has no number {name!r}")
        return int.from_bytes(value, "little")


class BagLog(LogFile):
    kind = "bag"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = OpenFile(path)
        self._channels: dict[int, Channel] = {}
        self._facts: dict[str, Any] = {}
        self._looked = False
        try:
            head = self._file.read(0, len(MAGIC))
            if head != MAGIC:
                version = head.partition(b"\n")[0].decode("ascii", "replace")
                raise SourceError(f"expected a bag of version 2.0, found {version!r}; `rosbag fix` makes one of it")
            self._begin, self._index = self._bag_header()
        except SourceError:
            self.close()
            raise

    def channels(self) -> Mapping[int, Channel]:
        if not self._looked:
            self._looked = True
            if not self._read_index():
                self._look_through()
        return self._channels

    def info(self) -> dict[str, Any]:
        self.channels()
        return {"container": "bag", "version": "2.0", "bytes": self._file.size, **self._facts}

    def close(self) -> None:
        self._file.close()

    def raw(self, wanted: Collection[int] | None) -> Iterator[Raw]:
        for record in self._records(self._begin):
            if record.kind == CHUNK:
                yield from self._of_chunk(record)
            elif record.kind == MESSAGE:
                yield from self._message(record, self._file.read(record.at, record.length))
            elif record.kind == CONNECTION:
                self._define(record, self._file.read(record.at, record.length))

    # -- records -------------------------------------------------------------------------------------------

    def _bag_header(self) -> tuple[int, int]:
        """(where the records begin, where the index begins: 0 if there is none)."""
        record = next(self._records(len(MAGIC)), None)
        if record is None or record.kind != BAG_HEADER:
            raise SourceError("the bag is cut off, or damaged, in its first record")
        encryptor = record.fields.get("encryptor", b"").decode("ascii", "replace")
        if encryptor and encryptor != "rosbag/NoEncryptor":
            raise SourceError(f"the bag is encrypted ({encryptor}): decrypt it first (rosbag decrypt)")
        index = record.number("index_pos")
        if not index:
            self.note("index", "the bag has no index, the recording was not closed; read from the front")
        elif index > self._file.size:
            self.note(
                "index", f"the bag is cut off: its index at byte {index:,} is behind the end, {self._file.size:,}"
            )
        return record.at + record.length, index if index < self._file.size else 0

    def _records(self, at: int) -> Iterator[Record]:
        """The records from a place on; a defect ends them and is a problem."""
        while at < self._file.size:
            try:
                record = self._record(at)
            except SourceError as error:
                self.note("end", f"nothing is read from byte {at:,} on: {error}")
                return
            yield record
            at = record.at + record.length

    def _record(self, at: int) -> Record:
        left = self._file.size - at - 8
        head = self._file.read(at, 4)
        (length,) = U32.unpack(head) if len(head) == 4 else (0,)
        if left < 0 or length > left:
            raise SourceError("the file is cut off inside a record")
        if not 4 <= length <= MAX_HEADER:
            raise SourceError(f"a record claims a header of {length:,} bytes")
        content = self._file.read(at + 4, length + 4)
        (size,) = U32.unpack_from(content, length)
        if size > left - length:
            raise SourceError(f"the file is cut off: a record claims {size:,} bytes, {left - length:,} are left")
        return Record(_fields(content[:length]), at + 8 + length, size)

    def _of_chunk(self, record: Record) -> Iterator[Raw]:
        """The messages of a chunk; one that is damaged is passed over and is a problem."""
        try:
            data = memoryview(self._unpacked(record))
        except SourceError as error:
            self.note(f"chunk {record.at}", f"the chunk at byte {record.at:,} is passed over: {error}")
            return
        at = 0
        while at < len(data):
            try:
                inner = _inner(data, at)
            except SourceError as error:
                self.note(f"chunk {record.at}", f"the rest of the chunk at byte {record.at:,} is passed over: {error}")
                return
            content = data[inner.at : inner.at + inner.length]
            if inner.kind == MESSAGE:
                yield from self._message(inner, content)
            elif inner.kind == CONNECTION:
                self._define(inner, bytes(content))
            at = inner.at + inner.length

    def _unpacked(self, record: Record) -> bytes | memoryview:
        if record.length > MAX_CHUNK:
            raise SourceError(f"a chunk of {record.length:,} bytes is larger than the {MAX_CHUNK:,} read at once")
        compression = record.fields.get("compression", b"none").decode("ascii", "replace")
        self._facts.setdefault("compression", compression)
        return unpack(self._file.read(record.at, record.length), compression, record.number("size"))

    def _message(self, record: Record, data: bytes | memoryview) -> Iterator[Raw]:
        try:
            number, time = record.number("conn"), record.number("time")
        except SourceError as error:
            self.note("message", f"messages are passed over: {error}")
            return
        if number not in self.channels():
            self.note(f"conn {number}", f"messages of connection {number} are passed over: nothing describes it")
            return
        log_ns = (time & 0xFFFFFFFF) * 1_000_000_000 + (time >> 32)
        yield Raw(number, log_ns, log_ns, data)

    def _define(self, record: Record, data: bytes) -> None:
        """Take a connection. The first of each number counts."""
        try:
            number, fields = record.number("conn"), _fields(data)
        except SourceError as error:
            self.note("connection", f"a connection is damaged: {error}")
            return
        if number in self._channels:
            return
        topic = fields.get("topic", record.fields.get("topic", b"")).decode("utf-8", "replace")
        name = fields.get("type", b"").decode("utf-8", "replace")
        self._channels[number] = Channel(topic, name, "ros1", "ros1msg", fields.get("message_definition", b""))

    # -- what there is -------------------------------------------------------------------------------------

    def _read_index(self) -> bool:
        """Take connections and counts from the index; whether it is whole."""
        if not self._index:
            return False
        counts: Counter[int] = Counter()
        for record in self._records(self._index):
            if record.kind == CONNECTION:
                self._define(record, self._file.read(record.at, record.length))
            elif record.kind == CHUNK_INFO:
                data = self._file.read(record.at, record.length)
                for number, count in struct.iter_unpack("<II", data[: len(data) // 8 * 8]):
                    counts[number] += count
            else:
                self.note("index", f"the index is not used: it has a record of kind {record.kind}")
                return False
        if "end" in self._notes or set(counts) - set(self._channels):
            self.note("index", "the index is not used: it is damaged")
            return False
        self._counts = dict.fromkeys(self._channels, 0) | dict(counts)
        return True

    def _look_through(self) -> None:
        """Connections and counts of a bag without an index. A chunk is opened only if its indexes do not tell."""
        counts: Counter[int] = Counter()
        chunk: Record | None = None
        indexed: Counter[int] = Counter()
        for record in self._records(self._begin):
            if record.kind == INDEX and chunk is not None and len(record.fields.get("conn", b"")) == 4:
                indexed[record.number("conn")] += record.length // 12
                continue
            self._count(chunk, indexed, counts)
            chunk, indexed = (record if record.kind == CHUNK else None), Counter()
            if record.kind == CONNECTION:
                self._define(record, self._file.read(record.at, record.length))
            elif record.kind == MESSAGE and len(record.fields.get("conn", b"")) == 4:
                counts[record.number("conn")] += 1
        self._count(chunk, indexed if "end" not in self._notes else Counter(), counts)
        self._counts = dict.fromkeys(self._channels, 0) | dict(counts)

    def _count(self, chunk: Record | None, indexed: Counter[int], counts: Counter[int]) -> None:
        """Add the messages of a chunk; it is read if it has no indexes, or if a connection is new."""
        if chunk is None:
            return
        if indexed and set(indexed) <= set(self._channels):
            counts.update(indexed)
        else:
            counts.update(message.channel for message in self._of_chunk(chunk))


def _inner(data: memoryview, at: int) -> Record:
    """A record inside a chunk."""
    if at + 8 > len(data):
        raise SourceError("it ends inside a record")
    (length,) = U32.unpack_from(data, at)
    if length > len(data) - at - 8:
        raise SourceError("it ends inside a record")
    (size,) = U32.unpack_from(data, at + 4 + length)
    if size > len(data) - at - 8 - length:
        raise SourceError("it ends inside a record")
    return Record(_fields(bytes(data[at + 4 : at + 4 + length])), at + 8 + length, size)


def _fields(header: bytes) -> dict[str, bytes]:
    """The fields of a header; SourceError if it is not a list of `name=value`."""
    fields: dict[str, bytes] = {}
    at = 0
    while at + 4 <= len(header):
        (length,) = U32.unpack_from(header, at)
        name, equals, value = header[at + 4 : at + 4 + length].partition(b"=")
        if not equals or length > len(header) - at - 4:
            raise SourceError("a header is not a list of name=value")
        fields[name.decode("ascii", "replace")] = value
        at += 4 + length
    return fields
