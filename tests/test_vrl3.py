"""The agent against a literal transcription of VRL3, its losses against numbers, its switches one by one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_vrl3 import LiteralVRL3

from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError, Diverged
from vrl3data.rl import losses
from vrl3data.rl.agent import Draws, UpdateConfig, VRL3Agent, random_shift
from vrl3data.rl.config import PRESETS, AgentConfig, explain, get, preset
from vrl3data.rl.networks import Actor, Critic, sample_action

SMALL = AgentConfig(hidden_dim=32)
STAGE2 = UpdateConfig(std=0.1, cql_weight=1.0, bc_weight=0.3)
STAGE3 = UpdateConfig(std=0.01, bc_weight=0.001)
SENSORS, ACTIONS, BATCH = 24, 28, 6


def make_agent(config: AgentConfig = SMALL, channels: int = 9, seed: int = 0) -> VRL3Agent:
    torch.manual_seed(seed)
    encoder = Encoder(EncoderSpec("resnet6_32channel", channels))
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # As after stage 1: statistics and affine parameters that are not those of a new layer.
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return VRL3Agent(config, encoder, SENSORS, ACTIONS)


def make_batch(seed: int, channels: int = 9, size: int = 84) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (2, BATCH, channels, 7, 7), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=(size, size)).to(torch.uint8)
    return {
        "obs": images[:BATCH], "next_obs": images[BATCH:],
        "sensor": torch.randn(BATCH, SENSORS, generator=generator),
        "next_sensor": torch.randn(BATCH, SENSORS, generator=generator),
        "action": torch.rand(BATCH, ACTIONS, generator=generator) * 2 - 1,
        "return": torch.rand(BATCH, generator=generator) * 3,
        "discount": torch.where(torch.arange(BATCH) == 2, 0.0, 0.99**3), "mask": torch.ones(BATCH),
    }  # fmt: skip


def make_draws(seed: int) -> Draws:
    return Draws.make(BATCH, ACTIONS, 4, 10, torch.Generator().manual_seed(seed))


def named(agent: VRL3Agent) -> dict[str, torch.Tensor]:
    """Weights under the names of the transcription."""
    weights = {f"encoder.{name}": value for name, value in agent.encoder.network.state_dict().items()}
    for part in ("actor", "critic", "target"):
        weights |= {f"{part}.{name}": value for name, value in getattr(agent, part).state_dict().items()}
    return weights


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
@pytest.mark.parametrize(("how", "channels"), [(STAGE2, 9), (STAGE3, 9), (STAGE2, 27)])
def test_three_updates_equal_the_transcription(batch_norm, how, channels):
    if batch_norm == "train" and channels == 27:
        channels = 3
    config = replace(SMALL, batch_norm=batch_norm, encoder_lr_scale=0.5, safe_q_threshold=1.0)
    agent = make_agent(config, channels)
    literal = LiteralVRL3(
        named(agent), lr=config.lr, encoder_lr=config.lr * 0.5, std=how.std, cql_weight=how.cql_weight,
        bc_weight=how.bc_weight, safe_threshold=1.0, batch_norm=batch_norm,
    )  # fmt: skip
    agent.set_mode(batch_norm)
    for number in range(3):
        batch, draws = make_batch(number, channels), make_draws(number)
        ours, theirs = agent.update(batch, draws, how), literal.update(batch, draws)
        assert ours["critic_loss"] == pytest.approx(theirs["td"], rel=1e-4)
        assert ours["actor_loss"] == pytest.approx(theirs["actor_loss"], rel=1e-4, abs=1e-4)
        assert ours["bc"] == pytest.approx(theirs["bc"], rel=1e-4)
        if how.cql_weight:
            assert ours["cql"] == pytest.approx(theirs["cql"], rel=1e-4)
    for name, value in named(agent).items():
        # Batch statistics take any bias before them away: its gradient is rounding, which Adam gives full length.
        if value.is_floating_point() and not (batch_norm == "train" and name == "encoder.stem.bias"):
            assert float((value.double() - literal.weights[name]).abs().max()) < 1e-4, name


def test_the_critic_learns_a_fixed_batch():
    agent, batch = make_agent(replace(SMALL, lr=1e-3)), make_batch(0)
    agent.set_mode("frozen")
    losses_found = [agent.update(batch, make_draws(n), STAGE3)["critic_loss"] for n in range(25)]
    assert losses_found[-1] < 0.5 * losses_found[0]


def test_safe_q_bends_what_exceeds_the_threshold():
    target = torch.tensor([201.0, 300.0, 200.5, 10_200.0, -5.0])
    assert losses.safe_q(target, 200, 0.5).tolist() == [201.0, 210.0, 200.5, 300.0, -5.0]
    assert losses.safe_q(target, 200, 1.0) is target
    assert losses.safe_q(target, 200, 0.0).tolist() == [201.0, 201.0, 200.5, 201.0, -5.0]


def test_equal_values_cost_ln_13_a_head():
    q_RB, q_B = torch.full((13, 4), 7.0), torch.full((4,), 7.0)
    assert float(losses.conservative(q_RB, q_B)) == pytest.approx(math.log(13), rel=1e-6)


def test_cql_looks_at_thirteen_actions(monkeypatch):
    seen = []
    original = losses.conservative
    monkeypatch.setattr(losses, "conservative", lambda q_RB, q_B: (seen.append(q_RB.shape), original(q_RB, q_B))[1])
    agent = make_agent()
    agent.set_mode("frozen")
    agent.update(make_batch(0), make_draws(0), STAGE2)
    assert seen == [(13, BATCH), (13, BATCH)]


def test_bc_weight_falls_every_forty_thousand_steps():
    weights = [losses.bc_weight(0.001, 0.5, step, 40_000) for step in (0, 39_999, 40_000, 120_000)]
    assert weights == [0.001, 0.001, 0.0005, 0.000125]


def test_pretanh_penalty_counts_only_what_saturates():
    assert float(losses.pretanh_penalty(torch.tensor([[4.0, -7.0]]), 5.0)) == 2.0


def test_the_pretanh_penalty_pulls_a_saturated_actor_back():
    saturations = []
    for weight in (1.0, 0.0):
        agent = make_agent(replace(SMALL, pretanh_weight=weight, lr=1e-2))
        torch.nn.init.constant_(agent.actor.net[4].bias, 8.0)
        agent.set_mode("frozen")
        for number in range(5):
            agent.update(make_batch(0), make_draws(number), replace(STAGE3, q_weight=0.0, bc_weight=0.0))
        saturations.append(float(agent.actor.net[4].bias.detach().mean()))
    assert saturations[0] < 7.99 < saturations[1] == 8.0


def test_masked_items_do_not_count():
    q = torch.tensor([1.0, 5.0])
    assert float(losses.td_loss(q, q, torch.zeros(2), torch.tensor([1.0, 0.0]))) == 2.0
    assert float(losses.td_loss(q, q, torch.zeros(2), torch.zeros(2))) == 0.0


def test_widths_and_parameters_are_those_of_the_release():
    actor, critic = Actor(256 + 24, 28, 1024, 50), Critic(256 + 24, 28, 1024, 50)
    assert actor.trunk[0].in_features == 280
    assert sum(p.numel() for p in actor.parameters()) == pytest.approx(1.14e6, rel=0.01)
    assert sum(p.numel() for p in critic.parameters()) == pytest.approx(2.27e6, rel=0.01)
    for layer in (actor.trunk[0], actor.net[2], critic.q1[2]):
        weight = layer.weight.detach()
        product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        assert torch.allclose(product, torch.eye(len(product)), atol=1e-4)
        assert not layer.bias.any()


def test_actions_are_clipped_with_a_straight_gradient():
    pretanh = torch.tensor([[9.0, 0.0]], requires_grad=True)
    action = sample_action(pretanh, torch.tensor([[5.0, 50.0]]), 0.1, 0.3)
    assert action.tolist() == [[pytest.approx(1 - 1e-6), pytest.approx(0.3)]]
    action.sum().backward()
    assert pretanh.grad[0, 1] == 1.0
    assert pretanh.grad[0, 0] > 0


def test_shifts_equal_padding_and_cropping():
    images = make_batch(0)["obs"]
    shift_B2 = torch.randint(0, 9, (BATCH, 2), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images.float(), (4,) * 4, mode="replicate")
    wanted = [padded[i, :, y : y + 84, x : x + 84] for i, (y, x) in enumerate(shift_B2.tolist())]
    assert torch.equal(random_shift(images, shift_B2, 4).float(), torch.stack(wanted))
    assert torch.equal(random_shift(images, torch.full((BATCH, 2), 4), 4), images)


SWITCHES = {
    "encoder_gradient": (STAGE2, replace(STAGE2, encoder_gradient="none"), ["encoder"]),
    "cql": (STAGE2, replace(STAGE2, cql_weight=0.0), ["critic", "encoder"]),
    "q": (STAGE2, replace(STAGE2, q_weight=0.0), ["actor"]),
    "bc": (STAGE2, replace(STAGE2, bc_weight=0.0), ["actor"]),
    "actor's": (replace(STAGE2, encoder_gradient="actor"), replace(STAGE2, encoder_gradient="none"), ["encoder"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_changes_what_it_should(name):
    """With the switch off another network comes out, and a frozen encoder stays as it was."""
    on, off, parts = SWITCHES[name]
    first = make_agent()
    second, before = copy.deepcopy(first), copy.deepcopy(first.state_dict())
    second.fresh_optimizers()
    for agent, how in ((first, on), (second, off)):
        agent.set_mode("frozen")
        for number in range(2):
            agent.update(make_batch(number), make_draws(number), how)
    for part in parts:
        one, two = (getattr(agent, part).state_dict() for agent in (first, second))
        assert any(not torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    if off.encoder_gradient == "none":
        assert all(torch.equal(before[f"encoder.{key}"], value) for key, value in second.encoder.state_dict().items())


def test_the_target_follows_slowly():
    agent = make_agent()
    agent.set_mode("frozen")
    start = copy.deepcopy(agent.target.state_dict())
    agent.update(make_batch(0), make_draws(0), STAGE3)
    own, target = agent.critic.state_dict(), agent.target.state_dict()
    for name, value in target.items():
        assert torch.allclose(value, start[name] + 0.01 * (own[name] - start[name]), atol=1e-7)
    assert any(not torch.equal(start[name], target[name]) for name in start)


def test_bc_imitates_the_demonstrations_where_they_are_given():
    agent, batch, demo = make_agent(), make_batch(0), make_batch(9)
    agent.set_mode("frozen")
    found = agent.update(batch, make_draws(0), STAGE3, make_draws(5).shift_obs_B2, demo)
    with torch.no_grad():
        fresh = make_agent()
        fresh.set_mode("frozen")
        features = fresh._encode(demo, "obs", make_draws(5).shift_obs_B2, grad=False)
        wanted = losses.behaviour_cloning(torch.tanh(fresh.actor(features)), demo["action"])
    assert found["bc"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_actors_gradient_comes_from_the_demonstrations_too():
    agent, how = make_agent(), replace(STAGE3, encoder_gradient="actor", bc_weight=1.0)
    agent.set_mode("frozen")
    before = agent.encoder.network.stem.weight.detach().clone()
    agent.update(make_batch(0), make_draws(0), how, make_draws(5).shift_obs_B2, make_batch(9))
    assert not torch.equal(before, agent.encoder.network.stem.weight)


def test_a_loss_that_is_not_finite_stops_before_it_changes_anything():
    agent, batch = make_agent(), make_batch(0)
    agent.set_mode("frozen")
    before = copy.deepcopy(agent.state_dict())
    with pytest.raises(Diverged, match=r"the loss of the critic is nan"):
        agent.update({**batch, "return": torch.full((BATCH,), float("nan"))}, make_draws(0), STAGE2)
    assert all(torch.equal(before[name], value) for name, value in agent.state_dict().items())


def test_frozen_batch_norm_stays_and_trained_moves():
    for mode, moved in (("frozen", False), ("train", True)):
        agent = make_agent(replace(SMALL, batch_norm=mode))
        agent.set_mode(mode)
        names = [name for name, _ in agent.encoder.named_buffers() if "running" in name]
        names += [name for name, p in agent.encoder.named_parameters() if "norm" in name and p.ndim == 1]
        before = copy.deepcopy(agent.encoder.state_dict())
        agent.update(make_batch(0), make_draws(0), STAGE2)
        after = agent.encoder.state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in names) == moved


def test_acting_leaves_the_batch_norm_alone():
    agent = make_agent(replace(SMALL, batch_norm="train"))
    agent.set_mode("train")
    before = copy.deepcopy(agent.encoder.state_dict())
    batch = make_batch(0)
    one = agent.act(batch["obs"][:1], batch["sensor"][:1])
    both = agent.act(batch["obs"], batch["sensor"])
    assert torch.allclose(one[0], both[0], atol=1e-5)
    assert agent.encoder.training
    assert all(torch.equal(before[name], value) for name, value in agent.encoder.state_dict().items())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_set_and_where_it_comes_from(name):
    config = preset(name)
    for key, (value, source) in PRESETS[name].items():
        assert get(config, key) == value
        assert len(source) > 3
    assert all(source != "" for _, _, source in explain(config))


def test_settings_are_checked():
    config = preset("paper", {"stage2.updates": "7", "agent.lr": "1e-3", "stage3.protect_demonstrations": "false"})
    assert (config.stage2.updates, config.agent.lr, config.stage3.protect_demonstrations) == (7, 1e-3, False)
    assert ("stage2.updates", "7", "set by you; the preset has 30000") in explain(config)
    with pytest.raises(ConfigError, match=r"no preset 'papre'; did you mean 'paper'"):
        preset("papre")
    with pytest.raises(ConfigError, match=r"no setting 'update'; did you mean 'updates'"):
        preset("paper", {"stage2.update": 1})
    with pytest.raises(ConfigError, match=r"stage2.updates: expected a whole number, found 'many'"):
        preset("paper", {"stage2.updates": "many"})
    with pytest.raises(ConfigError, match="frames is a value"):
        preset("paper", {"frames.x": 1})


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [("agent.batch_norm", "frozn", "no 'frozn'; did you mean 'frozen'"), ("sample_by", "steps", "did you mean 'step'"),
     ("stage2.encoder_gradient", "Critic", "did you mean 'critic'"), ("precision", "bf32", "did you mean"),
     ("agent.n_step", 0, "of at least 1, found 0"), ("agent.gamma", 2, "from 0 to 1, found 2.0"),
     ("batch_size", -1, "of at least 1"), ("stage3.update_every", "0", "of at least 1"), ("frames", 0, "of at least 1"),
     ("agent.lr", "nan", "of at least 0, found nan"), ("stage2.cql_random", -1, "of at least 0")],
)  # fmt: skip
def test_words_and_ranges_are_checked(key, value, match):
    with pytest.raises(ConfigError, match=rf"^{key}: .*{match}"):
        preset("paper", {key: value})


def test_every_setting_is_explained():
    told = {name: (value, source) for name, value, source in explain(preset("bc", {"stage3.q_weight": 5.0}))}
    assert told["stage3.q_weight"] == ("5.0", "set by you; the preset has 1.0")
    assert told["agent.pretanh_weight"][1].startswith("released configuration")
    assert "agent.hidden_dim" in told
    assert "preset" not in told


def test_draws_come_from_the_generator_alone():
    one, two = make_draws(3), make_draws(3)
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in vars(one))
    assert not np.array_equal(one.target_noise_BA, make_draws(4).target_noise_BA)
    assert one.uniform_RBA.shape == (10, BATCH, ACTIONS)
    assert one.uniform_RBA.abs().max() <= 1
    assert 0 <= int(one.shift_obs_B2.min()) <= int(one.shift_obs_B2.max()) <= 8
