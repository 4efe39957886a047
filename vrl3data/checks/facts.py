"""Checks of what the manifest says beside the shards: licence, version, statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vrl3data import manifest, shard, stats
from vrl3data.checks.finding import Finding
from vrl3data.dataset import Dataset
from vrl3data.errors import Source
from vrl3data.manifest import Manifest

TOLERANCE = 1e-5
"""Of the spread of a number, or of its size: statistics are kept to seven digits."""


def licence(found: Manifest) -> Iterator[Finding]:
    """A dataset that does not say under which licence it may be used."""
    if found.license.strip().lower() in ("", "unknown", "none"):
        yield Finding("license", "the licence is not known; whoever uses or publishes this needs it", severity="warn")


def version(directory: Path) -> Iterator[Finding]:
    """A dataset of a later minor version: readable, but this release does not check what is new in it."""
    path = directory / manifest.MANIFEST
    try:
        told = json.loads(path.read_bytes())["format"]["minor"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # `manifest` speaks of it
    if isinstance(told, int) and told > shard.FORMAT["minor"]:
        message = (
            f"format version {shard.FORMAT['major']}.{told} is later than {shard.FORMAT['minor']}: not all is checked"
        )
        yield Finding("version", message, severity="info")


def statistics(dataset: Dataset) -> Iterator[Finding]:
    """Stored statistics that are not those of the data."""
    told, real = dataset.manifest.stats, stats.compute(dataset)
    if told.get("fingerprint") != real["fingerprint"]:
        yield Finding("stats", "the statistics are of other data: they carry another fingerprint")
        return
    features = told.get("features")
    features = features if isinstance(features, dict) else {}
    for name in sorted(set(features) | set(real["features"])):
        kept, now = features.get(name), real["features"].get(name)
        if not isinstance(kept, dict) or now is None:
            yield Finding("stats", "there are statistics of one side only", Source(feature=name))
        elif wrong := _different(kept, now):
            key, message = wrong
            yield Finding("stats", f"{key} is stale: {message}", Source(feature=name))


def _different(kept: dict[str, Any], now: dict[str, Any]) -> tuple[str, str] | None:
    spread = np.asarray(now.get("std", 0.0), np.float64)
    for key in sorted(set(kept) | set(now)):
        if key not in kept or key not in now:
            return key, "it is missing" if key in now else "this release does not keep it"
        try:
            one, two = np.asarray(kept[key], np.float64), np.asarray(now[key], np.float64)
        except (TypeError, ValueError):
            return key, "it is no number"
        room = TOLERANCE * np.maximum(
            np.abs(two), np.broadcast_to(spread, two.shape) if spread.shape == two.shape else 0
        )
        if one.shape != two.shape or (wrong := ~(np.abs(one - two) <= room + 1e-12)).any():
            entry = int(np.argmax(wrong.reshape(-1))) if one.shape == two.shape else 0
            there = one.reshape(-1)[entry] if one.size > entry else "nothing"
            return (
                key,
                f"{there} there, {two.reshape(-1)[entry] if two.size > entry else 'nothing'} now (entry {entry})",
            )
    return None
