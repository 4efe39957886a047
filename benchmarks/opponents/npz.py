"""np.load of the whole episode for each window: the archive of an episode is read again every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opponents.common import FRAMES, STEPS, Batch, Side, Source, Windows, split_span


class PerWindow(Side):
    """An .npz per episode, stored or deflated (as DrQ-v2 writes them); everything but images is in memory."""

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        save = {"stored": np.savez, "deflated": np.savez_compressed}[setting]
        self.paths = [folder / f"{e:04d}.npz" for e in range(len(source.frames))]
        for path, frames in zip(self.paths, source.stored, strict=True):
            save(path, frames=frames)
        self.small = source.small()

    def batch(self, windows: Windows) -> Batch:
        span_BK = self.empty_spans()
        for row_K, (episode, t) in zip(span_BK, windows.pairs(), strict=True):
            with np.load(self.paths[episode]) as archive:
                wanted_K = np.maximum(np.arange(t - FRAMES + 1, t + STEPS + 1), 0)
                row_K[:] = archive["frames"][wanted_K]
        return split_span(span_BK, self.layout) | self.small.gather(windows)
