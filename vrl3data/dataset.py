"""Reads a dataset: random access to samples and rows straight from the mapped shards. Imports no torch."""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from vrl3data import index, manifest, sample, scan, shard
from vrl3data.derive import from_shards
from vrl3data.errors import ConfigError, DamagedError, did_you_mean, locate
from vrl3data.index import IndexFile
from vrl3data.manifest import Manifest
from vrl3data.schema import PREVIEW, Array, Episode, Schema

Verify = Literal["first-touch", "always", "off"]
PACKAGED = "sample:"
MAX_MAPPED = 128
"""Shards mapped at a time; each takes a file descriptor."""


class StoredSample:
    """One episode or image in a dataset. Nothing is read before it is asked for.

    `sample["action"]` is a read-only array with rows first; raw features are views of the mapped shard.
    """

    def __init__(self, dataset: Dataset, position: int) -> None:
        self.dataset, self.position = dataset, position
        self._meta: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[str]:
        """Names of the features."""
        return iter(self.dataset.schema.names)

    def __contains__(self, feature: object) -> bool:
        return feature in self.dataset.schema

    def keys(self) -> tuple[str, ...]:
        return self.dataset.schema.names

    def __repr__(self) -> str:
        return f"<sample {self.name!r} of {self.dataset.path.name}: {', '.join(self.keys())}>"

    @property
    def meta(self) -> dict[str, Any]:
        """The commit record (FORMAT.md 6)."""
        if self._meta is None:
            with self._located():
                self._meta = shard.parse_commit(bytes(self.dataset.member(self.position, shard.COMMIT_MEMBER)))
        return self._meta

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @property
    def length(self) -> int:
        """Steps T of an episode."""
        return int(self.meta["length"])

    @property
    def source_meta(self) -> dict[str, Any]:
        """Everything else the source said."""
        try:
            return dict(json.loads(self.meta["source_meta"]))
        except (ValueError, TypeError) as error:
            with self._located():
                raise DamagedError(f"source_meta is not a JSON object: {error}") from error

    @property
    def absent(self) -> tuple[str, ...]:
        """Features that are missing in this sample and stand as one row of zeros."""
        return tuple(filter(None, self.meta["absent"].split(",")))

    def __getitem__(self, feature: str) -> Array:
        return self.rows(feature)

    def rows(self, feature: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) of a feature; only their units are decoded. DamagedError on broken bytes."""
        body, offsets = self._bodies(feature)
        described = self.dataset.schema[feature]
        with self._located(feature):
            count = sample.row_count(described, body, offsets)
            start, stop, _ = slice(start, stop).indices(count)
            return sample.decode_rows(described, body, offsets, start, stop)

    def row_count(self, feature: str) -> int:
        """How many rows a feature has in this sample."""
        body, offsets = self._bodies(feature)
        with self._located(feature):
            return sample.row_count(self.dataset.schema[feature], body, offsets)

    def preview(self) -> bytes | None:
        """The contact sheet, a JPEG file, if there is one."""
        if PREVIEW not in self.dataset.schema.extras:
            return None
        return bytes(self.dataset.member(self.position, PREVIEW))

    def load(self) -> Episode:
        """The whole sample in memory, as a writer takes it."""
        meta, schema = self.meta, self.dataset.schema
        plain = ("name", "task", "origin", "source", "source_sha256", "split")
        ends = ("length", "terminated", "truncated", "success", "start_time_ns", "label", "class_name")
        values: dict[str, Any] = {name: self[name] for name in schema.names if name not in self.absent}
        for feature in schema.features:
            if schema.kind == "images" and feature.codec == "jpeg":
                values[feature.name] = bytes(self._bodies(feature.name)[0])
        return Episode(
            values=values,
            final_observation=bool(meta.get("final_observation", 0)),
            subsets=tuple(filter(None, meta["subsets"].split(","))),
            source_meta=self.source_meta,
            **{key: meta[key] for key in (*plain, *ends) if key in meta},
        )

    def _bodies(self, feature: str) -> tuple[memoryview, memoryview | None]:
        schema = self.dataset.schema
        members = sample.feature_members(schema[feature], schema)
        views = [self.dataset.member(self.position, member) for member in members]
        return views[0], views[1] if len(views) > 1 else None

    def _located(self, feature: str | None = None) -> Any:
        key, shard_name = self.dataset.place(self.position)
        name = self._meta["name"] if self._meta else f"{key:09d}"
        return locate(path=self.dataset.path, shard=shard_name, episode=name, feature=feature)


class Dataset:
    """A dataset on disk. `dataset[i]` is a StoredSample; the order is that of the index.

    `verify`: `first-touch` hashes each member the first time this process reads it, `always` each time.
    """

    def __init__(
        self, path: Path, found: Manifest, table: pa.Table | IndexFile, verify: Verify = "first-touch"
    ) -> None:
        if verify not in ("first-touch", "always", "off"):
            raise ConfigError(f"verify {verify!r}{did_you_mean(verify, ['first-touch', 'always', 'off'])}")
        self.path, self.manifest, self.verify = path, found, verify
        self.index = table if isinstance(table, IndexFile) else IndexFile(table)
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._places: dict[str, tuple[Array, Array]] = {}
        self._touched: dict[str, bytearray] = {}
        self._keys = self.index["key"].to_numpy()
        shards = self.index["shard"].combine_chunks().dictionary_encode()
        shards = shards.combine_chunks() if isinstance(shards, pa.ChunkedArray) else shards
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard_of = shards.indices.to_numpy()

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, position: int) -> StoredSample:
        size = len(self)
        if not isinstance(position, (int, np.integer)):
            raise TypeError(f"expected a whole number below {size}, found {position!r}; split(name) finds positions")
        if not -size <= position < size:
            raise IndexError(f"sample {position} of {size}")
        return StoredSample(self, position % size)

    def __iter__(self) -> Iterator[StoredSample]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        steps = f", {self.manifest.steps} steps" if self.schema.kind == "episodes" else ""
        return f"<Dataset {self.path.name}: {len(self)} {self.schema.kind}{steps}>"

    def split(self, name: str) -> list[int]:
        """Positions of the samples of a split."""
        if name not in self.manifest.splits:
            raise ConfigError(f"no split {name!r}{did_you_mean(name, self.manifest.splits)}")
        return [int(row) for row in np.flatnonzero(np.array(self.index["split"].to_pylist()) == name)]

    def windows(self, batch_size: int, **options: Any) -> Any:
        """Batches of windows over the episodes: see vrl3data/windows.py for the options and what a batch holds."""
        return import_module("vrl3data.windows").windows(self, batch_size, **options)

    def images(self, batch_size: int, size: int, **options: Any) -> Any:
        """Batches of labelled images, decoded as they are asked for: see vrl3data/stream.py."""
        return import_module("vrl3data.stream").images(self, batch_size, size, **options)

    def place(self, position: int) -> tuple[int, str]:
        """(key, file name of the shard) of a sample."""
        return int(self._keys[position]), self._shard_names[self._shard_of[position]]

    def member(self, position: int, name: str) -> memoryview:
        """The verified bytes of a member, without a copy."""
        offsets, sizes = self._extents(name)
        view = self._slice(position, name, int(offsets[position]), int(sizes[position]))
        self._verify(position, name, view)
        return view

    def mapped_member(self, position: int, name: str) -> tuple[str, mmap.mmap, int]:
        """(shard, its mapping, offset) of a member, verified: for readers that address rows themselves."""
        self.member(position, name)
        shard_name = self.place(position)[1]
        return shard_name, self._mapped(shard_name), int(self._extents(name)[0][position])

    def close(self) -> None:
        """Forget the mappings; arrays that were handed out stay valid."""
        self._maps.clear()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_dataset, (self.path, self.verify)

    def _extents(self, name: str) -> tuple[Array, Array]:
        if name not in self._places:
            self._places[name] = (self.index[f"{name}.offset"].to_numpy(), self.index[f"{name}.size"].to_numpy())
        return self._places[name]

    def _slice(self, position: int, name: str, offset: int, size: int) -> memoryview:
        key, shard_name = self.place(position)
        with locate(path=self.path, shard=shard_name, episode=f"{key:09d}", feature=name):
            data = self._mapped(shard_name)
            if not 0 <= offset <= offset + size <= len(data):
                raise DamagedError(f"member at {offset}, {size} bytes, lies outside the shard of {len(data)} bytes")
            return memoryview(data)[offset : offset + size]

    def _mapped(self, shard_name: str) -> mmap.mmap:
        """The mapping of a shard; the one unused for longest makes room. Arrays keep their own hold on it."""
        if shard_name not in self._maps:
            self._maps[shard_name] = _map(self.path, shard_name)
            if len(self._maps) > MAX_MAPPED:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard_name)
        return self._maps[shard_name]

    def _verify(self, position: int, name: str, view: memoryview) -> None:
        touched = self._touched.setdefault(name, bytearray(len(self)))
        if self.verify == "off" or (touched[position] and self.verify == "first-touch"):
            return
        key, shard_name = self.place(position)
        with locate(path=self.path, shard=shard_name, episode=f"{key:09d}", feature=name):
            if name == shard.COMMIT_MEMBER:
                shard.parse_commit(bytes(view))
            else:
                meta = shard.parse_commit(bytes(self.member(position, shard.COMMIT_MEMBER)))
                hashes = shard.Entry(key, {}, meta).hashes()
                if xxhash.xxh3_128_hexdigest(view) != hashes.get(name):
                    raise DamagedError("the bytes do not have the hash of the commit record")
        touched[position] = 1


def open_dataset(path: Path | str, verify: Verify = "first-touch") -> Dataset:
    """Open a dataset, finished or still being written. `sample:fetch-reach` is the one that we ship.

    ConfigError if there is none, DamagedError or FormatError if it cannot be trusted.
    """
    directory = locate_dataset(path)
    with locate(path=directory):
        found = manifest.read(directory)
        if found is None:
            return Dataset(directory, *from_shards(directory), verify=verify)
        check_shards(directory, found)
        known = index.read(directory, found)
        if known is not None:
            return Dataset(directory, found, known, verify=verify)
        table = from_shards(directory, set(found.shard_sizes()))[1]
        if len(table) != found.samples:
            raise DamagedError(f"the manifest promises {found.samples} samples, the shards hold {len(table)}")
        return Dataset(directory, found, table, verify=verify)


def locate_dataset(path: Path | str, to_write: bool = False) -> Path:
    """The directory of a dataset; ConfigError that says what is there instead."""
    text = str(path)
    if text.startswith(PACKAGED):
        if to_write:
            raise ConfigError(f"{text} belongs to the package and is not written to; copy it first")
        name = text.removeprefix(PACKAGED)
        home = Path(str(files("vrl3data").joinpath("packaged")))
        known = sorted(item.parent.name for item in home.glob(f"*/{manifest.MANIFEST}"))
        if name not in known:
            raise ConfigError(f"no packaged sample {name!r}{did_you_mean(name, known)}")
        return home / name
    directory = Path(path)
    with locate(path=directory):
        if not directory.exists():
            raise ConfigError("there is no such directory")
        if not directory.is_dir():
            raise ConfigError("expected the directory of a dataset, found a file; 'vrl3data convert' makes a dataset")
        if not (directory / manifest.MANIFEST).is_file() and not index.shard_files(directory):
            raise ConfigError("this is not a vrl3data dataset: it has neither dataset.json nor data/*.tar")
    return directory


def check_shards(directory: Path, found: Manifest) -> None:
    """DamagedError if a shard of the manifest is missing or has another size. Further shards do not count."""
    sizes = index.shard_sizes(directory)
    for name, size in found.shard_sizes().items():
        if sizes.get(name) != size:
            state = "is missing" if name not in sizes else f"has {sizes[name]} bytes"
            with locate(shard=name):
                raise DamagedError(f"the shard {state}, the manifest promises {size} bytes")


def _map(directory: Path, shard_name: str) -> mmap.mmap:
    """A shard by its name; one that was finished since it was indexed is found too."""
    path = directory / "data" / shard_name
    if not path.exists():
        path = path.with_name(shard_name.removesuffix(shard.PART))
    if not path.is_file():
        raise DamagedError("the shard is missing")
    return scan.map_file(path)
