"""Episodes of a dataset as flat arrays that batches are gathered from: in memory, mapped, on a device, or read then.

Imports torch only for device storage.
"""

from __future__ import annotations

import copy
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from vrl3data import sample, shard
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, DamagedError, did_you_mean, locate
from vrl3data.recycle import Recycled
from vrl3data.report import Reporter, Silent
from vrl3data.sampling import Ints, Layout
from vrl3data.schema import Array, Feature
from vrl3data.stored import StoredSample

STORAGES = ("ram", "mmap", "stream")
DEVICES = ("cpu", "cuda", "mps", "xpu")
CACHE_BYTES = 512 * 1024**2
"""Of decoded units that storage `stream` keeps, for each process."""
SMALL = 64 * 1024
"""Bytes of a raw episode of a feature that `stream` copies; of a larger one it reads rows where they lie."""
RUN = 4096
"""Bytes of a row from which copying runs of rows one by one is worth their loop."""
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
        self.values, self._recycled = values, Recycled()
        # NumPy copies whole rows three times as fast when they have one dimension.
        self._flat = values.reshape(len(values), -1) if values.ndim > 2 and len(values) else values

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: Ints) -> Array:
        shape = *rows.shape, *self.values.shape[1:]
        if self.values.dtype != np.uint8 or self.values.ndim < 3 or not rows.size:
            return self._flat[rows].reshape(shape)
        if rows.min() < 0 or rows.max() >= len(self._flat):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self._flat)}")
        found = self._recycled.empty(rows.size, self._flat.shape[1])
        # Other modes than clip copy `found` twice.
        np.take(self._flat, rows.reshape(-1), 0, out=found, mode="clip")
        return found.reshape(shape)


class DeviceRows:
    """Rows of one tensor on `device`; gathered rows stay there."""

    def __init__(self, values: Array, device: str) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("storage 'cuda' needs a GPU that torch can use; it finds none")
        self.torch, self.values = torch, torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: Ints) -> Any:
        index = self.torch.from_numpy(rows.reshape(-1)).to(self.values.device)
        return self.values.index_select(0, index).reshape(*rows.shape, *self.values.shape[1:])


class MappedRows:
    """Raw rows where they lie in the mapped shards, however many a batch touches: small ones by one strided take, large
    ones run by run into a buffer that was used before."""

    def __init__(self, feature: Feature, maps: Sequence[mmap.mmap], shard_N: Ints, offset_N: Ints) -> None:
        self.dtype, self.shape = np.dtype(feature.dtype), feature.shape
        size = row_bytes(feature)
        unit = int(np.gcd(ALIGNMENT, size))
        # Kept here: the view below holds on to one of them only.
        self._maps = [np.frombuffer(mapping, np.uint8) for mapping in maps]
        address_S = np.array([data.ctypes.data for data in self._maps], np.int64)
        lowest = int(address_S.argmin())
        # Mappings begin at pages. What lies between two of them belongs to the view and is never addressed.
        self._place_N = (address_S[shard_N] - address_S[lowest] + offset_N) // unit
        self._view = np.lib.stride_tricks.as_strided(
            self._maps[lowest], (int(self._place_N.max()) + 1, size), (unit, 1), writeable=False
        )
        self._bytes = np.lib.stride_tricks.as_strided(
            self._maps[lowest], (int(self._place_N.max()) * unit + size,), (1,), writeable=False
        )
        self._unit, self._recycled = unit, Recycled()

    def __len__(self) -> int:
        return len(self._place_N)

    def gather(self, rows: Ints) -> Array:
        place_R, size = self._place_N[rows.reshape(-1)], self._view.shape[1]
        found = self._copied(place_R * self._unit, size) if size >= RUN else self._view[place_R]
        values: Array = found.view(self.dtype).reshape(*rows.shape, *self.shape)
        return values

    def _copied(self, start_R: Ints, size: int) -> Array:
        """The rows of `size` bytes that start there."""
        found = self._recycled.empty(len(start_R), size)
        target = found.reshape(-1)
        first = np.flatnonzero(np.diff(start_R, prepend=-1 - size) != size)
        bounds = (np.append(first, len(start_R)) * size).tolist()
        for begin, end, start in zip(bounds, bounds[1:], start_R[first].tolist(), strict=False):
            target[begin:end] = self._bytes[start : start + end - begin]
        return found


