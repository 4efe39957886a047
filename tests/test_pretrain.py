"""Stage 1, supervised: it learns, each part of it matters, and a run that was stopped goes on exactly."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures, run_cli, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import vrl3data
from pretrain import loop as loops
from pretrain import train
from pretrain.augment import CropConfig, center_crop, color_jitter, random_resized_crop, random_shift
from pretrain.loop import Diverged, Draw, LoopConfig, Trainer, rate
from pretrain.objectives import OBJECTIVES
from pretrain.objectives.supervised import VRL3_CONFIG, Supervised, SupervisedConfig
from pretrain.train import PretrainConfig, pretrain_supervised
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError, DamagedError, DestinationError
from vrl3data.images import ImageTable, load_images
from vrl3data.interrupt import deferred

SIZE = 24


def table(count: int = 96, size: int = 32, seed: int = 0) -> ImageTable:
    """Three classes that differ in texture, not in colour: stripes of three orientations, with noise."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(count) % 3
    y, x = np.mgrid[:size, :size]
    waves = [np.sin(x * 1.2), np.sin(y * 1.2), np.sin((x + y) * 0.9)]
    images = [128 + 60 * waves[label][..., None] + rng.normal(0, 25, (size, size, 3)) for label in labels_N]
    pixels = np.clip(np.stack(images), 0, 255).astype(np.uint8)
    return ImageTable(pixels, labels_N.astype(np.int64), ("across", "down", "slant"))


def objective(**change: object) -> Supervised:
    torch.manual_seed(0)
    config = replace(
        SupervisedConfig(image_size=SIZE, sizes=(SIZE,), shares=(1.0,), crop=CropConfig(scale=(0.6, 1), flip=False)),
        **change,
    )
    return Supervised(Encoder(EncoderSpec("resnet6_32channel", image_size=SIZE)), table(), table(60, 28, 1), config)


FAST = LoopConfig(steps=40, batch_size=32, lr=0.05, ema=0.9, precision="fp32", checkpoint_every=10)


def test_it_learns(tmp_path: Path) -> None:
    trainer = Trainer(objective(), FAST, tmp_path)
    before = trainer.evaluate()["val_top1"]
    after = trainer.run()["val_top1"]
    assert before < 0.7
    assert after > 0.9
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == {"step": 40, "val_top1": after}


def test_it_does_not_learn_without_gradient(tmp_path: Path) -> None:
    """The control of the test above: the same run with a learning rate of 0."""
    assert Trainer(objective(), replace(FAST, lr=0.0), tmp_path).run()["val_top1"] < 0.7


def test_the_encoder_learns_and_not_only_the_classifier(tmp_path: Path) -> None:
    trainer = Trainer(objective(), replace(FAST, steps=5), tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    unchanged = [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]
    assert unchanged == []


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resume_is_exact(tmp_path: Path, optimizer: str) -> None:
    """20 steps at once, and 10 + a new trainer + 10, end in the same bits and the same log."""
    config = replace(FAST, steps=20, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 1e-3, evaluate_every=5)
    whole = Trainer(objective(), config, tmp_path / "whole")
    whole.run()
    first = Trainer(objective(), config, tmp_path / "parts")
    for _ in range(10):
        first.train_step()
    first.save()
    second = Trainer(objective(), config, tmp_path / "parts")
    assert second.step == 10
    second.run()
    for one, other in ((whole.model, second.model), (whole.best(), second.best())):
        for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    logs = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in ("whole", "parts")]
    assert logs[0][-2:] == logs[1][-2:]


