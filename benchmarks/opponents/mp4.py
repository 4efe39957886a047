"""mp4 files with a key frame every second frame (lossy: H.264, crf 23), as LeRobot writes them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from opponents.common import FRAMES, SPAN, STEPS, Array, Batch, Side, Source, Windows, split_span

RATE = 30


def write(frames_THWC: Array, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "g": "2", "bf": "0"})
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, RATE)
        stream.codec_context.thread_count = 1
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def span_rows(t: int) -> Array:
    return np.maximum(np.arange(t - FRAMES + 1, t + STEPS + 1), 0)


class Mp4(Side):
    """A file per episode; decoders stay open, everything but images is in memory."""

    lossless = False

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.small, self.setting = source.small(), setting
        self.paths = [folder / f"{e:04d}.mp4" for e in range(len(source.frames))]
        for frames, path in zip(source.frames, self.paths, strict=True):
            write(frames, path)

    def batch(self, windows: Windows) -> Batch:
        span_BK = self.empty_spans()
        self.fill(windows, span_BK)
        return split_span(span_BK, self.layout) | self.small.gather(windows)

    def fill(self, windows: Windows, span_BK: Array) -> None:
        raise NotImplementedError


class TorchCodec(Mp4):
    """`grouped by episode` decodes each frame that a batch needs once, `window by window` a range for each window."""

    versions = ("torchcodec", "torch")

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        from torchcodec.decoders import VideoDecoder

        super().__init__(source, folder, setting)
        seek = "approximate" if "approximate" in setting else "exact"
        order = "NHWC" if self.layout == "frames" else "NCHW"
        self.decoders = [
            VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=seek, dimension_order=order) for path in self.paths
        ]

    def fill(self, windows: Windows, span_BK: Array) -> None:
        if self.setting.startswith("grouped"):
            for episode in np.unique(windows.episode_B):
                where = np.flatnonzero(windows.episode_B == episode)
                rows_BK = np.stack([span_rows(t) for t in windows.t_B[where].tolist()])
                needed, inverse = np.unique(rows_BK, return_inverse=True)
                decoded = self.decoders[episode].get_frames_at(needed.tolist()).data.numpy()
                span_BK[where] = decoded[inverse.reshape(rows_BK.shape)]
            return
        for row_K, (episode, t) in zip(span_BK, windows.pairs(), strict=True):
            first = max(0, t - FRAMES + 1)
            decoded = self.decoders[episode].get_frames_in_range(first, t + STEPS + 1).data.numpy()
            row_K[-len(decoded) :] = decoded
            row_K[: SPAN - len(decoded)] = decoded[0]


class Seeking(Mp4):
    """PyAV: seek to the key frame before a window, decode on from there."""

    versions = ("av",)

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        super().__init__(source, folder, setting)
        self.containers = [av.open(str(path)) for path in self.paths]
        for container in self.containers:
            container.streams.video[0].codec_context.thread_count = 1

    def fill(self, windows: Windows, span_BK: Array) -> None:
        for row_K, (episode, t) in zip(span_BK, windows.pairs(), strict=True):
            container = self.containers[episode]
            stream = container.streams.video[0]
            unit = 1 / (RATE * stream.time_base)
            first, last = max(0, t - FRAMES + 1), t + STEPS
            container.seek(round(first * unit), stream=stream)
            for frame in container.decode(stream):
                number = round(frame.pts / unit)
                if number >= first:
                    frame_HWC = frame.to_ndarray(format="rgb24")
                    stored = frame_HWC if self.layout == "frames" else frame_HWC.transpose(2, 0, 1)
                    row_K[SPAN - 1 - last + number] = stored
                if number == last:
                    break
            row_K[: SPAN - 1 - last + first] = row_K[SPAN - 1 - last + first]
