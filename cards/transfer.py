"""Brings a dataset, encoder or policy into a directory: into a hidden sibling first, checked there, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import filelock

from cards import bundle as bundles
from cards.bundle import FIXED, READ_BYTES, Bundle, File
from vrl3data import index, storage
from vrl3data.errors import DamagedError, DestinationError, SourceError, Vrl3dataError, locate
from vrl3data.report import Reporter

INCOMING, REPLACED, LOCKED = "incoming", "replaced", "lock"


class Store(Protocol):
    """Where a thing is fetched from. All names are ours, none is one that the store made up."""

    label: str

    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of the files that may belong to it, by name."""

    def digests(self, name: str) -> Mapping[str, str]:
        """Digests that the store itself reports for a file; may be empty."""

    def read(self, name: str) -> bytes:
        """A small file."""

    def fetch(self, name: str, path: Path) -> Mapping[str, str]:
        """Write a file to `path`, whole or not at all. Returns digests seen while it was read."""


@dataclass(frozen=True)
class Received:
    """What `receive` did: files that were fetched, all others were there. `untouched`: there was nothing to do."""

    fetched: tuple[str, ...] = ()
    untouched: bool = False


class FolderStore:
    """A directory on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.label = directory, str(directory)

    def sizes(self) -> Mapping[str, int]:
        places = [*(f"data/{path.name}" for path in index.shard_files(self.directory)), *FIXED]
        found = {name: self.directory / name for name in places}
        return {name: path.stat().st_size for name, path in found.items() if path.is_file()}

    def digests(self, name: str) -> Mapping[str, str]:
        return {}

    def read(self, name: str) -> bytes:
        return bundles.read_small(self.directory / name)

    def fetch(self, name: str, path: Path) -> Mapping[str, str]:
        """Copied, synced and renamed; the digest is that of the bytes that were read."""
        temporary, sha256 = path.with_name(f".{path.name}.tmp"), hashlib.sha256()
        with temporary.open("wb") as file:
            for block in _blocks(self.directory / name):
                sha256.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return {"sha256": sha256.hexdigest()}


def _blocks(path: Path) -> Iterator[bytes]:
    """A file of the source, read piece by piece. SourceError where that fails: it is not the target's disk."""
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                yield block
    except OSError as error:
        with locate(path=path):
            raise SourceError(f"cannot read: {error.strerror or error}") from error


@dataclass(frozen=True)
class Described:
    """What a store holds, with sizes, and the bytes of its sidecar."""

    bundle: Bundle
    sidecar: bytes


def described(store: Store) -> Described:
    """ConfigError or DamagedError if it is nothing whole."""
    with locate(path=store.label):
        sizes = store.sizes()
        kind = bundles.find_kind(sizes)
        if sizes[bundles.SIDECARS[kind]] > bundles.MAX_SIDECAR:
            raise DamagedError(f"{bundles.SIDECARS[kind]} is larger than {bundles.MAX_SIDECAR:,} bytes")
        sidecar = store.read(bundles.SIDECARS[kind])
        return Described(bundles.with_sizes(bundles.parse(kind, sidecar), sizes), sidecar)


def check_apart(source: Path, target: Path) -> None:
    """DestinationError if one lies in the other."""
    first, second = source.resolve(), target.resolve()
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise DestinationError(f"source and target overlap: {source} and {target}; choose another directory")


def receive(
    store: Store, found: Described, target: Path, overwrite: bool, reporter: Reporter, trusted: bool = False
) -> Received:  # fmt: skip
    """Bring what `store` holds, `found`, to `target`, checked. Running it again goes on after an interruption.

    A target that holds the same thing is completed, or left alone if it is whole; anything else in it is a
    DestinationError unless `overwrite`, and even then only a thing of ours is replaced. DamagedError names what
    is not as promised, and leaves the target as it was. `trusted`: the source was checked just now, so equal
    sha256 are enough.
    """
    target = target.resolve()
    bundle, sidecar = found.bundle, found.sidecar
    with storage.writing(target), _locked(target):
        there = _there(target, bundle, overwrite)
        if there is not None and not overwrite and _sound(target, there, reporter):
            return Received(untouched=True)
        incoming = _sibling(target, INCOMING)
        incoming.mkdir(exist_ok=True)
        fetched = _fetch(store, bundle, sidecar, incoming, target, reporter)
        _tidy(incoming, bundle)
        if not (trusted and bundle.kind == "dataset"):
            _check(incoming, bundle, store.label, reporter)
        _put(incoming, target)
        return Received(tuple(fetched))


def _there(target: Path, bundle: Bundle, overwrite: bool) -> Bundle | None:
    """The same thing, if `target` holds it, whole or not. DestinationError if it holds what may not be replaced."""
    with locate(path=target):
        if target.exists() and not target.is_dir():
            raise DestinationError("the target is a file, expected a directory")
        if not target.is_dir() or not any(target.iterdir()):
            if target == Path.cwd():
                raise DestinationError("the target is the current directory, which would be replaced; name another")
            return None
        there, state = _holds(target)
        if there is not None and (there.kind, there.fingerprint) == (bundle.kind, bundle.fingerprint):
            if overwrite:
                _check_own(target, bundle.kind)
            return there
        if not state:
            raise DestinationError("the directory is not empty and not a thing of vrl3data; choose another")
        if not overwrite:
            raise DestinationError(f"the directory holds {state}; choose another, or replace it with --overwrite")
        _check_own(target, state)
        return None


