"""What the checks see of an episode, and the little that is kept of it to compare episodes.

Letters: T steps, N rows, D entries of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vrl3data.checks.frames import Frames
from vrl3data.errors import Source
from vrl3data.schema import Array, Feature, Schema

MAX_WIDTH = 512
"""Features with more numbers in a row (point clouds, embeddings) are not compared number by number."""
MAX_ROWS = 200_000
"""Rows of an episode that are looked at, so that one long episode stays within memory."""
EXCERPT = 256
"""Steps that are kept of an episode for comparisons in time; from its beginning."""
KEPT_BYTES = 512 * 1024**2
"""For excerpts. Beyond it every second one is dropped, then every second of the rest, and so on."""
SEGMENTS = 8
LARGEST = 1e30


@dataclass
class Observed:
    """One episode: numbers as arrays with rows first (views of the shard where they are raw), cameras as `Frames`."""

    meta: Mapping[str, Any]
    where: Source
    schema: Schema
    series: dict[str, Array] = field(default_factory=dict)
    cameras: dict[str, Frames] = field(default_factory=dict)
    clocks: dict[str, Array] = field(default_factory=dict)
    """Stamps of streams. Their other features are not in step with anything and are not judged."""
    hashes: dict[str, str] = field(default_factory=dict)
    """feature -> sha256 of its content."""

    def at(self, feature: str | None = None, step: int | None = None) -> Source:
        return Source(shard=self.where.shard, episode=self.where.episode, feature=feature, step=step)

    def numbers(self) -> Iterator[tuple[Feature, Array]]:
        """Every series of numbers in time, as float64 N x D."""
        for name, rows in self.series.items():
            feature = self.schema[name]
            if feature.stepwise and name != "timestamp":
                yield feature, flat(rows)

    def motion(self) -> Array:
        """How far the states moved from each row to the next, in units of their spread in the episode; or zeros."""
        states = states_of(self)
        if states is None or len(states) < 2:
            return np.zeros(0)
        spread = states.std(axis=0)
        used = spread > 1e-9
        steps = np.diff(states[:, used], axis=0) / spread[used]
        return np.sqrt((steps**2).mean(axis=1)) if used.any() else np.zeros(len(states) - 1)


def flat(rows: Array) -> Array:
    """N x D as float64, within a range whose squares are numbers."""
    return np.clip(rows.reshape(len(rows), -1).astype(np.float64), -LARGEST, LARGEST)


def takes_numbers(feature: Feature) -> bool:
    return feature.codec_name == "raw" and 0 < math.prod(feature.shape) <= MAX_WIDTH


def states_of(episode: Observed) -> Array | None:
    """What tells best how the body moves: obs.proprio, else obs.state, else the simulator, else any observation."""
    names = [
        feature.name
        for feature in episode.schema.features
        if feature.dtype.startswith("float") and feature.rows == "state" and takes_numbers(feature)
    ]
    first = [name for name in ("obs.proprio", "obs.state", "sim.qpos") if name in names]
    rest = [name for name in names if name.startswith("obs.")]
    chosen = (first or rest or [""])[0]
    return flat(episode.series[chosen]) if chosen in episode.series else None


def joints_of(episode: Observed) -> Array | None:
    """Positions of the joints in the simulator: obs.proprio may leave out those that the action moves."""
    rows = episode.series.get("sim.qpos")
    return None if rows is None or episode.schema["sim.qpos"].rows != "state" else flat(rows)


@dataclass
class Column:
    """One feature in one episode; arrays have one entry per entry of the row."""

    least: Array
    greatest: Array
    mean: Array
    spread: Array
    jump: Array
    """Greatest difference of neighbouring rows,"""
    jump_at: Array
    """and the later of the two."""
    run: Array
    """Rows of the longest stretch without any change,"""
    run_at: Array
    """and where it begins."""

    @classmethod
    def of(cls, rows_ND: Array) -> Column:
        steps = np.abs(np.diff(rows_ND, axis=0))
        none = np.zeros(rows_ND.shape[1])
        run, run_at = longest_runs(steps == 0)
        jump, jump_at = (steps.max(axis=0), steps.argmax(axis=0) + 1) if len(steps) else (none, none)
        stats = (rows_ND.min(axis=0), rows_ND.max(axis=0), rows_ND.mean(axis=0), rows_ND.std(axis=0), jump)
        least, greatest, mean, spread, jump = (item.astype(np.float32) for item in stats)
        return cls(least, greatest, mean, spread, jump, jump_at.astype(int), run, run_at)


def longest_runs(same_ND: Array) -> tuple[Array, Array]:
    """Per column: (rows of the longest stretch of trues and the row before it, where it begins)."""
    length = np.zeros(same_ND.shape[1], int)
    best, best_end = np.zeros_like(length), np.zeros_like(length)
    for row, same in enumerate(same_ND):
        length = np.where(same, length + 1, 0)
        longer = length > best
        best, best_end = np.where(longer, length, best), np.where(longer, row, best_end)
    return best + 1, best_end - best + 1


@dataclass
class Excerpt:
    """The beginning of an episode, for comparisons in time. States are those of `states_of`."""

    actions_TD: Array
    states_ND: Array
    body_NB: Array
    """The states, and beside them the joints of the simulator."""
    energy: dict[str, Array]
    segments: dict[str, Array]
    """camera -> mean thumbnails of SEGMENTS equal parts of the whole episode."""

    @property
    def nbytes(self) -> int:
        kept = (self.actions_TD, self.states_ND, self.body_NB, *self.energy.values(), *self.segments.values())
        return sum(item.nbytes for item in kept)

    @classmethod
    def of(cls, episode: Observed) -> Excerpt:
        states = states_of(episode)
        body = [rows[: EXCERPT + 1] for rows in (states, joints_of(episode)) if rows is not None]
        actions = flat(episode.series["action"]) if "action" in episode.series else np.zeros((0, 0))
        segments = {
            name: np.stack([part.mean(axis=0) for part in np.array_split(frames.thumbs_NGGC, parts)])
            for name, frames in episode.cameras.items()
            for parts in [max(1, min(SEGMENTS, len(frames.thumbs_NGGC) // 3))]
        }
        return cls(
            actions[:EXCERPT].astype(np.float32),
            (np.zeros((0, 0)) if states is None else states)[: EXCERPT + 1].astype(np.float32),
            np.concatenate(body, axis=1).astype(np.float32) if body else np.zeros((0, 0), np.float32),
            {name: frames.energy_NE[:EXCERPT].astype(np.float16) for name, frames in episode.cameras.items()},
            {name: part.astype(np.float32) for name, part in segments.items()},
        )


@dataclass
class Summary:
    """What is kept of an episode: about 40 bytes per number of a row, 2 kB per camera, and the excerpt."""

    meta: Mapping[str, Any]
    where: Source
    columns: dict[str, Column]
    hashes: Mapping[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers that a check of single episodes leaves for its sibling that compares them."""
    excerpt: Excerpt | None = None

    def at(self, feature: str | None = None, step: int | None = None) -> Source:
        return Source(shard=self.where.shard, episode=self.where.episode, feature=feature, step=step)


