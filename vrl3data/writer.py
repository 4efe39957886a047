"""Writes a dataset so that what was confirmed survives anything, and goes on where it stopped (FORMAT.md 6)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import pyarrow as pa

from vrl3data import derive, index, manifest, scan, shard, stats, storage, takeover
from vrl3data.dataset import PACKAGED, Dataset
from vrl3data.encode import encode
from vrl3data.errors import DamagedError, DestinationError, FormatError, Vrl3dataError, locate
from vrl3data.manifest import DatasetSpec, Manifest, SplitInfo
from vrl3data.report import Reporter, Silent
from vrl3data.sample import EncodedSample, Identity
from vrl3data.schema import Episode
from vrl3data.splits import SplitWriter

CONFIRM_IMAGES = 1000
CONFIRM_BYTES = 64 * 1024**2
LOCK = ".vrl3data.lock"
SPOOL = ".spool"


class Writer:
    """Appends samples in order. As a context manager it finishes the dataset, or on an error leaves it resumable.

    Raises DestinationError if `path` holds something else, DamagedError if it holds a damaged dataset.
    One writer at a time; readers may open the directory meanwhile. `complete` is true when the directory
    already holds this very dataset, finished: there is nothing to do then. With `append`, samples go into new
    shards of the finished dataset in `path`, which must have the same schema and licence; until `finish`, readers
    see it as it was.
    """

    def __init__(
        self, path: Path | str, spec: DatasetSpec, reporter: Reporter | None = None, *, append: bool = False
    ) -> None:
        self.path, self.spec, self.reporter, self.appending = Path(path), spec, reporter or Silent(), append
        made = spec.provenance
        self.identity = Identity(made.source_identity, made.converter, made.options)
        self.complete = False
        self.splits: dict[str, SplitWriter] = {}
        self.present: set[str] = set()
        self._base: Manifest | None = None
        self._of_base: frozenset[str] = frozenset()
        self._before: pa.Table | None = None
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
            self._lock = lock(self.path)
        try:
            self._take_over()
        except BaseException:
            self._close_files()
            self._unlock()
            raise

    @property
    def appended_to(self) -> int:
        """Samples of the dataset that this one appends to."""
        return self._base.samples if self._base else 0

    @property
    def spool(self) -> Path:
        """Where large members wait; only for this writer and its workers."""
        return self.path / SPOOL

    def has(self, name: str) -> bool:
        """Whether the sample of that name is already written."""
        return self.identity.sample_id(name) in self.present

    def in_base(self, name: str) -> bool:
        """Whether the sample of that name is in the dataset that this one appends to."""
        return bool(self._of_base) and self.identity.sample_id(name) in self._of_base

    def write(self, episode: Episode) -> None:
        """Encode and append one episode or image."""
        self.append(encode(episode, self.spec.schema, self.identity, self.spool, views=True))

    def append(self, sample: EncodedSample) -> None:
        """Append one encoded sample; it is confirmed at once, or with the next batch in kind `images`."""
        name, sample_id, size = sample.meta["name"], sample.meta["id"], sample.shard_bytes
        with locate(episode=name), self._disk():
            self._check(sample)
            if self._unconfirmed and self._unconfirmed[-1][0] != sample.meta["split"]:
                self.confirm()  # what is on disk stays a beginning of the source's order, over all splits
            split = self._room(sample.meta["split"], size)
            key = split.samples
            try:
                places = split.append(sample.members, sample.meta.get("length", 0))
            finally:
                sample.discard()
            self._index.add(split.shard_name, shard.Entry(key, places, sample.meta))
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
        with storage.writing(self.path, storage.RESUME_HINT):
            try:
                yield
            except (OSError, AssertionError, MemoryError, KeyboardInterrupt):  # half a sample may be in the file
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
            split.sync()
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
                split.close()
            rows = self._index if self._before is None else index.joined(self._before, self._index.table())
            index_facts = index.write(self.path, rows)
            table = index.IndexFile(pa.memory_map(str(self.path / index.INDEX)).read_buffer())
            found = self._manifest(table)
            with Dataset(self.path, found, table, verify="off") as dataset:
                statistics = stats.compute(dataset)
            skipped = (*found.skipped, *self.skipped)
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
            split.abandon()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self.complete:
                self.finish()
            elif not self.complete and not self._failed:
                with suppress(OSError):  # the error on its way out matters more than a disk that is full as well
                    self.confirm()
        finally:
            self.close()

    # -- shards ------------------------------------------------------------------------------------------------

    def _split(self, name: str) -> SplitWriter:
        if name not in self.splits:
            before = self._base.splits.get(name, SplitInfo()) if self._base else SplitInfo()
            self.splits[name] = SplitWriter(self.path / "data", name, self._head, before)
        return self.splits[name]

    def _head(self, split: str, number: int) -> bytes:
        facts = self.spec.facts()
        if self._base is not None:
            kept = ("dataset_id", "name", "license", "description")
            facts |= {key: getattr(self._base, key) for key in kept}
        return shard.head_bytes(self.spec.schema, split, number, facts)

    def _room(self, name: str, size: int) -> SplitWriter:
        """The split with an open shard that takes `size` more bytes, or a fresh one."""
        split = self._split(name)
        if split.file is not None and not split.has_room(size, self.spec.provenance.shard_size):
            self.confirm()
            split.close()
        if split.file is None:
            split.open()
        return split

    def _manifest(self, table: index.IndexFile) -> Manifest:
        """All of it but statistics and what the run has to say."""
        written = {name: split.info for name, split in self.splits.items()}
        provenance = self.spec.provenance.to_json()
        if self._base is not None:
            written = {**self._base.splits, **written}
            new = (provenance,) if self.splits else ()
            found = replace(self._base, appended=(*self._base.appended, *new))
        else:
            spec = self.spec
            found = Manifest(spec.schema, spec.dataset_id, provenance, name=spec.name, license=spec.license,
                             description=spec.description)  # fmt: skip
        return replace(
            found, splits=dict(sorted(written.items())), subsets=stats.subsets(table), content=stats.content(table),
            fingerprint=manifest.fingerprint(table["digest"].to_pylist()), lossy=stats.lossy(table),
        )  # fmt: skip

    # -- going on where an earlier run stopped -----------------------------------------------------------------

    def _take_over(self) -> None:
        found = manifest.read(self.path)
        if self.appending:
            self._begin_append(found)
        elif found is not None:
            takeover.compare(self.path, self.spec, found.provenance, found.schema.to_json())
            self.complete = True
        if self.complete:
            return
        before = len(self.present)
        for path in index.shard_files(self.path):
            if self._base is None or path.name not in self._base.shard_sizes():
                self._adopt(path)
        if len(self.present) > before:
            self.reporter.note(f"going on after {len(self.present) - before} samples that are already in {self.path}")

    def _begin_append(self, found: Manifest | None) -> None:
        base = takeover.check_append(self.path, self.spec, found)
        if self.spec.provenance.to_json() in base.provenances:
            self.complete = True
            return
        self._base, self._before = base, derive.table(self.path, base)
        self._of_base = frozenset(self._before["id"].to_pylist())
        self.present = set(self._of_base)

    def _window(self) -> int:
        """How many samples may be unconfirmed at a time, and so be lost with a power cut."""
        return 1 if self.spec.schema.kind == "episodes" else CONFIRM_IMAGES

    def _adopt(self, path: Path) -> None:
        """Take over a shard that an interrupted run left."""
        walked = scan.scan(path, self._window())
        if not walked.head:
            path.unlink()
            return
        head = walked.head
        takeover.compare(self.path, self.spec, head["provenance"], head["schema"], appending=self.appending)
        if self._base is not None and head["dataset_id"] != self._base.dataset_id:
            with locate(shard=path.name):
                raise DamagedError(f"the shard belongs to dataset {head['dataset_id']}, not to this one")
        split = self._split(head["split"])
        split.adopt(path, walked, self._window())
        for entry in walked.entries:
            self._index.add(split.shard_name, entry)
            self.present.add(entry.meta["id"])
            if self.spec.schema.kind == "episodes":
                self._sources[entry.meta["source"]] = entry.meta["source_sha256"]


def lock(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        with locate(path=path):
            raise DestinationError("another process is writing this dataset; wait for it or stop it") from error
    return lock
