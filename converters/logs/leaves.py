"""The values inside messages: their places, their kinds, and what they have in common over several messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.logs.decode import time_ns

MAX_LEAVES, MAX_DEPTH = 2000, 20
UNITS = {
    "position": "m", "translation": "m", "linear": "m/s", "angular": "rad/s", "angular_velocity": "rad/s",
    "linear_acceleration": "m/s^2", "force": "N", "torque": "N m", "magnetic_field": "T",
}  # fmt: skip
"""REP 103: what the standard packages mean by these names."""
STANDARD = ("geometry_msgs/", "sensor_msgs/", "nav_msgs/", "tf2_msgs/", "tf/", "foxglove")


@dataclass
class Leaf:
    """A value at one place. `kind`: float, whole, text, array, texts, or other, which has a `reason`."""

    at: tuple[str, ...]
    kind: str
    first: Any
    reason: str = ""
    flag: bool = False
    whole: bool = False
    bytes_: bool = False
    lengths: set[int] = field(default_factory=set)
    labels: tuple[str, ...] = ()
    """All names of a list of texts, in the order of their first appearance."""


def flatten(values: Sequence[Mapping[str, Any]]) -> list[Leaf]:
    """The leaves of messages of one type, without stamps and headers, in the order of the first message."""
    found: dict[tuple[str, ...], Leaf] = {}
    for value in values:
        for at, item in _walk(value, ()):
            if at in found:
                _merge(found[at], item)
            elif len(found) < MAX_LEAVES:
                found[at] = _leaf(at, item)
    return list(found.values())


def get(value: Any, at: tuple[str, ...]) -> Any:
    """The value at a place, or None."""
    for part in at:
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def units(type_name: str) -> Mapping[str, str]:
    """Units of vectors by the name of what holds them, for the standard types only."""
    if not type_name.startswith(STANDARD):
        return {}
    if "Accel" in type_name:
        return {**UNITS, "linear": "m/s^2", "angular": "rad/s^2"}
    return UNITS


def _walk(value: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, item in value.items():
        if not at and name in ("header", "timestamp", "stamp") and (name == "header" or time_ns(item) is not None):
            if name == "header" and isinstance(item, dict) and item.get("frame_id"):
                yield ("header", "frame_id"), item["frame_id"]
            continue
        place = (*at, str(name))
        if isinstance(item, dict) and time_ns(item) is None and len(place) < MAX_DEPTH:
            yield from _walk(item, place)
        else:
            yield place, item


def _leaf(at: tuple[str, ...], item: Any) -> Leaf:
    if isinstance(item, str):
        return Leaf(at, "text", item)
    if isinstance(item, bool | int):
        return Leaf(at, "whole", item, flag=isinstance(item, bool))
    if isinstance(item, float) or time_ns(item) is not None:
        return Leaf(at, "float", item)
    if isinstance(item, np.ndarray):
        whole = item.dtype.kind in "iub"
        return Leaf(at, "array", None, whole=whole, bytes_=item.dtype.itemsize == 1, lengths={len(item)})
    if isinstance(item, list) and all(isinstance(entry, int | float) for entry in item):
        return Leaf(at, "array", None, lengths={len(item)})
    if isinstance(item, list) and all(isinstance(entry, str) for entry in item):
        return Leaf(at, "texts", None, lengths={len(item)}, labels=tuple(dict.fromkeys(item)))
    kind = "messages" if isinstance(item, list) else type(item).__name__
    return Leaf(at, "other", None, reason=f"a list of {kind}" if isinstance(item, list) else f"of type {kind}")


def _merge(leaf: Leaf, item: Any) -> None:
    """Take what a later message says of a leaf."""
    if leaf.kind == "whole" and isinstance(item, float):
        leaf.kind = "float"
    elif leaf.kind == "texts" and isinstance(item, list):
        leaf.lengths.add(len(item))
        leaf.labels = tuple(dict.fromkeys([*leaf.labels, *(entry for entry in item if isinstance(entry, str))]))
    elif leaf.kind == "array" and isinstance(item, np.ndarray | list):
        leaf.lengths.add(len(item))
    elif leaf.kind == "other" and isinstance(item, np.ndarray):
        leaf.kind, leaf.reason, leaf.lengths = "array", "", {len(item)}