class UnitCache:
    """Decoded units of coded features, those used last, at most `limit` bytes. Threads may share it."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._units: OrderedDict[tuple[str, int, int], Array] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, int]) -> Array | None:
        with self._lock:
            if key in self._units:
                self._units.move_to_end(key)
            return self._units.get(key)

    def put(self, key: tuple[str, int, int], unit: Array) -> None:
        with self._lock:
            if key in self._units or unit.nbytes > self.limit:
                return
            self._units[key] = unit
            self.bytes += unit.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._units.popitem(last=False)[1].nbytes


class Readers:
    """A dataset for each thread that asks: one is no object for many threads. The one who made this uses the given."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self._owner, self._own = dataset, threading.get_ident(), threading.local()

    def mine(self) -> Dataset:
        if threading.get_ident() == self._owner:
            return self.dataset
        if not hasattr(self._own, "dataset"):
            self._own.dataset = copy.copy(self.dataset)  # opened again, as pickling does
        own: Dataset = self._own.dataset
        return own


class StreamRows:
    """Rows read through the dataset when they are gathered: nothing is loaded, whatever the codec and the place.

    A coded feature is decoded unit by unit into `cache`, which also takes copies of small raw episodes; large ones are
    views each time, since a kept view would hold on to its shard.
    """

    def __init__(self, dataset: Dataset, feature: Feature, positions: Sequence[int], counts_E: Ints,
                 cache: UnitCache) -> None:  # fmt: skip
        self.feature, self.positions, self.cache = feature, positions, cache
        self._ends_E = np.cumsum(counts_E)
        self._starts_E, self._counts_E = self._ends_E - counts_E, counts_E
        self._unit = 0 if feature.codec == "raw" else max(1, feature.unit_rows)
        self._row_bytes, self._readers = row_bytes(feature), Readers(dataset)

    def __len__(self) -> int:
        return int(self._ends_E[-1])

    def gather(self, rows: Ints) -> Array:
        flat = rows.reshape(-1)
        order = np.argsort(flat, kind="stable")
        needed = flat[order]
        found = np.empty((len(flat), *self.feature.shape), self.feature.dtype)
        episode_N = np.searchsorted(self._ends_E, needed, side="right")
        local_N = needed - self._starts_E[episode_N]
        unit_N = local_N // self._unit if self._unit else np.zeros(len(needed), np.int64)
        changes = np.flatnonzero((np.diff(episode_N) != 0) | (np.diff(unit_N) != 0)) + 1
        bounds = [0, *changes.tolist(), len(needed)] if len(needed) else []
        for first, last in pairwise(bounds):
            block, start = self._block(int(episode_N[first]), int(unit_N[first]))
            found[order[first:last]] = block[local_N[first:last] - start]
        return found.reshape(*rows.shape, *self.feature.shape)

    def _block(self, episode: int, unit: int) -> tuple[Array, int]:
        """(rows, number of the first): a unit, or a view of the whole episode where nothing is decoded."""
        name, count = self.feature.name, int(self._counts_E[episode])
        start, stop = unit * self._unit, min(count, (unit + 1) * self._unit) if self._unit else count
        key, keep = (name, episode, unit), self._unit or count * self._row_bytes <= SMALL
        block = self.cache.get(key) if keep else None
        if block is None:
            item = self._readers.mine()[self.positions[episode]]
            block = item.rows(name, start, stop)
            if block.shape[1:] != self.feature.shape or len(block) != stop - start:
                with locate(path=item.dataset.path, episode=item.name, feature=name):
                    raise DamagedError(f"expected {stop - start} rows of {self.feature.shape}, found {block.shape}")
            if keep:
                self.cache.put(key, block if self._unit else block.copy())
        return block, start


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
    storage: str = "ram", reporter: Reporter | None = None, cache_bytes: int = CACHE_BYTES,
) -> EpisodeTable:  # fmt: skip
    """Read `features` of a split, of `positions`, or of all episodes.

    `storage` is where image features are, the others are small and always in memory. ram: decoded arrays; mmap: rows
    stay in the mapped shards and are read when gathered (raw features only, each checked once); stream: every feature
    is read and decoded when gathered, of any codec, with the last `cache_bytes` of decoded units kept; `cuda` or
    another device of torch: there. ConfigError for images in place of episodes, for features that do not exist, that
    an episode lacks or that cannot be stored so.
    """
    with locate(path=dataset.path):
        if storage.partition(":")[0] not in (*STORAGES, *DEVICES):
            raise ConfigError(f"storage {storage!r}{did_you_mean(storage, (*STORAGES, *DEVICES))}")
        described = _described(dataset, features)
        chosen = list(positions if positions is not None else dataset.split(split) if split else range(len(dataset)))
        if not chosen:
            raise ConfigError("no episodes were chosen")
        if min(chosen) < 0 or max(chosen) >= len(dataset):
            raise ConfigError(f"positions: expected 0 to {len(dataset) - 1}, found {min(chosen)} to {max(chosen)}")
        layout = _layout(dataset, chosen, described)
        counts = {name: layout.states_E if f.rows == "state" else layout.lengths_E for name, f in described.items()}
        cache, rows = UnitCache(cache_bytes), dict[str, Rows]()
        for name, feature in described.items():
            if storage == "stream":
                rows[name] = StreamRows(dataset, feature, chosen, counts[name], cache)
                continue
            picture = len(feature.shape) == 3
            need = int(counts[name].sum()) * row_bytes(feature)
            if storage != "mmap" and need > physical_memory():
                raise ConfigError(f"{name} takes {need / 1e9:.0f} GB in memory; use storage 'mmap' or 'stream'")
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


