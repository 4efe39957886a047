"""Where the keys of a Zarr hierarchy lie: files of a folder, or members of a zip file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from vrl3data.errors import SourceError, locate

MAX_METADATA = 4 * 1024**2
MARKS = (".zgroup", "zarr.json", ".zattrs", ".zmetadata")
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError)
"""What zipfile was seen to raise on damaged, encrypted or exotic members."""


class Store(Protocol):
    """Keys are words joined by `/`, as in Zarr's specification."""

    def get(self, key: str, limit: int) -> bytes | None:
        """The bytes of a key; None if it is not there. SourceError if there are more than `limit`."""

    def children(self, prefix: str) -> list[str]:
        """Names directly below a group, sorted."""

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, stored bytes) of everything below `prefix`."""

    def close(self) -> None: ...


class FolderStore:
    """A hierarchy in a folder. Links that lead out of it are not followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()

    def get(self, key: str, limit: int) -> bytes | None:
        path = self.root / key
        with locate(path=key):
            try:
                if not path.is_file():
                    return None
                self._check(path)
                if path.stat().st_size > limit:
                    raise SourceError(f"expected at most {limit:,} bytes, found {path.stat().st_size:,}")
                return path.read_bytes()
            except OSError as error:
                raise SourceError(f"cannot read: {error.strerror or error}") from error

    def children(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        self._check(folder)
        return sorted(path.name for path in folder.iterdir() if path.is_dir())

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = Path(folder, name)
                yield path.relative_to(self.root).as_posix(), path.lstat().st_size

    def close(self) -> None:
        """Nothing is held open."""

    def _check(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self._real):
            raise SourceError("is a link that leads out of the folder; it is not followed")


class ZipStore:
    """A hierarchy in a zip file, at its top or below one folder. Pickles as nothing open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_zip": None, "_members": {}, "_pid": -1}

    def get(self, key: str, limit: int) -> bytes | None:
        opened = self._opened()
        info = self._members.get(key)
        if info is None:
            return None
        with locate(path=key):
            if info.file_size > limit:
                raise SourceError(f"expected at most {limit:,} bytes, found {info.file_size:,}")
            try:
                with opened.open(info) as member:
                    data = member.read(limit + 1)
            except BROKEN as error:
                raise SourceError(f"the member of the zip file cannot be read: {error}") from error
            if len(data) != info.file_size:
                raise SourceError(f"expected {info.file_size:,} bytes as the zip file says, found {len(data):,}")
            return data

    def children(self, prefix: str) -> list[str]:
        self._opened()
        start = f"{prefix}/" if prefix else ""
        inside = (key.removeprefix(start) for key in self._members if key.startswith(start))
        return sorted({name.partition("/")[0] for name in inside if "/" in name})

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._opened()
        start = f"{prefix}/" if prefix else ""
        for key, info in self._members.items():
            if key.startswith(start):
                yield key, info.compress_size

    def close(self) -> None:
        if self._zip is not None and self._pid == os.getpid():
            self._zip.close()
        self._zip = None

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
                self._members = _members(self._zip)
            except BROKEN as error:
                raise SourceError(f"not a readable zip file: {error}") from error
        return self._zip


def _members(opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Key -> member, without the folder that all lie in. SourceError for names that lead elsewhere, or come twice."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        name = info.filename
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or (parts and ":" in parts[0]):
            raise SourceError(f"the zip file holds {name!r}, a name that leads out of it; nothing of it is read")
        if info.is_dir():
            continue
        if name in found:
            raise SourceError(f"the zip file holds {name!r} twice")
        found[name] = info
    tops = [name for name in found if PurePosixPath(name).name in MARKS]
    top = str(PurePosixPath(min(tops, key=lambda name: name.count("/"))).parent) if tops else "."
    if top == ".":
        return found
    return {name.removeprefix(f"{top}/"): info for name, info in found.items() if name.startswith(f"{top}/")}


def open_store(path: Path) -> FolderStore | ZipStore:
    return FolderStore(path) if path.is_dir() else ZipStore(path)
