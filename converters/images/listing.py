"""Where every picture of a source lies: columns of numbers, so that a million of them take 100 MB and not a GB."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """One picture: its name, what holds it (a number of the converter's) and where in it, split and class.

    A class is a name, or a number where the source has no names. `more` is a second place: of what is said about it.
    """

    name: str
    file: int
    offset: int
    size: int
    split: str
    class_name: str
    more: tuple[int, int] = (0, 0)


class Listing:
    """Places in source order."""

    def __init__(self) -> None:
        self._names, self._ends = bytearray(), array("Q")
        self._files, self._offsets, self._sizes = array("I"), array("Q"), array("Q")
        self._splits, self._classes = array("B"), array("I")
        self._more: dict[str, array[int]] = {"offset": array("Q"), "size": array("I")}
        self._hashes = array("q")
        self.splits: dict[str, int] = {}
        self.classes: dict[str, int] = {}
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        return len(self._ends) - len(self._dropped)

    def add(self, place: Place) -> None:
        self._names += place.name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._names))
        self._files.append(place.file)
        self._offsets.append(place.offset)
        self._sizes.append(place.size)
        self._splits.append(self.splits.setdefault(place.split, len(self.splits)))
        self._classes.append(self.classes.setdefault(place.class_name, len(self.classes)))
        self._more["offset"].append(place.more[0])
        self._more["size"].append(place.more[1])
        self._hashes.append(hash(place.name))

    def __iter__(self) -> Iterator[Place]:
        splits, classes = list(self.splits), list(self.classes)
        for row in range(len(self._ends)):
            if row not in self._dropped:
                yield Place(
                    self.name(row), self._files[row], self._offsets[row], self._sizes[row], splits[self._splits[row]],
                    classes[self._classes[row]], (self._more["offset"][row], self._more["size"][row]),
                )  # fmt: skip

    def name(self, row: int) -> str:
        start = self._ends[row - 1] if row else 0
        return self._names[start : self._ends[row]].decode("utf-8", "surrogateescape")

    def bytes(self, most: int) -> int:
        """Of all pictures; what claims to be larger than `most` counts as that."""
        return int(np.minimum(np.frombuffer(self._sizes, np.uint64), most).sum()) if self._sizes else 0

    def drop_repeated(self) -> list[str]:
        """Leave out what has the name of an earlier one; returns those names."""
        hashes = np.frombuffer(self._hashes, np.int64) if self._hashes else np.empty(0, np.int64)
        order = np.argsort(hashes, kind="stable")
        equal = hashes[order][1:] == hashes[order][:-1]
        suspects = sorted({*order[1:][equal].tolist(), *order[:-1][equal].tolist()})
        seen: set[str] = set()
        repeated = []
        for row in suspects:
            name = self.name(row)
            if name in seen:
                repeated.append(name)
                self._dropped.add(row)
            seen.add(name)
        return repeated
