"""The headers of a tar file, read without unpacking: where each member lies. Nothing is followed, nothing extracted.

Python's tarfile keeps an object of a kilobyte for every member and reads on at links; here a member is three numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from vrl3data.errors import SourceError, locate

BLOCK = 512
AHEAD = 4096
"""Read at once: the headers of small members lie close together."""
MAX_HEADER = 1024**2
"""Of an extended header: names are short."""
REGULAR, LINKS = (b"0", b"\0", b"7"), (b"1", b"2")
ZERO = bytes(BLOCK)


class Member(NamedTuple):
    """A member; `problem` says why its content may not be used."""

    name: str
    offset: int
    size: int
    problem: str = ""


class Blocks:
    """Reads of a range [start, end) of an open file."""

    def __init__(self, file: int, start: int, end: int) -> None:
        self.file, self.start, self.end = file, start, end
        self._at, self._data = start, b""

    def read(self, offset: int, size: int) -> bytes:
        """Fewer bytes if the range ends before."""
        size = min(size, self.end - offset)
        if size <= 0:
            return b""
        if not self._at <= offset <= offset + size <= self._at + len(self._data):
            if size > AHEAD:
                return os.pread(self.file, size, offset)
            self._at, self._data = offset, os.pread(self.file, min(AHEAD, self.end - offset), offset)
        return self._data[offset - self._at : offset - self._at + size]


def members(blocks: Blocks) -> Iterator[Member]:
    """Regular files, and links and devices with a `problem`, in order. SourceError where the archive is broken."""
    at, long_name, long_size, last = blocks.start, "", -1, ""
    while True:
        header = blocks.read(at, BLOCK)
        if header == ZERO:
            return
        with locate(offset=at):
            _check(header, last)
            size, kind = _number(header[124:136]), header[156:157]
            if kind in (b"L", b"K", b"x", b"g", b"X"):
                if size > MAX_HEADER:
                    raise SourceError(f"an extended header of {size} bytes; the archive is not what it says it is")
                text = blocks.read(at + BLOCK, size)
                if kind == b"L":
                    long_name = _text(text.split(b"\0")[0])
                elif kind in (b"x", b"X"):
                    path, claimed = _pax(text)
                    long_name, long_size = path or long_name, claimed if claimed >= 0 else long_size
            else:
                size = long_size if long_size >= 0 else size
                last = long_name or _name(header)
                if at + BLOCK + size > blocks.end:
                    raise SourceError(
                        f"the archive is cut off in {last!r}: {size} bytes should follow, "
                        f"{blocks.end - at - BLOCK} do; get the file anew"
                    )
                if kind in REGULAR and not last.endswith("/"):
                    yield Member(last.removeprefix("./"), at + BLOCK, size, _unsafe(last))
                elif kind != b"5" and not last.endswith("/"):
                    what = "a link, which is not followed" if kind in LINKS else "not a regular file"
                    yield Member(last.removeprefix("./"), at + BLOCK, 0, f"{last!r} is {what}; leave it out")
                    size = 0 if kind in LINKS else size
                long_name, long_size = "", -1
        at += BLOCK + -(-size // BLOCK) * BLOCK


def _check(header: bytes, last: str) -> None:
    after = f" after {last!r}" if last else ""
    if len(header) < BLOCK:
        raise SourceError(f"the archive ends{after} without its end mark: it is cut off; get the file anew")
    try:
        stated = _number(header[148:156])
    except SourceError:
        stated = -1
    if sum(header) - sum(header[148:156]) + 8 * 32 != stated:
        raise SourceError(f"expected a tar header{after}, found {header[:12]!r}; the archive is broken from here on")


def _number(field: bytes) -> int:
    """Octal, or binary if the first bit is set."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field, "big", signed=True) + (1 << 8 * len(field) - 1 if field[0] == 0x80 else 0)
    else:
        try:
            value = int(field.split(b"\0")[0].strip() or b"0", 8)
        except ValueError as error:
            raise SourceError(f"expected a number in a tar header, found {field!r}") from error
    if value < 0:
        raise SourceError(f"a size below 0 in a tar header: {field!r}")
    return value


def _name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0")[0])
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return f"{_text(prefix)}/{name}" if prefix else name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(text: bytes) -> tuple[str, int]:
    """(path, size) of a pax header: lines of `length key=value`; empty and -1 if it does not say."""
    path, size, at = "", -1, 0
    while at < len(text) and text[at : at + 1] != b"\0":
        digits, space, _ = text[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or not 0 < int(digits) <= len(text) - at:
            raise SourceError("an extended header of the archive is broken")
        key, _, value = text[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if key == b"path":
            path = _text(value)
        elif key == b"size":
            size = _pax_size(value)
        elif key.startswith(b"GNU.sparse"):
            raise SourceError("a sparse file in an archive is not read; pack it without --sparse")
        at += int(digits)
    return path, size


def _pax_size(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise SourceError(f"a size of {value[:20]!r} bytes in an extended header of the archive")
    return int(value)


def _unsafe(name: str) -> str:
    """Why a name may not become that of a sample."""
    if name.startswith("/") or ".." in name.split("/"):
        return f"the name {name!r} leads out of the archive; rename the member"
    if not name.isprintable() or "\\" in name:
        return f"the name {name!r} has characters that no picture's name needs; rename the member"
    return ""
