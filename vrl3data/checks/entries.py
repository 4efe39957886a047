"""Actions entry by entry: each against the number of the body that follows it best.

One number for all entries (`relations.py`) hides two of 28. All estimates are medians over episodes, so that up to a
quarter of the episodes may be spoilt. Letters: E episodes, T steps, J entries of the action, B numbers of the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.numbers import entry
from vrl3data.checks.observed import Collected, Summary
from vrl3data.schema import Array

MIN_STEPS, MIN_EPISODES, MAX_EPISODES = 8, 5, 500
FOLLOWS = 0.7
"""Entries are judged whose number of the body follows them with this correlation in the median episode."""
FOLLOWS_CLOSELY = 0.9
"""The same for gains: noise makes slopes smaller."""
EXCHANGED, REVERSED = 0.5, 0.25
"""The change must leave less than this share of the error, RMS. Clean sets: 0.87 (pen) and 0.54 (relocate); with two
spoilt episodes 0.03 to 0.6 and 0.02 to 0.4, so that a third of those in
door, with its slow human motions, are missed, and most exchanges in pen."""
WORSE = 2.0
"""Also, the error as stored must be this many times the usual one."""
MIN_CLOSE = 2
"""Entries for a gain; the only such one of pen has 0.67 to 2.2."""
GAIN, GAIN_OF_LEVELS = 1.6, 3.0
"""Times as far as usual. Where the action tells the change, clean sets have 0.81 to 1.21 (half the rate: 2); where it
tells the value, as targets of joints, 0.81 to 1.6, and a rate does not show."""


@dataclass
class _Maps:
    """Entry `entry_J` of the action moves number `column_J` of the body; where `change_J`, the change of it."""

    entry_J: Array
    column_J: Array
    change_J: Array
    slope_J: Array
    offset_J: Array
    follows_J: Array


@dataclass
class _Fit:
    """How an episode follows the maps. Errors are mean squares in units of the variance of what is followed."""

    errors_JJ: Array
    """Row q, column k: with entry q in the place of entry k."""
    reversed_J: Array
    gain_J: Array


def action_entries(data: Collected) -> Iterator[Finding]:
    """Entries of the action that are exchanged or reversed in an episode, or of another size."""
    kept = [(s, e) for s, e in data.excerpts if min(len(e.actions_TD), len(e.body_NB) - 1) >= MIN_STEPS]
    kept = kept[:: max(1, -(-len(kept) // MAX_EPISODES))]
    if len(kept) < MIN_EPISODES or not kept[0][1].body_NB.shape[1]:
        return
    pairs = [_aligned(excerpt.actions_TD, excerpt.body_NB) for _, excerpt in kept]
    maps = _maps(pairs)
    if not len(maps.entry_J):
        return
    fits = [_fit(maps, *pair) for pair in pairs]
    usual_J = np.median([np.diag(fit.errors_JJ) for fit in fits], axis=0)
    for (summary, _), fit in zip(kept, fits, strict=True):
        yield from _odd(data, maps, fit, usual_J, summary)


def _odd(data: Collected, maps: _Maps, fit: _Fit, usual_J: Array, summary: Summary) -> Iterator[Finding]:
    feature, own_J = data.schema["action"], np.diag(fit.errors_JJ)
    said = [entry(feature, int(column)) for column in maps.entry_J]
    bad_J = own_J > WORSE**2 * usual_J
    both_JJ = np.maximum(fit.errors_JJ / own_J[None], (fit.errors_JJ / own_J[None]).T)
    both_JJ[~(bad_J[:, None] & bad_J[None]) | np.eye(len(own_J), dtype=bool)] = np.inf
    where = summary.at("action")
    if both_JJ.min() < EXCHANGED**2:
        one, other = sorted(int(place) for place in np.unravel_index(both_JJ.argmin(), both_JJ.shape))
        yield Finding("action_entries", f"{said[one]} and {said[other]} of the action are exchanged", where, "warn")
    elif (reverse_J := bad_J & (fit.reversed_J < REVERSED**2 * own_J)).any():
        names = ", ".join(said[int(place)] for place in np.flatnonzero(reverse_J)[:4])
        yield Finding("action_entries", f"{names} of the action has the other sign", where, "warn")
    elif gain := _odd_gain(maps, fit):
        message = f"the body moves {gain:.3g} times as far per action as in the other episodes: another rate or scale"
        yield Finding("action_entries", message, where, "warn")


def _odd_gain(maps: _Maps, fit: _Fit) -> float:
    """How many times as far as usual the body moves in an episode; 0 if that is not far from 1."""
    for kind_J, most in ((maps.change_J, GAIN), (~maps.change_J, GAIN_OF_LEVELS)):
        chosen_J = kind_J & (maps.follows_J > FOLLOWS_CLOSELY)
        gain = float(np.median(fit.gain_J[chosen_J])) if chosen_J.sum() >= MIN_CLOSE else 1.0
        if gain > 0 and not 1 / most < gain < most:
            return gain
    return 0.0


def _aligned(actions_TJ: Array, body_NB: Array) -> tuple[Array, Array, Array]:
    """(actions, the body after each, its change along each), T rows each."""
    count = min(len(actions_TJ), len(body_NB) - 1)
    body = body_NB[: count + 1].astype(np.float64)
    return actions_TJ[:count].astype(np.float64), body[1:], np.diff(body, axis=0)


def _maps(pairs: list[tuple[Array, Array, Array]]) -> _Maps:
    ways = [_best([(item[0], item[1 + way]) for item in pairs]) for way in (0, 1)]
    change_J = ways[1][0] > ways[0][0]
    follows_J, column_J, slope_J, offset_J = (np.where(change_J, b, a) for a, b in zip(*ways, strict=True))
    used = np.flatnonzero(follows_J > FOLLOWS)
    return _Maps(used, column_J[used], change_J[used], slope_J[used], offset_J[used], follows_J[used])


def _best(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array, Array, Array]:
    """Per entry: correlation with the number that follows it best, which that is, slope and offset."""
    moments = [_moments(x, y) for x, y in pairs]
    follows_JB = np.abs(np.median([correlation for correlation, _ in moments], axis=0))
    column_J = follows_JB.argmax(axis=1)
    rows = np.arange(len(column_J))
    slope_J = np.median([slope[rows, column_J] for _, slope in moments], axis=0)
    offset_J = np.median([y.mean(axis=0)[column_J] - slope_J * x.mean(axis=0) for x, y in pairs], axis=0)
    return follows_JB[rows, column_J], column_J, slope_J, offset_J


def _moments(x: Array, y: Array) -> tuple[Array, Array]:
    """(correlations J x B, slopes J x B) within one episode; 0 where nothing moves."""
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    product, xx, yy = a.T @ b, (a**2).sum(axis=0)[:, None], (b**2).sum(axis=0)[None]
    moving = (xx > 1e-12 * len(x)) & (yy > 1e-16 * len(x))
    return np.where(moving, product / np.sqrt(np.maximum(xx * yy, 1e-300)), 0), product / np.maximum(xx, 1e-300)


def _fit(maps: _Maps, actions_TJ: Array, after_TB: Array, change_TB: Array) -> _Fit:
    x, slope = actions_TJ[:, maps.entry_J], maps.slope_J
    y = np.where(maps.change_J, change_TB[:, maps.column_J], after_TB[:, maps.column_J])
    rest = y - maps.offset_J
    cross, xx, yy = x.T @ rest, (x**2).sum(axis=0), (rest**2).sum(axis=0)
    errors_JJ = yy[None] - 2 * slope[None] * cross + slope[None] ** 2 * xx[:, None]
    least = 1e-9 * (yy + slope**2 * xx) + 1e-30
    a = (x - x.mean(axis=0)) * slope
    gain = (a * y).sum(axis=0) / np.maximum((a**2).sum(axis=0), 1e-30)
    reversed_J = yy + 2 * slope * np.diag(cross) + slope**2 * xx
    scale = len(x)
    return _Fit(np.maximum(errors_JJ, least[None]) / scale, np.maximum(reversed_J, least) / scale, gain)
