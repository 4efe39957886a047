"""One sample and its members: names, rows, digest (FORMAT.md 4-6, 9). `vrl3data.encode` makes them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vrl3data import codecs, shard
from vrl3data.errors import DamagedError
from vrl3data.schema import Array, Feature, Schema
from vrl3data.units import Units

NOT_IN_DIGEST = ("split", "subsets", "psnr", "max_error", "digest", "members", "sizes", "xxh3_128", "meta_xxh3_128")
BLOCK_BYTES = 32 * 1024**2
"""Of decoded rows, held at a time by `describe`."""
SELECTING = ("episodes", "limit")
"""Options that say which samples of a source are converted and change none of them (FORMAT.md 9)."""


Body = bytes | memoryview | Path | tuple[bytes | memoryview, ...]


def body_size(body: Body) -> int:
    """Bytes of a member."""
    if isinstance(body, tuple):
        return sum(len(piece) for piece in body)
    return body.stat().st_size if isinstance(body, Path) else len(body)


@dataclass(frozen=True)
class Identity:
    """What the ids of all samples of a dataset start from: source identity, converter, content options."""

    source: str
    converter: str
    options: Mapping[str, Any]

    def sample_id(self, name: str) -> str:
        options = {key: value for key, value in self.options.items() if key not in SELECTING}
        text = shard.dumps([self.source, self.converter, options, name])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class EncodedSample:
    """All members of a sample but its key. A body is bytes, views of bytes that outlive this, or a spool file.

    A spool file belongs to the receiver. Views do not travel between processes.
    """

    meta: dict[str, Any]
    members: tuple[tuple[str, Body], ...]

    def sizes(self) -> list[int]:
        return [body_size(body) for _, body in self.members]

    @property
    def shard_bytes(self) -> int:
        """What the sample takes in a shard, headers and padding included."""
        return sum(shard.BLOCK + shard.padded(size) for size in self.sizes())

    def discard(self) -> None:
        for _, body in self.members:
            if isinstance(body, Path):
                body.unlink(missing_ok=True)


def sample_digest(meta: Mapping[str, Any], content: list[dict[str, Any]]) -> str:
    """FORMAT.md 9."""
    covered = {key: value for key, value in meta.items() if key not in NOT_IN_DIGEST}
    return hashlib.sha256(shard.dumps({"features": content, "meta": covered}).encode()).hexdigest()


def member_names(schema: Schema) -> list[str]:
    """The members of every sample of `schema`, in order, commit record last."""
    names: list[str] = []
    for feature in schema.features:
        names.extend(feature_members(feature, schema))
    return [*names, *schema.extras, shard.COMMIT_MEMBER]


def feature_members(feature: Feature, schema: Schema) -> tuple[str, ...]:
    if feature.codec_name == "text":
        return (feature.name,)
    if schema.kind == "images" and feature.name == "image":
        return ("npy",) if feature.codec_name == "raw" else (codecs.find(feature.codec).image_suffix,)
    if feature.codec_name == "raw":
        return (f"{feature.name}.npy",)
    return (f"{feature.name}.{codecs.find(feature.codec).suffix}", f"{feature.name}.offsets.npy")


def stored_members(
    feature: Feature, schema: Schema, bodies: Mapping[str, memoryview]
) -> tuple[memoryview, memoryview | None]:
    """(body, offsets) of a feature."""
    names = feature_members(feature, schema)
    return bodies[names[0]], bodies[names[1]] if len(names) > 1 else None


def promised_rows(feature: Feature, meta: Mapping[str, Any]) -> int:
    """How many rows schema and commit record promise (FORMAT.md 4)."""
    if feature.rows == "episode" or feature.name in meta["absent"].split(","):
        return 1
    if feature.clock:
        return stream_rows(meta).get(feature.clock, 0)
    return int(meta["length"]) + (int(meta["final_observation"]) if feature.rows == "state" else 0)


def stream_rows(meta: Mapping[str, Any]) -> dict[str, int]:
    """Rows of each clock of a sample. DamagedError if the commit record does not say so."""
    text = str(meta.get("streams", ""))
    if not re.fullmatch(r"([a-z0-9_]+=[0-9]{1,18}(,(?=.)|$))*", text):
        raise DamagedError(f"streams: expected clock=rows, ..., found {text[:40]!r}")
    pairs = (part.split("=") for part in filter(None, text.split(",")))
    return {clock: int(count) for clock, count in pairs}


def row_count(feature: Feature, body: memoryview, offsets: memoryview | None, meta: Mapping[str, Any]) -> int:
    """How many rows a stored feature has: by its header for raw, as promised for coded ones."""
    if feature.codec_name == "raw":
        return len(_raw(feature, body))
    count = promised_rows(feature, meta)
    if offsets is not None:
        Units.stored(feature, offsets, count, len(body))
    return count


def _raw(feature: Feature, body: memoryview) -> Array:
    """The rows of a raw feature. DamagedError if they are not of the schema's: readers address them by its row size."""
    array = shard.npy_view(body)
    row = array.shape[1:]
    fits = array.ndim == len(feature.shape) + 1 and array.dtype.name == feature.dtype
    if not fits or any(want not in (-1, got) for want, got in zip(feature.shape, row, strict=True)):
        raise DamagedError(f"expected rows {feature.dtype}{feature.shape}, found {array.dtype}{array.shape}")
    return array


