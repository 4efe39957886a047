"""h5py: an HDF5 file per episode, read by slices. One read covers both stacks of a window, which overlap or touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from opponents.common import FRAMES, STEPS, Array, Batch, Side, Source, Windows, split_span, vectors


def write(source: Source, folder: Path, chunk: int | None) -> list[Path]:
    paths = [folder / f"{e:04d}.h5" for e in range(len(source.frames))]
    for e, (path, frames) in enumerate(zip(paths, source.stored, strict=True)):
        with h5py.File(path, "w") as file:
            file.create_dataset("frames", data=frames, chunks=(chunk, *source.row_shape) if chunk else None)
            for name in ("sensor", "action", "reward"):
                file.create_dataset(name, data=getattr(source, name)[e])
    return paths


def read_span(frames: Any, t: int, out_K: Array) -> None:
    """Frames t - FRAMES + 1 .. t + STEPS, the first one repeated where they would begin before it."""
    first = t - FRAMES + 1
    lead = max(0, -first)
    frames.read_direct(out_K, np.s_[first + lead : t + STEPS + 1], np.s_[lead:])
    out_K[:lead] = out_K[lead]


class Kept(Side):
    """Files and datasets stay open; everything but images is in memory."""

    versions = ("h5py",)

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        chunk = {"contiguous": None, "chunks of 1 frame": 1, "chunks of 16 frames": 16}[setting]
        self.small = source.small()
        self.frames = [h5py.File(path, "r")["frames"] for path in write(source, folder, chunk)]

    def batch(self, windows: Windows) -> Batch:
        span_BK = self.empty_spans()
        for row_K, (episode, t) in zip(span_BK, windows.pairs(), strict=True):
            read_span(self.frames[episode], t, row_K)
        return split_span(span_BK, self.layout) | self.small.gather(windows)


class ByPath(Side):
    """The file is opened for each window, as loaders do whose workers must not share handles."""

    versions = ("h5py",)

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.paths = write(source, folder, None)
        self.small = source.small() if setting == "images only" else None

    def batch(self, windows: Windows) -> Batch:
        span_BK = self.empty_spans()
        found: list[tuple[Array, ...]] = []
        for row_K, (episode, t) in zip(span_BK, windows.pairs(), strict=True):
            with h5py.File(self.paths[episode], "r") as file:
                read_span(file["frames"], t, row_K)
                if self.small is None:
                    sensor, action, reward = file["sensor"], file["action"], file["reward"]
                    found.append((sensor[t], sensor[t + STEPS], action[t], reward[t : t + STEPS]))
        small = self.small.gather(windows) if self.small else vectors(*map(np.stack, zip(*found, strict=True)))
        return split_span(span_BK, self.layout) | small
