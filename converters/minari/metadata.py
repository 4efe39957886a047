"""What Minari's metadata.json says of a dataset; in datasets before 0.5 the attributes of the HDF5 file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.hdf5 import BROKEN, attributes, is_hdf5, open_hdf5
from converters.minari import ours
from converters.minari.ours import KEY
from converters.minari.spaces import Leaf, leaves
from vrl3data.errors import SourceError, locate
from vrl3data.schema import Feature

METADATA, MAIN = "metadata.json", "main_data.hdf5"
FORMATS = ("hdf5", "arrow", "parquet")
MAX_JSON = 256 * 1024**2
"""A space of large pictures lists two numbers for each of their values."""
SPACES = "spaces"
"""What is kept of the spaces where features cannot say all of them: path -> space."""
NOT_SAID = ("observation_space", "action_space", "total_episodes", "total_steps", "data_format", "dataset_size", SPACES,
            KEY)  # fmt: skip
"""Keys whose content is in the dataset in other ways."""


@dataclass(frozen=True)
class Metadata:
    """`leaves` is empty where the spaces are not stated."""

    folder: Path
    format: str
    episodes: int
    steps: int
    jpeg: bool
    leaves: Mapping[str, Leaf]
    said: Mapping[str, Any]
    """All else."""
    ours: Mapping[str, Feature]
    """Path in an episode -> the feature that our own export made it from."""

    @property
    def environment(self) -> str:
        """The id of the environment, or nothing."""
        try:
            spec = json.loads(self.said.get("env_spec") or "{}")
        except (ValueError, TypeError):
            return ""
        return str(spec.get("id", "")) if isinstance(spec, dict) else ""


def data_folder(source: Path) -> Path:
    """Where the data of a dataset lies: `source` may be its folder, its `data` folder or its HDF5 file."""
    if source.is_file():
        return source.parent
    inner = source / "data"
    return inner if (inner / METADATA).is_file() or (inner / MAIN).is_file() else source


def is_minari(folder: Path) -> bool:
    """By its metadata.json, or by an HDF5 file of the right name; damaged ones too."""
    if (folder / MAIN).is_file():
        return True
    try:
        said = read_json(folder / METADATA)
    except SourceError:
        return False
    return "total_episodes" in said and "total_steps" in said and ("data_format" in said or "action_space" in said)


def read(folder: Path) -> Metadata:
    """SourceError if there is none, or it says nothing that can be used."""
    path = folder / METADATA
    if path.is_file():
        with locate(path=path.name):
            return _metadata(folder, read_json(path))
    if not is_hdf5(folder / MAIN):
        raise SourceError(f"expected {METADATA} and {MAIN} or a folder per episode, as Minari writes them")
    with locate(path=MAIN), open_hdf5(folder / MAIN) as file:
        try:
            return _metadata(folder, {"data_format": "hdf5", **attributes(file)})
        except BROKEN as error:
            raise SourceError(f"the attributes cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. SourceError for anything else."""
    with locate(path=path.name):
        try:
            if path.stat().st_size > MAX_JSON:
                raise SourceError(f"expected at most {MAX_JSON:,} bytes of JSON, found {path.stat().st_size:,}")
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"not readable as JSON: {error}") from error
        if not isinstance(found, dict):
            raise SourceError(f"expected a JSON object, found {type(found).__name__}")
        return found


def _metadata(folder: Path, said: dict[str, Any]) -> Metadata:
    form = said.get("data_format", "hdf5" if (folder / MAIN).exists() else "arrow")
    if form not in FORMATS:
        raise SourceError(f"data_format: expected {', '.join(FORMATS)}, found {form!r}")
    for key in ("total_episodes", "total_steps"):
        if not isinstance(said.get(key, -1), int) or isinstance(said.get(key), bool):
            raise SourceError(f"{key}: expected a whole number, found {said[key]!r}")
    found: list[Leaf] = []
    for key, path in (("observation_space", "observations"), ("action_space", "actions")):
        if said.get(key):
            found += leaves(said[key], path)
        elif form != "hdf5":
            raise SourceError(f"{key} is not stated; without it {form} columns have no shape")
    rest = {key: value for key, value in said.items() if key not in NOT_SAID}
    if spaces := {leaf.path: json.loads(leaf.space) for leaf in found if leaf.space}:
        rest[SPACES] = spaces
    jpeg = bool(said.get("jpeg_encoding", True))
    totals = said.get("total_episodes", -1), said.get("total_steps", -1)
    return Metadata(folder, form, *totals, jpeg, {leaf.path: leaf for leaf in found}, rest, ours.features(said))
