"""`probe`: what a frozen encoder is worth on a dataset, beside random initialisation and pixels.

Shapes: N rows, T states of an episode, D features, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.augment import center_crop
from pretrain.features import BATCH, calibrate, encode, episode_features, pixel_features, thumbnails, untrained
from pretrain.frames import Frames, HeldOut, SplitFrames, load_frames
from pretrain.measures import (
    Floats,
    Pca,
    goal_correlation,
    knn_top1,
    linear_top1,
    mean_over,
    pair_correlation,
    ridge_r2,
)  # fmt: skip
from pretrain.picture import strands
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.encoders.batchnorm import recalibrate
from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.images import ImageTable, load_images
from vrl3data.report import Reporter, Silent

COMPONENTS = 32
VALIDATION_SCALE = 100 / 84
"""Pictures are resized to this multiple of the image size, of which the centre is taken (VRL3)."""
STATES = ("obs.proprio", "obs.state")


@dataclass(frozen=True)
class ProbeConfig:
    """`held_out` None: the episodes that the encoder's sidecar says it was not trained on, else every fifth.

    `state` chooses dimensions: feature -> numbers; without, all of obs.proprio and obs.state, as their mean R2.
    """

    camera: str | None = None
    held_out: HeldOut | None = None
    state: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    picture: Path | None = None


def probe(
    encoder: Encoder, data: Path | str, config: ProbeConfig | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Scores of the encoder, of the same architecture at random, and of 32 principal components of the pixels.

    Episodes: read-outs are fitted on the training episodes and scored on the held-out ones; `pair` and `goal` are
    means over the held-out episodes. Labelled images: from the split `train` to `val`. ConfigError where these are
    missing or the frames do not fit the encoder.
    """
    config, reporter = config or ProbeConfig(), reporter or Silent()
    images_per_frame = int(encoder.spec.provenance.get("inflated", {}).get("cameras", 1))
    if images_per_frame > 1:
        raise ConfigError(f"the encoder takes {images_per_frame} cameras; only encoders of one camera are probed")
    with open_dataset(data) as dataset:
        kind = dataset.schema.kind
        if kind == "images":
            return _probe_images(encoder, dataset, config, reporter)
        names = _features(dataset, config)
        held_out = config.held_out or _as_trained(encoder, dataset)
    camera = config.camera or encoder.spec.provenance.get("data", {}).get("camera")
    found = load_frames(data, encoder.spec.image_size, camera, held_out, names, reporter)
    if found.held_out is None:
        raise ConfigError("no episodes are held out: there is nothing to score on; give --hold-out 0.2 or --val")
    return _probe_episodes(encoder, found, config, reporter)


def _as_trained(encoder: Encoder, dataset: Dataset) -> HeldOut:
    """The very episodes that were held out in training, if this is its dataset."""
    said = encoder.spec.provenance.get("data", {})
    if said.get("fingerprint") == dataset.manifest.fingerprint and said.get("held_out"):
        return HeldOut(names=tuple(said["held_out"]))
    return HeldOut()


def _features(dataset: Dataset, config: ProbeConfig) -> list[str]:
    """The features beside the camera that are read out."""
    schema = dataset.schema
    with locate(path=dataset.path):
        for name, numbers in config.state.items():
            if name not in schema or schema[name].rows != "state" or len(schema[name].shape) != 1:
                flat = [f.name for f in schema.features if f.rows == "state" and len(f.shape) == 1]
                raise ConfigError(f"no vector feature {name!r} with a row per state{did_you_mean(name, flat)}")
            if not numbers or not all(0 <= number < schema[name].shape[0] for number in numbers):
                raise ConfigError(f"{name} has dimensions 0 to {schema[name].shape[0] - 1}, found {numbers}")
    chosen = list(config.state) or [name for name in STATES if name in schema and schema[name].rows == "state"]
    return [*chosen, *(["action"] if "action" in schema else [])]


# -- episodes ------------------------------------------------------------------------------------------------------


