"""Parquet and arrow files with a column of pictures, as Hugging Face's datasets keep them -> kind `images`.

They are read forwards, some rows at a time: each process goes through a file once, however long it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from converters.base import check_exists
from converters.images.listing import Listing, Place
from converters.images.pictures import Found, PictureConverter, PictureOptions, gathered, named, split_of
from vrl3data.errors import ConfigError, SourceError, did_you_mean, locate

SUFFIXES = (".parquet", ".arrow")
ROWS = 32
"""Read at once."""
BUFFER = 1024**2
NAMES = {
    "image": ("image", "img", "picture", "jpg", "jpeg", "png"),
    "label": ("label", "labels", "cls", "class", "fine_label"),
}
MAX_CLASSES = 1_000_000
BROKEN = (pa.ArrowException, OSError, ValueError)
HINT = "name the column with --image-column"


@dataclass(frozen=True)
class TableOptions(PictureOptions):
    """Columns are found by their types and names if they are not given."""

    image_column: str = ""
    label_column: str = ""


@dataclass(frozen=True)
class Columns:
    """What of a table is used: `said` goes to source_meta, `left_out` nowhere. `classes` are names of whole labels."""

    image: str
    label: str
    said: tuple[str, ...]
    left_out: tuple[str, ...]
    classes: tuple[str, ...]


class TableConverter(PictureConverter):
    """Parquet and arrow files with pictures (bytes, or structs of bytes and path) and labels; splits by file name."""

    kind = "image-table"
    Options = TableOptions

    def __init__(self, sources: Sequence[Path], options: TableOptions) -> None:
        super().__init__(sources, options)
        self.wanted = options
        self.files: list[tuple[str, Path]] = []
        self.columns: Columns | None = None
        self._cursor: _Cursor | None = None

    @staticmethod
    def recognises(source: Path) -> bool:
        if (source / "dataset.json").exists() or (source / "meta" / "info.json").exists():
            return False
        file = next((path for _, path in table_files(source)), None)
        if file is None:
            return False
        try:
            return find_columns(_schema(file), TableOptions()).image != ""
        except (SourceError, ConfigError):
            return False

    def find(self) -> Found:
        for source in self.sources:
            check_exists(source)
            with locate(path=source):
                if (source / "dataset.json").exists():
                    raise SourceError("this is a dataset of ours already: vrl3data merge joins datasets")
        self.files = gathered(self.sources, table_files)
        if not self.files:
            with locate(path=self.sources[0]):
                raise SourceError(f"no {' or '.join(SUFFIXES)} files found")
        listing, problems, sizes = Listing(), list[tuple[str, SourceError]](), []
        for number, (name, path) in enumerate(self.files):
            before = len(listing)
            try:
                with locate(path=name):
                    self._index(number, name, path, listing)
            except SourceError as error:
                problems.append((name, error))
            if len(listing) > before:
                sizes.append((name, path.stat().st_size))
        if self.columns is None or not len(listing):
            if problems:
                raise problems[0][1]
            with locate(path=self.sources[0]):
                raise SourceError("the tables have no rows")
        classes, numbers = named(listing, self.columns.classes)
        notes = [f"the column {name!r} is left out" for name in self.columns.left_out]
        if not self.columns.label:
            notes.append("no column of labels was found: no picture has one; --label-column names one")
        return Found(listing, classes, sizes, tuple(notes), tuple(problems), numbers=numbers)

    def _index(self, number: int, name: str, path: Path, listing: Listing) -> None:
        columns = find_columns(_schema(path), self.wanted)
        if self.columns is None:
            self.columns = columns
        elif columns != self.columns:
            raise SourceError(
                f"expected the columns and classes of {self.files[0][0]}, found others: convert it by itself"
            )
        split = split_of(name, self.options.split)
        mean = path.stat().st_size // max(1, _count(path))
        row = 0
        for batch in _batches(path, [columns.label] if columns.label else [], 0):
            labels = batch.column(0).to_pylist() if columns.label else [None] * batch.num_rows
            for label in labels:
                listing.add(Place(f"{name}/{row:06d}", number, row, mean, split, _class_name(label, columns)))
                row += 1

    def fetch(self, place: Place) -> tuple[bytes, Mapping[str, Any]]:
        assert self.columns is not None
        cursor = self._cursor
        if cursor is None or cursor.file != place.file or place.offset < cursor.start:
            columns = [self.columns.image, *self.columns.said]
            cursor = self._cursor = _Cursor(place.file, _batches(self.files[place.file][1], columns, place.offset))
            cursor.start = place.offset
        row = cursor.row(place.offset)
        image = row.pop(self.columns.image)
        said: dict[str, Any] = {key: value for key, value in row.items() if value is not None}
        data = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(image, dict) and image.get("path"):
            said["path"] = _relative(image["path"])
        if not isinstance(data, bytes):
            raise SourceError("this row has no picture in it, but perhaps a path; embed the files in the table first")
        return data, said

    def close(self) -> None:
        self._cursor = None
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None}


class _Cursor:
    """A place in a table that only moves forwards."""

    def __init__(self, file: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.file, self.batches, self.start = file, batches, 0
        self.batch: pa.RecordBatch | None = None

    def row(self, number: int) -> dict[str, Any]:
        while self.batch is None or number >= self.start + self.batch.num_rows:
            self.start += self.batch.num_rows if self.batch is not None else 0
            try:
                self.batch = next(self.batches)
            except StopIteration:
                raise SourceError(f"row {number} cannot be reached: the file is broken before it") from None
        found = self.batch.slice(number - self.start, 1).to_pylist()[0]
        return dict(found)


def find_columns(schema: pa.Schema, options: TableOptions) -> Columns:
    """SourceError if there is no column of pictures, or more than one and none has a usual name."""
    features = _features(schema)
    for name in (options.image_column, options.label_column):
        if name and name not in schema.names:
            raise ConfigError(f"there is no column {name!r}{did_you_mean(name, schema.names)}")
    pictures = [column.name for column in schema if _is_picture(column, features.get(column.name, {}))]
    if options.image_column and options.image_column not in pictures:
        raise ConfigError(
            f"column {options.image_column!r} holds {schema.field(options.image_column).type}, no pictures"
        )
    usual = [name for name in pictures if name in NAMES["image"]] or pictures
    image = options.image_column or (usual[0] if len(usual) == 1 else "")
    if not image:
        found = f"found {', '.join(pictures)}; {HINT}" if pictures else f"found {', '.join(schema.names)}"
        raise SourceError(f"expected one column of pictures (bytes, or structs of bytes and path), {found}")
    label = options.label_column or _label_column(schema, features)
    if label and not (pa.types.is_integer(schema.field(label).type) or _is_text(schema.field(label).type)):
        raise SourceError(f"expected numbers or names in column {label!r}, found {schema.field(label).type}")
    rest = [column for column in schema if column.name not in (image, label)]
    said = tuple(column.name for column in rest if _is_plain(column.type))
    left_out = tuple(column.name for column in rest if not _is_plain(column.type))
    names = features.get(label, {}).get("names") if label else None
    classes = tuple(map(str, names)) if isinstance(names, list) and len(names) <= MAX_CLASSES else ()
    return Columns(image, label, said, left_out, classes)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What datasets wrote into the schema; empty if it did not or if it cannot be understood."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_picture(column: pa.Field, feature: Mapping[str, Any]) -> bool:
    kind = column.type
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        return _is_binary(kind.field("bytes").type) or bool(pa.types.is_null(kind.field("bytes").type))
    return _is_binary(kind) and (feature.get("_type") == "Image" or column.name in NAMES["image"])


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """What JSON can say as it is. Bytes are never looked into: they may be pickles."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(number or _is_text(kind))


