"""Checks of what a lens or a player does to whole episodes: out of focus, zoomed, played backwards.

Letters: E episodes, N frames, H x W pixels, G cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.numbers import MIN_OTHERS
from vrl3data.checks.observed import Collected, Observed, Summary, beyond
from vrl3data.schema import Array

BLURRED = 1.2
"""Times less sharp than the least sharp of the others. Clean sets: 1.04 (door); a zoom by a half 1.25 to 2, a blur
of two pixels 8."""
LEAST_SHARPNESS = 1e-3
EDGE = 2
"""Frames at either end whose mean stands for it."""
ALIKE = 0.6
"""Beginnings are judged if they differ from one another by this share of what ends differ from them. Clean: 0.08 in
hammer, 0.15 in reaching, 0.48 in door, 0.57 and 0.9 in relocate, whose second camera is left out."""
BACKWARDS = 0.75
"""The last frames must be this much nearer to the usual beginning than the first ones. Clean sets: 1.13 (relocate), 1.4
(door), 2.5 (reaching); played backwards, the inverse of these."""
MAX_EPISODES = 1000


def sharpnesses(episode: Observed) -> dict[str, float]:
    """camera -> median over its frames of the deviation of the Laplacian over that of the picture."""
    found = {}
    for name, frames in episode.cameras.items():
        told = frames.sharp_N[frames.sharp_N > 0]  # frames of one colour have none
        if episode.schema[name].dtype == "uint8" and len(told):
            found[name] = float(np.median(told))
    return found


def sharpness(data: Collected) -> Iterator[Finding]:
    """An episode whose pictures have less detail than those of the others: out of focus, or zoomed."""
    for name, having, told in _facts(data, "sharpness"):
        sharp = np.array(told)
        far, usual = beyond(1 / np.maximum(sharp, LEAST_SHARPNESS)[:, None], BLURRED)
        for number in np.flatnonzero(far[:, 0]):
            message = (
                f"the pictures have {sharp[number]:.2g} of detail, those of the other episodes {1 / usual[0]:.2g} at "
                "least: out of focus, or zoomed?"
            )
            yield Finding("sharpness", message, having[number].at(name), "warn")


def edges(episode: Observed) -> dict[str, Array]:
    """camera -> mean thumbnails of the first and the last frames, 2 x G x G x C."""
    found = {}
    for name, frames in episode.cameras.items():
        thumbs = frames.thumbs_NGGC
        if episode.schema[name].dtype == "uint8" and len(thumbs) >= 4 * EDGE:
            found[name] = np.stack([thumbs[:EDGE].mean(axis=0), thumbs[-EDGE:].mean(axis=0)]).astype(np.float16)
    return found


def reversed_frames(data: Collected) -> Iterator[Finding]:
    """Frames that begin as the others end, and end as they begin."""
    for name, having, told in _facts(data, "edges"):
        if len({item.shape for item in told}) > 1:
            continue
        first_E, last_E, at_end_E = _apart(np.stack(told).astype(np.float32))
        if np.median(first_E) > ALIKE * np.median(last_E):
            continue
        for number in np.flatnonzero((last_E < BACKWARDS * first_E) & (at_end_E < first_E)):
            message = (
                f"the last frames are {first_E[number] / max(last_E[number], 1e-6):.3g} times nearer than the first "
                "ones to those with which the other episodes begin: played backwards?"
            )
            yield Finding("reversed_frames", message, having[number].at(name, 0), "warn")


def _apart(edges_E2GGC: Array) -> tuple[Array, Array, Array]:
    """RMS distances: first and last frames from the usual first ones, and first frames from the usual last ones."""
    begin, end = np.median(edges_E2GGC, axis=0)
    first, last = edges_E2GGC[:, 0], edges_E2GGC[:, 1]
    pairs = ((first, begin), (last, begin), (first, end))
    apart = [np.sqrt(((frames - usual) ** 2).mean(axis=(1, 2, 3))) for frames, usual in pairs]
    return apart[0], apart[1], apart[2]


def _facts(data: Collected, what: str) -> Iterator[tuple[str, list[Summary], list[Any]]]:
    for name in sorted({name for summary in data.episodes for name in summary.facts.get(what, {})}):
        having = [summary for summary in data.episodes if name in summary.facts.get(what, {})]
        having = having[:: max(1, -(-len(having) // MAX_EPISODES))] if what == "edges" else having
        if len(having) > MIN_OTHERS:
            yield name, having, [summary.facts[what][name] for summary in having]
