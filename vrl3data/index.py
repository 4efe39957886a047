"""index.parquet: where every member of every sample lies; built from shards, never repaired (FORMAT.md 7)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from vrl3data import shard, storage
from vrl3data.errors import DamagedError, locate
from vrl3data.manifest import Manifest
from vrl3data.sample import member_names
from vrl3data.schema import Schema

INDEX = "index.parquet"
ROW_GROUP = 65_536
HELD_ROWS = 8192
"""Rows of a split that are held as Python objects while an index is built."""

_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}
_LEFT_OUT = ("source_meta",)
REBUILD = "'vrl3data index rebuild' makes it anew"
REPEATED = ("shard", "split")


def arrow_schema(schema: Schema) -> pa.Schema:
    columns = [("key", pa.int64()), ("shard", pa.string())]
    keys = shard.meta_keys(schema.kind, streams=bool(schema.clocks))
    columns += [(key, _ARROW[kind]) for key, kind in keys.items() if key not in _LEFT_OUT]
    for member in member_names(schema):
        columns += [(f"{member}.offset", pa.int64()), (f"{member}.size", pa.int64())]
    return pa.schema(columns)


class IndexBuilder:
    """Collects entries, per split in order of key: rows are few at a time, what is full is held compressed.

    1.28 million images take about 0.2 GB so; `table` takes three times that, `write` one row group.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = arrow_schema(schema)
        self.meta_names = [name for name in self.schema.names if name not in ("key", "shard") and "." not in name]
        self.members = member_names(schema)
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self._held: dict[str, list[pa.Buffer]] = {}
        self._last: dict[str, int] = {}
        self._sorted = True

    def add(self, shard_name: str, entry: shard.Entry) -> None:
        """DamagedError if the sample does not have the members that the schema promises."""
        if list(entry.members) != self.members:
            odd = sorted(set(entry.members) ^ set(self.members)) or list(entry.members)
            with locate(shard=shard_name, episode=entry.meta.get("name")):
                raise DamagedError(f"the members of the sample are not those of the schema: {', '.join(odd)}")
        places = [number for member in self.members for number in entry.members[member]]
        split = entry.meta["split"]
        rows = self._rows.setdefault(split, [])
        rows.append((entry.key, shard_name, *(entry.meta[name] for name in self.meta_names), *places))
        self._sorted &= entry.key > self._last.get(split, -1)
        self._last[split] = entry.key
        if len(rows) == HELD_ROWS:
            self._held.setdefault(split, []).append(_packed(self._batch(split)))
            rows.clear()

    def _batch(self, split: str) -> pa.RecordBatch:
        columns = zip(*self._rows[split], strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        return pa.record_batch(arrays, schema=self.schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for split in sorted(self._rows):
            for held in self._held.get(split, ()):
                yield pa.ipc.open_stream(held).read_next_batch()
            if self._rows[split]:
                yield self._batch(split)

    def table(self) -> pa.Table:
        """In the order of FORMAT.md 7, whatever order the samples came in."""
        table = pa.Table.from_batches(self._batches(), self.schema)
        return table if self._sorted else table.sort_by([("split", "ascending"), ("key", "ascending")])

    def row_groups(self) -> Iterator[pa.Table]:
        """The rows of `table`, one row group at a time."""
        waiting: list[pa.RecordBatch] = []
        count = 0
        for batch in self._batches() if self._sorted else self.table().to_batches():
            waiting.append(batch)
            count += len(batch)
            while count >= ROW_GROUP:
                table = pa.Table.from_batches(waiting, self.schema)
                yield table.slice(0, ROW_GROUP)
                waiting = table.slice(ROW_GROUP).to_batches()
                count -= ROW_GROUP
        if count or not self._rows:
            yield pa.Table.from_batches(waiting, self.schema)


def joined(before: pa.Table, more: pa.Table) -> pa.Table:
    """The index of a dataset to which something was appended."""
    table = pa.concat_tables([before.replace_schema_metadata(None), more])
    return table.sort_by([("split", "ascending"), ("key", "ascending")])


def _packed(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_batch(batch)
    return sink.getvalue()


def write(directory: Path, rows: pa.Table | IndexBuilder) -> dict[str, str]:
    """Atomically. Returns what the manifest keeps of it: its hash, by which a stale or broken index is known."""
    groups = rows.row_groups() if isinstance(rows, IndexBuilder) else _sliced(rows)
    temporary = directory / f".{INDEX}.tmp"
    # A row group is one chunk, so that the bytes do not depend on where a run was interrupted.
    with temporary.open("wb") as file:
        with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
            for group in groups:
                writer.write_table(group.combine_chunks(), ROW_GROUP)
        file.flush()
        os.fsync(file.fileno())
    facts = {"xxh3_128": _hash(temporary)}
    temporary.replace(directory / INDEX)
    storage.sync_directory(directory)
    return facts


def _sliced(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, ROW_GROUP) for start in range(0, max(1, len(table)), ROW_GROUP))


def _hash(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return xxhash.xxh3_128_hexdigest(data)


class IndexFile:
    """The index of a dataset, read column by column: 1.28 million rows cost only what is asked for.

    `source` is a table, or the bytes of index.parquet, which may be mapped.
    """

    def __init__(self, source: pa.Table | pa.Buffer | bytes) -> None:
        self._source = source
        self._columns: dict[str, pa.ChunkedArray] = {}

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        if isinstance(self._source, pa.Table):
            return self._source[column]
        if column not in self._columns:
            # Names of shards and the like repeat: a dictionary of them is read, not millions of strings.
            repeated = [column] if column in REPEATED else []
            with _reading():
                found = pq.read_table(self._file(), columns=[column], read_dictionary=repeated)
            if found[column].null_count:
                raise DamagedError(f"the index has no {column!r} for some samples; {REBUILD}")
            self._columns[column] = found[column]
        return self._columns[column]

    def schema(self) -> pa.Schema:
        with _reading():
            return self._source.schema if isinstance(self._source, pa.Table) else pq.read_schema(self._file())

    def table(self) -> pa.Table:
        """All columns."""
        return self._source if isinstance(self._source, pa.Table) else pq.read_table(self._file())

    def _file(self) -> Any:
        return pa.BufferReader(self._source)


def read(directory: Path, found: Manifest) -> IndexFile | None:
    """The index that the manifest knows; None if it is missing, stale or broken, and has to be made anew."""
    path = directory / INDEX
    if not path.is_file() or not path.stat().st_size or not found.index:
        return None
    with locate(path=path), _reading():
        data = pa.memory_map(str(path)).read_buffer()
    if not is_known(data, found):
        return None
    with locate(path=path):
        return _opened(data, found)  # these bytes, whatever a writer may put in their place


def is_known(data: Any, found: Manifest) -> bool:
    """Whether these bytes are those of the index that the manifest knows."""
    return xxhash.xxh3_128_hexdigest(data) == found.index.get("xxh3_128")


def from_bytes(data: bytes, found: Manifest) -> IndexFile:
    """The index in `data`. DamagedError if it is not the one that the manifest knows."""
    opened = _opened(data, found) if is_known(data, found) else None
    if opened is None:
        raise DamagedError(f"the index is not that of the dataset; {REBUILD}")
    if len(opened["key"]) != found.samples:
        raise DamagedError(f"the index has {len(opened['key'])} samples, the manifest {found.samples}; {REBUILD}")
    return opened


def _opened(source: pa.Buffer | bytes, found: Manifest) -> IndexFile | None:
    index = IndexFile(source)
    known = index.schema().equals(arrow_schema(found.schema))
    # The index comes from outside like everything else: it may name our shards and no other file.
    foreign = set(index["shard"].unique().to_pylist()) - set(found.shard_sizes()) if known else set()
    if foreign:
        raise DamagedError(f"the index names {min(map(str, foreign))!r}, which is no shard of this dataset")
    return index if known else None


@contextmanager
def _reading() -> Iterator[None]:
    """What arrow says of bytes that are no index, in our words."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"the index cannot be read: {error}; {REBUILD}") from error


def shard_files(directory: Path) -> list[Path]:
    """All shards, finished or not, in order of split and number. Other files are nobody's business."""
    data = directory / "data"
    found = (
        [path for path in data.iterdir() if shard.FILE_NAME.fullmatch(path.name) and not path.is_dir()]
        if data.is_dir()
        else []
    )
    return sorted(found, key=lambda path: path.name)


def shard_sizes(directory: Path) -> dict[str, int]:
    sizes = {}
    for path in shard_files(directory):
        with suppress(FileNotFoundError):  # a writer has just given it its final name
            sizes[path.name] = path.stat().st_size
    return sizes