def _label_column(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]]) -> str:
    typed = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = [name for name in NAMES["label"] if name in (typed or schema.names)]
    return usual[0] if usual else typed[0] if len(typed) == 1 else ""


def _class_name(label: object, columns: Columns) -> str:
    """A label as the listing keeps it: a whole number in words, or a name; empty is none. SourceError if wrong."""
    if label is None or (isinstance(label, int) and label < 0):
        return ""
    if columns.classes and (not isinstance(label, int) or label >= len(columns.classes)):
        raise SourceError(f"expected labels of 0 to {len(columns.classes) - 1} in {columns.label!r}, found {label!r}")
    return str(label)


def _relative(path: str) -> str:
    """Only the name of what lay somewhere on the disk of whoever made the table."""
    parts = path.replace("\\", "/").split("/")
    return path if len(parts) > 1 and parts[0] not in ("", "..", "~") and ":" not in parts[0] else parts[-1]


def table_files(source: Path) -> list[tuple[str, Path]]:
    """(name relative to the source, file), sorted; of a folder, those in it and two levels below."""
    if not source.is_dir():
        return [(source.name, source)] if source.suffix in SUFFIXES and source.is_file() else []
    found = [path for depth in ("*", "*/*", "*/*/*") for path in source.glob(depth) if path.suffix in SUFFIXES]
    return sorted((path.relative_to(source).as_posix(), path) for path in found if path.is_file())


def _schema(path: Path) -> pa.Schema:
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.schema_arrow
        with _arrow(path) as reader:
            return reader.schema
    except BROKEN as error:
        raise SourceError(f"not a whole {path.suffix} file: {error}") from error


def _count(path: Path) -> int:
    if path.suffix != ".parquet":
        return path.stat().st_size // 4096
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _arrow(path: Path) -> Any:
    """A reader of a file or a stream of record batches; the file stays where it is, mapped."""
    source = pa.memory_map(str(path))
    if source.read_at(6, 0) == b"ARROW1":
        return pa.ipc.open_file(source)
    return pa.ipc.open_stream(source)


def _batches(path: Path, columns: list[str], first: int) -> Iterator[pa.RecordBatch]:
    """Rows from `first` on. SourceError where the file is broken."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path, columns, first)
        else:
            yield from _arrow_batches(path, columns, first)
    except BROKEN as error:
        raise SourceError(f"not a whole {path.suffix} file: {error}; get it anew") from error


def _parquet(path: Path, columns: list[str], first: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        skip = first
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if skip >= count:
                skip -= count
                continue
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False):
                if skip < batch.num_rows:
                    yield batch.slice(skip)
                skip = max(0, skip - batch.num_rows)


def _arrow_batches(path: Path, columns: list[str], first: int) -> Iterator[pa.RecordBatch]:
    reader = _arrow(path)
    skip = first
    whole = (reader.get_batch(n) for n in range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
    for batch in whole:
        batch.validate(full=True)
        if skip < batch.num_rows:
            yield batch.select(columns).slice(skip)
        skip = max(0, skip - batch.num_rows)
