"""Fancy indexing of arrays in memory: the reference. Arithmetic and result are ours, files and checksums are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opponents.common import FRAMES, STEPS, Array, Batch, Side, Source, Windows


class SameArrays(Side):
    """Frames as the dataset has them, (N, H, W, 3), flattened to rows, which NumPy copies three times as fast."""

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.small, self.frames_NHWC = source.small(), np.concatenate(source.frames)
        self.flat = self.frames_NHWC.reshape(len(self.frames_NHWC), -1)

    def stack(self, windows: Windows, ahead: int) -> Array:
        rows_BK = self._rows(windows, ahead)
        size, (height, width, colours) = len(windows), self.frames_NHWC.shape[1:]
        frames_BKHWC = self.flat[rows_BK].reshape(size, FRAMES, height, width, colours)
        if self.layout == "frames":
            return frames_BKHWC
        return frames_BKHWC.transpose(0, 1, 4, 2, 3).reshape(size, FRAMES * colours, height, width)

    def batch(self, windows: Windows) -> Batch:
        images = {"obs": self.stack(windows, 0), "next_obs": self.stack(windows, STEPS)}
        return images | self.small.gather(windows)

    def _rows(self, windows: Windows, ahead: int) -> Array:
        back_K = np.arange(FRAMES - 1, -1, -1)
        t_BK = np.maximum(windows.t_B[:, None] + ahead - back_K, 0)
        return self.small.starts_E[windows.episode_B, None] + t_BK


class PlanesFirst(SameArrays):
    """For channels: frames transposed beforehand, a copy of the whole set in the order that a batch wants."""

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.planes_NCHW = np.concatenate(source.stored)
        self.flat = self.planes_NCHW.reshape(len(self.planes_NCHW), -1)
        del self.frames_NHWC

    def stack(self, windows: Windows, ahead: int) -> Array:
        colours, height, width = self.planes_NCHW.shape[1:]
        return self.flat[self._rows(windows, ahead)].reshape(len(windows), FRAMES * colours, height, width)
