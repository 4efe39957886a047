"""A file that is read at any place, with the operating system's complaints as ours."""

from __future__ import annotations

import os
from pathlib import Path

from vrl3data.errors import SourceError


class OpenFile:
    """`size` is that of the file when it was opened."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror or error}") from error

    def read(self, at: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file."""
        try:
            self._file.seek(at)
            return self._file.read(length)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror or error}") from error

    def close(self) -> None:
        self._file.close()
