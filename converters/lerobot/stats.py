"""Statistics that a set states about itself, compared with what its rows say.

Letters: N rows, D entries of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vrl3data.schema import Array

TOLERANCE = 1e-3
"""Of the size of a feature's values: float32 sums of peers are that far off."""


class Moments:
    """Count, mean, standard deviation, least and greatest of rows that come block by block (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_D: Array = np.zeros(0)
        self.square_D: Array = np.zeros(0)
        self.min_D: Array = np.zeros(0)
        self.max_D: Array = np.zeros(0)

    def add(self, rows: Array) -> None:
        rows_ND = rows.reshape(len(rows), -1).astype(np.float64)
        if not len(rows_ND):
            return
        mean_D = rows_ND.mean(axis=0)
        square_D = ((rows_ND - mean_D) ** 2).sum(axis=0)
        low_D, high_D = rows_ND.min(axis=0), rows_ND.max(axis=0)
        if not self.count:
            self.mean_D, self.square_D, self.min_D, self.max_D = mean_D, square_D, low_D, high_D
            self.count = len(rows_ND)
            return
        total, shift_D = self.count + len(rows_ND), mean_D - self.mean_D
        self.square_D = self.square_D + square_D + shift_D**2 * self.count * len(rows_ND) / total
        self.mean_D = self.mean_D + shift_D * len(rows_ND) / total
        self.min_D, self.max_D = np.minimum(self.min_D, low_D), np.maximum(self.max_D, high_D)
        self.count = total

    @property
    def std_D(self) -> Array:
        return np.sqrt(self.square_D / max(1, self.count))


def difference(stated: Any, found: Moments) -> str:
    """The greatest contradiction between stated statistics and ours, in words; empty if there is none."""
    if not isinstance(stated, Mapping) or not found.count:
        return ""
    count = _vector(stated.get("count"), 1)
    if count is not None and count[0] != found.count:
        return f"count {count[0]:g}, found {found.count}"
    size_D = np.maximum(np.abs(found.min_D), np.abs(found.max_D))
    worst, words = 1.0, ""
    for key, ours_D in (("mean", found.mean_D), ("std", found.std_D), ("min", found.min_D), ("max", found.max_D)):
        said_D = _vector(stated.get(key), len(ours_D))
        if said_D is None:
            continue
        # some divide by n, some by n - 1
        slack_D = TOLERANCE * size_D + 1e-6 + (ours_D / max(1, found.count - 1) if key == "std" else 0.0)
        with np.errstate(invalid="ignore"):
            off_D = np.where(np.isfinite(ours_D), np.abs(said_D - ours_D) / slack_D, 0.0)
        off_D = np.where(np.isnan(off_D), np.inf, off_D)
        at = int(off_D.argmax()) if len(off_D) else 0
        if len(off_D) and off_D[at] > worst:
            worst, words = float(off_D[at]), f"{key} {said_D[at]:.6g}, found {ours_D[at]:.6g} (entry {at})"
    return words


def _vector(value: Any, width: int) -> Array | None:
    if value is None:
        return None
    try:
        found = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        return None
    return found if len(found) == width else None
