"""HDF5 files that came from outside: opened once per process, nothing followed out of the file, sizes checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.fields import Field
from vrl3data.errors import SourceError, locate
from vrl3data.schema import DTYPES, Array

MAGIC = b"\x89HDF\r\n\x1a\n"
BLOCK_BYTES = 32 * 1024**2
MAX_RATIO = 2000
"""Of claimed to stored bytes: gzip reaches 1,032. Above `SMALL` bytes, more than this was not recorded by anybody."""
SMALL = 256 * 1024**2
MAX_CHUNK = 512 * 1024**2
"""Of one chunk, which is unpacked as a whole for any row of it."""
MAX_ENTRIES = 1_000_000
MAX_DEPTH = 16
MAX_ATTRIBUTE = 64 * 1024**2
"""Bytes of one attribute. The largest seen is the XML of a simulator's scene, below 1 MB."""
BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, UnicodeDecodeError)
"""What h5py was seen to raise on damaged files."""


def is_hdf5(path: Path) -> bool:
    """By its first bytes: a truncated file is one too."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class Hdf5Files:
    """Keeps the last file open, since blocks of rows are read after `load` returns. Pickles as nothing open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: h5py.File | None = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": None, "_file": None, "_pid": -1}

    def get(self, path: Path) -> h5py.File:
        """SourceError if it is not a whole HDF5 file."""
        if self._path != path or self._pid != os.getpid() or not self._file:
            self.close()
            self._path, self._file, self._pid = path, open_hdf5(path), os.getpid()
        return self._file

    def close(self) -> None:
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._path, self._file = None, None


def open_hdf5(path: Path) -> h5py.File:
    """For reading. SourceError if it cannot be opened, with the reason in plain words."""
    with locate(path=path.name):
        if not path.is_file():
            raise SourceError("expected an HDF5 file, found a directory or nothing")
        size = path.stat().st_size
        if not size:
            raise SourceError("the file is empty")
        if not is_hdf5(path):
            with path.open("rb") as file:
                raise SourceError(f"not an HDF5 file: it begins with {file.read(12)!r}")
        try:
            return h5py.File(path, "r", locking=False)
        except OSError as error:
            reason = "it is truncated" if "truncated" in str(error) else str(error)
            raise SourceError(f"cannot be opened: {reason} ({size:,} bytes are there)") from error


def child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """A member of a group. SourceError if it is missing, damaged, or a link that leads elsewhere."""
    try:
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise SourceError(
                f"{name!r} is a link to another place, which is not followed; copy the data into the file"
            )
        found = group[name]
    except BROKEN as error:
        raise SourceError(f"{group.name}/{name} cannot be read: {_first_line(error)}") from error
    return found


def datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """(path below `group`, dataset) of all that lies in it, in order of their names.

    SourceError if groups lie in themselves or are absurdly deep or many.
    """
    for seen, (path, item) in enumerate(_walk(group, "", 0)):
        if seen >= MAX_ENTRIES:
            raise SourceError(f"{group.name}: more than {MAX_ENTRIES:,} entries, or groups that lie in each other")
        if isinstance(item, h5py.Dataset):
            yield path, item


def _walk(group: h5py.Group, prefix: str, depth: int) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    if depth > MAX_DEPTH:
        raise SourceError(f"{group.name}: groups lie more than {MAX_DEPTH} deep, or in each other")
    for name in names(group):
        item = child(group, name)
        yield prefix + name, item
        if isinstance(item, h5py.Group):
            yield from _walk(item, f"{prefix}{name}/", depth + 1)


def names(group: h5py.Group) -> list[str]:
    """The names in a group, sorted. SourceError if the list cannot be read or is absurd."""
    try:
        found = sorted(islice(group, MAX_ENTRIES + 1))
        if len(found) > MAX_ENTRIES:
            raise SourceError(f"{group.name} holds more than {MAX_ENTRIES:,} entries")
    except BROKEN as error:
        raise SourceError(f"the group {group.name} cannot be read: {_first_line(error)}") from error
    for name in found:
        if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode():
            raise SourceError(f"{group.name}: the name {name!r} cannot be written as UTF-8")
    return found


