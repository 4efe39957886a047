"""Tar files of small samples as webdataset reads them: the members of a sample are neighbours with one key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vrl3data import shard


class TarShards:
    """Writes `<split>-000000.tar` and so on; one is closed before the sample that would pass `shard_size`.

    Times, owners and modes are fixed, so the same samples make the same bytes.
    """

    def __init__(self, directory: Path, split: str, shard_size: int) -> None:
        self.directory, self.split, self.shard_size = directory, split, shard_size
        self.shards = self.samples = 0
        self._file: BinaryIO | None = None
        self._size = 0

    def add(self, members: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """One sample; its key is its number. `members` are (ending, content)."""
        size = sum(shard.BLOCK + shard.padded(len(body)) for _, body in members)
        if self._file is not None and self._size + size + len(shard.END) > self.shard_size:
            self.close()
        if self._file is None:
            self._file = (self.directory / f"{self.split}-{self.shards:06d}.tar").open("xb")
            self.shards, self._size = self.shards + 1, 0
        for ending, body in members:
            self._file.write(shard.member_header(f"{self.samples:09d}.{ending}", len(body)))
            self._file.write(body)
            self._file.write(bytes(shard.padded(len(body)) - len(body)))
        self.samples, self._size = self.samples + 1, self._size + size

    def close(self) -> None:
        if self._file is not None:
            self._file.write(shard.END)
            self._file.close()
            self._file = None

    def __enter__(self) -> TarShards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:  # fmt: skip
        self.close()
