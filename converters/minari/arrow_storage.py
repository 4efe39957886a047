"""Minari's Arrow and Parquet storage: a folder per episode, all columns padded to T + 1 rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from converters.fields import Field, Loaded
from converters.hdf5 import BLOCK_BYTES, MAX_RATIO
from converters.hdf5 import SMALL as SMALL_FILE
from converters.minari.episode import SMALL, Found, ended
from converters.minari.metadata import METADATA, Metadata, read_json
from converters.minari.spaces import Leaf
from converters.pictures import Frames, LazyFiles
from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError)
"""What pyarrow was seen to raise on damaged files."""
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


class BinaryRows(LazyFiles):
    """The first `count` rows of a binary column, which stays where it is."""

    def __init__(self, column: pa.ChunkedArray, count: int, path: str) -> None:
        self.column, self.rows, self.path = column, count, path

    def __len__(self) -> int:
        return self.rows

    def file(self, row: int) -> bytes:
        value = self.column[row].as_py()
        if not isinstance(value, bytes):
            with locate(step=row, feature=self.path):
                raise SourceError("expected the bytes of a picture, found nothing")
        return value


class ArrowStorage:
    """Reads `<number>/part-*.arrow` or `.parquet`."""

    def numbers(self, meta: Metadata) -> list[int]:
        inside = [path for path in meta.folder.iterdir() if path.is_dir() and re.fullmatch(r"\d{1,18}", path.name)]
        return sorted(int(path.name) for path in inside)

    def files(self, meta: Metadata, number: int) -> list[Path]:
        folder = meta.folder / str(number)
        parts = sorted(
            folder.glob(f"*.{meta.format}"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]
        )
        if not parts:
            raise SourceError(f"expected {number}/part-0.{meta.format}, found nothing")
        return [*parts, *([folder / METADATA] if (folder / METADATA).is_file() else [])]

    def look(self, meta: Metadata, number: int) -> Found:
        try:
            return self._look(meta, number)
        except BROKEN as error:  # names of columns that are no text
            raise SourceError(f"the columns cannot be read: {error}") from error

    def _look(self, meta: Metadata, number: int) -> Found:
        files = self.files(meta, number)
        schema, rows = _schema(files, meta.format)
        if rows < 2:
            raise SourceError(f"expected at least two rows, the last of them the final observation, found {rows}")
        for name in COLUMNS[:3]:
            if name not in schema.names:
                raise SourceError(f"expected the column {name}, found {', '.join(schema.names)}")
        said = _said(meta, number).get("total_steps", rows - 1)
        if said != rows - 1:
            raise SourceError(f"total_steps says {said}, but there are {rows} rows, one more than steps")
        found = Found(rows - 1, True)
        pictures, texts = [], []
        for leaf in meta.leaves.values():
            _check_column(schema, leaf)
            kept_as = "state" if leaf.parts[0] == "observations" else "step"
            if leaf.kind == "Text":
                texts.append(leaf.path)
            elif leaf.picture and meta.jpeg:
                shape = leaf.shape if len(leaf.shape) == 3 else (*leaf.shape, 1)
                found.fields[leaf.path] = Field(leaf.path, "uint8", shape, kept_as, jpeg=True, lossy=True)
                pictures.append(leaf.path)
            else:
                found.fields[leaf.path] = Field(leaf.path, leaf.dtype, leaf.shape, kept_as)
        rewards = _dtype(schema.field("rewards").type)
        if not rewards:
            raise SourceError(f"expected a column of numbers, rewards, found {schema.field('rewards').type}")
        found.fields["rewards"] = Field("rewards", rewards)
        if "infos" in schema.names:
            for leaf in _info_leaves(schema.field("infos"), ("infos",)):
                if leaf.kind == "Text":
                    texts.append(leaf.path)
                else:
                    found.fields[leaf.path] = Field(leaf.path, leaf.dtype, leaf.shape, "state")
        found.files, found.texts = tuple(pictures), tuple(texts)
        return found

    def load(self, meta: Metadata, number: int, found: Found) -> tuple[Loaded, dict[str, list[str]], dict[str, Any]]:
        """(arrays and how the episode ended, texts per row, what else it says)."""
        files = self.files(meta, number)
        schema, _ = _schema(files, meta.format)
        known = {leaf.path: leaf for leaf in self._leaves(meta, schema)}
        loaded = Loaded({}, final_observation=True)
        for path, field in found.fields.items():
            rows = found.length + (field.rows == "state")
            leaf = known[path]
            if path in found.files:
                column = pa.chunked_array(list(_chunks(files, meta.format, leaf, rows)), pa.binary())
                loaded.arrays[path] = Frames(BinaryRows(column, rows, path), field.shape)
            else:
                loaded.arrays[path] = _numbers(files, meta.format, leaf, field, rows)
        for flag, key in (("terminations", "terminated"), ("truncations", "truncated")):
            if flag in schema.names:
                kept = _numbers(files, meta.format, Leaf(flag, (flag,), "Discrete"), Field(flag, "bool"), found.length)
                setattr(loaded, key, ended(np.concatenate(list(kept)), flag))
        texts = {path: self._texts(files, meta, known[path], found.length) for path in found.texts}
        return loaded, texts, _said(meta, number)

    def close(self) -> None:
        """Nothing is held open."""

    def _leaves(self, meta: Metadata, schema: pa.Schema) -> Iterator[Leaf]:
        yield from meta.leaves.values()
        yield Leaf("rewards", ("rewards",), "Discrete")
        if "infos" in schema.names:
            yield from _info_leaves(schema.field("infos"), ("infos",))

    def _texts(self, files: list[Path], meta: Metadata, leaf: Leaf, length: int) -> list[str]:
        rows = length + (leaf.parts[0] != "actions")
        chunks = _chunks(files, meta.format, leaf, rows)
        return [str(item) for chunk in chunks for item in chunk.to_pylist()]


def _said(meta: Metadata, number: int) -> dict[str, Any]:
    path = meta.folder / str(number) / METADATA
    return read_json(path) if path.is_file() else {}


def _schema(files: Sequence[Path], form: str) -> tuple[pa.Schema, int]:
    """(schema, rows) of an episode. SourceError if a part is damaged or claims an absurd size."""
    rows, schema = 0, None
    for path in (file for file in files if file.name != METADATA):
        with locate(path=path.name):
            if not path.stat().st_size:
                raise SourceError("the file is empty")
            try:
                if form == "parquet":
                    facts = pq.ParquetFile(path).metadata
                    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
                    claimed = sum(group.total_byte_size for group in groups)
                    if claimed > max(SMALL_FILE, MAX_RATIO * path.stat().st_size):
                        raise SourceError(f"claims {claimed:,} bytes, but the file has {path.stat().st_size:,}")
                    rows, schema = rows + facts.num_rows, pq.ParquetFile(path).schema_arrow
                else:
                    with pa.memory_map(str(path)) as mapped:
                        reader = pa.ipc.open_file(mapped)
                        schema = reader.schema
                        rows += sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
            except BROKEN as error:
                raise SourceError(f"not a readable {form} file: {str(error).splitlines()[0]}") from error
    assert schema is not None
    return schema, rows


def _batches(path: Path, form: str, column: str, row_bytes: int) -> Iterator[pa.RecordBatch]:
    size = max(1, BLOCK_BYTES // max(1, row_bytes))
    if form == "parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=size, columns=[column])
        return
    mapped = pa.memory_map(str(path))
    reader = pa.ipc.open_file(mapped)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number).select([column])
        batch.validate(full=True)
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def _chunks(files: Sequence[Path], form: str, leaf: Leaf, rows: int) -> Iterator[pa.Array]:
    """The first `rows` rows of one leaf, in blocks. SourceError where a file is damaged."""
    left = rows
    width = int(np.prod(leaf.shape, dtype=np.int64)) * (np.dtype(leaf.dtype).itemsize if leaf.dtype else 8)
    for path in (file for file in files if file.name != METADATA):
        with locate(path=path.name, feature=leaf.path):
            try:
                for batch in _batches(path, form, leaf.parts[0], width):
                    array = batch.column(0)
                    for part in leaf.parts[1:]:
                        array = array.field(part)
                    chunk = array[: min(left, len(array))]
                    left -= len(chunk)
                    if chunk.null_count:
                        raise SourceError("expected a value in every row, found an empty one")
                    if len(chunk):
                        yield chunk
            except BROKEN as error:
                raise SourceError(f"the data cannot be read: {str(error).splitlines()[0]}") from error
    if left:
        with locate(feature=leaf.path):
            raise SourceError(f"expected {rows} rows, found {rows - left}")


def _numbers(files: Sequence[Path], form: str, leaf: Leaf, field: Field, rows: int) -> Iterator[Array]:
    width = int(np.prod(field.shape, dtype=np.int64))
    for chunk in _chunks(files, form, leaf, rows):
        flat = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) or pa.types.is_list(chunk.type) else chunk
        values = flat.to_numpy(zero_copy_only=False)
        if values.size != len(chunk) * width or values.dtype == object:
            with locate(feature=field.path):
                raise SourceError(f"expected rows of {width} numbers, found {values.size} values in {len(chunk)} rows")
        yield values.reshape(len(chunk), *field.shape).astype(field.dtype, copy=False)


def _check_column(schema: pa.Schema, leaf: Leaf) -> None:
    """SourceError if the columns do not have a leaf of the space."""
    kind = schema.field(leaf.parts[0]).type
    for part in leaf.parts[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            with locate(feature=leaf.path):
                raise SourceError(f"is missing, which the space of the dataset has; the column is {kind}")
        kind = kind.field(part).type
    width = int(np.prod(leaf.shape, dtype=np.int64))
    if pa.types.is_fixed_size_list(kind) and kind.list_size != width:
        with locate(feature=leaf.path):
            raise SourceError(f"expected rows of {width} numbers as the space says, found {kind.list_size}")


def _info_leaves(field: pa.Field, parts: tuple[str, ...]) -> Iterator[Leaf]:
    """The arrays of a column of infos; their shapes are in the metadata of the fields."""
    kind = field.type
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _info_leaves(kind.field(number), (*parts, kind.field(number).name))
        return
    path = "/".join(parts)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield Leaf(path, parts, "Text")
        return
    shape: tuple[int, ...] = ()
    if pa.types.is_fixed_size_list(kind):
        shape = _shape(field.metadata, kind.list_size)
        kind = kind.value_type
    dtype = _dtype(kind)
    if dtype and int(np.prod(shape, dtype=np.int64)) <= SMALL * SMALL:
        yield Leaf(path, parts, "Box", dtype, shape)


def _dtype(kind: pa.DataType) -> str:
    """Of a column of numbers; empty for anything else."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return str(np.dtype(kind.to_pandas_dtype())) if number else ""


def _shape(said: dict[bytes, bytes] | None, size: int) -> tuple[int, ...]:
    text = (said or {}).get(b"shape", b"").decode("ascii", "replace")
    numbers = [int(word) for word in text.split(",") if word.isdigit()]
    return tuple(numbers) if numbers and int(np.prod(numbers, dtype=np.int64)) == size else (size,)
