"""The masked autoencoder: what is hidden stays hidden, what is drawn is scored, and it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures, run_cli
from frames import dot_images, frames_of, write_dots
from PIL import Image

import vrl3data
from pretrain.augment import CropConfig
from pretrain.loop import Draw, LoopConfig, Trainer
from pretrain.objectives.mae import (
    PICTURE_CROP,
    Mae,
    MaeConfig,
    kept,
    masked_error,
    oracles,
    patchify,
    spread,
    unpatchify,
)
from pretrain.train import MaeOptions, SelfSupervisedConfig, pretrain_mae
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError

SIZE = 48


def shades(number: int) -> np.ndarray:
    """Frames of a colour that differs from frame to frame, darker to one side: a visible patch tells the others."""
    rng = np.random.default_rng(number)
    slope = np.linspace(-40, 40, SIZE)[None, None, :, None]
    return np.asarray(rng.uniform(50, 200, (16, 1, 1, 3)) + slope + np.zeros((16, SIZE, SIZE, 3)), np.uint8)


TRAIN = frames_of([shades(number) for number in range(24)])
HELD_OUT = frames_of([shades(number) for number in range(100, 104)])
LOOP = LoopConfig(100, 32, optimizer="adamw", betas=(0.9, 0.95), lr=2e-3, weight_decay=0.05, warmup=0.1, ema=0.0,
                  precision="fp32")  # fmt: skip


def mae(seed: int = 0, size: int = SIZE, **change: object) -> Mae:
    torch.manual_seed(seed)
    config = replace(MaeConfig(pad=1), **change)
    return Mae(Encoder(EncoderSpec("vit-micro12", image_size=size)), TRAIN, HELD_OUT, config)


def test_how_many_patches_are_kept() -> None:
    """int(L * (1 - 0.75)) for L = 49, 196, 36, 64."""
    assert [kept(length, 0.75) for length in (49, 196, 36, 64)] == [12, 49, 9, 16]
    objective = mae(size=84)
    assert objective.tokens == 49
    hidden_BL = objective.hidden(objective.order(200, torch.Generator().manual_seed(0)))
    assert torch.equal(hidden_BL.sum(1), torch.full((200,), 37))
    assert hidden_BL.float().mean(0) == pytest.approx(torch.full((49,), 37 / 49).numpy(), abs=0.15)
    assert len({tuple(row.tolist()) for row in hidden_BL}) == 200  # each image its own


def test_it_learns_and_draws(tmp_path: Path) -> None:
    objective = mae()
    before = objective.eval().evaluate()
    after = Trainer(objective, LOOP, tmp_path).run()
    assert after["val_over_mean_image"] < 0.5 < before["val_over_mean_image"]
    objective.eval().draw(tmp_path / "deep" / "picture.png")
    with Image.open(tmp_path / "deep" / "picture.png") as picture:
        assert picture.size == (3 * (2 * SIZE + 4), 6 * (2 * SIZE + 4) + 24)


def test_it_does_not_learn_without_gradient(tmp_path: Path) -> None:
    """The control of the test above."""
    assert Trainer(mae(), replace(LOOP, lr=0.0, steps=3), tmp_path).run()["val_over_mean_image"] > 0.9


def test_the_encoder_is_part_of_what_learns(tmp_path: Path) -> None:
    trainer = Trainer(mae(), replace(LOOP, steps=3), tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    assert [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])] == []


def test_what_is_hidden_is_not_seen() -> None:
    objective = mae().eval()
    images = torch.from_numpy(dot_images(0, 4, SIZE)).permute(0, 3, 1, 2).float()
    order = objective.order(4, torch.Generator().manual_seed(0))
    seen_BL1 = ~objective.hidden(order)[..., None]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        guess = objective(images, order)
        for where, equal in ((~seen_BL1, True), (seen_BL1, False)):
            changed = unpatchify(torch.where(where, patchify(noise, 12), patchify(images, 12)), 12)
            assert torch.allclose(objective(changed, order), guess, atol=1e-5) == equal


def test_only_hidden_patches_count() -> None:
    target = torch.zeros(1, 4, 3)
    guess = torch.tensor([[[9.0] * 3, [1.0] * 3, [2.0] * 3, [9.0] * 3]])
    hidden = torch.tensor([[False, True, True, False]])
    assert float(masked_error(guess, target, hidden)) == (1 + 4) / 2


def test_patches_are_those_of_the_encoder() -> None:
    """Row by row, and back; the patch that the encoder embeds first is the first one here."""
    images = torch.arange(2 * 3 * 24 * 36, dtype=torch.float32).view(2, 3, 24, 36)
    patches = patchify(images, 12)
    assert patches.shape == (2, 6, 432)
    assert torch.equal(patches[1, 4].view(12, 12, 3), images[1, :, 12:24, 12:24].permute(1, 2, 0))
    square = torch.rand(2, 3, 48, 48)
    assert torch.equal(unpatchify(patchify(square, 12), 12), square)


def test_targets_that_are_standardised() -> None:
    objective = mae(norm_pix=True)
    images = torch.from_numpy(dot_images(0, 4, SIZE)).permute(0, 3, 1, 2)
    targets = objective.targets(images)
    assert torch.allclose(targets.mean(-1), torch.zeros(4, 16), atol=1e-5)
    assert torch.allclose(targets.var(-1), torch.ones(4, 16), atol=1e-3)
    assert float(mae().targets(images).mean(-1).abs().max()) > 0.5


def test_yardsticks() -> None:
    """By hand: a patch whose left half is red 1, the other 0."""
    target = torch.zeros(1, 1, 4, 3)
    target[0, 0, :2, 0] = 1.0
    target = target.flatten(2)
    known = oracles(target)
    hidden = torch.ones(1, 1, dtype=torch.bool)
    assert float(masked_error(known["patch_mean"], target, hidden)) == pytest.approx(1 / 6 - 1 / 36)
    assert float(masked_error(known["patch_color"], target, hidden)) == pytest.approx(1 / 12)
    assert float(masked_error(known["mean_image"], target, hidden)) == 0


def test_resume_is_exact(tmp_path: Path) -> None:
    config = replace(LOOP, steps=6)
    whole = Trainer(mae(), config, tmp_path / "whole")
    whole.run()
    first = Trainer(mae(), config, tmp_path / "parts")
    for _ in range(3):
        first.train_step()
    first.save()
    second = Trainer(mae(seed=5), config, tmp_path / "parts")
    second.run()
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), second.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_crops_and_shifts() -> None:
    draw = Draw(0, 0, 10, 8)
    shifted = mae(pad=0).sample(draw)["images"]
    rows = draw.rows_B(len(TRAIN)).numpy()
    assert torch.equal(shifted, TRAIN.images_NCHW(rows).float())
    assert not torch.equal(mae(pad=4).sample(draw)["images"], shifted)
    cropped = mae(crop=CropConfig(scale=(0.5, 0.5))).sample(draw)["images"]
    assert cropped.shape == shifted.shape
    assert not torch.equal(cropped, shifted)
    assert PICTURE_CROP.scale == (0.2, 1.0)
    assert spread(3, 10).tolist() == [0, 1, 2]


def test_from_frames_and_from_pictures_by_command(tmp_path: Path) -> None:
    data = write_dots(tmp_path / "set", 6, SIZE)
    arguments = ["pretrain-encoder", "mae", "--data", data, "--out", tmp_path / "enc", "--steps", 2, "--batch-size", 8,
                 "--image-size", SIZE, "--norm-pix", "--json"]  # fmt: skip
    result = run_cli(*arguments)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["val_error"] > 0
    said = Encoder.from_pretrained(tmp_path / "enc").spec.provenance
    assert (said["objective"], said["data"]["held_out"], said["mae"]["norm_pix"]) == ("mae", ["dot-0", "dot-5"], True)
    assert (tmp_path / "enc" / "reconstructions.png").is_file()
    make_pictures(tmp_path / "pictures" / "train", count=8)
    make_pictures(tmp_path / "pictures" / "val", count=4)
    vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "images", {"image_size": 40})
    config = SelfSupervisedConfig(steps=2, batch_size=4, image_size=24)
    encoder, scores = pretrain_mae(tmp_path / "images", tmp_path / "p", config, MaeOptions(mask_ratio=0.5))
    assert scores["val_over_mean_image"] > 0
    assert encoder.spec.provenance["images"] == 8
    assert encoder.spec.provenance["mae"]["crop"]["scale"] == [0.2, 1.0]
    other = pretrain_mae(tmp_path / "images", tmp_path / "q", config, MaeOptions(0.5), val=tmp_path / "images")
    assert other[0].spec.provenance["data"]["val"]["name"] == encoder.spec.provenance["data"]["name"]
    with pytest.raises(ConfigError, match="images have no camera; leave --camera out"):
        pretrain_mae(tmp_path / "images", tmp_path / "x", replace(config, camera="top"))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs patches: resnet6_32channel has none; take vit-micro12"):
        Mae(Encoder(EncoderSpec("resnet6_32channel")), TRAIN, None, MaeConfig())
    with pytest.raises(ConfigError, match="image size: expected a multiple of 12, found 50"):
        mae(size=50)
    for ratio in (0.0, 0.99):
        with pytest.raises(ConfigError, match="mask ratio: expected at least one of 16 patches kept and one hidden"):
            mae(mask_ratio=ratio)
    objective = Mae(Encoder(EncoderSpec("vit-micro12", image_size=SIZE)), TRAIN, None, MaeConfig(norm_pix=True))
    assert objective.eval().evaluate() == {}
    objective.draw(tmp_path / "training.png")
    assert np.asarray(Image.open(tmp_path / "training.png")).std() > 10