def _holds(target: Path) -> tuple[Bundle | None, str]:
    """What `target` holds, and in words; ("", None) if it is nothing of ours."""
    names = {path.name for path in target.iterdir() if path.is_file()}
    try:
        kind = bundles.find_kind(names)
    except Vrl3dataError:
        return None, "a dataset that is still being written" if index.shard_files(target) else ""
    try:
        found = bundles.parse(kind, bundles.read_small(target / bundles.SIDECARS[kind]))
    except Vrl3dataError:
        return None, f"{kind} that is damaged"
    return found, f"another {kind}, of fingerprint {found.fingerprint[:12]}"


def _check_own(target: Path, state: str) -> None:
    """DestinationError if files would go that are not ours."""
    known = {name.partition("/")[0] for name in FIXED} | {"data"}
    shards = {path.name for path in index.shard_files(target)}
    foreign = [path.name for path in target.iterdir() if path.name not in known and not path.name.startswith(".")]
    if (target / "data").is_dir():
        foreign += [f"data/{path.name}" for path in (target / "data").iterdir() if path.name not in shards]
    if foreign:
        raise DestinationError(
            f"the directory holds {state}, and {min(foreign)!r}, which would be lost; move it away or choose another"
        )


def _sound(target: Path, there: Bundle, reporter: Reporter) -> bool:
    try:
        bundles.check(target, bundles.read(target), reporter)
    except DamagedError as error:
        reporter.warn(f"what is there is damaged and is mended: {error}")
        with locate(path=target):
            _check_own(target, there.kind)
        return False
    return True


def _fetch(
    store: Store, bundle: Bundle, sidecar: bytes, incoming: Path, target: Path, reporter: Reporter
) -> list[str]:  # fmt: skip
    """All files into `incoming`, the sidecar last. What is there already, or in `target`, is not fetched again."""
    fetched = []
    others = [file for file in bundle.files if file.name != bundle.sidecar]
    with reporter.progress("fetching", len(others), "files") as advance, locate(path=store.label):
        for file in others:
            path = incoming / file.name
            path.parent.mkdir(exist_ok=True)
            promised = {**file.digests, **store.digests(file.name)}
            if not bundles.same(path, file, promised) and not _take(target / file.name, path, file, promised):
                path.unlink(missing_ok=True)
                promised |= store.fetch(file.name, path)
                _accept(path, file, promised)
                fetched.append(file.name)
            advance(1)
        storage.replace_file(incoming / bundle.sidecar, sidecar)
        _accept(incoming / bundle.sidecar, File(bundle.sidecar), store.digests(bundle.sidecar))
    return [*fetched, bundle.sidecar]


def _accept(path: Path, file: File, promised: Mapping[str, str]) -> None:
    """Read a file back. One that is not what was promised does not stay."""
    try:
        for name in file.digests.keys() & promised.keys():
            if promised[name] != file.digests[name]:
                raise bundles.mismatch(file.name, name, file.digests[name], promised[name])
        bundles.check_file(path, file, promised)
    except DamagedError:
        path.unlink(missing_ok=True)
        raise


def _take(there: Path, path: Path, file: File, promised: Mapping[str, str]) -> bool:
    """Take a file of the target that is whole; by a link where the disk can."""
    if not bundles.same(there, file, promised):
        return False
    path.unlink(missing_ok=True)
    try:
        os.link(there, path)
    except OSError:
        FolderStore(there.parent).fetch(there.name, path)
    return True


def _tidy(incoming: Path, bundle: Bundle) -> None:
    """Only what belongs to the thing stays: an earlier attempt may have been one at another version."""
    wanted = {incoming / file.name for file in bundle.files}
    for path in sorted(incoming.rglob("*"), reverse=True):
        if path.is_symlink() or (not path.is_dir() and path not in wanted):
            path.unlink()
        elif path.is_dir():
            with suppress(OSError):  # not empty: it holds something wanted
                path.rmdir()


def _check(incoming: Path, bundle: Bundle, label: str, reporter: Reporter) -> None:
    try:
        bundles.check(incoming, bundle, reporter)
    except DamagedError as error:
        shutil.rmtree(incoming)
        error.source = replace(error.source, path=label)
        raise


def _put(incoming: Path, target: Path) -> None:
    """Two renames at most. After a crash between them the next run finds the thing whole beside the target."""
    old = _sibling(target, REPLACED)
    shutil.rmtree(old, ignore_errors=True)
    for folder in (incoming / "data", incoming / "encoder", incoming):
        if folder.is_dir():
            storage.sync_directory(folder)
    if target.is_dir():
        target.rename(old)
    incoming.rename(target)
    storage.sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(target: Path, word: str) -> Path:
    path = target.with_name(f".{target.name}.{word}")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        with locate(path=path):
            raise DestinationError("a file is in the way")
    return path


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time brings something to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{LOCKED}")
    lock = filelock.FileLock(path, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        with locate(path=target):
            raise DestinationError("another process is bringing something here; wait for it or stop it") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
