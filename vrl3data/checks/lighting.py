"""Checks of what all frames of an episode share: light, the place of the camera, and rows that were never decoded.

Letters: E episodes, N frames, G cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vrl3data.checks.cameras import without_picture
from vrl3data.checks.finding import Finding
from vrl3data.checks.numbers import MIN_OTHERS
from vrl3data.checks.observed import Collected, Observed, Summary, beyond
from vrl3data.schema import Array

TORN_ROWS, TORN_SHARE = 8, 0.1
"""Rows of one colour at the lower edge that are there from one frame to the next: at least so many, and this share of
the height. Over the plain table of relocate that part grows by 4 of 84 rows at most; 9 are needed."""
DRIFT, DRIFT_TIMES = 0.15, 5.0
"""Logarithm of brightness at the end over that at the start: this far from the median, and this many deviations. Clean
sets: where it is as far, 2.7 deviations (relocate, whose camera follows the hand)."""
LEAST_SPREAD = 0.02
WINDOW = 4
"""Frames whose mean stands for what is behind the body."""
MOVED, MOVED_TIMES = 2.0, 3.0
"""Change of the median cell, in levels and against the other episodes. Clean: 1.6 levels (reaching), next 1.5; a
picture moved by 2 of 84 pixels: 1.5 (pen) to 4.6 (door)."""
LASTING = 0.5
"""Of that change, what comes with one frame and what is there in the rest of the episode; a push makes 1."""


def torn_frames(episode: Observed) -> Iterator[Finding]:
    """Frames whose lowest rows are one colour while other frames show something there: a file that was cut short."""
    for name, frames in episode.cameras.items():
        rows, blank = frames.flat_rows_N, without_picture(episode, name)
        if len(rows) < 3:
            continue
        least = max(TORN_ROWS, TORN_SHARE * frames.height)
        torn = np.zeros(len(rows), bool)
        before = int(rows[:2].min())
        for number, count in enumerate(rows):
            torn[number] = count - before >= least and not blank[number]
            if not torn[number] and not blank[number]:
                before = int(count)
        if torn.any() and torn.mean() <= 0.5:
            step = int(torn.argmax())
            message = (
                f"the lowest {int(rows[step])} of {frames.height} rows are of one colour, in {int(torn.sum())} of "
                f"{len(rows)} frames and not in the others: files cut short?"
            )
            yield Finding("torn_frames", message, episode.at(name, step), "warn")


def drifts(episode: Observed) -> dict[str, float]:
    """camera -> logarithm of the brightness of the last tenth of the episode over that of the first."""
    found = {}
    for name, frames in episode.cameras.items():
        if episode.schema[name].dtype == "uint8" and len(frames.level_N) >= 10:
            part = len(frames.level_N) // 10
            found[name] = float(np.log((frames.level_N[-part:].mean() + 1) / (frames.level_N[:part].mean() + 1)))
    return found


def brightness(data: Collected) -> Iterator[Finding]:
    """An episode that becomes brighter or darker, unlike the others."""
    for name, having, told in _facts(data, "drift"):
        drift = np.array(told)
        middle = float(np.median(drift))
        spread = max(1.4826 * float(np.median(np.abs(drift - middle))), LEAST_SPREAD)
        away = np.abs(drift - middle)
        for number in np.flatnonzero((away > DRIFT) & (away > DRIFT_TIMES * spread)):
            message = (
                f"the picture ends {np.exp(drift[number]):.2f} times as bright as it begins, in the others "
                f"{np.exp(middle):.2f} times"
            )
            yield Finding("brightness", message, having[number].at(name), "warn")


def backgrounds(episode: Observed) -> dict[str, tuple[float, int]]:
    """camera -> (greatest lasting change of the median cell, in levels, and the frame at which it comes)."""
    found = {}
    for name, frames in episode.cameras.items():
        if episode.schema[name].dtype == "uint8" and len(frames.thumbs_NGGC) >= 4 * WINDOW:
            found[name] = _step(frames.thumbs_NGGC.mean(axis=-1).reshape(len(frames.thumbs_NGGC), -1))
    return found


def _step(cells_NG: Array) -> tuple[float, int]:
    total = np.concatenate([np.zeros_like(cells_NG[:1]), np.cumsum(cells_NG, axis=0, dtype=np.float64)])
    means = (total[WINDOW:] - total[:-WINDOW]) / WINDOW
    change = np.median(np.abs(means[WINDOW:] - means[:-WINDOW]), axis=1)
    at = int(change.argmax()) + WINDOW
    # Medians, because frames that are torn or in the dark do not last; at once, because light that drifts takes time.
    lasts = np.median(np.abs(np.median(cells_NG[at:], axis=0) - np.median(cells_NG[:at], axis=0)))
    at_once = np.median(np.abs(cells_NG[at] - cells_NG[at - 1]))
    sudden = min(lasts, at_once) >= LASTING * change.max()
    return (float(change.max()) if sudden else 0.0), at


def camera_moved(data: Collected) -> Iterator[Finding]:
    """A background that changes for good in the middle of an episode: the camera was pushed."""
    for name, having, told in _facts(data, "background"):
        for number in np.flatnonzero(_moved(told)):
            change, step = told[number]
            message = (
                f"from this frame on the whole background is another one, by {change:.3g} levels: the camera was "
                "moved, or the light changed"
            )
            yield Finding("camera_moved", message, having[number].at(name, step), "warn")


def with_moved_camera(data: Collected, name: str) -> set[int]:
    """id() of the summaries of which `camera_moved` speaks."""
    for camera, having, told in _facts(data, "background"):
        if camera == name:
            return {id(having[number]) for number in np.flatnonzero(_moved(told))}
    return set()


def _moved(told: list[tuple[float, int]]) -> Array:
    change_E1 = np.array([[change] for change, _ in told])
    return beyond(change_E1, MOVED_TIMES, MOVED / MOVED_TIMES)[0][:, 0]


def _facts(data: Collected, what: str) -> Iterator[tuple[str, list[Summary], list[Any]]]:
    for name in sorted({name for summary in data.episodes for name in summary.facts.get(what, {})}):
        having = [summary for summary in data.episodes if name in summary.facts.get(what, {})]
        if len(having) > MIN_OTHERS:
            yield name, having, [summary.facts[what][name] for summary in having]
