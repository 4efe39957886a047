"""camera_info of robomimic: the pinhole model and the pose of each camera, where all demos say the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vrl3data.schema import Feature

Matrix = tuple[tuple[float, ...], ...]
SHAPES = {"intrinsics": (3, 3), "extrinsics": (4, 4)}


def collect(known: dict[str, Any], text: object) -> None:
    """Add what one demo says. A camera whose numbers differ between demos has none for the dataset."""
    try:
        said = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return
    for camera, facts in said.items() if isinstance(said, dict) else ():
        if isinstance(facts, dict):
            for key in SHAPES:
                if key in facts:
                    place = f"{camera}/{key}"
                    known[place] = facts[key] if known.get(place, facts[key]) == facts[key] else None


def told(feature: Feature, source: str, known: Mapping[str, Any]) -> Feature:
    """`feature` with the numbers of the camera that `source` is a field of."""
    camera = source.rpartition("/")[2].removesuffix("_image").removesuffix("_depth")
    intrinsics, extrinsics = (_matrix(known.get(f"{camera}/{key}"), shape) for key, shape in SHAPES.items())
    return replace(feature, intrinsics=intrinsics, extrinsics=extrinsics)


def _matrix(value: Any, shape: tuple[int, int]) -> Matrix:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return ()
    fits = array.shape == shape and bool(np.isfinite(array).all())
    return tuple(tuple(float(item) for item in row) for row in array) if fits else ()
