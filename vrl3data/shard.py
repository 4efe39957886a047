"""The bytes of a shard: ustar headers, npy headers, commit records, and their scan (FORMAT.md 2, 5, 6).

Only this file knows them. Reading and writing of the same thing stand side by side.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash

from vrl3data.codecs import CODECS
from vrl3data.errors import DamagedError, FormatError
from vrl3data.schema import SPLIT, Array, Schema

BLOCK = 512
END = bytes(2 * BLOCK)
HEAD_MEMBER = "__meta__"
COMMIT_MEMBER = "meta.json"
MAX_MEMBER = 8 * 1024**3 - 1
MAX_NAME = 100
KEY_DIGITS = 9
NPY_HEADER = 128
FORMAT = {"major": 1, "minor": 0}
LINKED = "shards:linked"
KNOWN_REQUIREMENTS = (*(f"codec:{name}" for name in CODECS), "rows:stream", LINKED)
PART = ".part"
FILE_NAME = re.compile(r"([a-z0-9_]+)-([0-9]{6})\.tar(\.part)?")

# The keys of meta.json in their order (FORMAT.md 6); `members` and those after it are the writer's seal.
_BEFORE = {"id": str, "name": str, "split": str, "source": str, "source_sha256": str, "task": str, "subsets": str,
           "absent": str, "origin": str}  # fmt: skip
_OF_KIND: dict[str, dict[str, type]] = {
    "episodes": {"length": int, "final_observation": int, "terminated": int, "truncated": int, "success": int,
                 "start_time_ns": int},
    "images": {"label": int, "class_name": str, "height": int, "width": int},
}  # fmt: skip
_STREAMS: dict[str, type] = {"streams": str}
_AFTER = {"psnr": float, "max_error": float, "source_meta": str, "digest": str}
_SEAL_KEYS = {"members": str, "sizes": str, "xxh3_128": str, "meta_xxh3_128": str}
_RANGES = {"length": (1, 2**62), "final_observation": (0, 1), "terminated": (-1, 1), "truncated": (-1, 1),
           "success": (-1, 1), "label": (-1, 2**62), "height": (1, 2**31), "width": (1, 2**31)}  # fmt: skip

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


def meta_keys(kind: str, streams: bool = False) -> dict[str, type]:
    """The keys of meta.json up to the seal, in order, with their types. `streams`: the schema has clocks."""
    return {**_BEFORE, **_OF_KIND[kind], **(_STREAMS if streams else {}), **_AFTER}


def check_meta(meta: Mapping[str, Any], kind: str) -> None:
    """DamagedError unless meta.json has its keys, with values of their types and ranges. Further keys are allowed."""
    for key, wanted in {**meta_keys(kind), **_SEAL_KEYS}.items():
        value = meta.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (isinstance(value, str) if wanted is str else number and (wanted is float or isinstance(value, int))):
            raise DamagedError(f"meta.json: expected {wanted.__name__} for {key!r}, found {value!r}")
        low, high = _RANGES.get(key, (None, None))
        if low is not None and not low <= value <= high:  # type: ignore[operator]
            raise DamagedError(f"meta.json: {key} = {value!r} is not allowed")
    if not len(meta["members"].split(",")) == len(meta["sizes"].split(",")) == len(meta["xxh3_128"].split(",")):
        raise DamagedError("meta.json: members, sizes and hashes do not have the same number")
    if not SPLIT.fullmatch(meta["split"]):  # it becomes the name of a file
        raise DamagedError(f"meta.json: split {meta['split']!r} is not a name")
    if not all(re.fullmatch("[0-9]{1,10}", size) and int(size) <= MAX_MEMBER for size in meta["sizes"].split(",")):
        raise DamagedError(f"meta.json: sizes {meta['sizes'][:40]!r} are not those of members")


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


@lru_cache(maxsize=4096)  # reading a window parses one; the headers of a dataset are few, or differ by length only
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
    count = math.prod(shape)
    if NPY_HEADER + count * np.dtype(dtype).itemsize != len(payload):
        raise DamagedError(f"npy header promises shape {shape} of {dtype}, the member has {len(payload)} bytes")
    return np.frombuffer(payload, np.dtype(dtype).newbyteorder("<"), count, NPY_HEADER).reshape(shape)


def head_bytes(schema: Schema, split: str, shard: int, facts: Mapping[str, Any]) -> bytes:
    """The content of `__meta__` (FORMAT.md 3). `facts`: dataset_id, provenance, name, license, description."""
    head = {
        **facts,
        "format": FORMAT,
        "requires": schema.requires(),
        "kind": schema.kind,
        "split": split,
        "shard": shard,
        "schema": schema.to_json(),
    }
    return sealed(dumps(head))


def check_head(head: Any) -> dict[str, Any]:
    """FormatError for what this version cannot read; used for `__meta__` and for dataset.json."""
    if not isinstance(head, dict) or not isinstance(head.get("format"), dict):
        raise FormatError("this is not the head of a vrl3data dataset: 'format' is missing")
    major = head["format"].get("major")
    if major != FORMAT["major"]:
        raise FormatError(f"format version {major} is not known to this version, which reads {FORMAT['major']}")
    if head.get("kind") not in ("episodes", "images"):
        raise FormatError(f"kind {head.get('kind')!r} is not known to this version")
    if not isinstance(head.get("requires", []), list):
        raise FormatError(f"expected a list for 'requires', found {head['requires']!r}")
    for requirement in head.get("requires", []):
        if requirement not in KNOWN_REQUIREMENTS:
            raise FormatError(f"the dataset requires {requirement!r}, which this version does not know")
    return head


def check_shard_head(head: Any) -> dict[str, Any]:
    """`check_head`, and what `__meta__` says of its shard."""
    checked = check_head(head)
    wanted = {"dataset_id": str, "split": str, "shard": int, "schema": dict, "provenance": dict}
    for key, kind in wanted.items():
        if not isinstance(checked.get(key), kind):
            raise FormatError(f"{HEAD_MEMBER}: expected {kind.__name__} for {key!r}, found {checked.get(key)!r}")
    if not SPLIT.fullmatch(checked["split"]):
        raise FormatError(f"{HEAD_MEMBER}: split {checked['split']!r} is not a name")
    return checked


def commit_bytes(meta: Mapping[str, Any]) -> bytes:
    """meta.json: the keys in the order given, then the hash of it all (FORMAT.md 6)."""
    return sealed(json.dumps(dict(meta), separators=(",", ":"), ensure_ascii=True, allow_nan=False))


def parse_commit(payload: bytes) -> dict[str, Any]:
    """DamagedError unless every byte is as `commit_bytes` wrote it."""
    return unsealed(payload, "the commit record meta.json")


def sealed(text: str) -> bytes:
    """A JSON object with the hash of all before it as its last key."""
    body = text[:-1].encode("ascii")
    return body + b',"meta_xxh3_128":"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}'


def unsealed(payload: bytes, what: str) -> dict[str, Any]:
    tail = _SEAL.search(payload)
    if not tail or xxhash.xxh3_128_hexdigest(payload[: tail.start()]).encode() != tail[1]:
        raise DamagedError(f"{what} is not whole: its hash does not fit")
    try:
        value: dict[str, Any] = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{what} is not JSON: {error}") from error
    return value


Places = dict[str, tuple[int, int]]
"""Member -> offset and size of its payload in the shard."""


@dataclass(frozen=True)
class Entry:
    """One sample in a shard: where its members lie (offset and size of the payload) and its commit record."""

    key: int
    members: Places
    meta: dict[str, Any]

    def hashes(self) -> dict[str, str]:
        return dict(zip(self.meta["members"].split(","), self.meta["xxh3_128"].split(","), strict=True))


def sample_name(key: int, member: str) -> str:
    return f"{key:0{KEY_DIGITS}d}.{member}"
