"""What was fetched of remote shards: segments in memory, and on a disk if wanted. Both bounded, oldest use out first.

A segment is a range of a shard as it was fetched. On the disk it is one file, with its own hash in front, in a folder
that is named after the address and the manifest: a dataset that changed finds nothing of its old self.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import warnings
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from vrl3data.storage import writing

MEMORY_BYTES = 256 * 1024**2
DISK_BYTES = 10 * 1024**3
SWEEP_SHARE = 16
"""The disk is counted again when this part of the limit was written; it is exceeded by at most so much a process."""
STALE_SECONDS = 3600.0
"""Age at which a temporary file belongs to a process that was killed."""
LOOK_AGAIN_SECONDS = 1.0

_FOLDER = re.compile(r"vrl3data-[0-9a-f]{32}")
_FILE = re.compile(r"([a-z0-9_]+-[0-9]{6}\.tar|index\.parquet)\.([0-9]{1,15})-([0-9]{1,15})")
_TEMPORARY = re.compile(r"\.tmp-.*")
_DIGEST_BYTES = 16
_NEIGHBOURS = 4
"""Segments that begin before a place and may hold it: they seldom overlap."""


@dataclass
class Segment:
    """Bytes [start, stop) of a shard. `checked` are the offsets of members in it that had their hash."""

    shard: str
    start: int
    stop: int
    data: bytes
    checked: set[int] = field(default_factory=set)


class _Extents:
    """Which stretches of which shards there are."""

    def __init__(self) -> None:
        self.starts: dict[str, list[int]] = {}
        self.stops: dict[tuple[str, int], int] = {}

    def add(self, shard: str, start: int, stop: int) -> None:
        if (shard, start) not in self.stops:
            insort(self.starts.setdefault(shard, []), start)
        self.stops[shard, start] = stop

    def remove(self, shard: str, start: int) -> None:
        if self.stops.pop((shard, start), None) is not None:
            starts = self.starts[shard]
            del starts[bisect_right(starts, start) - 1]

    def around(self, shard: str, start: int, stop: int) -> int | None:
        """The start of one that holds [start, stop)."""
        starts = self.starts.get(shard, [])
        last = bisect_right(starts, start)
        for number in range(last - 1, max(-1, last - 1 - _NEIGHBOURS), -1):
            if self.stops[shard, starts[number]] >= stop:
                return starts[number]
        return None


class SegmentCache:
    """The latest segments in at most `limit` bytes, but never less than what was added last."""

    def __init__(self, limit: int, disk: DiskCache | None = None) -> None:
        self.limit, self.disk, self.bytes = limit, disk, 0
        self._segments: OrderedDict[tuple[str, int], Segment] = OrderedDict()
        self._extents = _Extents()

    def find(self, shard: str, start: int, stop: int) -> Segment | None:
        """A segment that holds [start, stop), from memory or else from the disk."""
        found = self._extents.around(shard, start, stop)
        if found is not None:
            self._segments.move_to_end((shard, found))
            return self._segments[shard, found]
        segment = self.disk.read(shard, start, stop) if self.disk else None
        if segment is not None:
            self._keep([segment])
        return segment

    def add(self, segments: Sequence[Segment]) -> None:
        """Segments that have just been fetched."""
        self._keep(segments)
        if self.disk:
            for segment in segments:
                self.disk.write(segment)

    def remove(self, segment: Segment) -> None:
        """A segment whose bytes are wrong, from memory and disk."""
        self._drop((segment.shard, segment.start))
        if self.disk:
            self.disk.remove(segment)

    def clear(self) -> None:
        """Forget what is in memory."""
        self._segments.clear()
        self._extents, self.bytes = _Extents(), 0

    def _keep(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            self._drop((segment.shard, segment.start))
            self._segments[segment.shard, segment.start] = segment
            self._extents.add(segment.shard, segment.start, segment.stop)
            self.bytes += len(segment.data)
        while self.bytes > self.limit and len(self._segments) > len(segments):
            self._drop(next(iter(self._segments)))

    def _drop(self, key: tuple[str, int]) -> None:
        segment = self._segments.pop(key, None)
        if segment is not None:
            self.bytes -= len(segment.data)
            self._extents.remove(*key)


class DiskCache:
    """Segments as files in `folder`/vrl3data-<key>, safe with several processes: files come and go whole.

    `limit` is in bytes and counts all datasets in `folder`. Only files with names of ours are ever removed.
    DestinationError if the folder cannot be made; a disk that fails later is not written to any more.
    """

    def __init__(self, folder: Path, key: str, limit: int) -> None:
        self.root, self.home, self.limit = folder, folder / f"vrl3data-{key}", limit
        assert _FOLDER.fullmatch(self.home.name), key
        with writing(self.home, "choose another folder for the cache"):
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._extents, self._listed, self._looked = _Extents(), -1, 0.0
        self._unswept = limit  # the first write counts what earlier runs left
        self._broken = False

    def read(self, shard: str, start: int, stop: int) -> Segment | None:
        """A segment that holds [start, stop), None if there is none or its bytes are not what was written."""
        found = self._extents.around(shard, start, stop)
        if found is None and self._list():
            found = self._extents.around(shard, start, stop)
        if found is None:
            return None
        path = self._path(shard, found, self._extents.stops[shard, found])
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:  # another process has made room, or the disk fails: the bytes are fetched
            self._extents.remove(shard, found)
            return None
        data = content[_DIGEST_BYTES:]
        segment = Segment(shard, found, self._extents.stops[shard, found], data)
        if xxhash.xxh3_128_digest(data) != content[:_DIGEST_BYTES] or len(data) != segment.stop - found:
            self.remove(segment)
            return None
        return segment

    def whole(self, name: str) -> Segment | None:
        """A file that was kept as one segment."""
        self._list()
        stop = self._extents.stops.get((name, 0))
        return None if stop is None else self.read(name, 0, stop)

    def write(self, segment: Segment) -> None:
        if self._broken or len(segment.data) > self.limit:
            return
        try:
            self._write(segment)
        except OSError as error:
            self._broken = True
            warnings.warn(f"the cache in {self.root} is not written to any more: {error.strerror}", stacklevel=2)

    def _write(self, segment: Segment) -> None:
        # No sync: a file that a power cut left half has not its hash, and is fetched again.
        with tempfile.NamedTemporaryFile(dir=self.home, prefix=".tmp-", delete=False) as file:
            try:
                file.write(xxhash.xxh3_128_digest(segment.data))
                file.write(segment.data)
                file.flush()
                os.replace(file.name, self._path(segment.shard, segment.start, segment.stop))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        self._extents.add(segment.shard, segment.start, segment.stop)
        self._unswept += len(segment.data)
        if self._unswept * SWEEP_SHARE >= self.limit:
            self._sweep()

    def remove(self, segment: Segment) -> None:
        self._extents.remove(segment.shard, segment.start)
        self._path(segment.shard, segment.start, segment.stop).unlink(missing_ok=True)

    def _path(self, shard: str, start: int, stop: int) -> Path:
        return self.home / f"{shard}.{start}-{stop}"

    def _list(self) -> bool:
        """Look at the folder again if other processes may have written to it. Whether it was looked at."""
        now = time.monotonic()
        if now - self._looked < LOOK_AGAIN_SECONDS and self._listed >= 0:
            return False
        self._looked = now
        changed = self.home.stat().st_mtime_ns if self.home.is_dir() else 0
        if changed == self._listed:
            return False
        self._listed, self._extents = changed, _Extents()
        for entry in _entries(self.home):
            match = _FILE.fullmatch(entry.name)
            if match:
                self._extents.add(match[1], int(match[2]), int(match[3]))
        return True

    def _sweep(self) -> None:
        """Remove the files used longest ago until the limit holds, and what killed processes left."""
        self._unswept = 0
        found: list[tuple[float, int, str]] = []
        for folder in _entries(self.root):
            if not _FOLDER.fullmatch(folder.name) or folder.is_symlink():
                continue
            for entry in _entries(Path(folder.path)):
                ours, temporary = _FILE.fullmatch(entry.name), _TEMPORARY.fullmatch(entry.name)
                try:
                    facts = entry.stat(follow_symlinks=False)
                    if temporary and time.time() - facts.st_mtime > STALE_SECONDS:
                        os.unlink(entry.path)
                except FileNotFoundError:  # another process was faster
                    continue
                if ours:
                    found.append((facts.st_mtime, facts.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from list(found)
    except FileNotFoundError:
        return
