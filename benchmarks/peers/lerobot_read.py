"""Read a LeRobot dataset with LeRobotDataset alone; runs inside lerobot's environment.

python lerobot_read.py ROOT OUT

Every frame is asked for by its index, as training asks. Pictures come as floats of 0 to 1 and are turned back into the
uint8 they were; depth stays in the float millimetres that lerobot gives. Other numbers come as float32, int64 or bool,
whatever they are: their columns are read again from `hf_dataset` in their own dtype, and must agree with the tensors.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from sight import Sight


def plain(value: Any, picture: bool) -> np.ndarray:
    """One frame's value as rows have it; pictures as height x width x channels."""
    if isinstance(value, str):
        return np.asarray(value)
    array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if not picture:
        return array
    array = np.moveaxis(array, 0, -1)
    if array.dtype.kind != "f" or array.shape[-1] == 1:
        return array
    pixels = np.rint(array * 255)
    if np.abs(array * 255 - pixels).max() > 1e-3:
        raise SystemExit("expected pictures of whole 255ths")
    return pixels.astype(np.uint8)


def exact(dataset: Any, cameras: set[str]) -> dict[str, np.ndarray]:
    """The columns of numbers of the whole dataset, each in the dtype that its feature declares."""
    features = dataset.meta.features
    wanted = [key for key in features if key not in cameras and features[key]["dtype"] not in ("string", "language")]
    table = dataset.hf_dataset.select_columns(wanted).with_format(None)
    return {key: np.asarray(table[key][:], dtype=features[key]["dtype"]) for key in wanted}


def episodes_of(dataset: Any) -> list[dict[str, Any]]:
    """The episodes' metadata without their statistics."""
    table = dataset.meta.episodes
    wanted = [name for name in table.column_names if not name.startswith("stats/")]
    return [dict(row) for row in table.select_columns(wanted)]


def main() -> None:
    """Write what lerobot sees of ROOT to OUT."""
    root, out = Path(sys.argv[1]), sys.argv[2]
    dataset = LeRobotDataset(f"peers/{root.name.strip('.') or 'set'}", root=root)
    cameras = set(dataset.meta.camera_keys)
    sight = Sight(out, "lerobot", importlib.metadata.version("lerobot"))
    number, numbers = 0, exact(dataset, cameras)
    for episode in episodes_of(dataset):
        columns: dict[str, list[np.ndarray]] = {}
        first = number
        for _ in range(int(episode["length"])):
            frame = dataset[number]
            number += 1
            for key, value in frame.items():
                columns.setdefault(key, []).append(plain(value, key in cameras))
        arrays = {key: np.stack(rows) for key, rows in columns.items()}
        for key, values in numbers.items():
            rows = values[first:number]
            if not np.array_equal(rows.astype(arrays[key].dtype), arrays[key], equal_nan=arrays[key].dtype.kind == "f"):
                raise SystemExit(f"{key}: the tensors and the column of episode {episode['episode_index']} differ")
            arrays[key] = rows
        sight.episode(f"episode_{episode['episode_index']}", arrays, episode)
    if number != len(dataset):
        raise SystemExit(f"episodes have {number} frames, the dataset {len(dataset)}")
    meta = dataset.meta
    sight.close(
        fps=meta.fps, robot_type=meta.robot_type, cameras=sorted(cameras), features=meta.features, stats=meta.stats,
        episodes=meta.total_episodes, frames=meta.total_frames, tasks=list(meta.tasks.index),
    )  # fmt: skip


if __name__ == "__main__":
    main()
