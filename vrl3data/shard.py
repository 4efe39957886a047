"""The bytes of a shard: ustar headers, npy headers, commit records, and their scan (FORMAT.md 2, 5, 6).

Only this file knows them. Reading and writing of the same thing stand side by side.
"""

from __future__ import annotations

import ast
import json
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vrl3data.errors import DamagedError, FormatError, locate
from vrl3data.schema import Array, Schema

BLOCK = 512
END = bytes(2 * BLOCK)
HEAD_MEMBER = "__meta__"
COMMIT_MEMBER = "meta.json"
MAX_MEMBER = 8 * 1024**3 - 1
MAX_NAME = 100
KEY_DIGITS = 9
NPY_HEADER = 128
FORMAT = {"major": 1, "minor": 0}
KNOWN_REQUIREMENTS = ("codec:jpeg", "codec:png")
PART = ".part"

_SEAL = re.compile(rb',"meta_xxh3_128":"([0-9a-f]{32})"\}$')
# The parts of a header that are the same for every member: mode, uid, gid; mtime; type, link name, magic, the rest.
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"\0" + b"0" * 11 + b"\0"
_AFTER_CHECKSUM = b"\0 " + b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
_FIXED_SUM = sum(_BEFORE_SIZE + _AFTER_SIZE) + sum(_AFTER_CHECKSUM[2:]) + 8 * ord(" ")

_NPY_TEXT = re.compile(rb"\{'descr': '([<|][a-z][0-9]+)', 'fortran_order': False, 'shape': (\([0-9, ]*\)), \} *\n")


