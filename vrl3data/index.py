"""index.parquet: where every member of every sample lies; built from shards, never repaired (FORMAT.md 7)."""

from __future__ import annotations

import mmap
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

_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}
_LEFT_OUT = ("source_meta",)
REBUILD = "'vrl3data index rebuild' makes it anew"
REPEATED = ("shard", "split")


def arrow_schema(schema: Schema) -> pa.Schema:
    columns = [("key", pa.int64()), ("shard", pa.string())]
    columns += [(key, _ARROW[kind]) for key, kind in shard.meta_keys(schema.kind).items() if key not in _LEFT_OUT]
    for member in member_names(schema):
        columns += [(f"{member}.offset", pa.int64()), (f"{member}.size", pa.int64())]
    return pa.schema(columns)


class IndexBuilder:
    """Collects entries in order; holds full row groups in Arrow's compact form."""

    def __init__(self, schema: Schema) -> None:
        self.schema = arrow_schema(schema)
        self.meta_names = [name for name in self.schema.names if name not in ("key", "shard") and "." not in name]
        self.members = member_names(schema)
        self.rows: list[tuple[Any, ...]] = []
        self.batches: list[pa.RecordBatch] = []

    def add(self, shard_name: str, entry: shard.Entry) -> None:
        """DamagedError if the sample does not have the members that the schema promises."""
        if list(entry.members) != self.members:
            odd = sorted(set(entry.members) ^ set(self.members)) or list(entry.members)
            with locate(shard=shard_name, episode=entry.meta.get("name")):
                raise DamagedError(f"the members of the sample are not those of the schema: {', '.join(odd)}")
        places = [number for member in self.members for number in entry.members[member]]
        self.rows.append((entry.key, shard_name, *(entry.meta[name] for name in self.meta_names), *places))
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self.rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        self.batches.append(pa.record_batch(arrays, schema=self.schema))
        self.rows = []

    def table(self) -> pa.Table:
        """In the order of FORMAT.md 7, whatever order the samples came in."""
        if self.rows:
            self._flush()
        return _sorted(pa.Table.from_batches(self.batches, self.schema))


def joined(before: pa.Table, more: pa.Table) -> pa.Table:
    """The index of a dataset to which something was appended."""
    return _sorted(pa.concat_tables([before.replace_schema_metadata(None), more]))


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([("split", "ascending"), ("key", "ascending")])


def write(directory: Path, table: pa.Table) -> dict[str, str]:
    """Atomically. Returns what the manifest keeps of it: its hash, by which a stale or broken index is known."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="zstd")
    data = sink.getvalue().to_pybytes()
    storage.replace_file(directory / INDEX, data)
    return {"xxh3_128": xxhash.xxh3_128_hexdigest(data)}


class IndexFile:
    """The index of a dataset, read column by column: 1.28 million rows cost only what is asked for.

    `source` is a table, the path of index.parquet, or its bytes.
    """

    def __init__(self, source: pa.Table | Path | bytes) -> None:
        self._source = source
        self._columns: dict[str, pa.ChunkedArray] = {}

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        if isinstance(self._source, pa.Table):
            return self._source[column]
        if column not in self._columns:
            # Names of shards and the like repeat: a dictionary of them is read, not millions of strings.
            repeated = [column] if column in REPEATED else []
            with _reading():
                found = pq.read_table(self._file(), columns=[column], read_dictionary=repeated, memory_map=True)
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
        return pa.BufferReader(self._source) if isinstance(self._source, bytes) else self._source


def read(directory: Path, found: Manifest) -> IndexFile | None:
    """The index that the manifest knows; None if it is missing, stale or broken, and has to be made anew."""
    path = directory / INDEX
    if not path.is_file() or not path.stat().st_size or not found.index:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if not is_known(data, found):
            return None
    with locate(path=path):
        return _opened(path, found)


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


def _opened(source: Path | bytes, found: Manifest) -> IndexFile | None:
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
