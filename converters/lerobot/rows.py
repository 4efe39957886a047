"""Rows of Parquet and Arrow files from outside: read in blocks, checked against what they should be.

Letters: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises on damaged files."""
BATCH = 4096
MAX_COLUMNS = 20_000


class ParquetRows:
    """A Parquet file; only the row groups and columns that are asked for are read."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        with locate(path=name), broken("not a readable Parquet file"):
            if not path.is_file():
                raise SourceError("the file is missing")
            if not path.stat().st_size:
                raise SourceError("the file is empty; fetch it again")
            self._file = pq.ParquetFile(path)
            metadata = self._file.metadata
            sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            self.schema: pa.Schema = self._file.schema_arrow
            if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows or len(self.schema) > MAX_COLUMNS:
                raise SourceError(f"the footer contradicts itself: {metadata.num_rows} rows, groups of {sizes[:5]}")
            self._ends = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def names(self) -> list[str]:
        return list(self.schema.names)

    def batches(self, columns: Sequence[str], start: int, stop: int, rows: int = BATCH) -> Iterator[pa.RecordBatch]:
        groups = [number for number in range(len(self._ends) - 1)
                  if self._ends[number] < stop and self._ends[number + 1] > start]  # fmt: skip
        if not groups:
            return
        at = int(self._ends[groups[0]])
        with locate(path=self.name), broken("the data cannot be read"):
            for batch in self._file.iter_batches(rows, groups, list(columns)):
                first, last = max(start - at, 0), min(stop - at, len(batch))
                at += len(batch)
                if first < last:
                    yield batch.slice(first, last - first)

    def dicts(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """For tables of metadata."""
        for batch in self.batches(columns, 0, len(self)):
            with locate(path=self.name), broken("the data cannot be read"):
                rows = batch.to_pylist()
            yield from rows

    def close(self) -> None:
        self._file.close()


class ArrowRows:
    """Arrow stream or file that `datasets` wrote, mapped: nothing is in memory before it is read."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self._batches: list[pa.RecordBatch] = []
        with locate(path=name), broken("not a readable Arrow file"):
            for path in paths:
                if not path.is_file() or not path.stat().st_size:
                    raise SourceError(f"{path.name} is missing or empty; fetch it again")
                self._batches += _record_batches(path)
            if not self._batches:
                raise SourceError("the files hold no rows")
            self.schema: pa.Schema = self._batches[0].schema
            if any(batch.schema != self.schema for batch in self._batches):
                raise SourceError("the files have different columns")
        self._ends = np.cumsum([0, *map(len, self._batches)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batches(self, columns: Sequence[str], start: int, stop: int, rows: int = BATCH) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(self._batches):
            first, last = max(start - int(self._ends[number]), 0), min(stop - int(self._ends[number]), len(batch))
            for begin in range(first, last, rows):
                with locate(path=self.name), broken("the data cannot be read"):
                    part = batch.select(list(columns)).slice(begin, min(rows, last - begin))
                    part.validate(full=True)
                yield part

    def close(self) -> None:
        self._batches = []


def open_rows(paths: Sequence[Path], name: str) -> ArrowRows | ParquetRows:
    """The rows of one Parquet file, or of Arrow files that follow each other."""
    if not name.endswith(".parquet"):
        return ArrowRows(paths, name)
    if len(paths) > 1:
        raise SourceError("several Parquet files of version 1; convert them to version 2 with LeRobot first")
    return ParquetRows(paths[0], name)


def _record_batches(path: Path) -> list[pa.RecordBatch]:
    with path.open("rb") as file:
        magic = file.read(6)
    mapped = pa.memory_map(str(path))
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(mapped)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    return list(pa.ipc.open_stream(mapped))


class broken:
    """What pyarrow says of damaged data becomes a SourceError."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BROKEN):
            first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            raise SourceError(f"{self.what}: {first}; it may be cut off or damaged: fetch it again") from error


def plain(array: Any) -> pa.Array:
    """Without an extension type, in one piece."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def leaf(kind: pa.DataType) -> tuple[pa.DataType, int]:
    """(type of the numbers, how many lists lie around them)."""
    kind, depth = plain_type(kind), 0
    while is_list(kind):
        kind, depth = plain_type(kind.value_type), depth + 1
    return kind, depth


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def numpy_name(kind: pa.DataType) -> str:
    """The dtype of a column of numbers; empty for any other."""
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))
    return ""


def numbers(array: Any, shape: tuple[int, ...], dtype: str) -> Array:
    """A column as an array of rows of `shape`. SourceError for gaps, rows of other lengths, other types."""
    values, count = plain(array), len(array)
    depth, lists = 0, []
    while is_list(values.type):
        if values.null_count:
            raise SourceError("some rows have no value")
        lists.append(_length(values))
        values, depth = plain(values.flatten()), depth + 1
    if count and (math.prod(lists) != math.prod(shape) or len(values) != count * math.prod(shape)):
        raise SourceError(f"expected rows of shape {list(shape)}, found rows of {lists or 'single numbers'}")
    found = numpy_name(values.type)
    if not found or (found != dtype and not np.can_cast(found, dtype, "safe")):
        raise SourceError(f"expected {dtype} as elsewhere in this set, found {values.type}")
    if values.null_count and not found.startswith("float"):
        raise SourceError("some rows have no value")
    flat = values.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.astype(dtype, copy=False)).reshape(count, *shape)


def _length(values: pa.Array) -> int:
    """How long every list of a column is. SourceError if they differ."""
    if pa.types.is_fixed_size_list(values.type):
        return int(values.type.list_size)
    span = pc.min_max(pc.list_value_length(values)).as_py()
    if span["min"] != span["max"]:
        raise SourceError(f"rows of different lengths, from {span['min']} to {span['max']} numbers")
    return int(span["min"] or 0)
