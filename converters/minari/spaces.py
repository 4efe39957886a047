"""Spaces as Minari writes them in JSON: the arrays that a nested observation or action is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrl3data.errors import SourceError
from vrl3data.schema import DTYPES, Array

KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Text", "Dict", "Tuple")
SMALLEST_PICTURE = 32
"""Minari takes smaller pictures for grids of codes."""
MANY = 64
"""Entries up to which bounds are kept one by one."""
DEEPEST = 16
LONGEST = 4096
"""Characters of a space that is kept as it is."""


@dataclass(frozen=True)
class Leaf:
    """One array of a space. `path` is as in an HDF5 file (`observations/arm/_index_0`)."""

    path: str
    parts: tuple[str, ...]
    """The same for Arrow columns, where the entries of tuples are named 0, 1, ..."""
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    bounds: tuple[Any, ...] = ()
    """(low, high) where both are finite."""
    picture: bool = False
    """Minari stores it as JPEG files, unless it was told not to."""
    space: str = ""
    """The space as JSON, where kind, dtype, shape and bounds do not say all of it."""


def leaves(text: object, path: str) -> tuple[Leaf, ...]:
    """The arrays of a space given as JSON text. SourceError if it is not one that Minari writes."""
    try:
        space = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise SourceError(f"the space of {path} is not JSON: {error}") from error
    return tuple(_leaves(space, path, (path,)))


def _leaves(space: Any, path: str, parts: tuple[str, ...]) -> Iterator[Leaf]:
    kind = space.get("type") if isinstance(space, dict) else None
    if kind not in KINDS or len(parts) > DEEPEST:
        raise SourceError(f"{path}: expected a space ({', '.join(KINDS)}), found {str(space)[:80]}")
    try:
        if kind == "Dict":
            for key, inner in sorted(space["subspaces"].items()):
                yield from _leaves(inner, f"{path}/{key}", (*parts, key))
        elif kind == "Tuple":
            for number, inner in enumerate(space["subspaces"]):
                yield from _leaves(inner, f"{path}/_index_{number}", (*parts, str(number)))
        else:
            yield _leaf(space, kind, path, parts)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__} {error}".splitlines()[0]
        raise SourceError(f"{path}: the space {kind} cannot be understood: {what}") from error


def _leaf(space: dict[str, Any], kind: str, path: str, parts: tuple[str, ...]) -> Leaf:
    if kind == "Text":
        return Leaf(path, parts, kind, space=_compact(space))
    if kind == "Discrete":
        start, count = int(space.get("start", 0)), int(space["n"])
        return Leaf(path, parts, kind, "int64", (), (start, start + count - 1))
    if kind == "MultiBinary":
        sizes = np.atleast_1d(np.asarray(space["n"], np.int64))
        return Leaf(path, parts, kind, "int8", tuple(sizes.tolist()), (0, 1), space=_compact(space))
    if kind == "MultiDiscrete":
        sizes = np.asarray(space["nvec"], np.int64)
        low = np.broadcast_to(np.asarray(space.get("start", 0), np.int64), sizes.shape)
        bounds = _bounds(low, low + sizes - 1)
        return Leaf(path, parts, kind, _dtype(space), sizes.shape, bounds, space=_compact(space))
    dtype, shape = _dtype(space), tuple(map(int, space["shape"]))
    low, high = np.asarray(space["low"], float), np.asarray(space["high"], float)
    is_picture = (
        dtype == "uint8"
        and len(shape) in (2, 3)
        and min(shape[:2]) >= SMALLEST_PICTURE
        and bool((low == 0).all() and (high == 255).all())
    )
    bounds = () if is_picture else _bounds(low, high)
    free = bool((low == -np.inf).all() and (high == np.inf).all())
    said = "" if is_picture or bounds or free else _compact(space)
    return Leaf(path, parts, kind, dtype, shape, bounds, is_picture, said)


def _dtype(space: dict[str, Any]) -> str:
    dtype = str(space["dtype"])
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return dtype


def _bounds(low: Array, high: Array) -> tuple[Any, ...]:
    """As two numbers where all entries agree, as two lists for short vectors, else not kept."""
    if not low.size or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return ()
    if (low == low.flat[0]).all() and (high == high.flat[0]).all():
        return low.flat[0].item(), high.flat[0].item()
    return (tuple(low.tolist()), tuple(high.tolist())) if low.ndim == 1 and low.size <= MANY else ()


def _compact(space: dict[str, Any]) -> str:
    """Lists of one number all over as that number; nothing if what is left is too long to be kept."""
    short = dict(space)
    for key in set(short) & {"low", "high"}:
        values = np.asarray(short[key], float)
        if values.size and (values == values.flat[0]).all():
            short[key] = values.flat[0].item()
    text = json.dumps(short)
    return text if len(text) <= LONGEST else ""
