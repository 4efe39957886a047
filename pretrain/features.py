"""Features of frames, from an encoder or from pixels alone.

Shapes: N rows, T states of an episode, D features, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from pretrain.frames import Frames
from pretrain.measures import Floats, Pca
from vrl3data.encoders.batchnorm import recalibrate
from vrl3data.encoders.encoder import Encoder, EncoderSpec

BATCH = 256
CALIBRATION = 2048
"""Frames whose statistics batch norms take over."""
THUMBNAIL = 21
"""Side of the pictures whose principal components stand for pixels."""


def frames_of(encoder: Encoder) -> int:
    return encoder.spec.in_channels // 3


def calibrate(encoder: Encoder, frames: Frames) -> None:
    """Measure the batch norms of an encoder on frames, evenly spread over them."""
    rows_N, stack = frames.spread_N(CALIBRATION), frames_of(encoder)
    # Neighbours in time would make a batch of near-equal frames: every k-th row goes into the same batch instead.
    parts = max(1, len(rows_N) // BATCH)
    recalibrate(encoder, (frames.images_NCHW(rows_N[part::parts], stack) for part in range(parts)))


@torch.no_grad()
def encode(encoder: Encoder, batches: Iterable[torch.Tensor]) -> Floats:
    """Features (N, D) float32 of batches of images, in the mode of evaluation."""
    training = encoder.training
    encoder.eval()
    found = [encoder(images_NCHW).float() for images_NCHW in batches]
    encoder.train(training)
    return torch.cat(found).numpy()


def episode_features(encoder: Encoder, frames: Frames) -> list[Floats]:
    """Features (T, D) of all states of each episode."""
    stack = frames_of(encoder)
    return [
        encode(encoder, (frames.images_NCHW(rows[i : i + BATCH], stack) for i in range(0, len(rows), BATCH)))
        for rows in frames.episode_rows()
    ]


def thumbnails(images_NCHW: torch.Tensor) -> Floats:
    """(N, 3 * 21 * 21) float32: the last frame of a stack, averaged down."""
    small = F.adaptive_avg_pool2d(images_NCHW[:, -3:].float(), THUMBNAIL)
    return small.flatten(1).numpy()


def pixel_features(train: Frames, count: int = 32) -> Callable[[Frames], list[Floats]]:
    """A function frames -> principal components (T, 32) of each episode; fitted on the thumbnails of `train`."""
    pca = Pca.fit(np.concatenate(_episode_thumbnails(train)), count)
    return lambda frames: [pca(part) for part in _episode_thumbnails(frames)]


def _episode_thumbnails(frames: Frames) -> list[Floats]:
    return [
        np.concatenate([thumbnails(frames.images_NCHW(rows[i : i + BATCH])) for i in range(0, len(rows), BATCH)])
        for rows in frames.episode_rows()
    ]


def untrained(spec: EncoderSpec, seed: int) -> Encoder:
    """An encoder of the same kind as it is before training; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(EncoderSpec(spec.arch, spec.in_channels, spec.image_size, spec.mean, spec.std))
