"""Pictures that an HDF5 file keeps as whole JPEG or PNG files: rows of varying length, or padded to one length."""

from __future__ import annotations

import h5py
import numpy as np

from converters.fields import Field
from converters.hdf5 import check_dataset, read
from converters.pictures import LazyFiles, picture_size
from vrl3data.errors import SourceError, locate

BLOCK_ROWS = 16
JPEG, JPEG_END, PNG = b"\xff\xd8", b"\xff\xd9", b"\x89PNG"


class FrameFiles(LazyFiles):
    """The first `count` rows of a dataset as files, read in blocks of 16. Padding with zeros is cut off."""

    def __init__(self, dataset: h5py.Dataset, count: int) -> None:
        self.dataset, self.rows = dataset, count
        self._first, self._block = -1, [b""]

    def __len__(self) -> int:
        return self.rows

    def file(self, row: int) -> bytes:
        first = row - row % BLOCK_ROWS
        if first != self._first:
            rows = read(self.dataset, slice(first, min(first + BLOCK_ROWS, self.rows)))
            self._first, self._block = first, list(map(_file, rows))
        return self._block[row - first]


def holds_files(dataset: h5py.Dataset) -> bool:
    """Whether the rows begin as JPEG or PNG files do: one row per picture, of bytes."""
    if len(dataset.shape) not in (1, 2) or not len(dataset) or not _is_bytes(dataset):
        return False
    row = _file(read(dataset, slice(0, 1))[0])
    return row.startswith((JPEG, PNG))


def field_of_files(dataset: h5py.Dataset, path: str, rows: str = "state", *, depth: bool = False) -> Field:
    """The camera in a dataset of files; its size is that of the first picture. `depth`: 16-bit PNG files."""
    check_dataset(dataset)
    with locate(feature=path, step=0):
        first = _file(read(dataset, slice(0, 1))[0])
        height, width, channels = picture_size(first)
        if depth and first.startswith(PNG) and channels == 1:
            return Field(path, "uint16", (height, width), rows)
    jpeg = first.startswith(JPEG)
    return Field(path, "uint8", (height, width, channels), rows, jpeg=jpeg, lossy=jpeg)


def _is_bytes(dataset: h5py.Dataset) -> bool:
    vlen = h5py.check_vlen_dtype(dataset.dtype)
    if len(dataset.shape) == 2:
        return bool(dataset.dtype == np.uint8)
    return (vlen is not None and np.dtype(vlen) in (np.uint8, np.int8)) or dataset.dtype.kind == "S"


def _file(row: object) -> bytes:
    """One row as a file. A JPEG file ends with its marker, so the zeros behind it are padding."""
    if isinstance(row, bytes):
        return row
    if not isinstance(row, np.ndarray) or row.dtype.itemsize != 1:
        raise SourceError(f"expected the bytes of a picture, found {type(row).__name__}")
    data = row.tobytes()
    if data.startswith(JPEG):
        cut = data.rstrip(b"\0")
        return cut if cut.endswith(JPEG_END) else data
    return data
