"""Datasets that share the shards of another one: hard links where the file system allows, else copies (FORMAT.md 8)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from vrl3data import index, manifest, shard, stats, storage, takeover
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, DestinationError, locate
from vrl3data.folder import locate_dataset
from vrl3data.linked import expand, ranges
from vrl3data.manifest import DatasetSpec, Manifest, ShardInfo, SplitInfo
from vrl3data.schema import Array

NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


def link(
    dataset: Dataset, dest: Path | str, described: DatasetSpec, positions: Mapping[str, Sequence[int]]
) -> Manifest:
    """A dataset of chosen samples whose shards are those of `dataset`. `positions`: split -> ascending positions.

    Running it again on a finished target changes nothing. DestinationError for a target that holds something else.
    """
    directory, home = Path(dest), locate_dataset(str(dataset.path))
    with storage.writing(directory):
        takeover.check_target(directory)
        found = manifest.read(directory)
        if found is not None:
            takeover.compare(directory, described, found.provenance, found.schema.to_json())
            if found.stats:
                return found
        elif index.shard_files(directory):
            with locate(path=directory):
                raise DestinationError("the directory holds an unfinished dataset; choose another, or delete it")
        (directory / "data").mkdir(parents=True, exist_ok=True)
        return _Linker(dataset, home, directory).run(described, positions)


class _Linker:
    """The state of linking one dataset."""

    def __init__(self, dataset: Dataset, home: Path, directory: Path) -> None:
        self.dataset, self.home, self.directory = dataset, home, directory
        self.listed = dataset.manifest.listed()
        self.table = dataset.index.table().replace_schema_metadata(None)
        self.keys_N = _file_keys(dataset)
        self.files: list[tuple[Path, Path]] = []

    def run(self, described: DatasetSpec, positions: Mapping[str, Sequence[int]]) -> Manifest:
        splits, tables = {}, []
        for name, chosen in sorted(positions.items()):
            infos, rows = self._split(name, chosen)
            steps = sum(rows["length"].to_pylist()) if described.schema.kind == "episodes" else 0
            splits[name] = SplitInfo(len(chosen), steps, tuple(infos))
            tables.append(rows)
        table = pa.concat_tables(tables)
        found = Manifest(
            described.schema, described.dataset_id, described.provenance.to_json(), name=described.name,
            license=described.license, description=described.description, splits=splits,
            subsets=stats.subsets(table), fingerprint=manifest.fingerprint(table["digest"].to_pylist()),
            content=stats.content(table), lossy=stats.lossy(table),
        )  # fmt: skip
        # First what counts: without it, shards of another dataset would be read whole. `stats` come last.
        found.write(self.directory)
        for old, new in self.files:
            _same_file(old, new)
        storage.sync_directory(self.directory / "data")
        found = replace(found, index=index.write(self.directory, table))
        with Dataset(self.directory, found, table) as made:
            found = replace(found, stats=stats.compute(made))
        found.write(self.directory)
        return found

    def _split(self, name: str, chosen: Sequence[int]) -> tuple[list[ShardInfo], pa.Table]:
        """The shards of a split and their rows of the index."""
        infos: list[ShardInfo] = []
        names: list[str] = []
        for old, group in groupby(chosen, key=lambda position: self.dataset.place(position)[1]):
            keys = [int(self.keys_N[position]) for position in group]
            new = f"{name}-{len(infos):06d}.tar"
            self.files.append((self.home / "data" / old, self.directory / "data" / new))
            infos.append(self._info(new, self.listed[old], keys))
            names += [new] * len(keys)
        rows = self.table.take(list(chosen))
        new_columns = {
            "key": pa.array(range(len(chosen)), pa.int64()),
            "shard": pa.array(names, pa.string()),
            "split": pa.array([name] * len(chosen), pa.string()),
        }
        for column, values in new_columns.items():
            rows = rows.set_column(rows.schema.get_field_index(column), column, values)
        return infos, rows

    def _info(self, name: str, old: ShardInfo, keys: list[int]) -> ShardInfo:
        if old.linked:
            home = {key: old.linked[key] for key in ("dataset_id", "split", "shard")}
        else:
            match = shard.FILE_NAME.fullmatch(old.name)
            assert match is not None
            home = {"dataset_id": self.dataset.manifest.dataset_id, "split": match[1], "shard": int(match[2])}
        return ShardInfo(name, len(keys), old.bytes, old.sha256, {**home, "keys": ranges(keys)})


def _file_keys(dataset: Dataset) -> Array:
    """(N,) the key of every sample in its file; in a linked dataset the index counts anew."""
    keys_N = np.array(dataset.index["key"].to_numpy())
    names_N = np.array(dataset.index["shard"].to_pylist())
    for name, info in dataset.manifest.listed().items():
        if info.linked:
            keys_N[names_N == name] = expand(info.linked["keys"], info.samples)
    return keys_N


def _same_file(old: Path, new: Path) -> None:
    if not old.is_file():
        raise ConfigError(f"{old.name} cannot be linked: the dataset is not on this machine's disks")
    temporary = new.with_name(f".{new.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(old.resolve(), temporary)  # the hub keeps links to its shards: those would be copied as they are
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        shutil.copyfile(old, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(new)
