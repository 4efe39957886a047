"""TFRecord files: where the records are, and one of them, with its checksum. Little-endian throughout.

A record is: length (u64), masked crc32c of those 8 bytes (u32), data, masked crc32c of the data (u32). There is no
index and no mark between records, so behind a length that is wrong nothing can be found any more.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from vrl3data.errors import MissingExtra, SourceError, locate

HEADER, FOOTER = 12, 4
GZIP = b"\x1f\x8b"
CHECKSUM = "its checksum (crc32c)"
MAX_LENGTH = 2**31
"""A message of protobuf is smaller."""


@dataclass(frozen=True, slots=True)
class Record:
    """Where the data of a record begins, how long it is, and what its checksum has to be."""

    offset: int
    length: int
    crc: int


def masked_crc32c(data: bytes) -> int:
    """crc32c, rotated and shifted, so that a checksum of data that holds checksums stays a good one."""
    crc: int = _crc32c()(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path: Path) -> tuple[list[Record], SourceError | None]:
    """All records by their headers, the data passed over; and what ended the search early, if something did."""
    records: list[Record] = []
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            at = 0
            head = os.pread(file.fileno(), HEADER, 0)
            while at < size:
                error = _check_head(head, at, size, len(records))
                if error is not None:
                    return records, error
                (length,) = struct.unpack("<Q", head[:8])
                behind = os.pread(file.fileno(), FOOTER + HEADER, at + HEADER + length)
                records.append(Record(at + HEADER, length, int.from_bytes(behind[:FOOTER], "little")))
                at += HEADER + length + FOOTER
                head = behind[FOOTER:]
    except OSError as error:
        return records, SourceError(f"cannot read: {error.strerror or error}")
    return records, None


def read(path: Path, record: Record) -> bytes:
    """The data of one record; SourceError if it is not what its checksum says."""
    with locate(offset=record.offset):
        if record.length >= MAX_LENGTH:
            raise SourceError(f"a record of {record.length} bytes is larger than a message can be (2 GiB)")
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(record.offset)
                data = file.read(record.length)
                while len(data) < record.length and (more := file.read(record.length - len(data))):
                    data += more  # one call may give less than was asked for: 2 GB at most
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror or error}") from error
        if len(data) != record.length:
            raise SourceError(f"expected a record of {record.length} bytes, found {len(data)}; the file was changed")
        if masked_crc32c(data) != record.crc:
            raise SourceError(f"the data of the record does not have {CHECKSUM}; the file is damaged here")
        return data


def _check_head(head: bytes, at: int, size: int, count: int) -> SourceError | None:
    if len(head) < HEADER and count:
        return _error(f"the file ends inside the header of a record, {size - at} bytes after its begin", at, count)
    length, crc = struct.unpack("<QI", head.ljust(HEADER))
    if len(head) < HEADER or masked_crc32c(head[:8]) != crc:
        return _error(_why_not(head) if not count else f"the length of a record does not have {CHECKSUM}", at, count)
    if length > size - at - HEADER - FOOTER:
        left = max(0, size - at - HEADER)
        return _error(f"a record claims {length} bytes and a checksum, {left} are left in the file", at, count)
    return None


def _why_not(head: bytes) -> str:
    if head.startswith(GZIP):
        return "compressed with gzip, so its records cannot be found; unpack it first (gunzip)"
    return f"not a TFRecord file: its first 12 bytes are not a length with {CHECKSUM}"


def _error(text: str, offset: int, count: int) -> SourceError:
    found = f"; {count} records before it were found, none after it can be" if count else ""
    try:
        with locate(offset=offset):
            raise SourceError(text + found)
    except SourceError as error:
        return error


@cache
def _crc32c() -> Any:
    try:
        return import_module("google_crc32c").value
    except ImportError as error:
        raise MissingExtra("RLDS sets need the extra rlds: pip install 'vrl3data[rlds]'") from error
