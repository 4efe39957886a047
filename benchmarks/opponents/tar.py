"""Plain webdataset: a tar per episode, decoded, cut into windows, shuffled in a buffer, batched.

Not the same draw: windows come once per epoch and are mixed within the buffer only, so that files are read in order.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from opponents.common import BATCH, FRAMES, SPAN, STEPS, Array, Batch, Side, Source, Windows, split_span, vectors

BUFFER = 5000
"""Windows in the shuffle buffer: views of about twenty episodes of the door set."""


def write(source: Source, folder: Path) -> list[str]:
    paths = [str(folder / f"{e:04d}.tar") for e in range(len(source.frames))]
    for e, (path, frames) in enumerate(zip(paths, source.stored, strict=True)):
        with tarfile.open(path, "w") as archive:
            named = {"frames": frames} | {name: getattr(source, name)[e] for name in ("sensor", "action", "reward")}
            for name, values in named.items():
                body = io.BytesIO()
                np.save(body, values)
                header = tarfile.TarInfo(f"{e:04d}.{name}.npy")
                header.size = body.tell()
                archive.addfile(header, io.BytesIO(body.getvalue()))
    return paths


def windows_of(samples: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """(frames of the span, sensor, next sensor, action, rewards, episode, t) of every window: views."""
    for sample in samples:
        frames, sensor, reward = (sample[f"{name}.npy"] for name in ("frames", "sensor", "reward"))
        # The first frame repeated in front makes every span a slice.
        frames = np.concatenate([np.repeat(frames[:1], FRAMES - 1, 0), frames])
        for t in range(len(sensor) - STEPS):
            small = sensor[t], sensor[t + STEPS], sample["action.npy"][t], reward[t : t + STEPS]
            yield frames[t : t + SPAN], *small, int(sample["__key__"]), t


def stacked(rows: list[tuple[Any, ...]]) -> list[Array]:
    """What default collation does, without its checks."""
    return [np.stack(column) for column in zip(*rows, strict=True)]


class Plain(Side):
    versions = ("webdataset",)

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.paths = write(source, folder)
        collate = {"npy": stacked, "npy, default collation": webdataset.filters.default_collation_fn}
        self.collate = collate[setting]

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        seed = int(rng.integers(1 << 30))
        files = webdataset.WebDataset(self.paths, shardshuffle=len(self.paths), seed=seed)
        windows = files.decode().compose(windows_of).shuffle(BUFFER, initial=BUFFER, seed=seed)
        for found in windows.batched(BATCH, collation_fn=self.collate, partial=False).repeat():
            span, sensor, next_sensor, action, reward, episode_B, t_B = (np.asarray(column) for column in found)
            batch = split_span(span, self.layout) | vectors(sensor, next_sensor, action, reward)
            yield Windows(episode_B, t_B), batch
