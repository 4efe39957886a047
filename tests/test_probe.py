"""`probe`: measures with known answers, and encoders whose worth is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures, run_cli
from frames import dots, write_dots
from PIL import Image

import vrl3data
from pretrain import measures
from pretrain.features import calibrate, episode_features, pixel_features, thumbnails, untrained
from pretrain.frames import HeldOut
from pretrain.inflate import inflate
from pretrain.measures import (
    Pca,
    goal_correlation,
    knn_top1,
    linear_top1,
    mean_over,
    pair_correlation,
    r2,
    ranks,
    ridge,
    ridge_r2,
    spearman,
)
from pretrain.picture import strands, time_color
from pretrain.probes import ProbeConfig, probe
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError

SIZE = 24


def encoder(channels: int = 3, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(EncoderSpec("resnet6_32channel", channels, SIZE)).eval()


# -- measures ------------------------------------------------------------------------------------------------------


def test_rank_correlation() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 9.0])).tolist() == [1.5, 0, 1.5, 3]
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 8, 27, 64])) == pytest.approx(1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) for ranks without ties: d = (-1, 1, 0, 0).
    assert spearman(np.array([2.0, 1, 3, 4]), np.array([1.0, 2, 3, 4])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # With ties: Pearson of the ranks (0.5, 0.5, 2) and (0, 1, 2), sqrt(3) / 2.
    assert spearman(np.array([5.0, 5, 7]), np.array([1.0, 2, 3])) == pytest.approx(3**0.5 / 2)
    assert spearman(np.ones(4), np.arange(4.0)) == 0


def test_time_in_distances() -> None:
    line = np.outer(np.arange(30.0), [3.0, 4.0]) + 1e6
    assert pair_correlation(line) == pytest.approx(1)
    assert goal_correlation(line) == pytest.approx(1)
    circle = np.stack([np.cos(np.linspace(0, 6.283, 200)), np.sin(np.linspace(0, 6.283, 200))], 1)
    assert abs(goal_correlation(circle)) < 0.05
    noise = np.random.default_rng(0).normal(size=(200, 16))
    assert abs(pair_correlation(noise)) < 0.1
    assert mean_over([line, line[:2]], pair_correlation) == pytest.approx(1)  # two states have no order


def test_ridge_finds_what_is_there_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(400, 10)), rng.normal(size=(10, 3))
    targets = features @ weights + 5
    groups = np.arange(400) // 40
    found, offsets = ridge(features, targets, 1e-9)
    assert np.allclose(found, weights)
    assert np.allclose(offsets, 5)
    test = rng.normal(size=(100, 10))
    assert ridge_r2(features, targets, groups, (test, test @ weights + 5)).min() > 0.999
    noise = rng.normal(size=(400, 300))
    assert abs(ridge_r2(noise, targets, groups, (rng.normal(size=(100, 300)), test @ weights + 5)).mean()) < 0.1
    assert r2(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]])).tolist() == [0.0]
    assert r2(np.ones((3, 1)), np.zeros((3, 1))).tolist() == [0.0]
    assert ridge_r2(features[:40], targets[:40], groups[:40], (test, test @ weights + 5)).shape == (3,)


def test_the_strength_is_chosen_over_whole_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one episode are alike: left in the fit, they would call for no ridge at all."""
    seen = []
    original = measures._validated
    monkeypatch.setattr(measures, "_validated", lambda f, t, checked: seen.append(checked) or original(f, t, checked))
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(10), 7)
    data = rng.normal(size=(70, 3))
    ridge_r2(data, data, groups, (data, data))
    assert len(seen) == 5
    assert all(len(set(groups[checked]) & set(groups[~checked])) == 0 for checked in seen)
    assert np.sum(seen, axis=0).tolist() == [1] * 70


