"""What all tools share: how a new dataset describes what it was made from, and the loop that writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vrl3data import __version__, manifest, shard
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.errors import ConfigError
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Manifest, Provenance
from vrl3data.report import Reporter, Silent
from vrl3data.sample import EncodedSample
from vrl3data.schema import Schema
from vrl3data.writer import Writer

UNKNOWN = "unknown"
SMALLEST_SHARD = 10_000


@dataclass(frozen=True)
class Output:
    """What the new dataset is called, and how it is cut. Empty: as the (first) input."""

    name: str = ""
    license: str = ""
    shard_size: int = SHARD_SIZE


@dataclass(frozen=True)
class Piece:
    """A sample to be written, made when its turn comes."""

    sample_id: str
    make: Callable[[Path], EncodedSample]
    """Takes the folder for large members."""


def spec(
    tool: str, inputs: Sequence[Dataset], schema: Schema, options: Mapping[str, Any], output: Output
) -> DatasetSpec:
    """The dataset that `tool` makes from `inputs`. ConfigError for an input that is still being written."""
    if output.shard_size < SMALLEST_SHARD:
        raise ConfigError(f"shard_size: expected at least {SMALLEST_SHARD} bytes, found {output.shard_size}")
    for dataset in inputs:
        if not dataset.manifest.complete:
            raise ConfigError(f"{dataset.path} is still being written; finish it, or salvage it: vrl3data repair")
    found = [dataset.manifest for dataset in inputs]
    marks = "".join(f"{item.fingerprint}\n" for item in sorted(found, key=lambda item: item.fingerprint))
    provenance = Provenance(
        converter=tool,
        source_name=", ".join(item.name for item in found),
        source_identity=hashlib.sha256(marks.encode()).hexdigest(),
        source_files=sum(len(split.shards) for item in found for split in item.splits.values()),
        source_bytes=sum(item.bytes for item in found),
        options=options,
        versions={"vrl3data": __version__, "pillow": version("pillow")},
        shard_size=output.shard_size,
        inputs=tuple(origin(item) for item in found),
    )
    described = output.name or found[0].name
    return DatasetSpec(schema, described, provenance, output.license or common_license(found), found[0].description)


def origin(found: Manifest) -> dict[str, Any]:
    """An input as provenance keeps it (FORMAT.md 8)."""
    keys = ("name", "dataset_id", "fingerprint", "license", "provenance")
    appended = {"appended": list(found.appended)} if found.appended else {}
    return {**{key: getattr(found, key) for key in keys}, **appended}


def common_license(found: Sequence[Manifest]) -> str:
    """All of them must be kept: `a AND b`, as SPDX writes it. If one is unknown, so is the whole."""
    licenses = sorted({item.license for item in found})
    return UNKNOWN if UNKNOWN in licenses else " AND ".join(licenses)


def write(dest: Path | str, described: DatasetSpec, pieces: Iterable[Piece], total: int,
          reporter: Reporter | None = None) -> Manifest:  # fmt: skip
    """Write `pieces` in order; run again, it goes on where it stopped. ConfigError if there is nothing to write."""
    reporter = reporter or Silent()
    with Writer(dest, described, reporter) as writer:
        if writer.complete:
            reporter.note(f"{dest} is already whole")
        else:
            _write(writer, pieces, total, reporter)
            writer.finish()
    found = manifest.read(Path(dest))
    assert found is not None
    return found


def _write(writer: Writer, pieces: Iterable[Piece], total: int, reporter: Reporter) -> None:
    with reporter.progress("writing", total, writer.spec.schema.kind) as advance:
        for piece in pieces:
            if piece.sample_id not in writer.present:
                writer.append(piece.make(writer.spool))
            advance(1)
    if not writer.present:
        raise ConfigError("not one sample is left to be written")


def carry(stored: StoredSample, split: str, _spool: Path | None = None) -> EncodedSample:
    """A sample as it is, bytes of its members untouched, for a dataset of the same schema: nothing is decoded."""
    stored.prefetch()
    meta = {key: value for key, value in stored.meta.items() if key != "meta_xxh3_128"}
    meta["split"] = split
    members = [(name, stored.dataset.member(stored.position, name)) for name in meta["members"].split(",")]
    return EncodedSample(meta, (*members, (shard.COMMIT_MEMBER, shard.commit_bytes(meta))))


def carried(dataset: Dataset, positions: Iterable[int], split_of: Callable[[int], str]) -> Iterable[Piece]:
    """Pieces for samples that stay as they are, in a split of their own choice."""
    ids = dataset.index["id"]
    for position in positions:
        yield Piece(ids[position].as_py(), partial(carry, dataset[position], split_of(position)))


def splits_of(dataset: Dataset) -> list[str]:
    """The split of every sample, as the index says."""
    return list(dataset.index["split"].to_pylist())


def same_schema(inputs: Sequence[Dataset]) -> Schema:
    """The schema that all inputs share; who encoded or drew may differ. ConfigError names what does."""
    first = inputs[0].schema
    for dataset in inputs[1:]:
        if dataset.schema.kind != first.kind:
            raise ConfigError(f"{inputs[0].path} holds {first.kind}, {dataset.path} holds {dataset.schema.kind}")
        differing = manifest.differences(_comparable(first), _comparable(dataset.schema))
        if differing:
            raise ConfigError(
                f"{dataset.path} does not fit {inputs[0].path}: {'; '.join(differing[:3])}; "
                "vrl3data recode, rename-feature and rerender bring datasets to one schema"
            )
    features = []
    for number, feature in enumerate(first.features):
        others = [dataset.schema.features[number] for dataset in inputs]
        made = {key: " | ".join(dict.fromkeys(getattr(other, key) for other in others)) for key in MAKERS}
        features.append(type(feature)(**{**_values(feature), **made}))
    return Schema(first.kind, tuple(features), first.extras)


MAKERS = ("encoder", "renderer", "description")


def _values(feature: Any) -> dict[str, Any]:
    return {key: getattr(feature, key) for key in feature.__dataclass_fields__}


def _comparable(schema: Schema) -> dict[str, Any]:
    features = {
        feature.name: {key: value for key, value in asdict(feature).items() if key not in MAKERS}
        for feature in schema.features
    }
    return {"kind": schema.kind, **features, "order of features": list(features), "extras": list(schema.extras)}
