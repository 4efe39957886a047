"""Ours: the replay on a dataset, images in mapped shards or in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from opponents.common import BATCH, FRAMES, GAMMA, STEPS, Batch, Side, Source, Windows, draw
from vrl3data.dataset import open_dataset
from vrl3data.loader import load_episodes
from vrl3data.replay import BatchSpec, Replay


class Mapped(Side):
    storage = "mmap"

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        path, camera = (folder.parent / "dataset.txt").read_text().split("\n")[:2]
        spec = BatchSpec((camera,), "obs.proprio", frames=FRAMES, n_step=STEPS, gamma=GAMMA, whole_windows=True)
        self.replay = Replay(spec, load_episodes(open_dataset(path), spec.features, storage=self.storage))

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        # The replay draws for itself; the same generator beside it tells what.
        beside = np.random.default_rng()
        beside.bit_generator.state = rng.bit_generator.state
        while True:
            yield draw(self.counts_E, beside), self.replay.sample(BATCH, rng)


class Memory(Mapped):
    storage = "ram"
