"""Keys of samples in linked shards, as text: `0-11,14` (FORMAT.md 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from vrl3data.errors import DamagedError

_RANGES = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*")


def ranges(keys: Sequence[int]) -> str:
    """Ascending keys as text."""
    found: list[list[int]] = []
    for key in keys:
        if found and key == found[-1][1] + 1:
            found[-1][1] = key
        else:
            found.append([key, key])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in found)


def expand(text: object, samples: int) -> list[int]:
    """The keys that `ranges` wrote for so many samples. DamagedError for anything else."""
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        raise DamagedError(f"expected keys such as 0-11,14, found {str(text)[:40]!r}")
    parts = [part.partition("-") for part in text.split(",")]
    bounds = [(int(low), int(high or low)) for low, _, high in parts]
    ascending = all(before[1] < after[0] for before, after in pairwise(bounds))
    if not ascending or any(low > high for low, high in bounds):
        raise DamagedError(f"keys must ascend, found {text[:40]!r}")
    total = sum(high - low + 1 for low, high in bounds)
    if total != samples:
        raise DamagedError(f"the keys {text[:40]!r} are {total}, expected {samples}")
    return [key for low, high in bounds for key in range(low, high + 1)]
