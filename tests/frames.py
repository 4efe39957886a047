"""Episodes in memory that the tests of stage 1 make themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.frames import Frames
from vrl3data.loader import EpisodeTable, RamRows
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.sampling import Layout
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.writer import Writer

CAMERA = "obs.image.top"


def frames_of(images: Sequence[Array], **more: Sequence[Array]) -> Frames:
    """Frames whose episodes have one state less than steps: all observations are known."""
    layout = Layout.packed([len(part) - 1 for part in images], [True] * len(images), [False] * len(images))
    values = {CAMERA: images, **more}
    features = {name: Feature(name, str(part[0].dtype), part[0].shape[1:], "state") for name, part in values.items()}
    rows = {name: RamRows(np.concatenate(part)) for name, part in values.items()}
    table = EpisodeTable(layout, features, rows, tuple(range(len(images))))
    return Frames("top", table, tuple(f"episode-{number}" for number in range(len(images))))


def dot_images(number: int, length: int = 40, size: int = 24) -> Array:
    """A bright bar that sinks from the top to the bottom before a backdrop of the episode's own, with noise."""
    rng = np.random.default_rng(number)
    backdrop = rng.uniform(40, 90, (1, 1, 3)) + rng.normal(0, 10, (size, size, 1))
    images = backdrop + rng.normal(0, 6, (length, size, size, 3))
    left = int(rng.integers(2, size - 10))
    for t in range(length):
        top = 1 + t * (size - 6) / (length - 1)
        rows = np.clip(1 - np.abs(np.arange(size) - top - 2) / 3, 0, 1)
        images[t, :, left : left + 8] += 150 * rows[:, None, None]
    return np.clip(images, 0, 255).astype(np.uint8)


def dots(first: int, count: int) -> Frames:
    return frames_of([dot_images(number) for number in range(first, first + count)])


def write_dots(path: Path, count: int = 10, size: int = 24, cameras: Sequence[str] = ("top",)) -> Path:
    """A dataset of them: the action is the speed that the bar will have, the state its height."""
    features = [Feature(f"obs.image.{name}", "uint8", (size, size, 3), "state", color="rgb") for name in cameras]
    schema = Schema("episodes", (*features, Feature("obs.state", "float64", (2,), "state"),
                                 Feature("action", "float64", (1,))))  # fmt: skip
    spec = DatasetSpec(schema, "dots", Provenance("test", source_name="made up", source_identity="dots"))
    with Writer(path, spec) as writer:
        for number in range(count):
            images = dot_images(number, 20, size)
            height = np.linspace(0, 1, 20)
            values = {f"obs.image.{name}": images for name in cameras}
            values |= {"obs.state": np.stack([height, np.sin(7 * height)], 1), "action": height[1:, None]}
            writer.write(Episode(f"dot-{number}", values, length=19, final_observation=True))
    return path
