"""HILP: the published objective, and that it turns episodes into distances in time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pictures, run_cli, write_dataset
from frames import dots, frames_of, write_dots
from hypothesis import given, settings
from hypothesis import strategies as st

import vrl3data
from pretrain.frames import HeldOut, find_camera, load_frames, split_positions
from pretrain.loop import Diverged, Draw, LoopConfig, Trainer
from pretrain.objectives.hilp import PUBLISHED, Hilp, HilpConfig, Targets, bootstrap, hilp_loss, value
from pretrain.train import SelfSupervisedConfig, pretrain_hilp
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError

SIZE = 24
TRAIN, HELD_OUT = dots(0, 8), dots(100, 3)
LOOP = LoopConfig(90, 64, optimizer="adam", lr=1e-3, weight_decay=0.0, warmup=0.05, ema=0.0, precision="fp32")


def encoder() -> Encoder:
    return Encoder(EncoderSpec("resnet6_32channel", image_size=SIZE))


def hilp(config: HilpConfig | None = None, seed: int = 0) -> Hilp:
    torch.manual_seed(seed)
    config = config or HilpConfig(pad=1)
    return Hilp([encoder() for _ in range(1 if config.shared else 2)], TRAIN, HELD_OUT, config)


# -- what it learns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_distance_becomes_time_on_episodes_never_seen(tmp_path: Path, seed: int) -> None:
    objective = hilp(seed=seed)
    before = objective.eval().evaluate()
    after = Trainer(objective, replace(LOOP, seed=seed), tmp_path).run()
    assert after["val_pair"] > max(0.85, before["val_pair"] + 0.3)
    assert after["val_goal"] > max(0.85, before["val_goal"] + 0.2)


@pytest.mark.parametrize(
    ("config", "loop"),
    [(HilpConfig(pad=1), replace(LOOP, lr=0.0, steps=5)), (HilpConfig(pad=1, target_rate=1e-9), LOOP)],
    ids=["nothing is trained", "the target stays behind"],
)
def test_it_does_not_without(tmp_path: Path, config: HilpConfig, loop: LoopConfig) -> None:
    """The controls of the test above."""
    assert Trainer(hilp(config), loop, tmp_path).run()["val_pair"] < 0.7


def test_the_published_settings_train_too(tmp_path: Path) -> None:
    """Two encoders, an mlp, geometric goals; with a faster target, since its own takes 20,000 steps."""
    config = replace(PUBLISHED, target_rate=0.1, skip=3, pad=1, hidden=(64,))
    after = Trainer(hilp(config), replace(LOOP, steps=50), tmp_path).run()
    assert after["val_pair"] > 0.75
    assert (PUBLISHED.target_rate, PUBLISHED.gamma, PUBLISHED.expectile, PUBLISHED.latent) == (0.005, 0.99, 0.7, 32)
    assert (PUBLISHED.goal_future, PUBLISHED.skip, PUBLISHED.shared) == (0.625, 1, False)


def test_resume_is_exact_with_its_targets(tmp_path: Path) -> None:
    config = replace(LOOP, steps=8, evaluate_every=3)
    whole = Trainer(hilp(), config, tmp_path / "whole")
    whole.run()
    first = Trainer(hilp(), config, tmp_path / "parts")
    for _ in range(4):
        first.train_step()
        if first.step == 3:
            first.evaluate()
    first.save()
    second = Trainer(hilp(seed=5), config, tmp_path / "parts")
    second.run()
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), second.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert any(name.startswith("target.") for name in whole.model.state_dict())


def test_a_loss_that_is_not_finite_keeps_its_batch(tmp_path: Path) -> None:
    trainer = Trainer(hilp(), LOOP, tmp_path)
    with torch.no_grad():
        trainer.model.phi.heads[0][0].weight.fill_(float("inf"))
    with pytest.raises(Diverged, match=r"at step 0; its batch is in .*diverged_batch.safetensors"):
        trainer.run()
    from safetensors.torch import load_file

    assert load_file(tmp_path / "diverged_batch.safetensors")["frames"].shape == (64, 3, SIZE, SIZE)


# -- the objective -------------------------------------------------------------------------------------------------


def literal_loss(values: Any, after: Any, now: Any, reached: Any, weight: Any, gamma: float, tau: float) -> float:
    """Algorithm of the paper in plain Python, float64, one pair at a time."""
    total = 0.0
    for pair in range(len(weight)):
        reward, mask = (0.0, 0.0) if reached[pair] else (-1.0, 1.0)
        pessimistic = reward + gamma * mask * min(after[0][pair], after[1][pair])
        advantage = pessimistic - (now[0][pair] + now[1][pair]) / 2
        share = abs(tau - (1.0 if advantage < 0 else 0.0))
        for member in (0, 1):
            q = reward + gamma * mask * after[member][pair]
            total += weight[pair] * share * (q - values[member][pair]) ** 2
    return total


def test_the_loss_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    values, after, now = (-rng.uniform(0, 20, (2, 50)) for _ in range(3))
    reached, weight = rng.random(50) < 0.2, rng.dirichlet(np.ones(50))
    targets = Targets(*(torch.from_numpy(part) for part in (after, now, reached, weight)))
    for tau in (0.5, 0.7, 0.95):
        loss, _ = hilp_loss(torch.from_numpy(values), targets, 0.97, tau)
        assert float(loss) == pytest.approx(literal_loss(values, after, now, reached, weight, 0.97, tau), rel=1e-6)


def test_the_value_of_a_state_as_its_own_goal() -> None:
    """-sqrt(1e-6), and a gradient that is zero, not NaN."""
    state = torch.zeros(2, 1, 4, requires_grad=True)
    own = value(state, state.detach())
    assert torch.allclose(own, torch.tensor(-0.001))
    own.sum().backward()
    assert torch.equal(state.grad, torch.zeros_like(state))
    assert float(value(torch.zeros(1, 4), torch.tensor([[3.0, 4.0, 0.0, 0.0]]))) == -5.0


@given(st.floats(0.5, 0.999), st.floats(0, 1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_targets_are_bounded(gamma: float, share: float, reached: bool) -> None:
    """The fixed point of -1 + gamma V is -1 / (1 - gamma): values above it have targets above it."""
    least = -1 / (1 - gamma)
    q = bootstrap(torch.tensor([[share * least]], dtype=torch.float64), torch.tensor([reached]), gamma)
    assert least - 1e-9 <= float(q) <= 0
    assert (float(q) == 0) == reached


def test_targets_follow_by_their_rate() -> None:
    objective = hilp(HilpConfig(target_rate=0.25))
    name = "heads.0.0.bias"
    with torch.no_grad():
        dict(objective.phi.named_parameters())[name].fill_(4.0)
        dict(objective.target.named_parameters())[name].fill_(0.0)
    objective.after_step()
    assert torch.equal(dict(objective.target.named_parameters())[name], torch.full((32,), 1.0))
    assert not any(parameter.requires_grad for parameter in objective.target.parameters())


def tiny(episodes: int, length: int) -> Hilp:
    """Many states, of one pixel each: only indices matter."""
    frames = frames_of([np.zeros((length, 1, 1, 3), np.uint8)] * episodes)
    return Hilp([encoder()], frames, None, replace(PUBLISHED, shared=True, augment=0.0))


def test_goals_of_the_published_sampling() -> None:
    """62.5 % ahead in the same episode, geometric with mean 1 / (1 - gamma); the rest from anywhere."""
    objective, rng = tiny(300, 3000), np.random.default_rng(0)
    layout = objective.train_frames.layout
    episode_B, t_B = rng.integers(0, 300, 40_000), rng.integers(0, 1000, 40_000)
    goals_B = objective._goals(episode_B, t_B, rng)
    offset_B = goals_B - layout.state_rows(episode_B, t_B)
    same_B = (goals_B >= layout.state_starts_E[episode_B]) & (goals_B < layout.state_starts_E[episode_B] + 3000)
    assert same_B.mean() == pytest.approx(0.625, abs=0.02)
    near_B = same_B & (offset_B < 1500)
    assert offset_B[near_B & (offset_B >= 0)].min() == 1
    assert np.median(offset_B[near_B & (offset_B > 0)]) == pytest.approx(math.log(2) / -math.log(0.99), abs=4)
    assert (offset_B[near_B & (offset_B > 0)] == 1).mean() == pytest.approx(0.01, abs=0.004)
    last = np.full(100, 2999)
    ends = objective._goals(np.zeros(100, np.int64), last - 1, rng)
    assert (ends == 2999).mean() > 0.4  # never past the end of the episode


def test_published_batches() -> None:
    objective = tiny(3, 5)
    seen = [objective._published(Draw(0, step, 10, 12), np.random.default_rng(step)) for step in range(40)]
    for rows in seen:
        assert (rows["next"] - rows["frames"] == 1).all()
        assert ((rows["frames"] + 1) % 5 != 0).all()  # the last state has no next one
        assert (rows["reached"] == (rows["frames"] == rows["goals"])).all()
        assert rows["weight"].sum() == pytest.approx(1)
    assert any(rows["reached"].any() for rows in seen)


def test_pairs_of_a_batch() -> None:
    """Future frames of the same episode and frames of others, 0.625 to 0.375; never the past, never itself."""
    objective = hilp()
    rows = objective._pairs(64, np.random.default_rng(0))
    layout = objective.train_frames.layout
    episode_B = np.searchsorted(layout.state_starts_E, rows["frames"], side="right") - 1
    assert sorted(np.bincount(episode_B)[np.bincount(episode_B) > 0]) == [16] * 4
    same = episode_B[:, None] == episode_B
    ahead = rows["frames"] > rows["frames"][:, None]
    weight = rows["weight"]
    assert weight[same].sum() == pytest.approx(0.625, abs=1e-5)
    assert weight[~same].sum() == pytest.approx(0.375, abs=1e-5)
    assert not weight[same & ~ahead].any()
    assert ((weight > 0) == (~same | ahead)).all()
    step = rows["next"] - rows["frames"]
    assert set(step.tolist()) <= {1, 2, 3}
    assert (step == 3).mean() > 0.8


def test_shifts_are_alike_where_goals_belong_to_their_states() -> None:
    """Published: one shift for state, next and goal of an item. Pairs: each frame its own."""
    frames = frames_of([np.random.default_rng(n).integers(0, 255, (6, 24, 24, 3), dtype=np.uint8) for n in range(3)])
    for sampling, alike in (("published", True), ("pairs", False)):
        config = HilpConfig(sampling=sampling, augment=1.0, pad=3, skip=1)
        objective = Hilp([encoder()], frames, None, config)
        batch = objective.sample(Draw(0, 0, 10, 6))
        rows = objective.sample(Draw(0, 0, 10, 6))
        assert all(torch.equal(batch[name], rows[name]) for name in batch)  # the same draw, the same batch
        whole = Hilp([encoder()], frames, None, replace(config, augment=0.0)).sample(Draw(0, 0, 10, 6))
        moves = [[shift_of(whole[name][i], batch[name][i]) for i in range(6)] for name in ("frames", "next")]
        assert (moves[0] == moves[1]) == alike
        assert len(set(moves[0])) > 1


def shift_of(image: torch.Tensor, moved: torch.Tensor) -> tuple[int, int]:
    for down in range(-3, 4):
        for right in range(-3, 4):
            if torch.equal(image[:, 6 + down : 18 + down, 6 + right : 18 + right].float(), moved[:, 6:18, 6:18]):
                return down, right
    raise AssertionError("not a shift")


# -- from a dataset to an encoder ----------------------------------------------------------------------------------


def test_from_episodes_to_an_encoder_by_command(tmp_path: Path) -> None:
    data = write_dots(tmp_path / "set")
    arguments = ["pretrain-encoder", "hilp", "--data", data, "--out", tmp_path / "enc", "--steps", 3,
                 "--image-size", SIZE, "--fold", 1, "--json"]  # fmt: skip
    result = run_cli(*arguments)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert -1 <= facts["val_pair"] <= 1
    assert "training 192/192 images" in result.stderr
    said = Encoder.from_pretrained(tmp_path / "enc").spec.provenance
    assert (said["objective"], said["data"]["held_out"], said["episodes"]) == ("hilp", ["dot-1", "dot-6"], 8)
    with vrl3data.open(data) as dataset:
        assert said["data"]["fingerprint"] == dataset.manifest.fingerprint
    assert said["scores"]["val_pair"] == facts["val_pair"]
    assert str(tmp_path) not in json.dumps(said)


def test_starting_from_an_encoder(tmp_path: Path) -> None:
    data = write_dots(tmp_path / "set")
    torch.manual_seed(9)
    old = encoder().eval()
    old.save_pretrained(tmp_path / "old")
    config = SelfSupervisedConfig(init=tmp_path / "old", steps=1, lr=1e-12, hold_out=0.0)
    made, scores = pretrain_hilp(data, tmp_path / "new", config)
    assert scores == {}
    assert torch.allclose(made.network.stem.weight, old.network.stem.weight)
    assert made.spec.provenance["init"] == {"name": "old"}
    with pytest.raises(ConfigError, match="old has the architecture resnet6_32channel, not resnet10_32channel"):
        pretrain_hilp(data, tmp_path / "x", replace(config, encoder="resnet10_32channel"))
    with pytest.raises(ConfigError, match="old has the image size 24, not 84"):
        pretrain_hilp(data, tmp_path / "x", replace(config, image_size=84))
    Encoder(EncoderSpec("resnet6_32channel", 9, SIZE)).save_pretrained(tmp_path / "stacked")
    with pytest.raises(ConfigError, match="takes stacks of 3 images; start from it before inflate"):
        pretrain_hilp(data, tmp_path / "x", replace(config, init=tmp_path / "stacked"))


def test_another_dataset_to_score_on(tmp_path: Path) -> None:
    data, other = write_dots(tmp_path / "set", 4), write_dots(tmp_path / "other", 5)
    config = SelfSupervisedConfig(image_size=SIZE, steps=1)
    made, scores = pretrain_hilp(data, tmp_path / "enc", config, val=other)
    assert set(scores) == {"val_pair", "val_goal"}
    assert (made.spec.provenance["episodes"], made.spec.provenance["data"]["held_out"]) == (4, [])
    assert made.spec.provenance["data"]["val"]["name"] == "dots"


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    data, small = write_dots(tmp_path / "set", 4), SelfSupervisedConfig(image_size=SIZE, steps=1)
    make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "images")
    for place, config, message in (
        (tmp_path / "images", small, "expected a dataset of episodes, found one of images"),
        (data, replace(small, camera="side"), "no camera 'side'; there are: top"),
        (data, replace(small, camera="tip"), "no camera 'tip'; did you mean 'top'"),
        (
            data,
            SelfSupervisedConfig(steps=1),
            r"frames \(24, 24, 3\) of uint8, the encoder takes \(84, 84",
        ),
        (data, replace(small, hold_out=0.9), "hold-out: expected 0, or a fraction of at most 0.5, found 0.9"),
        (data, replace(small, fold=5), "fold: expected 0 to 4, found 5"),
        (data, replace(small, fold=4), "of 4 episodes, 4 would be trained on and 0 held out"),
        (write_dots(tmp_path / "one", 1), replace(small, hold_out=0.0), "at least two training episodes .*, found 1"),
        (data, replace(small, batch_size=-1), "expected at least one step and a batch of 1 to"),
        (data, replace(small, encoder="resnet7"), "unknown encoder 'resnet7'"),
    ):
        with pytest.raises(ConfigError, match=message):
            pretrain_hilp(place, tmp_path / "enc", config)
    with pytest.raises(ConfigError, match="expected an expectile, gamma and target rate in 0..1"):
        hilp(HilpConfig(expectile=1.0))
    two = write_dots(tmp_path / "two", 4, cameras=("top", "front"))
    with pytest.raises(ConfigError, match="the dataset has the cameras top, front; choose one with --camera"):
        pretrain_hilp(two, tmp_path / "enc", small)
    with vrl3data.open(two) as dataset:
        assert find_camera(dataset, "front", SIZE) == "front"
    result = run_cli("pretrain-encoder", "hilp", "--data", tmp_path / "images", "--out", tmp_path / "enc")
    assert (result.returncode, "found one of images" in result.stderr) == (2, True)
    assert not (tmp_path / "enc").exists()


def test_held_out_episodes() -> None:
    names = [f"e{number}" for number in range(25)]
    assert split_positions(names, HeldOut())[1] == [0, 5, 10, 15, 20]
    assert split_positions(names, HeldOut(fold=2))[1] == [2, 7, 12, 17, 22]
    assert split_positions(names, HeldOut(0.5, 1))[0] == list(range(0, 25, 2))
    assert split_positions(names, HeldOut(names=("e7", "e3")))[1] == [3, 7]
    assert split_positions(names, HeldOut(0.0)) == (list(range(25)), [])
    with pytest.raises(ConfigError, match="1 of the held-out episodes are not in the dataset"):
        split_positions(names, HeldOut(names=("e7", "x")))


def test_frames_without_a_camera_or_a_feature(tmp_path: Path) -> None:
    from conftest import make_spec
    from frames import CAMERA

    from vrl3data.schema import Schema

    with pytest.raises(ConfigError, match="no feature 'obs.stat'; did you mean 'obs.state'"):
        load_frames(write_dataset(tmp_path / "set", 5), 12, features=["obs.stat"])
    schema = make_spec().schema
    blind = Schema("episodes", tuple(f for f in schema.features if f.name != CAMERA))
    from conftest import make_episode

    from vrl3data.writer import Writer

    with Writer(tmp_path / "blind", make_spec(blind)) as writer:
        episode = make_episode(0)
        writer.write(replace(episode, values={k: v for k, v in episode.values.items() if k != CAMERA}))
    with pytest.raises(ConfigError, match=r"the dataset has no camera: none of its features is called obs.image"):
        load_frames(tmp_path / "blind", 12)
