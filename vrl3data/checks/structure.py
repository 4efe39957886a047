"""Checks of the bytes of one sample: hashes, members, rows, types, numbers that are none, digest."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from vrl3data import sample, shard
from vrl3data.checks.content import Watch
from vrl3data.checks.finding import Finding
from vrl3data.errors import Source, Vrl3dataError, locate
from vrl3data.schema import PREVIEW, Array, Feature, Schema


def check_sample(data: mmap.mmap, entry: shard.Entry, schema: Schema, where: Source, watch: Watch) -> Iterator[Finding]:
    """All checks of the bytes of one sample in its shard; `watch` gets its rows, and hashes of them."""
    if list(entry.members) != sample.member_names(schema):
        yield Finding("members", f"found {', '.join(entry.members)}", where)
        return
    view = memoryview(data)
    bodies = {name: view[start : start + size] for name, (start, size) in entry.members.items()}
    for name, expected in entry.hashes().items():
        if xxhash.xxh3_128_hexdigest(bodies[name]) != expected:
            yield Finding("checksum", "the bytes do not have the hash of the commit record", _at(where, name))
            return
    yield from _check_meta(entry.meta, where)
    content: list[dict[str, Any]] = []
    for feature in schema.features:
        try:
            with locate(shard=where.shard, episode=where.episode, feature=feature.name):
                problems, described = _check_feature(feature, schema, bodies, entry.meta, watch)
        except Vrl3dataError as error:
            yield Finding("rows", error.message, error.source)
            return
        content.append(described)
        watch.content(feature.name, described["sha256"])
        for check, message, step in problems:
            yield Finding(check, message, _at(where, feature.name, step))
    content += [
        {"name": extra, "sha256": hashlib.sha256(bodies[extra]).hexdigest()}
        for extra in schema.extras
        if extra != PREVIEW
    ]
    if sample.sample_digest(entry.meta, content) != entry.meta["digest"]:
        yield Finding("digest", "the content does not have the digest of the commit record", where)


def _check_meta(meta: dict[str, Any], where: Source) -> Iterator[Finding]:
    """What types alone do not tell (FORMAT.md 6)."""
    try:
        said = json.loads(meta["source_meta"])
    except ValueError:
        said = None
    if not isinstance(said, dict):
        yield Finding("meta", "source_meta is not a JSON object", where)
    if meta["source"].startswith(("/", "\\")) or meta["source"][1:2] == ":":
        yield Finding("meta", f"source {meta['source']!r} is an absolute path", where)


def _check_feature(
    feature: Feature, schema: Schema, bodies: dict[str, memoryview], meta: dict[str, Any], watch: Watch
) -> tuple[list[tuple[str, str, int | None]], dict[str, Any]]:
    """(problems, the feature's part of the digest)."""
    body, offsets = sample.stored_members(feature, schema, bodies)
    count, expected = sample.row_count(feature, body, offsets, meta), sample.promised_rows(feature, meta)
    problems: list[tuple[str, str, int | None]] = []
    if count != expected:
        problems.append(("rows", f"expected {expected} rows, found {count}", None))

    def look(start: int, rows: Array) -> None:
        if any(want not in (-1, got) for want, got in zip(feature.shape, rows.shape[1:], strict=True)):
            problems.append(("rows", f"expected rows of shape {feature.shape}, found {rows.shape[1:]}", None))
        if (bad := _not_finite(rows)) is not None:
            problems.append(("nan", f"{rows[bad].size - int(np.isfinite(rows[bad]).sum())} values are NaN or infinite",
                             start + bad))  # fmt: skip
            watch.spoil(feature.name)
        else:
            watch.rows(feature, rows)
        if feature.codec_name == "text" and int(rows[0]) != meta["label"]:
            problems.append(("meta", f"label {meta['label']} in meta.json, {int(rows[0])} in the feature", None))

    return problems, sample.describe(feature, body, offsets, count, look)


def _not_finite(rows: Array) -> int | None:
    """The first row with a value that is not finite."""
    if rows.dtype.kind != "f" or bool(np.isfinite(rows).all()):
        return None
    return int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0])


def _at(where: Source, feature: str, step: int | None = None) -> Source:
    return Source(shard=where.shard, episode=where.episode, feature=feature, step=step)
