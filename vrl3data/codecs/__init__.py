"""Image codecs. A codec turns one unit of rows into bytes and back (FORMAT.md 5); `vrl3data.units` cuts the units.

A new codec is one file with the functions `describe`, `encode` and `decode`, and one line in `CODECS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from vrl3data.errors import ConfigError, FormatError, did_you_mean
from vrl3data.schema import Array, Feature

CODECS = {
    "jpeg": "vrl3data.codecs.jpeg:CODEC",
    "png": "vrl3data.codecs.png:CODEC",
    "dzst": "vrl3data.codecs.dzst:CODEC",
    "h264": "vrl3data.codecs.video:H264",
    "av1": "vrl3data.codecs.video:AV1",
}


class Codec(Protocol):
    """One unit = `feature.unit_rows` rows; the last unit of a body may have fewer."""

    suffix: str
    """Of the body with many units."""
    image_suffix: str
    """Of a single picture in kind `images`; empty if the codec is not for them."""

    def describe(self, codec: str, feature: Feature) -> Feature:
        """`feature` with codec, encoder, unit_rows and lossless filled in; ConfigError if it cannot be coded so."""

    def encode(self, rows: Array, feature: Feature) -> bytes:
        """At most `unit_rows` rows -> one unit."""

    def decode(self, unit: bytes | memoryview, feature: Feature, count: int) -> Array:
        """One unit -> its `count` rows; DamagedError if it is not one, before what it promises is allocated."""


def find(codec: str) -> Codec:
    """The codec of `jpeg:95`; FormatError names one that this version does not have."""
    name = codec.partition(":")[0]
    if name not in CODECS:
        raise FormatError(f"codec {name!r} is not known to this version{did_you_mean(name, ['raw', *CODECS])}")
    module, attribute = CODECS[name].split(":")
    return cast(Codec, getattr(import_module(module), attribute))


def describe(feature: Feature, codec: str) -> Feature:
    """`feature` as it is stored with `codec`: the form that goes into a schema."""
    if codec == "raw":
        return feature
    if codec.partition(":")[0] not in CODECS:
        raise ConfigError(f"unknown codec {codec!r}{did_you_mean(codec, ['raw', *CODECS])}")
    return find(codec).describe(codec, feature)
