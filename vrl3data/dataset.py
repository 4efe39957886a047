"""Reads a dataset: random access to samples and rows, from mapped shards or over the net. Imports no torch."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from vrl3data import address, index, manifest, sample, shard
from vrl3data.address import Address
from vrl3data.derive import from_shards
from vrl3data.errors import ConfigError, DamagedError, did_you_mean, locate
from vrl3data.folder import PACKAGED as PACKAGED
from vrl3data.folder import check_schema
from vrl3data.folder import check_shards as check_shards
from vrl3data.folder import locate_dataset as locate_dataset
from vrl3data.index import IndexFile
from vrl3data.manifest import Manifest
from vrl3data.members import Fetched, MappedMembers, Members, Place
from vrl3data.remote import Opened, RemoteOptions, fetch
from vrl3data.schema import Array, Schema
from vrl3data.stored import StoredSample as StoredSample

Verify = Literal["first-touch", "always", "off"]
KNOWN_COMMITS = 256
"""Commit records that are kept in mind."""
AHEAD_BYTES = 16 * 1024**2
"""What `ahead` fetches at a time."""


class Dataset:
    """A dataset on a disk or behind a URL. `dataset[i]` is a StoredSample; the order is that of the index.

    `verify`: `first-touch` hashes each member the first time this process reads it (or has fetched it again),
    `always` each time. `path` is the folder, or the address without its secrets. `fetched` counts what was asked of a
    server. Of a remote dataset, keep the one object: opening it again fetches the index again.
    """

    def __init__(
        self, place: Path | Opened, found: Manifest, table: pa.Table | IndexFile, verify: Verify = "first-touch",
        members: Members | None = None,
    ) -> None:  # fmt: skip
        if verify not in ("first-touch", "always", "off"):
            raise ConfigError(f"verify {verify!r}{did_you_mean(verify, ['first-touch', 'always', 'off'])}")
        self.path: Path | Address = place.shown if isinstance(place, Opened) else place
        self.manifest, self.verify = found, verify
        self.index = table if isinstance(table, IndexFile) else IndexFile(table)
        self._place = place
        self._extents: dict[str, tuple[Array, Array]] = {}
        self._commits: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._keys = self.index["key"].to_numpy()
        shards = self.index["shard"].unify_dictionaries().combine_chunks()
        shards = shards if isinstance(shards, pa.DictionaryArray) else shards.dictionary_encode()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard_of = shards.indices.to_numpy()
        if members is None:
            members = place.members() if isinstance(place, Opened) else MappedMembers(place, len(self))
        self.members = members

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    @property
    def remote(self) -> bool:
        """Whether members are fetched over the net; they cannot be mapped then."""
        return self.members.remote

    @property
    def fetched(self) -> Fetched:
        return self.members.fetched

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
        return np.flatnonzero(pc.equal(self.index["split"], name).to_numpy()).tolist()

    def windows(self, batch_size: int, **options: Any) -> Any:
        """Batches of windows over the episodes: see vrl3data/windows.py for the options and what a batch holds."""
        return import_module("vrl3data.windows").windows(self, batch_size, **options)

    def images(self, batch_size: int, size: int, **options: Any) -> Any:
        """Batches of labelled images, decoded as they are asked for: see vrl3data/stream.py."""
        return import_module("vrl3data.stream").images(self, batch_size, size, **options)

    def mark(self, position_N: Array) -> str:
        """Tells samples, in their order, from others. The fingerprint does not: it is the same for any order."""
        ids = self.index["id"].take(pa.array(position_N)).to_pylist()
        return xxhash.xxh3_64_hexdigest("".join(ids).encode())

    def place(self, position: int) -> tuple[int, str]:
        """(key, file name of the shard) of a sample."""
        return int(self._keys[position]), self._shard_names[self._shard_of[position]]

    def member(self, position: int, name: str) -> memoryview:
        """The verified bytes of a member, without a copy."""
        place = self._member_place(position, name)
        with locate(self.path, place.shard, f"{self._keys[position]:09d}", feature=name):
            if self.remote and self.verify != "off" and name != shard.COMMIT_MEMBER:
                self.commit(position)  # first, lest it push what it vouches for out of the cache
            view = self.members.view(place)
            if self.verify == "off" or (self.verify == "first-touch" and self.members.checked(place, view)):
                return view
            try:
                self._verify(place, view)
            except DamagedError:
                if not self.members.forget(place, view):
                    raise
                view = self.members.view(place)  # what came over the net, or lay in a cache, is fetched anew: once
                self._verify(place, view)
            self.members.mark(place, view)
            return view

    def commit(self, position: int) -> dict[str, Any]:
        """The verified commit record of a sample (FORMAT.md 6)."""
        if position not in self._commits or self.verify == "always":
            meta = shard.parse_commit(bytes(self.member(position, shard.COMMIT_MEMBER)))
            with locate(self.path, self.place(position)[1], f"{self._keys[position]:09d}"):
                shard.check_meta(meta, self.schema.kind)
            if self.manifest.is_linked:  # the shard's word is about the dataset that it came from
                meta["split"] = str(self.index["split"][position].as_py())
            self._commits[position] = meta
            if len(self._commits) > KNOWN_COMMITS:
                self._commits.popitem(last=False)
        return self._commits[position]

    def mapped_member(self, position: int, name: str) -> tuple[str, mmap.mmap, int]:
        """(shard, its mapping, offset) of a member, verified: for readers that address rows themselves."""
        place = self._member_place(position, name)
        with locate(self.path, place.shard):
            mapping = self.members.mapping(place.shard)
        self.member(position, name)
        return place.shard, mapping, place.offset

    def prefetch(self, positions: Sequence[int], members: Sequence[str]) -> None:
        """These members will be asked for soon: of a remote dataset they are fetched now, neighbours together.

        No more than the cache holds; a local dataset does nothing. Commit records come along, for their hashes.
        """
        if not self.remote:
            return
        names = [*members, *([] if self.verify == "off" else [shard.COMMIT_MEMBER])]
        with locate(path=self.path):
            self.members.prefetch([self._member_place(at, name) for at in positions for name in dict.fromkeys(names)])

    def ahead(self, positions: Sequence[int], features: Sequence[str]) -> Iterator[StoredSample]:
        """The samples at `positions`, in this order; of a remote dataset `features` are fetched ahead in few requests.

        Without features, the commit records alone.
        """
        names = [name for feature in features for name in sample.feature_members(self.schema[feature], self.schema)]
        names.append(shard.COMMIT_MEMBER)
        start, size = 0, 0
        for number, position in enumerate(positions):
            if self.remote and number == start:
                stop, size = start, 0
                while stop < len(positions) and (stop == start or size < AHEAD_BYTES):
                    size += sum(int(self._where(name)[1][positions[stop]]) for name in names)
                    stop += 1
                self.prefetch(positions[start:stop], names)
                start = stop
            yield self[position]

    def close(self) -> None:
        """Forget the mappings and what was fetched; arrays that were handed out stay valid."""
        self.members.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Dataset:
        """For another thread: opened again, but a remote one shares what was fetched."""
        return Dataset(self._place, self.manifest, self.index, self.verify, self.members if self.remote else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._place, self.verify, self.manifest.fingerprint)

    def _where(self, name: str) -> tuple[Array, Array]:
        if name not in self._extents:
            self._extents[name] = (self.index[f"{name}.offset"].to_numpy(), self.index[f"{name}.size"].to_numpy())
        return self._extents[name]

    def _member_place(self, position: int, name: str) -> Place:
        offsets, sizes = self._where(name)
        shard_name = self._shard_names[self._shard_of[position]]
        return Place(position, name, shard_name, int(offsets[position]), int(sizes[position]))

    def _verify(self, place: Place, view: memoryview) -> None:
        if place.member == shard.COMMIT_MEMBER:
            shard.parse_commit(bytes(view))
            return
        hashes = shard.Entry(int(self._keys[place.position]), {}, self.commit(place.position)).hashes()
        if xxhash.xxh3_128_hexdigest(view) != hashes.get(place.member):
            raise DamagedError("the bytes do not have the hash of the commit record")


def open_dataset(
    path: Path | str, verify: Verify = "first-touch", *, cache_dir: Path | str | None = None,
    cache_bytes: int | None = None, storage_options: Mapping[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """Open a dataset, finished or still being written. `sample:fetch-reach` is the one that we ship.

    `path` may be a URL: http(s)://, s3://, hf://datasets/USER/NAME, memory://. Only dataset.json, index.parquet and
    the members that are asked for are fetched then, and kept in a cache of at most `cache_bytes`: in memory, or in the
    folder `cache_dir` (default: that of the variable VRL3DATA_CACHE). `storage_options` go to fsspec.
    ConfigError if there is none, DamagedError or FormatError if it cannot be trusted, SourceError if a server fails.
    """
    place = address.parse(str(path)) if address.is_url(path) else path
    if isinstance(place, Address):
        options = RemoteOptions(None if cache_dir is None else Path(cache_dir), cache_bytes, storage_options or {})
        opened, members = fetch(place, options)
        found = opened.found()
        return Dataset(opened, found, opened.table(found), verify, members)
    directory = locate_dataset(place)
    with locate(path=directory):
        known = manifest.read(directory)
        if known is None:
            return Dataset(directory, *from_shards(directory), verify=verify)
        check_shards(directory, known)
        check_schema(directory, known)
        table = index.read(directory, known)
        if table is not None:
            return Dataset(directory, known, table, verify=verify)
        made = from_shards(directory, known.listed())[1]
        if len(made) != known.samples:
            raise DamagedError(f"the manifest promises {known.samples} samples, the shards hold {len(made)}")
        return Dataset(directory, known, made, verify=verify)


def _reopened(place: Path | Opened, verify: Verify, fingerprint: str) -> Dataset:
    """In another process: from disk, or from what was fetched before, so that both see the same dataset."""
    if isinstance(place, Path):
        again = open_dataset(place, verify)
        if again.manifest.fingerprint != fingerprint:
            with locate(path=place):
                raise ConfigError("the dataset was changed since it was opened; open it again")
        return again
    found = place.found()
    return Dataset(place, found, place.table(found), verify)
