"""Manifest and index of a dataset, derived from its shards alone (FORMAT.md 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from vrl3data import index, manifest, scan
from vrl3data.errors import ConfigError, DamagedError, locate
from vrl3data.linked import expand
from vrl3data.manifest import Manifest, ShardInfo, SplitInfo
from vrl3data.shard import FILE_NAME

LISTINGS = 100
"""How often a directory is listed anew when a shard is renamed while it is read."""


def table(directory: Path, found: Manifest) -> pa.Table:
    """The index of a finished dataset, made anew from the shards if the stored one is missing, stale or broken."""
    stored = index.read(directory, found)
    return stored.table() if stored is not None else from_shards(directory, found.listed())[1]


def from_shards(directory: Path, only: Mapping[str, ShardInfo] | None = None) -> tuple[Manifest, pa.Table]:
    """What the shards alone tell: the manifest and index of a dataset without, or with stale, caches.

    `only`: the shards that count, as dataset.json lists them. A writer may rename one meanwhile, so the directory is
    listed again then.
    """
    for _ in range(LISTINGS - 1):
        try:
            return _from_shards(directory, only)
        except FileNotFoundError:
            continue
    return _from_shards(directory, only)


def _from_shards(directory: Path, only: Mapping[str, ShardInfo] | None) -> tuple[Manifest, pa.Table]:
    builder: index.IndexBuilder | None = None
    found: Manifest | None = None
    made: list[Mapping[str, Any]] = []
    shards: dict[str, list[ShardInfo]] = {}
    for path in index.shard_files(directory):
        if only is not None and path.name not in only:
            continue
        linked = only[path.name].linked if only is not None else None
        walked = scan.scan(path, linked=linked)
        if not walked.head:
            continue
        if only is not None and linked is not None:
            before = sum(item.samples for item in shards.get(_split_of(path.name), ()))
            walked = chosen(walked, only[path.name], before)
        here = Manifest.from_head(walked.head)
        if found is None or builder is None:
            found, builder = here, index.IndexBuilder(here.schema)
        if here.provenance not in made:
            made.append(here.provenance)
        with locate(shard=path.name):
            _check_order(found, here, walked, shards.setdefault(walked.head["split"], []))
        for entry in walked.entries:
            builder.add(path.name, entry)
        info = ShardInfo(path.name, len(walked.entries), path.stat().st_size, "")
        shards[walked.head["split"]].append(info)
    if found is None or builder is None:
        raise ConfigError("the dataset is being written and holds no sample yet")
    made.sort(key=lambda provenance: not manifest.is_first(found.dataset_id, provenance, found.schema))
    return _derived(replace(found, provenance=made[0], appended=tuple(made[1:])), shards, builder.table())


def _split_of(name: str) -> str:
    match = FILE_NAME.fullmatch(name)
    assert match is not None
    return match[1]


def chosen(walked: scan.Scan, info: ShardInfo, first: int = 0) -> scan.Scan:
    """A linked shard as part of this dataset: the samples that count, numbered from `first` on, in its split here.

    DamagedError if dataset.json counts samples that the shard does not have.
    """
    assert info.linked is not None
    match = FILE_NAME.fullmatch(info.name)
    assert match is not None
    split, number = match[1], int(match[2])
    with locate(shard=info.name):
        if info.samples > len(walked.entries):  # before so many keys are made
            raise DamagedError(f"dataset.json counts {info.samples} samples, the shard holds {len(walked.entries)}")
        keys = expand(info.linked.get("keys"), info.samples)
        by_key = {entry.key: entry for entry in walked.entries}
        missing = [key for key in keys if key not in by_key]
        if missing:
            raise DamagedError(f"dataset.json counts sample {missing[0]:09d}, which the shard does not hold")
    entries = [
        replace(by_key[key], key=first + place, meta=by_key[key].meta | {"split": split})
        for place, key in enumerate(keys)
    ]
    return replace(walked, head=walked.head | {"split": split, "shard": number}, entries=entries)


def _check_order(found: Manifest, here: Manifest, walked: scan.Scan, before: list[ShardInfo]) -> None:
    if here.dataset_id != found.dataset_id:
        raise DamagedError(f"the shard belongs to dataset {here.dataset_id}, the others to {found.dataset_id}")
    first = sum(info.samples for info in before)
    if walked.head["shard"] != len(before) or (walked.entries and walked.entries[0].key != first):
        raise DamagedError(f"expected shard {len(before)} from sample {first} on; a shard is missing or swapped")


def _derived(found: Manifest, shards: dict[str, list[ShardInfo]], table: pa.Table) -> tuple[Manifest, pa.Table]:
    steps: dict[str, int] = {}
    if found.schema.kind == "episodes":
        for split, length in zip(table["split"].to_pylist(), table["length"].to_pylist(), strict=True):
            steps[split] = steps.get(split, 0) + length
    splits = {
        name: SplitInfo(sum(info.samples for info in infos), steps.get(name, 0), tuple(infos))
        for name, infos in sorted(shards.items())
    }
    digests = manifest.fingerprint(table["digest"].to_pylist())
    return replace(found, splits=splits, fingerprint=digests, complete=False), table
