"""Ours: `Dataset.windows` for frames, the replay for channels; images in mapped shards, in memory, or coded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from opponents.common import BATCH, FRAMES, GAMMA, STEPS, Batch, Side, Source, Windows, draw
from vrl3data.codecs import describe
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.loader import load_episodes
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.replay import BatchSpec, Replay
from vrl3data.schema import Episode
from vrl3data.writer import Writer

SENSOR = "obs.proprio"
STORAGES: dict[str, dict[str, Any]] = {
    "mmap": {"storage": "mmap"},
    "ram": {"storage": "ram"},
    "stream": {"storage": "stream"},
    "stream, dzst": {"storage": "stream"},
    "stream, dzst, 8 MB kept": {"storage": "stream", "cache_bytes": 8 * 1024**2},
}


class Ours(Side):
    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        path, self.camera = (folder.parent / "dataset.txt").read_text().split("\n")[:2]
        self.dataset = open_dataset(path)
        if "dzst" in setting:
            self.dataset = coded(self.dataset, folder / "set", self.camera, "dzst")
        self.storage = STORAGES[setting]

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        return self._frames(rng) if self.layout == "frames" else self._channels(rng)

    def _frames(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        batches = self.dataset.windows(
            BATCH, cameras=(self.camera,), features=(SENSOR, "action"), frame_stack=FRAMES, n_step=STEPS,
            discount=GAMMA, whole=True, replacement=True, epochs=None, seed=int(rng.integers(1 << 30)), **self.storage,
        )  # fmt: skip
        names = {
            self.camera: "obs",
            f"next.{self.camera}": "next_obs",
            SENSOR: "sensor",
            f"next.{SENSOR}": "next_sensor",
        }
        for found in batches:
            batch = {names.get(name, name): value for name, value in found.items()}
            windows = Windows(batch.pop("episode"), batch.pop("step"))
            yield windows, batch | {name: batch[name].astype(np.float32) for name in ("action", "mask")}

    def _channels(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        spec = BatchSpec((self.camera,), SENSOR, frames=FRAMES, n_step=STEPS, gamma=GAMMA, whole_windows=True)
        replay = Replay(spec, load_episodes(self.dataset, spec.features, **self.storage))
        # The replay draws for itself; the same generator beside it tells what.
        beside = np.random.default_rng()
        beside.bit_generator.state = rng.bit_generator.state
        while True:
            yield draw(self.counts_E, beside), replay.sample(BATCH, rng)


def coded(dataset: Dataset, path: Path, camera: str, codec: str) -> Dataset:
    """What a batch needs of `dataset`, its images stored with `codec`."""
    names = (camera, SENSOR, "action", "reward")
    features = tuple(describe(f, codec) if f.name == camera else f for f in dataset.schema.features if f.name in names)
    schema = replace(dataset.schema, features=features)
    with Writer(path, DatasetSpec(schema, "coded", Provenance("benchmark"))) as writer:
        for item in dataset:
            loaded = item.load()
            values = {name: loaded.values[name] for name in names}
            writer.write(Episode(**{**vars(loaded), "values": values}))
    return open_dataset(path)
