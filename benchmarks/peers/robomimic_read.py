"""Read a robomimic file with SequenceDataset and get_dataset_info.py; runs inside robomimic's environment.

python robomimic_read.py FILE OUT: h5py lists the names alone; every array comes through SequenceDataset.
"""

import contextlib
import io
import os
import subprocess
import sys
from typing import Any

import h5py
import robomimic
from robomimic.utils import file_utils, obs_utils
from robomimic.utils.dataset import SequenceDataset
from sight import Sight


def names(path: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Keys of observations, of other datasets, those that only some demos have, and the masks."""
    with h5py.File(path, "r") as file:
        demos: list[set[str]] = []
        for demo in file["data"].values():
            found: set[str] = set()
            demo.visititems(lambda name, item, found=found: found.add(name) if isinstance(item, h5py.Dataset) else None)
            demos.append(found)
        everywhere, anywhere = set.intersection(*demos), set.union(*demos)
        masks = list(file["mask"]) if "mask" in file else []
    obs = sorted(name[4:] for name in everywhere if name.startswith("obs/"))
    others = sorted(name for name in everywhere if not name.startswith(("obs/", "next_obs/")))
    return obs, others, sorted(anywhere - everywhere), masks


def open_set(path: str, obs: list[str], others: list[str], mask: str | None = None) -> Any:
    """A SequenceDataset that reads from the file, so that nothing is turned into float32 by its cache."""
    with h5py.File(path, "r") as file:
        following = all("next_obs" in demo for demo in file["data"].values())
    return SequenceDataset(
        path, obs, others, load_next_obs=following, filter_by_attribute=mask, hdf5_cache_mode=None, hdf5_use_swmr=True
    )


def main() -> None:
    """Write what robomimic sees of FILE to OUT."""
    path = os.path.abspath(sys.argv[1])
    obs, others, partial, masks = names(path)
    pictures = [key for key in obs if key.endswith("_image")]
    obs_utils.initialize_obs_utils_with_obs_specs(
        {"obs": {"low_dim": [key for key in obs if key not in pictures], "rgb": pictures}}
    )
    sight = Sight(sys.argv[2], "robomimic", robomimic.__version__)
    dataset = open_set(path, obs, others)
    for number, demo in enumerate(dataset.demos):
        found = dataset.get_trajectory_at_index(number)
        arrays = {name: found[name] for name in others}
        for group in ("obs", "next_obs"):
            arrays |= {f"{group}/{key}": rows for key, rows in found.get(group, {}).items()}
        sight.episode(demo, arrays, {"length": int(dataset._demo_id_to_demo_length[demo])})
    info = subprocess.run(
        [sys.executable, "-m", "robomimic.scripts.get_dataset_info", "--dataset", path], capture_output=True, text=True
    )
    sight.close(
        env_args=file_utils.get_env_metadata_from_dataset(path), partial=partial,
        shapes=file_utils.get_shape_metadata_from_dataset(path) if obs else {},
        masks={mask: list(open_set(path, obs, others, mask).demos) for mask in masks},
        info_rc=info.returncode, info_says=info.stderr.strip().splitlines()[-1:],
    )  # fmt: skip


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # robomimic's prints
        main()
