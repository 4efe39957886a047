"""The parquet files of a LeRobot set, bounded in size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from converters.export.lerobot.columns import Column, schema_of
from converters.export.lerobot.statistics import Stats

CHUNKS = 1000
"""Files in a folder."""
FLUSHED = 100
"""Episodes whose metadata is written together."""
PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}"


class DataFiles:
    """data/: a row group for each episode, a new file before one would pass the limit."""

    def __init__(self, dest: Path, columns: list[Column], max_bytes: int) -> None:
        self.root, self.max_bytes, self.schema = dest / "data", max_bytes, schema_of(columns)
        self.chunk, self.file, self.rows = 0, 0, 0
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    def add(self, arrays: list[Any], length: int) -> dict[str, int]:
        """The columns data/* of the episode's row."""
        table = pa.table(arrays, schema=self.schema)
        if self._writer is not None and self._file.tell() + table.nbytes > self.max_bytes:
            self.close()
            self.chunk, self.file = (self.chunk, self.file + 1) if self.file + 1 < CHUNKS else (self.chunk + 1, 0)
        if self._writer is None:
            path = self.root / f"{PATH.format(chunk_index=self.chunk, file_index=self.file)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._writer = pq.ParquetWriter(self._file, self.schema, compression="snappy", use_dictionary=True)
        self._writer.write_table(table, row_group_size=max(1, length))
        self.rows += length
        return {"data/chunk_index": self.chunk, "data/file_index": self.file}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None


class EpisodeTable:
    """meta/episodes: one row per episode, with its statistics."""

    def __init__(self, dest: Path) -> None:
        self.path = dest / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        self.path.parent.mkdir(parents=True)
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any], stats: dict[str, Stats]) -> None:
        flat = {f"stats/{key}/{word}": value.tolist() for key, item in stats.items() for word, value in item.items()}
        self._waiting.append({**row, **flat, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        if len(self._waiting) >= FLUSHED:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_pylist(self._waiting, self._writer.schema if self._writer else None)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="snappy", use_dictionary=True)
        self._writer.write_table(table)
        self._waiting = []
