"""Videos of a set: decoded once and in order, frames found by their presentation time.

Letters: N frames, H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vrl3data.errors import MissingExtra, SourceError, locate
from vrl3data.schema import Array

FORMATS = {".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
"""The reader is named by us: what probes the content would also open playlists that point elsewhere."""
MAX_PIXELS = 8192 * 8192
BLOCK_BYTES = 16 * 1024**2
AHEAD = Fraction(1)
"""Seconds up to which a gap is decoded through rather than jumped over."""
BACK = (0, 1, 4, 16, 64)
"""Seconds to go back if the key frame found first is shown after the frame that is wanted."""
MILLIMETRE = 0.001
CODES = 4096


@dataclass(frozen=True)
class VideoFacts:
    """What the header of a video says. `frames` and `rate` are 0 if it does not."""

    height: int
    width: int
    channels: int
    bits: int
    codec: str
    frames: int
    rate: Fraction


@dataclass(frozen=True)
class DepthScale:
    """How a depth video codes distances (metres), and what one stored count is."""

    least: float = 0.01
    most: float = 10.0
    shift: float = 3.5
    logarithmic: bool = True
    scale_m: float = MILLIMETRE

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> DepthScale:
        """SourceError for limits that cannot be."""
        values = [facts.get(f"video.{key}", facts.get(key, default)) for key, default in
                  (("depth_min", cls.least), ("depth_max", cls.most), ("shift", cls.shift))]  # fmt: skip
        good = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        if not good or not 0 <= values[0] < values[1] <= 6553 or values[0] + values[2] <= 0:
            raise SourceError(f"depth_min, depth_max, shift: {values} are no limits of a depth camera")
        scale = MILLIMETRE if values[1] <= 65.0 else 0.1
        least, most, shift = map(float, values)
        return cls(least, most, shift, facts.get("video.use_log", True) is not False, scale)

    def counts(self) -> Array:
        """uint16 count of each 12-bit code. Code 0 is the least distance and all that was below: no return."""
        part = np.arange(CODES) / (CODES - 1)
        low, high = self.least + self.shift, self.most + self.shift
        if self.logarithmic:
            metres = np.exp(part * (math.log(high) - math.log(low)) + math.log(low)) - self.shift
        else:
            metres = self.least + part * (self.most - self.least)
        counts = np.rint(metres / self.scale_m)
        counts[0] = 0
        return counts.astype(np.uint16)


def probe(path: Path, name: str) -> VideoFacts:
    """From the header alone."""
    with VideoReader(path, name) as reader:
        return reader.facts


class VideoReader:
    """One video file. Reading on where the last frames ended costs nothing; elsewhere it seeks to a key frame.

    Both ways give the same frames.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._av = _av()
        with locate(path=name):
            if path.suffix.lower() not in FORMATS:
                raise SourceError(f"expected a video ({', '.join(FORMATS)})")
            if not path.is_file() or not path.stat().st_size:
                raise SourceError("the video is missing or empty; fetch it again")
            self._open()
        self._reformat: Any = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        try:
            self._container = self._av.open(
                str(self.path), format=FORMATS[self.path.suffix.lower()], options={"protocol_whitelist": "file"}
            )
        except (self._av.FFmpegError, ValueError, MemoryError) as error:
            raise SourceError(f"not a readable video: {_reason(error)}; it may be cut off: fetch it again") from error
        if not self._container.streams.video:
            raise SourceError("the file holds no video")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None or not 0 < context.width * context.height <= MAX_PIXELS or not context.pix_fmt:
            raise SourceError("the header of the video is damaged, or its codec is not known here")
        context.thread_count = 1
        context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        self._base = Fraction(self._stream.time_base or 0)
        if self._base <= 0:
            raise SourceError("the video has no clock")
        self._frames: Iterator[tuple[Fraction, Any]] | None = None
        self._pending: tuple[Fraction, Any] | None = None
        self._at = Fraction(-1)

    @property
    def facts(self) -> VideoFacts:
        context = self._stream.codec_context
        grey = context.pix_fmt.startswith("gray")
        bits = int("".join(filter(str.isdigit, context.pix_fmt[4:6])) or 8) if grey else 8
        rate = self._stream.average_rate
        return VideoFacts(
            context.height, context.width, 1 if grey else 3, bits, context.codec.canonical_name,
            int(self._stream.frames or 0), Fraction(rate) if rate else Fraction(0),
        )  # fmt: skip

    def read(self, first: int, count: int, rate: Fraction, shape: tuple[int, ...], alone: bool) -> Iterator[Array]:
        """Blocks of the frames first .. first+count-1 of a clock of `rate`; those nearest to their times.

        `alone`: the file begins with this episode, wherever its clock begins, and may have a clock of its own.
        SourceError names the frame that is missing or has another size.
        """
        origin = Fraction(self._stream.start_time or 0) * self._base if alone else Fraction(0)
        if alone and self.facts.frames == count and self.facts.rate > 0:
            rate = self.facts.rate
        block = max(1, BLOCK_BYTES // max(1, math.prod(shape) * 2))
        with locate(path=self.name):
            self._go_to(origin + first / rate - Fraction(1, 2) / rate)
            for start in range(0, count, block):
                rows = []
                for step in range(start, min(start + block, count)):
                    with locate(step=step):
                        rows.append(self._pixels(self._nearest(first + step, rate, origin), shape))
                yield np.stack(rows)

    def _nearest(self, number: int, rate: Fraction, origin: Fraction) -> Any:
        """The frame nearest to number/rate, less than half a frame away."""
        found, distance = None, Fraction(1)
        while (item := self._peek()) is not None:
            place = (item[0] - origin) * rate
            nearest = math.floor(place + Fraction(1, 2))
            if nearest > number:
                break
            if nearest == number and abs(place - number) < distance:
                found, distance = item[1], abs(place - number)
            self._pending, self._at = None, item[0]
        if found is None:
            ends = "the video ends before it" if item is None else f"the next one is at {float(item[0]):.4f} s"
            raise SourceError(
                f"the frame at {float(origin + number / rate):.4f} s (frame {number} at {float(rate):g} per second) "
                f"is missing: {ends}; the header promises {self.facts.frames} frames"
            )
        return found

    def _peek(self) -> tuple[Fraction, Any] | None:
        if self._pending is None and self._frames is not None:
            try:
                self._pending = next(self._frames, None)
            except (self._av.FFmpegError, ValueError, MemoryError) as error:
                self._frames = None
                raise SourceError(f"the video cannot be decoded after {float(max(self._at, Fraction(0))):.3f} s: "
                                  f"{_reason(error)}; it may be cut off: fetch it again") from error  # fmt: skip
        return self._pending

    def _go_to(self, time: Fraction) -> None:
        """So that the next frames are those from `time` on."""
        if self._frames is not None and self._at < time:
            here = self._at if self._pending is None else self._pending[0]
            if here >= time - AHEAD:
                return
        self._seek(max(time, Fraction(0)))

    def _seek(self, time: Fraction) -> None:
        """To a key frame shown before `time`; what cannot be decoded from there on is read from the beginning."""
        start = Fraction(self._stream.start_time or 0) * self._base
        for back in BACK:
            if time - back <= start:
                break
            try:
                if self._jump(time - back, time) and self._skip_to(time):
                    return
            except (self._av.FFmpegError, ValueError, MemoryError):
                continue
        self._container.close()
        self._open()
        self._frames = self._decoded(self._container.demux(self._stream))

    def _jump(self, target: Fraction, time: Fraction) -> bool:
        """Whether the key frame at or before `target` is shown before `time`; the next frames are those after it."""
        self._frames, self._pending, self._at = None, None, Fraction(-1)
        self._container.seek(int(target / self._base), stream=self._stream, backward=True)
        packets = self._container.demux(self._stream)
        head = next(packets, None)
        if head is None or head.pts is None or head.pts * self._base > time:
            return False
        # Pictures that are shown before the key frame but stored after it need others that were not decoded.
        after = (packet for packet in packets if packet.pts is None or packet.pts >= head.pts)
        self._frames = self._decoded(chain([head], after))
        return True

    def _skip_to(self, time: Fraction) -> bool:
        """Decode up to `time`. False if there is nothing. Raises what PyAV does."""
        assert self._frames is not None
        for item in self._frames:
            if item[0] >= time:
                self._pending = item
                return True
            self._at = item[0]
        return False

    def _decoded(self, packets: Iterator[Any]) -> Iterator[tuple[Fraction, Any]]:
        for packet in packets:
            if packet.is_corrupt:
                raise ValueError("a packet is cut off")
            for frame in packet.decode():
                if frame.pts is None:
                    raise ValueError("a frame has no time")
                yield frame.pts * self._base, frame

    def _pixels(self, frame: Any, shape: tuple[int, ...]) -> Array:
        """uint8 HxWxC, or the codes of a depth video as uint16 HxW."""
        if (frame.height, frame.width) != shape[:2]:
            raise SourceError(f"expected frames of {shape[0]}x{shape[1]}, found {frame.height}x{frame.width}")
        if len(shape) == 2:
            if not frame.format.name.startswith("gray1"):
                raise SourceError(f"expected grey frames of more than 8 bits, found {frame.format.name}")
            return np.asarray(frame.to_ndarray())
        if shape[2] == 1:
            return np.asarray(frame.to_ndarray(format="gray"))[..., None]
        if self._reformat is None:
            from av.video.reformatter import VideoReformatter

            self._reformat = VideoReformatter()
        return np.asarray(self._reformat.reformat(frame, format="rgb24").to_ndarray())


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("videos need PyAV; install it with: pip install 'vrl3data[video]'") from error
    return av
