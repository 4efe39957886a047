"""Checks of what nearly all episodes of a dataset have in common: length, sign of the reward, speed for velocity.

Letters: E episodes, Q numbers that describe a reward.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.numbers import MIN_OTHERS
from vrl3data.checks.observed import Collected, Observed, Summary, flat
from vrl3data.errors import Source
from vrl3data.schema import Array

CONSTANT, LENGTH_TIMES = 0.75, 1.25
"""Lengths are judged if this share of them is the same. In the clean sets that share is 1, or at most 0.2."""
NEAR = 0.3
"""A reward is as far from the others as from this share of the other episodes: some may be spoilt in the same way."""
REVERSED = 0.4
"""With the other sign a reward must be this much nearer to the others. Clean sets: 1.0 at least; reversed ones 0.2."""
MEAN_TIMES = 15.0
"""Deviations of the mean and of the rise of a dense reward; clean sets 7.7 (a rollout of relocate that fails)."""
DENSE = 0.5
SPEED_TIMES, SPEED_OF_ALL = 1.5, 2.0
"""Way per velocity and time: against the median, clean sets 1.2 (reaching, sampled coarsely), half the rate 2; and of
the median itself, which is 1 but for such sampling (1.17)."""
MAX_EPISODES = 1000


def lengths(data: Collected) -> Iterator[Finding]:
    """An episode of another length where nearly all have one and the same, which did not end by itself."""
    steps = np.array([int(summary.meta["length"]) for summary in data.episodes])
    if len(steps) <= MIN_OTHERS:
        return
    values, counts = np.unique(steps, return_counts=True)
    usual = int(values[counts.argmax()])
    full = [summary for summary, count in zip(data.episodes, steps, strict=True) if count == usual]
    if len(full) < CONSTANT * len(steps):
        return
    by_success = np.mean([summary.meta.get("success") == 1 for summary in full]) < 0.5
    for summary, count in zip(data.episodes, steps, strict=True):
        reached = summary.meta.get("terminated") == 1 or (by_success and summary.meta.get("success") == 1)
        if count > LENGTH_TIMES * usual or (LENGTH_TIMES * count < usual and not reached):
            message = f"{count} steps, where {len(full)} of {len(steps)} episodes have {usual}: cut, or joined?"
            yield Finding("lengths", message, summary.at(), "warn")


def reward_shape(values: Array) -> Array:
    """Quantiles of a reward, and the means of its first and last third: 7 numbers."""
    part = max(1, len(values) // 3)
    return np.r_[np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), values[:part].mean(), values[-part:].mean()]


def odd_rewards(data: Collected) -> Iterator[Finding]:
    """A reward that fits the others with the other sign, or whose level or rise is far from theirs."""
    having = [summary for summary in data.episodes if "shape" in summary.facts.get("reward", {})]
    having = having[:: max(1, -(-len(having) // MAX_EPISODES))]
    if len(having) <= MIN_OTHERS:
        return
    shapes_EQ = np.stack([summary.facts["reward"]["shape"] for summary in having])
    turned_EQ = -shapes_EQ[:, [4, 3, 2, 1, 0, 5, 6]]
    plain, turned = _distances(shapes_EQ, shapes_EQ), _distances(turned_EQ, shapes_EQ)
    reversed_E = turned < REVERSED * plain
    dense = np.mean([summary.facts["reward"]["dense"] > DENSE for summary in having]) > 1 - DENSE / 5
    level_E = _deviations(shapes_EQ[:, 5:].mean(axis=1)) if dense else np.zeros(len(having))
    rise_E = _deviations(shapes_EQ[:, 6] - shapes_EQ[:, 5]) if dense else np.zeros(len(having))
    for number, summary in enumerate(having):
        if reversed_E[number]:
            message = "the reward fits that of the other episodes with the other sign"
            yield Finding("reward", message, summary.at("reward"), "warn")
        elif max(level_E[number], rise_E[number]) > MEAN_TIMES:
            what, away = ("level", level_E) if level_E[number] > rise_E[number] else ("rise", rise_E)
            message = f"the {what} of the reward is {away[number]:.0f} deviations from that of the other episodes"
            yield Finding("reward", message, summary.at("reward"), "warn")


def _distances(queries_EQ: Array, shapes_EQ: Array) -> Array:
    """RMS distance of each to the episode at rank NEAR of the others."""
    result = np.empty(len(queries_EQ))
    for number, query in enumerate(queries_EQ):
        apart = np.sqrt(((np.delete(shapes_EQ, number, axis=0) - query) ** 2).mean(axis=1))
        result[number] = np.partition(apart, int(NEAR * (len(apart) - 1)))[int(NEAR * (len(apart) - 1))]
    return result


def _deviations(values_E: Array) -> Array:
    """In robust standard deviations; zeros where most values are the same."""
    away: Array = np.abs(values_E - np.median(values_E))
    spread = 1.4826 * float(np.median(away))
    return away / spread if spread > 0.01 * float(np.abs(values_E).max()) else np.zeros(len(values_E))


def speeds(episode: Observed) -> dict[str, float]:
    """Velocity -> way of the positions it belongs to over what it and the usual step of time make of it."""
    found = {}
    stamps = episode.series.get("timestamp")
    step = float(np.median(np.diff(stamps.reshape(-1)))) * 1e-9 if stamps is not None and len(stamps) > 2 else 1.0
    for name, rows in episode.series.items():
        where, _, last = name.rpartition(".")
        if last.count("pos") != 1 or (partner := f"{where}.{last.replace('pos', 'vel')}") not in episode.series:
            continue
        positions, velocities = flat(rows), flat(episode.series[partner])
        if positions.shape != velocities.shape or step <= 0:
            continue
        told = np.abs(velocities).sum() * step
        way = np.abs(np.diff(positions, axis=0)).sum()
        if told > 0 and way > 0:
            found[partner] = float(way / told)
    return found


def velocity(data: Collected) -> Iterator[Finding]:
    """Velocities that are not those of the stored positions: another rate, or another unit of time."""
    for name in sorted({name for summary in data.episodes for name in summary.facts.get("speed", {})}):
        having: list[Summary] = [s for s in data.episodes if name in s.facts.get("speed", {})]
        ratio = np.array([summary.facts["speed"][name] for summary in having])
        usual = float(np.median(ratio))
        timed = "timestamp" in data.schema
        if len(having) <= MIN_OTHERS:
            continue
        if timed and not 1 / SPEED_OF_ALL < usual < SPEED_OF_ALL:
            message = f"positions move {usual:.3g} times as far as velocity and time stamps tell: a wrong unit or rate?"
            yield Finding("velocity", message, Source(feature=name), "warn")
        for number in np.flatnonzero(np.abs(np.log(ratio / usual)) > np.log(SPEED_TIMES)):
            message = f"positions move {ratio[number] / usual:.3g} times as far as in the others for the same velocity"
            yield Finding("velocity", message, having[number].at(name), "warn")
