"""What is kept of the frames of one camera in one episode, instead of the frames.

Letters: N frames, H x W pixels, C channels, G cells along a side of a thumbnail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from vrl3data.schema import Array, Feature

GRID = 12
ENERGY_GRID = 8
"""Motion is told apart by place, coarsely: with one cell the arm of a clean set is lost in the rest of the picture."""
MAX_FRAMES = 20_000
"""Of a camera in an episode; further ones are hashed like all bytes, but not looked at (2.3 kB each are kept)."""
FINE = 160
"""Larger pictures are thinned out to about this many rows: the checks look at coarse things."""
BLOCK = 64
LARGEST = 1e9
SHARP_EVERY = 4
FLAT_LEVELS = 3
"""Of 255; what a lossy codec leaves of one colour."""


@dataclass
class Frames:
    """Thumbnails and changes of one camera. Levels are 0..255, or counts for depth."""

    thumbs_NGGC: Array
    change_N: Array
    """Mean absolute difference of each frame to the next, N-1 of them; 0 only if they are the same."""
    energy_NE: Array
    """The same per cell of a coarse grid."""
    flat_rows_N: Array
    """Rows at the lower edge that are all of one colour; 0 for depth."""
    height: int
    sharp_N: Array
    """Sharpness of every SHARP_EVERY-th frame; 0 for those of one colour, none for depth."""

    @property
    def spread_N(self) -> Array:
        """Standard deviation over the cells, of the liveliest channel: what is left when noise is averaged out."""
        return self.thumbs_NGGC.std(axis=(1, 2)).max(axis=-1)

    @property
    def level_N(self) -> Array:
        return self.thumbs_NGGC.mean(axis=(1, 2, 3))


@dataclass
class FrameCollector:
    """Takes blocks of frames in order."""

    thumbs: list[Array] = field(default_factory=list)
    energies: list[Array] = field(default_factory=list)
    flat_rows: list[Array] = field(default_factory=list)
    sharp: list[Array] = field(default_factory=list)
    height: int = 0
    last: Array | None = None
    count: int = 0

    def add(self, rows: Array) -> None:
        """`rows`: N x H x W x C or N x H x W."""
        self.height = rows.shape[1]
        for start in range(0, min(len(rows), MAX_FRAMES - self.count), BLOCK):
            block = rows[start : start + BLOCK]
            if block.dtype == np.uint8 and block.ndim == 4:
                self.sharp.append(sharpness(block[-self.count % SHARP_EVERY :: SHARP_EVERY]))
            self._block(_thinned(block))

    def _block(self, frames_NHWC: Array) -> None:
        self.count += len(frames_NHWC)
        self.thumbs.append(cells(frames_NHWC, GRID))
        self.flat_rows.append(flat_rows(frames_NHWC) * self.height // frames_NHWC.shape[1])
        chain = frames_NHWC if self.last is None else np.concatenate([self.last, frames_NHWC])
        self.last = frames_NHWC[-1:].copy()
        if len(chain) > 1:
            wide = chain.astype(np.int16 if chain.dtype == np.uint8 else np.float32)
            self.energies.append(cells(np.abs(np.diff(wide, axis=0)), ENERGY_GRID).mean(axis=-1))

    def frames(self) -> Frames | None:
        if not self.count:
            return None
        energy = [item.reshape(len(item), -1) for item in self.energies]
        energy_NE = np.concatenate(energy) if energy else np.zeros((0, ENERGY_GRID**2), np.float32)
        rows = np.concatenate(self.flat_rows)
        sharp_N = np.concatenate(self.sharp) if self.sharp else np.zeros(0)
        return Frames(np.concatenate(self.thumbs), energy_NE.mean(axis=1), energy_NE, rows, self.height, sharp_N)


def sharpness(frames_NHWC: Array) -> Array:
    """Standard deviation of the Laplacian of each frame over that of the frame; 0 for frames of one colour.

    The variance of the Laplacian as a measure of focus: Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy" (2000). Divided by the contrast, it does not depend on the light.
    """
    result = np.zeros(len(frames_NHWC))
    if min(frames_NHWC.shape[1:3]) < 3:
        return result
    for number, frame in enumerate(frames_NHWC):
        grey = frame.mean(axis=-1, dtype=np.float32)
        laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
        spread = float(grey.std())
        result[number] = float(laplacian.std()) / spread if spread > 1 else 0.0
    return result


def flat_rows(frames_NHWC: Array) -> Array:
    """How many rows, from the last one up, are of one and the same colour."""
    result = np.zeros(len(frames_NHWC), int)
    if frames_NHWC.dtype != np.uint8:
        return result
    last = frames_NHWC[:, -1]
    plain = (last.max(axis=1) - last.min(axis=1) <= FLAT_LEVELS).all(axis=1)
    for number in np.flatnonzero(plain):
        frame = frames_NHWC[number, ::-1]
        low, high = frame.min(axis=1).astype(np.int16), frame.max(axis=1).astype(np.int16)
        same = (np.maximum(high - low[:1], high[:1] - low) <= FLAT_LEVELS).all(axis=1)
        result[number] = len(same) if same.all() else int(same.argmin())
    return result


def is_camera(feature: Feature) -> bool:
    """Pictures, and depth pictures."""
    depth = feature.dtype in ("uint16", "float32") and len(feature.shape) == 2 and feature.name.startswith("obs.depth.")
    return (feature.is_image or depth) and min(feature.shape[:2]) != 0


def cells(frames_NHWC: Array, grid: int) -> Array:
    """Means over grid x grid cells as float32: two matrix products, which numpy does faster than reshaped means."""
    count, height, width, channels = frames_NHWC.shape
    rows_GH, columns_WG = _averages(height, grid), _averages(width, grid)
    flat = frames_NHWC.astype(np.float32).reshape(count, height, width * channels)
    rows_NGWC = (rows_GH @ flat).reshape(count, grid, width, channels)
    means: Array = np.einsum("ngwc,hw->nghc", rows_NGWC, columns_WG, optimize=True)
    return means


@lru_cache(maxsize=64)
def _averages(size: int, grid: int) -> Array:
    """G x size; row g takes the mean over its cell. Cells overlap where there are fewer pixels than cells."""
    matrix = np.zeros((grid, size), np.float32)
    for cell in range(grid):
        start = min(cell * size // grid, size - 1)
        stop = max((cell + 1) * size // grid, start + 1)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


def _thinned(rows: Array) -> Array:
    frames = rows[..., None] if rows.ndim == 3 else rows
    stride = max(1, min(frames.shape[1:3]) // FINE)
    thin = frames[:, ::stride, ::stride]
    return np.clip(thin, -LARGEST, LARGEST) if thin.dtype.kind == "f" else thin
