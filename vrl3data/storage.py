"""Files that are whole or not there, and errors of the disk in plain words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrl3data.errors import DestinationError, locate

RESUME_HINT = "what was confirmed is safe; run the same command again to go on"
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EEXIST: "a file is in the way",
    errno.EFBIG: "the file would be larger than is allowed here",
}


@contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turn an OSError of the disk into a DestinationError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        with locate(path=path):
            raise DestinationError(f"cannot write: {reason}{'; ' + hint if hint else ''}") from error


def check_target(path: Path) -> None:
    """Make the folder of a file that long work will write, before the work. DestinationError if that cannot be."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a directory of that name")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")


def replace_file(path: Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename: `path` is the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make what another library wrote durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames and new files in a directory durable, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
