"""A dataset behind a URL: its manifest, its index, and the members that are asked for. Nothing else is fetched."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from vrl3data import index, manifest, transport
from vrl3data.address import Address
from vrl3data.cache import DISK_BYTES, MEMORY_BYTES, DiskCache, Segment, SegmentCache
from vrl3data.errors import ConfigError, DamagedError, SourceError, locate
from vrl3data.index import IndexFile
from vrl3data.manifest import Manifest
from vrl3data.members import Fetched, Place
from vrl3data.transport import Answer, Failure, Range, Transport

ATTEMPTS = 5
FIRST_WAIT = 0.25
"""Seconds before the second attempt; doubled each time."""
GAP = 32 * 1024
"""Bytes nobody asked for that are fetched rather than asking twice."""
MERGED = 8 * 1024**2
"""Ranges are merged up to this size, and larger members are fetched in pieces of it."""
MANIFEST_BYTES = 256 * 1024**2
INDEX_BYTES = 16 * 1024**3
"""More than that no server is trusted with."""
CACHE = "VRL3DATA_CACHE"
DOWNLOAD = "download the dataset and open the folder"


class MissingFile(DamagedError):
    """The server has no such file."""


# Transports of parents. A child must not let go of them: that would end connections that it shares.
_inherited: list[Transport] = []


@dataclass(frozen=True)
class RemoteOptions:
    """`cache_dir`: a folder to keep on a disk what was fetched; None: that of VRL3DATA_CACHE, or memory only.

    `cache_bytes` bounds the folder (10 GiB), or the memory where there is no folder (256 MiB; so much memory is used
    beside a folder too). `storage` goes to the file system of fsspec.
    """

    cache_dir: Path | None = None
    cache_bytes: int | None = None
    storage: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.cache_bytes is not None and self.cache_bytes < 0:
            raise ConfigError(f"cache_bytes: expected a number of bytes, found {self.cache_bytes}")

    def cache(self, key: str) -> SegmentCache:
        folder = self.cache_dir or (Path(os.environ[CACHE]) if os.environ.get(CACHE) else None)
        if folder is None:
            return SegmentCache(MEMORY_BYTES if self.cache_bytes is None else self.cache_bytes)
        limit = DISK_BYTES if self.cache_bytes is None else self.cache_bytes
        return SegmentCache(MEMORY_BYTES, DiskCache(folder.expanduser(), key, limit))


class RemoteFiles:
    """Ranges of the files at an address, tried again where that may help. Fork-safe.

    A file must keep its size and its ETag, or it is a DamagedError. SourceError where it cannot be had.
    """

    def __init__(self, shown: Address, target: Address, storage: Mapping[str, Any]) -> None:
        self.shown, self.target, self.storage = shown, target, storage
        self.sizes: dict[str, int] = {}
        """Bytes of each file as the manifest promises them."""
        self.requests, self.bytes = 0, 0
        self._tags: dict[str, tuple[int, str]] = {}
        self._transport: Transport | None = None
        self._process = 0

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, which is cut off only where its file ends."""
        got: dict[int, bytes] = {}
        failure: Failure | None = None
        for attempt in range(ATTEMPTS):
            left = [number for number in range(len(ranges)) if number not in got]
            failed = []
            for number, answer in zip(left, self._ask([ranges[number] for number in left]), strict=True):
                if isinstance(answer, Answer):
                    got[number] = self._checked(ranges[number], answer)
                elif answer.kind == "transient":
                    failed.append((number, answer))
                else:
                    self._refuse(ranges[number], answer)
            if not failed:
                return [got[number] for number in range(len(ranges))]
            worst, failure = failed[0]
            if attempt < ATTEMPTS - 1:
                time.sleep(max(FIRST_WAIT * 2**attempt, *(answer.wait for _, answer in failed)))
        assert failure is not None
        with self._at(ranges[worst]):
            raise SourceError(f"{failure.reason}, {ATTEMPTS} times in a row")

    def whole(self, name: str, most: int) -> bytes:
        """A file of which nothing is known yet."""
        first = self.read([Range(name, 0, min(MERGED, most))])[0]
        total = self._tags[name][0]
        if total > most:
            with self._at(Range(name, 0, total)):
                raise DamagedError(f"expected at most {most} bytes, found {total}")
        return b"".join([first, *self.read(pieces(name, len(first), total))])

    def _ask(self, ranges: list[Range]) -> list[Answer | Failure]:
        if self._transport is None or self._process != os.getpid():
            if self._transport is not None:
                _inherited.append(self._transport)
            with locate(path=self.shown):
                self._transport, self._process = transport.connect(self.target, self.storage), os.getpid()
        answers = self._transport.read(ranges)
        self.requests += len(ranges)
        self.bytes += sum(len(answer.data) for answer in answers if isinstance(answer, Answer))
        return answers

    def _checked(self, wanted: Range, answer: Answer) -> bytes:
        promised = self.sizes.get(wanted.name, answer.total)
        known = self._tags.setdefault(wanted.name, (answer.total, answer.tag))
        with self._at(wanted):
            if known != (answer.total, answer.tag):
                raise DamagedError("the file was changed at its home since it was opened; open the dataset again")
            if answer.total != promised:
                raise DamagedError(f"the shard has {answer.total} bytes, the manifest promises {promised} bytes")
        return answer.data

    def _refuse(self, wanted: Range, failure: Failure) -> NoReturn:
        with self._at(wanted):
            if failure.kind == "missing":
                raise MissingFile(f"the file is missing ({failure.reason})")
            if failure.kind == "outside":
                raise DamagedError(f"the file ends before byte {wanted.start} ({failure.reason})")
            if failure.kind == "no ranges":
                raise SourceError(f"{failure.reason}; {DOWNLOAD}, or serve it by a server that knows byte ranges")
            raise SourceError(failure.reason)

    def _at(self, wanted: Range) -> Any:
        folder, _, shard = wanted.name.rpartition("/")
        path = self.shown if folder else f"{self.shown}/{shard}"
        return locate(path=path, shard=shard if folder else None, offset=wanted.start)


