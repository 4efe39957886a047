"""`pretrain-encoder`: from a dataset to an encoder on disk, with where it came from.

Running any of these again goes on where it stopped.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pretrain.augment import CropConfig
from pretrain.frames import HeldOut, SplitFrames, load_frames
from pretrain.loop import LoopConfig, Trainer
from pretrain.objectives.hilp import Hilp, HilpConfig
from pretrain.objectives.mae import PICTURE_CROP, Mae, MaeConfig, Table
from pretrain.objectives.supervised import VRL3_CONFIG, Supervised, SupervisedConfig
from vrl3data import __version__
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError
from vrl3data.report import Reporter, Silent
from vrl3data.stream import Images, ImageStream, open_images

HILP_STEPS = 900
MAE_STEPS = 2000
RECONSTRUCTIONS = "reconstructions.png"
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
    split: str | None = None, stream: bool | None = None, reporter: Reporter | None = None,
) -> tuple[Encoder, dict[str, float]]:  # fmt: skip
    """Train an encoder on labelled images and save it in `out`. Returns it with its scores.

    Running it again goes on where it stopped. `val` is a dataset, or None for the split `val` of `data` if it
    has one. Images that would take more than half of the memory are decoded as they are needed; `stream` says
    whether, and changes no result. ConfigError for data without labels or other classes, Diverged if the loss is
    not finite.
    """
    config, reporter, target = config or PretrainConfig(), reporter or Silent(), Path(out)
    with open_dataset(data) as train_set:
        train, held_out = _tables(train_set, val, split, config, Where(stream, reporter))
        facts = _facts(train_set, config)
    torch.manual_seed(config.seed)
    encoder = Encoder(EncoderSpec(config.encoder, image_size=config.image_size))
    multiple = int(getattr(encoder.network, "patch", 1))
    objective = Supervised(encoder, train, held_out, _objective_config(config, multiple))
    loop = _loop_config(config, len(train))
    return _train(objective, loop, target, facts, reporter)[1:]


@dataclass(frozen=True)
class SelfSupervisedConfig:
    """What `hilp` and `mae` share. 0 and "" stand for the default of the objective and its recipe.

    `init`: an encoder to start from, in place of a random one of the architecture `encoder`. `hold_out`: every
    1/hold_out-th episode, from number `fold` on, is scored on and not trained on; 0 keeps none.
    """

    encoder: str = ""
    init: Path | str | None = None
    camera: str | None = None
    hold_out: float = 0.2
    fold: int = 0
    steps: int = 0
    batch_size: int = 0
    lr: float = 0.0
    image_size: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0


def pretrain_hilp(
    data: Path | str, out: Path | str, config: SelfSupervisedConfig | None = None, hilp: HilpConfig | None = None, *,
    val: Path | str | None = None, reporter: Reporter | None = None,
) -> tuple[Encoder, dict[str, float]]:  # fmt: skip
    """Train an encoder on episodes so that distance says how far apart in time (HILP), and save it in `out`.

    `hilp` PUBLISHED takes the paper's learning rate and batch too. Scores: pair and goal correlation on held-out
    episodes, or on those of `val`. ConfigError for data that does not fit, Diverged if the loss is not finite.
    """
    config, hilp, reporter = config or SelfSupervisedConfig(), hilp or HilpConfig(), reporter or Silent()
    torch.manual_seed(config.seed)
    first, init = start(config, "resnet6_32channel")
    held_out = HeldOut(config.hold_out, config.fold, val=val)
    found = load_frames(data, first.spec.image_size, config.camera, held_out, reporter=reporter)
    encoders = [first] if hilp.shared else [first, start(config, "resnet6_32channel")[0]]
    objective = Hilp(encoders, found.train, found.held_out, hilp)
    long = hilp.sampling == "published"
    loop = LoopConfig(
        config.steps or (500_000 if long else HILP_STEPS),
        min(config.batch_size or (256 if long else 64), objective.examples),
        optimizer="adam", lr=config.lr or (3e-4 if long else 2e-3), weight_decay=0.0, ema=0.0,
        schedule="constant" if long else "cosine", warmup=0.0 if long else 0.05,
        precision=config.precision, seed=config.seed,
    )  # fmt: skip
    facts = {"objective": "hilp", "config": _plain(config), "data": found.data, "init": init, "versions": _versions()}
    return _train(objective, loop, Path(out), facts, reporter)[1:]


@dataclass(frozen=True)
class MaeOptions:
    """`norm_pix`: predict patches that are standardised each (He et al., better features)."""

    mask_ratio: float = 0.75
    norm_pix: bool = False


def pretrain_mae(
    data: Path | str, out: Path | str, config: SelfSupervisedConfig | None = None, mae: MaeOptions | None = None, *,
    val: Path | str | None = None, reporter: Reporter | None = None,
) -> tuple[Encoder, dict[str, float]]:  # fmt: skip
    """Train a vision transformer as a masked autoencoder, on frames of episodes or on images, and save it in `out`.

    Beside it stands reconstructions.png. Frames are shifted by a few pixels, pictures cropped as by He et al.
    Images are scored on `val` or the split `val`, where there is one. ConfigError and Diverged as for
    `pretrain_hilp`.
    """
    config, reporter, target = config or SelfSupervisedConfig(), reporter or Silent(), Path(out)
    torch.manual_seed(config.seed)
    encoder, init = start(config, "vit-micro12")
    found, crop = _pictures(data, encoder.spec.image_size, config, val, reporter)
    settings = mae or MaeOptions()
    mae_config = MaeConfig(settings.mask_ratio, settings.norm_pix, crop=crop)
    objective = Mae(encoder, found[0], found[1], mae_config)
    loop = LoopConfig(
        config.steps or MAE_STEPS, min(config.batch_size or 64, objective.examples),
        optimizer="adamw", lr=config.lr or 1.5e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup=0.1, ema=0.0,
        precision=config.precision, seed=config.seed,
    )  # fmt: skip
    facts = {"objective": "mae", "config": _plain(config), "data": found[2], "init": init, "versions": _versions()}
    trained, saved, scores = _train(objective, loop, target, facts, reporter)
    trained.eval().draw(target / RECONSTRUCTIONS)
    return saved, scores


def start(config: SelfSupervisedConfig, default: str) -> tuple[Encoder, dict[str, Any] | None]:
    """The encoder that training begins with, and what is known of the one it comes from."""
    if config.init is None:
        spec = EncoderSpec(config.encoder or default, image_size=config.image_size or 84)
        return Encoder(spec), None
    encoder = Encoder.from_pretrained(config.init)
    spec = encoder.spec
    for name, wanted, found in (
        ("architecture", config.encoder, spec.arch), ("image size", config.image_size, spec.image_size)
    ):  # fmt: skip
        if wanted and wanted != found:
            raise ConfigError(f"{config.init} has the {name} {found}, not {wanted}; leave the option out")
    if spec.in_channels != 3:
        raise ConfigError(f"{config.init} takes stacks of {spec.in_channels // 3} images; start from it before inflate")
    said = {key: spec.provenance[key] for key in ("objective", "data") if key in spec.provenance}
    fresh = Encoder(replace(spec, provenance={}))
    fresh.load_state_dict(encoder.state_dict())
    return fresh, {"name": Path(config.init).name, **said}


def _train(
    objective: Any, loop: LoopConfig, target: Path, facts: dict[str, Any], reporter: Reporter
) -> tuple[Any, Encoder, dict[str, float]]:
    """(the trained objective, its encoder as it was saved in `target`, scores)."""
    trainer = Trainer(objective, loop, target, reporter, {**facts, **objective.describe()})
    scores = trainer.run()
    best: Any = trainer.best()
    trained: Encoder = best.encoder.eval()
    provenance = {**facts, **objective.describe(), "loop": asdict(loop), "steps": loop.steps, "scores": scores}
    trained.spec = replace(trained.spec, provenance=json.loads(json.dumps(provenance)))
    trained.save_pretrained(target)
    return best, trained, scores


def _pictures(
    data: Path | str, size: int, config: SelfSupervisedConfig, val: Path | str | None, reporter: Reporter
) -> tuple[tuple[Any, Any, dict[str, Any]], CropConfig | None]:
    """(to train on, to score on, what goes into the sidecar), and how to crop pictures."""
    with open_dataset(data) as dataset:
        kind = dataset.schema.kind
        if kind == "images":
            return _images(dataset, size, config, val, reporter), PICTURE_CROP
    found: SplitFrames = load_frames(
        data, size, config.camera, HeldOut(config.hold_out, config.fold, val=val), reporter=reporter
    )
    return (found.train, found.held_out, found.data), None


def _images(
    dataset: Dataset, size: int, config: SelfSupervisedConfig, val: Path | str | None, reporter: Reporter
) -> tuple[Any, Any, dict[str, Any]]:
    if config.camera is not None:
        raise ConfigError("images have no camera; leave --camera out")
    found = dataset.manifest
    facts: dict[str, Any] = {"name": found.name, "fingerprint": found.fingerprint, "license": found.license}
    where = Where(None, reporter)
    train = where.open(dataset, round(size * TRAINING_SCALE), "train" if "train" in found.splits else None)
    if val is not None:
        with open_dataset(val) as other:
            scored = where.open(other, size, None)
            facts["val"] = {"name": other.manifest.name, "fingerprint": other.manifest.fingerprint}
    elif "val" in found.splits:
        scored = where.open(dataset, size, "val")
    else:
        return Table(train), None, facts
    return Table(train), Table(scored), facts


def _plain(config: SelfSupervisedConfig) -> dict[str, Any]:
    """For the sidecar: no path of this machine."""
    return {**asdict(config), "init": None if config.init is None else Path(config.init).name}


@dataclass(frozen=True)
class Where:
    """Whether images stand in memory (None: if they fit), and who is told of it."""

    stream: bool | None
    reporter: Reporter

    def open(self, dataset: Dataset, size: int, split: str | None) -> Images:
        found = open_images(dataset, size, split, self.reporter, self.stream)
        if isinstance(found, ImageStream):
            self.reporter.note(f"{len(found)} images are decoded as they are needed")
        return found


def _tables(
    dataset: Dataset, val: Path | str | None, split: str | None, config: PretrainConfig, where: Where
) -> tuple[Images, Images | None]:
    splits = dataset.manifest.splits
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    train = where.open(dataset, round(config.image_size * TRAINING_SCALE), chosen)
    if len(train.classes) < 2:
        raise ConfigError(f"expected at least two classes, found {len(train.classes)}")
    size = round(config.image_size * VALIDATION_SCALE)
    if val is not None:
        with open_dataset(val) as other:
            return train, where.open(other, size, None)
    return train, where.open(dataset, size, "val") if "val" in splits and chosen != "val" else None


def _objective_config(config: PretrainConfig, multiple: int = 1) -> SupervisedConfig:
    """`multiple`: what sides must be a multiple of, for encoders of patches."""
    base = VRL3_CONFIG if config.recipe == "vrl3" else SupervisedConfig()
    sizes = tuple(max(1, round(size * config.image_size / 84 / multiple)) * multiple for size in base.sizes)
    return replace(base, image_size=config.image_size, sizes=sizes)


def _loop_config(config: PretrainConfig, images: int) -> LoopConfig:
    vrl3 = config.recipe == "vrl3"
    batch = min(config.batch_size or (256 if vrl3 else 64), images)
    steps = (config.epochs or (90 if vrl3 else 180)) * (images // batch)
    common = LoopConfig(steps, batch, lr=config.lr, precision=config.precision, seed=config.seed)
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
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"vrl3data": __version__, "torch": importlib.metadata.version("torch")}
