"""Checks of how numbers were recorded: in too few levels, cut off at a limit, or filled in along straight lines.

Judged are what was done and how the body moved. Letters: E episodes, N rows, D entries of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.numbers import MIN_OTHERS, entry
from vrl3data.checks.observed import SPOILT, Collected, Observed, Summary, beyond, longest_runs
from vrl3data.schema import Array

JUDGED = ("action", "obs.proprio", "obs.state")
LEAST_ROWS = 16
CONTINUOUS, FEW = 0.7, 0.4
"""Different values per row: of all but a quarter of the episodes, and of one that is rounded. Clean sets: 1.0, where
actions are clipped 0.77; nine levels 0.03 to 0.24."""
LIMITED, LIMITED_OBSERVED, LIMIT_TIMES = 0.1, 0.16, 2.0
"""Share of rows exactly at a limit, in actions and in observations, and against the other episodes. Clean sets: 4 %
(actions of reaching), 10 % (a finger of pen that rests at its limit in one episode); cut off, 10 to 88 %."""
STRAIGHT, STRAIGHT_TIMES = 1.0, 4.0
"""Rows in which all entries go straight on, and against the other episodes. Clean sets: 1 (hammer); filled in, 5 to
74."""
MOVING = 0.001
"""A step of this share of the spread of an entry."""
ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Of the greatest value: what second differences of rounded numbers on a line are at most."""


@dataclass
class Signal:
    """How one feature was recorded in one episode."""

    distinct: float
    """Different values per row, of the entry with most of them."""
    limited_D: Array
    """Share of rows exactly at the least or the greatest value, beyond one row each; 0 where nothing changes."""
    limited_at_D: Array
    """First such row that repeats it."""
    straight: int
    """Rows of the longest stretch in which all entries go straight on, and some moves;"""
    straight_at: int
    """and where it begins."""


def signals(episode: Observed) -> dict[str, Signal]:
    """feature -> how it was recorded."""
    found = {}
    for feature, rows_ND in episode.numbers():
        if feature.name in JUDGED and feature.dtype.startswith("float") and len(rows_ND) >= LEAST_ROWS:
            distinct = max(len(np.unique(column)) for column in rows_ND.T) / len(rows_ND)
            found[feature.name] = Signal(distinct, *_limited(rows_ND), *_straight(rows_ND))
    return found


def _limited(rows_ND: Array) -> tuple[Array, Array]:
    least, greatest = rows_ND.min(axis=0), rows_ND.max(axis=0)
    at_ND = (rows_ND == least) | (rows_ND == greatest)
    share = np.maximum(at_ND.sum(axis=0) - 2, 0) / len(rows_ND)
    return np.where(greatest > least, share, 0.0).astype(np.float32), at_ND.argmax(axis=0).astype(np.int32)


def _straight(rows_ND: Array) -> tuple[int, int]:
    steps = np.diff(rows_ND, axis=0)
    straight = (np.abs(np.diff(steps, axis=0)) <= ROUNDING * np.abs(rows_ND).max(axis=0)).all(axis=1)
    moving = (np.abs(steps) > MOVING * np.maximum(rows_ND.std(axis=0), 1e-9)).any(axis=1)
    run, at = longest_runs((straight & moving[:-1] & moving[1:])[:, None])
    return int(run[0]) - 1, int(at[0])


def _having(data: Collected) -> Iterator[tuple[str, list[Summary], list[Signal]]]:
    for name in JUDGED:
        having = [summary for summary in data.episodes if name in summary.facts.get("signal", {})]
        if len(having) > MIN_OTHERS:
            yield name, having, [summary.facts["signal"][name] for summary in having]


def quantised(data: Collected) -> Iterator[Finding]:
    """Numbers of a few levels, where those of the other episodes are continuous."""
    for name, having, told in _having(data):
        distinct = np.array([signal.distinct for signal in told])
        if np.sort(distinct)[max(1, int(SPOILT * len(distinct)))] < CONTINUOUS:
            continue
        for number in np.flatnonzero(distinct < FEW):
            message = (
                f"{100 * distinct[number]:.0f} different values in 100 rows at most, in the other episodes "
                f"{100 * np.median(distinct):.0f}: rounded to a few levels?"
            )
            yield Finding("quantised", message, having[number].at(name), "warn")


def saturated(data: Collected) -> Iterator[Finding]:
    """An entry that rests exactly at its least or greatest value, and does not in the other episodes."""
    for name, having, told in _having(data):
        share_ED = np.stack([signal.limited_D for signal in told])
        limit = (LIMITED if name == "action" else LIMITED_OBSERVED) / LIMIT_TIMES
        far_ED, usual_D = beyond(share_ED, LIMIT_TIMES, limit)
        far_ED &= usual_D <= limit  # entries that often rest there tell nothing
        for number in np.flatnonzero(far_ED.any(axis=1)):
            column = int(np.where(far_ED[number], share_ED[number], 0).argmax())
            message = (
                f"{entry(data.schema[name], column)} is exactly its least or greatest value in "
                f"{100 * share_ED[number, column]:.0f} % of rows, in the other episodes in "
                f"{100 * usual_D[column]:.0f} % at most: cut off?"
            )
            step = int(told[number].limited_at_D[column])
            yield Finding("saturated", message, having[number].at(name, step), "warn")


def interpolated(data: Collected) -> Iterator[Finding]:
    """Rows that lie exactly on a line between others, in all entries: filled in where they were lost."""
    for name, having, told in _having(data):
        straight_E1 = np.array([[float(signal.straight)] for signal in told])
        far_E1, usual = beyond(straight_E1, STRAIGHT_TIMES, STRAIGHT)
        for number in np.flatnonzero(far_E1[:, 0]):
            message = (
                f"for {told[number].straight} rows all entries go exactly straight on, in the other episodes for "
                f"{int(usual[0])} at most: rows that were lost and filled in?"
            )
            yield Finding("interpolated", message, having[number].at(name, told[number].straight_at), "warn")