KEPT_META = ("name", "split", "task", "source", "length", "terminated", "truncated", "success", "final_observation")


class Collected:
    """All summaries of a dataset, in order."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.episodes: list[Summary] = []
        self.bytes, self.every = 0, 1
        self.appearance: dict[str, list[Any]] | None = None  # the four checks of appearance share one comparison

    def add(self, episode: Observed) -> Summary:
        columns = {feature.name: Column.of(rows) for feature, rows in episode.numbers() if len(rows)}
        meta = {key: episode.meta[key] for key in KEPT_META if key in episode.meta}
        summary = Summary(meta, episode.where, columns, dict(episode.hashes))
        if len(self.episodes) % self.every == 0:
            summary.excerpt = Excerpt.of(episode)
            self.bytes += summary.excerpt.nbytes
        self.episodes.append(summary)
        if self.bytes > KEPT_BYTES:
            self._thin_out()
        return summary

    def _thin_out(self) -> None:
        self.every *= 2
        for number, summary in enumerate(self.episodes):
            if number % self.every:
                summary.excerpt = None
        self.bytes = sum(summary.excerpt.nbytes for summary in self.episodes if summary.excerpt)

    @property
    def excerpts(self) -> list[tuple[Summary, Excerpt]]:
        return [(summary, summary.excerpt) for summary in self.episodes if summary.excerpt]

    def stacked(self, feature: str, what: str) -> tuple[list[Summary], Array]:
        """(episodes that have the feature, one row of `what` of their Column each)."""
        having = [summary for summary in self.episodes if feature in summary.columns]
        rows = [getattr(summary.columns[feature], what) for summary in having]
        return having, np.stack(rows) if rows else np.zeros((0, 0))


SPOILT = 0.25
"""The share of episodes that may be wrong in the same way without hiding one another."""


def beyond(values_ED: Array, times: float, floor_D: Array | float = 0.0) -> tuple[Array, Array]:
    """(which are far above the rest, the greatest of the rest per column), for values of at least 0. E x D, E > 1.

    Sorted, the greatest are left out one by one, up to a share of SPOILT: far above are those over the lowest gap of
    this factor. The rest is at least `floor_D`; a rest of 0 tells nothing.
    """
    count = len(values_ED)
    ordered = np.sort(values_ED, axis=0)
    start = count - max(1, int(SPOILT * count))
    rest = np.maximum(ordered[start - 1 : -1], floor_D)
    gap = (ordered[start:] > times * rest) & (rest > 0)
    first = gap.argmax(axis=0)[None]
    usual_D = np.where(gap.any(axis=0), np.take_along_axis(rest, first, axis=0)[0], ordered[-1])
    far = gap.any(axis=0) & (values_ED > times * usual_D)
    return far, usual_D


def outside(least_ED: Array, greatest_ED: Array, once: float, several: float) -> tuple[Array, Array, Array]:
    """(which ranges lie far outside that of the rest, its lower and its upper end per column).

    As `beyond`: the farthest from the median ranges are left out one by one. One must be away by `once` times the
    range of the rest, several by `several` times.
    """
    count = len(least_ED)
    away_ED = np.maximum(greatest_ED - np.median(greatest_ED, axis=0), np.median(least_ED, axis=0) - least_ED)
    order = np.argsort(away_ED, axis=0, kind="stable")
    least, greatest = np.take_along_axis(least_ED, order, axis=0), np.take_along_axis(greatest_ED, order, axis=0)
    low, high = np.minimum.accumulate(least, axis=0), np.maximum.accumulate(greatest, axis=0)
    start = count - max(1, int(SPOILT * count))
    reach = (high - low)[start - 1 : -1]
    distance = np.maximum(greatest[start:] - high[start - 1 : -1], low[start - 1 : -1] - least[start:])
    times = np.where(np.arange(start, count) == count - 1, once, several)[:, None]
    gap = (distance > times * reach) & (reach > 0)
    first = np.where(gap.any(axis=0), gap.argmax(axis=0), count - start)  # place in the order, from `start` on
    edge = np.minimum(first, count - start - 1)[None] + start - 1
    low_D, high_D = (np.take_along_axis(side, edge, axis=0)[0] for side in (low, high))
    rank = np.argsort(order, axis=0, kind="stable")
    return rank >= first + start, low_D, high_D
