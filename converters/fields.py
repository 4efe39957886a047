"""What a source of episodes holds, before anything is decided about it: fields, recordings, their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from converters.pictures import Frames
from vrl3data.errors import SourceError
from vrl3data.schema import Array, Rows

TIMESTAMP = "timestamp"
"""Path of a field that a source gives in our own terms: int64 nanoseconds since the first observation."""


@dataclass(frozen=True)
class Field:
    """One array of a source's episodes. `shape` is that of one row, `dtype` what `load` gives."""

    path: str
    dtype: str
    shape: tuple[int, ...] = ()
    rows: str = "step"
    names: tuple[str, ...] = ()
    jpeg: bool = False
    """Its pictures are JPEG files in the source (`load` gives Frames)."""
    lossy: bool = False
    """Its pictures were compressed with loss in the source."""

    @property
    def describe(self) -> str:
        """`uint8 84x84x3, state`."""
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}, {self.rows}"


@dataclass(frozen=True)
class Recording:
    """One episode of a source: where it is and what it holds, not yet its data."""

    name: str
    """Unique within its source."""
    length: int
    """T, the number of steps."""
    files: tuple[str, ...]
    """Names of the files it is made of, as in `Scan.files`; the first becomes the sample's `source`."""
    fields: Mapping[str, Field]
    payload: Any = None
    """What `load` needs to find it; travels to the workers."""


@dataclass(frozen=True)
class Scan:
    """What one source holds. `problems` are episodes or files that cannot be converted, and why."""

    recordings: tuple[Recording, ...]
    files: Mapping[str, Path]
    problems: tuple[tuple[str, SourceError], ...] = ()
    notes: tuple[str, ...] = ()
    license: str = ""
    description: str = ""


@dataclass
class Loaded:
    """The data of one recording: a value for every field it has, and what its source says of the whole episode.

    A value is an array with rows first, an iterator of blocks of rows, or Frames.
    """

    arrays: dict[str, Array | Rows | Frames]
    final_observation: bool = False
    terminated: int = -1
    truncated: int = -1
    success: int = -1
    start_time_ns: int = -1
    task: str = ""
    origin: str = "unknown"
    split: str = ""
    """The source's own split; empty if it has none."""
    subsets: tuple[str, ...] = ()
    source_meta: dict[str, Any] = field(default_factory=dict)
    length: int = -1
    """T, where it was not known before the data was read."""
    streams: dict[str, int] = field(default_factory=dict)
    """Rows of each clock of the fields that keep a rate of their own."""


def timestamps(count: int, rate: float | Fraction) -> Array:
    """int64 nanoseconds of `count` rows at `rate` per second, each rounded from whole numbers: no drift."""
    exact = Fraction(rate).limit_denominator(100_000)
    if exact <= 0:
        raise SourceError(f"expected a positive rate per second, found {rate}")
    step = Fraction(1_000_000_000) / exact
    return np.array([round(row * step) for row in range(count)], np.int64)
