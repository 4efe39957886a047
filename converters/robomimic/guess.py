"""What the arrays of a robomimic file become: names by its conventions, meanings only where the file says them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converters.fields import TIMESTAMP, Field
from converters.mapping import FieldMap, Rule, distinct, feature_name
from converters.robomimic.facts import Facts
from vrl3data.schema import MAX_NAME, NAME

RENDERED = "render/"
PICTURE = re.compile(r"_(?:image|rgb|gray)$")
DEPTH = "_depth"
PROPRIO = (
    re.compile(r"obs/robot\d+_(?:eef_pos|eef_quat|gripper_qpos)"),  # robosuite; what robomimic trains on
    re.compile(r"obs/(?:eef_pos|eef_quat|gripper_pos)"),  # Isaac Lab
)
"""What an agent may see beside images."""
NAMED = {
    "actions": "action",
    "actions_abs": "action.abs",
    "processed_actions": "action.processed",
    "rewards": "reward",
    "dones": "done",
    "states": "sim.state",
    TIMESTAMP: TIMESTAMP,
}
GROUPS = {"action_dict": "action", "states": "sim", "initial_state": "sim.initial", "next_obs": "obs.next"}
KEPT = ("unit", "description", "names", "quaternion", "representation", "flip", "scale_m")
"""Of a feature that our own export wrote: what a rule takes over."""


@dataclass(frozen=True)
class Said:
    """What all files of one conversion agree on."""

    robosuite: bool = False
    representation: str = ""
    flip: str = ""
    depth_scale: float = 0.0
    """Metres per stored count, of depth that the files hold in metres; 0: such depth stays as it is."""
    depths: frozenset[str] = frozenset()
    """Fields of depth that are taken to be in metres."""
    exported: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """path -> feature, as our own export wrote it."""


def agree(facts: list[Facts], depths: frozenset[str], depth_scale: float) -> Said:
    """What is said differently by two files is not known."""
    kinds = {item.env.representation for item in facts}
    flips = {item.upside_down for item in facts}
    exported = [item.exported for item in facts]
    first = exported[0] if exported else {}
    return Said(
        all(item.env.robosuite for item in facts),
        kinds.pop() if len(kinds) == 1 else "",
        "vertical" if flips == {True} else "",
        depth_scale,
        depths,
        first if all(item == first for item in exported) else {},
    )


def guess(kind: str, known: Mapping[str, Field], said: Said) -> FieldMap:
    """One feature for each field, and `obs.proprio` from those that are known to be the robot's own."""
    ranked = sorted(known, key=_rank)
    rules = distinct(_exported(path, said.exported.get(path)) or _rule(path, known[path], said) for path in ranked)
    if "obs.proprio" not in {rule.name for rule in rules}:
        rules += _proprio(known)
    return FieldMap(kind, rules)


def _rank(path: str) -> tuple[bool, str]:
    """Fields with a name of their own come first, so that no other takes it."""
    return path not in NAMED, path


def _rule(path: str, field_: Field, said: Said) -> Rule:
    top, _, rest = path.partition("/")
    if path == TIMESTAMP and (field_.dtype, field_.rows) != ("int64", "state"):  # the file's own
        return Rule(TIMESTAMP, (path,))
    if path in NAMED:
        unit = "ns" if path == TIMESTAMP else ""
        kind = {"actions": said.representation, "actions_abs": _absolute(said.representation)}.get(path, "")
        return Rule(NAMED[path], (path,), unit=unit, representation=kind)
    if path.startswith(RENDERED):
        return Rule(f"obs.image.{feature_name(rest)}", (path,), color="rgb", flip="none")
    if top in ("obs", "next_obs") and rest:
        return _observation(path, "next_" if top == "next_obs" else "", rest, field_, said)
    words = [GROUPS[top], *rest.split("/")] if top in GROUPS and rest else path.split("/")
    return Rule(_legal(*words), (path,))


def _absolute(representation: str) -> str:
    space = representation.rpartition("_")[2]
    return f"abs_{space}" if space in ("ee", "joint") else ""


