"""Features of a dataset as columns of a LeRobot set.

Letters: T steps, D entries of a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vrl3data.schema import Array, Feature

FIXED = {"obs.proprio": "observation.state", "obs.state": "observation.environment_state", "reward": "next.reward"}
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that every set has, in this order; we make them."""
OWN_TYPES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
             "task_index": "int64"}  # fmt: skip
ENDS = {"terminated": "next.done", "truncated": "next.truncated", "success": "next.success"}
"""What a commit record says of an episode's end -> the column that says it of each step."""
MAX_DIMENSIONS = 5
_ARROW = {"bool": pa.bool_(), "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


@dataclass(frozen=True)
class Column:
    """One feature of the set. `dtype` is a number's, `bool`, `image` or `video`."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    feature: Feature | None = None
    """Where it comes from; None for what we make."""
    ending: str = ""
    """The word of the commit record that it says."""

    @property
    def stored(self) -> bool:
        return self.dtype != "video"

    @property
    def picture(self) -> bool:
        return self.dtype in ("image", "video")

    def declared(self, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """Its entry in info.json."""
        names: Any = None
        if self.picture:
            names = ["height", "width", "channels"]
        elif self.feature is not None and len(self.feature.names) == self.shape[-1] and len(self.shape) == 1:
            names = list(self.feature.names)
        entry: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "names": names}
        if self.feature is not None and self.feature.scale_m:
            facts = {**(facts or {}), "is_depth_map": True, "scale_m": self.feature.scale_m}
        return {**entry, "info": facts} if facts else entry

    def arrow(self) -> pa.DataType:
        if self.dtype == "image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kind = _ARROW.get(self.dtype) or getattr(pa, self.dtype)()
        if self.shape == (1,):
            return kind
        if len(self.shape) == 1:
            return pa.list_(kind, self.shape[0])
        for _ in self.shape:
            kind = pa.list_(kind)
        return kind

    def hub(self) -> dict[str, Any]:
        """As `datasets` describes it in a file's metadata."""
        if self.dtype == "image":
            return {"_type": "Image"}
        value = {"dtype": self.dtype, "_type": "Value"}
        if self.shape == (1,):
            return value
        if len(self.shape) == 1:
            return {"feature": value, "length": self.shape[0], "_type": "List"}
        return {"shape": list(self.shape), "dtype": self.dtype, "_type": f"Array{len(self.shape)}D"}

    def array(self, rows: Array) -> pa.Array:
        """Rows of numbers as a column."""
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1), _ARROW.get(self.dtype) or getattr(pa, self.dtype)())
        if self.shape == (1,):
            return flat
        if len(self.shape) == 1:
            return pa.FixedSizeListArray.from_arrays(flat, self.shape[0])
        for size in reversed(self.shape):
            ends = np.arange(0, len(flat) + 1, size, dtype=np.int32)
            flat = pa.ListArray.from_arrays(ends, flat)
        return flat


def key_of(feature: Feature) -> str:
    """`obs.image.top` -> `observation.images.top`, and so on."""
    if feature.name in FIXED:
        return FIXED[feature.name]
    if feature.name.startswith("obs.image."):
        return f"observation.images.{feature.name[len('obs.image.') :]}"
    if feature.name.startswith("obs."):
        return f"observation.{feature.name[len('obs.') :]}"
    return feature.name


def columns_of(features: Iterable[Feature], video: bool, fits: Any) -> tuple[list[Column], list[str]]:
    """(columns, what cannot be one and why). `fits` says whether a camera can be encoded as video."""
    found: list[Column] = []
    dropped: list[str] = []
    for feature in features:
        key = key_of(feature)
        if feature.name == "timestamp":
            continue
        if feature.clock:
            dropped.append(f"{feature.name}: a stream with its own clock ({feature.clock}); LeRobot has one rate")
        elif feature.rows == "episode":
            dropped.append(f"{feature.name}: one value for a whole episode")
        elif key in (*OWN, *(column.key for column in found)):
            dropped.append(f"{feature.name}: the name {key} is taken by the layout")
        elif 0 in feature.shape or len(feature.shape) > MAX_DIMENSIONS:
            dropped.append(f"{feature.name}: rows of shape {list(feature.shape)}")
        elif feature.is_image and feature.name.startswith("obs.image."):
            shape = (*feature.shape[:2], 3)
            found.append(Column(key, "video" if video and fits(feature) else "image", shape, feature))
        elif "image" in key:
            dropped.append(f"{feature.name}: LeRobot takes names with 'image' for pictures of cameras")
        else:
            found.append(Column(key, feature.dtype, feature.shape or (1,), feature))
    return found, dropped


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """Of the data files."""
    stored = [column for column in columns if column.stored]
    described = {"info": {"features": {column.key: column.hub() for column in stored}}}
    fields = [pa.field(column.key, column.arrow()) for column in stored]
    return pa.schema(fields, {b"huggingface": json.dumps(described).encode()})


def tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet as pandas writes a frame whose index is the text."""
    entry = {"metadata": None, "pandas_type": "unicode", "numpy_type": "object"}
    described = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, **entry, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
             "metadata": None},
            {"name": "task", "field_name": "task", **entry},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }  # fmt: skip
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {b"pandas": json.dumps(described).encode()})
    return pa.table([pa.array(range(len(tasks)), pa.int64()), pa.array(tasks, pa.string())], schema=schema)
