"""What only source_meta says of a dataset that came from Minari: its spaces, and observations that are text.

Letters: N rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vrl3data.dataset import Dataset
from vrl3data.schema import Feature

TOPS = ("observations", "actions")
LIMITS = ("low", "high")


@dataclass
class Told:
    """What all episodes say alike."""

    spaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path in an episode -> the space it had in Minari."""
    texts: tuple[str, ...] = ()
    """Paths of observations and actions that are text, and are known for every row."""

    def space(self, path: str, feature: Feature) -> dict[str, Any] | None:
        """That of an array, if it is still of this shape and dtype."""
        found = self.spaces.get(path)
        if found is None or _form(found) != (feature.dtype, feature.shape):
            return None
        return {key: _filled(value, feature) if key in LIMITS else value for key, value in found.items()}


def listen(dataset: Dataset) -> Told:
    """One pass over the commit records."""
    stated: set[str] = set()
    texts: list[str] = []
    for number, item in enumerate(dataset):
        said = item.source_meta
        about = said.get("minari")
        spaces = about.get("spaces") if isinstance(about, dict) else None
        stated.add(json.dumps(spaces if isinstance(spaces, dict) else {}, sort_keys=True))
        here = [path for path in said if path.partition("/")[0] in TOPS and "/" in path and each_row(said[path], 1)]
        texts = here if number == 0 else [path for path in texts if path in here]
    if len(stated) != 1:
        return Told()
    spaces = {path: space for path, space in json.loads(stated.pop()).items() if isinstance(space, dict)}
    return Told(spaces, tuple(path for path in texts if spaces.get(path, {}).get("type") == "Text"))


def each_row(value: Any, count: int) -> list[str]:
    """The text of each row, from one text for all or [[first row, text], ...]; nothing if it is something else."""
    changes = [[0, value]] if isinstance(value, str) else value
    if not isinstance(changes, list) or not changes:
        return []
    if not all(isinstance(pair, list) and list(map(type, pair)) == [int, str] for pair in changes):
        return []
    starts = [row for row, _ in changes]
    if starts[0] != 0 or starts != sorted(set(starts)):
        return []
    numbers_N = np.searchsorted(starts, np.arange(count), side="right") - 1
    return [changes[number][1] for number in numbers_N]


def _form(space: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of the rows that a space describes; of those that are not known, what no feature has."""
    try:
        if space["type"] == "MultiBinary":
            return "int8", tuple(np.atleast_1d(space["n"]).tolist())
        if space["type"] == "MultiDiscrete":
            return str(space["dtype"]), np.shape(space["nvec"])
        return str(space["dtype"]), tuple(space["shape"])
    except (KeyError, TypeError, ValueError):
        return "", ()


def _filled(value: Any, feature: Feature) -> list[Any]:
    """Bounds as Minari writes them: a number for each entry. What JSON has no number for was kept as text."""
    numbers = np.broadcast_to(np.asarray(value, np.float64), feature.shape)
    found: list[Any] = numbers.astype(feature.dtype).tolist()
    return found
