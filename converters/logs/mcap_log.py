"""MCAP files, read from the front: whole chunks of a file without an end are as good as those of a closed one.

The summary at the end is used for counts and for passing over chunks, never for finding data: what it points at
cannot lead anywhere. Little-endian; a record is an opcode (u8), a length (u64) and that many bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from converters.logs.libraries import library
from converters.logs.messages import MAX_NS, Channel, LogFile, Raw
from converters.logs.reading import OpenFile
from converters.logs.unpack import MAX_CHUNK, unpack
from vrl3data.errors import SourceError

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX = 1, 2, 3, 4, 5, 6, 7
CHUNK_INDEX, ATTACHMENT, STATISTICS, METADATA, METADATA_INDEX, DATA_END = 8, 9, 0xB, 0xC, 0xD, 0xF
ATTACHMENT_INDEX = 0xA
LAST_OPCODE = 0xF
PRIVATE = 0x80
"""Opcodes from here on are anybody's; those between the two are reserved."""
HEAD, TIMES, PARTS = struct.Struct("<BQ"), struct.Struct("<HIQQ"), struct.Struct("<QQQII")
MAX_SUMMARY, MAX_SMALL, MAX_METADATA, MAX_NAME = 2**28, 2**24, 2**20, 200
FOOTER_SIZE = HEAD.size + 20


class Record(NamedTuple):
    """Where the content of a record begins, and how long it is."""

    opcode: int
    at: int
    length: int