def test_classifiers() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    centers = rng.normal(size=(3, 8)) * 3
    train, test = (centers[labels] + rng.normal(size=(120, 8)) for _ in range(2))
    assert linear_top1(train, labels, test, labels) > 0.95
    assert knn_top1(train, labels, test, labels) > 0.95
    shuffled = rng.permutation(labels)
    assert linear_top1(train, shuffled, test, labels) < 0.6
    assert knn_top1(train, shuffled, test, labels) < 0.6


def test_principal_components() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 1)) * np.array([[3.0, 4.0, 0.0]]) + rng.normal(size=(200, 3)) * 0.01 + 7
    pca = Pca.fit(rows, 2)
    assert abs(pca.axes_DK[:, 0] @ [0.6, 0.8, 0]) == pytest.approx(1, abs=1e-3)
    assert pca(rows)[:, 0].std() > 100 * pca(rows)[:, 1].std()
    assert np.allclose(pca(rows).mean(0), 0)


# -- features ------------------------------------------------------------------------------------------------------


def test_features_come_per_episode_and_leave_everything_as_it_was() -> None:
    frames, model = dots(0, 3), encoder().train()
    state = torch.random.get_rng_state()
    blank = untrained(model.spec, 3)
    calibrate(blank, frames)
    found = episode_features(blank, frames)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [part.shape for part in found] == [(40, 256)] * 3
    assert model.training
    assert torch.equal(untrained(model.spec, 3).network.stem.weight, blank.network.stem.weight)
    assert [part.shape for part in pixel_features(frames)(frames)] == [(40, 32)] * 3
    image = torch.zeros(1, 9, 42, 42)
    image[:, 6, :2, :2] = 8.0
    assert thumbnails(image).reshape(3, 21, 21)[0, 0, 0] == 8.0  # of the last frame in a stack


def test_stacks_repeat_the_first_frame_and_stay_in_their_episode() -> None:
    frames = dots(0, 2)
    rows = np.array([0, 1, 40, 45])
    stacked = frames.images_NCHW(rows, 3)
    alone = frames.images_NCHW(np.array([0, 0, 0, 0, 0, 1, 40, 40, 40, 43, 44, 45]))
    assert torch.equal(stacked, alone.reshape(4, 9, SIZE, SIZE))


# -- the command ---------------------------------------------------------------------------------------------------


def test_an_encoder_of_episodes(tmp_path: Path) -> None:
    data = write_dots(tmp_path / "set")
    encoder().save_pretrained(tmp_path / "enc")
    result = run_cli("probe", tmp_path / "enc", "--data", data, "--state", "obs.state:0,1", "--json",
                     "--picture", tmp_path / "latents.png")  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found["scores"]) == {"encoder", "random", "pixels"}
    assert set(found["scores"]["pixels"]) == {"pair", "goal", "obs.state[0]_r2", "obs.state[1]_r2", "action_r2"}
    assert found["held_out"] == ["dot-0", "dot-5"]
    # The bar's height is in the pixels: 32 components tell it, and the action, which follows from it.
    assert found["scores"]["pixels"]["obs.state[0]_r2"] > 0.8
    assert found["scores"]["pixels"]["action_r2"] == pytest.approx(
        found["scores"]["pixels"]["obs.state[0]_r2"], abs=0.1
    )
    with Image.open(tmp_path / "latents.png") as picture:
        assert picture.size == (3 * 360, 424)
    people = run_cli("probe", tmp_path / "enc", "--data", data, "--fold", 1)
    assert people.stdout.splitlines()[0].split("  ")[-1].strip() == "pixel PCA(32)"
    assert [line.split()[0] for line in people.stdout.splitlines()[1:]] == ["pair", "goal", "obs.state_r2", "action_r2"]