@dataclass(frozen=True, repr=False)
class Opened:
    """All that was fetched to open a dataset: another process goes on from here without asking for it again."""

    shown: Address
    target: Address
    options: RemoteOptions
    manifest: bytes
    index: bytes

    def found(self) -> Manifest:
        with locate(path=self.shown):
            return manifest.parse(self.manifest)

    def table(self, found: Manifest) -> IndexFile:
        with locate(path=self.shown):
            return index.from_bytes(self.index, found)

    def members(self, files: RemoteFiles | None = None) -> FetchedMembers:
        files = files or RemoteFiles(self.shown, self.target, self.options.storage)
        found = self.found()
        files.sizes = {f"data/{name}": size for name, size in found.shard_sizes().items()}
        return FetchedMembers(files, self.options.cache(_key(self.shown, self.manifest)))


def fetch(address: Address, options: RemoteOptions) -> tuple[Opened, FetchedMembers]:
    """Open the dataset at `address`.

    ConfigError if there is none, DamagedError if its index is missing or stale: remote shards are never scanned,
    because that would read them all. SourceError if the server does not answer, or does not know byte ranges.
    """
    with locate(path=address):
        target, more = transport.resolve(address)
        options = RemoteOptions(options.cache_dir, options.cache_bytes, {**more, **options.storage})
        files = RemoteFiles(address, target, options.storage)
        try:
            text = files.whole(manifest.MANIFEST, MANIFEST_BYTES)
        except MissingFile:
            raise ConfigError(
                f"there is no {manifest.MANIFEST} here; the address is not that of a dataset, or the dataset is not "
                f"finished: finish it at its home, or {DOWNLOAD}"
            ) from None
        found = manifest.parse(text)
        opened = Opened(address, target, options, text, _index(files, found, options.cache(_key(address, text))))
    return opened, opened.members(files)


def _index(files: RemoteFiles, found: Manifest, cache: SegmentCache) -> bytes:
    """The bytes of the index that the manifest knows, from the cache or fetched."""
    remedy = f"run 'vrl3data index rebuild' at the home of the dataset, or {DOWNLOAD}"
    segment = cache.disk.whole(index.INDEX) if cache.disk else None
    if segment is not None and index.is_known(segment.data, found):
        return segment.data
    with locate(path=f"{files.shown}/{index.INDEX}"):
        try:
            data = files.whole(index.INDEX, INDEX_BYTES)
        except MissingFile as error:
            raise DamagedError(f"{error.message}; {remedy}") from None
        if not index.is_known(data, found):
            raise DamagedError(f"the index is not the one that {manifest.MANIFEST} promises; {remedy}")
    cache.add([Segment(index.INDEX, 0, len(data), data)])
    return data


