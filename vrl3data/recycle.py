"""Buffers for batches that are used again. Imports no torch."""

from __future__ import annotations

import sys
import threading

import numpy as np

from vrl3data.schema import Array

LEAST = 1 << 20
"""Bytes of the smallest buffer that is kept: smaller ones never cost new pages."""
KEPT = 4
"""Buffers: two for the batch that is being used, two for the next one."""


class Recycled:
    """Hands out arrays, again when nobody refers to them or to a view of them any more.

    New pages cost as much as the copy into them, and malloc returns them to the system after each batch. Any reference
    counts: a tensor made by torch.from_numpy holds one. Threads may share it.
    """

    def __init__(self) -> None:
        self._buffers: list[Array] = []
        self._unused = 0
        self._lock = threading.Lock()

    def empty(self, rows: int, size: int) -> Array:
        """(rows, size) uint8 of any content."""
        if rows * size < LEAST:
            return np.empty((rows, size), np.uint8)
        with self._lock:
            for at in range(len(self._buffers)):
                if self._buffers[at].nbytes == rows * size and self._references(at) == self._unused:
                    return self._buffers[at].reshape(rows, size)
            del self._buffers[: max(0, len(self._buffers) - KEPT + 1)]
            self._buffers.append(np.empty(rows * size, np.uint8))
            self._unused = self._references(len(self._buffers) - 1)
            return self._buffers[-1].reshape(rows, size)

    def _references(self, at: int) -> int:
        # What an unused buffer counts differs between versions of Python, so it is measured, never assumed.
        return sys.getrefcount(self._buffers[at])

    def __reduce__(self) -> tuple[type[Recycled], tuple[()]]:
        return Recycled, ()
