"""Checks for content that occurs twice: episodes, nearly the same episodes, and frames or actions of another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.observed import Collected, Excerpt, Summary
from vrl3data.schema import Array, Feature

NEAREST = 4
"""Candidates for each episode, by means and spreads of its numbers."""
SAME = 0.01
"""Greatest mean deviation of a near copy, in standard deviations of a number over the dataset. The closest pair of the
clean sets that is no copy has 0.028 (hammer)."""
LAGS = range(-8, 9)
MIN_STEPS = 8
MAX_EPISODES = 4000
BLOCK = 256


def _telling(feature: Feature) -> bool:
    """Whether equal content of this feature means a copy: not so for clocks, flags, sparse rewards and constants."""
    plain = feature.dtype.startswith("float") and not feature.name.startswith(("reward", "age."))
    return feature.stepwise and (plain or feature.is_image or feature.name.startswith("obs.depth."))


def copies(data: Collected) -> Iterator[Finding]:
    """Two episodes with the same content in the same split, or one feature that was taken from another episode."""
    yield from (finding for finding in _equal(data) if finding.check == "copies")


def leakage(data: Collected) -> Iterator[Finding]:
    """The same episode, or nearly, in two splits: what is tested was seen in training."""
    yield from (finding for finding in (*_equal(data), *_near(data)) if finding.check == "leakage")


def near_copies(data: Collected) -> Iterator[Finding]:
    """Two episodes that differ by noise or a few steps only."""
    yield from (finding for finding in _near(data) if finding.check == "near_copies")


def _equal(data: Collected) -> Iterator[Finding]:
    names = [feature.name for feature in data.schema.features if _telling(feature)]
    seen: dict[tuple[str, str], Summary] = {}
    for summary in data.episodes:
        twins: dict[int, list[str]] = defaultdict(list)
        first: dict[int, Summary] = {}
        live = [name for name in names if name in summary.hashes and _varies(summary, name)]
        for name in live:
            before = seen.setdefault((name, summary.hashes[name]), summary)
            if before is not summary:
                twins[id(before)].append(name)
                first[id(before)] = before
        for key, same in twins.items():
            yield _told(summary, first[key], same, len(same) == len(live))


def _varies(summary: Summary, name: str) -> bool:
    column = summary.columns.get(name)
    if column is None:
        return bool(summary.facts.get("live", {}).get(name, False))
    return bool((column.spread > 0).any()) and int(summary.meta["length"]) >= MIN_STEPS // 2


def _told(summary: Summary, before: Summary, same: list[str], whole: bool) -> Finding:
    splits = (before.meta["split"], summary.meta["split"])
    other = f"episode {before.meta['name']}"
    what = "the episode is" if whole else f"{', '.join(same)} {'are' if len(same) > 1 else 'is'}"
    message = f"{what} the same as {'' if whole else 'in '}{other}"
    where = summary.at(None if whole else same[0])
    if splits[0] != splits[1]:
        return Finding("leakage", f"{message}, which is in split {splits[0]}, not {splits[1]}", where, "warn")
    return Finding("copies", message, where, "warn")


def _near(data: Collected) -> Iterator[Finding]:
    kept = [(s, e) for s, e in data.excerpts if min(len(e.actions_TD), len(e.states_ND)) >= MIN_STEPS]
    kept = [(s, e) for s, e in kept if _width(e) == _width(kept[0][1])][:MAX_EPISODES]
    if len(kept) < 2:
        return
    rows = [_rows(excerpt) for _, excerpt in kept]
    center, spread = _moments(rows)
    used = spread > 1e-7
    if not used.any():
        return
    rows = [(item[:, used] - center[used]) / spread[used] for item in rows]
    for one, two in sorted(_candidates(rows)):
        apart, lag = _apart(rows[one], rows[two])
        if apart < SAME and kept[one][0].hashes.get("action") != kept[two][0].hashes.get("action"):
            yield _nearly(kept[two][0], kept[one][0], apart, lag)


def _nearly(summary: Summary, before: Summary, apart: float, lag: int) -> Finding:
    splits = (before.meta["split"], summary.meta["split"])
    shift = f", {abs(lag)} step{'s' * (abs(lag) > 1)} apart" if lag else ""
    message = f"nearly the same as episode {before.meta['name']}: actions and states differ by {apart:.2g} deviations"
    if splits[0] != splits[1]:
        return Finding("leakage", f"{message}{shift}; that one is in split {splits[0]}", summary.at(), "warn")
    return Finding("near_copies", message + shift, summary.at(), "warn")


def _width(excerpt: Excerpt) -> tuple[int, int]:
    return excerpt.actions_TD.shape[1], excerpt.states_ND.shape[1]


def _rows(excerpt: Excerpt) -> Array:
    count = min(len(excerpt.actions_TD), len(excerpt.states_ND))
    return np.concatenate([excerpt.actions_TD[:count], excerpt.states_ND[:count]], axis=1).astype(np.float64)


def _moments(rows: list[Array]) -> tuple[Array, Array]:
    count = sum(len(item) for item in rows)
    center = sum(item.sum(axis=0) for item in rows) / count
    return center, np.sqrt(sum(((item - center) ** 2).sum(axis=0) for item in rows) / count)


def _candidates(rows: list[Array]) -> set[tuple[int, int]]:
    """Pairs (earlier, later) of episodes with the most similar means and spreads, as a whole or at the beginning."""
    whole = np.stack([np.r_[item.mean(axis=0), item.std(axis=0)] for item in rows])
    start = np.stack([item[:MIN_STEPS].mean(axis=0) for item in rows])
    return _nearest(whole) | _nearest(start)


def _nearest(told: Array) -> set[tuple[int, int]]:
    square = (told**2).sum(axis=1)
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(told), BLOCK):
        block = told[start : start + BLOCK]
        apart = square[start : start + BLOCK, None] - 2 * block @ told.T + square
        apart[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        for row, near in enumerate(np.argsort(apart, axis=1)[:, :NEAREST]):
            pairs |= {
                (min(start + row, int(other)), max(start + row, int(other))) for other in near if other < len(told)
            }
    return {(one, two) for one, two in pairs if one != two}


def _apart(one: Array, two: Array) -> tuple[float, int]:
    """(least root mean square difference over small lags, that lag)."""
    found = []
    for lag in LAGS:
        a, b = one[max(0, lag) :], two[max(0, -lag) :]
        count = min(len(a), len(b))
        if count >= max(MIN_STEPS, 0.8 * min(len(one), len(two))):
            found.append((float(np.sqrt(((a[:count] - b[:count]) ** 2).mean())), lag))
    return min(found) if found else (np.inf, 0)
