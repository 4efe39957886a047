"""As much of MATLAB's file format 5 as the ImageNet devkit needs: one array of structs of texts and numbers.

Written after the published description (MathWorks, "MAT-File Format", level 5): tagged elements, little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from vrl3data.errors import SourceError

COMPRESSED, MATRIX, UTF8 = 15, 14, 16
STRUCT, CHARS, NUMBERS = 2, 4, range(6, 16)
KINDS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
"""Type of an element -> letter of `struct`."""
MAX_BYTES = 64 * 1024**2
"""Of an unpacked element."""
Value = str | float | None


def structs(data: bytes, name: str) -> list[dict[str, Value]]:
    """The array of structs called `name`, one dict each; a field that is neither text nor one number is None."""
    if len(data) < 128 or data[126:128] != b"IM":
        raise SourceError("expected a MATLAB file of version 5, little-endian")
    try:
        for kind, body in _elements(data[128:]):
            found = _structs(_unpacked(body) if kind == COMPRESSED else (kind, body), name)
            if found is not None:
                return found
    except (struct.error, zlib.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise SourceError(f"the MATLAB file is broken: {error}") from error
    raise SourceError(f"the MATLAB file has no array of structs called {name!r}")


def _unpacked(body: bytes) -> tuple[int, bytes]:
    inflate = zlib.decompressobj()
    data = inflate.decompress(body, MAX_BYTES)
    if inflate.unconsumed_tail:
        raise SourceError(f"an element of the MATLAB file unpacks to more than {MAX_BYTES} bytes")
    return next(_elements(data))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content). An element of up to four bytes lies in its own tag; others are padded to eight bytes."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
            continue
        if size > len(data) - at - 8:
            raise ValueError(f"an element of {size} bytes where {len(data) - at - 8} are left")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)


def _structs(element: tuple[int, bytes], name: str) -> list[dict[str, Value]] | None:
    kind, body = element
    if kind != MATRIX:
        return None
    parts = _elements(body)
    flags, shape, found = next(parts)[1], _numbers(next(parts)), next(parts)[1].decode()
    if found != name or flags[0] != STRUCT:
        return None
    width, names = int(_numbers(next(parts))[0]), next(parts)[1]
    fields = [names[at : at + width].split(b"\0")[0].decode() for at in range(0, len(names), max(1, width))]
    count = 1
    for side in shape:
        count *= int(side)
    values = [_value(part) for part in parts]
    if len(values) != count * len(fields):
        raise ValueError(f"expected {count} structs of {len(fields)} fields, found {len(values)} values")
    return [
        dict(zip(fields, values[at : at + len(fields)], strict=True)) for at in range(0, len(values), len(fields) or 1)
    ]


def _value(element: tuple[int, bytes]) -> Value:
    kind, body = element
    if kind != MATRIX or not body:
        return None
    parts = list(_elements(body))
    if len(parts) < 4:
        return None
    if parts[0][1][0] == CHARS:
        text = parts[3]
        return text[1].decode("utf-8") if text[0] in (UTF8, 1, 2) else "".join(map(chr, map(int, _numbers(text))))
    if parts[0][1][0] in NUMBERS:
        numbers = _numbers(parts[3])
        return numbers[0] if len(numbers) == 1 else None
    return None


def _numbers(element: tuple[int, bytes]) -> tuple[float, ...]:
    kind, body = element
    if kind not in KINDS:
        raise ValueError(f"an element of type {kind} where numbers should be")
    letter = KINDS[kind]
    return struct.unpack(f"<{len(body) // struct.calcsize(letter)}{letter}", body)
