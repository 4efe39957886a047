"""robomimic HDF5 -> episodes.

Letters: T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan, timestamps
from converters.hdf5 import (
    Hdf5Files,
    attributes,
    child,
    datasets,
    names,
    open_hdf5,
    plain,
    read,
    some_attributes,
)
from converters.mapping import FieldMap
from converters.robomimic import cameras, demos, dones, guess, render
from converters.robomimic.demos import Demo, Lazy
from converters.robomimic.facts import Facts, decoded, read_facts, read_masks, shown
from converters.robomimic.recognise import is_folder, is_robomimic
from vrl3data.errors import ConfigError, SourceError, did_you_mean, locate
from vrl3data.manifest import Provenance
from vrl3data.schema import Schema

SMALL_BYTES = 1024**2
APART = ("model_file", "ep_meta", "camera_info", "seed")
"""What our own export writes as attributes, as robomimic does, and not again with the rest of source_meta."""
CHOICES = {"dones": ("auto", *dones.MEANINGS), "next_obs": ("auto", "keep"), "depth": ("auto", "metres", "keep"),
           "render": ("", "exact", "fast")}  # fmt: skip


@dataclass(frozen=True)
class RobomimicOptions(EpisodeOptions):
    """`depth_scale`: metres per stored count. `render`, exact or fast, draws the recorded states."""

    dones: str = "auto"
    next_obs: str = "auto"
    depth: str = "auto"
    depth_scale: float = 0.001
    render: str = ""


@dataclass(frozen=True)
class _Payload:
    """What a worker needs to load one demo."""

    demo: str
    subsets: tuple[str, ...]
    split: str
    ends: dones.Ends
    keep_next: bool


class RobomimicConverter(EpisodeConverter):
    """robomimic HDF5 files, also those of Isaac Lab, LIBERO and MimicGen, and robosuite's raw demonstrations."""

    Options = RobomimicOptions
    kind = "robomimic"
    suffixes = (".hdf5", ".h5")
    packages = ("h5py",)

    def __init__(self, sources: Sequence[Path], options: RobomimicOptions) -> None:
        super().__init__(sources, options)
        for name, known in CHOICES.items():
            if getattr(options, name) not in known:
                raise ConfigError(f"{name}: {getattr(options, name)!r}{did_you_mean(getattr(options, name), known)}")
        if not 0 < options.depth_scale <= 1:
            raise ConfigError(
                f"depth_scale: expected metres per count, above 0 and at most 1, found {options.depth_scale}"
            )
        self._open = Hdf5Files()
        self._facts: dict[str, Facts] = {}
        self._metres: set[str] = set()
        self._cameras: dict[str, Any] = {}
        self._scenes = render.Scenes(options.camera, options.image_size, options.render) if options.render else None

    @staticmethod
    def recognises(source: Path) -> bool:
        """A file, also a damaged one, or a folder whose HDF5 files are all of this kind."""
        return is_robomimic(source) if source.is_file() else is_folder(source, RobomimicConverter.suffixes)

    # -- looking -------------------------------------------------------------------------------------------

    def scan(self, source: Path, name: str) -> Scan:
        with open_hdf5(source) as file:
            if "data" not in names(file) or not isinstance(data := child(file, "data"), h5py.Group):
                raise SourceError(f"expected a group `data` with demos, found {shown(names(file)) or 'nothing'}")
            facts = self._facts[name] = read_facts(file, data)
            return self._scan_demos(file, data, facts, name, source)

    def _scan_demos(self, file: h5py.File, data: h5py.Group, facts: Facts, name: str, source: Path) -> Scan:
        listed = demos.in_order(names(data))
        subsets, splits, notes = read_masks(file, listed)
        stem = PurePosixPath(name).with_suffix("").as_posix()
        found: list[Demo] = []
        ended: dict[str, dones.Dones] = {}
        problems: list[tuple[str, SourceError]] = []
        keep, rows = self.options.next_obs == "keep", facts.rows
        for demo_name in listed:
            try:
                with locate(path=name, episode=demo_name):
                    group = _group(data, demo_name)
                    demo = demos.look_at(group, keep, rows)
                    if not keep and demo.final == demos.NEXT and not found and (where := demos.shifted(group, demo)):
                        keep, demo = True, demos.look_at(group, True, rows)
                        notes.append(f"next_obs are not obs one step later ({where}): both are kept, as obs.next.*")
                    if "dones" in demo.fields:
                        ended[demo_name] = _dones(group)
                    if self._scenes is not None:
                        demo.fields.update(self._scenes.fields(group, demo))
                    self._look_closer(group, demo)
                    found.append(demo)
            except SourceError as error:
                problems.append((f"{stem}/{demo_name}", error))
        if not listed:
            raise SourceError("the group `data` holds no demos")
        problems += self._without_obs(found, name, stem)
        meaning, reason = dones.infer(ended, self.options.dones)
        ends = dones.Ends(meaning, reason, facts.env.sparse)
        notes += [*demos.gaps(listed), *_counts(found, facts, not problems), *([reason] if reason else [])]
        recordings = tuple(
            self._recording(demo, name, facts, _Payload(
                demo.name, subsets.get(demo.name, ()), splits.get(demo.name, ""), ends, keep))
            for demo in found
        )  # fmt: skip
        notes += self._notes(found, facts, meaning)
        return Scan(recordings, {name: source}, tuple(problems), tuple(notes), facts.license)

    def _without_obs(self, found: list[Demo], name: str, stem: str) -> list[tuple[str, SourceError]]:
        """Takes demos without observations out where others have them."""
        bare = [demo for demo in found if not any(path.startswith("obs/") for path in demo.fields)]
        if len(bare) == len(found):
            return []
        problems = []
        for demo in bare:
            found.remove(demo)
            try:
                with locate(path=name, episode=demo.name):
                    raise SourceError("the demo has no obs, which the other demos have")
            except SourceError as error:
                problems.append((f"{stem}/{demo.name}", error))
        return problems

    def _look_closer(self, group: h5py.Group, demo: Demo) -> None:
        """Whether depth may be in metres, by its first row, and where the cameras stand."""
        for path, field in demo.fields.items():
            if guess.is_depth(field) and path not in self._metres and self.options.depth != "keep":
                first = read(_dataset(group, path), slice(0, 1))
                ends = (np.nanmin(first), np.nanmax(first)) if not np.isnan(first).all() else (0.0, 0.0)
                if self.options.depth == "metres" or not (ends[0] >= 0.8 and ends[1] <= 1.0):
                    self._metres.add(path)
        cameras.collect(self._cameras, some_attributes(group, ("camera_info",)).get("camera_info"))

    def _notes(self, found: list[Demo], facts: Facts, meaning: str) -> list[str]:
        notes = []
        depths = sorted({path for demo in found for path, field in demo.fields.items() if guess.is_depth(field)})
        if metres := [path for path in depths if path in self._metres]:
            notes.append(
                f"depth is taken to be in metres, as robomimic writes it, and stored in counts of "
                f"{self.options.depth_scale} m: {shown(metres)} (--depth keep stores it as it is)"
            )
        if kept := [path for path in depths if path not in self._metres]:
            notes.append(f"depth is stored as it is, its unit is not known: {shown(kept)} (--depth metres)")
        if facts.env.sparse and any("rewards" in demo.fields for demo in found) and meaning != "success":
            notes.append("success is taken from the last reward: reward_shaping is false in env_args")
        if bare := [demo.name for demo in found if not any(path.startswith("obs/") for path in demo.fields)]:
            notes.append(f"{len(bare)} demos have no obs: only states and actions (--render fast draws them)")
        left = sorted({path for demo in found for path in demo.left_out})
        if left:
            notes.append(f"left out, as they are neither rows of numbers nor small: {shown(left)}")
        return notes

    def _recording(self, demo: Demo, name: str, facts: Facts, payload: _Payload) -> Recording:
        fields = dict(demo.fields)
        if facts.env.rate and not {TIMESTAMP, "extra/timestamp"} & set(fields):
            fields[TIMESTAMP] = Field(TIMESTAMP, "int64", (), "state")
        return Recording(demo.name, demo.length, (name,), fields, payload)

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        said = guess.agree(list(self._facts.values()), frozenset(self._metres), self.options.depth_scale)
        return guess.guess(self.kind, known, said)

    @cached_property
    def _schema(self) -> Schema:
        schema = super()._schema
        sources = {rule.name: rule.source[0] for rule in self.mapping().rules}
        if self._scenes is not None:
            name = self._scenes.renderer_name()
            drawn = [
                replace(feature, renderer=name) if sources[feature.name].startswith(guess.RENDERED) else feature
                for feature in schema.features
            ]
            schema = replace(schema, features=tuple(drawn))
        if self.options.image_size:  # what is known of the cameras is of the source's pixels
            return schema
        seen = [
            cameras.told(feature, sources[feature.name], self._cameras)
            if feature.name.startswith(("obs.image.", "obs.depth."))
            else feature
            for feature in schema.features
        ]
        return replace(schema, features=tuple(seen))

    # -- reading -------------------------------------------------------------------------------------------

    def load(self, recording: Recording) -> Loaded:
        payload: _Payload = recording.payload
        name = recording.files[0]
        facts = self._facts[name]
        with locate(path=name, episode=payload.demo):
            data = child(self._open.get(self.path(name)), "data")
            assert isinstance(data, h5py.Group)  # as it was when it was looked at
            group = _group(data, payload.demo)
            demo = demos.look_at(group, payload.keep_next, facts.rows)
            loaded = Loaded(_arrays(group, demo), bool(demo.final))
            if self._scenes is not None:
                loaded.arrays |= self._scenes.draw(group, self._scenes.fields(group, demo))
            if facts.env.rate and not {TIMESTAMP, "extra/timestamp"} & set(demo.fields):
                loaded.arrays[TIMESTAMP] = timestamps(demo.length + bool(demo.final), facts.env.rate)
            attrs = {key: decoded(value) for key, value in attributes(group).items()}
            exported = attrs.pop("vrl3data", {})
            done = _dones(group) if "dones" in demo.fields else None
            reward = float(read(_dataset(group, "rewards"))[-1].mean()) if "rewards" in demo.fields else None
            loaded.terminated, loaded.success = dones.outcome(payload.ends, done, attrs.get("success"), reward)
            loaded.task = _language(attrs) or facts.task
            loaded.split, loaded.subsets = payload.split, payload.subsets
            loaded.source_meta = self._said(group, demo, facts, attrs, payload)
        return _restored(loaded, exported, {key: attrs[key] for key in APART if key in attrs})

    def _said(
        self, group: h5py.Group, demo: Demo, facts: Facts, attrs: dict[str, Any], payload: _Payload
    ) -> dict[str, Any]:
        """Everything that is no feature, and what was assumed."""
        said = {(f"file.{key}" if key in attrs else key): value for key, value in facts.said.items()} | attrs
        if demo.small:
            said["arrays"] = {path: decoded(plain(read(_dataset(group, path)))) for path in demo.small}
        below = {path: found for path, dataset in datasets(group) if (found := attributes(dataset))}
        if below := {path: found for path, found in below.items() if "derived" not in found}:
            said["attributes"] = below
        assumed = {
            "dones": payload.ends.meaning or payload.ends.reason,
            "final_observation": {demos.NEXT: "the last row of next_obs", demos.OBS: "the last row of obs"}.get(
                demo.final
            ),
        }
        if assumed := {key: value for key, value in assumed.items() if value}:
            said["assumed"] = assumed
        return said

    def _provenance(self, map_: FieldMap) -> Provenance:
        made = super()._provenance(map_)
        return replace(made, versions={**made.versions, **self._scenes.versions()}) if self._scenes else made

    def close(self) -> None:
        self._open.close()
        if self._scenes is not None:
            self._scenes.close()


