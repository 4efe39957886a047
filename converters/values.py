"""A field's data as the rows of a feature: columns, channel order, size, depth, dtype.

Letters: N rows, H height, W width, C channels, D entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.fields import Field, Loaded
from converters.mapping import FieldMap, Rule
from converters.pictures import Frames, depth_counts, resized
from vrl3data import codecs
from vrl3data.codecs.jpeg import copied
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.schema import Array, Coded, Feature, Rows

RAW_PIXELS = 128
"""Pictures up to this size are stored as they are."""


@dataclass(frozen=True)
class Look:
    """How pictures are stored. `image_size` 0: as in the source; `codec` empty: chosen by size and source."""

    image_size: int = 0
    fit: str = "squash"
    codec: str = ""


def feature_of(rule: Rule, known: Mapping[str, Field], look: Look) -> Feature:
    """The feature that a rule makes. ConfigError if the rule does not fit the source's field."""
    with locate(feature=rule.name):
        given = [known[path] for path in rule.source]
        first = given[0]
        rows = rule.rows or first.rows
        common = {key: getattr(rule, key) for key in ("unit", "description", "quaternion", "representation")}
        if rule.bounds and len(rule.bounds) != 2:
            raise ConfigError(f"bounds: expected [low, high], found {list(rule.bounds)}")
        common["bounds"] = rule.bounds or None
        if is_picture(rule, first):
            return _picture(rule, first, rows, look, common)
        if rule.name.startswith("obs.depth."):
            return _depth(rule, first, rows, look, common)
        shape = _joined_shape(rule, given)
        dtype = rule.dtype or str(np.result_type(*(field.dtype for field in given)))
        for field in given:
            if not np.can_cast(field.dtype, dtype, "same_kind"):
                raise ConfigError(f"{field.path}: {field.dtype} cannot become {dtype} without loss of meaning")
        names = rule.names or (first.names if len(given) == 1 and not rule.columns else ())
        if names and (not shape or len(names) != shape[-1]):
            raise ConfigError(f"expected {shape[-1] if shape else 0} names, found {len(names)}: {', '.join(names)}")
        return Feature(rule.name, dtype, shape, rows, names=names, **common)


def is_picture(rule: Rule, field: Field) -> bool:
    """Whether a rule makes a camera: by its name, not by the shape of what might be a small matrix."""
    return rule.name.startswith("obs.image.") and field.dtype == "uint8" and len(field.shape) in (2, 3)


def values(map_: FieldMap, loaded: Loaded, schema: Mapping[str, Feature], look: Look) -> dict[str, Any]:
    """For each rule whose fields were loaded: an array, blocks of rows, or coded pictures."""
    found: dict[str, Array | Rows | Coded] = {}
    for rule in map_.rules:
        given = [loaded.arrays[path] for path in rule.source if path in loaded.arrays]
        if len(given) == len(rule.source):
            found[rule.name] = _value(rule, given, schema[rule.name], look)
    return found


def _value(rule: Rule, given: list[Any], feature: Feature, look: Look) -> Array | Rows | Coded:
    first = given[0]
    if isinstance(first, Frames):
        if feature.codec == "jpeg":
            with locate(feature=rule.name):
                return first.coded()
        first = first.rows()
    if len(given) == 1:
        if isinstance(first, np.ndarray) and not feature.is_image:
            return _rows(rule, first, feature, look)
        blocks = iter([first]) if isinstance(first, np.ndarray) else first
        return (_rows(rule, block, feature, look) for block in blocks)
    arrays = [value if isinstance(value, np.ndarray) else np.concatenate(list(value)) for value in given]
    if len({len(array) for array in arrays}) != 1:
        with locate(feature=rule.name):
            raise SourceError(f"fields of different lengths cannot be joined: {[len(array) for array in arrays]}")
    joined = np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    return _rows(rule, joined, feature, look)