def check_dataset(dataset: h5py.Dataset) -> None:
    """SourceError if an array is of objects, lies outside of the file, or claims a size it cannot have."""
    with locate(feature=dataset.name):
        try:
            dtype, created = dataset.dtype, dataset.id.get_create_plist()
            elsewhere = created.get_external_count() or created.get_layout() == h5py.h5d.VIRTUAL
            claimed = math.prod(dataset.shape or ()) * dtype.itemsize
            stored = dataset.id.get_storage_size()
            chunk = math.prod(dataset.chunks or ()) * dtype.itemsize
        except BROKEN as error:
            raise SourceError(f"cannot be read: {_first_line(error)}") from error
        if elsewhere:
            raise SourceError("the data lies in another file, which is not followed; copy it into the file")
        if dtype.hasobject and h5py.check_string_dtype(dtype) is None and h5py.check_vlen_dtype(dtype) is None:
            raise SourceError(f"an array of objects ({dtype}) could run code when it is opened; it is not read")
        if chunk > MAX_CHUNK:
            raise SourceError(f"chunks of {chunk:,} bytes ({dataset.chunks}); at most {MAX_CHUNK:,} are read at once")
        if claimed > max(SMALL, MAX_RATIO * stored):
            raise SourceError(f"claims {claimed:,} bytes (shape {dataset.shape}), but {stored:,} are stored")


def field_of(dataset: h5py.Dataset, path: str, rows: str = "step") -> Field:
    """An array of numbers with rows first. SourceError for anything else."""
    check_dataset(dataset)
    with locate(feature=path):
        if dataset.dtype.name not in DTYPES or not dataset.shape:
            raise SourceError(f"expected rows of numbers, found {dataset.dtype} of shape {dataset.shape}")
    return Field(path, dataset.dtype.name, tuple(map(int, dataset.shape[1:])), rows)


def blocks(dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> Iterator[Array]:
    """Rows [start, stop) in blocks of at most 32 MB. SourceError where a chunk is damaged."""
    stop = len(dataset) if stop is None else min(stop, len(dataset))
    row_bytes = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for first in range(start, stop, step):
        yield read(dataset, slice(first, min(stop, first + step)))


def read(dataset: h5py.Dataset, rows: slice | tuple[()] = ()) -> Array:
    """Rows of a dataset, or all of it, in memory, in native byte order."""
    try:
        array = np.asarray(dataset[rows])
    except BROKEN as error:
        with locate(feature=dataset.name):
            raise SourceError(f"the data cannot be read: {_first_line(error)}") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes as plain values; text is decoded. SourceError if one is damaged."""
    try:
        listed = sorted(item.attrs)
    except BROKEN as error:
        raise SourceError(f"the attributes of {item.name} cannot be read: {_first_line(error)}") from error
    return some_attributes(item, listed)


def some_attributes(item: h5py.Group | h5py.Dataset, wanted: Sequence[str]) -> dict[str, Any]:
    """Those of them that are there: the others, perhaps the XML of a scene, are not read."""
    found: dict[str, Any] = {}
    try:
        for name in wanted:
            if name in item.attrs:
                attribute = item.attrs.get_id(name)
                size = math.prod(attribute.shape or ()) * attribute.dtype.itemsize
                if size > MAX_ATTRIBUTE:
                    raise SourceError(f"the attribute {name!r} of {item.name} claims {size:,} bytes")
                found[name] = plain(item.attrs[name])
    except BROKEN as error:
        raise SourceError(f"the attributes of {item.name} cannot be read: {_first_line(error)}") from error
    return found


def is_small(dataset: h5py.Dataset, most: int) -> bool:
    """Whether it has at most so many values or texts. SourceError as `check_dataset`."""
    check_dataset(dataset)
    lists = h5py.check_vlen_dtype(dataset.dtype) is not None and h5py.check_string_dtype(dataset.dtype) is None
    return not lists and dataset.size is not None and dataset.size <= most


def plain(value: Any) -> Any:
    """Bytes become text, NumPy numbers become numbers, arrays become lists; what JSON does not have becomes text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, (np.void, h5py.Reference, h5py.RegionReference, complex)):
        return str(value)  # nothing that JSON has
    return plain(value.item()) if isinstance(value, np.generic) else value


def _first_line(error: BaseException) -> str:
    text = str(error).strip("'\"")
    return text.splitlines()[0] if text else type(error).__name__