def test_the_episodes_that_training_held_out_are_scored(tmp_path: Path) -> None:
    data, model = write_dots(tmp_path / "set"), encoder()
    with vrl3data.open(data) as dataset:
        fingerprint = dataset.manifest.fingerprint
    said = {"data": {"fingerprint": fingerprint, "held_out": ["dot-3"], "camera": "top"}}
    model.spec = EncoderSpec(model.spec.arch, 3, SIZE, provenance=said)
    assert probe(model, data)["held_out"] == ["dot-3"]
    assert probe(model, data, ProbeConfig(held_out=HeldOut(fold=2)))["held_out"] == ["dot-2", "dot-7"]
    said["data"]["fingerprint"] = "other"
    assert probe(model, data)["held_out"] == ["dot-0", "dot-5"]
    other = write_dots(tmp_path / "other", 3)
    assert probe(model, data, ProbeConfig(held_out=HeldOut(val=other)))["held_out"] == ["dot-0", "dot-1", "dot-2"]


def test_an_encoder_of_stacks(tmp_path: Path) -> None:
    """The random encoder beside it takes stacks too."""
    data = write_dots(tmp_path / "set", 5)
    found = probe(inflate(encoder(), 3), data)
    assert found["scores"]["encoder"]["pair"] != found["scores"]["random"]["pair"]
    with pytest.raises(ConfigError, match="takes 2 cameras; only encoders of one camera are probed"):
        probe(inflate(encoder(), 3, 2), data)


def test_labelled_images(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures" / "train", count=12)
    make_pictures(tmp_path / "pictures" / "val", count=4)
    vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "set", {"image_size": 40})
    found = probe(encoder(), tmp_path / "set")
    assert (found["kind"], found["images"], found["held_out_images"], found["classes"]) == ("images", 12, 4, 2)
    assert all(0 <= score <= 1 for kind in found["scores"].values() for score in kind.values())
    assert set(found["scores"]["random"]) == {"linear_top1", "knn_top1"}
    with pytest.raises(ConfigError, match="takes stacks of 3 images; probe it as it was before inflate"):
        probe(inflate(encoder(), 3), tmp_path / "set")
    make_pictures(tmp_path / "flat", count=4)
    vrl3data.convert("imagenet", tmp_path / "flat", tmp_path / "flat-set", {"image_size": 40})
    with pytest.raises(ConfigError, match="from the split train to val, found only train"):
        probe(encoder(), tmp_path / "flat-set")


def test_what_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    data = write_dots(tmp_path / "set", 5)
    for config, message in (
        (ProbeConfig(camera="side"), "no camera 'side'"),
        (ProbeConfig(held_out=HeldOut(0.0)), "no episodes are held out: there is nothing to score on"),
        (ProbeConfig(state={"obs.stat": (0,)}), "no vector feature 'obs.stat' .*; did you mean 'obs.state'"),
        (ProbeConfig(state={"obs.image.top": (0,)}), "no vector feature 'obs.image.top'"),
        (ProbeConfig(state={"obs.state": (0, 2)}), r"obs.state has dimensions 0 to 1, found \(0, 2\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            probe(encoder(), data, config)
    with pytest.raises(ConfigError, match=r"the encoder takes \(84, 84, 3\)"):
        probe(Encoder(EncoderSpec("resnet6_32channel")), data)
    encoder().save_pretrained(tmp_path / "enc")
    result = run_cli("probe", tmp_path / "enc", "--data", data, "--state", "obs.state:x")
    assert (result.returncode, "expected FEATURE:I,J such as obs.state:0,1" in result.stderr) == (2, True)


def test_the_picture(tmp_path: Path) -> None:
    """Dark at the start, light at the end, and no part of a strand outside its panel."""
    line = np.stack([np.linspace(0, 1, 50), np.zeros(50)], 1)
    strands(tmp_path / "p.png", {"one": [line], "other": [line * 5, line * 5 + 1]}, {"one": "a", "other": "b"})
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), int)
    panel = pixels[60:390, :360]
    drawn = np.argwhere(panel.sum(-1) < 700)
    left, right = (panel[tuple(drawn[pick(drawn[:, 1])])] for pick in (np.argmin, np.argmax))
    assert left.sum() < right.sum()
    assert sum(time_color(0)) < sum(time_color(0.5)) < sum(time_color(1))
    assert (pixels[60:390, [0, 359, 360, 719]] == 255).all()
