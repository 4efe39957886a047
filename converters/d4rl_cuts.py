"""Where the episodes of a flat file begin and end.

Letters: N rows, all steps of all episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from converters.hdf5 import blocks
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.schema import Array

MOSTLY = 0.5
"""Share of rows within episodes up to which a gap in next_observations is a gap, and not another meaning of it."""


@dataclass(frozen=True)
class Cut:
    """Rows [start, stop) are an episode. `final`: row stop - 1 of next_observations is what was seen at its end."""

    start: int
    stop: int
    terminated: int = -1
    truncated: int = -1
    final: bool = False


@dataclass(frozen=True)
class Flags:
    """Rows at which a flag is set, sorted; None if the file does not have it."""

    count: int
    terminals: Array | None
    timeouts: Array | None
    gaps: Array | None = None
    """Rows t at which next_observations[t] is not observations[t + 1]."""
    last_is_real: bool = False
    """next_observations of the last row repeats neither that row nor the first."""


def cut(flags: Flags, limit: int, only_timeouts: bool) -> tuple[list[Cut], list[str]]:
    """All episodes, and what is to be said of them.

    ConfigError if a time limit is needed and not given, or given and not needed.
    """
    if only_timeouts and flags.timeouts is None:
        raise ConfigError("cut: the file has no timeouts to cut at")
    if limit and flags.timeouts is not None:
        raise ConfigError("episode_length: the file has timeouts; the time limit is for files that have none")
    notes: list[str] = []
    none = np.empty(0, np.int64)
    terminals = none if flags.terminals is None or only_timeouts else flags.terminals
    ends = np.union1d(terminals, none if flags.timeouts is None else flags.timeouts)
    shifted, ends = _with_gaps(flags, ends, notes)
    if flags.timeouts is None and not shifted:
        if not limit:
            raise SourceError(
                "the file has no timeouts and no next_observations, so an episode that ran into its time limit cannot "
                "be told from the next one: give the limit with --episode-length (1000 for D4RL's MuJoCo tasks)"
            )
        ends = _with_limit(ends, flags.count, limit)
    cuts = list(_cuts(flags, ends, limit, shifted))
    if cuts[-1].terminated != 1 and cuts[-1].truncated != 1:
        notes.append(f"the last episode ({cuts[-1].stop - cuts[-1].start} steps) is not over: truncated is not known")
    return cuts, notes


def _with_gaps(flags: Flags, ends: Array, notes: list[str]) -> tuple[bool, Array]:
    """(whether next_observations are the rows one later, ends with those that no flag marks)."""
    if flags.gaps is None:
        return False, ends
    unmarked = np.setdiff1d(flags.gaps, ends)
    if len(unmarked) > MOSTLY * max(1, flags.count - 1 - len(ends)):
        notes.append("next_observations are not the observations of the next row: they become obs.next")
        return False, ends
    if len(unmarked):
        notes.append(
            f"{len(unmarked)} episodes end where next_observations is not the next row, though no flag marks it: "
            "truncated is not known"
        )
    return True, np.union1d(ends, unmarked)


def _with_limit(ends: Array, count: int, limit: int) -> Array:
    """Ends after every `limit` steps of an episode, besides those that are known."""
    found: list[int] = []
    start = 0
    for stop in [*(ends + 1).tolist(), count]:
        found += range(start + limit - 1, stop, limit)
        start = stop
    return np.union1d(ends, np.array(found, np.int64))


def _cuts(flags: Flags, ends: Array, limit: int, shifted: bool) -> Iterator[Cut]:
    terminals = set() if flags.terminals is None else set(flags.terminals.tolist())
    timeouts = set() if flags.timeouts is None else set(flags.timeouts.tolist())
    gaps = set(flags.gaps.tolist()) if shifted and flags.gaps is not None else set()
    inner = [end for end in ends.tolist() if end < flags.count - 1]
    # If next_observations run on into the next episode everywhere, they were made from it: nothing was seen there.
    made_up = bool(inner) and not gaps
    start = 0
    for end in [*inner, flags.count - 1]:
        is_last = end == flags.count - 1
        terminated = -1 if flags.terminals is None else int(end in terminals)
        full = limit > 0 and end + 1 - start == limit and terminated != 1
        truncated = 1 if end in timeouts or full else 0 if terminated == 1 else -1
        final = shifted and not made_up and (flags.last_is_real if is_last else end in gaps)
        yield Cut(start, end + 1, terminated, truncated, final)
        start = end + 1


def marked(dataset: h5py.Dataset, count: int) -> Array:
    """Rows at which a flag is set. SourceError if it is not one flag per row."""
    with locate(feature=dataset.name):
        shape = tuple(dataset.shape)
        if shape not in ((count,), (count, 1)) or dataset.dtype.kind not in "biuf":
            raise SourceError(f"expected {count} flags, found {dataset.dtype} of shape {shape}")
        found, start = [np.empty(0, np.int64)], 0
        for block in blocks(dataset):
            values = block.reshape(-1)
            if not np.isin(values, (0, 1)).all():
                raise SourceError(f"expected flags of 0 and 1, found {values[~np.isin(values, (0, 1))][0]}")
            found.append(np.flatnonzero(values) + start)
            start += len(values)
    return np.concatenate(found)


def gaps(now: h5py.Dataset, after: h5py.Dataset) -> tuple[Array, bool]:
    """(rows t at which after[t] is not now[t + 1]; whether the last row of `after` is like neither end of `now`)."""
    if after.shape != now.shape:
        with locate(feature=after.name):
            raise SourceError(f"expected the shape of observations, {now.shape}, found {after.shape}")
    dtype = min(now.dtype, after.dtype, key=lambda kind: kind.itemsize)
    found, start = [np.empty(0, np.int64)], 0
    last = np.empty(0)
    first = next(blocks(now, 0, 1))[0]
    for left, right in zip(blocks(after), blocks(now), strict=False):
        if start:
            found.append(_unlike(last[None], right[:1], dtype) + start - 1)
        found.append(_unlike(left[:-1], right[1:], dtype) + start)
        start, last, own = start + len(left), left[-1].copy(), right[-1].copy()
        del left, right  # before the next two blocks are read
    copies = [row for row in (own, first) if not len(_unlike(last[None], row[None], dtype))]
    return np.concatenate(found), not copies


def _unlike(one_ND: Array, two_ND: Array, dtype: np.dtype) -> Array:
    """Rows that differ; NaN is like NaN."""
    one_ND, two_ND = one_ND.astype(dtype, copy=False), two_ND.astype(dtype, copy=False)
    same = one_ND == two_ND
    if dtype.kind == "f":
        same |= np.isnan(one_ND) & np.isnan(two_ND)
    return np.flatnonzero(~same.reshape(len(same), -1).all(axis=1))