def _observation(path: str, before: str, key: str, field_: Field, said: Said) -> Rule:
    words = key.split("/")
    if layout := _layout(words[-1], field_):
        color = "gray" if len(field_.shape) == 2 or 1 in (field_.shape[0], field_.shape[-1]) else "rgb"
        camera = _camera(words, PICTURE)
        return Rule(f"obs.image.{before}{camera}", (path,), color=color, layout=layout, flip=said.flip)
    if words[-1].endswith(DEPTH):
        whole = field_.dtype == "uint16" and _is_map(field_)
        if whole or path in said.depths:
            camera = _camera(words, re.compile(f"{DEPTH}$"))
            return Rule(f"obs.depth.{before}{camera}", (path,), scale_m=0.0 if whole else said.depth_scale)
    quaternion = "xyzw" if said.robosuite and words[-1].endswith("_quat") and field_.shape == (4,) else ""
    return Rule(_legal("obs.next" if before else "obs", *words), (path,), quaternion=quaternion)


def _is_map(field_: Field) -> bool:
    return len(field_.shape) == 2 or (len(field_.shape) == 3 and field_.shape[2] == 1)


def is_depth(field_: Field) -> bool:
    """Depth that might be in metres: floats of one channel, by the name that robomimic gives them."""
    return (
        field_.path.startswith("obs/") and field_.path.endswith(DEPTH) and "float" in field_.dtype and _is_map(field_)
    )


def _layout(key: str, field_: Field) -> str:
    """hwc or chw if these are pictures, else empty."""
    shape = field_.shape
    if field_.dtype != "uint8" or min(shape, default=0) < 1:
        return ""
    if len(shape) == 3 and min(shape[:2]) >= 8 and shape[2] in (1, 3):
        return "hwc"
    if len(shape) == 3 and min(shape[1:]) >= 8 and shape[0] in (1, 3):
        return "chw"
    return "hwc" if len(shape) == 2 and PICTURE.search(key) else ""


def _camera(words: list[str], suffix: re.Pattern[str]) -> str:
    """`agentview` of agentview_image; in a group, the names of both."""
    *groups, last = words
    named = [word for word in groups if word not in ("image", "images", "rgb", "depth")]
    last = suffix.sub("", last) or last
    return feature_name("_".join([*named, last]).replace(".", "_"))


def _legal(*words: str) -> str:
    """As a feature's name: not too long, and not one of those that the format takes."""
    name = feature_name(*words)[: MAX_NAME - 4].rstrip(".")
    return f"{name}_" if name.endswith(".offsets") else name


def _proprio(known: Mapping[str, Field]) -> tuple[Rule, ...]:
    for pattern in PROPRIO:
        paths = tuple(path for path in sorted(known) if pattern.fullmatch(path) and len(known[path].shape) == 1)
        if len(paths) > 1 and len({known[path].rows for path in paths}) == 1:
            names = tuple(
                f"{path.partition('/')[2]}.{column}" for path in paths for column in range(known[path].shape[0])
            )
            return (Rule("obs.proprio", paths, names=names),)
    return ()


def _exported(path: str, feature: object) -> Rule | None:
    """The rule that gives back a feature as it was before our export; None if it does not say so in our terms."""
    if not isinstance(feature, dict) or not NAME.fullmatch(str(feature.get("name"))):
        return None
    kinds: dict[str, type] = {"names": list, "scale_m": float}
    facts = {key: feature[key] for key in KEPT if isinstance(feature.get(key), kinds.get(key, str))}
    facts["names"] = tuple(map(str, facts.get("names", ())))
    color = feature.get("color") if feature.get("color") in ("rgb", "gray") else ""
    said = feature.get("bounds")
    pair = said if isinstance(said, list) and len(said) == 2 else []
    bounds = tuple(tuple(item) if isinstance(item, list) else item for item in pair)
    rows = feature.get("rows") if feature.get("rows") in ("step", "state", "episode") else ""
    return Rule(str(feature["name"]), (path,), color=str(color), bounds=bounds, rows=str(rows), **facts)
