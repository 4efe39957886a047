"""Statistics of a dataset, exact for numbers, from a sample of frames for cameras."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vrl3data.dataset import Dataset
from vrl3data.index import IndexFile
from vrl3data.schema import Array, Feature

MAX_FRAMES = 1000
"""Frames of each camera that enter the statistics, spread evenly over the samples."""
LISTED_FILES = 100
BATCH_ROWS = 10_000
BLOCK_BYTES = 16 * 1024**2
"""Numbers taken at a time, as float64."""
MAX_WIDTH = 512
"""Features with more numbers in a row than this get one statistic for all of them."""


def compute(dataset: Dataset) -> dict[str, Any]:
    """`{"fingerprint": ..., "features": {name: {mean, std, min, max, rows, nan}}}`, over all splits.

    Per entry of the row for numbers, per channel (0..255) for cameras. NaN are counted and left out.
    """
    features = {}
    for feature in dataset.schema.features:
        numbers = feature.codec_name != "text" and feature.rows != "episode" and 0 not in feature.shape
        if numbers or feature.is_image:
            features[feature.name] = (
                _pixels(dataset, feature) if feature.is_image else _summary(_numbers(dataset, feature))
            )
    return {"fingerprint": dataset.manifest.fingerprint, "features": features}


def _numbers(dataset: Dataset, feature: Feature) -> Iterable[Array]:
    width = int(np.prod(feature.shape))
    for item in dataset:
        if feature.name in item.absent:
            continue
        block = max(1, BLOCK_BYTES // (8 * width))
        for start in range(0, item.row_count(feature.name), block):
            rows = item.rows(feature.name, start, start + block)
            yield rows.reshape(-1, width if width <= MAX_WIDTH else 1).astype(np.float64)


def _pixels(dataset: Dataset, feature: Feature) -> dict[str, Any]:
    """From a histogram of the 256 values per channel: exact, and no float copy of the frames."""
    channels = feature.shape[-1]
    histogram = np.zeros((channels, 256), np.int64)
    for frame_NC in _frames(dataset, feature):
        for channel in range(channels):
            histogram[channel] += np.bincount(frame_NC[:, channel], minlength=256)
    count = histogram.sum(axis=1)
    if not count.all():
        return {"rows": 0}
    values = np.arange(256)
    mean = (histogram * values).sum(axis=1) / count
    square = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / count
    low, high = (histogram > 0).argmax(axis=1), 255 - (histogram[:, ::-1] > 0).argmax(axis=1)
    return {"rows": int(count[0]), "nan": 0, **_lists(mean, np.sqrt(square), low, high)}


def _frames(dataset: Dataset, feature: Feature) -> Iterable[Array]:
    """Single frames as pixels x channels, at most about MAX_FRAMES, spread evenly."""
    per_sample = -(-MAX_FRAMES // max(1, len(dataset)))
    stride = max(1, -(-len(dataset) // MAX_FRAMES))
    for position in range(0, len(dataset), stride):
        item = dataset[position]
        if feature.name in item.absent:
            continue
        count = item.row_count(feature.name)
        wanted = sorted({int(r) for r in np.linspace(0, count - 1, min(count, per_sample))})
        if feature.codec_name == "raw":  # a view: nothing is read but the rows that are taken
            rows = item[feature.name]
            yield from (rows[row].reshape(-1, feature.shape[-1]) for row in wanted)
        else:
            yield from (item.rows(feature.name, row, row + 1).reshape(-1, feature.shape[-1]) for row in wanted)


def _summary(blocks: Iterable[Array]) -> dict[str, Any]:
    """Merged block by block (Chan et al. 1979), so that large means do not eat small deviations."""
    merged: tuple[Array, ...] | None = None
    rows = 0
    with np.errstate(invalid="ignore", over="ignore"):
        for block in blocks:
            rows += len(block)
            merged = _moments(block) if merged is None else _merged(merged, _moments(block))
    if merged is None:
        return {"rows": 0}
    count, mean, square, low, high = merged
    std = np.sqrt(square / np.maximum(count, 1))
    return {"rows": rows, "nan": int((rows - count).sum()), **_lists(mean, std, low, high)}


def _moments(block: Array) -> tuple[Array, ...]:
    """(count, mean, sum of squared deviations, least, greatest) of what is finite, per column."""
    finite = np.isfinite(block)
    count = finite.sum(axis=0)
    mean = np.where(finite, block, 0.0).sum(axis=0) / np.maximum(count, 1)
    square = (np.where(finite, block - mean, 0.0) ** 2).sum(axis=0)
    low = np.where(finite, block, np.inf).min(axis=0, initial=np.inf)
    high = np.where(finite, block, -np.inf).max(axis=0, initial=-np.inf)
    return count, mean, square, low, high


def _merged(one: tuple[Array, ...], two: tuple[Array, ...]) -> tuple[Array, ...]:
    total = np.maximum(one[0] + two[0], 1)
    shift = two[1] - one[1]
    mean = one[1] + shift * two[0] / total
    square = one[2] + two[2] + shift**2 * one[0] * two[0] / total
    return one[0] + two[0], mean, square, np.minimum(one[3], two[3]), np.maximum(one[4], two[4])


def _lists(*columns: Array) -> dict[str, list[float]]:
    """To seven digits: what a reader needs, and the same on every machine."""
    return {
        key: [float(f"{v:.7g}") if np.isfinite(v) else 0.0 for v in value]
        for key, value in zip(("mean", "std", "min", "max"), columns, strict=True)
    }


Table: TypeAlias = "pa.Table | IndexFile"
"""What has the columns of an index."""


def subsets(table: Table) -> dict[str, int]:
    """How many samples are in each subset."""
    counts: dict[str, int] = {}
    for entry in table["subsets"].value_counts().to_pylist():
        for name in filter(None, entry["values"].split(",")):
            counts[name] = counts.get(name, 0) + entry["counts"]
    return dict(sorted(counts.items()))


def content(table: Table) -> dict[str, Any]:
    """Hashes of the source files that the samples name (FORMAT.md 8)."""
    named = pa.table({"source": table["source"], "sha256": table["source_sha256"]})
    pairs = (
        named.group_by(named.column_names).aggregate([]).sort_by([(name, "ascending") for name in named.column_names])
    )
    total, listed, count = hashlib.sha256(), list[dict[str, str]](), 0
    for batch in pairs.to_batches(BATCH_ROWS):
        for name, digest in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if name or digest:
                total.update(f"{name} {digest}\n".encode())
                count += 1
                if len(listed) < LISTED_FILES:
                    listed.append({"source": name, "sha256": digest})
    return {"files": count, "sha256": total.hexdigest() if count else "", "listed": listed}


def lossy(table: Table) -> dict[str, Any] | None:
    """Measured loss over the samples that have one (FORMAT.md 8)."""
    there = pc.greater_equal(table["psnr"], 0.0)
    psnr, error = table["psnr"].filter(there), table["max_error"].filter(there)
    if not len(psnr):
        return None
    return {
        "samples": len(psnr),
        "psnr_min": pc.min(psnr).as_py(),
        # An exact sum: rounding must not depend on the order of samples or on chunks.
        "psnr_mean": round(math.fsum(psnr.to_numpy()) / len(psnr), 2),
        "max_error": pc.max(error).as_py(),
    }
