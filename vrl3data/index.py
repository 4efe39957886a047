"""index.parquet: where every member of every sample lies; built from shards, never repaired (FORMAT.md 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vrl3data import shard, storage
from vrl3data.errors import DamagedError, locate
from vrl3data.sample import member_names
from vrl3data.schema import Schema

INDEX = "index.parquet"
ROW_GROUP = 65_536

_SHARED = ["id", "name", "split", "source", "source_sha256", "task", "subsets", "absent", "origin"]
_EPISODES = ["length", "final_observation", "terminated", "truncated", "success", "start_time_ns"]
_IMAGES = ["label", "class_name", "height", "width"]
_INTEGERS = {*_EPISODES, "label", "height", "width"}
_NUMBERS = ("psnr", "max_error")


def arrow_schema(schema: Schema) -> pa.Schema:
    columns = [("key", pa.int64()), ("shard", pa.string())]
    for name in [*_SHARED, *(_EPISODES if schema.kind == "episodes" else _IMAGES), *_NUMBERS, "digest"]:
        kind = pa.int64() if name in _INTEGERS else pa.float64() if name in _NUMBERS else pa.string()
        columns.append((name, kind))
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
        return pa.Table.from_batches(self.batches, self.schema).sort_by([("split", "ascending"), ("key", "ascending")])


def write(directory: Path, table: pa.Table, dataset_id: str, shards: Mapping[str, int]) -> None:
    """Atomically. `shards` maps file names to bytes, by which a stale index is known."""
    note = json.dumps({"dataset_id": dataset_id, "shards": dict(shards)}, sort_keys=True)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({"vrl3data": note}), sink, row_group_size=ROW_GROUP, compression="zstd"
    )
    storage.replace_file(directory / INDEX, sink.getvalue().to_pybytes())


def read(directory: Path, schema: Schema, dataset_id: str) -> pa.Table | None:
    """The index; None if it is missing or stale. DamagedError if it is no index at all."""
    path = directory / INDEX
    if not path.is_file():
        return None
    with locate(path=path):
        try:
            table = pq.read_table(path, memory_map=True)
            note = json.loads((table.schema.metadata or {}).get(b"vrl3data", b"{}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedError(f"the index cannot be read: {error}; 'vrl3data index rebuild' makes it anew") from error
        sizes = shard_sizes(directory)
        stale = note.get("dataset_id") != dataset_id or note.get("shards") != sizes
        if stale or not table.schema.equals(arrow_schema(schema)):
            return None
        # The index comes from outside like everything else: it may name our shards and no other file.
        if foreign := set(table["shard"].unique().to_pylist()) - set(sizes):
            raise DamagedError(f"the index names {sorted(map(str, foreign))[0]!r}, which is no shard of this dataset")
    return table


def shard_files(directory: Path) -> list[Path]:
    """All shards, finished or not, in order of split and number."""
    data = directory / "data"
    found = [path for path in data.glob("*.tar*") if path.name.endswith((".tar", ".tar.part"))]
    return sorted(found, key=lambda path: path.name)


def shard_sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in shard_files(directory)}
