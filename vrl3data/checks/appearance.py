"""Checks that compare what a camera shows in one episode with what it shows in the others.

Each episode is cut in up to eight parts; the mean thumbnail of a part is compared with those of all other episodes, as
it is and turned, mirrored, with other colours, or as another camera. Letters: E episodes, P parts, G cells, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vrl3data.checks.cameras import COLORS, TURNS
from vrl3data.checks.finding import Finding
from vrl3data.checks.observed import Collected, Excerpt, Summary, beyond
from vrl3data.schema import Array

MIN_OTHERS = 3
NEAR = 0.3
"""A part is as far from the others as from this share of the other episodes: some may be spoilt in the same way."""
BETTER = 0.6
"""A change must bring a part this much nearer. Clean sets: 0.94 in door, 0.5 in single parts of relocate."""
LEAST = 0.08
"""Nearer by this share of the contrast at least: symmetric and empty scenes look the same either way."""
WHOLE = 0.3
"""Of the parts of an episode that must be nearer by one and the same change. In relocate, where a small hand crosses a
plain table, single parts resemble others upside down."""
STRANGE_TIMES = 3.0
"""A part this many times farther from all others than is usual, and by half of the contrast. In relocate 1.9."""
RESTLESS = 3.0
"""The usual change from frame to frame against the greatest of the other episodes, less up to a quarter that are far
above as well: noise instead of a picture."""
MAX_EPISODES = 1000
COLORFUL = 4.0
"""Mean difference between channels, of 255; grey pictures have 0."""


@dataclass
class _Parts:
    """All parts of one camera."""

    owners: list[Summary]
    thumbs_PGGC: Array
    episode_P: Array
    part_P: Array
    parts_E: Array

    @classmethod
    def of(cls, kept: list[tuple[Summary, Excerpt]], name: str) -> _Parts:
        owners = [summary for summary, excerpt in kept if name in excerpt.segments]
        blocks = [excerpt.segments[name] for _, excerpt in kept if name in excerpt.segments]
        counts = np.array([len(block) for block in blocks])
        part = np.concatenate([np.arange(count) for count in counts])
        return cls(owners, np.concatenate(blocks), np.repeat(np.arange(len(blocks)), counts), part, counts)

    def step(self, position: int) -> int:
        """The first step of a part."""
        episode = int(self.episode_P[position])
        rows = int(self.owners[episode].meta["length"]) + int(self.owners[episode].meta["final_observation"])
        return int(np.array_split(np.arange(rows), self.parts_E[episode])[int(self.part_P[position])][0])


def appearance(data: Collected) -> dict[str, list[Finding]]:
    """check -> findings of `orientation`, `channel_order`, `swapped_cameras` and `appearance`, from one comparison."""
    found: dict[str, list[Finding]] = {name: [] for name in CHECKS}
    kept = data.excerpts[:: max(1, -(-len(data.excerpts) // MAX_EPISODES))]
    names = sorted({name for _, excerpt in kept for name in excerpt.segments})
    parts = {name: _Parts.of(kept, name) for name in names}
    for name in names:
        if len(parts[name].owners) > MIN_OTHERS:
            for finding in _camera(name, parts):
                found[finding.check].append(finding)
    return found


CHECKS = ("orientation", "channel_order", "swapped_cameras", "appearance")


def orientation(data: Collected) -> Iterator[Finding]:
    """An episode, or a part of one, that is upside down, mirrored or rotated against the others."""
    yield from _once(data)["orientation"]


def channel_order(data: Collected) -> Iterator[Finding]:
    """An episode whose channels are in another order, inverted, or grey."""
    yield from _once(data)["channel_order"]


def swapped_cameras(data: Collected) -> Iterator[Finding]:
    """An episode in which a camera shows what another one shows elsewhere."""
    yield from _once(data)["swapped_cameras"]


def unlike(data: Collected) -> Iterator[Finding]:
    """An episode whose pictures, or their changes, are far from those of all others."""
    yield from _once(data)["appearance"]
    for name in sorted({name for summary in data.episodes for name in summary.facts.get("change", {})}):
        having = [summary for summary in data.episodes if name in summary.facts.get("change", {})]
        change = np.array([summary.facts["change"][name] for summary in having])
        if len(having) <= MIN_OTHERS + 1:
            continue
        far, usual = beyond(change[:, None], RESTLESS, 0.5)
        for number in np.flatnonzero(far[:, 0]):
            message = f"frames change by {change[number]:.3g} levels, in the others by {usual[0]:.3g} at most"
            yield Finding("appearance", message, having[number].at(name), "warn")


def _once(data: Collected) -> dict[str, list[Finding]]:
    if data.appearance is None:
        data.appearance = appearance(data)
    return data.appearance


def _camera(name: str, parts: dict[str, _Parts]) -> Iterator[Finding]:
    own = parts[name]
    color = own.thumbs_PGGC.shape[-1] == 3
    tried = {("orientation", what): turn(own.thumbs_PGGC) for what, turn in TURNS.items()}
    if color:
        tried |= {("channel_order", what): change(own.thumbs_PGGC) for what, change in COLORS.items()}
    plain = _distances(own.thumbs_PGGC, own, own)
    away = {key: _distances(changed, own, own) for key, changed in tried.items()}
    for other, theirs in parts.items():
        if other != name and theirs.thumbs_PGGC.shape[1:] == own.thumbs_PGGC.shape[1:]:
            away["swapped_cameras", f"what {other} shows in the others"] = _distances(own.thumbs_PGGC, own, theirs)
    contrast = float(np.median(own.thumbs_PGGC.std(axis=(1, 2)).max(axis=-1)))
    keys = list(away)
    table = np.stack([away[key] for key in keys])
    best, least = table.argmin(axis=0), table.min(axis=0)
    changed_P = (least < BETTER * plain) & (plain - least > LEAST * contrast)
    usual = max(float(np.median(plain)), 1e-6)
    strange_P = (plain > STRANGE_TIMES * usual) & (plain > 0.5 * contrast)
    grey_P = _grey(own.thumbs_PGGC) if color else np.zeros(len(plain), bool)
    for episode, summary in enumerate(own.owners):
        places = np.flatnonzero(own.episode_P == episode)
        turns = [keys[best[place]] for place in places[changed_P[places]]]
        common = max(sorted(set(turns)), key=turns.count, default=("", ""))
        if grey_P[places].all() and grey_P.mean() < 0.5:
            message = "the pictures are grey, those of the others coloured"
            yield Finding("channel_order", message, summary.at(name), "warn")
        elif turns and turns.count(common) > WHOLE * len(places):
            first = next(int(place) for place in places if changed_P[place] and keys[best[place]] == common)
            whole = "" if len(turns) > 0.9 * len(places) else f" for {len(turns)}/{len(places)} of it"
            message = f"the picture is {common[1]}{whole}, judged by the other episodes"
            yield Finding(common[0], message, summary.at(name, own.step(first)), "warn")
        elif strange_P[places].any():
            first = int(places[strange_P[places].argmax()])
            message = f"the picture is {plain[first] / usual:.1f} times as far from the others as is usual"
            yield Finding("appearance", message, summary.at(name, own.step(first)), "warn")


def _grey(thumbs_PGGC: Array) -> Array:
    """Parts without colour among coloured ones."""
    colour = np.abs(np.diff(thumbs_PGGC, axis=-1)).mean(axis=(1, 2, 3))
    return (colour < 0.5) & (np.median(colour) > COLORFUL)


def _distances(queries_PGGC: Array, own: _Parts, theirs: _Parts) -> Array:
    """RMS distance of each part to the nearest part of an episode, of the other episodes the one at rank NEAR."""
    flat = queries_PGGC.reshape(len(queries_PGGC), -1).astype(np.float32)
    against = theirs.thumbs_PGGC.reshape(len(theirs.thumbs_PGGC), -1)
    starts = np.r_[0, np.cumsum(theirs.parts_E)[:-1]]
    theirs_of = {id(summary): number for number, summary in enumerate(theirs.owners)}
    self_P = np.array([theirs_of.get(id(own.owners[episode]), -1) for episode in own.episode_P])
    result = np.empty(len(flat))
    square = (against**2).sum(axis=1)
    for start in range(0, len(flat), 512):
        block = flat[start : start + 512]
        apart = (block**2).sum(axis=1)[:, None] - 2 * block @ against.T + square
        nearest = np.minimum.reduceat(np.maximum(apart, 0), starts, axis=1)
        mine = self_P[start : start + 512]
        nearest[np.arange(len(block))[mine >= 0], mine[mine >= 0]] = np.inf
        rank = int(NEAR * (nearest.shape[1] - 1))
        result[start : start + 512] = np.partition(nearest, rank, axis=1)[:, rank]
    return np.asarray(np.sqrt(result / flat.shape[1]))


def depth_unit(data: Collected) -> Iterator[Finding]:
    """Depth whose numbers are several times those of the other episodes: another unit."""
    for feature in data.schema.features:
        if feature.name.startswith("obs.depth.") and not feature.is_image:
            having = [
                (s, s.facts["depth"][feature.name]) for s in data.episodes if feature.name in s.facts.get("depth", {})
            ]
            medians = np.array([value for _, value in having])
            if len(having) <= MIN_OTHERS or not (usual := float(np.median(medians))):
                continue
            for (summary, value), ratio in zip(having, medians / usual, strict=True):
                if not 1 / DEPTH_TIMES < ratio < DEPTH_TIMES:
                    message = f"the usual depth is {value:.4g} counts, in the other episodes {usual:.4g}: another unit?"
                    yield Finding("depth_unit", message, summary.at(feature.name), "warn")


DEPTH_TIMES = 4.0
"""Units differ by 10, 25.4, 39.4 or 1000. A guess as to scenes: there is no real depth among the clean sets."""
