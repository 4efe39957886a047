"""Compressed parts of a log, unpacked to no more than the size that they claim."""

from __future__ import annotations

import bz2

import zstandard

from converters.logs.libraries import library
from vrl3data.errors import SourceError

MAX_CHUNK = 2**29
"""Writers make chunks of 1 to 16 MB, or of one message; 512 MiB in one chunk is no log."""
MAX_MESSAGE = 2**28
ZSTD = b"\x28\xb5\x2f\xfd"


def unpack(data: bytes | memoryview, compression: str, size: int) -> bytes | memoryview:
    """The content of a chunk that claims `size` bytes. SourceError if it is not that long, or cannot be unpacked."""
    if size > MAX_CHUNK:
        raise SourceError(f"a chunk claims {size:,} bytes, more than the {MAX_CHUNK:,} that are read at once")
    if compression in ("", "none"):
        found = data
    elif compression == "zstd":
        found = _zstd(data, size)
    elif compression == "lz4":
        found = _lz4(data, size)
    elif compression == "bz2":
        found = _bz2(data, size)
    else:
        raise SourceError(f"chunks compressed by {compression!r} cannot be read; zstd, lz4, bz2 and none can")
    if len(found) != size:
        more = "more" if len(found) > size else f"{len(found):,}"
        raise SourceError(f"a chunk claims {size:,} bytes and holds {more}; it is damaged")
    return found


def unpack_message(data: bytes | memoryview) -> bytes:
    """A message that rosbag2 compressed by itself (zstd): its frame says how long it is."""
    try:
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise SourceError(f"the zstd frame of a message is damaged: {error}") from error
    if size > MAX_MESSAGE:
        raise SourceError(f"a compressed message claims {size:,} bytes, more than {MAX_MESSAGE:,}")
    return _zstd(data, MAX_MESSAGE if size < 0 else size)


def _zstd(data: bytes | memoryview, size: int) -> bytes:
    pieces, left = [], size + 1
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(data) as reader:
            while left and (piece := reader.read(min(left, 2**22))):
                pieces.append(piece)
                left -= len(piece)
    except zstandard.ZstdError as error:
        raise SourceError(f"zstd data cannot be unpacked: {error}") from error
    return b"".join(pieces)


def _lz4(data: bytes | memoryview, size: int) -> bytes:
    frame = library("lz4.frame")
    try:
        unpacked: bytes = frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    except (RuntimeError, EOFError) as error:
        raise SourceError(f"lz4 data cannot be unpacked: {error}") from error
    return unpacked


def _bz2(data: bytes | memoryview, size: int) -> bytes:
    try:
        return bz2.BZ2Decompressor().decompress(data, max_length=size + 1)
    except (OSError, EOFError, ValueError) as error:
        raise SourceError(f"bz2 data cannot be unpacked: {error}") from error
