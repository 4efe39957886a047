"""Supervised classification of images: VRL3's stage 1, and a faster recipe for small budgets.

Shapes: B images in a batch, C = 3 channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pretrain.augment import CropConfig, center_crop, random_resized_crop
from pretrain.loop import Draw
from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import ConfigError
from vrl3data.images import ImageTable
from vrl3data.stream import Images, ImageStream

EVALUATION_BATCH = 200


@dataclass(frozen=True)
class SupervisedConfig:
    """`sizes`: image sides over the course of training, each for its share of the steps; the last is the final one.

    The defaults are the fast recipe, for budgets of minutes.
    """

    image_size: int = 84
    sizes: tuple[int, ...] = (56, 68, 84)
    shares: tuple[float, ...] = (0.3, 0.3, 0.4)
    label_smoothing: float = 0.1
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.25, 1.0), jitter=0.3))


VRL3_CONFIG = SupervisedConfig(sizes=(84,), shares=(1.0,), label_smoothing=0.0, crop=CropConfig())
"""Wang et al. 2022, released code: torchvision's RandomResizedCrop and flip, nothing else."""


class Supervised(nn.Module):
    """An encoder with a linear classifier on top, its training batches and its evaluation.

    Images stand in memory, or come as a stream, at a size from which crops are drawn; validation images at
    `image_size * 100 / 84`, of which the centre is taken (VRL3 resizes to 100 and crops 84).
    """

    def __init__(self, encoder: Encoder, train: Images, val: Images | None, config: SupervisedConfig) -> None:
        super().__init__()
        if val is not None and val.classes != train.classes:
            raise ConfigError(
                f"the validation images have {len(val.classes)} classes, not the same {len(train.classes)} as training"
            )
        self.config, self.encoder = config, encoder
        self.head = nn.Linear(encoder.feature_dim, len(train.classes))
        self.train_data = _Data(train)
        self.val_data = _Data(val) if val is not None else None

    @property
    def examples(self) -> int:
        """How many images one epoch has."""
        return len(self.train_data.labels_N)

    def sample(self, draw: Draw) -> dict[str, torch.Tensor]:
        """Augmented images and labels."""
        rows_B = draw.rows_B(self.examples)
        if draw.step + 1 < draw.steps:
            self.train_data.prefetch(lambda: replace(draw, step=draw.step + 1).rows_B(self.examples))
        size, images_BCHW = self.size_at(draw.progress), self.train_data.images_BCHW(rows_B)
        crops_BCHW = random_resized_crop(images_BCHW, size, self.config.crop, draw.generator())
        return {"images": crops_BCHW, "labels": self.train_data.labels_N[rows_B]}

    def size_at(self, progress: float) -> int:
        """Small images first: they cost less, and the last part of training is at full size (progressive resizing).

        `progress` in 0..1 says how far training is.
        """
        end = 0.0
        for size, share in zip(self.config.sizes, self.config.shares, strict=True):
            end += share
            if progress < end:
                return size
        return self.config.sizes[-1]

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        """Cross-entropy, and the share of right answers in the batch."""
        logits_BK = self.head(self.encoder(batch["images"]))
        loss = F.cross_entropy(logits_BK.float(), batch["labels"], label_smoothing=self.config.label_smoothing)
        right = (logits_BK.argmax(dim=1) == batch["labels"]).float().mean()
        return loss, {"loss": loss.detach(), "train_top1": right.detach()}

    def after_step(self) -> None:
        """Nothing follows the weights but the loop's average."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Top-1 on the validation images; nothing without them."""
        if self.val_data is None:
            return {}
        labels_N, right = self.val_data.labels_N, 0
        for start in range(0, len(labels_N), EVALUATION_BATCH):
            stop = min(start + EVALUATION_BATCH, len(labels_N))
            images_BCHW = center_crop(self.val_data.slice_BCHW(start, stop), self.config.image_size)
            answers_B = self.head(self.encoder(images_BCHW)).argmax(dim=1)
            right += int((answers_B == labels_N[start:stop]).sum())
        return {"val_top1": right / len(labels_N)}

    def describe(self) -> dict[str, Any]:
        """What goes into the sidecar of the encoder."""
        return {"classes": self.head.out_features, "images": self.examples}


class _Data:
    """The pictures, shared by all copies of the objective: a moving average copies weights, never data."""

    def __init__(self, images: Images) -> None:
        self.labels_N = torch.from_numpy(images.labels_N)
        self.stream = images if isinstance(images, ImageStream) else None
        # Channels last in memory, channels first in meaning: no copy, and the layout convolutions like on CPUs.
        self.images_NCHW = (
            torch.from_numpy(images.images_NHWC).permute(0, 3, 1, 2) if isinstance(images, ImageTable) else None
        )

    def images_BCHW(self, rows_B: torch.Tensor) -> torch.Tensor:
        if self.images_NCHW is not None:
            return self.images_NCHW[rows_B]
        assert self.stream is not None
        return torch.from_numpy(self.stream.take(rows_B.numpy())).permute(0, 3, 1, 2)

    def slice_BCHW(self, start: int, stop: int) -> torch.Tensor:
        if self.images_NCHW is not None:
            return self.images_NCHW[start:stop]
        assert self.stream is not None
        return torch.from_numpy(self.stream.take(np.arange(start, stop))).permute(0, 3, 1, 2)

    def prefetch(self, rows_B: Callable[[], torch.Tensor]) -> None:
        """Rows that the next step asks for; nothing to do in memory."""
        if self.stream is not None:
            self.stream.prefetch(rows_B().numpy())

    def __deepcopy__(self, memo: dict[int, Any]) -> _Data:
        return self
