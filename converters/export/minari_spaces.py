"""Features as the spaces of Gymnasium, in Minari's JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vrl3data.schema import Feature

MANY = 1_000_000
"""Choices up to which bounded whole numbers are a Discrete space."""


def tree(top: str, names: dict[str, str]) -> dict[str, str]:
    """Feature -> path, dots as groups; one whose path is also a group keeps its dots."""
    paths = {feature: f"{top}/{name.replace('.', '/')}" for feature, name in names.items()}
    paths = {feature: re.sub(r"/index_(\d+)(?=/|$)", r"/_index_\1", path) for feature, path in paths.items()}
    groups = {path[: match.start()] for path in paths.values() for match in re.finditer("/", path)}
    return {feature: f"{path}_" if path in groups else path for feature, path in paths.items()}


def nested(top: str, places: Mapping[str, str], space: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The space of all arrays below `top`; that of the array itself if its place is `top`."""
    tree: dict[str, Any] = {"type": "Dict", "subspaces": {}}
    for name, path in places.items():
        if path == top:
            return space(name)
        *groups, last = path.removeprefix(f"{top}/").split("/")
        inner = tree
        for group in groups:
            inner = inner["subspaces"].setdefault(group, {"type": "Dict", "subspaces": {}})
        inner["subspaces"][last] = space(name)
    return _with_tuples(tree)


def _with_tuples(tree: dict[str, Any]) -> dict[str, Any]:
    """Groups of `_index_0`, `_index_1`, ... are what Minari makes of a Tuple."""
    if tree["type"] != "Dict":
        return tree
    inner = {key: _with_tuples(space) for key, space in tree["subspaces"].items()}
    indices = [f"_index_{number}" for number in range(len(inner))]
    if inner and set(inner) == set(indices):
        return {"type": "Tuple", "subspaces": [inner[key] for key in indices]}
    return {"type": "Dict", "subspaces": inner}


def space_of(feature: Feature, flags: bool, flat: bool) -> dict[str, Any]:
    """`flags`: rows of int8 0 and 1. `flat`: without the axis of the only channel, as JPEG files are decoded."""
    if flags:
        return {"type": "MultiBinary", "n": feature.shape[0] if len(feature.shape) == 1 else list(feature.shape)}
    low, high = feature.bounds or (None, None)
    is_number = feature.dtype == "int64" and not feature.shape
    if is_number and isinstance(low, int) and isinstance(high, int) and 0 <= high - low < MANY:
        return {"type": "Discrete", "dtype": "int64", "start": int(low), "n": high - low + 1}
    shape = feature.shape[:2] if flat and feature.shape[-1] == 1 else feature.shape
    dtype = "uint8" if feature.dtype == "bool" else feature.dtype
    lowest, highest = _limits(dtype)
    bounds = [np.broadcast_to(np.asarray(given if given is not None else end, dtype), shape).tolist()
              for given, end in ((low, lowest), (high, highest))]  # fmt: skip
    return {"type": "Box", "dtype": dtype, "shape": list(shape), "low": bounds[0], "high": bounds[1]}


def _limits(dtype: str) -> tuple[Any, Any]:
    if np.dtype(dtype).kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max
