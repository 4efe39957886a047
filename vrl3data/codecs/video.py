"""H.264 and AV1 in short closed groups, through PyAV: small, lossy, for archives and cameras above 128 pixels.

Every unit has an encoder and a decoder of its own, so its bytes depend on its rows alone and no state of a damaged
unit reaches the next (FORMAT.md 5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vrl3data.errors import ConfigError, DamagedError, MissingExtra, SchemaError
from vrl3data.schema import Array, Feature

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext
    from av.video.reformatter import VideoReformatter

UNIT_ROWS = 8
MAX_UNIT_ROWS = 256
LEAST, GREATEST = 16, 8192
"""Of height and width."""
RATE = Fraction(25)
"""Pictures a second as the encoder sees it: its rate control knows no other time."""
_NAL = re.compile(rb"\x00\x00\x00?\x01")
_NAL_SEI = 6


@dataclass(frozen=True)
class VideoCodec:
    """`h264[:CRF[:ROWS]]` and `av1[:CRF[:ROWS]]`: constant rate factor, and pictures in a closed group."""

    suffix: str
    encoder: str
    decoder: str
    pixels: str
    crf: int
    max_crf: int
    options: tuple[tuple[str, str], ...]
    image_suffix: str = ""

    def describe(self, codec: str, feature: Feature) -> Feature:
        """The codec string gets both numbers, whatever was left out."""
        match = re.fullmatch(rf"{self.suffix}(?::(\d{{1,3}}))?(?::(\d{{1,3}}))?", codec)
        crf, rows = (int(match[1] or self.crf), int(match[2] or UNIT_ROWS)) if match else (-1, -1)
        if not 0 <= crf <= self.max_crf or not 1 <= rows <= MAX_UNIT_ROWS:
            raise ConfigError(
                f"codec {codec!r}: expected {self.suffix}[:CRF[:ROWS]] with a rate factor from 0 to {self.max_crf} "
                f"(default {self.crf}) and 1 to {MAX_UNIT_ROWS} pictures in a group (default {UNIT_ROWS})"
            )
        if not feature.is_image or feature.rows == "episode":
            raise ConfigError(f"codec {codec!r} needs sequences of uint8 images of 1 or 3 channels, "
                              f"not feature {feature.name}")  # fmt: skip
        if not all(LEAST <= size <= GREATEST for size in feature.shape[:2]):
            raise ConfigError(f"codec {codec!r} takes {LEAST} to {GREATEST} pixels, "
                              f"feature {feature.name} has {feature.shape[0]} x {feature.shape[1]}")  # fmt: skip
        codec = f"{self.suffix}:{crf}:{rows}"
        return replace(feature, codec=codec, lossless=False, unit_rows=rows, encoder=self._version(codec))

    def _version(self, codec: str) -> str:
        av = _av()
        if self.encoder not in av.codecs_available:
            raise ConfigError(f"codec {codec!r}: this PyAV has no encoder {self.encoder}; that of PyPI has it")
        libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
        settings = " ".join(f"{key}={value}" for key, value in self.options)
        return (f"{codec} {self.encoder} {settings}, {self.pixels} BT.601 limited, PyAV {av.__version__}, "
                f"libavcodec {libavcodec}")  # fmt: skip

    def encode(self, rows: Array, feature: Feature) -> bytes:
        av = _av()
        # SVT-AV1 writes twenty lines to stderr for every encoder; whoever wants them sets the variable.
        os.environ.setdefault("SVT_LOG", "1")
        context: VideoCodecContext = av.CodecContext.create(self.encoder, "w")
        height, width = (size + size % self._step() for size in feature.shape[:2])
        context.width, context.height, context.pix_fmt = width, height, self.pixels
        context.framerate, context.thread_count = RATE, 1
        context.gop_size, context.max_b_frames = feature.unit_rows, 0
        context.options = {"crf": feature.codec.split(":")[1], **dict(self.options)}
        packets: list[Any] = []
        try:
            for frame in self._frames(rows, height, width):
                packets += context.encode(frame)
            packets += context.encode(None)
        except av.FFmpegError as error:
            raise SchemaError(f"{self.encoder} cannot encode pictures of shape {feature.shape}: {error}") from error
        return _without_remarks(b"".join(map(bytes, packets)), self.suffix)

    def _frames(self, rows: Array, height: int, width: int) -> Iterator[VideoFrame]:
        from av import VideoFrame

        convert = _Converter()
        for number, row in enumerate(rows):
            picture = np.broadcast_to(row, (*row.shape[:2], 3))
            if picture.shape[:2] != (height, width):
                picture = np.pad(picture, ((0, height - len(row)), (0, width - row.shape[1]), (0, 0)), "edge")
            frame = convert(VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24"), self.pixels)
            frame.pts = number
            yield frame

    def decode(self, unit: bytes | memoryview, feature: Feature, count: int) -> Array:
        av = _av()
        context: VideoCodecContext = av.CodecContext.create(self.decoder, "r")
        step = 64  # what decoders round sizes up to
        pixels = np.prod([-(-size // step) * step for size in feature.shape[:2]])
        context.thread_count = 1
        context.options = {"err_detect": "explode", "max_pixels": str(pixels)}
        rows, convert, number = np.empty((count, *feature.shape), np.uint8), _Converter(), 0
        try:
            for frame in self._decoded(context, bytes(unit)):
                if number == count:
                    raise DamagedError(f"expected {count} pictures, found more")
                rows[number] = self._pixels(convert, frame, feature)
                number += 1
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise DamagedError(f"not a readable unit of {self.suffix} video: {error}") from error
        if number != count:
            raise DamagedError(f"expected {count} pictures, found {number}")
        return rows

    def _decoded(self, context: VideoCodecContext, unit: bytes) -> Iterator[VideoFrame]:
        from av import Packet

        # The AV1 decoder takes several temporal units at once; that of H.264 wants one picture at a time.
        packets = [Packet(unit)] if self.suffix == "av1" else [*context.parse(unit), *context.parse(None)]
        for packet in [*packets, None]:
            yield from context.decode(packet)

    def _pixels(self, convert: _Converter, frame: VideoFrame, feature: Feature) -> Array:
        height, width = feature.shape[:2]
        if not (0 <= frame.height - height <= 1 and 0 <= frame.width - width <= 1):
            raise DamagedError(f"expected pictures of shape {feature.shape}, found {frame.height} x {frame.width}")
        picture = convert(frame, "rgb24").to_ndarray()[:height, :width]
        return picture if feature.shape[2] == 3 else picture[:, :, 1:2]

    def _step(self) -> int:
        return 2 if self.pixels == "yuv420p" else 1


class _Converter:
    """Between RGB and BT.601 limited range; the tables are made once for a unit."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self.reformatter: VideoReformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame, target: str) -> VideoFrame:
        from av.video.reformatter import ColorRange, Colorspace

        full, limited = ColorRange.JPEG, ColorRange.MPEG
        ranges = (limited, full) if target == "rgb24" else (full, limited)
        return self.reformatter.reformat(
            frame, format=target, src_colorspace=Colorspace.ITU601, dst_colorspace=Colorspace.ITU601,
            src_color_range=ranges[0], dst_color_range=ranges[1],
        )  # fmt: skip


