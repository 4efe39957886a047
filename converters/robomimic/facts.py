"""What a robomimic file says of all its demos: its environment, its masks, its attributes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py

from converters.hdf5 import attributes, check_dataset, child, datasets, names, plain, read
from vrl3data.errors import SourceError, locate

ROBOSUITE = 1
"""`type` of env_args; 2 is gym (and Isaac Lab), 3 iGibson."""
SHOWN = 5
HOME = re.compile(r"(?<![\w.~-])(?:[A-Za-z]:)?[/\\]+(?:(?:home|Users)[/\\]+[^/\\\"'<>\r\n]+|root)(?=[/\\])")
"""The part of a path that names a user of another machine."""
CONTROLLERS = {
    "OSC_POSE": "ee",
    "OSC_POSITION": "ee",
    "IK_POSE": "ee",
    "JOINT_POSITION": "joint",
    "JOINT_VELOCITY": "velocity",
    "JOINT_TORQUE": "torque",
}
ISAAC = (("-IK-Rel", "delta_ee"), ("-IK-Abs", "abs_ee"), ("-Joint-Pos", "abs_joint"))


@dataclass(frozen=True)
class Env:
    """The simulator that a file was recorded in, as far as it says. `type` -1: not said."""

    name: str = ""
    type: int = -1
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def robosuite(self) -> bool:
        return self.type == ROBOSUITE

    @property
    def rate(self) -> float:
        """Steps per second; 0 if it is not said."""
        rate = self.kwargs.get("control_freq", 0)
        known = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate <= 1e5
        return float(rate) if known else 0.0

    @property
    def sparse(self) -> bool:
        """Whether rewards are above 0 exactly in states of success, as robosuite's without shaping are."""
        return self.robosuite and self.kwargs.get("reward_shaping") is False

    @property
    def representation(self) -> str:
        """Of the actions; empty if the file does not say it."""
        if not self.robosuite:
            return next((word for part, word in ISAAC if self.name.startswith("Isaac-") and part in self.name), "")
        said = self.kwargs.get("controller_configs")
        said = said[0] if isinstance(said, list) and said else said
        if not isinstance(said, dict):
            return ""
        parts = said.get("body_parts")
        if isinstance(parts, dict):  # robosuite 1.5
            said = next((part for name, part in sorted(parts.items()) if name in ("arms", "right")), {})
            said = said.get("right", said) if isinstance(said, dict) else {}
        space = CONTROLLERS.get(str(said.get("type")), "")
        if space in ("", "velocity", "torque"):
            return space
        delta = said.get("control_delta", {"delta": True, "absolute": False}.get(str(said.get("input_type"))))
        return f"{'delta' if delta else 'abs'}_{space}" if isinstance(delta, bool) else ""


@dataclass(frozen=True)
class Facts:
    """Of one file. `masks`: name of a demo -> subsets. `said` goes into source_meta."""

    env: Env
    said: Mapping[str, Any]
    total: int
    task: str
    origin: Mapping[str, Any]
    """What our own export wrote, to get everything back as it was; empty for any other file."""
    upside_down: bool = False

    @property
    def exported(self) -> Mapping[str, Any]:
        """Path of an array -> its feature, in a file that our own export wrote."""
        features = self.origin.get("features")
        return features if isinstance(features, dict) else {}

    @property
    def rows(self) -> dict[str, str]:
        """Path of an array -> its rows, likewise."""
        return {path: str(said.get("rows")) for path, said in self.exported.items() if isinstance(said, dict)}

    @property
    def license(self) -> str:
        said = self.origin.get("license", "")
        return said if isinstance(said, str) and said != "unknown" else ""


def read_facts(file: h5py.File, data: h5py.Group) -> Facts:
    """SourceError if the attributes are damaged."""
    said = {name: decoded(value) for name, value in {**attributes(file), **attributes(data)}.items()}
    origin, total = said.pop("vrl3data", {}), said.pop("total", -1)
    problem = said.get("problem_info")
    words = problem.get("language_instruction") if isinstance(problem, dict) else None
    env = _env(said)
    return Facts(
        env,
        said,
        total if isinstance(total, int) else -1,
        words if isinstance(words, str) else env.name,
        origin if isinstance(origin, dict) else {},
        said.get("macros_image_convention") == "opengl",  # LIBERO: the first row is the lowest
    )


def _env(said: Mapping[str, Any]) -> Env:
    args, info = said.get("env_args"), said.get("env_info")
    if isinstance(args, dict):
        kwargs = args.get("env_kwargs")
        type_ = args.get("type", args.get("env_type"))
        type_ = type_ if isinstance(type_, int) else -1
        return Env(str(args.get("env_name") or ""), type_, kwargs if isinstance(kwargs, dict) else {})
    if isinstance(said.get("env"), str) and isinstance(info, dict):  # as robosuite collects demonstrations
        return Env(said["env"], ROBOSUITE, info)
    return Env(str(said.get("env_name") or said.get("env") or ""))


def decoded(value: Any) -> Any:
    """An attribute as JSON: text that is a JSON object becomes one, and no path tells whose machine it was."""
    if not isinstance(value, str):
        return value
    text = HOME.sub("~", value)
    if text.startswith(("{", "[")):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return found if isinstance(found, (dict, list)) else text
    return text


def read_masks(file: h5py.File, demos: list[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, str], list[str]]:
    """(demo -> its subsets, demo -> its split if our export wrote it, notes)."""
    if "mask" not in names(file):
        return {}, {}, []
    group = child(file, "mask")
    if not isinstance(group, h5py.Group):
        return {}, {}, ["mask is not a group and was left out"]
    members: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    notes: list[str] = []
    taken, there = set[str](), set(demos)
    for key, dataset in datasets(group):
        listed = _listed(dataset)
        known = [demo for demo in dict.fromkeys(listed) if demo in there]
        if missing := [demo for demo in listed if demo not in there]:
            notes.append(f"mask {key!r} names {len(missing)} demos that are not there: {shown(missing)}")
        if split := attributes(dataset).get("split"):
            splits |= dict.fromkeys(known, str(split))
            continue
        if not known:
            notes.append(f"mask {key!r} names no demo that is there: it becomes no subset")
        subset = _unique(re.sub(r"[^A-Za-z0-9_.%+-]+", "_", key).strip("_") or "mask", taken)
        if subset != key:
            notes.append(f"mask {key!r} became the subset {subset!r}")
        for demo in known:
            members.setdefault(demo, []).append(subset)
    return {demo: tuple(sorted(found)) for demo, found in members.items()}, splits, notes


def _listed(dataset: h5py.Dataset) -> list[str]:
    check_dataset(dataset)
    with locate(feature=dataset.name):
        if h5py.check_string_dtype(dataset.dtype) is None or dataset.ndim > 1:
            raise SourceError(f"expected a list of names of demos, found {dataset.dtype} of shape {dataset.shape}")
    listed = plain(read(dataset))
    return [str(demo) for demo in (listed if isinstance(listed, list) else [listed])]


def _unique(word: str, taken: set[str]) -> str:
    found, number = word, 2
    while found in taken:
        found, number = f"{word}_{number}", number + 1
    taken.add(found)
    return found


def shown(items: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
