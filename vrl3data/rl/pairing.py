"""Do a dataset, an environment and an encoder fit together? Asked before training, answered with what to change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pretrain.inflate import inflate
from vrl3data.dataset import Dataset
from vrl3data.encoders import ARCHITECTURES
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.loader import EpisodeTable, RamRows, load_episodes, physical_memory
from vrl3data.replay import BatchSpec, Replay
from vrl3data.report import Reporter
from vrl3data.rl.config import VRL3Config
from vrl3data.rl.play import Stage
from vrl3data.sampling import Ints
from vrl3data.schema import Array

RANDOM = "random:"
NO_ENCODER = "none"
MOST_OUTSIDE = 0.5
"""Human Adroit demonstrations have 5.6 % of their action entries outside [-1, 1]; more than this is another scale."""


def online_spec(stage: Stage, config: VRL3Config, images: bool) -> BatchSpec:
    """What batches are made of, with `images` or from sensors only."""
    return BatchSpec(
        stage.cameras if images else (), stage.sensor, frames=config.frames, n_step=config.agent.n_step,
        gamma=config.agent.gamma, whole_windows=config.whole_windows, by=config.sample_by,
    )  # fmt: skip


def batch_spec(dataset: Dataset, stage: Stage, config: VRL3Config, images: bool, reporter: Reporter) -> BatchSpec:
    """What batches are made of. ConfigError where the dataset is not one of this environment."""
    spec = online_spec(stage, config, images)
    _warn_of_rewards(dataset, stage, reporter)
    with locate(path=dataset.path):
        schema, name = dataset.schema, stage.spec.name
        if schema.kind != "episodes":
            raise ConfigError("expected a dataset of episodes, found one of images: stages 2 and 3 need demonstrations")
        for feature in spec.features:
            if feature not in schema:
                raise ConfigError(f"{name} observes {feature}, the dataset has {', '.join(schema.names)}")
        size = stage.spec.image_size
        for camera in spec.cameras:
            if schema[camera].shape != (size, size, 3):
                raise ConfigError(
                    f"{camera}: the dataset has {schema[camera].shape}, the environment {(size, size, 3)}: "
                    f"give --image-size {schema[camera].shape[0]}, or convert again with --image-size {size}"
                )
        if stage.sensor and schema[stage.sensor].shape != (stage.sensor_dim,):
            raise ConfigError(
                f"{stage.sensor}: the dataset has {schema[stage.sensor].shape}, {name} ({stage.sensor_dim},)"
            )
        if schema["action"].shape != (stage.action_dim,):
            found = schema["action"].shape
            raise ConfigError(
                f"actions: the dataset has {found}, {name} takes ({stage.action_dim},): another robot or task"
            )
    return spec


def _warn_of_rewards(dataset: Dataset, stage: Stage, reporter: Reporter) -> None:
    found = (dataset.manifest.provenance or {}).get("options", {}).get("rewards")
    wanted = stage.spec.options.get("rewards", "vrl3")
    if stage.spec.name.startswith("adroit-") and found is not None and found != wanted:
        reporter.warn(
            f"the rewards of the dataset are {found!r}, those of the environment {wanted!r}: "
            f"convert again with --rewards {wanted} to learn from one kind"
        )


def check_memory(replay: Replay, stage: Stage) -> None:
    """ConfigError if the online part would not fit into memory, or could not hold an episode."""
    if not replay.capacity:
        return
    size = stage.spec.image_size
    row = len(replay.spec.cameras) * size * size * 3 + 4 * (stage.sensor_dim + stage.action_dim + 1)
    if replay.capacity * row > physical_memory():
        raise ConfigError(
            f"{replay.capacity:,} states of {row:,} bytes would take {replay.capacity * row / 1e9:.0f} GB in a "
            f"full replay, this machine has {physical_memory() / 1e9:.0f} GB: set stage3.capacity"
        )
    raw = int(getattr(stage.env.unwrapped, "max_steps", 0) or 0)
    longest = -(-raw // max(1, stage.spec.action_repeat)) + 1
    if replay.capacity < longest:
        raise ConfigError(f"an episode has up to {longest} states: set stage3.capacity to more than {replay.capacity}")


def load_demonstrations(dataset: Dataset, spec: BatchSpec, stage: Stage, split: str | None, storage: str,
                        reporter: Reporter) -> EpisodeTable:  # fmt: skip
    """The episodes with actions clipped to [-1, 1] and rewards in the environment's scale.

    ConfigError if an action, a reward or a sensor is not finite, and if most actions lie outside.
    """
    table = load_episodes(dataset, spec.features, split=split, storage=storage, reporter=reporter)
    action = np.asarray(table.array(spec.action), np.float32)
    reward = np.asarray(table.array(spec.reward), np.float64)
    with locate(path=dataset.path):
        _check_finite(table, "action", action, table.layout.step_starts_E)
        _check_finite(table, "reward", reward, table.layout.step_starts_E)
        if spec.sensor:
            _check_finite(table, spec.sensor, table.array(spec.sensor), table.layout.state_starts_E)
        outside = float((np.abs(action) > 1).mean())
        if outside > MOST_OUTSIDE:
            raise ConfigError(
                f"{outside:.0%} of the action entries lie outside [-1, 1]: they have another scale; rescale them"
            )
    if outside:
        reporter.note(f"{outside:.1%} of the action entries lie outside [-1, 1] and are clipped")
    scale = float(stage.env.get_wrapper_attr("reward_scale"))
    scaled = (reward * scale).astype(np.float32)
    rows = {**table.rows, spec.action: RamRows(np.clip(action, -1, 1)), spec.reward: RamRows(scaled)}
    return replace(table, rows=rows)


def _check_finite(table: EpisodeTable, name: str, values: Array, starts_E: Ints) -> None:
    if np.isfinite(values).all():
        return
    row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
    episode = int(np.searchsorted(starts_E, row, side="right")) - 1
    with locate(episode=str(table.positions[episode]), step=row - int(starts_E[episode]), feature=name):
        raise ConfigError("expected finite numbers")


def find_encoder(source: str, stage: Stage, frames: int, seed: int, reporter: Reporter) -> Encoder | None:
    """The encoder `source`: a directory, `packaged:NAME`, `random:ARCHITECTURE`, or `none` for sensors only.

    One of single images is inflated to the stack. ConfigError if its channels or image size do not fit.
    """
    if source == NO_ENCODER or not stage.cameras:
        if source != NO_ENCODER:
            raise ConfigError(f"{stage.spec.name} has no cameras; give --encoder {NO_ENCODER}")
        if not stage.sensor:
            raise ConfigError(f"{stage.spec.name} has no sensors; an encoder is needed")
        return None
    cameras, want = len(stage.cameras), 3 * frames * len(stage.cameras)
    if source.startswith(RANDOM):
        arch = source.removeprefix(RANDOM)
        if arch not in ARCHITECTURES:
            raise ConfigError(f"unknown encoder {arch!r}{did_you_mean(arch, ARCHITECTURES)}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = Encoder(EncoderSpec(arch, image_size=stage.spec.image_size, provenance={"objective": "none"}))
    else:
        encoder = Encoder.from_pretrained(source)
    if encoder.spec.image_size != stage.spec.image_size:
        raise ConfigError(
            f"the encoder takes images of {encoder.spec.image_size} pixels, the environment gives "
            f"{stage.spec.image_size}: give --image-size {encoder.spec.image_size}"
        )
    if encoder.spec.in_channels == 3 and want != 3:
        reporter.note(f"inflating the encoder to {frames} frames of {cameras} cameras: {want} channels")
        return inflate(encoder, frames, cameras)
    if encoder.spec.in_channels != want:
        raise ConfigError(
            f"the encoder takes {encoder.spec.in_channels} channels, {frames} frames of {cameras} cameras have {want}: "
            f"inflate the encoder of single images with --frames {frames} --cameras {cameras}, or set frames"
        )
    return encoder
