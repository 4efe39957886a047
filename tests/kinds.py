"""A small source of every kind, in its exact layout, for the tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import make_images
import make_lerobot
import make_logs
import make_minari
import make_rlds
import make_robomimic
import numpy as np
import test_aloha
import test_d4rl
import test_zarr
from conftest import make_demonstrations, make_pictures


def write_arrays(path: Path) -> Path:
    """HDF5 of no known layout."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(3):
            file[f"run_{number}/action"] = rng.normal(size=(4 + number, 2))
            file[f"run_{number}/camera"] = rng.integers(0, 255, (4 + number, 16, 16, 3), np.uint8)
    return path


def _camera(number: int) -> make_logs.Item:
    time_ns = make_logs.START + number * make_logs.RATE_NS
    pixels = np.random.default_rng(number).integers(0, 255, 16 * 16 * 3, np.uint8)
    values = {"header": make_logs.stamp(time_ns), "height": 16, "width": 16, "encoding": "rgb8", "step": 48,
              "data": pixels}  # fmt: skip
    kind = "sensor_msgs/msg/Image"
    return make_logs.Item("/camera/image_raw", kind, time_ns, make_logs.encode(2, kind, values))


def write_logs(folder: Path) -> Path:
    """Two MCAP files with a camera and joints."""
    folder.mkdir()
    for name in ("one", "two"):
        items = [item for number in range(12) for item in (make_logs.joints(2, number), _camera(number))]
        make_logs.write_mcap(folder / f"{name}.mcap", items)
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {
    "adroit": lambda folder: make_demonstrations(folder / "d.pickle"),
    "robomimic": lambda folder: make_robomimic.write(folder / "demo.hdf5"),
    "lerobot": lambda folder: make_lerobot.make_v2(folder / "set", [5, 7, 4], ["top"]),
    "minari": lambda folder: make_minari.make_hdf5(folder / "set"),
    "d4rl": lambda folder: test_d4rl.make_file(folder / "flat.hdf5"),
    "zarr": lambda folder: test_zarr.make_buffer(folder / "replay.zarr"),
    "aloha": lambda folder: test_aloha.make_folder(folder / "towel"),
    "rlds": lambda folder: make_rlds.write_set(folder),
    "log": lambda folder: write_logs(folder / "runs"),
    "imagenet": lambda folder: make_pictures(folder / "pictures"),
    "image-table": lambda folder: make_images.write_tables(folder / "tables"),
    "webdataset": lambda folder: make_images.write_webdataset(folder / "tars"),
    "hdf5": lambda folder: write_arrays(folder / "arrays.h5"),
}
"""kind -> writes a source with more than one sample below a folder."""
