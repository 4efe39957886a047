"""Writes a dataset so that what was confirmed survives anything, and goes on where it stopped (FORMAT.md 6)."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import filelock

from vrl3data import index, manifest, scan, shard, stats, storage, takeover
from vrl3data.dataset import PACKAGED, Dataset
from vrl3data.encode import encode
from vrl3data.errors import DamagedError, DestinationError, FormatError, Vrl3dataError, locate
from vrl3data.manifest import DatasetSpec, Manifest, ShardInfo, SplitInfo
from vrl3data.report import Reporter, Silent
from vrl3data.sample import Body, EncodedSample, Identity
from vrl3data.schema import Episode

CONFIRM_IMAGES = 1000
CONFIRM_BYTES = 64 * 1024**2
COPY_BYTES = 4 * 1024**2
LOCK = ".vrl3data.lock"
SPOOL = ".spool"
RESUME_HINT = "what was confirmed is safe; run the same command again to go on"


@dataclass
class _Split:
    """The shards of one split while they are written."""

    name: str
    number: int = 0
    file: BinaryIO | None = None
    path: Path = Path()
    size: int = 0
    in_shard: int = 0
    samples: int = 0
    steps: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    shards: list[ShardInfo] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        assert self.file is not None
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)


class Writer:
    """Appends samples in order. As a context manager it finishes the dataset, or on an error leaves it resumable.

    Raises DestinationError if `path` holds something else, DamagedError if it holds a damaged dataset.
    One writer at a time; readers may open the directory meanwhile. `complete` is true when the directory
    already holds this very dataset, finished: there is nothing to do then.
    """

    def __init__(self, path: Path | str, spec: DatasetSpec, reporter: Reporter | None = None) -> None:
        self.path, self.spec, self.reporter = Path(path), spec, reporter or Silent()
        provenance = spec.provenance
        self.identity = Identity(provenance.source_identity, provenance.converter, provenance.options)
        self.complete = False
        self.splits: dict[str, _Split] = {}
        self.present: set[str] = set()
        self.skipped: list[Mapping[str, str]] = []
        self._unconfirmed: list[tuple[str, int, str]] = []
        self._unconfirmed_bytes = 0
        self._failed = False
        self._sources: dict[str, str] = {}
        self._index = index.IndexBuilder(spec.schema)
        if str(path).startswith(PACKAGED):
            raise DestinationError(f"{path} belongs to the package; choose a directory")
        with storage.writing(self.path):
            takeover.check_target(self.path)
            (self.path / "data").mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
        try:
            self._take_over()
        except BaseException:
            self._close_files()
            self._unlock()
            raise

    @property
    def spool(self) -> Path:
        """Where large members wait; only for this writer and its workers."""
        return self.path / SPOOL

    def has(self, name: str) -> bool:
        """Whether the sample of that name is already written."""
        return self.identity.sample_id(name) in self.present

    def write(self, episode: Episode) -> None:
        """Encode and append one episode or image."""
        self.append(encode(episode, self.spec.schema, self.identity, self.spool))

    def append(self, sample: EncodedSample) -> None:
        """Append one encoded sample; it is confirmed at once, or with the next batch in kind `images`."""
        name, sample_id, size = sample.meta["name"], sample.meta["id"], sample.shard_bytes
        with locate(episode=name), self._disk():
            self._check(sample)
            if self._unconfirmed and self._unconfirmed[-1][0] != sample.meta["split"]:
                self.confirm()  # what is on disk stays a beginning of the source's order, over all splits
            split = self._room(sample.meta["split"], size)
            key, names = split.samples, [name for name, _ in sample.members]
            try:
                places = _put(split, [(shard.sample_name(key, name), body) for name, body in sample.members])
            finally:
                sample.discard()
            self._index.add(
                split.path.name.removesuffix(shard.PART),
                shard.Entry(key, dict(zip(names, places, strict=True)), sample.meta),
            )
            split.samples += 1
            split.in_shard += 1
            split.steps += sample.meta.get("length", 0)
            self.present.add(sample_id)
            self._unconfirmed.append((split.name, key, sample_id))
            self._unconfirmed_bytes += size
            if self._due():
                self.confirm()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """An error of the disk ends this writer: what was not confirmed is forgotten, the rest stays on disk."""
        if self._failed:
            raise DestinationError("this writer has failed; open a new one to go on")
        with storage.writing(self.path, RESUME_HINT):
            try:
                yield
            except (OSError, AssertionError):
                self._failed = True
                self.present -= {sample_id for _, _, sample_id in self._unconfirmed}
                self._unconfirmed = []
                self._close_files()
                raise

    def _check(self, sample: EncodedSample) -> None:
        """Refuse, before a byte is written, what may not go into the dataset."""
        source, digest = sample.meta["source"], sample.meta["source_sha256"]
        problem: Vrl3dataError | None = None
        if sample.meta["id"] in self.present:
            problem = DestinationError("a sample of this name is already in the dataset")
        elif self.spec.schema.kind == "episodes" and self._sources.setdefault(source, digest) != digest:
            problem = DestinationError(
                f"{source} has changed since the dataset was begun: samples of both versions would be mixed; "
                "use --overwrite to convert anew"
            )
        elif max(sample.sizes()) > shard.MAX_MEMBER:
            problem = FormatError(f"a member has {max(sample.sizes())} bytes, the format allows {shard.MAX_MEMBER}")
        if problem is not None:
            sample.discard()
            raise problem

    def _due(self) -> bool:
        if self.spec.schema.kind == "episodes":
            return True
        return len(self._unconfirmed) >= CONFIRM_IMAGES or self._unconfirmed_bytes >= CONFIRM_BYTES

    def confirm(self) -> None:
        """Flush and sync everything appended so far."""
        for split in self.splits.values():
            if split.file is not None:
                split.file.flush()
                os.fsync(split.file.fileno())
        if self._unconfirmed:
            self.reporter.event("confirmed", samples=self._unconfirmed)
        self._unconfirmed, self._unconfirmed_bytes = [], 0

    def skip(self, source: str, reason: str) -> None:
        """Note a source that did not become a sample; it is listed in the manifest."""
        self.skipped.append({"source": source, "reason": reason})

    def finish(self, run: Mapping[str, Any] | None = None) -> Manifest:
        """Close all shards; write index, statistics and, last, the manifest."""
        with self._disk():
            self.confirm()
            for split in self.splits.values():
                self._close_shard(split)
            table = self._index.table()
            index_facts = index.write(self.path, table)
            found = _manifest(self.spec, self.splits, table)
            with Dataset(self.path, found, table, verify="off") as dataset:
                statistics = stats.compute(dataset)
            skipped = tuple(self.skipped)
            found = replace(found, index=index_facts, stats=statistics, skipped=skipped, run=dict(run or {}))
            found.write(self.path)
            self.complete = True
        self.close()
        return found

    def close(self) -> None:
        """Let go of the directory; unfinished shards stay as they are, readable and resumable."""
        self._close_files()
        shutil.rmtree(self.spool, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        """Leave nothing behind where nothing was written."""
        if self._lock.is_locked:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.release()
        if not self.present:
            with suppress(OSError):  # not empty: then it stays
                (self.path / "data").rmdir()
                self.path.rmdir()

    def _close_files(self) -> None:
        for split in self.splits.values():
            if split.file is not None:
                with suppress(OSError):  # the disk has refused these buffers already, and that was reported
                    split.file.close()
                split.file = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self.complete:
            self.finish()
        elif not self.complete and not self._failed:
            with suppress(OSError):  # the error on its way out matters more than a disk that is full as well
                self.confirm()
        self.close()

    # -- shards ------------------------------------------------------------------------------------------------

    def _room(self, name: str, size: int) -> _Split:
        """The split with an open shard that takes `size` more bytes, or a fresh one."""
        split = self.splits.setdefault(name, _Split(name))
        full = split.size + size + len(shard.END) > self.spec.provenance.shard_size
        if split.file is not None and full and split.in_shard:
            self.confirm()
            self._close_shard(split)
        if split.file is None:
            self._open_shard(split)
        return split

    def _open_shard(self, split: _Split) -> None:
        split.path = self.path / "data" / f"{split.name}-{split.number:06d}.tar{shard.PART}"
        split.size, split.in_shard, split.sha256 = 0, 0, hashlib.sha256()
        split.file = split.path.open("wb", buffering=1024**2)
        _put(
            split,
            [(shard.HEAD_MEMBER, shard.head_bytes(self.spec.schema, split.name, split.number, self.spec.facts()))],
        )
        # On disk at once, so that whoever looks finds a shard without samples and not an empty file.
        split.file.flush()
        os.fsync(split.file.fileno())
        storage.sync_directory(split.path.parent)

    def _close_shard(self, split: _Split) -> None:
        if split.file is None:
            return
        split.write(shard.END)
        split.file.flush()
        os.fsync(split.file.fileno())
        split.file.close()
        split.file = None
        finished = split.path.with_name(split.path.name.removesuffix(shard.PART))
        split.path.rename(finished)
        storage.sync_directory(finished.parent)
        split.shards.append(ShardInfo(finished.name, split.in_shard, split.size, split.sha256.hexdigest()))
        split.number += 1

    # -- going on where an earlier run stopped -----------------------------------------------------------------

    def _take_over(self) -> None:
        found = manifest.read(self.path)
        if found is not None:
            takeover.compare(self.path, self.spec, found.provenance, found.schema.to_json())
            self.complete = True
            return
        for path in index.shard_files(self.path):
            walked = scan.scan(path, self._window())
            if not walked.head:
                path.unlink()
                continue
            takeover.compare(self.path, self.spec, walked.head["provenance"], walked.head["schema"])
            self._adopt(path, walked)
        if self.present:
            self.reporter.note(f"going on after {len(self.present)} samples that are already in {self.path}")

    def _window(self) -> int:
        """How many samples may be unconfirmed at a time, and so be lost with a power cut."""
        return 1 if self.spec.schema.kind == "episodes" else CONFIRM_IMAGES

    def _adopt(self, path: Path, walked: scan.Scan) -> None:
        name, number = walked.head["split"], walked.head["shard"]
        split = self.splits.setdefault(name, _Split(name))
        first = walked.entries[0].key if walked.entries else split.samples
        if number != split.number or first != split.samples or split.file is not None:
            with locate(shard=path.name):
                raise DamagedError(f"expected shard {split.number} of split {name} from sample {split.samples} on")
        end, sha256 = takeover.verify(path, walked, self._window())
        base = path.name.removesuffix(shard.PART)
        for entry in walked.entries:
            self._index.add(base, entry)
            self.present.add(entry.meta["id"])
            if self.spec.schema.kind == "episodes":
                self._sources[entry.meta["source"]] = entry.meta["source_sha256"]
        split.samples += len(walked.entries)
        split.steps += sum(entry.meta.get("length", 0) for entry in walked.entries)
        if walked.closed:
            if path.name.endswith(shard.PART):
                path.rename(path.with_name(base))
            size = end + len(shard.END)
            split.shards.append(ShardInfo(base, len(walked.entries), size, sha256.hexdigest()))
            split.number += 1
            return
        split.path, split.size, split.in_shard, split.sha256 = path, end, len(walked.entries), sha256
        os.truncate(path, end)
        split.file = path.open("r+b", buffering=1024**2)
        split.file.seek(end)


def _lock(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        with locate(path=path):
            raise DestinationError("another process is writing this dataset; wait for it or stop it") from error
    return lock


def _put(split: _Split, members: Sequence[tuple[str, Body]]) -> list[tuple[int, int]]:
    """Headers, payloads, padding; in one write what is in memory. Returns (offset, size) of each payload."""
    places, offset = [], split.size
    waiting: list[bytes | memoryview] = []
    for name, body in members:
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        places.append((offset + shard.BLOCK, size))
        offset += shard.BLOCK + shard.padded(size)
        waiting.append(shard.member_header(name, size))
        if not isinstance(body, Path):
            waiting.append(body)
        else:
            split.write(b"".join(waiting))
            waiting = []
            with body.open("rb") as file:
                while chunk := file.read(COPY_BYTES):
                    split.write(chunk)
        waiting.append(bytes(shard.padded(size) - size))
    split.write(b"".join(waiting))
    assert split.size == offset
    assert offset % shard.BLOCK == 0
    return places


def _manifest(spec: DatasetSpec, splits: Mapping[str, _Split], table: Any) -> Manifest:
    return Manifest(
        schema=spec.schema,
        dataset_id=spec.dataset_id,
        provenance=spec.provenance.to_json(),
        name=spec.name,
        license=spec.license,
        description=spec.description,
        splits={name: SplitInfo(s.samples, s.steps, tuple(s.shards)) for name, s in sorted(splits.items())},
        subsets=stats.subsets(table),
        fingerprint=manifest.fingerprint(table["digest"].to_pylist()),
        content=stats.content(table),
        lossy=stats.lossy(table),
    )