def _rows(rule: Rule, rows: Array, feature: Feature, look: Look) -> Array:
    """One block of a source's rows as rows of the feature."""
    if feature.is_image and rule.name.startswith("obs.image."):
        rows_NHWC = np.moveaxis(rows, 1, -1) if rule.layout == "chw" and rows.ndim == 4 else rows
        rows_NHWC = rows_NHWC[..., None] if rows_NHWC.ndim == 3 else rows_NHWC
        rows_NHWC = rows_NHWC[..., ::-1] if rule.color == "bgr" else rows_NHWC
        return resized(rows_NHWC, look.image_size, look.fit) if look.image_size else np.ascontiguousarray(rows_NHWC)
    if rule.name.startswith("obs.depth.") and feature.dtype == "uint16":
        rows_NHW = rows[..., 0] if rows.ndim == 4 else rows
        counts = rows_NHW if rows_NHW.dtype == np.uint16 else depth_counts(rows_NHW, feature.scale_m)
        return resized(counts, look.image_size, look.fit) if look.image_size else counts
    if rule.columns:
        rows = rows.reshape(len(rows), -1)[:, list(rule.columns)]
    return _cast(rule, rows, np.dtype(feature.dtype))


def _cast(rule: Rule, rows: Array, dtype: np.dtype) -> Array:
    """Of another dtype. SourceError for whole numbers that do not fit, and for floats that would become infinite."""
    if np.can_cast(rows.dtype, dtype, "safe"):
        return rows.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        found = rows.astype(dtype)
    lost = found != rows if dtype.kind in "iu" else np.isinf(found) & ~np.isinf(rows)
    if lost.any():
        with locate(feature=rule.name):
            raise SourceError(f"{rows[lost].flat[0]} does not fit {dtype}, which the mapping asks for")
    return found


def _joined_shape(rule: Rule, given: list[Field]) -> tuple[int, ...]:
    if len(given) == 1 and not rule.columns:
        return given[0].shape
    width = sum(int(np.prod(field.shape, dtype=np.int64)) for field in given)
    if any(not -width <= column < width for column in rule.columns):
        raise ConfigError(f"columns: expected 0 to {width - 1}, found {list(rule.columns)}")
    return (len(rule.columns) or width,)


def _picture(rule: Rule, field: Field, rows: str, look: Look, common: dict[str, Any]) -> Feature:
    shape = field.shape if len(field.shape) == 3 else (*field.shape, 1)
    if rule.layout == "chw" and len(field.shape) == 3:
        shape = (*shape[1:], shape[0])
    if shape[2] not in (1, 3):
        raise ConfigError(
            f"expected pictures of 1 or 3 channels, found rows of shape {field.shape}; try layout = 'chw'"
        )
    if look.image_size:
        shape = (look.image_size, look.image_size, shape[2])
    untouched = field.jpeg and not look.image_size and rule.color != "bgr"
    size = max(shape[:2])
    chosen = "raw" if size <= RAW_PIXELS else "jpeg" if untouched else "jpeg:95" if field.lossy else "dzst"
    codec = look.codec or chosen
    if codec == "jpeg" and not untouched:
        raise ConfigError(
            "codec jpeg copies the source's JPEG files, but here there are none or they are changed: use jpeg:95"
        )
    color = "gray" if shape[2] == 1 else "rgb"
    fit = look.fit if look.image_size else ""
    feature = Feature(rule.name, "uint8", shape, rows, color=color, flip=rule.flip or "none", fit=fit, **common)
    return copied(feature) if codec == "jpeg" else codecs.describe(feature, codec)


def _depth(rule: Rule, field: Field, rows: str, look: Look, common: dict[str, Any]) -> Feature:
    shape = field.shape[:2] if len(field.shape) == 3 and field.shape[2] == 1 else field.shape
    if len(shape) != 2:
        raise ConfigError(f"expected depth rows of height x width, found {field.shape}")
    if field.dtype != "uint16" and not rule.scale_m:
        raise ConfigError(
            f"depth of {field.dtype}: say scale_m, metres per stored count (0.001 is usual), in the mapping"
        )
    shape = (look.image_size, look.image_size) if look.image_size else shape
    feature = Feature(
        rule.name, "uint16", shape, rows, scale_m=rule.scale_m, fit=look.fit if look.image_size else "", **common
    )
    return codecs.describe(feature, "raw" if max(shape) <= RAW_PIXELS else "png")
