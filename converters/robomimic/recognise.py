"""Whether a file or a folder is of this kind."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from converters.hdf5 import attributes, child, is_hdf5, names, open_hdf5
from converters.robomimic.demos import NUMBERED
from vrl3data.errors import SourceError

HEAD_BYTES = 4 * 1024**2
MAX_LOOKED_AT = 10_000
"""Entries of a folder. One with more and no HDF5 file among the first is something else, such as ImageNet."""


def is_folder(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether it holds HDF5 files of this kind. Others among them, and broken ones, are named when they are read."""
    seen = 0
    for place, _, files in os.walk(folder):
        for name in sorted(files):
            seen += 1
            fits = Path(name).suffix.lower() in suffixes and not name.startswith(".")
            if fits and is_robomimic(Path(place, name)):
                return True
            if seen > MAX_LOOKED_AT:
                return False
    return False


def is_robomimic(path: Path) -> bool:
    """By its groups; of a file that cannot be opened, by the names in its first bytes."""
    if not is_hdf5(path):
        return False
    try:
        with open_hdf5(path) as file:
            if "data" not in names(file) or not isinstance(data := child(file, "data"), h5py.Group):
                return False
            return any(NUMBERED.fullmatch(name) for name in names(data)) or bool(
                {"env_args", "env_info", "total"} & set(attributes(data))
            )
    except SourceError:
        with path.open("rb") as raw:
            head = raw.read(HEAD_BYTES)
        return b"demo_" in head and any(word in head for word in (b"num_samples", b"env_args", b"env_info"))
