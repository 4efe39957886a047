"""A dataset as one robomimic HDF5 file.

Letters: T steps, N rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from converters.export import robomimic_env
from converters.export.base import beside_rows
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.report import Reporter
from vrl3data.schema import Array, Feature

BLOCK_BYTES = 16 * 1024**2
DONES = ("auto", "success", "end", "both")
PLACES = {"action": "actions", "action.abs": "actions_abs", "reward": "rewards", "done": "dones", "sim.state": "states"}
GYM = 2
"""`type` of env_args: what robomimic takes for any environment that is not robosuite or iGibson."""
ATTRIBUTES = ("model_file", "ep_meta", "camera_info", "seed")
"""Of source_meta: what robomimic, or those who write its files, keep as attributes of a demo."""
FACTS = ("name", "rows", "color", "flip", "names", "unit", "bounds", "description", "scale_m", "quaternion",
         "representation")  # fmt: skip


@dataclass(frozen=True)
class RobomimicExportOptions:
    """What goes into the file."""

    features: tuple[str, ...] = field(default=(), metadata={
        "help": "Feature to export, besides the actions; repeat for more.", "shown": "all"})  # fmt: skip
    dones: Literal["auto", "success", "end", "both"] = field(default="auto", metadata={
        "help": "Which steps are done: auto takes those of the dataset, else 1 at an end in success where it is known, "
        "else 1 at each last step."})  # fmt: skip
    next_obs: bool = field(default=True, metadata={"help": "Write next_obs where there is a final observation."})
    env_args: str = field(default="", metadata={
        "help": "JSON file with env_name, type and env_kwargs.", "shown": "of the source"})  # fmt: skip
    compress: bool = field(default=False, metadata={"help": "Pack all arrays with gzip."})


@dataclass(frozen=True)
class _Told:
    """What the episodes say, from one pass over their commit records."""

    env_args: Mapping[str, Any]
    notes: tuple[str, ...]
    ends_known: bool
    """Whether success or termination is known of every episode."""
    final: int
    """Episodes with a final observation."""


class RobomimicExporter:
    """One robomimic HDF5 file: data/demo_i with actions, obs, next_obs, rewards, dones, states; masks; env_args."""

    Options = RobomimicExportOptions

    def __init__(self, dataset: Dataset, options: RobomimicExportOptions) -> None:
        self.dataset, self.options = dataset, options
        schema = dataset.schema
        if schema.kind != "episodes":
            raise ConfigError(f"robomimic holds episodes; this dataset holds {schema.kind}")
        if "action" not in schema or schema["action"].rows != "step":
            raise ConfigError("robomimic needs actions; this dataset has no feature `action` with a row for each step")
        if options.dones not in DONES:
            raise ConfigError(f"dones: {options.dones!r}{did_you_mean(options.dones, DONES)}")
        for name in options.features:
            if name not in schema:
                raise ConfigError(f"features: there is no {name!r}{did_you_mean(name, schema.names)}")
        self.given = robomimic_env.read(options.env_args) if options.env_args else {}

    def dropped(self) -> tuple[str, ...]:
        """What is not in the file."""
        clocks = {feature.name: feature.clock for feature in self.dataset.schema.features}
        lines = [
            f"{name}: a stream with its own clock ({clocks[name]}); robomimic has one row for each step"
            if clocks[name] else f"{name}: not asked for"
            for name in self.dataset.schema.names if name not in self._places
        ]  # fmt: skip
        if self._told.final and not self.options.next_obs:
            lines.append(f"final observations of {self._told.final} episodes: not asked for")
        return (*lines, *beside_rows(self.dataset, (*FACTS, "intrinsics", "extrinsics")))

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        """In blocks of rows: memory stays bounded."""
        told = self._told
        notes = [*told.notes, *self._assumptions()]
        low, high, steps = np.inf, -np.inf, 0
        with h5py.File(dest, "w") as file, reporter.progress("exporting", len(self.dataset), "episodes") as advance:
            data = file.create_group("data")
            for number, item in enumerate(self.dataset):
                with locate(episode=item.name):
                    group = data.create_group(f"demo_{number}")
                    bounds = self._demo(group, item)
                    low, high = min(low, bounds[0]), max(high, bounds[1])
                steps += item.length
                advance(1)
            data.attrs["total"] = steps
            data.attrs["env_args"] = json.dumps(self.given or told.env_args, indent=4)
            data.attrs["vrl3data"] = json.dumps(self._origin())
            notes += self._masks(file)
        if low < -1 or high > 1:
            notes.append(
                f"actions lie in {low:.4g} to {high:.4g}; robomimic expects -1 to 1: scale them before training"
            )
        return tuple(notes)

    # -- where things go -----------------------------------------------------------------------------------

    @cached_property
    def _places(self) -> dict[str, str]:
        """Feature -> path below a demo."""
        schema = self.dataset.schema
        asked = {"action", *self.options.features} if self.options.features else set(schema.names)
        chosen = [feature for feature in schema.features if feature.name in asked and not feature.clock]
        names = {feature.name for feature in chosen}
        apart = not self._told.final
        found: dict[str, str] = {}
        for feature in chosen:
            place = _place(feature, names, apart, self.options.dones)
            taken = any(place == other or place.startswith(f"{other}/") or other.startswith(f"{place}/")
                        for other in found.values())  # fmt: skip
            found[feature.name] = f"extra/{feature.name}" if taken else place
        return found

    def _demo(self, group: h5py.Group, item: StoredSample) -> tuple[float, float]:
        """One episode; the least and the greatest action."""
        length, final = item.length, bool(item.meta["final_observation"])
        low, high = np.inf, -np.inf
        for name, place in self._places.items():
            if name in item.absent:
                continue
            feature = self.dataset.schema[name]
            targets = self._targets(group, place, feature, item, final and feature.rows == "state")
            for start, rows_N in _blocks(item, feature):
                rows_N = _as_robomimic(place, feature, rows_N)
                if place == "actions" and np.isfinite(rows_N).any():
                    low, high = min(low, float(np.nanmin(rows_N))), max(high, float(np.nanmax(rows_N)))
                _put(targets[0], start, rows_N)
                if len(targets) > 1:
                    _put(targets[1], start - 1, rows_N)
        self._attributes(group, item)
        if "dones" not in self._places.values():
            done_T = np.zeros(length, np.int64)
            done_T[-1] = self._last_done(item)
            made = group.create_dataset("dones", data=done_T, track_times=False)
            made.attrs["derived"] = self._done_mode
        return low, high

    def _targets(
        self, group: h5py.Group, place: str, feature: Feature, item: StoredSample, after: bool
    ) -> list[h5py.Dataset]:
        """The dataset of a feature, and that of next_obs if there is one. `after`: it has a row after the last step."""
        count = item.row_count(feature.name)
        row = _as_robomimic(place, feature, np.zeros((1, *feature.shape), feature.dtype))
        places = [place]
        if after and (place.startswith("obs/") or not self.options.next_obs):
            count -= 1
            places += [f"next_{place}"] if self.options.next_obs else []
        packed: dict[str, Any] = {}
        if self.options.compress and row.size:
            packed = {
                "compression": "gzip",
                "chunks": (max(1, min(count, 2**20 // max(1, row.nbytes))), *row.shape[1:]),
            }
        return [
            group.create_dataset(path, (count, *row.shape[1:]), row.dtype, track_times=False, **packed)
            for path in places
        ]

    def _attributes(self, group: h5py.Group, item: StoredSample) -> None:
        said = item.source_meta
        group.attrs["num_samples"] = item.length
        for key in ATTRIBUTES:
            if key in said:
                value = said.pop(key)
                group.attrs[key] = json.dumps(value) if isinstance(value, (dict, list)) else value
        if "camera_info" not in group.attrs and (cameras := self._camera_info()):
            group.attrs["camera_info"] = json.dumps(cameras)
        if item.meta["success"] != -1:
            group.attrs["success"] = bool(item.meta["success"])
        facts = {key: item.meta[key] for key in ("name", "task", "origin", "terminated", "truncated", "success",
                                                 "start_time_ns")}  # fmt: skip
        group.attrs["vrl3data"] = json.dumps({**facts, "source_meta": said})

    def _camera_info(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for feature in self.dataset.schema.cameras:
            facts = {key: getattr(feature, key) for key in ("intrinsics", "extrinsics") if getattr(feature, key)}
            if facts:
                found[feature.name.rpartition(".")[2]] = facts
        return found

    def _masks(self, file: h5py.File) -> list[str]:
        """Subsets, and splits if there are several."""
        index = self.dataset.index
        members: dict[str, list[bytes]] = {}
        for number, subsets in enumerate(index["subsets"].to_pylist()):
            for subset in filter(None, subsets.split(",")):
                members.setdefault(subset, []).append(f"demo_{number}".encode())
        notes = []
        splits: dict[str, list[bytes]] = {}
        for number, split in enumerate(index["split"].to_pylist()):
            splits.setdefault(split, []).append(f"demo_{number}".encode())
        for name, demos in members.items():
            file.create_dataset(f"mask/{name}", data=np.array(demos), track_times=False)
        for split, demos in splits.items() if len(splits) > 1 else ():
            name = f"split_{split}" if split in members else split
            if name != split:
                notes.append(f"the split {split!r} is the mask {name!r}: a subset has its name")
            made = file.create_dataset(f"mask/{name}", data=np.array(demos), track_times=False)
            made.attrs["split"] = split
        return notes

    def _origin(self) -> dict[str, Any]:
        """To get every feature back as it is."""
        features = {
            place: {key: value for key, value in self.dataset.schema[name].to_json().items() if key in FACTS}
            for name, place in self._places.items()
        }
        return {"version": 1, "name": self.dataset.manifest.name, "license": self.dataset.manifest.license,
                "features": features}  # fmt: skip

    # -- what is assumed -----------------------------------------------------------------------------------

    @cached_property
    def _told(self) -> _Told:
        env_args: list[str] = []
        known = final = 0
        tasks: Counter[str] = Counter()
        for item in self.dataset:
            env = robomimic_env.of_source(item.source_meta)
            env_args += [json.dumps(env, sort_keys=True)] if env else []
            known += item.meta["success"] != -1 or item.meta["terminated"] != -1
            final += item.meta["final_observation"]
            tasks[item.meta["task"]] += 1
        notes = []
        if len(distinct := dict.fromkeys(env_args)) > 1:
            notes.append(f"the episodes come from {len(distinct)} environments; env_args names the first")
        first = json.loads(env_args[0]) if env_args else {}
        if not first:
            named = next((task for task in tasks if task), "") or self.dataset.manifest.name
            first = {"env_name": named, "type": GYM, "env_kwargs": {}}
            if not self.given:
                notes.append(f"env_args is made up from the task ({named!r}, type gym): robomimic cannot build the "
                             "environment from it; --env-args FILE gives the right one")  # fmt: skip
        return _Told(first, tuple(notes), known == len(self.dataset), final)

    @property
    def _done_mode(self) -> str:
        if self.options.dones == "auto":
            return "success" if self._told.ends_known else "end"
        return self.options.dones

    def _last_done(self, item: StoredSample) -> int:
        if self._done_mode != "success":
            return 1
        if item.meta["success"] == item.meta["terminated"] == -1:
            raise ConfigError("dones success: it is not known whether this episode was one; choose dones end")
        return int(1 in (item.meta["success"], item.meta["terminated"]))

    def _assumptions(self) -> Iterator[str]:
        places, told = self._places, self._told
        if "dones" not in places.values():
            meaning = {"success": "where an episode is known to end in success or termination"}
            yield f"dones are made up: 1 at the last step {meaning.get(self._done_mode, 'of each episode')}, else 0"
        if "rewards" not in places.values():
            yield "there are no rewards: robomimic reads zeros when it caches (hdf5_cache_mode low_dim or all)"
        if self.options.next_obs and 0 < told.final < len(self.dataset):
            yield f"next_obs is there in {told.final} of {len(self.dataset)} demos, those with a final observation"
        elif self.options.next_obs and not told.final and not any(p.startswith("next_obs/") for p in places.values()):
            yield "there is no next_obs, as no episode has a final observation: set hdf5_load_next_obs to false"
        extra = [name for name, place in places.items() if place.startswith("extra/")]
        if extra:
            yield f"in the group extra/ of each demo, which robomimic does not read: {', '.join(extra)}"
        for feature in (self.dataset.schema[name] for name in places):
            if told.final and feature.rows == "state" and not places[feature.name].startswith("obs/"):
                yield (f"{feature.name}: {places[feature.name]} has a row after the last action, and robomimic reads "
                       "one for each action")  # fmt: skip
            if feature.name.startswith("obs.depth.") and feature.scale_m:
                yield f"{feature.name}: written in metres, float32"


def _place(feature: Feature, names: set[str], apart: bool, dones: str) -> str:
    """Path below a demo. `apart`: next_obs is not made from final observations, so that features may be there."""
    name, per_step = feature.name, feature.rows != "episode"
    head, _, rest = name.partition(".")
    if head == "sim" and feature.rows == "state" and not apart:  # robomimic's states have no final one
        return f"extra/{name}"
    if name in PLACES and (feature.rows == "step" or name == "sim.state") and not (name == "done" and dones != "auto"):
        return PLACES[name]
    kind, _, camera = rest.partition(".")
    if name.startswith("sim.initial.") and not per_step:
        return f"initial_state/{name.removeprefix('sim.initial.').replace('.', '/')}"
    if head == "action" and rest and feature.rows == "step":
        return f"action_dict/{rest}"
    if head == "sim" and "sim.state" not in names and per_step:
        return f"states/{rest.replace('.', '/')}"
    if head == "obs" and rest and per_step:
        if kind in ("image", "depth") and camera:
            before = camera.removeprefix("next_")
            follows = apart and camera != before and f"obs.{kind}.{before}" in names
            return f"next_obs/{before}_{kind}" if follows else f"obs/{camera}_{kind}"
        return f"next_obs/{camera}" if apart and kind == "next" and camera else f"obs/{rest}"
    return f"extra/{name}"


def _as_robomimic(place: str, feature: Feature, rows_N: Array) -> Array:
    if feature.name.startswith("obs.depth.") and feature.dtype == "uint16" and not place.startswith("extra/"):
        rows_N = rows_N[..., None]
        return (rows_N * np.float64(feature.scale_m)).astype(np.float32) if feature.scale_m else rows_N
    return rows_N[:, None] if place == "actions" and rows_N.ndim == 1 else rows_N


def _blocks(item: StoredSample, feature: Feature) -> Iterator[tuple[int, Array]]:
    """(first row, rows): whole units, so that none is decoded twice."""
    count = item.row_count(feature.name)
    step = max(1, BLOCK_BYTES // max(1, feature.row_bytes) // feature.unit_rows) * feature.unit_rows
    for start in range(0, count, step):
        yield start, item.rows(feature.name, start, min(count, start + step))


def _put(target: h5py.Dataset, start: int, rows_N: Array) -> None:
    """Rows from `start` on, as far as the target has them."""
    first, stop = max(0, start), min(len(target), start + len(rows_N))
    if stop > first:
        target[first:stop] = rows_N[first - start : stop - start]
