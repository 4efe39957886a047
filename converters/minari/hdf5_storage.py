"""Minari's HDF5 storage: one file, one group per episode."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from converters.fields import Field, Loaded
from converters.frame_files import FrameFiles, field_of_files, holds_files
from converters.hdf5 import (
    BROKEN,
    Hdf5Files,
    attributes,
    blocks,
    check_dataset,
    child,
    datasets,
    field_of,
    names,
    open_hdf5,
    plain,
    read,
)
from converters.minari.episode import SMALL, Found, ended, rows_of
from converters.minari.metadata import MAIN, Metadata
from converters.minari.ours import ATTRIBUTE
from converters.pictures import Frames
from vrl3data.errors import SourceError, locate
from vrl3data.schema import DTYPES

EPISODE = re.compile(r"episode_(\d+)")
FLAGS = ("terminations", "truncations")


class Hdf5Storage:
    """Reads main_data.hdf5."""

    def __init__(self) -> None:
        self._open = Hdf5Files()

    def numbers(self, meta: Metadata) -> list[int]:
        """Of the episodes that are there."""
        with open_hdf5(meta.folder / MAIN) as file:
            found = [EPISODE.fullmatch(name) for name in names(file)]
            return sorted(int(match[1]) for match in found if match)

    def files(self, meta: Metadata, number: int) -> list[Path]:
        return [meta.folder / MAIN]

    def look(self, meta: Metadata, number: int) -> Found:
        group = self._group(meta.folder / MAIN, number)
        arrays = dict(datasets(group))
        found = Found(*_length(group, arrays))
        files: list[str] = []
        texts: list[str] = []
        rest: list[str] = []
        notes: list[str] = []
        for path, dataset in arrays.items():
            check_dataset(dataset)
            if path in FLAGS:
                continue
            rows = rows_of(path, len(dataset) if dataset.shape else 0, found.length, found.final)
            leaf = meta.leaves.get(path)
            if h5py.check_string_dtype(dataset.dtype) is not None:
                (texts if rows else rest).append(path)
            elif rows and (leaf is None or leaf.picture) and meta.jpeg and holds_files(dataset):
                found.fields[path] = field_of_files(dataset, path, rows)
                files.append(path)
            elif rows and dataset.dtype.name in DTYPES:
                found.fields[path] = field_of(dataset, path, rows)
                if path in meta.ours and meta.ours[path].dtype == "bool":  # int8 is how Minari has these rows
                    found.fields[path] = replace(found.fields[path], dtype="bool")
            elif dataset.size is not None and dataset.size <= SMALL:
                rest.append(path)
            else:
                notes.append(f"{path}: {dataset.dtype} of shape {dataset.shape} is not one row per step: left out")
            _check_shape(found, path, leaf.shape if leaf and leaf.dtype and path not in files else None)
        if meta.ours:
            found.fields |= _of_attributes(group, meta)
            if "rewards" not in meta.ours:  # our export wrote NaN, since there were none
                found.fields.pop("rewards", None)
        missing = sorted(set(meta.leaves) - set(arrays))
        if missing:
            raise SourceError(f"{missing[0]} is missing, which the space of the dataset has")
        found.files, found.texts, found.rest, found.notes = tuple(files), tuple(texts), tuple(rest), tuple(notes)
        return found

    def load(self, meta: Metadata, number: int, found: Found) -> tuple[Loaded, dict[str, list[str]], dict[str, Any]]:
        """(arrays and how the episode ended, texts per row, what else it says)."""
        group = self._group(meta.folder / MAIN, number)
        loaded = Loaded({}, final_observation=found.final)
        said = _nested(attributes(group))
        for path, field in found.fields.items():
            if path.startswith(ATTRIBUTE):
                loaded.arrays[path] = np.asarray(said.pop(path[1:]), field.dtype)[None]
                continue
            dataset = child(group, path)
            if path in found.files:
                loaded.arrays[path] = Frames(FrameFiles(dataset, len(dataset)), field.shape)
            elif field.dtype == dataset.dtype.name:
                loaded.arrays[path] = blocks(dataset)
            else:
                loaded.arrays[path] = (block.astype(field.dtype) for block in blocks(dataset))
        for flag, key in zip(FLAGS, ("terminated", "truncated"), strict=True):
            setattr(loaded, key, self._flag(group, flag, found.length))
        texts = {path: [str(plain(row)) for row in read(child(group, path))] for path in found.texts}
        said |= {path: plain(read(child(group, path))) for path in found.rest}
        return loaded, texts, said

    def close(self) -> None:
        self._open.close()

    def _flag(self, group: h5py.Group, flag: str, length: int) -> int:
        """Whether the last step ended the episode so; -1 if the file does not say."""
        try:
            if flag not in group:
                return -1
        except BROKEN as error:
            raise SourceError(f"the group {group.name} is damaged: {error}") from error
        flags = child(group, flag)
        if flags.shape != (length,):
            with locate(feature=flag):
                raise SourceError(f"expected {length} rows, found {flags.shape}")
        return ended(read(flags), flag)

    def _group(self, path: Path, number: int) -> h5py.Group:
        group = child(self._open.get(path), f"episode_{number}")
        if not isinstance(group, h5py.Group):
            raise SourceError("expected a group, found an array")
        return group


def _length(group: h5py.Group, arrays: dict[str, h5py.Dataset]) -> tuple[int, bool]:
    """(steps, whether there is a final observation). SourceError if rewards, actions and total_steps disagree."""
    actions = [dataset for path, dataset in arrays.items() if path.partition("/")[0] in ("actions", "rewards")]
    states = [dataset for path, dataset in arrays.items() if path.partition("/")[0] == "observations"]
    if not actions or not states or not actions[0].shape or not states[0].shape:
        raise SourceError("expected observations and actions with rows")
    length = len(actions[0])
    said = attributes(group).get("total_steps", length)
    if said != length:
        raise SourceError(f"total_steps says {said}, but there are {length} actions")
    if not length:
        raise SourceError("the episode has no steps")
    return length, len(states[0]) == length + 1


def _of_attributes(group: h5py.Group, meta: Metadata) -> dict[str, Field]:
    """Features with one row per episode, which our own export wrote as attributes."""
    found = {}
    for path in (path for path in meta.ours if path.startswith(ATTRIBUTE)):
        try:
            value = group.attrs.get(path[1:])
        except BROKEN as error:
            raise SourceError(f"the attribute {path[1:]!r} cannot be read: {error}") from error
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in DTYPES:
            found[path] = Field(path, value.dtype.name, value.shape, "episode")
    return found


def _nested(said: dict[str, Any]) -> dict[str, Any]:
    """`options/level` as `level` in `options`, as it was before Minari wrote it as an attribute."""
    found: dict[str, Any] = {}
    for key, value in said.items():
        *groups, last = key.split("/")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {}) if isinstance(inner.get(group, {}), dict) else inner
        inner[last] = value
    return found


def _check_shape(found: Found, path: str, shape: tuple[int, ...] | None) -> None:
    """SourceError if an array is not shaped as its space says; single numbers may be vectors of one."""
    if shape is None or path not in found.fields:
        return
    have = found.fields[path].shape
    if have != shape and np.prod(have) != np.prod(shape):
        with locate(feature=path):
            raise SourceError(f"expected rows of shape {shape} as the space says, found {have}")
