"""What a writer may go on with: an empty directory, or the same dataset, whole up to what was not confirmed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from vrl3data import index, manifest, scan, shard
from vrl3data.errors import DamagedError, DestinationError, locate
from vrl3data.manifest import DatasetSpec, Manifest
from vrl3data.schema import Schema

READ_BYTES = 4 * 1024**2
_URL = re.compile(r"[a-z][a-z0-9+]+:/")
"""As a Path writes it: with one slash."""


def check_target(path: Path) -> None:
    """DestinationError unless `path` is new, empty, or one of our datasets."""
    with locate(path=path):
        if _URL.match(str(path)):
            raise DestinationError("datasets are written to a folder, not to a URL; write one, then: vrl3data push")
        for parent in path.resolve().parents:
            if (parent / manifest.MANIFEST).is_file():
                raise DestinationError(f"the target lies inside the dataset {parent}; choose a folder of its own")
        if path.exists() and not path.is_dir():
            raise DestinationError("the target is a file, expected a directory")
        if not path.is_dir() or (path / manifest.MANIFEST).exists() or index.shard_files(path):
            return
        foreign = sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
        if foreign not in ([], ["data"]) or ((path / "data").is_dir() and any((path / "data").iterdir())):
            raise DestinationError(
                f"the directory is not empty and not a vrl3data dataset (it holds {foreign[0]!r}); choose another"
            )


def compare(
    path: Path, spec: DatasetSpec, provenance: Mapping[str, Any], schema: Mapping[str, Any], appending: bool = False
) -> None:
    """DestinationError if what lies in `path` is not what `spec` is about to write."""
    there = {"schema": schema, **provenance}
    now = {"schema": spec.schema.to_json(), **spec.provenance.to_json()}
    differing = manifest.differences(there, now)
    if differing:
        with locate(path=path):
            if appending:
                raise DestinationError(
                    f"an append of something else was begun here and not finished: {'; '.join(differing[:3])}; "
                    "finish it by its own command, or delete the shards in data/ that dataset.json does not list"
                )
            raise DestinationError(
                f"the directory holds another dataset: {'; '.join(differing[:3])}; "
                "choose another directory, or replace it (convert: --overwrite)"
            )


def check_append(path: Path, spec: DatasetSpec, found: Manifest | None) -> Manifest:
    """The finished dataset that `spec` may be appended to. DestinationError says what does not fit."""
    with locate(path=path):
        if found is None:
            raise DestinationError(
                "there is no finished dataset to append to; without --append the command begins or finishes one"
            )
        differing = manifest.differences(
            {"kind": found.schema.kind, "schema": by_name(found.schema), "licence": found.license},
            {"kind": spec.schema.kind, "schema": by_name(spec.schema), "licence": spec.license},
        )
        if differing:
            raise DestinationError(f"what is to be appended does not fit the dataset: {'; '.join(differing[:3])}")
        if found.is_linked:
            raise DestinationError("the dataset is made of linked shards; make it whole first: vrl3data compact")
    return found


def by_name(schema: Schema) -> dict[str, Any]:
    """For messages that name the feature which differs; holds the order too."""
    data = schema.to_json()
    features = {feature["name"]: feature for feature in data["features"]}
    return {**features, "order of features": list(features), "extras": data["extras"]}


def verify(path: Path, walked: scan.Scan, window: int) -> tuple[int, Any]:
    """Hash a shard of an interrupted run. Samples that were not confirmed and never reached the disk are dropped."""
    sha256 = hashlib.sha256()
    with scan.map_file(path) as data:
        for number, entry in enumerate(walked.entries):
            hashes = entry.hashes()
            bad = [name for name, (start, size) in entry.members.items() if name in hashes
                   and xxhash.xxh3_128_hexdigest(data[start : start + size]) != hashes[name]]  # fmt: skip
            if bad and not walked.closed and len(walked.entries) - number <= window:
                walked.end = min(start for start, _ in entry.members.values()) - shard.BLOCK
                del walked.entries[number:]
                break
            if bad:
                with locate(shard=path.name, episode=entry.meta["name"], feature=bad[0]):
                    raise DamagedError("the bytes do not have the hash of the commit record")
        end = walked.end + len(shard.END) if walked.closed else walked.end
        for start in range(0, end, READ_BYTES):
            sha256.update(data[start : min(end, start + READ_BYTES)])
    return walked.end, sha256