def test_the_log_goes_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    """What was logged after the last checkpoint is done again, so it must not stand there twice."""
    config = replace(FAST, steps=12, evaluate_every=2, checkpoint_every=100)
    first = Trainer(objective(), config, tmp_path)
    for _ in range(4):
        first.train_step()
        first._log({"loss": 1.0})
        if first.step == 2:
            first.save()
    Trainer(objective(), config, tmp_path).run()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 4, 6, 8, 10, 12, 12]


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    trainer = Trainer(objective(), FAST, tmp_path)
    trainer.train_step()
    trainer.save()
    with pytest.raises(ConfigError, match=r"holds a run with another configuration: lr 0.05, not 0.1; choose"):
        Trainer(objective(), replace(FAST, lr=0.1), tmp_path)
    with pytest.raises(ConfigError, match="another configuration: data None, not other"):
        Trainer(objective(), FAST, tmp_path, run={"data": "other"})
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedError, match="the checkpoint cannot be read"):
        Trainer(objective(), FAST, tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_its_batch(tmp_path: Path) -> None:
    trainer = Trainer(objective(), FAST, tmp_path)
    with torch.no_grad():
        trainer.model.head.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"the loss is nan at step 0; its batch is in .*diverged_batch.safetensors"):
        trainer.run()
    from safetensors.torch import load_file

    assert load_file(tmp_path / "diverged_batch.safetensors")["labels"].shape == (32,)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(tmp_path: Path) -> None:
    trainer = Trainer(objective(), FAST, tmp_path)
    trainer.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = trainer.model.head.weight.detach().clone()
    with pytest.raises(Diverged, match=r"the gradient's norm is (nan|inf) at step 0; its batch is in"):
        trainer.train_step()
    assert torch.equal(trainer.model.head.weight, before)
    assert (tmp_path / "diverged_batch.safetensors").is_file()


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    trainer = Trainer(objective(), replace(FAST, ema=0.5), tmp_path)
    name = "head.bias"
    start = dict(trainer.model.named_parameters())[name].detach().clone()
    trainer.train_step()
    one = dict(trainer.model.named_parameters())[name].detach().clone()
    average = dict(trainer.best().named_parameters())[name].detach()
    # The first update copies the weights (torch's AveragedModel), later ones mix.
    assert torch.allclose(average, one)
    trainer.train_step()
    two = dict(trainer.model.named_parameters())[name].detach()
    assert torch.allclose(dict(trainer.best().named_parameters())[name].detach(), one + 0.5 * (two - one))
    assert not torch.allclose(start, one)
    assert Trainer(objective(), replace(FAST, ema=0.0), tmp_path / "none").average is None