class McapLog(LogFile):
    kind = "mcap"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = OpenFile(path)
        self._schemas: dict[int, Any] = {}
        self._channels: dict[int, Channel] = {}
        self._facts: dict[str, Any] = {}
        self._inside: dict[int, frozenset[int]] = {}
        """Where a chunk begins -> its channels, as its index says."""
        try:
            head = self._file.read(0, len(MAGIC))
            if head != MAGIC:
                raise SourceError(f"expected an MCAP file (version 0), found one that begins with {head!r}")
            self._known = self._read_summary()
        except SourceError:
            self.close()
            raise

    def channels(self) -> Mapping[int, Channel]:
        if not self._known:
            self._known = True
            self._look_through()
        return self._channels

    def info(self) -> dict[str, Any]:
        self.channels()
        return {"container": "mcap", "bytes": self._file.size, **self._facts}

    def close(self) -> None:
        self._file.close()

    def raw(self, wanted: Collection[int] | None) -> Iterator[Raw]:
        for record in self._records():
            if record.opcode == CHUNK:
                inside = self._inside.get(record.at - HEAD.size)
                if wanted is None or inside is None or not inside.isdisjoint(wanted):
                    yield from self._of_chunk(record)
            elif record.opcode == MESSAGE:
                yield from self._message(self._file.read(record.at, record.length), record.at)
            elif record.opcode in (SCHEMA, CHANNEL):
                self._define(record.opcode, self._file.read(record.at, record.length))

    # -- records -------------------------------------------------------------------------------------------

    def _records(self) -> Iterator[Record]:
        """The records up to the end of the data; a defect ends them and is a problem."""
        at = len(MAGIC)
        while True:
            head = self._file.read(at, HEAD.size)
            if len(head) < HEAD.size:
                self.note("end", f"the file ends at byte {self._file.size:,} without an end record: it was not closed")
                return
            opcode, length = HEAD.unpack(head)
            at += HEAD.size
            if opcode in (DATA_END, FOOTER):
                return
            if not opcode or LAST_OPCODE < opcode < PRIVATE:
                self.note("end", f"nothing is read from byte {at - HEAD.size:,} on: it is no record (opcode {opcode})")
                return
            if length > self._file.size - at:
                left = f"{self._file.size - at:,} are left"
                text = f"the file is cut off: a record at byte {at - HEAD.size:,} claims {length:,} bytes, {left}"
                self.note("end", text)
                return
            yield Record(opcode, at, length)
            at += length

    def _of_chunk(self, record: Record) -> Iterator[Raw]:
        """The messages of a chunk; one that is damaged is passed over and is a problem."""
        try:
            data = memoryview(self._unpacked(record))
        except SourceError as error:
            self.note(f"chunk {record.at}", f"the chunk at byte {record.at:,} is passed over: {error}")
            return
        at = 0
        while at + HEAD.size <= len(data):
            opcode, length = HEAD.unpack_from(data, at)
            at += HEAD.size
            if length > len(data) - at:
                break
            if opcode == MESSAGE:
                yield from self._message(data[at : at + length], record.at)
            elif opcode in (SCHEMA, CHANNEL):
                self._define(opcode, bytes(data[at : at + length]))
            at += length
        else:
            if at == len(data):
                return
        self.note(f"chunk {record.at}", f"the chunk at byte {record.at:,} ends inside a record; that one is lost")

    def _unpacked(self, record: Record) -> bytes | memoryview:
        if record.length > MAX_CHUNK:
            raise SourceError(f"a chunk of {record.length:,} bytes is larger than the {MAX_CHUNK:,} read at once")
        content = memoryview(self._file.read(record.at, record.length))
        try:
            _, _, size, crc, letters = PARTS.unpack_from(content)
            compression = str(content[PARTS.size : PARTS.size + letters], "ascii")
            (length,) = struct.unpack_from("<Q", content, PARTS.size + letters)
        except (struct.error, UnicodeDecodeError) as error:
            raise SourceError("its header is damaged") from error
        self._facts.setdefault("compression", compression or "none")
        begin = PARTS.size + letters + 8
        if length > len(content) - begin:
            raise SourceError(f"it claims {length:,} bytes of records and has {len(content) - begin:,}")
        data = unpack(content[begin : begin + length], compression, size)
        if crc and zlib.crc32(data) != crc:
            raise SourceError("its records do not have their checksum (crc32)")
        return data

    def _message(self, content: bytes | memoryview, at: int) -> Iterator[Raw]:
        if len(content) < TIMES.size:
            self.note(f"message {at}", f"a message at byte {at:,} has {len(content)} bytes, it needs {TIMES.size}")
            return
        channel, _, log_ns, publish_ns = TIMES.unpack_from(content)
        if channel not in self.channels():
            self.note(f"channel {channel}", f"messages of channel {channel} are passed over: nothing describes it")
        elif max(log_ns, publish_ns) > MAX_NS:
            self.note(f"time {channel}", f"{self._channels[channel].topic}: times after the year 2262 are passed over")
        else:
            yield Raw(channel, log_ns, publish_ns, content[TIMES.size :])

    def _define(self, opcode: int, content: bytes) -> None:
        """Take a schema or a channel. The first of each number counts."""
        kind = library("mcap.records").Schema if opcode == SCHEMA else library("mcap.records").Channel
        record = self._parse(kind, content)
        if record is None:
            return
        if opcode == SCHEMA:
            self._schemas.setdefault(record.id, record)
        elif record.id not in self._channels:
            schema = self._schemas.get(record.schema_id)
            name, encoding, data = (schema.name, schema.encoding, schema.data) if schema else ("", "", b"")
            self._channels[record.id] = Channel(record.topic, name, record.message_encoding, encoding, data)

    def _parse(self, kind: Any, content: bytes) -> Any:
        end_of_file = library("mcap.exceptions").EndOfFile
        try:
            return kind.read(library("mcap.data_stream").ReadDataStream(BytesIO(content)))
        except (end_of_file, struct.error, UnicodeDecodeError) as error:
            self.note(f"record {kind.__name__}", f"a record of kind {kind.__name__} is damaged: {error or 'too short'}")
            return None

    # -- what there is -------------------------------------------------------------------------------------

    def _read_summary(self) -> bool:
        """Take channels and counts from the summary; whether it was complete."""
        end = self._file.size - len(MAGIC) - FOOTER_SIZE
        foot = self._file.read(max(0, end), FOOTER_SIZE + len(MAGIC))
        if end < len(MAGIC) or not foot.endswith(MAGIC) or HEAD.unpack_from(foot) != (FOOTER, 20):
            self.note("end", "the file has no end record: it was not closed, or is cut off")
            return False
        start, _, crc = struct.unpack_from("<QQI", foot, HEAD.size)
        if not start:
            return False
        if not len(MAGIC) < start <= end or end - start > MAX_SUMMARY:
            self.note("summary", f"the summary is not used: it claims to begin at byte {start:,}")
            return False
        data = self._file.read(start, end - start)
        if crc and zlib.crc32(foot[: HEAD.size + 16], zlib.crc32(data)) != crc:
            self.note("summary", "the summary is not used: it does not have its checksum (crc32)")
            return False
        return self._take_summary(data)

    def _take_summary(self, data: bytes) -> bool:
        records, at, statistics = library("mcap.records"), 0, None
        while at + HEAD.size <= len(data):
            opcode, length = HEAD.unpack_from(data, at)
            content = data[at + HEAD.size : at + HEAD.size + length]
            at += HEAD.size + length
            if opcode in (SCHEMA, CHANNEL):
                self._define(opcode, content)
            elif opcode == CHUNK_INDEX and (index := self._parse(records.ChunkIndex, content)):
                self._facts.setdefault("compression", index.compression or "none")
                if index.message_index_offsets:
                    self._inside[index.chunk_start_offset] = frozenset(index.message_index_offsets)
            elif opcode == STATISTICS:
                statistics = self._parse(records.Statistics, content)
            elif opcode == ATTACHMENT_INDEX and (attachment := self._parse(records.AttachmentIndex, content)):
                self._facts.setdefault("attachments", []).append(attachment.name)
            elif opcode == METADATA_INDEX and (place := self._parse(records.MetadataIndex, content)):
                self._take_metadata(place.offset)
        self._read_header()
        if statistics is None or set(statistics.channel_message_counts) - set(self._channels):
            return False
        self._facts["messages"] = statistics.message_count
        self._counts = dict.fromkeys(self._channels, 0) | dict(statistics.channel_message_counts)
        return bool(self._channels) or not statistics.message_count

    def _take_metadata(self, at: int) -> None:
        """A record of names and texts; several of one name are kept together."""
        head = self._file.read(min(at, self._file.size), HEAD.size)
        opcode, length = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
        if opcode != METADATA or length > MAX_METADATA:
            self.note(f"metadata {at}", f"the metadata at byte {at:,} is passed over")
            return
        found = self._parse(library("mcap.records").Metadata, self._file.read(at + HEAD.size, length))
        if found is not None:
            self._facts.setdefault("metadata", {}).setdefault(found.name, {}).update(found.metadata)

    def _read_header(self) -> None:
        for record in self._records():
            if record.opcode == HEADER and record.length <= MAX_SMALL:
                header = self._parse(library("mcap.records").Header, self._file.read(record.at, record.length))
                if header:
                    self._facts.update(profile=header.profile, library=header.library)
            return

    def _look_through(self) -> None:
        """Channels and counts of a file without a summary. A chunk is opened only if its indexes do not tell."""
        self._facts.pop("attachments", None)
        self._read_header()
        counts: Counter[int] = Counter()
        chunk: Record | None = None
        indexed: Counter[int] = Counter()
        for record in self._records():
            if record.opcode == MESSAGE_INDEX and chunk is not None and record.length >= 6:
                number, size = struct.unpack("<HI", self._file.read(record.at, 6))
                indexed[number] += size // 16
                continue
            self._count(chunk, indexed, counts)
            chunk, indexed = (record if record.opcode == CHUNK else None), Counter()
            if record.opcode == MESSAGE and record.length >= 2:
                counts[struct.unpack("<H", self._file.read(record.at, 2))[0]] += 1
            elif record.opcode in (SCHEMA, CHANNEL) and record.length <= MAX_SMALL:
                self._define(record.opcode, self._file.read(record.at, record.length))
            elif record.opcode == METADATA:
                self._take_metadata(record.at - HEAD.size)
            elif record.opcode == ATTACHMENT:
                self._facts["attachments"] = [*self._facts.get("attachments", ()), self._attachment(record)]
        self._count(chunk, indexed if "end" not in self._notes else Counter(), counts)
        self._counts = dict.fromkeys(self._channels, 0) | dict(counts)

    def _attachment(self, record: Record) -> str:
        """The name of an attachment, which follows two times."""
        head = self._file.read(record.at, min(record.length, 20 + MAX_NAME))
        length = struct.unpack_from("<I", head, 16)[0] if len(head) >= 20 else 0
        return head[20 : 20 + min(length, MAX_NAME)].decode("utf-8", "replace")

    def _count(self, chunk: Record | None, indexed: Counter[int], counts: Counter[int]) -> None:
        """Add the messages of a chunk; it is read if it has no indexes, or if a channel is new."""
        if chunk is None:
            return
        if indexed and set(indexed) <= set(self._channels):
            self._inside[chunk.at - HEAD.size] = frozenset(indexed)
            counts.update(indexed)
        else:
            counts.update(message.channel for message in self._of_chunk(chunk))
