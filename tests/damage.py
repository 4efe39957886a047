"""Tools that spoil a finished dataset on disk, for `defects.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash

from vrl3data import index, manifest, scan, shard
from vrl3data.schema import Array

TARGET = 4
"""The episode that is spoiled, unless it takes two or all."""


def flip(path: Path, member: str, back: int = 1, sample: int = TARGET) -> None:
    file = index.shard_files(path)[0]
    data = bytearray(file.read_bytes())
    start, size = scan.scan(file).entries[sample].members[member]
    data[start + size - back] ^= 16
    file.write_bytes(data)


Members = list[tuple[str, bytes]]


def edit(path: Path, change: Callable[[Members], Members]) -> None:
    """Rewrite the first shard with other members for one sample, all hashes right: a writer gone wrong."""
    file = index.shard_files(path)[0]
    walked, data = scan.scan(file), file.read_bytes()
    head = data[: shard.BLOCK + shard.padded(int(data[124:135], 8))]
    samples: list[tuple[int, Members, dict[str, Any]]] = []
    for entry in walked.entries:
        members = [(name, data[start : start + size]) for name, (start, size) in entry.members.items()][:-1]
        samples.append((entry.key, members, dict(entry.meta)))
    out = [head]
    for number, (key, members, meta) in enumerate(samples):
        changed = change(members) if number == TARGET else members
        meta["members"] = ",".join(name for name, _ in changed)
        meta["sizes"] = ",".join(str(len(body)) for _, body in changed)
        meta["xxh3_128"] = ",".join(xxhash.xxh3_128_hexdigest(body) for _, body in changed)
        meta.pop("meta_xxh3_128")
        for name, body in [*changed, (shard.COMMIT_MEMBER, shard.commit_bytes(meta))]:
            padding = bytes(shard.padded(len(body)) - len(body))
            out += [shard.member_header(shard.sample_name(key, name), len(body)), body, padding]
    file.write_bytes(b"".join([*out, shard.END]))
    edit_manifest(path, lambda told: _reseal(told, file))


def _reseal(told: dict[str, Any], file: Path) -> None:
    """The manifest knows the new bytes, so that nothing but the defect is wrong."""
    data = file.read_bytes()
    told["splits"]["train"]["shards"][0].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def edit_array(change: Callable[[Array], Array], name: str) -> Callable[[Path], None]:
    def changed(members: Members) -> Members:
        return [(n, shard.npy_bytes(change(shard.npy_view(memoryview(body)))) if n == f"{name}.npy" else body)
                for n, body in members]  # fmt: skip

    return lambda path: edit(path, changed)


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    told = json.loads((path / manifest.MANIFEST).read_text())
    change(told)
    (path / manifest.MANIFEST).write_text(json.dumps(told))


def edit_index(path: Path, change: Callable[[Any], Any]) -> None:
    table = change(pq.read_table(path / index.INDEX))
    facts = index.write(path, table)
    edit_manifest(path, lambda told: told.update(index=facts))
