"""Baseline JPEG, one file per row. `jpeg:95` encodes; plain `jpeg` holds files copied as they came."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from vrl3data.errors import ConfigError, DamagedError, SchemaError
from vrl3data.schema import Array, Feature

# Chroma at full resolution: on small frames 4:2:0 costs 6 dB for a quarter of the bytes.
SUBSAMPLING = "4:4:4"
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError,
              struct.error, zlib.error, Image.DecompressionBombError,
              Image.DecompressionBombWarning)  # fmt: skip
"""What Pillow raises for broken files, its parsers of segments included."""


class JpegCodec:
    suffix = "mjpg"
    image_suffix = "jpg"

    def describe(self, codec: str, feature: Feature) -> Feature:
        if not feature.is_image:
            raise ConfigError(f"codec {codec!r} needs uint8 images of 1 or 3 channels, not feature {feature.name}")
        if codec == "jpeg":
            if feature.rows != "episode":
                raise ConfigError("codec 'jpeg' holds JPEG files as they came; to encode, say jpeg:Q with a quality Q")
            return copied(feature)
        quality = codec.partition(":")[2]
        if not quality.isdigit() or not 1 <= int(quality) <= 100:
            raise ConfigError(f"codec {codec!r}: expected jpeg:Q with a quality Q from 1 to 100")
        library = features.version("libjpeg_turbo") or features.version("jpg")
        encoder = f"{codec} {SUBSAMPLING}, Pillow {pillow_version}, libjpeg-turbo {library}"
        return replace(feature, codec=codec, lossless=False, unit_rows=1, encoder=encoder)

    def encode(self, rows: Array, feature: Feature) -> bytes:
        if feature.codec == "jpeg":
            raise SchemaError("codec 'jpeg' holds JPEG files as they came; to encode, say jpeg:Q with a quality Q")
        image = rows[0, :, :, 0] if rows.shape[-1] == 1 else rows[0]
        out = io.BytesIO()
        quality = int(feature.codec.partition(":")[2])
        Image.fromarray(image).save(out, "JPEG", quality=quality, subsampling=SUBSAMPLING)
        return out.getvalue()

    def decode(self, unit: bytes | memoryview, feature: Feature, count: int) -> Array:
        return decode_picture(unit, "JPEG", feature, count)


def copied(feature: Feature) -> Feature:
    """`feature` as it is stored when its rows are JPEG files that a source has."""
    return replace(feature, codec="jpeg", lossless=False, unit_rows=1, encoder="copied from the source")


def decode_picture(unit: bytes | memoryview, kind: str, feature: Feature, count: int) -> Array:
    """One image file -> an array of shape (1, height, width, channels)."""
    mode = "L" if feature.shape[-1] == 1 else "RGB"
    with opened(unit, kind, feature, count) as image:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(1, *pixels.shape[:2], feature.shape[-1])


@contextmanager
def opened(unit: bytes | memoryview, kind: str, feature: Feature, count: int) -> Iterator[Image.Image]:
    """The picture in a unit, of the size that the schema promises; DamagedError for all that Pillow finds wrong."""
    if count != 1:
        raise DamagedError(f"expected units of 1 row for {feature.codec}, found {count}")
    try:
        with Image.open(io.BytesIO(unit), formats=[kind]) as image:
            check_size(image.size, feature)
            yield image
    except UnidentifiedImageError as error:
        raise DamagedError(f"not a readable {kind} image: {len(unit)} bytes of something else") from error
    except UNREADABLE as error:
        raise DamagedError(f"not a readable {kind} image: {error}") from error


def check_size(size: tuple[int, int], feature: Feature) -> None:
    """Before decoding: a small file may promise a huge picture. `size` is (width, height)."""
    if any(want not in (-1, got) for want, got in zip(feature.shape[:2], size[::-1], strict=True)):
        raise DamagedError(f"expected an image of shape {feature.shape}, found {size[1]} x {size[0]} pixels")


CODEC = JpegCodec()
