"""Statistics of an episode and of the whole set, in LeRobot's terms.

Letters: N rows, D entries, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vrl3data.schema import Array

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Stats = dict[str, Array]


def of_numbers(rows: Array) -> Stats:
    """Per entry of the last axis; NaN are left out."""
    wide = rows.reshape(-1, rows.shape[-1]) if rows.ndim > 1 else rows.reshape(-1, 1)
    rows_ND = wide.astype(np.float64)
    rows_ND = np.where(np.isfinite(rows_ND), rows_ND, np.nan)
    rows_ND = np.where(np.isnan(rows_ND).all(axis=0), 0.0, rows_ND)
    found = {
        "min": np.nanmin(rows_ND, axis=0),
        "max": np.nanmax(rows_ND, axis=0),
        "mean": np.nanmean(rows_ND, axis=0),
        "std": np.nanstd(rows_ND, axis=0),
        "count": np.array([len(rows)]),
    }
    quantiles = np.nanquantile(rows_ND, list(QUANTILES.values()), axis=0)
    return {**found, **dict(zip(QUANTILES, quantiles, strict=True))}


class Pixels:
    """Per channel, in 0..1 and of shape (3, 1, 1), from frames spread evenly over an episode."""

    def __init__(self, length: int) -> None:
        wanted = min(length, int(np.clip(length**0.75, 100, 10_000)))
        self.rows = {int(row) for row in np.round(np.linspace(0, length - 1, wanted))}
        self.histogram = np.zeros((3, 256), np.int64)

    def add(self, start: int, rows_NHWC: Array) -> None:
        """Rows from `start` on; of large frames every n-th pixel counts."""
        step = max(1, max(rows_NHWC.shape[1:3]) // 150) if max(rows_NHWC.shape[1:3]) >= 300 else 1
        for row, frame in enumerate(rows_NHWC, start):
            if row in self.rows:
                for channel in range(3):
                    pixels = frame[::step, ::step, channel].reshape(-1)
                    self.histogram[channel] += np.bincount(pixels, minlength=256)

    def stats(self) -> Stats:
        count = self.histogram.sum(axis=1)
        value = np.arange(256) / 255.0
        mean = (self.histogram * value).sum(axis=1) / count
        std = np.sqrt((self.histogram * (value - mean[:, None]) ** 2).sum(axis=1) / count)
        low, high = (self.histogram > 0).argmax(axis=1), 255 - (self.histogram[:, ::-1] > 0).argmax(axis=1)
        part = self.histogram.cumsum(axis=1) / count[:, None]
        found = {"min": low / 255.0, "max": high / 255.0, "mean": mean, "std": std}
        found |= {key: (part >= level - 1e-12).argmax(axis=1) / 255.0 for key, level in QUANTILES.items()}
        return {key: item.reshape(3, 1, 1) for key, item in found.items()} | {"count": np.array([len(self.rows)])}


class Pooled:
    """Of several episodes. Mean and deviation are exact; quantiles are means weighted by rows, as LeRobot's are."""

    def __init__(self) -> None:
        self.total: dict[str, Stats] = {}

    def add(self, stats: dict[str, Stats]) -> None:
        for key, new in stats.items():
            old = self.total.get(key)
            self.total[key] = new if old is None else _merged(old, new)

    def to_json(self) -> dict[str, Any]:
        return {key: {word: value.tolist() for word, value in item.items()} for key, item in self.total.items()}


def _merged(old: Stats, new: Stats) -> Stats:
    a, b = float(old["count"][0]), float(new["count"][0])
    share = b / (a + b)
    shift = new["mean"] - old["mean"]
    square = old["std"] ** 2 * (1 - share) + new["std"] ** 2 * share + shift**2 * share * (1 - share)
    found = {
        "min": np.minimum(old["min"], new["min"]),
        "max": np.maximum(old["max"], new["max"]),
        "mean": old["mean"] + shift * share,
        "std": np.sqrt(square),
        "count": old["count"] + new["count"],
    }
    return {**found, **{key: old[key] + (new[key] - old[key]) * share for key in QUANTILES}}
