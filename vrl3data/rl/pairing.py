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
from vrl3data.loader import EpisodeTable, RamRows, load_episodes
from vrl3data.replay import BatchSpec
from vrl3data.report import Reporter
from vrl3data.rl.config import VRL3Config
from vrl3data.rl.play import Stage

RANDOM = "random:"
NO_ENCODER = "none"


def batch_spec(dataset: Dataset, stage: Stage, config: VRL3Config) -> BatchSpec:
    """What batches are made of. ConfigError where the dataset is not one of this environment."""
    with locate(path=dataset.path):
        schema, name = dataset.schema, stage.spec.name
        if schema.kind != "episodes":
            raise ConfigError("expected a dataset of episodes, found one of images: stages 2 and 3 need demonstrations")
        for feature in (*stage.cameras, *([stage.sensor] if stage.sensor else []), "action", "reward"):
            if feature not in schema:
                raise ConfigError(f"{name} observes {feature}, the dataset has {', '.join(schema.names)}")
        size = stage.spec.image_size
        for camera in stage.cameras:
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
    return BatchSpec(
        stage.cameras, stage.sensor, frames=config.frames, n_step=config.agent.n_step, gamma=config.agent.gamma,
        whole_windows=config.whole_windows, by=config.sample_by,
    )  # fmt: skip


def load_demonstrations(dataset: Dataset, spec: BatchSpec, stage: Stage, split: str | None, storage: str,
                        reporter: Reporter) -> EpisodeTable:  # fmt: skip
    """The episodes with actions clipped to [-1, 1] and rewards in the environment's scale.

    ConfigError if an action or a reward is not finite.
    """
    table = load_episodes(dataset, spec.features, split=split, storage=storage, reporter=reporter)
    action = np.asarray(table.array(spec.action), np.float32)
    reward = np.asarray(table.array(spec.reward), np.float64)
    for name, values in (("action", action), ("reward", reward)):
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
            episode = int(np.searchsorted(table.layout.step_starts_E, row, side="right")) - 1
            step = row - int(table.layout.step_starts_E[episode])
            with locate(path=dataset.path, episode=str(table.positions[episode]), step=step, feature=name):
                raise ConfigError("expected finite numbers")
    scale = float(stage.env.get_wrapper_attr("reward_scale"))
    scaled = (reward * scale).astype(np.float32)
    rows = {**table.rows, spec.action: RamRows(np.clip(action, -1, 1)), spec.reward: RamRows(scaled)}
    return replace(table, rows=rows)


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