def _key(address: Address, text: bytes) -> str:
    """What the folder of a dataset in the cache is called: other address, or other manifest, other folder."""
    return sha256(str(address).encode() + b"\n" + text).hexdigest()[:32]


class FetchedMembers:
    """Members of remote shards, from the cache or fetched. Safe with threads; a forked child goes on by itself."""

    remote = True

    def __init__(self, files: RemoteFiles, cache: SegmentCache) -> None:
        self.files, self.cache = files, cache
        self._mutex, self._process = threading.RLock(), os.getpid()

    @property
    def fetched(self) -> Fetched:
        return Fetched(self.files.requests, self.files.bytes)

    def view(self, place: Place) -> memoryview:
        segment = self._held(place) or self._fetch([place])[0]
        start = place.offset - segment.start
        return memoryview(segment.data)[start : start + place.size]

    def checked(self, place: Place, view: memoryview) -> bool:
        segment = self._held(place)
        return segment is not None and segment.data is view.obj and place.offset in segment.checked

    def mark(self, place: Place, view: memoryview) -> None:
        segment = self._held(place)
        if segment is not None and segment.data is view.obj:
            segment.checked.add(place.offset)

    def forget(self, place: Place, view: memoryview) -> bool:
        segment = self._held(place)
        if segment is not None and segment.data is view.obj:
            with self._lock():
                self.cache.remove(segment)
        return True

    def prefetch(self, places: Sequence[Place]) -> None:
        """Fetch what is not held, neighbours together, some requests at a time; no more than the cache keeps."""
        missing, room = [], self.cache.limit
        for place in places:
            room -= place.size
            if room < 0:
                break
            if self._held(place) is None:
                missing.append(place)
        if missing:
            self._fetch(missing)

    def mapping(self, shard_name: str) -> mmap.mmap:
        raise ConfigError("the dataset is remote and cannot be mapped; use storage 'ram' or 'stream'")

    def close(self) -> None:
        with self._lock():
            self.cache.clear()

    def _lock(self) -> threading.RLock:
        if self._process != os.getpid():
            # A thread of the parent may have held it while the child was made.
            self._mutex, self._process = threading.RLock(), os.getpid()
        return self._mutex

    def _held(self, place: Place) -> Segment | None:
        with self._lock():
            return self.cache.find(place.shard, place.offset, place.offset + place.size)

    def _fetch(self, places: Sequence[Place]) -> list[Segment]:
        for place in places:
            total = self.files.sizes.get(f"data/{place.shard}", 0)
            if not 0 <= place.offset <= place.offset + place.size <= total:
                with locate(shard=place.shard, feature=place.member):
                    raise DamagedError(
                        f"member at {place.offset}, {place.size} bytes, lies outside the shard of {total} bytes"
                    )
        wanted = merged(places)
        parts = [pieces(f"data/{item.name}", item.start, item.stop) for item in wanted]
        answers = iter(self.files.read([piece for part in parts for piece in part]))
        segments = []
        for item, part in zip(wanted, parts, strict=True):
            data = [next(answers) for _ in part]
            whole = data[0] if len(data) == 1 else b"".join(data)
            segments.append(Segment(item.name, item.start, item.stop, whole))
        with self._lock():
            self.cache.add(segments)
        return segments


def merged(places: Sequence[Place]) -> list[Range]:
    """Ranges that hold `places`, sorted; what lies at most GAP apart is one, up to MERGED bytes."""
    found: list[Range] = []
    for place in sorted(places, key=lambda place: (place.shard, place.offset)):
        last, stop = found[-1] if found else None, place.offset + place.size
        near = last is not None and last.name == place.shard and place.offset <= last.stop + GAP
        if last is not None and near and max(stop, last.stop) - last.start <= MERGED:
            found[-1] = Range(place.shard, last.start, max(stop, last.stop))
        else:
            found.append(Range(place.shard, place.offset, stop))
    return found


def pieces(name: str, start: int, stop: int) -> list[Range]:
    """[start, stop) in ranges of at most MERGED bytes: what fails is fetched again, the rest is not."""
    return [Range(name, place, min(place + MERGED, stop)) for place in range(start, stop, MERGED)]
