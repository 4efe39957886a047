"""`pretrain-encoder`: from a dataset to an encoder on disk, with where it came from."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pretrain.loop import LoopConfig, Trainer
from pretrain.objectives.supervised import VRL3_CONFIG, Supervised, SupervisedConfig
from vrl3data import __version__
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError
from vrl3data.images import ImageTable, load_images
from vrl3data.report import Reporter, Silent

VALIDATION_SCALE = 100 / 84
TRAINING_SCALE = 4 / 3
"""Training images stand at this multiple of the encoder's image size: crops then rarely enlarge."""


@dataclass(frozen=True)
class PretrainConfig:
    """`recipe` fast: for minutes on two cores. vrl3: 90 epochs of the released code's SGD."""

    encoder: str = "resnet6_32channel"
    recipe: Literal["fast", "vrl3"] = "fast"
    epochs: int = 0
    image_size: int = 84
    batch_size: int = 0
    lr: float = 0.1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0


def pretrain_supervised(
    data: Path | str, out: Path | str, config: PretrainConfig | None = None, *, val: Path | str | None = None,
    split: str | None = None, reporter: Reporter | None = None,
) -> tuple[Encoder, dict[str, float]]:  # fmt: skip
    """Train an encoder on labelled images and save it in `out`. Returns it with its scores.

    Running it again goes on where it stopped. `val` is a dataset, or None for the split `val` of `data` if it
    has one. ConfigError for data without labels or other classes, Diverged if the loss is not finite.
    """
    config, reporter, target = config or PretrainConfig(), reporter or Silent(), Path(out)
    with open_dataset(data) as train_set:
        train, held_out = _tables(train_set, val, split, config, reporter)
        facts = _facts(train_set, config)
    torch.manual_seed(config.seed)
    encoder = Encoder(EncoderSpec(config.encoder, image_size=config.image_size))
    objective = Supervised(encoder, train, held_out, _objective_config(config))
    loop = _loop_config(config, len(train))
    trainer = Trainer(objective, loop, target, reporter)
    scores = trainer.run()
    best: Any = trainer.best()
    trained: Encoder = best.encoder.eval()
    provenance = {**facts, **objective.describe(), "steps": loop.steps, "scores": scores}
    trained.spec = replace(trained.spec, provenance=provenance)
    trained.save_pretrained(target)
    return trained, scores


def _tables(
    dataset: Dataset, val: Path | str | None, split: str | None, config: PretrainConfig, reporter: Reporter
) -> tuple[ImageTable, ImageTable | None]:
    splits = dataset.manifest.splits
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    train = load_images(dataset, round(config.image_size * TRAINING_SCALE), chosen, reporter)
    if len(train.classes) < 2:
        raise ConfigError(f"expected at least two classes, found {len(train.classes)}")
    size = round(config.image_size * VALIDATION_SCALE)
    if val is not None:
        with open_dataset(val) as other:
            return train, load_images(other, size, None, reporter)
    return train, load_images(dataset, size, "val", reporter) if "val" in splits and chosen != "val" else None


def _objective_config(config: PretrainConfig) -> SupervisedConfig:
    base = VRL3_CONFIG if config.recipe == "vrl3" else SupervisedConfig()
    sizes = tuple(round(size * config.image_size / 84) for size in base.sizes)
    return replace(base, image_size=config.image_size, sizes=sizes)


def _loop_config(config: PretrainConfig, images: int) -> LoopConfig:
    vrl3 = config.recipe == "vrl3"
    batch = min(config.batch_size or (256 if vrl3 else 64), images)
    steps = (config.epochs or (90 if vrl3 else 180)) * (images // batch)
    common = LoopConfig(steps, batch, config.lr, precision=config.precision, seed=config.seed)
    if not vrl3:
        return common
    return replace(
        common, nesterov=False, weight_decay=1e-4, decay_all=True, schedule="step", warmup=0.0, ema=0.0
    )  # fmt: skip


def _facts(dataset: Dataset, config: PretrainConfig) -> dict[str, Any]:
    found = dataset.manifest
    return {
        "objective": "supervised",
        "config": asdict(config),
        "data": {"name": found.name, "fingerprint": found.fingerprint, "license": found.license},
        "versions": {"vrl3data": __version__, "torch": importlib.metadata.version("torch")},
    }