def decode_rows(
    feature: Feature, body: memoryview, offsets: memoryview | None, start: int, stop: int, count: int
) -> Array:
    """Rows [start, stop) of a feature of `count` rows; a view for raw, decoded for the rest.

    DamagedError if the bytes do not fit the schema or `count`.
    """
    if feature.codec_name == "text":
        text = bytes(body)
        if not re.fullmatch(rb"-1|[0-9]{1,18}", text):
            raise DamagedError(f"expected a label in decimal digits, found {text[:20]!r}")
        return np.array([int(text)], np.int64)[start:stop]
    if feature.codec_name == "raw":
        return _raw(feature, body)[start:stop]
    if offsets is None:
        return codecs.find(feature.codec).decode(body, feature, count)[start:stop]
    units = Units.stored(feature, offsets, count, len(body))
    stop = min(stop, count)
    begin, end = units.extent(start, stop)
    return units.decode(body[begin:end], start, stop)


def bytes_of(rows: Array) -> memoryview:
    """The bytes of an array, little-endian, in C order; without a copy where it lies so in memory."""
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


class Content:
    """A feature's part of the digest, filled block by block (FORMAT.md 9)."""

    def __init__(self, feature: Feature) -> None:
        self.feature, self.hash, self.rows, self.row = feature, hashlib.sha256(), 0, feature.shape

    def add(self, rows: Array) -> None:
        """Decoded rows, in order."""
        if self.feature.lossless:
            self.hash.update(bytes_of(rows))
        self.rows += len(rows)
        self.row = rows.shape[1:]

    def add_body(self, data: bytes | memoryview) -> None:
        """Bytes of the body, in order."""
        if not self.feature.lossless:
            self.hash.update(data)

    def to_json(self) -> dict[str, Any]:
        feature, digest = self.feature, self.hash.hexdigest()
        if not feature.lossless:
            return {"name": feature.name, "codec": feature.codec, "sha256": digest}
        return {"name": feature.name, "dtype": feature.dtype, "shape": [self.rows, *self.row], "sha256": digest}


def describe(
    feature: Feature, body: memoryview, offsets: memoryview | None, count: int,
    look: Callable[[int, Array], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A stored feature's part of the digest, from its `count` rows, which are all decoded, block by block.

    `look(first row, rows)` sees every block. DamagedError if the bytes do not fit the schema or `count`.
    """
    content = Content(feature)
    content.add_body(body)
    step = max(1, BLOCK_BYTES // max(1, feature.row_bytes))
    step += -step % feature.unit_rows
    for start in range(0, max(count, 1), step):
        rows = decode_rows(feature, body, offsets, start, start + step, count)
        content.add(rows)
        if look is not None:
            look(start, rows)
    return content.to_json()
