"""Minari: whole episodes are read from its storage, windows are cut from them.

Set up to its advantage: no JPEG, images as rows of bytes in the layout of the batch (for frames eight times as fast
as pictures, when windows are cut). `each episode once`: a batch reads every episode it needs one time; sampling fewer
episodes a batch would be faster and give batches that are far from independent.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from opponents.common import FRAMES, SPAN, STEPS, Array, Batch, Side, Source, Windows, split_span, vectors


def write(source: Source, folder: Path, data_format: str) -> Any:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import minari
    from minari.data_collector import EpisodeBuffer

    box = gymnasium.spaces.Box
    wide = np.float32(np.inf)
    space = gymnasium.spaces.Dict(
        image=box(0, 255, (source.stored[0][0].size,), np.uint8),
        sensor=box(-wide, wide, source.sensor[0].shape[1:], np.float32),
    )  # fmt: skip
    buffers = []
    for e, image in enumerate(source.stored):
        steps = len(image) - 1
        ends = np.zeros(steps, bool)
        buffers.append(EpisodeBuffer(
            observations={"image": image.reshape(len(image), -1), "sensor": source.sensor[e]},
            actions=source.action[e][:steps], rewards=source.reward[e][:steps], terminations=ends, truncations=ends,
        ))  # fmt: skip
    return minari.create_dataset_from_buffers(
        "bench/windows-v0", buffers, observation_space=space, data_format=data_format, jpeg_encoding=False,
        action_space=box(-wide, wide, source.action[0].shape[1:], np.float32), description="benchmark",
    )  # fmt: skip


class Episodes(Side):
    versions = ("minari", "h5py")

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.data = write(source, folder, "arrow" if "arrow" in setting else "hdf5")
        self.once = "each episode once" in setting

    def batch(self, windows: Windows) -> Batch:
        size = len(windows)
        span_BK = self.empty_spans()
        found: list[Any] = [None] * size
        groups = [np.flatnonzero(windows.episode_B == e) for e in np.unique(windows.episode_B)]
        if not self.once:
            groups = [np.array([b]) for b in range(size)]
        for where in groups:
            (episode,) = self.data.iterate_episodes([int(windows.episode_B[where[0]])])
            for b in where.tolist():
                found[b] = _cut(episode, int(windows.t_B[b]), span_BK[b])
        return split_span(span_BK, self.layout) | vectors(*map(np.stack, zip(*found, strict=True)))


def _cut(episode: Any, t: int, out_K: Array) -> tuple[Array, ...]:
    rows_K = np.maximum(np.arange(t - FRAMES + 1, t + STEPS + 1), 0)
    sensor = episode.observations["sensor"]
    out_K.reshape(SPAN, -1)[:] = episode.observations["image"][rows_K]
    return sensor[t], sensor[t + STEPS], episode.actions[t], episode.rewards[t : t + STEPS]
