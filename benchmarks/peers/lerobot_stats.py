"""LeRobot's statistics of a dataset against the arrays that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def check_stats(seen: Mapping[str, Any]) -> list[str]:
    """Where LeRobot's statistics of a dataset are not those of the arrays that it gives.

    Of rows with several dimensions it keeps the last alone. Pictures are of 0 to 1, and sampled: within 0.03.
    """
    wrong = []
    for key, stats in (seen["about"].get("stats") or {}).items():
        views = [episode["arrays"].get(key) for episode in seen["episodes"]]
        if any(view is None or view.dtype.kind not in "fiub" for view in views):
            continue
        rows = np.concatenate(views)
        picture = rows.dtype == np.uint8 and rows.ndim == 4
        flat = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1).astype(np.float64) / (255 if picture else 1)
        true = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
        for name, value in true.items():
            stated = np.asarray(stats.get(name, np.nan), np.float64).ravel()
            # The smallest and the greatest of sampled or coded pictures may be off by more.
            slack = (0.03 if name in ("mean", "std") else 0.25) if picture else 1e-5 * max(1.0, np.abs(value).max())
            if stated.shape != value.shape or not np.allclose(stated, value, rtol=0, atol=slack):
                wrong.append(f"statistics of {key}: {name} {str(stated)[:60]}, the arrays have {str(value)[:60]}")
        if np.ravel(stats.get("count", 0)).tolist() != [len(rows)] and not picture:
            wrong.append(f"statistics of {key}: count {stats.get('count')}, there are {len(rows)} rows")
    return wrong
