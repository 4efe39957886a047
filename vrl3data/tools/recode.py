"""recode: the same samples with other codecs. rename-feature: the same samples under other names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vrl3data import codecs
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.encode import encode
from vrl3data.errors import ConfigError, SchemaError, did_you_mean
from vrl3data.manifest import DatasetSpec, Manifest
from vrl3data.report import Reporter
from vrl3data.sample import EncodedSample, Identity
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.tools.rewrite import Output, Piece, spec, splits_of, write

BLOCK_BYTES = 32 * 1024**2
"""Decoded at a time."""


def recode(
    dataset: Dataset, dest: Path | str, codec: str, features: Sequence[str] = (), output: Output | None = None,
    reporter: Reporter | None = None,
) -> Manifest:  # fmt: skip
    """Store `features` (all pictures and depth, if none are named) with `codec`, such as dzst, png, raw or jpeg:95.

    What is not recoded is passed on as it is. Without loss the fingerprint stays the same; a feature that is stored
    with loss and is encoded with loss again loses twice, and the reporter says so.
    """
    schema = dataset.schema
    chosen = _chosen(schema, features)
    new = replace(schema, features=tuple(_recoded(f, codec) if f.name in chosen else f for f in schema.features))
    changed = {f.name for f, old in zip(new.features, schema.features, strict=True) if f != old}
    if not changed:
        raise ConfigError(f"{', '.join(sorted(chosen))}: already stored as {codec}")
    twice = [name for name in sorted(changed) if not schema[name].lossless and not new[name].lossless]
    if twice and reporter is not None:
        reporter.warn(f"{', '.join(twice)}: stored with loss, and encoded with loss again")
    described = spec("recode", [dataset], new, {"codec": codec, "features": sorted(changed)}, output or Output())
    return rewrite(dataset, dest, described, partial(_load_recoded, changed), reporter)


def rename(
    dataset: Dataset, dest: Path | str, names: Mapping[str, str], output: Output | None = None,
    reporter: Reporter | None = None,
) -> Manifest:  # fmt: skip
    """Features under new names, `{old: new}`; `age.<feature>` goes with its feature. Arrays stay as they are.

    The fingerprint changes, for names are content; ids of samples do not.
    """
    schema = dataset.schema
    mapping = {old: new for old, new in names.items() if old != new}
    for old in mapping:
        if old not in schema:
            raise ConfigError(f"no feature {old!r}{did_you_mean(old, schema.names)}")
        if schema.kind == "images" and old in ("image", "cls"):
            raise ConfigError(f"feature {old!r} has a fixed name in kind images")
    mapping |= {f"age.{old}": f"age.{new}" for old, new in list(mapping.items()) if f"age.{old}" in schema}
    if not mapping:
        raise ConfigError("expected at least one OLD=NEW with another name")
    new_names = [mapping.get(name, name) for name in schema.names]
    for name in new_names:
        if new_names.count(name) > 1:
            raise ConfigError(f"there would be two features {name!r}")
    try:
        new = replace(schema, features=tuple(replace(f, name=mapping.get(f.name, f.name)) for f in schema.features))
    except SchemaError as error:
        raise ConfigError(error.message) from error
    described = spec("rename-feature", [dataset], new, {"names": dict(sorted(mapping.items()))}, output or Output())
    return rewrite(dataset, dest, described, partial(_load_renamed, mapping), reporter)


def rewrite(
    dataset: Dataset, dest: Path | str, described: DatasetSpec, load: Callable[[StoredSample], Episode],
    reporter: Reporter | None,
) -> Manifest:  # fmt: skip
    """Write every sample as `load` makes it, under its old id and in its old split."""
    splits, ids = splits_of(dataset), dataset.index["id"]
    identity = Identity("", "", {})  # every sample has its id already

    def make(position: int, spool: Path) -> EncodedSample:
        episode = replace(load(dataset[position]), split=splits[position])
        return encode(episode, described.schema, identity, spool, sample_id=ids[position].as_py())

    pieces = (Piece(ids[position].as_py(), partial(make, position)) for position in range(len(dataset)))
    return write(dest, described, pieces, len(dataset), reporter)


def blocks(stored: StoredSample, feature: Feature) -> Iterator[Array]:
    """The rows of a feature, decoded block by block."""
    row_bytes = max(1, np.dtype(feature.dtype).itemsize * abs(int(np.prod(feature.shape))))
    size = max(feature.unit_rows, BLOCK_BYTES // row_bytes // feature.unit_rows * feature.unit_rows)
    for start in range(0, stored.row_count(feature.name), size):
        yield stored.rows(feature.name, start, start + size)


def _load_recoded(changed: set[str], stored: StoredSample) -> Episode:
    episode, schema = stored.load(coded=True), stored.dataset.schema
    values: dict[str, Any] = dict(episode.values)
    for name in changed & values.keys():
        one = schema.kind == "images" and name == "image"
        values[name] = stored[name] if one else blocks(stored, schema[name])
    return replace(episode, values=values)


def _load_renamed(mapping: Mapping[str, str], stored: StoredSample) -> Episode:
    episode = stored.load(coded=True)
    return replace(episode, values={mapping.get(name, name): value for name, value in episode.values.items()})


def _chosen(schema: Schema, features: Sequence[str]) -> set[str]:
    for name in features:
        if name not in schema:
            raise ConfigError(f"no feature {name!r}{did_you_mean(name, schema.names)}")
    if features:
        return set(features)
    found = {f.name for f in schema.features if f.is_image or f.name.startswith("obs.depth.")}
    found |= {f.name for f in schema.features if f.name == "image"}
    if not found:
        raise ConfigError(f"the dataset has no pictures; name the features to recode: {', '.join(schema.names)}")
    return found


def _recoded(feature: Feature, codec: str) -> Feature:
    if feature.codec == codec:
        return feature
    plain = replace(feature, codec="raw", lossless=True, unit_rows=1, encoder="")
    return codecs.describe(plain, codec)
