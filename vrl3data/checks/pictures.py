"""Checks of kind `images`: blank pictures, the same picture twice, labels that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

from vrl3data.checks.cameras import BLANK_SPREAD
from vrl3data.checks.finding import Finding
from vrl3data.checks.frames import GRID, cells
from vrl3data.errors import Source
from vrl3data.schema import Array, Feature


@dataclass
class Pictures:
    """What is kept of all pictures: about 150 bytes each."""

    feature: Feature | None = None
    labels: Feature | None = None
    first: dict[bytes, tuple[str, str, int]] = field(default_factory=dict)
    """hash of the pixels -> name, split, label of the first picture that has them."""
    names: dict[int, str] = field(default_factory=dict)
    """label -> class name of the first picture with it"""
    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, picture: Array, meta: Mapping[str, Any], where: Source) -> Iterator[Finding]:
        """All findings of one picture, 1 x H x W x C, against those before it."""
        yield from self._blank(picture, where)
        yield from self._twice(picture, meta, where)
        yield from self._label(meta, where)

    def _blank(self, picture: Array, where: Source) -> Iterator[Finding]:
        spread = float(cells(_thin(picture), GRID).std(axis=(1, 2)).max())
        if spread < BLANK_SPREAD and picture.std() < 4 * BLANK_SPREAD:
            level = float(picture.mean())
            kind = "black" if level < 16 else "white" if level > 239 else "of one colour"
            yield Finding("blank_frames", f"the picture is {kind}", where, "warn")

    def _twice(self, picture: Array, meta: Mapping[str, Any], where: Source) -> Iterator[Finding]:
        key = xxhash.xxh3_128_digest(picture.tobytes()) + str(picture.shape).encode()
        name, split, label = self.first.setdefault(key, (meta["name"], meta["split"], int(meta["label"])))
        if name == meta["name"]:
            return
        if split != meta["split"]:
            yield Finding("leakage", f"the picture is that of {name}, which is in split {split}", where, "warn")
        else:
            # ImageNet itself holds pictures twice; training on one twice does little harm.
            yield Finding("copies", f"the picture is that of {name}", where, "info")
        if label != meta["label"]:
            message = f"label {meta['label']}, but the same picture has label {label} as {name}"
            yield Finding("labels", message, where, "warn")

    def _label(self, meta: Mapping[str, Any], where: Source) -> Iterator[Finding]:
        label, name = int(meta["label"]), str(meta["class_name"])
        known = self.labels.names if self.labels else ()
        if known and label >= len(known):
            yield Finding("labels", f"label {label}, but the schema names {len(known)} classes", where, "warn")
        if label < 0 or not name:
            return
        told = self.names.setdefault(label, name)
        number = self.numbers.setdefault(name, label)
        if told != name or number != label:
            other = f"elsewhere label {label} is {told!r}" if told != name else f"elsewhere {name!r} is {number}"
            yield Finding("labels", f"label {label} with class {name!r}; {other}", where, "warn")


def _thin(picture: Array) -> Array:
    frames = picture[..., None] if picture.ndim == 3 else picture
    stride = max(1, min(frames.shape[1:3]) // (4 * GRID))
    return frames[:, ::stride, ::stride]