def dumps(value: Any) -> str:
    """Our one way to write JSON that is hashed: ASCII, sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def member_header(name: str, size: int) -> bytes:
    """The one valid ustar header for a member (FORMAT.md 2)."""
    encoded, digits = name.encode("ascii"), b"%011o" % size
    assert 0 < len(encoded) <= MAX_NAME and 0 <= size <= MAX_MEMBER, (name, size)
    checksum = b"%06o" % (_FIXED_SUM + sum(encoded) + sum(digits))
    return encoded.ljust(100, b"\0") + _BEFORE_SIZE + digits + _AFTER_SIZE + checksum + _AFTER_CHECKSUM


def parse_member_header(block: bytes) -> tuple[str, int]:
    """(name, size). DamagedError if this is not, byte for byte, a header that `member_header` makes."""
    name, size = block[:100].rstrip(b"\0"), block[124:135]
    if name and name.isascii() and re.fullmatch(rb"[0-7]{11}", size):
        text, count = name.decode("ascii"), int(size, 8)
        if member_header(text, count) == block:
            return text, count
    raise DamagedError("expected a tar header as vrl3data writes it, found other bytes")


def npy_header(dtype: str, shape: Sequence[int]) -> bytes:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {tuple(shape)!r}, }}".ljust(117) + "\n"
    assert len(text) == 118, f"too many dimensions for the header: {shape}"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.encode("ascii")


def parse_npy_header(block: bytes) -> tuple[str, tuple[int, ...]]:
    """(dtype name, shape). DamagedError for anything but the 128 bytes that `npy_header` makes."""
    match = _NPY_TEXT.fullmatch(block[10:NPY_HEADER])
    if match:
        try:
            dtype, shape = np.dtype(match[1].decode()).name, ast.literal_eval(match[2].decode())
        except (TypeError, SyntaxError) as error:
            raise DamagedError(f"unknown npy header: {error}") from error
        if isinstance(shape, tuple) and npy_header(dtype, shape) == block[:NPY_HEADER]:
            return dtype, shape
    raise DamagedError("expected the npy header of FORMAT.md 5, found other bytes")


def npy_bytes(array: Array) -> bytes:
    """A whole .npy member."""
    return npy_header(array.dtype.name, array.shape) + array.tobytes()


def npy_view(payload: memoryview) -> Array:
    """The array of a .npy member, read-only and without a copy."""
    dtype, shape = parse_npy_header(bytes(payload[:NPY_HEADER]))
    count = int(np.prod(shape, dtype=np.int64))
    if NPY_HEADER + count * np.dtype(dtype).itemsize != len(payload):
        raise DamagedError(f"npy header promises shape {shape} of {dtype}, the member has {len(payload)} bytes")
    return np.frombuffer(payload, np.dtype(dtype).newbyteorder("<"), count, NPY_HEADER).reshape(shape)


def head_bytes(schema: Schema, dataset_id: str, split: str, shard: int, provenance: Mapping[str, Any]) -> bytes:
    """The content of `__meta__` (FORMAT.md 3)."""
    head = {
        "format": FORMAT,
        "requires": schema.requires(),
        "kind": schema.kind,
        "dataset_id": dataset_id,
        "split": split,
        "shard": shard,
        "schema": schema.to_json(),
        "provenance": dict(provenance),
    }
    return _sealed(dumps(head))


def check_head(head: Any) -> dict[str, Any]:
    """FormatError for what this version cannot read; used for `__meta__` and for dataset.json."""
    if not isinstance(head, dict) or not isinstance(head.get("format"), dict):
        raise FormatError("this is not the head of a vrl3data dataset: 'format' is missing")
    major = head["format"].get("major")
    if major != FORMAT["major"]:
        raise FormatError(f"format version {major} is not known to this version, which reads {FORMAT['major']}")
    if head.get("kind") not in ("episodes", "images"):
        raise FormatError(f"kind {head.get('kind')!r} is not known to this version")
    for requirement in head.get("requires", []):
        if requirement not in KNOWN_REQUIREMENTS:
            raise FormatError(f"the dataset requires {requirement!r}, which this version does not know")
    return head


def commit_bytes(meta: Mapping[str, Any]) -> bytes:
    """meta.json: the keys in the order given, then the hash of it all (FORMAT.md 6)."""
    return _sealed(json.dumps(dict(meta), separators=(",", ":"), ensure_ascii=True, allow_nan=False))


def parse_commit(payload: bytes) -> dict[str, Any]:
    """DamagedError unless every byte is as `commit_bytes` wrote it."""
    return _unsealed(payload, "the commit record meta.json")


def _sealed(text: str) -> bytes:
    """A JSON object with the hash of all before it as its last key."""
    body = text[:-1].encode("ascii")
    return body + b',"meta_xxh3_128":"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}'


def _unsealed(payload: bytes, what: str) -> dict[str, Any]:
    tail = _SEAL.search(payload)
    if not tail or xxhash.xxh3_128_hexdigest(payload[: tail.start()]).encode() != tail[1]:
        raise DamagedError(f"{what} is not whole: its hash does not fit")
    value: dict[str, Any] = json.loads(payload)
    return value


@dataclass(frozen=True)
class Entry:
    """One sample in a shard: where its members lie (offset and size of the payload) and its commit record."""

    key: int
    members: dict[str, tuple[int, int]]
    meta: dict[str, Any]

    def hashes(self) -> dict[str, str]:
        return dict(zip(self.meta["members"].split(","), self.meta["xxh3_128"].split(","), strict=True))


@dataclass
class Scan:
    """What a walk over the headers of one shard found. `end` is where the last whole sample ends."""

    head: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    end: int = 0
    torn_bytes: int = 0
    closed: bool = False


def sample_name(key: int, member: str) -> str:
    return f"{key:0{KEY_DIGITS}d}.{member}"


def map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DamagedError("the shard is empty") from error


def scan(path: Path) -> Scan:
    """Walk a shard without looking at payloads other than commit records.

    A torn tail is accepted in a `.part` only; anything else that FORMAT.md does not allow is a DamagedError.
    """
    part = path.name.endswith(PART)
    with locate(shard=path.name), map_file(path) as data:
        return _Walk(data, part).run()


class _Walk:
    """The state of one scan."""

    def __init__(self, data: mmap.mmap, part: bool) -> None:
        self.data, self.part, self.size = data, part, len(data)
        self.result: Scan | None = None
        self.members: dict[str, tuple[int, int]] = {}
        self.key = -1

    def run(self) -> Scan:
        offset = 0
        while offset < self.size:
            block = self.data[offset : offset + BLOCK]
            if not any(block):
                return self._finish(offset)
            if len(block) < BLOCK:
                return self._torn()
            if self._unwritten(offset + BLOCK):
                return self._torn()
            with locate(offset=offset):
                name, size = parse_member_header(block)
                start = offset + BLOCK
                if start + padded(size) > self.size:
                    return self._torn()
                if name.endswith((COMMIT_MEMBER, HEAD_MEMBER)) and self._unwritten(start + size - 1):
                    return self._torn()
                self._member(name, start, size)
            offset = start + padded(size)
        return self._torn()

    def _unwritten(self, offset: int) -> bool:
        """Whether a crash left a `.part` with nothing but zeros from here on. Whole members never end so."""
        return self.part and (offset >= self.size or (not self.data[offset] and not any(self.data[offset:])))

    def _member(self, name: str, start: int, size: int) -> None:
        if self.result is None:
            if name != HEAD_MEMBER:
                raise DamagedError(f"expected the member {HEAD_MEMBER} first, found {name!r}")
            self.result = Scan(check_head(_unsealed(self.data[start : start + size], name)), end=start + padded(size))
            return
        key, dot, member = name.partition(".")
        if not (dot and key.isdigit() and len(key) == KEY_DIGITS):
            raise DamagedError(f"member {name!r} belongs to no sample")
        if self.members and int(key) != self.key:
            raise DamagedError(f"sample {self.key:09d} has no {COMMIT_MEMBER} before {name!r}")
        self.key = int(key)
        self.members[member] = (start, size)
        if member == COMMIT_MEMBER:
            self._commit(start, size)

    def _commit(self, start: int, size: int) -> None:
        assert self.result is not None
        meta = parse_commit(self.data[start : start + size])
        before = {name: place for name, place in self.members.items() if name != COMMIT_MEMBER}
        sizes = [str(place[1]) for place in before.values()]
        if meta["members"].split(",") != list(before) or meta["sizes"].split(",") != sizes:
            raise DamagedError(f"sample {self.key:09d}: the members are not those of its commit record")
        last = self.result.entries[-1].key if self.result.entries else None
        if last is not None and self.key != last + 1:
            raise DamagedError(f"expected sample {last + 1:09d}, found {self.key:09d}")
        self.result.entries.append(Entry(self.key, self.members, meta))
        self.result.end = start + padded(size)
        self.members = {}

    def _finish(self, offset: int) -> Scan:
        """Zeros: the end of a shard, or blocks that a crash left unwritten in a `.part`."""
        rest = self.data[offset:]
        if self.result is None:
            return self._torn()
        if rest == END and not self.members:
            self.result.closed = True
            return self.result
        if self.part and not any(rest):
            return self._torn()
        raise DamagedError(
            "expected two zero blocks at the end of the shard",
        ) from None

    def _torn(self) -> Scan:
        if self.part:
            result = self.result or Scan({})
            result.torn_bytes = self.size - result.end
            return result
        raise DamagedError("the shard is cut off: it has no end mark")
