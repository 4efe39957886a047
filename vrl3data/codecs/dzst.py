"""Differences of consecutive rows in zstd frames: lossless, for frames and 16-bit depth (FORMAT.md 5)."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import zstandard

from vrl3data.errors import ConfigError, DamagedError
from vrl3data.schema import Array, Feature

LEVEL = 3
"""Level 9 takes four times the time of 3 for 5 % of the bytes."""
UNIT_ROWS = 32


class _Contexts(threading.local):
    """A zstd context costs more than a frame; it is used by one thread at a time."""

    def __init__(self) -> None:
        self.packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        self.unpacker = zstandard.ZstdDecompressor()


class DzstCodec:
    suffix = "dzst"
    image_suffix = ""

    def __init__(self) -> None:
        self.contexts = _Contexts()

    def describe(self, codec: str, feature: Feature) -> Feature:
        fits = feature.dtype in ("uint8", "uint16") and len(feature.shape) in (2, 3) and min(feature.shape) > 0
        if codec != "dzst" or not fits:
            raise ConfigError(
                f"codec {codec!r} needs uint8 or uint16 rows of two or three dimensions, not feature {feature.name}; "
                "it takes no options"
            )
        encoder = f"dzst level {LEVEL}, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
        return replace(feature, codec=codec, lossless=True, unit_rows=UNIT_ROWS, encoder=encoder)

    def encode(self, rows: Array, feature: Feature) -> bytes:
        differences = np.array(rows, order="C")
        np.subtract(rows[1:], rows[:-1], out=differences[1:])
        return self.contexts.packer.compress(differences.data)

    def decode(self, unit: bytes | memoryview, feature: Feature, count: int) -> Array:
        size = count * feature.row_bytes
        try:
            promised = zstandard.get_frame_parameters(unit).content_size
            if promised != size:
                raise DamagedError(f"expected {count} rows, {size} bytes, found a zstd frame of {promised}")
            content = self.contexts.unpacker.decompress(unit, allow_extra_data=False)
        except (zstandard.ZstdError, ValueError, MemoryError) as error:
            raise DamagedError(f"not a readable zstd frame: {error}") from error
        dtype = np.dtype(feature.dtype).newbyteorder("<")
        differences = np.frombuffer(content, dtype).reshape(count, *feature.shape)
        rows = np.empty_like(differences)
        rows[0] = differences[0]
        for row in range(1, count):  # three times as fast as np.add.accumulate along the first axis
            np.add(rows[row - 1], differences[row], out=rows[row])
        return rows


CODEC = DzstCodec()
