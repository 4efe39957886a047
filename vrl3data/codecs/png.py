"""PNG, one file per row: lossless, for uint8 images and 16-bit depth."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow_version

from vrl3data.codecs.jpeg import decode_picture, opened
from vrl3data.errors import ConfigError, DamagedError
from vrl3data.schema import Array, Feature

# Level 6 takes twice the time of 1 for a tenth of the bytes; frames are written once and copied often.
LEVEL = 6
DEPTH_MODES = ("I;16", "I")
"""Of 16-bit grey: versions of Pillow differ."""


class PngCodec:
    suffix = "pngs"
    image_suffix = "png"

    def describe(self, codec: str, feature: Feature) -> Feature:
        depth = feature.dtype == "uint16" and len(feature.shape) == 2
        if codec != "png":
            raise ConfigError(f"codec {codec!r}: png takes no options")
        if not (feature.is_image or depth):
            raise ConfigError(f"codec {codec!r} needs uint8 images or uint16 depth, not feature {feature.name}")
        encoder = f"png level {LEVEL}, Pillow {pillow_version}, zlib {features.version('zlib')}"
        return replace(feature, codec=codec, lossless=True, unit_rows=1, encoder=encoder)

    def encode(self, rows: Array, feature: Feature) -> bytes:
        image = rows[0, :, :, 0] if rows.ndim == 4 and rows.shape[-1] == 1 else rows[0]
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG", compress_level=LEVEL)
        return out.getvalue()

    def decode(self, unit: bytes | memoryview, feature: Feature, count: int) -> Array:
        if feature.dtype == "uint8":
            return decode_picture(unit, "PNG", feature, count)
        with opened(unit, "PNG", feature, count) as image:
            if image.mode not in DEPTH_MODES:
                raise DamagedError(f"expected a PNG image of 16-bit grey, found mode {image.mode}")
            return np.asarray(image, dtype=np.uint16)[None]


CODEC = PngCodec()