def _probe_episodes(encoder: Encoder, found: SplitFrames, config: ProbeConfig, reporter: Reporter) -> dict[str, Any]:
    assert found.held_out is not None
    train, held_out = found.train, found.held_out
    blank = untrained(encoder.spec, config.seed)
    calibrate(blank, train)
    kinds: dict[str, Callable[[Frames], list[Floats]]] = {
        "encoder": lambda frames: episode_features(encoder, frames),
        "random": lambda frames: episode_features(blank, frames),
        "pixels": pixel_features(train, COMPONENTS),
    }
    scores, latents = {}, {}
    with reporter.progress("probing", len(kinds), "encoders") as advance:
        for name, features in kinds.items():
            latents[name] = features(held_out)
            scores[name] = score_episodes(features(train), latents[name], (train, held_out), config)
            advance(1)
    if config.picture is not None:
        flat = {name: _two_dimensions(episodes) for name, episodes in latents.items()}
        strands(config.picture, flat, {name: f"pair {scores[name]['pair']:.2f}" for name in flat})
    facts = {"episodes": train.layout.episodes, "held_out": list(held_out.names), "camera": train.camera}
    return {"kind": "episodes", "data": found.data["name"], **facts, "scores": scores}


def score_episodes(
    train_features: list[Floats], held_features: list[Floats], frames: tuple[Frames, Frames], config: ProbeConfig
) -> dict[str, float]:
    """All scores of one kind of features, given per episode (T, D)."""
    train, held_out = frames
    scores = {
        "pair": mean_over(held_features, pair_correlation),
        "goal": mean_over(held_features, goal_correlation),
    }
    for name in train.table.features:
        if name.startswith("obs.image."):
            continue
        counts = [part.layout.lengths_E if train.table.features[name].rows == "step" else part.layout.states_E
                  for part in frames]  # fmt: skip
        inputs = [np.concatenate([f[:n] for f, n in zip(features, count, strict=True)])
                  for features, count in zip((train_features, held_features), counts, strict=True)]  # fmt: skip
        targets = [_matrix(part, name) for part in (train, held_out)]
        groups_N = np.repeat(np.arange(len(counts[0])), counts[0])
        r2_K = ridge_r2(inputs[0], targets[0], groups_N, (inputs[1], targets[1]))
        if name in config.state:
            scores |= {f"{name}[{number}]_r2": float(r2_K[number]) for number in config.state[name]}
        else:
            scores[f"{name}_r2"] = float(r2_K.mean())
    return scores


def _matrix(frames: Frames, name: str) -> Floats:
    values = np.asarray(frames.table.array(name), np.float64)
    return values.reshape(len(values), -1)


def _two_dimensions(episodes: list[Floats]) -> list[Floats]:
    pca = Pca.fit(np.concatenate(episodes), 2)
    return [pca(features_TD) for features_TD in episodes]


# -- labelled images -----------------------------------------------------------------------------------------------


def _probe_images(encoder: Encoder, dataset: Dataset, config: ProbeConfig, reporter: Reporter) -> dict[str, Any]:
    if encoder.spec.in_channels != 3:
        count = encoder.spec.in_channels // 3
        raise ConfigError(f"the encoder takes stacks of {count} images; probe it as it was before inflate")
    with locate(path=dataset.path):
        if not {"train", "val"} <= set(dataset.manifest.splits):
            have = ", ".join(dataset.manifest.splits)
            raise ConfigError(f"labelled images are probed from the split train to val, found only {have}")
    size = encoder.spec.image_size
    train, val = (load_images(dataset, round(size * VALIDATION_SCALE), name, reporter) for name in ("train", "val"))
    blank = untrained(encoder.spec, config.seed)
    recalibrate(blank, _batches(train, size))
    pca = Pca.fit(np.concatenate([thumbnails(batch) for batch in _batches(train, size)]), COMPONENTS)
    kinds: dict[str, Callable[[ImageTable], Floats]] = {
        "encoder": lambda table: encode(encoder, _batches(table, size)),
        "random": lambda table: encode(blank, _batches(table, size)),
        "pixels": lambda table: np.concatenate([pca(thumbnails(batch)) for batch in _batches(table, size)]),
    }
    scores = {}
    for name, features in kinds.items():
        sets = (features(train), train.labels_N, features(val), val.labels_N)
        scores[name] = {"linear_top1": linear_top1(*sets), "knn_top1": knn_top1(*sets)}
    facts = {"images": len(train), "held_out_images": len(val), "classes": len(train.classes)}
    return {"kind": "images", "data": dataset.manifest.name, **facts, "scores": scores}


def _batches(table: ImageTable, size: int) -> list[torch.Tensor]:
    """uint8 (N, 3, size, size): the centre of each picture."""
    images_NCHW = torch.from_numpy(table.images_NHWC).permute(0, 3, 1, 2)
    return [center_crop(images_NCHW[i : i + BATCH], size) for i in range(0, len(table), BATCH)]