def _without_remarks(unit: bytes, suffix: str) -> bytes:
    """x264 writes its settings, 700 bytes, into every unit; the schema has them once."""
    if suffix != "h264":
        return unit
    starts = [match.start() for match in _NAL.finditer(unit)]
    parts = [unit[begin:end] for begin, end in zip(starts, [*starts[1:], len(unit)], strict=True)]
    return b"".join(part for part in parts if part.lstrip(b"\0")[1] & 0x1F != _NAL_SEI)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("video needs PyAV; install it with: pip install 'vrl3data[video]'") from error
    return av


# x264's look-ahead reads memory that it has not written: with it, one unit in some hundred comes out as other bytes
# after pictures of other kinds were encoded in the same process. Without it no unit in thousands did.
H264 = VideoCodec(
    "h264", "libx264", "h264", "yuv444p", 18, 51,
    (("preset", "medium"), ("x264-params", "keyint=infinite:scenecut=0:bframes=0:mbtree=0:rc-lookahead=0:weightp=0")),
)  # fmt: skip
AV1 = VideoCodec(
    "av1", "libsvtav1", "libdav1d", "yuv420p", 20, 63,
    (("preset", "8"), ("svtav1-params", "lp=1:pred-struct=1:scd=0")),
)  # fmt: skip
