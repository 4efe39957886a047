"""The shards of one split while they are written (FORMAT.md 2, 6)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vrl3data import shard, storage, takeover
from vrl3data.errors import DamagedError, locate
from vrl3data.manifest import ShardInfo, SplitInfo
from vrl3data.sample import Body, body_size
from vrl3data.scan import Scan

COPY_BYTES = 4 * 1024**2
LARGE = 64 * 1024
"""Pieces of this size are written where they lie; smaller ones are joined first."""
BUFFER_BYTES = 1024**2


class SplitWriter:
    """Appends samples to numbered shards; `head` makes the content of `__meta__` for the shard of a number."""

    def __init__(self, directory: Path, name: str, head: Callable[[str, int], bytes], before: SplitInfo) -> None:
        self.directory, self.name, self.head = directory, name, head
        self.samples, self.steps, self.shards = before.samples, before.steps, list(before.shards)
        self.file: BinaryIO | None = None
        self.path = Path()
        self.size = self.in_shard = 0
        self._sha256: Any = hashlib.sha256()

    @property
    def number(self) -> int:
        """Of the shard that is open, or of the next one."""
        return len(self.shards)

    @property
    def shard_name(self) -> str:
        return self.path.name.removesuffix(shard.PART)

    @property
    def info(self) -> SplitInfo:
        return SplitInfo(self.samples, self.steps, tuple(self.shards))

    def has_room(self, size: int, shard_size: int) -> bool:
        """Whether `size` more bytes may go into the open shard; the first sample of a shard always may."""
        return self.in_shard == 0 or self.size + size + len(shard.END) <= shard_size

    def open(self) -> None:
        """Begin the next shard."""
        self.path = self.directory / f"{self.name}-{self.number:06d}.tar{shard.PART}"
        self.size, self.in_shard, self._sha256 = 0, 0, hashlib.sha256()
        self.file = self.path.open("wb", buffering=BUFFER_BYTES)
        self._put([(shard.HEAD_MEMBER, self.head(self.name, self.number))])
        # On disk at once, so that whoever looks finds a shard without samples and not an empty file.
        self.sync()
        storage.sync_directory(self.directory)

    def append(self, members: Sequence[tuple[str, Body]], steps: int) -> shard.Places:
        """Write one sample. Returns where the payload of each member lies: its offset and size."""
        named = [(shard.sample_name(self.samples, name), body) for name, body in members]
        places = self._put(named)
        self.samples += 1
        self.in_shard += 1
        self.steps += steps
        return {name: place for (name, _), place in zip(members, places, strict=True)}

    def sync(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Finish the open shard: end blocks, sync, rename."""
        if self.file is None:
            return
        self._write(shard.END)
        self.sync()
        self.file.close()
        self.file = None
        finished = self.path.with_name(self.shard_name)
        self.path.rename(finished)
        storage.sync_directory(finished.parent)
        self._finished(finished.name)

    def abandon(self) -> None:
        """Let go of the open shard as it is."""
        if self.file is not None:
            with suppress(OSError):  # the disk has refused these buffers already, and that was reported
                self.file.close()
            self.file = None

    def adopt(self, path: Path, walked: Scan, window: int) -> None:
        """Go on with a shard of an interrupted run. DamagedError if it is not the next one."""
        first = walked.entries[0].key if walked.entries else self.samples
        if walked.head["shard"] != self.number or first != self.samples or self.file is not None:
            with locate(shard=path.name):
                raise DamagedError(f"expected shard {self.number} of split {self.name} from sample {self.samples} on")
        end, self._sha256 = takeover.verify(path, walked, window)
        self.path, self.size, self.in_shard = path, end, len(walked.entries)
        self.samples += len(walked.entries)
        self.steps += sum(entry.meta.get("length", 0) for entry in walked.entries)
        if walked.closed:
            if path.name != self.shard_name:
                path.rename(path.with_name(self.shard_name))
            self.size += len(shard.END)
            self._finished(self.shard_name)
            return
        os.truncate(path, end)
        self.file = path.open("r+b", buffering=BUFFER_BYTES)
        self.file.seek(end)

    def _finished(self, name: str) -> None:
        self.shards.append(ShardInfo(name, self.in_shard, self.size, self._sha256.hexdigest()))

    def _write(self, data: bytes | memoryview) -> None:
        assert self.file is not None
        self.file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def _put(self, members: Sequence[tuple[str, Body]]) -> list[tuple[int, int]]:
        """Headers, payloads, padding; large pieces without a copy. Returns (offset, size) of each payload."""
        places: list[tuple[int, int]] = []
        waiting: list[bytes | memoryview] = []
        offset = self.size
        for name, body in members:
            size = body_size(body)
            places.append((offset + shard.BLOCK, size))
            offset += shard.BLOCK + shard.padded(size)
            waiting.append(shard.member_header(name, size))
            for piece in _pieces(body):
                if len(piece) < LARGE:
                    waiting.append(piece)
                    continue
                self._write(b"".join(waiting))
                self._write(piece)
                waiting = []
            waiting.append(bytes(shard.padded(size) - size))
        self._write(b"".join(waiting))
        assert self.size == offset
        assert offset % shard.BLOCK == 0
        return places


def _pieces(body: Body) -> Iterator[bytes | memoryview]:
    if isinstance(body, Path):
        with body.open("rb") as file:
            while chunk := file.read(COPY_BYTES):
                yield chunk
    else:
        yield from body if isinstance(body, tuple) else (body,)
