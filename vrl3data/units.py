"""The units of a coded feature: rows are cut into them, and found in them again (FORMAT.md 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vrl3data import codecs, shard
from vrl3data.errors import DamagedError, locate
from vrl3data.schema import Array, Feature


def cut(blocks: Iterable[Array], size: int) -> Iterator[Array]:
    """Blocks of any number of rows -> units of `size` rows, the last one shorter. Holds one unit at a time."""
    held: list[Array] = []
    missing = size
    for block in blocks:
        start = 0
        while len(block) - start >= missing:
            held.append(block[start : start + missing])
            start += missing
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held, missing = [], size
        if start < len(block):
            # A copy: the source may use the memory of its block again.
            held.append(block[start:].copy())
            missing -= len(block) - start
    if held:
        yield np.concatenate(held)


@dataclass(frozen=True)
class Units:
    """Where the units of a body lie. `count` is the number of rows that schema and commit record promise."""

    feature: Feature
    edges: Array
    count: int

    @classmethod
    def stored(cls, feature: Feature, offsets: memoryview, count: int, size: int) -> Units:
        """From the bytes of `<feature>.offsets.npy`; DamagedError unless it fits `count` rows and `size` bytes."""
        edges = shard.npy_view(offsets)
        units = -(-count // feature.unit_rows)
        if edges.dtype.name != "uint64" or edges.ndim != 1 or len(edges) != units + 1:
            raise DamagedError(
                f"expected {count} rows in {units} units of {feature.unit_rows}, "
                f"found offsets {edges.dtype}{edges.shape} for {max(0, edges.size - 1)} units"
            )
        if edges[0] != 0 or edges[-1] != size:
            raise DamagedError(f"the offsets span {edges[0]} to {edges[-1]}, the body has {size} bytes")
        return cls(feature, edges, count)

    def __len__(self) -> int:
        return len(self.edges) - 1

    def extent(self, start: int, stop: int) -> tuple[int, int]:
        """The bytes [begin, end) of the body that hold rows [start, stop): all that a reader must fetch."""
        first, last = self._span(start, stop)
        begin, end = int(self.edges[first]), int(self.edges[last])
        if not 0 <= begin <= end <= int(self.edges[-1]):
            raise DamagedError(f"units {first} to {last - 1} would lie at {begin}-{end} of {self.edges[-1]} bytes")
        return begin, end

    def decode(self, part: bytes | memoryview, start: int, stop: int) -> Array:
        """Rows [start, stop) from `part`, the bytes of `extent(start, stop)`. DamagedError names the step."""
        size, (first, last) = self.feature.unit_rows, self._span(start, stop)
        if last - first == 1:
            return self._unit(part, first, first)[start - first * size : stop - first * size]
        rows = np.empty((max(0, stop - start), *self.feature.shape), self.feature.dtype)
        for unit in range(first, last):
            begin = unit * size
            decoded = self._unit(part, first, unit)[max(0, start - begin) : stop - begin]
            rows[max(begin, start) - start :][: len(decoded)] = decoded
        return rows

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """Numbers of the units that hold rows [start, stop)."""
        size = self.feature.unit_rows
        return (start // size, -(-stop // size)) if start < stop else (0, 0)

    def _unit(self, part: bytes | memoryview, first: int, unit: int) -> Array:
        base, begin, end = (int(self.edges[number]) for number in (first, unit, unit + 1))
        row = unit * self.feature.unit_rows
        with locate(step=row):
            if not base <= begin <= end <= base + len(part):
                raise DamagedError(f"unit {unit} would lie at {begin}-{end} of a body of {self.edges[-1]} bytes")
            count = min(self.feature.unit_rows, self.count - row)
            return codecs.find(self.feature.codec).decode(part[begin - base : end - base], self.feature, count)
