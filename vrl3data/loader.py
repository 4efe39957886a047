"""Episodes of a dataset as flat arrays that batches are gathered from: in memory, mapped, or on a device.

Imports torch only for device storage.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vrl3data import sample, shard
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.report import Reporter, Silent
from vrl3data.sampling import Ints, Layout
from vrl3data.schema import Array, Feature

ALIGNMENT = 16
"""Rows in a mapping are addressed in this unit where their size allows it: npy payloads start at multiples of 64."""


class Rows(Protocol):
    """All rows of one feature, numbered through the episodes."""

    def __len__(self) -> int: ...

    def gather(self, rows: Ints) -> Any:
        """Copies of rows, of shape (*rows.shape, *row shape)."""


class RamRows:
    """Rows of one array."""

    def __init__(self, values: Array) -> None:
        self.values = values
        # NumPy copies whole rows three times as fast when they have one dimension.
        self._flat = values.reshape(len(values), -1) if values.ndim > 2 and len(values) else values

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: Ints) -> Array:
        return self._flat[rows].reshape(*rows.shape, *self.values.shape[1:])


class DeviceRows:
    """Rows of one tensor on `device`; gathered rows stay there."""

    def __init__(self, values: Array, device: str) -> None:
        import torch

        self.torch, self.values = torch, torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: Ints) -> Any:
        index = self.torch.from_numpy(rows.reshape(-1)).to(self.values.device)
        return self.values.index_select(0, index).reshape(*rows.shape, *self.values.shape[1:])


class MappedRows:
    """Raw rows where they lie in the mapped shards: one strided take for each shard a batch touches."""

    def __init__(self, feature: Feature, maps: Sequence[mmap.mmap], shard_N: Ints, offset_N: Ints) -> None:
        self.dtype, self.shape = np.dtype(feature.dtype), feature.shape
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._unit = int(np.gcd(ALIGNMENT, size))
        self._shard_N, self._place_N = shard_N, offset_N // self._unit
        self._views = [_windows(mapping, size, self._unit) for mapping in maps]

    def __len__(self) -> int:
        return len(self._shard_N)

    def gather(self, rows: Ints) -> Array:
        flat = rows.reshape(-1)
        shards = self._shard_N[flat]
        touched = np.unique(shards)
        if len(touched) == 1:
            found = self._views[touched[0]][self._place_N[flat]]
        else:
            found = np.empty((len(flat), self._views[0].shape[1]), np.uint8)
            for number in touched:
                where = np.flatnonzero(shards == number)
                found[where] = self._views[number][self._place_N[flat[where]]]
        values: Array = found.view(self.dtype).reshape(*rows.shape, *self.shape)
        return values


def _windows(mapping: mmap.mmap, size: int, unit: int) -> Array:
    """A view of (places, size) bytes in which row p starts at byte p * unit: no copy, rows overlap."""
    data = np.frombuffer(mapping, np.uint8)
    places = max(0, (len(data) - size) // unit + 1)
    return np.lib.stride_tricks.as_strided(data, (places, size), (unit, 1), writeable=False)


@dataclass(frozen=True)
class EpisodeTable:
    """Episodes of a dataset: their layout, and rows of each loaded feature."""

    layout: Layout
    features: Mapping[str, Feature]
    rows: Mapping[str, Rows]
    positions: tuple[int, ...]
    """Of the episodes, in the dataset."""

    def gather(self, feature: str, rows: Ints) -> Any:
        """(*rows.shape, *row shape), a copy. State features take state rows, step features step rows."""
        return self.rows[feature].gather(rows)

    def array(self, feature: str) -> Any:
        """All rows."""
        return self.gather(feature, np.arange(len(self.rows[feature])))


def load_episodes(
    dataset: Dataset, features: Sequence[str], *, positions: Sequence[int] | None = None, split: str | None = None,
    storage: str = "ram", reporter: Reporter | None = None,
) -> EpisodeTable:  # fmt: skip
    """Read `features` of a split, of `positions`, or of all episodes.

    `storage` is where image features are, the others are small and always in memory. ram: decoded arrays; mmap: rows
    stay in the mapped shards and are read when gathered (raw features only, each checked once); `cuda` or another
    device of torch: there. ConfigError for images in place of episodes, for features that do not exist, that an
    episode lacks or that cannot be stored so.
    """
    with locate(path=dataset.path):
        described = _described(dataset, features)
        chosen = list(positions if positions is not None else dataset.split(split) if split else range(len(dataset)))
        if not chosen:
            raise ConfigError("no episodes were chosen")
        counts = {name: np.zeros(len(chosen), np.int64) for name in described}
        metas = []
        for number, (position, _) in enumerate(zip(chosen, dataset.ahead(chosen, ()), strict=True)):
            metas.append(_complete(dataset, position, described))
            for name in described:
                counts[name][number] = dataset[position].row_count(name)
        layout = Layout.packed(
            [meta["length"] for meta in metas], [bool(meta["final_observation"]) for meta in metas],
            [meta["terminated"] == 1 for meta in metas],
        )  # fmt: skip
        rows: dict[str, Rows] = {}
        for name, feature in described.items():
            picture = len(feature.shape) == 3
            need = (
                int(counts[name].sum()) * int(np.prod(feature.shape, dtype=np.int64)) * np.dtype(feature.dtype).itemsize
            )
            if storage != "mmap" and need > physical_memory():
                raise ConfigError(f"{name} takes {need / 1e9:.0f} GB in memory; use storage 'mmap'")
            if storage == "mmap" and picture:
                rows[name] = _mapped(dataset, feature, chosen, counts[name])
            else:
                values = _decoded(dataset, feature, chosen, counts[name], reporter or Silent())
                rows[name] = (
                    DeviceRows(values, storage) if picture and storage not in ("ram", "mmap") else RamRows(values)
                )
    if dataset.remote and reporter is not None:
        reporter.note(str(dataset.fetched))
    return EpisodeTable(layout, described, rows, tuple(chosen))


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _described(dataset: Dataset, features: Sequence[str]) -> dict[str, Feature]:
    if dataset.schema.kind != "episodes":
        raise ConfigError("expected a dataset of episodes, found one of images")
    for name in features:
        if name not in dataset.schema:
            raise ConfigError(f"no feature {name!r}{did_you_mean(name, dataset.schema.names)}")
        if dataset.schema[name].rows not in ("step", "state"):
            raise ConfigError(f"{name} has rows {dataset.schema[name].rows!r}, not step or state")
    return {name: dataset.schema[name] for name in features}


def _complete(dataset: Dataset, position: int, features: Mapping[str, Feature]) -> dict[str, Any]:
    item = dataset[position]
    missing = [name for name in features if name in item.absent]
    if missing:
        with locate(episode=item.name, feature=missing[0]):
            raise ConfigError("this episode lacks the feature; choose episodes that have it")
    return item.meta


def _decoded(dataset: Dataset, feature: Feature, positions: Sequence[int], counts_E: Ints, reporter: Reporter) -> Array:
    values = np.empty((int(counts_E.sum()), *feature.shape), feature.dtype)
    start = 0
    with reporter.progress(f"loading {feature.name}", len(positions), "episodes") as advance:
        for item, count in zip(dataset.ahead(positions, (feature.name,)), counts_E, strict=True):
            values[start : start + count] = item[feature.name]
            start += int(count)
            advance(1)
    return values


def _mapped(dataset: Dataset, feature: Feature, positions: Sequence[int], counts_E: Ints) -> MappedRows:
    if feature.codec != "raw":
        raise ConfigError(f"{feature.name} is coded as {feature.codec}; use storage 'ram'")
    (member,) = sample.feature_members(feature, dataset.schema)
    size = int(np.prod(feature.shape, dtype=np.int64)) * np.dtype(feature.dtype).itemsize
    numbers: dict[str, int] = {}
    maps: list[mmap.mmap] = []
    shards, offsets = [], []
    for position, count in zip(positions, counts_E, strict=True):
        shard_name, mapping, offset = dataset.mapped_member(position, member)
        if shard_name not in numbers:
            numbers[shard_name] = len(maps)
            maps.append(mapping)
        shards.append(np.full(count, numbers[shard_name], np.int64))
        offsets.append(offset + shard.NPY_HEADER + size * np.arange(count))
    return MappedRows(feature, maps, np.concatenate(shards), np.concatenate(offsets))
