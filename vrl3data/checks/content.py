"""Runs the checks of content along one pass over the samples of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from vrl3data.checks import DATASET, EPISODE
from vrl3data.checks.cameras import repeated_edge
from vrl3data.checks.finding import Finding
from vrl3data.checks.frames import FrameCollector, is_camera
from vrl3data.checks.habits import speeds
from vrl3data.checks.lighting import backgrounds, drifts
from vrl3data.checks.numbers import out_of_bounds
from vrl3data.checks.observed import MAX_ROWS, Collected, Observed, takes_numbers
from vrl3data.checks.optics import edges, sharpnesses
from vrl3data.checks.pictures import Pictures
from vrl3data.checks.signals import signals
from vrl3data.checks.timing import period, reward_facts
from vrl3data.errors import Source
from vrl3data.schema import Array, Feature, Schema


class Content:
    """Takes samples in order; `finish` compares them. Samples of another schema than the first are left out."""

    def __init__(self, wanted: Collection[str]) -> None:
        self.wanted = frozenset(wanted)
        self.collected: Collected | None = None
        self.pictures = Pictures()

    def sample(self, schema: Schema, meta: Mapping[str, Any], where: Source) -> Watch:
        """Where the rows of the next sample go."""
        return Watch(Observed(meta, where, schema))

    def take(self, watch: Watch) -> Iterator[Finding]:
        """Findings of a sample whose rows were all read without an error; keeps what is needed of it."""
        episode = watch.finish()
        if episode.schema.kind == "images":
            if watch.picture is not None:
                self.pictures.labels = next((f for f in episode.schema.features if f.name == "cls"), None)
                found = self.pictures.add(watch.picture, episode.meta, episode.where)
                yield from (finding for finding in found if finding.check in self.wanted)
            return
        if self.collected is None:
            self.collected = Collected(episode.schema)
        if episode.schema != self.collected.schema:
            return
        for name, place in EPISODE.items():
            if name in self.wanted or name == "orientation":  # `turned` names four checks
                yield from (finding for finding in _load(place)(episode) if finding.check in self.wanted)
        summary = self.collected.add(episode)
        summary.facts = {
            "bounds": out_of_bounds(episode),
            "period": period(episode),
            "reward": reward_facts(episode),
            "depth": {n: float(np.median(f.level_N)) for n, f in episode.cameras.items() if n.startswith("obs.depth.")},
            "change": {name: float(np.median(f.change_N)) for name, f in episode.cameras.items() if len(f.change_N)},
            "repeated": {name: repeated_edge(episode, frames) for name, frames in episode.cameras.items()},
            "drift": drifts(episode),
            "background": backgrounds(episode),
            "speed": speeds(episode),
            "signal": signals(episode),
            "sharpness": sharpnesses(episode),
            "edges": edges(episode),
            "live": {name: bool((frames.change_N > 0).any()) for name, frames in episode.cameras.items()},
        }

    def finish(self) -> Iterator[Finding]:
        """Findings that show only when episodes are compared."""
        if self.collected is None:
            return
        for name, place in DATASET.items():
            if name in self.wanted:
                yield from _load(place)(self.collected)


class Watch:
    """Takes the rows of one sample, block by block, while they are read for the structural checks anyway."""

    def __init__(self, episode: Observed) -> None:
        self.episode = episode
        self.picture: Array | None = None
        self.cameras: dict[str, FrameCollector] = {}
        self.numbers: dict[str, list[Array]] = {}
        self.clocks: dict[str, list[Array]] = {}
        self.spoilt: set[str] = set()
        self.absent = set(filter(None, episode.meta["absent"].split(",")))

    def rows(self, feature: Feature, block: Array) -> None:
        if feature.name in self.absent:
            return
        if feature.clock:
            if feature.name == f"timestamp.{feature.clock}":
                self.clocks.setdefault(feature.name, []).append(block)
        elif self.episode.schema.kind == "images":
            self.picture = block if feature.name == "image" else self.picture
        elif is_camera(feature):
            self.cameras.setdefault(feature.name, FrameCollector()).add(block)
        elif takes_numbers(feature):
            known = self.numbers.setdefault(feature.name, [])
            room = MAX_ROWS - sum(map(len, known))
            if room > 0:
                known.append(block[:room])

    def spoil(self, feature: str) -> None:
        """Something was found that makes its numbers useless for comparisons."""
        self.spoilt.add(feature)

    def content(self, feature: str, digest: str) -> None:
        if feature not in self.absent:
            self.episode.hashes[feature] = digest

    def finish(self) -> Observed:
        for name, blocks in self.numbers.items():
            if name not in self.spoilt:
                self.episode.series[name] = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        self.episode.clocks.update({name: np.concatenate(blocks) for name, blocks in self.clocks.items()})
        for name, collector in self.cameras.items():
            frames = collector.frames()
            if frames is not None and name not in self.spoilt:
                self.episode.cameras[name] = frames
        return self.episode


def _load(place: str) -> Callable[[Any], Iterator[Finding]]:
    module, attribute = place.split(":")
    function: Callable[[Any], Iterator[Finding]] = getattr(import_module(module), attribute)
    return function
