"""Videos of a LeRobot set: each episode encoded alone, its quality measured, then joined to the file of its camera."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from converters.export.lerobot.statistics import Pixels
from converters.lerobot.videos import VideoReader
from vrl3data.errors import ConfigError, MissingExtra, SchemaError
from vrl3data.schema import Array, Feature
from vrl3data.stored import StoredSample

GROUP = 2
"""Pictures from key frame to key frame: LeRobot's choice, for random access."""
BLOCK_BYTES = 32 * 1024**2
LEAST = 64
"""Pixels: smaller pictures are stored as they are."""


@dataclass(frozen=True)
class VideoSettings:
    """`codec` is av1 or h264, `crf` its constant rate factor, `rate` pictures per second."""

    codec: str
    crf: int
    rate: int
    max_bytes: int
    chunks: int

    @property
    def encoder(self) -> str:
        return {"av1": "libsvtav1", "h264": "libx264"}[self.codec]

    @property
    def options(self) -> dict[str, str]:
        # One thread and no look-ahead: the bytes depend on the pictures alone.
        plain = "scenecut=0:bframes=0:mbtree=0:rc-lookahead=0:weightp=0"
        own = {
            "av1": {"preset": "10", "svtav1-params": "lp=1:pred-struct=1:scd=0"},
            "h264": {"preset": "medium", "x264-params": plain},
        }
        return {"crf": str(self.crf), "g": str(GROUP), **own[self.codec]}


def check_codec(codec: str) -> None:
    """ConfigError or MissingExtra before anything is written."""
    if codec not in ("av1", "h264"):
        raise ConfigError(f"codec: expected av1 or h264, found {codec!r}")
    try:
        import av
    except ImportError as error:
        raise MissingExtra(
            "videos need PyAV: pip install 'vrl3data[video]'; without it, export images: video=False"
        ) from error
    encoder = VideoSettings(codec, 0, 1, 1, 1).encoder
    if encoder not in av.codecs_available:
        raise ConfigError(f"codec {codec!r}: this PyAV has no encoder {encoder}; that of PyPI has it")


def fits(feature: Feature) -> bool:
    """Whether pictures can be encoded in 4:2:0: even sizes, not tiny."""
    height, width = feature.shape[:2]
    return height % 2 == width % 2 == 0 and min(height, width) >= LEAST


@dataclass
class CameraFile:
    """Where one camera's videos stand."""

    folder: Path
    """videos/<key>"""
    settings: VideoSettings
    chunk: int = 0
    file: int = 0
    frames: int = 0
    bytes: int = 0
    worst_psnr: float = 100.0
    errors: float = 0.0
    values: int = 0
    _output: Any = field(default=None, repr=False)
    _stream: Any = field(default=None, repr=False)

    def add(
        self, item: StoredSample, feature: Feature, count: int, scratch: Path, pixels: Pixels
    ) -> dict[str, float | int]:
        """Encode, measure and append one episode: the columns chunk_index to to_timestamp of its row."""
        clip = scratch / "clip.mp4"
        _encode(clip, _seen(blocks(item, feature, count), pixels), feature, self.settings)
        self._measure(clip, item, feature, count)
        size = clip.stat().st_size
        if self.frames and self.bytes + size > self.settings.max_bytes:
            self.close()
            self.chunk, self.file = (self.chunk, self.file + 1) if self.file + 1 < self.settings.chunks else (
                self.chunk + 1, 0)  # fmt: skip
            self.frames = self.bytes = 0
        first = self.frames
        self._append(clip)
        self.frames, self.bytes = self.frames + count, self.bytes + size
        clip.unlink()
        rate = self.settings.rate
        return {
            "chunk_index": self.chunk,
            "file_index": self.file,
            "from_timestamp": first / rate,
            "to_timestamp": (first + count) / rate,
        }

    def close(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None

    @property
    def psnr(self) -> float:
        """Of all pictures together."""
        return _psnr(self.errors, self.values)

    def _measure(self, clip: Path, item: StoredSample, feature: Feature, count: int) -> None:
        errors, values = 0.0, 0
        shape = (*feature.shape[:2], 3)
        with VideoReader(clip, clip.name) as reader:
            decoded = reader.read(0, count, Fraction(self.settings.rate), shape, alone=True)
            ours = (row for block in blocks(item, feature, count) for row in block)
            for block in decoded:
                for theirs in block:
                    errors += float(((theirs.astype(np.int64) - next(ours)) ** 2).sum())
                    values += theirs.size
        self.errors, self.values = self.errors + errors, self.values + values
        self.worst_psnr = min(self.worst_psnr, _psnr(errors, values))

    def _append(self, clip: Path) -> None:
        """Packets are copied; times follow from whole numbers of frames."""
        import av

        with av.open(str(clip), format="mov") as source:
            stream = source.streams.video[0]
            if self._output is None:
                path = self.folder / f"chunk-{self.chunk:03d}" / f"file-{self.file:03d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                self._output = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
                self._stream = self._output.add_stream_from_template(stream, opaque=True)
            ticks = 1 / (Fraction(self.settings.rate) * Fraction(stream.time_base or 1))
            offset = round(self.frames * ticks)
            for packet in source.demux(stream):
                if packet.dts is None or packet.pts is None:
                    continue  # the mark of the end
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                packet.stream = self._stream
                self._output.mux(packet)


def _encode(clip: Path, blocks: Iterator[Array], feature: Feature, settings: VideoSettings) -> None:
    import av

    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes twenty lines to stderr for every encoder
    try:
        with av.open(str(clip), "w", format="mp4") as output:
            stream: Any = output.add_stream(settings.encoder, rate=settings.rate, options=settings.options)
            stream.height, stream.width = feature.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            number = 0
            for block in blocks:
                for row in block:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(row), format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, settings.rate)
                    number += 1
                    output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise SchemaError(f"{settings.encoder} cannot encode {feature.name} of {feature.shape}: {error}") from error


def _seen(rows: Iterator[Array], pixels: Pixels) -> Iterator[Array]:
    start = 0
    for block in rows:
        pixels.add(start, block)
        start += len(block)
        yield block


def blocks(item: StoredSample, feature: Feature, count: int) -> Iterator[Array]:
    """RGB rows of a camera."""
    step = max(1, BLOCK_BYTES // feature.row_bytes)
    for start in range(0, count, step):
        rows = item.rows(feature.name, start, min(start + step, count))
        yield np.broadcast_to(rows, (*rows.shape[:3], 3))


def _psnr(errors: float, values: int) -> float:
    return 100.0 if not errors else min(100.0, 10 * math.log10(255**2 * values / errors))
