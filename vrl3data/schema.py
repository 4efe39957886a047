"""What a dataset holds: features, their schema, and episodes in memory (FORMAT.md 4).

Letters: T steps, N rows of a feature.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vrl3data.errors import FormatError, SchemaError, did_you_mean

Kind = Literal["episodes", "images"]
Array = npt.NDArray[Any]
Rows = Iterator[Array]

NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
SPLIT = re.compile(r"[a-z0-9_]+")
DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16",
          "float32", "float64")  # fmt: skip
ROWS = ("step", "state", "episode")
STREAM = re.compile(r"stream:([a-z0-9_]+)")
"""Rows of a feature that keeps a rate of its own: those of `timestamp.<clock>`."""
EXTRAS = ("annotations.json", "preview.jpg")
PREVIEW = "preview.jpg"
PICTURE_CODECS = ("raw", "jpeg", "png")
"""Of the picture of kind images, whose member is named by its type alone."""
MAX_NAME = 74
"""Of a feature: a key, a dot, the longest suffix (`.offsets.npy`) and room to spare make 100 bytes."""


@dataclass(frozen=True)
class Feature:
    """One column of a dataset. `shape` is that of one row; `rows` says how many there are (FORMAT.md 4)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    rows: str = "step"
    codec: str = "raw"
    lossless: bool = True
    unit_rows: int = 1
    encoder: str = ""
    names: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[Any, Any] | None = None
    description: str = ""
    color: str = ""
    flip: str = ""
    fit: str = ""
    intrinsics: tuple[tuple[float, ...], ...] = ()
    extrinsics: tuple[tuple[float, ...], ...] = ()
    renderer: str = ""
    scale_m: float = 0.0
    quaternion: str = ""
    representation: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise SchemaError(f"feature name {self.name!r} must be lower-case words joined by dots")
        if self.name.endswith(".offsets"):
            raise SchemaError(f"feature name {self.name!r}: names that end in .offsets are taken by the format")
        if self.dtype not in DTYPES:
            raise SchemaError(f"feature {self.name}: dtype {self.dtype!r}{did_you_mean(self.dtype, DTYPES)}")
        if self.rows not in ROWS and not STREAM.fullmatch(self.rows):
            raise FormatError(f"feature {self.name}: rows {self.rows!r} is not known to this version")
        if any(not isinstance(size, int) or size < -1 for size in self.shape):
            raise SchemaError(f"feature {self.name}: shape {self.shape} must hold whole numbers")
        if not isinstance(self.codec, str):
            raise SchemaError(f"feature {self.name}: codec {self.codec!r} is not a name")
        if not isinstance(self.unit_rows, int) or isinstance(self.unit_rows, bool) or self.unit_rows < 1:
            raise SchemaError(f"feature {self.name}: unit_rows {self.unit_rows!r} is not a number of rows")
        if len(self.name) > MAX_NAME:
            raise SchemaError(f"feature name {self.name!r} is longer than {MAX_NAME} characters")

    @property
    def codec_name(self) -> str:
        return self.codec.partition(":")[0]

    @property
    def clock(self) -> str:
        """Of a stream, the name of its clock; else empty."""
        return self.rows.partition(":")[2]

    @property
    def stepwise(self) -> bool:
        """Whether it has a row for every step."""
        return self.rows in ("step", "state")

    @property
    def row_bytes(self) -> int:
        """Of one decoded row; of a shape that varies, what is known of it."""
        return math.prod(abs(size) for size in self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_image(self) -> bool:
        """A camera: uint8 rows of height x width x channels."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[-1] in (1, 3)

    def to_json(self) -> dict[str, Any]:
        """Only what differs from the default, besides the keys that FORMAT.md wants always."""
        always = {"name", "dtype", "shape", "rows", "codec", "lossless"}
        coded = {"unit_rows", "encoder"} if self.codec_name not in ("raw", "text") else set()
        return {
            item.name: _plain(getattr(self, item.name))
            for item in fields(self)
            if item.name in always | coded or getattr(self, item.name) != item.default
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Feature:
        """Unknown keys are ignored: a later minor version may have added them."""
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{key: _frozen(value) for key, value in data.items() if key in known})
        except (TypeError, AttributeError, SchemaError) as error:
            raise FormatError(f"a feature of the schema cannot be understood: {error}") from error


@dataclass(frozen=True)
class Schema:
    """The features of a dataset, in the order of their members, and the extra members."""

    kind: Kind
    features: tuple[Feature, ...]
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise SchemaError(f"feature names are not unique: {sorted(names)}")
        for extra in self.extras:
            if extra not in EXTRAS:
                raise FormatError(f"extra member {extra!r} is not known to this version")
        for feature in self.features:
            free = self.kind == "images" and feature.name == "image"
            if -1 in feature.shape and not free:
                raise SchemaError(f"feature {feature.name}: only the picture of kind images may vary in shape")
            if self.kind == "images" and (feature.rows != "episode" or feature.name == "meta"):
                raise SchemaError(f"feature {feature.name}: kind images needs rows 'episode' and no name 'meta'")
            if free and feature.codec_name not in PICTURE_CODECS:
                raise SchemaError(
                    f"feature image: a picture of kind images is raw, jpeg or png, not {feature.codec!r}; "
                    "choose jpeg:Q or png"
                )
            picture = feature.is_image or (feature.dtype == "uint16" and len(feature.shape) == 2)
            if (feature.codec_name in ("jpeg", "h264", "av1") and not feature.is_image) or (
                feature.codec_name == "png" and not picture
            ):
                raise SchemaError(
                    f"feature {feature.name}: {feature.codec} does not hold {feature.dtype}{feature.shape}"
                )
            if feature.codec_name == "text" and not (self.kind == "images" and feature.name == "cls"):
                raise SchemaError(f"feature {feature.name}: codec text is for the label 'cls' of kind images")
        for clock in self.clocks:
            name, rows = f"timestamp.{clock}", f"stream:{clock}"
            stamps = [(f.dtype, f.shape, f.rows, f.codec) for f in self.features if f.name == name]
            if self.kind == "images" or stamps != [("int64", (), rows, "raw")]:
                raise SchemaError(
                    f"the clock {clock!r} needs a feature {name!r}: int64, one number a row, rows {rows!r}"
                )

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise SchemaError(f"no feature {name!r}{did_you_mean(name, self.names)}")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def cameras(self) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.is_image)

    @property
    def clocks(self) -> tuple[str, ...]:
        """Of the streams, sorted."""
        return tuple(sorted({feature.clock for feature in self.features} - {""}))

    def requires(self) -> list[str]:
        """What a reader must know to read this (FORMAT.md 3)."""
        coded = {f"codec:{f.codec_name}" for f in self.features if f.codec_name not in ("raw", "text")}
        return sorted(coded | ({"rows:stream"} if self.clocks else set()))

    def to_json(self) -> dict[str, Any]:
        return {"features": [feature.to_json() for feature in self.features], "extras": list(self.extras)}

    @classmethod
    def from_json(cls, kind: Kind, data: Mapping[str, Any]) -> Schema:
        try:
            features = tuple(Feature.from_json(feature) for feature in data["features"])
            return cls(kind, features, tuple(data.get("extras", ())))
        except (KeyError, TypeError, SchemaError) as error:
            raise FormatError(f"the schema cannot be understood: {type(error).__name__} {error}") from error


@dataclass(frozen=True)
class Coded:
    """A coded feature of one sample as it is stored, to be written again as it is: nothing is encoded twice.

    `body` may be a view of a mapped shard. `offsets` (uint64, units + 1) is None for the picture of kind images.
    `psnr` and `max_error` are what was measured when it was encoded; -1 if it was not. `stored`, if known, is the
    feature that it was stored as: SchemaError if the target's codec, encoder, units, dtype or row shape are others.
    """

    body: bytes | memoryview
    offsets: Array | None = None
    psnr: float = -1.0
    max_error: float = -1.0
    stored: Feature | None = None

    def check(self, feature: Feature) -> None:
        """SchemaError if this cannot be what `feature` stores."""
        if feature.codec_name in ("raw", "text"):
            raise SchemaError(f"expected rows, found a coded body; the feature is stored as {feature.codec}")
        for key in ("codec", "encoder", "unit_rows", "dtype", "shape"):
            if self.stored is not None and getattr(self.stored, key) != getattr(feature, key):
                raise SchemaError(
                    f"expected a body with {key} {getattr(feature, key)!r}, found {getattr(self.stored, key)!r}; "
                    "decode it and encode it anew"
                )


@dataclass(frozen=True)
class Episode:
    """One sample on its way into a dataset: an episode, or an image in kind `images`.

    `values` maps each feature to an array with rows first, or, so that an episode need not fit in memory,
    to an iterator of blocks of rows, or to a Coded body. For images, `image` may be the bytes of a JPEG file (codec
    `jpeg`).
    `length` is T. What the source does not say stays -1 or empty.
    """

    name: str
    values: Mapping[str, Array | Rows | Coded | bytes]
    length: int = 0
    final_observation: bool = False
    terminated: int = -1
    truncated: int = -1
    success: int = -1
    start_time_ns: int = -1
    label: int = -1
    class_name: str = ""
    task: str = ""
    origin: str = "unknown"
    source: str = ""
    source_sha256: str = ""
    split: str = "train"
    subsets: tuple[str, ...] = ()
    source_meta: Mapping[str, Any] = field(default_factory=dict)
    streams: Mapping[str, int] = field(default_factory=dict)
    """Of each clock that this episode has: how many rows its features have."""

    def row_count(self, feature: Feature) -> int:
        """How many rows `feature` has in this episode."""
        counts = {"step": self.length, "state": self.length + int(self.final_observation), "episode": 1}
        return self.streams.get(feature.clock, 0) if feature.clock else counts[feature.rows]


def check_rows(value: Array, feature: Feature) -> Array:
    """`value` as a little-endian C array if it is a block of rows of `feature`; else SchemaError."""
    array = np.asarray(value)
    if array.dtype.name != feature.dtype:
        raise SchemaError(f"expected dtype {feature.dtype}, found {array.dtype.name}")
    row = array.shape[1:]
    fits = array.ndim > 0 and len(row) == len(feature.shape)
    if not fits or any(want not in (-1, got) for want, got in zip(feature.shape, row, strict=True)):
        raise SchemaError(f"expected rows of shape {feature.shape}, found an array of shape {array.shape}")
    little = array.dtype.newbyteorder("<")
    return np.require(array.astype(little, copy=False), requirements="C")


def check(episode: Episode, schema: Schema) -> None:
    """SchemaError if the features of `episode` are not those of `schema`. Rows are checked while writing."""
    missing = sorted(set(schema.names) - set(episode.values))
    unknown = sorted(set(episode.values) - set(schema.names))
    if unknown:
        raise SchemaError(f"feature {unknown[0]!r} is not in the schema{did_you_mean(unknown[0], missing)}")
    if missing and schema.kind == "images":
        raise SchemaError(f"an image needs the features {', '.join(missing)}")
    for text in (episode.name, episode.source, episode.task, episode.class_name):
        if not text.isascii() and text != text.encode("utf-8", "replace").decode("utf-8"):
            raise SchemaError(f"the text {text!r} cannot be written as UTF-8")
    if episode.split == "all":
        raise SchemaError("split 'all' cannot be loaded by datasets; choose another name")
    if not SPLIT.fullmatch(episode.split):
        raise SchemaError(f"split {episode.split!r} must be lower-case letters, digits and underscores")
    if schema.kind == "episodes" and episode.length < 1:
        raise SchemaError("an episode needs at least one step")
    for key in ("terminated", "truncated", "success"):
        if int(getattr(episode, key)) not in (-1, 0, 1):
            raise SchemaError(f"{key}: expected 1, 0 or -1 (not known), found {getattr(episode, key)!r}")
    for feature in (schema[name] for name in episode.values if schema[name].clock):
        if episode.streams.get(feature.clock, 0) < 1:
            raise SchemaError(f"feature {feature.name}: expected the number of rows of {feature.clock!r} in `streams`")
    for word in (*episode.subsets, episode.origin):
        if "," in word or not word:
            raise SchemaError(f"subset or origin {word!r} must not be empty or hold a comma")
    if len(missing) == len(schema.names):
        raise SchemaError("the episode has no features")


def _plain(value: Any) -> Any:
    """Tuples become lists, NumPy numbers become numbers."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
