"""Where the bytes of members come from. Here: shards on a disk, mapped into memory. Remote ones: remote.py."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from vrl3data import scan, shard
from vrl3data.errors import DamagedError

MAX_MAPPED = 128
"""Shards mapped at a time; each takes a file descriptor."""


class Place(NamedTuple):
    """A member of the sample at `position`: `size` bytes from `offset` of a shard on."""

    position: int
    member: str
    shard: str
    offset: int
    size: int


class Fetched(NamedTuple):
    """What was asked of a server, answered or not, and how much came."""

    requests: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:,.1f} MB" if self.bytes >= 10**5 else f"{self.bytes / 1e3:.1f} kB"
        return f"fetched {size} in {self.requests:,} requests"


class Members(Protocol):
    """Bytes of members. Which of them were found right is remembered here, because here they are held."""

    remote: bool

    @property
    def fetched(self) -> Fetched: ...

    def view(self, place: Place) -> memoryview:
        """The bytes, unchecked. DamagedError if they are not there."""

    def checked(self, place: Place, view: memoryview) -> bool:
        """Whether the bytes in `view` were marked. Bytes that were fetched again are not."""

    def mark(self, place: Place, view: memoryview) -> None:
        """They had their hash."""

    def forget(self, place: Place, view: memoryview) -> bool:
        """They had not. Whether asking again may help."""

    def prefetch(self, places: Sequence[Place]) -> None:
        """They will be asked for soon."""

    def mapping(self, shard_name: str) -> mmap.mmap:
        """A whole shard. ConfigError if it is not on this machine."""

    def close(self) -> None:
        """Let go; views that were handed out stay valid."""


class MappedMembers:
    """Members in the shards of `directory`, of a dataset of `samples` samples."""

    remote, fetched = False, Fetched()

    def __init__(self, directory: Path, samples: int) -> None:
        self.directory, self.samples = directory, samples
        self.maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._checked: dict[str, bytearray] = {}

    def view(self, place: Place) -> memoryview:
        data = self.mapping(place.shard)
        if not 0 <= place.offset <= place.offset + place.size <= len(data):
            raise DamagedError(
                f"member at {place.offset}, {place.size} bytes, lies outside the shard of {len(data)} bytes"
            )
        return memoryview(data)[place.offset : place.offset + place.size]

    def checked(self, place: Place, view: memoryview) -> bool:
        return place.member in self._checked and bool(self._checked[place.member][place.position])

    def mark(self, place: Place, view: memoryview) -> None:
        self._checked.setdefault(place.member, bytearray(self.samples))[place.position] = 1

    def forget(self, place: Place, view: memoryview) -> bool:
        return False

    def prefetch(self, places: Sequence[Place]) -> None:
        """The system reads ahead."""

    def mapping(self, shard_name: str) -> mmap.mmap:
        """The mapping of a shard; the one unused for longest makes room. Arrays keep their own hold on it."""
        if shard_name not in self.maps:
            self.maps[shard_name] = _map(self.directory, shard_name)
            if len(self.maps) > MAX_MAPPED:
                self.maps.popitem(last=False)
        self.maps.move_to_end(shard_name)
        return self.maps[shard_name]

    def close(self) -> None:
        self.maps.clear()


def _map(directory: Path, shard_name: str) -> mmap.mmap:
    """A shard by its name; one that was finished since it was indexed is found too."""
    path = directory / "data" / shard_name
    for candidate in (path, path.with_name(shard_name.removesuffix(shard.PART))):
        with suppress(FileNotFoundError):  # a writer may rename it at any moment
            return scan.map_file(candidate)
    raise DamagedError("the shard is missing")