def _group(data: h5py.Group, name: str) -> h5py.Group:
    item = child(data, name)
    if not isinstance(item, h5py.Group):
        raise SourceError("expected a group with the arrays of a demo, found an array")
    return item


def _dataset(group: h5py.Group, path: str) -> h5py.Dataset:
    item = child(group, path)
    assert isinstance(item, h5py.Dataset)  # it was listed as one
    return item


def _dones(group: h5py.Group) -> dones.Dones:
    return dones.look(read(_dataset(group, "dones")))


def _arrays(group: h5py.Group, demo: Demo) -> dict[str, Any]:
    """Small arrays in memory, the others in blocks."""
    arrays: dict[str, Any] = {}
    for path, field in demo.fields.items():
        key = path.partition("/")[2]
        final = demo.final == demos.NEXT and path.startswith("obs/") and field.rows == "state"
        observed = _dataset(group, path)
        lazy = Lazy(observed, _dataset(group, f"{demos.NEXT}/{key}") if final else None)
        arrays[path] = np.concatenate(list(lazy)) if observed.nbytes <= SMALL_BYTES else lazy
    return arrays


def _language(attrs: Mapping[str, Any]) -> str:
    """What the demo was to do, in words (robocasa and others)."""
    meta = attrs.get("ep_meta")
    words = meta.get("lang") if isinstance(meta, dict) else None
    return words if isinstance(words, str) else ""


def _restored(loaded: Loaded, exported: object, apart: dict[str, Any]) -> Loaded:
    """With what our own export wrote of the episode. `apart`: attributes that were not written twice."""
    if not isinstance(exported, dict):
        return loaded
    for key in ("terminated", "truncated", "success", "start_time_ns", "task", "origin"):
        value = exported.get(key)
        if type(value) is type(getattr(loaded, key)):
            setattr(loaded, key, value)
    if isinstance(exported.get("source_meta"), dict):
        loaded.source_meta = exported["source_meta"] | apart
    return loaded


def _counts(found: list[Demo], facts: Facts, whole: bool) -> list[str]:
    """num_samples and total against the actions."""
    wrong = [demo for demo in found if demo.told not in (-1, demo.length)]
    notes = []
    if wrong:
        first = wrong[0]
        notes.append(f"num_samples is wrong in {len(wrong)} demos: {first.name} says {first.told}, "
                     f"its actions are {first.length}; the actions count")  # fmt: skip
    steps = sum(demo.length for demo in found)
    if whole and facts.total not in (-1, steps):
        notes.append(f"total says {facts.total}, the demos have {steps} steps")
    return notes
