"""Messages of ROS 1 and of ROS 2 (CDR) as nested dicts of plain values and arrays.

Readers are closures made from the parsed definitions: nothing of a log becomes source code. Every count is checked
against the bytes that are left before anything is made of it, and each element of a list takes at least one byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from converters.logs.definitions import Definitions
from vrl3data.errors import SourceError

Order = Literal["<", ">"]
Reader = Callable[[memoryview, int], tuple[Any, int]]
MAX_DEPTH = 40
DUMMY = "structure_needs_at_least_one_member"
NUMBERS = {
    "bool": "?", "byte": "B", "char": "B", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i",
    "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
NAME, BASE, ARRAY, SEQUENCE = 2, 1, 3, 4


class Wire:
    """How the bytes of one serialization are read. `order` is `<` or `>`; `cdr`: aligned, texts end with NUL."""

    def __init__(self, definitions: Definitions, *, cdr: bool, order: Order = "<") -> None:
        self.definitions, self.cdr, self.order = definitions, cdr, order
        self._readers: dict[str, Reader] = {}
        self._least: dict[str, int] = {}
        self._length = struct.Struct(order + "I")

    def reader(self, name: str, depth: int = 0) -> Reader:
        """The reader of a message type. SourceError if a definition is missing or contains itself."""
        if name not in self._readers:
            if depth > MAX_DEPTH:
                raise SourceError(f"the definition of {name} is nested more than {MAX_DEPTH} deep, or in itself")
            if name not in self.definitions:
                raise SourceError(f"the log has no definition of the type {name}")
            entries = [entry for entry in self.definitions[name] if self.cdr or entry[0] != DUMMY]
            parts = [(field, self._of(kind, depth)) for field, kind in entries]
            if not self.cdr and not self.least(name):
                parts = []  # nothing in it takes a byte, however often it is nested
            self._readers[name] = _message(parts) if parts or not self.cdr else _empty
        return self._readers[name]

    def least(self, name: str) -> int:
        """The smallest number of bytes that a message of this type takes."""
        if name not in self._least:
            self._least[name] = max(int(self.cdr), sum(self._least_of(kind) for field, kind in self.definitions[name]))
        return self._least[name]

    def _least_of(self, kind: Any) -> int:
        if kind[0] == BASE:
            return 4 if kind[1][0] in ("string", "wstring") else struct.calcsize(self._code(kind[1][0]))
        if kind[0] == NAME:
            return self.least(kind[1])
        return 4 if kind[0] == SEQUENCE else kind[1][1] * self._least_of(kind[1][0])

    def _of(self, kind: Any, depth: int) -> Reader:
        if kind[0] == BASE:
            return self._text() if kind[1][0] == "string" else self._number(kind[1][0])
        if kind[0] == NAME:
            return self.reader(kind[1], depth + 1)
        inner, size = kind[1]
        count = size if kind[0] == ARRAY else None  # a bound of a sequence changes nothing in its bytes
        if inner[0] == BASE and inner[1][0] in NUMBERS:
            return self._numbers(inner[1][0], count)
        reader = self._of(inner, depth + 1)
        least = self._least_of(inner)
        if not least:
            raise SourceError("a list of messages that take no bytes cannot be read")
        return self._list(reader, least, count)

    @staticmethod
    def _code(name: str) -> str:
        if name not in NUMBERS:
            raise SourceError(f"values of type {name} cannot be read")
        return NUMBERS[name]

    def _number(self, name: str) -> Reader:
        form = struct.Struct(self.order + self._code(name))
        size, unpack = form.size, form.unpack_from
        mask = -size if self.cdr else -1

        def read(data: memoryview, at: int) -> tuple[Any, int]:
            at = (at + size - 1) & mask if mask != -1 else at
            return unpack(data, at)[0], at + size

        return read

    def _count(self, data: memoryview, at: int, least: int) -> tuple[int, int]:
        at = (at + 3) & -4 if self.cdr else at
        count: int = self._length.unpack_from(data, at)[0]
        if count * least > len(data) - at - 4:
            raise SourceError(f"a list claims {count:,} values of {least} bytes, {len(data) - at - 4:,} bytes are left")
        return count, at + 4

    def _text(self) -> Reader:
        cdr, unpack = self.cdr, self._length.unpack_from

        def read(data: memoryview, at: int) -> tuple[str, int]:
            at = (at + 3) & -4 if cdr else at
            end: int = at + 4 + unpack(data, at)[0]
            if end > len(data):
                raise SourceError(f"a text claims {end - at - 4:,} bytes, {len(data) - at - 4:,} bytes are left")
            text = str(data[at + 4 : end], "utf-8", "replace")
            return text.rstrip("\0") if cdr else text, end

        return read

    def _numbers(self, name: str, fixed: int | None) -> Reader:
        dtype = np.dtype(self._code(name)).newbyteorder(self.order)
        size, cdr, count_of, swap = dtype.itemsize, self.cdr, self._count, self.order == ">" and dtype.itemsize > 1

        def read(data: memoryview, at: int) -> tuple[Any, int]:
            count, at = (fixed, at) if fixed is not None else count_of(data, at, size)
            if cdr and count:
                at = (at + size - 1) & -size
            if count * size > len(data) - at:
                raise SourceError(f"{count:,} values of {size} bytes do not fit in the {len(data) - at} that are left")
            values = np.frombuffer(data, dtype, count, at) if count else np.empty(0, dtype)
            return values.astype(dtype.newbyteorder("=")) if swap else values, at + count * size

        return read

    def _list(self, reader: Reader, least: int, fixed: int | None) -> Reader:
        count_of = self._count

        def read(data: memoryview, at: int) -> tuple[Any, int]:
            count, at = (fixed, at) if fixed is not None else count_of(data, at, least)
            if count * least > len(data) - at:
                raise SourceError(f"{count:,} values do not fit in the {len(data) - at} bytes that are left")
            values = []
            for _ in range(count):
                value, at = reader(data, at)
                values.append(value)
            return values, at

        return read


def _message(parts: list[tuple[str, Reader]]) -> Reader:
    def read(data: memoryview, at: int) -> tuple[dict[str, Any], int]:
        value = {}
        for name, reader in parts:
            value[name], at = reader(data, at)
        return value, at

    return read


def _empty(_: memoryview, at: int) -> tuple[dict[str, Any], int]:
    """A message without fields is one byte in CDR."""
    return {}, at + 1