def row_bytes(feature: Feature) -> int:
    """Bytes of one decoded row."""
    return int(np.prod(feature.shape, dtype=np.int64)) * np.dtype(feature.dtype).itemsize


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


def _layout(dataset: Dataset, positions: Sequence[int], features: Mapping[str, Feature]) -> Layout:
    """From the index, without touching an episode. ConfigError if one lacks a feature."""
    place = np.asarray(positions, np.int64)
    columns = {key: dataset.index[key].to_numpy()[place] for key in ("length", "final_observation", "terminated")}
    absent = dataset.index["absent"].take(place)
    for row, names in enumerate(absent.to_pylist()) if any(absent.unique().to_pylist()) else ():
        missing = [name for name in features if name in names.split(",")]
        if missing:
            with locate(episode=dataset[positions[row]].name, feature=missing[0]):
                raise ConfigError("this episode lacks the feature; choose episodes that have it")
    return Layout.packed(columns["length"], columns["final_observation"] == 1, columns["terminated"] == 1)


def _check_count(item: StoredSample, feature: str, count: int) -> None:
    """The layout comes from the index; what is read must be as long."""
    if item.row_count(feature) != count:
        with locate(episode=item.name, feature=feature):
            raise DamagedError(f"the index promises {count} rows, found {item.row_count(feature)}")


def _decoded(dataset: Dataset, feature: Feature, positions: Sequence[int], counts_E: Ints, reporter: Reporter) -> Array:
    values = np.empty((int(counts_E.sum()), *feature.shape), feature.dtype)
    start = 0
    with reporter.progress(f"loading {feature.name}", len(positions), "episodes") as advance:
        for item, count in zip(dataset.ahead(positions, (feature.name,)), counts_E, strict=True):
            _check_count(item, feature.name, count)
            values[start : start + count] = item[feature.name]
            start += int(count)
            advance(1)
    return values


def _mapped(dataset: Dataset, feature: Feature, positions: Sequence[int], counts_E: Ints) -> MappedRows:
    if feature.codec != "raw":
        raise ConfigError(f"{feature.name} is coded as {feature.codec}; use storage 'ram' or 'stream'")
    (member,) = sample.feature_members(feature, dataset.schema)
    size = row_bytes(feature)
    numbers: dict[str, int] = {}
    maps: list[mmap.mmap] = []
    shards, offsets = [], []
    for position, count in zip(positions, counts_E, strict=True):
        _check_count(dataset[position], feature.name, count)
        shard_name, mapping, offset = dataset.mapped_member(position, member)
        if shard_name not in numbers:
            numbers[shard_name] = len(maps)
            maps.append(mapping)
        shards.append(np.full(count, numbers[shard_name], np.int64))
        offsets.append(offset + shard.NPY_HEADER + size * np.arange(count))
    return MappedRows(feature, maps, np.concatenate(shards), np.concatenate(offsets))
