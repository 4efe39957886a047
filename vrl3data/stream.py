"""Labelled images that need not fit in memory: decoded when a batch is made, ahead of time, by threads or processes.

Two ways: `images` hands out batches in an order of its own, and reads neighbours together where it is told to;
`ImageStream` stands in for an ImageTable where someone else decides on the rows. Imports no torch.
Shapes: B images of a batch, N of a set, S x S pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrl3data.dataset import Dataset
from vrl3data.delivery import Batches, DeliverySpec, identity_of
from vrl3data.errors import ConfigError, locate
from vrl3data.exchange import Batch
from vrl3data.images import LOADED_BYTES, ImageTable, load_images, square
from vrl3data.loader import Readers, physical_memory
from vrl3data.order import Order, OrderSpec
from vrl3data.report import Reporter
from vrl3data.sampling import Ints, Starts
from vrl3data.schema import Array
from vrl3data.window_spec import split_options

MEMORY_SHARE = 0.5
"""A set that takes more than this of the memory, decoded, is streamed."""
CHUNK = 16
"""Images that one thread decodes at a time."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec(OrderSpec):
    """`size`: shorter side and centre of the pictures, as in `load_images`. The order is that of OrderSpec."""

    size: int

    def check(self) -> None:
        super().check()
        if self.size < 1:
            raise ConfigError(f"size: expected at least 1, found {self.size}")
        if self.by != "step":
            raise ConfigError("by: images belong to no episode; leave it out")


@dataclass(frozen=True)
class ImageChoice:
    """Which images: a split, or positions."""

    split: str | None = None
    positions: tuple[int, ...] | None = None


class ImagePlan:
    """Batches of decoded images. Each is decoded once in an epoch, and nothing is kept."""

    def __init__(self, dataset: Dataset, spec: ImageSpec, choice: ImageChoice) -> None:
        spec.check()
        self.dataset, self.spec = dataset, spec
        self.positions_N = _positions(dataset, choice.split, choice.positions)
        with locate(path=dataset.path):
            self.order = Order(spec, Starts(np.array([len(self.positions_N)])))
        self._readers = Readers(dataset)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImagePlan, (self.dataset, self.spec, ImageChoice(None, tuple(self.positions_N.tolist())))

    @property
    def steps(self) -> int | None:
        return self.order.steps

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def identity(self) -> dict[str, Any]:
        """What the batches follow from; neither the rank nor where iteration ends."""
        return identity_of(self.dataset, self.positions_N, self.spec)

    def batch(self, step: int) -> Batch:
        """That of a step, for this rank."""
        number_B, valid_B = self.order.numbers(step)
        position_B = self.positions_N[number_B]
        images_BHWC, label_B = decode(self._readers.mine(), position_B, self.spec.size)
        found: Batch = {"image": images_BHWC, "label": label_B, "index": position_B}
        return found | {"valid": valid_B} if self.spec.pad_last else found


def images(dataset: Dataset, batch_size: int, size: int, **options: Any) -> Batches:
    """Batches of the images of `dataset`: `image` (B, size, size, 3) uint8, `label` (B,) int64, -1 where there is none,
    and `index` (B,) int64, the position in the dataset.

    `options` are `split` or `positions` and the fields of OrderSpec and DeliverySpec. With `shuffle_buffer`, images of
    at most twice that many are read at a time, `shuffle_run` neighbours together: give it for sets larger than memory
    or far away. ConfigError for unknown options and for episodes in place of images.
    """
    given = options | {"batch_size": batch_size, "size": size}
    specs = split_options(given, (ImageSpec, ImageChoice, DeliverySpec))
    plan = ImagePlan(dataset, ImageSpec(**specs[0]), ImageChoice(**specs[1]))
    return Batches(plan, DeliverySpec(**specs[2]))


class ImageStream:
    """The images of a set by row, as an ImageTable has them, but decoded when they are taken.

    `workers` threads decode (0: as many as there are processors). Rows that were announced by `prefetch` are decoded
    meanwhile; memory holds what was announced and not yet taken. Reads are at random places: fine from a disk that is
    fast at that. For others there is `images`.
    """

    def __init__(self, dataset: Dataset, size: int, split: str | None = None, workers: int = 0) -> None:
        self.size, self.positions_N = size, _positions(dataset, split, None)
        self.classes = dataset.schema["cls"].names
        with locate(path=dataset.path):
            self.labels_N = dataset.index["label"].to_numpy()[self.positions_N].astype(np.int64)
            if self.labels_N.min(initial=0) < 0:
                raise ConfigError(f"{int((self.labels_N < 0).sum())} images have no label")
        self._readers = Readers(dataset)
        self._pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="vrl3data-images")
        self._ahead: dict[bytes, list[Future[Array]]] = {}

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_B: Ints) -> Array:
        """(B, size, size, 3) uint8."""
        parts = self._ahead.pop(rows_B.tobytes(), None) or self._decode(rows_B)
        found = [part.result() for part in parts]
        return np.concatenate(found) if found else np.zeros((0, self.size, self.size, 3), np.uint8)

    def prefetch(self, rows_B: Ints) -> None:
        """Decode these in the background, for the next `take` of the same rows."""
        key = rows_B.tobytes()
        if key not in self._ahead:
            self._ahead[key] = self._decode(rows_B)

    def close(self) -> None:
        """Stop decoding."""
        self._ahead.clear()
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, rows_B: Ints) -> list[Future[Array]]:
        position_B = self.positions_N[rows_B]
        chunks = [position_B[start : start + CHUNK] for start in range(0, len(position_B), CHUNK)]
        return [self._pool.submit(self._chunk, chunk) for chunk in chunks]

    def _chunk(self, position_B: Ints) -> Array:
        return decode(self._readers.mine(), position_B, self.size)[0]


Images = ImageTable | ImageStream


def open_images(
    dataset: Dataset, size: int, split: str | None = None, reporter: Reporter | None = None, stream: bool | None = None
) -> Images:
    """The labelled images of a split, in memory if they fit, else as a stream; `stream` says which."""
    if stream is None:
        need = len(_positions(dataset, split, None)) * size * size * 3
        stream = need > min(LOADED_BYTES, MEMORY_SHARE * physical_memory())
    return ImageStream(dataset, size, split) if stream else load_images(dataset, size, split, reporter)


def decode(dataset: Dataset, position_B: Ints, size: int) -> tuple[Array, Ints]:
    """(pictures (B, size, size, 3) uint8, labels (B,) int64) of the samples at these positions."""
    images_BHWC, label_B = np.empty((len(position_B), size, size, 3), np.uint8), np.empty(len(position_B), np.int64)
    for row, item in enumerate(dataset.ahead(position_B.tolist(), ("image", "cls"))):
        images_BHWC[row], label_B[row] = square(item["image"][0], size), item["cls"][0]
    return images_BHWC, label_B


def _positions(dataset: Dataset, split: str | None, positions: Sequence[int] | None) -> Ints:
    with locate(path=dataset.path):
        if dataset.schema.kind != "images":
            raise ConfigError("expected a dataset of images, found one of episodes; those have ds.windows()")
        chosen = positions if positions is not None else dataset.split(split) if split else range(len(dataset))
        found = np.asarray(chosen, np.int64)
        if not len(found):
            raise ConfigError("no images were chosen")
        if found.min() < 0 or found.max() >= len(dataset):
            raise ConfigError(f"positions: expected 0 to {len(dataset) - 1}, found {found.min()} to {found.max()}")
    return found
