"""robomimic's SequenceDataset behind torch's DataLoader, one process.

Set up to its advantage: one sequence covers both stacks (no next_obs in the file), and images are stored as rows of
bytes in the layout of the batch, so that nothing is transposed; its own image processing, which makes floats, is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import robomimic.utils.obs_utils
from robomimic.utils.dataset import SequenceDataset
from torch.utils.data import DataLoader, Sampler

from opponents.common import FRAMES, STEPS, Array, Batch, Side, Source, Windows, draw, split_span, vectors

CAMERA, SENSOR = "top_image", "sensor"


def write(source: Source, path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for e, frames in enumerate(source.stored):
            demo = data.create_group(f"demo_{e}")
            demo.attrs["num_samples"] = len(frames)
            demo["actions"], demo["rewards"] = source.action[e], source.reward[e]
            demo[f"obs/{CAMERA}"], demo[f"obs/{SENSOR}"] = frames.reshape(len(frames), -1), source.sensor[e]
        data.attrs["total"] = sum(len(frames) for frames in source.frames)


class Sequences(Side):
    versions = ("robomimic", "h5py", "torch")

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        robomimic.utils.obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"rgb": [CAMERA], "low_dim": [SENSOR]}})
        write(source, folder / "set.hdf5")
        self.starts_E = source.starts_E
        mode = setting.removeprefix("hdf5_cache_mode ")
        self.sequences = SequenceDataset(
            str(folder / "set.hdf5"), (CAMERA, SENSOR), ("actions", "rewards"), frame_stack=FRAMES,
            seq_length=STEPS + 1, hdf5_cache_mode=None if mode == "None" else mode, load_next_obs=False,
        )  # fmt: skip

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        drawn, now = _Drawn(self.counts_E, self.starts_E, rng), FRAMES - 1
        for item in DataLoader(self.sequences, batch_sampler=drawn, num_workers=0):
            rows = item["obs"][CAMERA].numpy()
            span_BK = rows.reshape(*rows.shape[:2], *self.row_shape)
            sensor, reward = item["obs"][SENSOR].numpy(), item["rewards"].numpy()
            small = vectors(
                sensor[:, now], sensor[:, now + STEPS], item["actions"][:, now].numpy(), reward[:, now : now + STEPS]
            )  # fmt: skip
            yield drawn.windows, split_span(span_BK, self.layout) | small


class _Drawn(Sampler[list[int]]):
    """Endless lists of sequence numbers; `windows` are those of the last one."""

    def __init__(self, counts_E: Array, starts_E: Array, rng: np.random.Generator) -> None:
        self.counts_E, self.starts_E, self.rng = counts_E, starts_E, rng

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            self.windows = draw(self.counts_E, self.rng)
            yield (self.starts_E[self.windows.episode_B] + self.windows.t_B).tolist()
