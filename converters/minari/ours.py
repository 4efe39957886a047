"""What our own export writes into a Minari dataset besides what Minari knows, so that it comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from converters.fields import Field, Loaded
from converters.mapping import Rule
from vrl3data.errors import FormatError
from vrl3data.schema import Feature

KEY = "vrl3data"
"""In metadata.json, and as an attribute of an episode."""
ATTRIBUTE = "@"
"""Path of a feature with one row per episode, which is an attribute of the episode."""
ENDS = {"terminated": int, "truncated": int, "success": int, "start_time_ns": int, "task": str, "origin": str,
        "split": str}  # fmt: skip


def features(said: Mapping[str, Any]) -> dict[str, Feature]:
    """Path in an episode -> the feature it was. What cannot be understood is not used: then it is guessed."""
    ours = said.get(KEY)
    stated = ours.get("features") if isinstance(ours, dict) else None
    found: dict[str, Feature] = {}
    for path, facts in (stated if isinstance(stated, dict) else {}).items():
        try:
            found[str(path)] = Feature.from_json({"dtype": "uint8", "shape": [], **facts})
        except (FormatError, TypeError):
            continue
    return found


def rule(path: str, feature: Feature) -> Rule:
    return Rule(
        feature.name,
        (path,),
        names=tuple(map(str, feature.names)),
        unit=feature.unit,
        bounds=feature.bounds or (),
        description=feature.description,
        flip=feature.flip,
        scale_m=feature.scale_m,
        quaternion=feature.quaternion,
        representation=feature.representation,
    )


def restore(
    loaded: Loaded, text: object, length: int, known: Mapping[str, Feature], fields: Mapping[str, Field]
) -> None:
    """How the episode ended and what its source said, from the attribute that the export wrote."""
    try:
        ours = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        ours = {}
    if not isinstance(ours, dict):
        return
    whole = ours.get("steps") == length
    for key, kind in ENDS.items():
        value = ours.get(key)
        if isinstance(value, kind) and (whole or key not in ("terminated", "truncated")):
            setattr(loaded, key, value)
    subsets = ours.get("subsets")
    loaded.subsets = tuple(filter(None, subsets.split(","))) if isinstance(subsets, str) else ()
    absent = ours.get("absent")
    for path in fields:
        if isinstance(absent, list) and path in known and known[path].name in absent:
            loaded.arrays.pop(path, None)
    said = ours.get("source_meta")
    loaded.source_meta |= said if isinstance(said, dict) else {}
