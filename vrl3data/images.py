"""Labelled images of a dataset as one uint8 array in memory: what a small encoder is trained on.

Shapes: N images, H x W pixels, 3 channels. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, locate
from vrl3data.report import Reporter, Silent
from vrl3data.schema import Array

LOADED_BYTES = 64 * 1024**3
"""Refused above this: such a set wants a stream."""


@dataclass(frozen=True)
class ImageTable:
    """Pictures (N, size, size, 3) uint8 in 0..255, labels (N,) int64, and the names of the classes."""

    images_NHWC: Array
    labels_N: Array
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)


def load_images(dataset: Dataset, size: int, split: str | None = None, reporter: Reporter | None = None) -> ImageTable:
    """Decode a split once: shorter side to `size`, antialiased, and the centre of `size` x `size` of it.

    ConfigError if the dataset holds no images, has no labels, or would not fit in memory.
    """
    with locate(path=dataset.path):
        if dataset.schema.kind != "images":
            raise ConfigError("expected a dataset of images, found one of episodes")
        positions = dataset.split(split) if split else list(range(len(dataset)))
        if len(positions) * size * size * 3 > LOADED_BYTES:
            raise ConfigError(
                f"{len(positions)} images of {size} pixels do not fit in memory; use a stream or a smaller size"
            )
    images_NHWC = np.empty((len(positions), size, size, 3), np.uint8)
    labels_N = np.empty(len(positions), np.int64)
    with (reporter or Silent()).progress("decoding", len(positions), "images") as advance:
        for row, item in enumerate(dataset.ahead(positions, ("image", "cls"))):
            images_NHWC[row] = square(item["image"][0], size)
            labels_N[row] = item["cls"][0]
            advance(1)
    if dataset.remote:
        (reporter or Silent()).note(str(dataset.fetched))
    with locate(path=dataset.path):
        if labels_N.min(initial=0) < 0:
            raise ConfigError(f"{int((labels_N < 0).sum())} images have no label")
    return ImageTable(images_NHWC, labels_N, dataset.schema["cls"].names)


def square(image_HWC: Array, size: int) -> Array:
    """The central square, resized with antialiasing; a copy only where something changes."""
    height, width = image_HWC.shape[:2]
    if (height, width) == (size, size):
        return image_HWC
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BILINEAR, box=box))