def test_schedules() -> None:
    cosine = LoopConfig(steps=1000, warmup=0.25)
    assert rate(cosine, 0.0) == pytest.approx(0.004, abs=1e-3)
    assert rate(cosine, 0.25) == pytest.approx(1.0)
    assert rate(cosine, 0.625) == pytest.approx(0.5)
    assert rate(cosine, 1.0) == pytest.approx(0.0)
    steps = LoopConfig(steps=90, schedule="step", warmup=0.0)
    assert [rate(LoopConfig(steps=9, schedule="constant", warmup=0.0), p) for p in (0, 1)] == [1.0, 1.0]
    assert [rate(steps, epoch / 90) for epoch in (0, 29, 30, 60, 89)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_weight_decay_spares_norms_and_biases_unless_told() -> None:
    model = objective()
    decayed, spared = loops._optimizer(model, FAST).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (5e-4, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        made = loops._optimizer(model, replace(FAST, optimizer=name, betas=(0.9, 0.95)))
        assert type(made) is kind
        assert made.param_groups[0]["betas"] == (0.9, 0.95)
    (everything,) = loops._optimizer(model, replace(FAST, decay_all=True)).param_groups
    assert len(everything["params"]) == len(list(model.parameters()))


def test_epochs_are_permutations() -> None:
    rows = [Draw(0, step, 40, 32).rows_B(96) for step in range(6)]
    assert sorted(torch.cat(rows[:3]).tolist()) == list(range(96))
    assert sorted(torch.cat(rows[3:]).tolist()) == list(range(96))
    assert not torch.equal(torch.cat(rows[:3]), torch.cat(rows[3:]))


def test_progressive_sizes() -> None:
    supervised = objective(sizes=(12, 16, 24), shares=(0.3, 0.3, 0.4))
    assert [supervised.size_at(p) for p in (0, 0.29, 0.31, 0.59, 0.61, 0.999, 1.0)] == [12, 12, 16, 16, 24, 24, 24]
    assert supervised.sample(Draw(0, 0, 10, 4))["images"].shape == (4, 3, 12, 12)
    for multiple, sizes in ((1, (56, 68, 84)), (12, (60, 72, 84))):
        assert train._objective_config(PretrainConfig(), multiple).sizes == sizes
    assert (VRL3_CONFIG.sizes, VRL3_CONFIG.label_smoothing, VRL3_CONFIG.crop.scale) == ((84,), 0.0, (0.08, 1.0))


# -- augmentations -------------------------------------------------------------------------------------------------


def ramp(count: int = 64, size: int = 32) -> torch.Tensor:
    """Channel 0 is the row, channel 1 the column: what is seen tells where it was."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.stack([y, x, torch.full_like(x, 7)]).float() * 255 / size
    return image.expand(count, 3, size, size).clone()


def test_crops_are_of_the_areas_and_ratios_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = random_resized_crop(ramp(2000), 16, CropConfig(scale=(0.25, 0.25), ratio=(1, 1), flip=False), generator)
    height = (crops[:, 0].amax(dim=(1, 2)) - crops[:, 0].amin(dim=(1, 2))) / 255
    assert height.mean() == pytest.approx(0.5 * 15 / 16, abs=0.01)
    top = crops[:, 0].amin(dim=(1, 2)) / 255
    assert top.min() < 0.05
    assert top.max() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(crops[:, 2], torch.full_like(crops[:, 2], 7 * 255 / 32), atol=1e-3)


def test_half_of_the_crops_are_mirrored() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = random_resized_crop(ramp(1000), 16, CropConfig(scale=(1, 1), ratio=(1, 1)), generator)
    mirrored = (crops[:, 1, 0, 0] > crops[:, 1, 0, -1]).float().mean()
    assert mirrored == pytest.approx(0.5, abs=0.06)
    assert bool((crops[:, 0, 0, 0] < crops[:, 0, -1, 0]).all())  # never upside down


def test_a_whole_crop_is_the_image() -> None:
    crops = random_resized_crop(ramp(4), 32, CropConfig((1, 1), (1, 1), flip=False), torch.Generator())
    assert torch.allclose(crops, ramp(4), atol=1e-3)


@given(st.integers(0, 4), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_shifts_move_whole_pixels_and_repeat_edges(pad: int, seed: int) -> None:
    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    shifted = random_shift(images, pad, torch.Generator().manual_seed(seed))
    draw = torch.randint(0, 2 * pad + 1, (3, 2), generator=torch.Generator().manual_seed(seed)) - pad
    for image, moved, (down, right) in zip(images.float(), shifted, draw.tolist(), strict=True):
        rows = (torch.arange(9) + down).clamp(0, 8)
        columns = (torch.arange(9) + right).clamp(0, 8)
        assert torch.equal(moved, image[:, rows][:, :, columns])


def test_jitter_stays_in_range_and_leaves_grey_grey() -> None:
    images = torch.full((50, 3, 4, 4), 100.0)
    jittered = color_jitter(images, 0.3, torch.Generator().manual_seed(0))
    assert float(jittered.min()) >= 69
    assert float(jittered.max()) <= 131
    assert torch.allclose(jittered[:, 0], jittered[:, 2], atol=1e-3)
    assert jittered[:, 0, 0, 0].std() > 5
    assert center_crop(ramp(1, 10), 4)[0, 0, 0, 0] == pytest.approx(3 * 255 / 10)


# -- from a dataset to an encoder ----------------------------------------------------------------------------------


def test_from_pictures_to_an_encoder_by_command(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures" / "train", count=12)
    make_pictures(tmp_path / "pictures" / "val", count=4)
    vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "set", {"image_size": 40})
    arguments = ["pretrain-encoder", "supervised", "--data", tmp_path / "set", "--out", tmp_path / "enc", "--epochs", 2,
                 "--batch-size", 4, "--image-size", 24, "--json"]  # fmt: skip
    result = run_cli(*arguments)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert 0 <= facts["val_top1"] <= 1
    encoder = Encoder.from_pretrained(tmp_path / "enc")
    said = encoder.spec.provenance
    with vrl3data.open(tmp_path / "set") as dataset:
        assert said["data"]["fingerprint"] == dataset.manifest.fingerprint
    assert (said["objective"], said["classes"], said["images"], said["steps"]) == ("supervised", 2, 12, 6)
    assert "training 24/24 images" in result.stderr
    again = run_cli(*arguments)
    assert "going on at step 6" in again.stderr
    assert json.loads(again.stdout) == facts


def test_ctrl_c_leaves_a_run_that_goes_on_exactly(tmp_path: Path) -> None:
    """A real SIGINT to a real process: exit 130, a checkpoint at the step it met, and the rest as if uninterrupted."""
    make_pictures(tmp_path / "pictures", count=12)
    vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "set", {"image_size": 40})
    arguments = ["pretrain-encoder", "supervised", "--data", str(tmp_path / "set"), "--epochs", "40",
                 "--batch-size", "4", "--image-size", "24", "--precision", "fp32", "--json"]  # fmt: skip
    command = [sys.executable, "-m", "vrl3data", *arguments, "--out", str(tmp_path / "enc")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log, limit = tmp_path / "enc" / "metrics.jsonl", time.monotonic() + 100
    while not log.is_file() and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130, message
    assert "run the same command again to go on" in message
    assert not (tmp_path / "enc" / "encoder.json").exists()
    again = run_cli(*arguments, "--out", tmp_path / "enc")
    assert again.returncode == 0, again.stderr
    stopped = int(again.stderr.split("going on at step ")[1].split()[0])
    assert 50 <= stopped < 120
    assert run_cli(*arguments, "--out", tmp_path / "whole").returncode == 0
    weights = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("enc", "whole")]
    assert weights[0] == weights[1]


def test_a_first_interruption_waits_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    seen = []

    def elsewhere() -> None:
        with deferred() as asked:
            seen.append(asked())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a dataset of images, found one of episodes"):
        pretrain_supervised(write_dataset(tmp_path / "episodes", 1), tmp_path / "enc")
    make_pictures(tmp_path / "one", classes=1)
    vrl3data.convert("imagenet", tmp_path / "one", tmp_path / "one-set")
    with pytest.raises(ConfigError, match="at least two classes, found 1"):
        pretrain_supervised(tmp_path / "one-set", tmp_path / "enc")
    make_pictures(tmp_path / "two", classes=2)
    vrl3data.convert("imagenet", tmp_path / "two", tmp_path / "two-set")
    make_pictures(tmp_path / "three", classes=3)
    vrl3data.convert("imagenet", tmp_path / "three", tmp_path / "three-set")
    with pytest.raises(ConfigError, match="the validation images have 3 classes, not the same 2"):
        pretrain_supervised(tmp_path / "two-set", tmp_path / "enc", val=tmp_path / "three-set")
    with pytest.raises(ConfigError, match="unknown encoder 'resnet7'"):
        pretrain_supervised(tmp_path / "two-set", tmp_path / "enc", PretrainConfig(encoder="resnet7"))
    with pytest.raises(ConfigError, match="a batch of 1 to 96, found 40 and 97"):
        Trainer(objective(), replace(FAST, batch_size=97), tmp_path / "run")
    with pytest.raises(DestinationError, match="cannot write"):
        pretrain_supervised(tmp_path / "two-set", "/proc/no/such/place")
    for place in OBJECTIVES.values():
        module, attribute = place.split(":")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    for folder in ("train/n01", "train/n02", "test/images"):
        make_pictures(tmp_path / "p", count=1)
        (tmp_path / "tiny" / folder).mkdir(parents=True)
        picture = next((tmp_path / "p").rglob("*.JPEG"))
        (tmp_path / "tiny" / folder / "a.JPEG").write_bytes(picture.read_bytes())
    vrl3data.convert("imagenet", tmp_path / "tiny", tmp_path / "set")
    with vrl3data.open(tmp_path / "set") as dataset:
        assert load_images(dataset, 16, "train").images_NHWC.shape == (2, 16, 16, 3)
        with pytest.raises(ConfigError, match="1 images have no label"):
            load_images(dataset, 16, "test")
