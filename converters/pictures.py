"""Pictures of cameras on their way into a dataset: size, fit, colour order, depth in whole counts.

Letters: N rows, H height, W width, C channels.
"""

from __future__ import annotations

import io
import mmap
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from vrl3data import storage
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.schema import Array, Coded

FITS = ("crop", "pad", "squash")
FORMATS = ("JPEG", "PNG")
BLOCK_FRAMES = 16
MAX_DEPTH = 65535
MEMORY_BYTES = 64 * 1024**2
"""Of files that are joined in memory; more go through a file."""


class LazyFiles(Sequence[bytes]):
    """Files that are read when they are asked for."""

    @abstractmethod
    def file(self, row: int) -> bytes:
        """That of a row, counted from 0."""

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self.file(row) for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.file(index)


@dataclass(frozen=True)
class Frames:
    """Pictures of one camera as the files that the source keeps, one per row. `shape` is that of a decoded row."""

    files: Sequence[bytes]
    shape: tuple[int, ...]

    def coded(self) -> Coded:
        """The files as they are, for a feature with codec `jpeg`; each is checked to be whole.

        Many are a view of an unlinked file, so that they need not fit in memory.
        """
        ends = [0]
        with tempfile.SpooledTemporaryFile(MEMORY_BYTES, prefix="vrl3data-frames-") as joined:
            for number, file in enumerate(self.files):
                with locate(step=number):
                    if not file.startswith(b"\xff\xd8"):
                        raise SourceError(f"expected a JPEG file, found one that begins with {file[:8]!r}")
                    decode(file, self.shape)
                ends.append(ends[-1] + len(file))
                with storage.writing(Path(tempfile.gettempdir()), "set TMPDIR to a folder with more room"):
                    joined.write(file)
            joined.seek(0)
            large = ends[-1] > MEMORY_BYTES  # then it has gone to the disk; the view outlives its name
            body = memoryview(mmap.mmap(joined.fileno(), 0, access=mmap.ACCESS_READ)) if large else joined.read()
        return Coded(body, np.array(ends, np.uint64))

    def rows(self) -> Iterator[Array]:
        """Decoded blocks. SourceError names the step whose file is broken or of another size."""
        for start in range(0, len(self.files), BLOCK_FRAMES):
            rows = []
            for step, file in enumerate(self.files[start : start + BLOCK_FRAMES], start):
                with locate(step=step):
                    rows.append(decode(file, self.shape))
            yield np.stack(rows)


def decode(file: bytes, shape: tuple[int, ...]) -> Array:
    """One JPEG or PNG file as an array of `shape`, uint8 (or uint16 for depth). SourceError if it is not one."""
    dtype = np.uint8 if len(shape) == 3 else np.uint16
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            found = (image.height, image.width)
            if found != shape[:2]:  # before anything is decoded
                raise SourceError(f"expected a picture of {shape[0]}x{shape[1]}, found {found[0]}x{found[1]}")
            if dtype == np.uint8 and image.mode.startswith("I"):  # Pillow would cut off at 255
                raise SourceError("expected a picture of 8 bits, found one of 16 bits per pixel, as depth has it")
            picture = image.convert("RGB" if shape[2] == 3 else "L") if len(shape) == 3 else image
            array = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, NotImplementedError, Image.DecompressionBombError) as error:
        raise SourceError(f"not a readable picture: {error if file else 'the file is empty'}") from error
    if dtype == np.uint16 and (array.dtype.kind not in "iu" or array.ndim != 2):
        raise SourceError(f"expected a depth picture of whole numbers, found {array.dtype} of shape {array.shape}")
    return array.astype(dtype, copy=False).reshape(shape)


def picture_size(file: bytes) -> tuple[int, int, int]:
    """(height, width, channels) of a JPEG or PNG file, by its header."""
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            return image.height, image.width, 1 if image.mode in ("L", "1", "I", "I;16") else 3
    except (OSError, SyntaxError, ValueError, NotImplementedError, Image.DecompressionBombError) as error:
        raise SourceError(f"not a readable picture: {error if file else 'the file is empty'}") from error


def check_fit(fit: str, image_size: int) -> None:
    if fit not in FITS:
        raise ConfigError(f"fit: expected {', '.join(FITS)}, found {fit!r}")
    if image_size and not 8 <= image_size <= 4096:
        raise ConfigError(f"image_size: expected 8 to 4096, or 0 for the size of the source, found {image_size}")


def resized(rows_NHWC: Array, size: int, fit: str) -> Array:
    """uint8 pictures (N x H x W x C) or uint16 depth (N x H x W) as squares of `size`.

    `crop`: the central square. `pad`: all of it, black (0) around. `squash`: all of it, out of proportion.
    Pictures are antialiased; depth takes the nearest pixel, since a mean of two distances is neither.
    """
    if rows_NHWC.shape[1:3] == (size, size):
        return rows_NHWC
    out = np.zeros((len(rows_NHWC), size, size, *rows_NHWC.shape[3:]), rows_NHWC.dtype)
    height, width = rows_NHWC.shape[1:3]
    box, (top, left, bottom, right) = _places(height, width, size, fit)
    way = Image.Resampling.BILINEAR if rows_NHWC.dtype == np.uint8 else Image.Resampling.NEAREST
    for row, frame in zip(out, rows_NHWC, strict=True):
        picture = Image.fromarray(frame[..., 0] if frame.shape[2:] == (1,) else frame)
        small = np.asarray(picture.resize((right - left, bottom - top), way, box=box))
        row[top:bottom, left:right] = small.reshape(bottom - top, right - left, *row.shape[2:])
    return out


def _places(
    height: int, width: int, size: int, fit: str
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """(box of the source: left, top, right, bottom; place in the square: top, left, bottom, right)."""
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), (0, 0, size, size)
    if fit == "pad":
        scale = size / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        above, before = (size - tall) // 2, (size - wide) // 2
        return (0, 0, width, height), (above, before, above + tall, before + wide)
    return (0, 0, width, height), (0, 0, size, size)


def depth_counts(rows_NHW: Array, scale_m: float) -> Array:
    """Depth in metres -> uint16 counts of `scale_m`, rounded; NaN, infinite and negative values become 0, no return.

    SourceError if a distance does not fit: then `scale_m` is too small for this camera.
    """
    metres = rows_NHW.astype(np.float64)
    counts = np.rint(np.where(np.isfinite(metres) & (metres > 0), metres, 0.0) / scale_m)
    if counts.size and counts.max() > MAX_DEPTH:
        raise SourceError(f"a distance of {counts.max() * scale_m:.4g} m does not fit in uint16 counts of {scale_m} m")
    return counts.astype(np.uint16)
