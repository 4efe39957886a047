"""tf.train.Example messages without TensorFlow: names -> lists of bytes, floats or integers, as views of the data.

An Example is {1: Features}, Features {1: entry}*, an entry {1: name, 2: Feature}, a Feature one of {1: BytesList,
2: FloatList, 3: Int64List}, and a list {1: value}*, numbers packed or one by one. Nothing is copied before it is asked
for, so a message of hundreds of megabytes takes its own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

BYTES, FLOATS, INTS = 1, 2, 3
MAX_ITEMS = 2_000_000
"""Pieces of a list that are not packed, and entries of a message: each is a Python object."""
BLOCK = 1 << 20
"""Bytes of packed integers that are unpacked at a time."""


class Pieces(Sequence[bytes]):
    """A list of byte strings that are copied out of the message when they are asked for."""

    def __init__(self, views: Sequence[memoryview | bytes]) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Pieces: ...
    def __getitem__(self, index: int | slice) -> bytes | Pieces:
        return Pieces(self.views[index]) if isinstance(index, slice) else bytes(self.views[index])


@dataclass(frozen=True)
class Feature:
    """One list of an Example. `pieces` are byte strings, or what holds numbers: packed runs or single ones."""

    kind: int
    pieces: tuple[memoryview, ...]

    def strings(self) -> Pieces:
        self._expect(BYTES)
        return Pieces(self.pieces)

    def floats(self) -> Array:
        """float32."""
        self._expect(FLOATS)
        if any(len(piece) % 4 for piece in self.pieces):
            raise SourceError("expected floats of 4 bytes, found a list that ends inside one")
        arrays = [np.frombuffer(piece, "<f4") for piece in self.pieces]
        return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, "<f4"), *arrays])

    def ints(self, dtype: str = "int64") -> Array:
        """As `dtype`; SourceError if a value does not fit. uint64 are stored as int64 of the same bits."""
        self._expect(INTS)
        blocks = [_fitting(block, dtype) for piece in self.pieces for block in _varints(piece)]
        return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, dtype), *blocks])

    def _expect(self, kind: int) -> None:
        if self.pieces and self.kind != kind:
            names = {0: "nothing", BYTES: "bytes", FLOATS: "floats", INTS: "integers"}
            raise SourceError(f"expected a list of {names[kind]}, found one of {names[self.kind]}")


def parse(data: bytes | memoryview) -> dict[str, Feature]:
    """The lists of an Example by name. SourceError, with the place in the message, if it is not one."""
    view = memoryview(data)
    found: dict[str, Feature] = {}
    for number, features in _fields(view, 0):
        if number == 2:
            raise SourceError("expected a tf.train.Example, found what may be a SequenceExample, which RLDS has not")
        if number != 1 or not isinstance(features, memoryview):
            raise SourceError("not a tf.train.Example message")
        for _, entry in _fields(features, _place(view, features)):
            if not isinstance(entry, memoryview):
                raise SourceError("not a tf.train.Example message: an entry without a name")
            name, feature = _entry(view, entry)
            found[name] = feature
    return found


def _entry(whole: memoryview, entry: memoryview) -> tuple[str, Feature]:
    name, value = "", memoryview(b"")
    for number, part in _fields(entry, _place(whole, entry)):
        if isinstance(part, memoryview) and number == 1:
            try:
                name = bytes(part).decode()
            except UnicodeDecodeError as error:
                raise SourceError(f"the name of a feature is not UTF-8: {bytes(part[:40])!r}") from error
        elif isinstance(part, memoryview) and number == 2:
            value = part
    with locate(feature=name):
        kind, pieces = 0, []
        for kind, items in _fields(value, _place(whole, value)):
            if kind not in (BYTES, FLOATS, INTS) or not isinstance(items, memoryview):
                raise SourceError(f"expected bytes, floats or integers, found field {kind} of a message")
            for _, piece in _fields(items, _place(whole, items)):
                # A number that stands alone; a varint was read already and is written again, as a packed run of one.
                pieces.append(piece if isinstance(piece, memoryview) else memoryview(_varint_bytes(piece)))
        return name, Feature(kind, tuple(pieces))


def _place(whole: memoryview, part: memoryview) -> int:
    """Where a part lies in the message."""
    if not part.nbytes:
        return 0
    begin = np.frombuffer(whole, np.uint8).__array_interface__["data"][0]
    return int(np.frombuffer(part, np.uint8).__array_interface__["data"][0] - begin)


def _fields(view: memoryview, place: int) -> Iterator[tuple[int, memoryview | int]]:
    """(number, bytes or integer) of each field of a message that lies at `place` of the whole."""
    at = count = 0
    while at < len(view):
        with locate(offset=place + at):
            tag, at = _varint(view, at)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = _varint(view, at)
                yield number, value
            else:
                size = {1: 8, 5: 4}.get(wire, -1)
                if wire == 2:
                    size, at = _varint(view, at)
                if size < 0:
                    raise SourceError(f"not a tf.train.Example message: wire type {wire}")
                if size > len(view) - at:
                    raise SourceError(f"a part of the message claims {size} bytes, {len(view) - at} are left")
                yield number, view[at : at + size]
                at += size
            count += 1
            if count > MAX_ITEMS:
                raise SourceError(f"a list of more than {MAX_ITEMS} single entries")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise SourceError("the message ends inside a number")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise SourceError("a number of more than 10 bytes")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _varints(packed: memoryview) -> Iterator[Array]:
    """int64 blocks of packed numbers."""
    whole = np.frombuffer(packed, np.uint8)
    if len(whole) and whole[-1] > 127:
        raise SourceError("a list of integers ends inside a number")
    start = 0
    while start < len(whole):
        stop = min(start + BLOCK, len(whole))
        while whole[stop - 1] > 127:  # a block ends where a number does
            stop += 1
            if stop - start > BLOCK + 10:
                raise SourceError("a number of more than 10 bytes")
        yield _unpacked(whole[start:stop])
        start = stop


def _unpacked(block: Array) -> Array:
    ends = np.flatnonzero(block < 128)
    if len(ends) == len(block):
        return block.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 10:
        raise SourceError("a number of more than 10 bytes")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(sizes.max())):
        there = np.flatnonzero(sizes > place)
        bits = (block[starts[there] + place] & 127).astype(np.uint64)
        values[there] |= bits << np.uint64(7 * place)
    return values.view(np.int64)


def _fitting(values: Array, dtype: str) -> Array:
    if dtype in ("int64", "uint64"):
        return values.view(dtype)
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if len(values) and (values.min() < low or values.max() > high):
        raise SourceError(f"expected integers that fit {dtype}, found {values.min()} to {values.max()}")
    return values.astype(dtype)
