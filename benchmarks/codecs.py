"""Size, loss and speed of every codec on the frames of one dataset, all against raw, on one core.

python benchmarks/codecs.py DATASET [--camera obs.image.top] [--codecs dzst,png,jpeg:95,h264,av1] [--episodes 25]

Every codec writes a dataset of the same episodes, which is read back through `vrl3data.open`: whole episodes, and
windows of three consecutive frames at random places. Frames of codecs without loss are checked equal to raw, the error
of the others to what was measured when they were written. Speeds are per second of processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import vrl3data
from vrl3data import codecs, sample
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.units import cut
from vrl3data.writer import Writer

WINDOW, WINDOWS, ROUNDS = 3, 1000, 3
DZST_BYTES, DZST_SPEED = 1700, 25_000
"""What DESIGN.md 8 asks of dzst on 84x84 door frames."""


@dataclass(frozen=True)
class Result:
    """Bytes a frame; PSNR in dB, of the worst sample and the mean over samples; frames a second; windows a second."""

    codec: str
    size: float
    psnr_min: float
    psnr_mean: float
    max_error: float
    encode: float
    decode: float
    window: float

    def line(self, raw: Result) -> str:
        loss = f"{self.psnr_min:6.2f} {self.psnr_mean:6.2f} {self.max_error:5.0f}"
        loss = loss if self.max_error > 0 else "none".rjust(len(loss))
        size = f"{self.codec:<12}{self.size:9,.0f}{raw.size / self.size:7.1f}x   {loss}{self.encode:12,.0f}"
        reading = ((self.decode, raw.decode), (self.window, raw.window))
        return size + "".join(f"{mine:12,.0f}{mine / theirs:7.3f}" for mine, theirs in reading)


def seconds(work: Callable[[], Any]) -> float:
    """The best of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def owned(rows: Array) -> Array:
    """Raw rows are views of the mapped file; decoded ones are in memory already."""
    return rows if rows.flags.writeable else rows.copy()


def write(path: Path, feature: Feature, episodes: list[Array]) -> None:
    schema = Schema("episodes", (feature,))
    with Writer(path, DatasetSpec(schema, "codecs", Provenance("benchmark", source_identity="codecs"))) as writer:
        for number, frames in enumerate(episodes):
            writer.write(Episode(f"{number}", {feature.name: frames}, length=len(frames)))


def encoding(feature: Feature, episodes: list[Array]) -> float:
    """Frames a second of the codec alone; raw is a copy."""
    codec = None if feature.codec == "raw" else codecs.find(feature.codec)
    frames, started = 0, time.process_time()
    for episode in episodes:
        for unit in cut([episode], feature.unit_rows):
            _ = codec.encode(unit, feature) if codec else unit.tobytes()
        frames += len(episode)
    return frames / (time.process_time() - started)


def measure(path: Path, feature: Feature, episodes: list[Array], rng: np.random.Generator) -> Result:
    write(path, feature, episodes)
    frames = sum(map(len, episodes))
    with vrl3data.open(path) as dataset:
        stored = dataset.schema[feature.name]
        for item, given in zip(dataset, episodes, strict=True):
            found = item[feature.name]
            error = int(np.abs(found.astype(np.int16) - given).max())
            assert error == (0 if stored.lossless else item.meta["max_error"]), (
                "the frames are not those that were written"
            )
        items = [(item, int(item.row_count(feature.name))) for item in dataset]
        chosen = [items[number] for number in rng.integers(len(items), size=WINDOWS)]
        starts = [int(rng.integers(count - WINDOW + 1)) for _, count in chosen]
        whole = seconds(lambda: [owned(item[feature.name]) for item, _ in items])
        windows = seconds(lambda: [owned(item.rows(feature.name, start, start + WINDOW))
                                   for (item, _), start in zip(chosen, starts, strict=True)])  # fmt: skip
        size = sum(
            dataset.index[f"{member}.size"].to_numpy().sum()
            for member in sample.feature_members(stored, dataset.schema)
        )
        lossy = dataset.manifest.lossy or {"psnr_min": 100.0, "psnr_mean": 100.0, "max_error": 0.0}
    return Result(stored.codec, size / frames, lossy["psnr_min"], lossy["psnr_mean"], lossy["max_error"],
                  encoding(feature, episodes), frames / whole, WINDOWS / windows)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--camera", default="")
    parser.add_argument("--codecs", default="dzst,png,jpeg:95,h264,h264:23:2,av1")
    parser.add_argument("--episodes", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with vrl3data.open(arguments.dataset) as dataset:
        camera = dataset.schema[arguments.camera or dataset.schema.cameras[0].name]
        episodes = [
            np.array(dataset[position][camera.name]) for position in range(min(arguments.episodes, len(dataset)))
        ]
    plain = replace(camera, rows="step", codec="raw", encoder="", unit_rows=1, lossless=True)
    print(
        f"{sum(map(len, episodes)):,} frames of {'x'.join(map(str, camera.shape))}, {len(episodes)} episodes, one core"
    )
    print(f"{'codec':<12}{'B/frame':>9}{'':8}   PSNR min, mean  max{'encode/s':>12}{'decode/s':>12}{'/raw':>7}"
          f"{'windows/s':>12}{'/raw':>7}")  # fmt: skip
    raw = None
    with tempfile.TemporaryDirectory() as name:
        for codec in ["raw", *arguments.codecs.split(",")]:
            feature = codecs.describe(plain, codec)
            rng = np.random.default_rng(arguments.seed)
            result = measure(Path(name) / codec.replace(":", "-"), feature, episodes, rng)
            raw = raw or result
            print(result.line(raw), flush=True)
            if codec == "dzst" and camera.shape == (84, 84, 3):
                print(f"{'':12}goal for door frames: at most {DZST_BYTES:,} B ({result.size / DZST_BYTES:.2f} of it), "
                      f"at least {DZST_SPEED:,} frames/s ({result.decode / DZST_SPEED:.2f} of it)")  # fmt: skip


if __name__ == "__main__":
    main()
