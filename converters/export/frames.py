"""Single pictures of a dataset with their labels, in tar files: from robot data to a set for pretraining.

Letters: N frames, H height, W width, C channels.
"""

from __future__ import annotations

import io
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from converters.export.base import beside_rows
from converters.export.tars import TarShards
from vrl3data import sample, shard
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.manifest import SHARD_SIZE
from vrl3data.report import Reporter
from vrl3data.schema import Array, Feature

BLOCK_BYTES = 32 * 1024**2
SMALLEST_SHARD = 10_000
SPOOL = ".spool"
CLASSES = "classnames.txt"
OUTCOMES = ("failure", "success")
KEPT = {"episodes": ("name", "split", "task", "success"), "images": ("name", "split", "label", "class_name")}
"""What the .json of a picture says of its sample."""


@dataclass(frozen=True)
class FramesOptions:
    camera: tuple[str, ...] = field(default=(), metadata={"help": "Camera to export; repeat for more.", "shown": "all"})
    stride: int = field(default=1, metadata={"help": "Every n-th frame of an episode."})
    format: Literal["jpg", "png"] = field(default="jpg", metadata={
        "help": "Of the pictures; files that are stored as such are copied untouched."})  # fmt: skip
    quality: int = field(default=95, metadata={"help": "Of pictures that are encoded as JPEG."})
    label: Literal["none", "task", "success"] = field(default="none", metadata={
        "help": "What becomes the class (.cls) of a frame; pictures of kind images keep theirs."})  # fmt: skip
    order: Literal["shuffled", "source"] = field(default="shuffled", metadata={
        "help": "shuffled: neighbours in a tar are not neighbours in time."})  # fmt: skip
    seed: int = field(default=0, metadata={"help": "Of the shuffled order."})
    shard_size: int = field(
        default=SHARD_SIZE, metadata={"help": "Largest size of a tar.", "size": True, "shown": "256MiB"}
    )


@dataclass(frozen=True)
class _Picture:
    """One picture on its way: its file, what is said of it, and its class (None: it has none)."""

    file: bytes | memoryview
    ending: str
    about: bytes
    label: int | None

    def members(self) -> list[tuple[str, bytes | memoryview]]:
        labels = [] if self.label is None else [("cls", b"%d" % self.label)]
        return [(self.ending, self.file), *labels, ("json", self.about)]


