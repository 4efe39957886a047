"""Hashes of source files, taken once and not before they are needed."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from converters.base import file_sha256
from vrl3data.errors import SourceError, locate

_HASHING = threading.Lock()
"""Threads hand units to workers: a file with many episodes is hashed by one of them, the others wait."""


class LazyHash:
    """The sha256 of a file as text, taken when it is first asked for. On its way to a worker it becomes the text."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        with locate(path=self.path.name), _HASHING:
            try:
                stat = self.path.stat()
                return _hashed(self.path, stat.st_mtime_ns, stat.st_size)
            except OSError as error:
                raise SourceError(f"cannot read: {error.strerror or error}") from error

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


@lru_cache(maxsize=4096)
def _hashed(path: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001 - a changed file is hashed anew
    return file_sha256(path)
