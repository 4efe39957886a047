"""Frames of episodes for stage 1: one camera of a dataset, and which episodes are kept for scoring.

Shapes: N rows, H x W pixels, C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vrl3data.dataset import Dataset, open_dataset
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.loader import EpisodeTable, load_episodes
from vrl3data.report import Reporter
from vrl3data.sampling import Ints, Layout, stack_rows

CAMERA = "obs.image."


@dataclass(frozen=True)
class HeldOut:
    """Which episodes are kept from training. `fraction` 0.2: every fifth, from number `fold` on; 0: none.

    `names`, where there are any, are taken instead; `val` is a dataset whose episodes are taken instead.
    """

    fraction: float = 0.2
    fold: int = 0
    names: tuple[str, ...] = ()
    val: Path | str | None = None


@dataclass(frozen=True)
class Frames:
    """The frames of some episodes, and further features of them."""

    camera: str
    table: EpisodeTable
    names: tuple[str, ...]
    """Of the episodes."""

    @property
    def layout(self) -> Layout:
        return self.table.layout

    def __len__(self) -> int:
        """Frames of all episodes."""
        return self.layout.states

    def images_NCHW(self, rows_N: Ints, stack: int = 1) -> torch.Tensor:
        """uint8, channels last in memory: the layout convolutions like on CPUs. `stack` frames each, oldest first."""
        if stack > 1:
            episode_N = np.searchsorted(self.layout.state_starts_E, rows_N, side="right") - 1
            t_N = rows_N - self.layout.state_starts_E[episode_N]
            rows_NK = stack_rows(self.layout, episode_N, t_N, stack)
            stacks_NKHWC = torch.from_numpy(self.table.gather(CAMERA + self.camera, rows_NK))
            return stacks_NKHWC.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return torch.from_numpy(self.table.gather(CAMERA + self.camera, rows_N)).permute(0, 3, 1, 2)

    def episode_rows(self) -> list[Ints]:
        """The rows of the states of each episode."""
        layout = self.layout
        return [start + np.arange(count) for start, count in zip(layout.state_starts_E, layout.states_E, strict=True)]

    def spread_N(self, count: int) -> Ints:
        """At most `count` rows, evenly spread over all frames."""
        return np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64))

    def __deepcopy__(self, memo: dict[int, Any]) -> Frames:
        return self  # a moving average copies weights, never data


@dataclass(frozen=True)
class SplitFrames:
    """Frames to train on, frames to score on if any are held out, and what goes into the sidecar."""

    train: Frames
    held_out: Frames | None
    data: dict[str, Any]


def load_frames(
    data: Path | str, image_size: int, camera: str | None = None, held_out: HeldOut | None = None,
    features: Sequence[str] = (), reporter: Reporter | None = None,
) -> SplitFrames:  # fmt: skip
    """Frames of `camera` (None: the only one) of the episodes in `data`, and `features` beside them.

    ConfigError for images in place of episodes, an unknown camera, frames of another size than `image_size`, and
    where no episode would be left to train on or to score on.
    """
    held_out = held_out or HeldOut()
    with open_dataset(data) as dataset:
        camera = find_camera(dataset, camera, image_size)
        names = [dataset[position].name for position in range(len(dataset))]
        with locate(path=dataset.path):
            kept, scored = split_positions(names, held_out)
        found = dataset.manifest
        facts: dict[str, Any] = {
            "name": found.name, "fingerprint": found.fingerprint, "license": found.license, "camera": camera,
        }  # fmt: skip
        train = _frames(dataset, camera, kept, features, reporter)
        score = _frames(dataset, camera, scored, features, reporter) if scored else None
    facts |= {"held_out": [names[position] for position in scored]}
    if held_out.val is not None:
        with open_dataset(held_out.val) as other:
            camera = find_camera(other, camera, image_size)
            score = _frames(other, camera, list(range(len(other))), features, reporter)
            facts |= {"val": {"name": other.manifest.name, "fingerprint": other.manifest.fingerprint}}
    return SplitFrames(train, score, facts)


def find_camera(dataset: Dataset, camera: str | None, image_size: int) -> str:
    """The name of the camera to use; ConfigError if there is none, a choice to make, or another size."""
    with locate(path=dataset.path):
        if dataset.schema.kind != "episodes":
            raise ConfigError("expected a dataset of episodes, found one of images; `supervised` and `mae` take those")
        cameras = [name.removeprefix(CAMERA) for name in dataset.schema.names if name.startswith(CAMERA)]
        if camera is None and len(cameras) > 1:
            raise ConfigError(f"the dataset has the cameras {', '.join(cameras)}; choose one with --camera")
        if not cameras:
            raise ConfigError("the dataset has no camera: none of its features is called obs.image.*")
        chosen = camera or cameras[0]
        if chosen not in cameras:
            raise ConfigError(f"no camera {chosen!r}{did_you_mean(chosen, cameras)}")
        feature = dataset.schema[CAMERA + chosen]
        if (feature.shape, feature.dtype) != ((image_size, image_size, 3), "uint8"):
            raise ConfigError(
                f"camera {chosen} has frames {feature.shape} of {feature.dtype}, the encoder takes "
                f"{(image_size, image_size, 3)} of uint8; record or convert with this image size, or choose another "
                "--image-size"
            )
    return chosen


def split_positions(names: Sequence[str], held_out: HeldOut) -> tuple[list[int], list[int]]:
    """(to train on, to score on): positions of episodes."""
    everything = list(range(len(names)))
    if held_out.val is not None or (not held_out.fraction and not held_out.names):
        return everything, []
    if held_out.names:
        scored = [position for position, name in enumerate(names) if name in held_out.names]
        if len(scored) < len(held_out.names):
            raise ConfigError(f"{len(held_out.names) - len(scored)} of the held-out episodes are not in the dataset")
    else:
        if not 0 < held_out.fraction <= 0.5:
            raise ConfigError(f"hold-out: expected 0, or a fraction of at most 0.5, found {held_out.fraction}")
        every = round(1 / held_out.fraction)
        if not 0 <= held_out.fold < every:
            raise ConfigError(f"fold: expected 0 to {every - 1}, found {held_out.fold}")
        scored = everything[held_out.fold :: every]
    kept = [position for position in everything if position not in set(scored)]
    if not kept or not scored:
        raise ConfigError(
            f"of {len(names)} episodes, {len(kept)} would be trained on and {len(scored)} held out; take a dataset "
            "with more, another --hold-out, or --val"
        )
    return kept, scored


def _frames(
    dataset: Dataset, camera: str, positions: list[int], features: Sequence[str], reporter: Reporter | None
) -> Frames:
    wanted = [CAMERA + camera, *features]
    for name in wanted:
        if name not in dataset.schema:
            with locate(path=dataset.path):
                raise ConfigError(f"no feature {name!r}{did_you_mean(name, dataset.schema.names)}")
    mapped = not dataset.remote and all(dataset.schema[name].codec == "raw" for name in wanted)
    # Raw frames stay in the mapped shards: no second copy of them in memory.
    said = None if mapped else reporter
    table = load_episodes(dataset, wanted, positions=positions, storage="mmap" if mapped else "ram", reporter=said)
    return Frames(camera, table, tuple(dataset[position].name for position in positions))