class FramesExporter:
    """Tar files of single pictures with JSON and class (webdataset), for the pretraining of image encoders."""

    Options = FramesOptions

    def __init__(self, dataset: Dataset, options: FramesOptions) -> None:
        if options.stride < 1 or not 1 <= options.quality <= 100 or options.seed < 0:
            raise ConfigError(
                "expected a stride of at least 1, a quality of 1 to 100 and a seed of at least 0, found "
                f"{options.stride}, {options.quality} and {options.seed}"
            )
        for key, known in (("format", ("jpg", "png")), ("label", ("none", "task", "success")),
                           ("order", ("shuffled", "source"))):  # fmt: skip
            if getattr(options, key) not in known:
                raise ConfigError(f"{key} {getattr(options, key)!r}{did_you_mean(getattr(options, key), known)}")
        if options.shard_size < SMALLEST_SHARD:
            raise ConfigError(f"shard_size: expected at least {SMALLEST_SHARD} bytes, found {options.shard_size}")
        self.dataset, self.options = dataset, options
        self.images = dataset.schema.kind == "images"
        with locate(path=dataset.path):
            if self.images and (options.camera or options.stride > 1 or options.label != "none"):
                raise ConfigError("camera, stride and label are for episodes; these are labelled images")
            self.cameras = self._cameras()
            self.classes  # noqa: B018 - wrong labels are told now

    def dropped(self) -> tuple[str, ...]:
        names = {camera.name for camera in self.cameras}
        lines = []
        for feature in self.dataset.schema.features:
            if feature.name in names or (self.images and feature.name == "cls"):
                continue
            why = "a camera that was not asked for" if feature.is_image else "no picture"
            lines.append(f"{feature.name}: {why}")
        kept = ", ".join(KEPT[self.dataset.schema.kind])
        lost = beside_rows(self.dataset, ())
        return (*lines, f"meta, source_meta: all that is said of a sample beside {kept}", *lost)

    def estimate(self) -> int:
        """Bytes that are written at least."""
        shuffled = not self.images and self.options.order == "shuffled"
        each = [3 * shard.BLOCK + max(shard.BLOCK, camera.row_bytes // 20) for camera in self.cameras]
        return sum(each) * self._frames() * (2 if shuffled else 1)

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        dest.mkdir()
        notes: list[str] = []
        counts: Counter[str] = Counter()
        with reporter.progress("exporting", len(self.dataset), self.dataset.schema.kind) as advance:
            for number, split in enumerate(sorted(self.dataset.manifest.splits)):
                positions = self.dataset.split(split)
                rng = np.random.default_rng([self.options.seed, number])
                with TarShards(dest, split, self.options.shard_size) as tars:
                    for picture in self._ordered(positions, rng, dest / SPOOL, advance):
                        tars.add(picture.members())
                        counts["unlabelled"] += picture.label == -1
                pictures = f"{tars.samples} pictures in {tars.shards} tar file{'s' * (tars.shards != 1)}"
                notes.append(f"split {split}: {pictures}")
                counts["pictures"] += tars.samples
        if not counts["pictures"]:
            raise ConfigError("no episode has a picture of these cameras")
        if self.classes:
            (dest / CLASSES).write_text("".join(f"{' '.join(name.split())}\n" for name in self.classes), "utf-8")
        if counts["unlabelled"]:
            notes.append(f"{counts['unlabelled']} pictures have no class: their .cls is -1")
        return (*notes, *self._encoding(), *self._absent())

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """In order of their numbers; empty if there are none."""
        if self.images:
            return self.dataset.schema["cls"].names if "cls" in self.dataset.schema else ()
        if self.options.label == "task":
            tasks = sorted(set(self.dataset.index["task"].to_pylist()) - {""})
            if not tasks:
                raise ConfigError("label: no episode has a task")
            return tuple(tasks)
        if self.options.label == "success":
            if set(self.dataset.index["success"].to_pylist()) <= {-1}:
                raise ConfigError("label: of no episode is it known whether it was a success")
            return OUTCOMES
        return ()

    def _cameras(self) -> tuple[Feature, ...]:
        if self.images:
            return (self.dataset.schema["image"],)
        there = {feature.name.removeprefix("obs.image."): feature for feature in self.dataset.schema.cameras}
        if not there:
            raise ConfigError("the dataset has no cameras, so there are no pictures to export")
        for camera in self.options.camera:
            if camera not in there:
                raise ConfigError(f"camera: the dataset has no {camera!r}{did_you_mean(camera, there)}")
        return tuple(feature for name, feature in there.items() if name in (self.options.camera or there))

    def _frames(self) -> int:
        """Of one camera, if no episode lacks it."""
        if self.images:
            return len(self.dataset)
        index = self.dataset.index
        rows = index["length"].to_numpy() + index["final_observation"].to_numpy()
        return int((-(-rows // self.options.stride)).sum())

    def _ordered(
        self, positions: Sequence[int], rng: np.random.Generator, spool: Path, advance: object
    ) -> Iterator[_Picture]:
        """All pictures of a split in the order of the export. Episodes are read once, in their own order."""
        shuffled = self.options.order == "shuffled"
        if self.images:
            chosen = [positions[row] for row in rng.permutation(len(positions))] if shuffled else positions
            return self._labelled(chosen, advance)
        frames = self._of_episodes(positions, advance)
        return _shuffled(frames, rng, spool) if shuffled else frames

    def _labelled(self, positions: Sequence[int], advance: object) -> Iterator[_Picture]:
        features = [name for name in ("image", "cls") if name in self.dataset.schema]
        for item in self.dataset.ahead(positions, features):
            for _, file in self._files(item, self.cameras[0]):
                yield _Picture(file, self.options.format, self._about(item, {}), int(item.meta["label"]))
            advance(1)  # type: ignore[operator]

    def _of_episodes(self, positions: Sequence[int], advance: object) -> Iterator[_Picture]:
        for item in self.dataset.ahead(positions, [camera.name for camera in self.cameras]):
            label = self._label(item)
            for camera in self.cameras:
                if camera.name in item.absent:
                    continue
                for step, file in self._files(item, camera):
                    more: dict[str, str | int] = {"camera": camera.name.removeprefix("obs.image."), "step": step}
                    yield _Picture(file, self.options.format, self._about(item, more), label)
            advance(1)  # type: ignore[operator]

    def _label(self, item: StoredSample) -> int | None:
        if self.options.label == "task":
            return self.classes.index(item.meta["task"]) if item.meta["task"] else -1
        return int(item.meta["success"]) if self.options.label == "success" else None

    def _about(self, item: StoredSample, more: dict[str, str | int]) -> bytes:
        kept = {key: item.meta[key] for key in KEPT[self.dataset.schema.kind]}
        if "name" in kept and not self.images:
            kept["episode"] = kept.pop("name")
        return shard.dumps({**kept, **more}).encode()

    def _files(self, item: StoredSample, camera: Feature) -> Iterator[tuple[int, bytes | memoryview]]:
        """(row, picture file) of every `stride`-th row."""
        steps = range(0, item.row_count(camera.name), self.options.stride)
        if self._copied(camera):
            members = sample.feature_members(camera, self.dataset.schema)
            body = self.dataset.member(item.position, members[0])
            if self.images:
                yield 0, body
                return
            ends = shard.npy_view(self.dataset.member(item.position, members[1]))
            yield from ((step, body[int(ends[step]) : int(ends[step + 1])]) for step in steps)
            return
        for first, rows_NHWC in _blocks(item, camera, steps):
            for number, row_HWC in enumerate(rows_NHWC):
                yield first + number * self.options.stride, self._encoded(row_HWC)

    def _copied(self, camera: Feature) -> bool:
        return camera.codec_name == {"jpg": "jpeg", "png": "png"}[self.options.format]

    def _encoded(self, row_HWC: Array) -> bytes:
        out = io.BytesIO()
        picture = Image.fromarray(row_HWC[..., 0] if row_HWC.shape[2] == 1 else row_HWC)
        if self.options.format == "jpg":
            picture.save(out, "JPEG", quality=self.options.quality)
        else:
            picture.save(out, "PNG")
        return out.getvalue()

    def _encoding(self) -> list[str]:
        """What was done to the pictures."""
        how = f"JPEG of quality {self.options.quality}, with loss" if self.options.format == "jpg" else "PNG"
        return [
            f"{camera.name}: {'files copied untouched' if self._copied(camera) else f'encoded as {how}'}"
            for camera in self.cameras
        ]

    def _absent(self) -> list[str]:
        lacking = Counter(name for names in self.dataset.index["absent"].to_pylist() for name in names.split(","))
        names = [camera.name for camera in self.cameras if lacking[camera.name]]
        return [f"{name}: {lacking[name]} episodes lack it" for name in names]


def _blocks(item: StoredSample, camera: Feature, steps: range) -> Iterator[tuple[int, Array]]:
    """(first row, every n-th row from there), decoded with little in memory and no unit that is not needed."""
    if steps.step >= camera.unit_rows:
        for step in steps:
            yield step, item.rows(camera.name, step, step + 1)
        return
    units = max(1, BLOCK_BYTES // (camera.row_bytes * camera.unit_rows))
    many = units * camera.unit_rows
    for start in range(0, steps.stop, many):
        first = -(-start // steps.step) * steps.step
        stop = min(start + many, steps.stop)
        if first < stop:
            yield first, item.rows(camera.name, start, stop)[first - start :: steps.step]


def _shuffled(pictures: Iterable[_Picture], rng: np.random.Generator, spool: Path) -> Iterator[_Picture]:
    """In an order by chance. They wait in a file; 32 bytes of each are held in memory."""
    places, labels, endings = array("Q"), array("q"), ""
    with spool.open("x+b") as file:
        for picture in pictures:
            places.extend((file.tell(), len(picture.file), len(picture.about)))
            labels.append(-2 if picture.label is None else picture.label)
            endings = picture.ending
            file.write(picture.file)
            file.write(picture.about)
        for row in rng.permutation(len(labels)):
            start, size, more = places[3 * row : 3 * row + 3]
            file.seek(start)
            data = memoryview(file.read(size + more))
            label = None if labels[row] == -2 else labels[row]
            yield _Picture(data[:size], endings, bytes(data[size:]), label)
    spool.unlink()
