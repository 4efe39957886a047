"""What a conversion would write: a look at the source and a few units, encoded and thrown away."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.base import Converter, Plan, Unit
from converters.run import RunOptions, planned, resolved
from converters.worker import Failed, Setup
from vrl3data import index, manifest, scan, shard, takeover
from vrl3data.errors import Vrl3dataError
from vrl3data.manifest import DatasetSpec
from vrl3data.report import Reporter, Silent
from vrl3data.sample import EncodedSample, Identity
from vrl3data.schema import Feature

TRIED = 16
"""Units that are read and encoded, spread evenly over the source."""
BUDGET_S, LEAST = 20.0, 2
"""Seconds after which no further one is tried, if so many were."""


@dataclass(frozen=True)
class Forecast:
    """What would be written. `bytes` and `steps` are exact if all units were tried, else scaled from those."""

    path: Path
    spec: DatasetSpec
    units: int
    tried: int
    shards: int
    bytes: int
    steps: int
    free: int
    """Bytes that are free where it would be written."""
    there: int
    """Samples that an unfinished or finished dataset in `path` holds already."""
    problems: tuple[tuple[str, Vrl3dataError], ...]
    notes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return self.tried == self.units

    def to_json(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "path": str(self.path),
            "name": spec.name,
            "kind": spec.schema.kind,
            "license": spec.license,
            "samples": self.units,
            "tried": self.tried,
            "steps": self.steps,
            "bytes": self.bytes,
            "shards": self.shards,
            "exact": self.exact,
            "free_bytes": self.free,
            "already_there": self.there,
            "features": [_described(feature) for feature in spec.schema.features],
            "problems": [{"source": name, "reason": str(error)} for name, error in self.problems],
            "notes": list(self.notes),
        }


def _described(feature: Feature) -> dict[str, Any]:
    keys = ("name", "dtype", "rows", "codec")
    return {key: getattr(feature, key) for key in keys} | {"shape": list(feature.shape)}


def forecast(
    converter: Converter, dest: Path, options: RunOptions | None = None, reporter: Reporter | None = None
) -> Forecast:
    """Plan, and encode up to TRIED units, fewer if they are slow. Writes nothing in or beside `dest`.

    Raises what a conversion would raise before its first sample: SourceError, ConfigError, DestinationError. What is
    broken in the source, if the plan got past it, is in `problems`.
    """
    options, reporter, dest = options or RunOptions(), reporter or Silent(), resolved(dest)
    takeover.check_target(dest)
    plan = planned(converter, options, stop=False)
    there = _already(dest, plan.spec, options)
    units = list(plan.units)
    with contextlib.closing(converter):
        tried = _tried(converter, plan, units, reporter)
    samples = [result for result in tried if isinstance(result, _Size)]
    failed = [(result.unit, result.error) for result in tried if isinstance(result, Failed)]
    shards, size, steps = _written(plan.spec, samples)
    part = len(tried) / len(units) if units else 1.0
    return Forecast(
        path=dest,
        spec=plan.spec,
        units=len(units),
        tried=len(tried),
        shards=shards if part == 1 else max(shards, -(-round(size / part) // plan.spec.provenance.shard_size)),
        bytes=round(size / part),
        steps=round(steps / part),
        free=shutil.disk_usage(next(folder for folder in (dest, *dest.parents) if folder.exists())).free,
        there=there,
        problems=(*plan.problems, *failed),
        notes=plan.notes,
    )


@dataclass(frozen=True)
class _Size:
    """Of an encoded sample."""

    split: str
    bytes: int
    steps: int


def _tried(converter: Converter, plan: Plan, units: Sequence[Unit], reporter: Reporter) -> list[_Size | Failed]:
    made, count = plan.spec.provenance, min(TRIED, len(units))
    places = [number * len(units) // count for number in range(count)]
    order = list(dict.fromkeys(place for pair in zip(places, reversed(places), strict=True) for place in pair))
    results: dict[int, _Size | Failed] = {}
    started = time.monotonic()
    identity = Identity(made.source_identity, made.converter, made.options)
    with (
        tempfile.TemporaryDirectory(prefix="vrl3data-") as spool,
        reporter.progress("trying", count, plan.spec.schema.kind) as advance,
    ):
        setup = Setup(converter, plan.spec.schema, identity, Path(spool))
        for place in order:  # from both ends, so that a few of them are far apart
            if len(results) >= LEAST and time.monotonic() - started > BUDGET_S:
                break
            result = setup.one(units[place])
            if isinstance(result, EncodedSample):
                results[place] = _Size(result.meta["split"], result.shard_bytes, result.meta.get("length", 0))
                result.discard()
            else:
                results[place] = result
            advance(1)
    return [results[place] for place in sorted(results)]


def _written(spec: DatasetSpec, samples: Sequence[_Size]) -> tuple[int, int, int]:
    """(shards, bytes, steps) of a dataset of `samples`: as the writer fills its shards (FORMAT.md 6)."""
    filled: dict[str, list[int]] = {}
    """split -> sizes of its shards, without their end."""
    for sample in samples:
        sizes = filled.setdefault(sample.split, [])
        if not sizes or sizes[-1] + sample.bytes + len(shard.END) > spec.provenance.shard_size:
            head = shard.head_bytes(spec.schema, sample.split, len(sizes), spec.facts())
            sizes.append(shard.BLOCK + shard.padded(len(head)))
        sizes[-1] += sample.bytes
    shards = [size + len(shard.END) for sizes in filled.values() for size in sizes]
    return len(shards), sum(shards), sum(sample.steps for sample in samples)


def _already(dest: Path, spec: DatasetSpec, options: RunOptions) -> int:
    """Samples that are in `dest`. DestinationError if a conversion could not go on with them."""
    if options.overwrite or not dest.is_dir():
        return 0
    found = manifest.read(dest)
    if options.append:
        return takeover.check_append(dest, spec, found).samples
    if found is not None:
        takeover.compare(dest, spec, found.provenance, found.schema.to_json())
        return found.samples
    count = 0
    for path in index.shard_files(dest):
        walked = scan.scan(path)
        if walked.head:
            takeover.compare(dest, spec, walked.head["provenance"], walked.head["schema"])
        count += len(walked.entries)
    return count
