"""Arrays from one process to another: bytes through shared memory without a name, what they are through a pipe.

The writer owns a few slots and fills one when the reader has given it back. The kernel frees them when both have ended.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vrl3data.errors import Vrl3dataError
from vrl3data.schema import Array

Batch = dict[str, Any]
ALIGNMENT = 64


@dataclass(frozen=True)
class Part:
    """Where an array lies in a slot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def view(self, memory: mmap.mmap) -> Array:
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.frombuffer(memory, self.dtype, count, self.offset).reshape(self.shape)


class Mouth:
    """The end that sends. At most `slots` batches are under way."""

    def __init__(self, connection: Connection, slots: int) -> None:
        self.connection, self.slots = connection, slots
        self._memory: dict[int, mmap.mmap] = {}
        self._free = list(range(slots))

    def say(self, batch: Mapping[str, Any]) -> None:
        """Wait for a free slot, fill it and tell the other end. EOFError or an OSError if nobody listens any more."""
        parts, size = _parts(batch)
        slot = self._free.pop() if self._free else self.connection.recv()
        memory = self._memory.get(slot)
        if memory is None or len(memory) < size:
            memory = self._memory[slot] = self._allocate(slot, size)
        for part in parts:
            part.view(memory)[...] = batch[part.name]
        self.connection.send((slot, parts))

    def wait(self) -> None:
        """Until the other end is closed: to leave earlier would take what it has not read yet."""
        with suppress(EOFError, OSError):
            while True:
                self.connection.recv()

    def _allocate(self, slot: int, size: int) -> mmap.mmap:
        """Memory for a slot, for both of us: the other end gets the descriptor."""
        with tempfile.TemporaryFile(dir=_shared()) as file:
            os.ftruncate(file.fileno(), size)
            self.connection.send((slot, size))
            reduction.send_handle(self.connection, file.fileno(), os.getppid())
            return mmap.mmap(file.fileno(), size)


class Ear:
    """The end that receives."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._memory: dict[int, mmap.mmap] = {}

    def hear(self) -> Batch | Vrl3dataError:
        """The next batch, a copy, or the error that was sent in its place. EOFError if the other end is gone."""
        while True:
            found = self.connection.recv()
            if isinstance(found, Vrl3dataError):
                return found
            slot, what = found
            if isinstance(what, int):
                handle = reduction.recv_handle(self.connection)
                self._memory[slot] = mmap.mmap(handle, what)
                os.close(handle)
                continue
            batch = {part.name: part.view(self._memory[slot]).copy() for part in what}
            with suppress(OSError):  # the batch is here; that the other end is gone shows when the next is missing
                self.connection.send(slot)
            return batch


def _parts(batch: Mapping[str, Any]) -> tuple[list[Part], int]:
    """Where each array goes, and the size of it all."""
    parts, offset = [], 0
    for name, value in batch.items():
        array = np.asarray(value)
        parts.append(Part(name, array.dtype.str, array.shape, offset))
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return parts, max(offset, 1)


def _shared() -> str | None:
    """A folder in memory where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
