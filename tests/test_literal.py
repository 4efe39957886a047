"""The literal transcription of VRL3's update is itself held against numbers, definitions and PyTorch's own parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from literal_vrl3 import (
    Draws,
    HandAdam,
    LiteralVRL3,
    Weights,
    bc_weight,
    conservative,
    encode,
    normalise,
    policy,
    q_values,
    safe_q,
    sample,
    shift,
)
from torch import Tensor, nn

from vrl3data.encoders.encoder import Encoder, EncoderSpec

B, A, S, R, SIDE = 5, 3, 4, 10, 20


def make_weights(hidden: int = 16, trunk: int = 6, channels: int = 9, sensor: int = S, action: int = A) -> Weights:
    """A whole agent with random weights and random BatchNorm statistics."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("resnet6_32channel", in_channels=channels)).network
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    heads = {"actor.net": (trunk, action), "critic.q1": (trunk + action, 1), "critic.q2": (trunk + action, 1)}
    for name in ("actor", "critic"):
        weights |= named(nn.Linear(256 + sensor, trunk), f"{name}.trunk.0") | named(
            nn.LayerNorm(trunk), f"{name}.trunk.1"
        )
    for name, (inputs, outputs) in heads.items():
        sizes = (inputs, hidden, hidden, outputs)
        for layer in range(3):
            weights |= named(nn.Linear(sizes[layer], sizes[layer + 1]), f"{name}.{2 * layer}")
    return {name: value.double() for name, value in weights.items()}


def named(module: nn.Module, prefix: str) -> Weights:
    return {f"{prefix}.{name}": value.detach() for name, value in module.state_dict().items()}


def make_batch(seed: int = 1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (B, 9, SIDE, SIDE), generator=rng, dtype=torch.uint8) for _ in range(2)]
    sensors = [torch.randn(B, S, generator=rng) for _ in range(2)]
    return {"obs": images[0], "next_obs": images[1], "sensor": sensors[0], "next_sensor": sensors[1],
            "action": torch.rand(B, A, generator=rng) * 2 - 1, "return": torch.randn(B, generator=rng),
            "discount": torch.full((B,), 0.99**3)}  # fmt: skip


def make_draws(seed: int = 2) -> Draws:
    rng = torch.Generator().manual_seed(seed)
    shifts = [torch.randint(0, 9, (B, 2), generator=rng) for _ in range(2)]
    target, cql, cql_next, actor = (torch.randn(B, A, generator=rng) for _ in range(4))
    return Draws(*shifts, target, torch.rand(R, B, A, generator=rng) * 2 - 1, cql, cql_next, actor)


def make_agent(weights: Weights | None = None, **changes: Any) -> LiteralVRL3:
    settings = {"lr": 1e-3, "encoder_lr": 1e-3, "std": 0.1, "cql_weight": 1.0, "bc_weight": 0.5} | changes
    return LiteralVRL3(make_weights() if weights is None else weights, **settings)


def changed(agent: LiteralVRL3, before: Weights) -> set[str]:
    """First parts of the names of the weights that moved."""
    return {name.split(".")[0] for name, value in agent.weights.items() if not torch.equal(value, before[name])}


def test_safe_q() -> None:
    y_B = torch.tensor([-5, 200.5, 201, 300, 10_200], dtype=torch.float64)
    assert safe_q(y_B, 200, 0.5).tolist() == [-5, 200.5, 201, 210, 300]
    assert safe_q(y_B, 200, 1.0).tolist() == y_B.tolist()
    assert safe_q(y_B, 200, 0.0).tolist() == [-5, 200.5, 201, 201, 201]


def test_conservative_penalty() -> None:
    equal_KB = torch.full((13, B), 7.0, dtype=torch.float64)
    assert float(conservative(equal_KB, equal_KB[0])) == pytest.approx(math.log(13))
    weights = make_weights()
    for name in [name for name in weights if name.startswith(("critic.q1.4", "critic.q2.4"))]:
        weights[name] = torch.zeros_like(weights[name])
    metrics = make_agent(weights, cql_weight=2.0).update(make_batch(), make_draws())
    assert metrics["cql"] == pytest.approx(2 * 2 * math.log(13))  # both heads, weight 2
    assert metrics["critic_loss"] == pytest.approx(metrics["td"] + metrics["cql"])
    assert make_agent(cql_weight=0.0).update(make_batch(), make_draws())["cql"] == 0


def test_bc_decay() -> None:
    assert [bc_weight(step, 0.001, 0.5) for step in (0, 39_999, 40_000, 80_000)] == [0.001, 0.001, 0.0005, 0.00025]


def test_parameters_and_sizes() -> None:
    """The published shapes: 256 features and 24 joints in, 50, 1024, 1024; door has 28 actions."""
    weights = make_weights(1024, 50, channels=3, sensor=24, action=28)
    assert sum(value.numel() for name, value in weights.items() if name.startswith("actor.")) == 1_144_674
    assert sum(value.numel() for name, value in weights.items() if name.startswith("critic.")) == 2_277_192
    learned = [value for name, value in weights.items()
               if name.startswith("encoder.") and not name.endswith(("_mean", "_var", "_tracked"))]  # fmt: skip
    assert sum(value.numel() for value in learned) == 398_208
    assert encode(weights, torch.zeros(2, 3, 84, 84, dtype=torch.float64), train=False).shape == (2, 256)


def test_encoder_is_the_networks() -> None:
    """Values, gradients and running statistics, with the batch's statistics and with the running ones."""
    spec = EncoderSpec("resnet6_32channel", in_channels=9, image_size=SIDE)
    images = make_batch()["obs"]
    for train in (False, True):
        encoder, weights = Encoder(spec).double(), make_weights()
        inner = {name.removeprefix("encoder."): v for name, v in weights.items() if name.startswith("encoder.")}
        encoder.network.load_state_dict(inner)
        encoder.train(train)
        ours_BD = encode(weights, normalise(images.double()), train)
        theirs_BD = encoder(images.double())
        assert torch.allclose(ours_BD, theirs_BD, atol=1e-5)  # the encoder's mean and std come from float32
        for name, value in encoder.network.named_buffers():
            if not name.endswith("tracked"):
                assert torch.allclose(weights[f"encoder.{name}"], value, atol=1e-5)
        moved = not torch.equal(
            weights["encoder.stem_norm.running_mean"], make_weights()["encoder.stem_norm.running_mean"]
        )
        assert moved is train


def test_networks_are_torchs() -> None:
    weights = make_weights()
    s_BF, action_BA = torch.randn(B, 256 + S, dtype=torch.float64), torch.rand(B, A, dtype=torch.float64)

    def build(trunk: str, head: str) -> tuple[nn.Module, nn.Module]:
        last = weights[f"{head}.4.weight"].shape
        first = weights[f"{head}.0.weight"].shape
        body = nn.Sequential(nn.Linear(256 + S, 6), nn.LayerNorm(6), nn.Tanh()).double()
        mlp = nn.Sequential(nn.Linear(first[1], 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, last[0]))
        body.load_state_dict({n.removeprefix(f"{trunk}."): v for n, v in weights.items() if n.startswith(f"{trunk}.")})
        mlp.load_state_dict({n.removeprefix(f"{head}."): v for n, v in weights.items() if n.startswith(f"{head}.")})
        return body, mlp.double()

    body, mlp = build("actor.trunk", "actor.net")
    mean_BA, pretanh_BA = policy(weights, s_BF)
    assert torch.allclose(pretanh_BA, mlp(body(s_BF)))
    assert torch.equal(mean_BA, torch.tanh(pretanh_BA))
    for number, q_B in enumerate(q_values(weights, "critic", s_BF, action_BA), 1):
        body, mlp = build("critic.trunk", f"critic.q{number}")
        assert torch.allclose(q_B, mlp(torch.cat([body(s_BF), action_BA], 1))[:, 0])


def test_adam_is_torchs() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    optimizer, hand, ours = torch.optim.Adam([theirs], lr=0.01), HandAdam(0.01), {"w": start.clone()}
    for step in range(6):
        gradient = torch.randn(4, 3, dtype=torch.float64) * 10.0 ** (step - 3)
        theirs.grad = gradient.clone()
        optimizer.step()
        hand.step(ours, {"w": gradient})
        assert torch.allclose(ours["w"], theirs.detach(), rtol=0, atol=1e-15)


def test_shift() -> None:
    images = torch.arange(2 * 1 * 6 * 6, dtype=torch.float64).view(2, 1, 6, 6)
    moved = shift(images, torch.tensor([[4, 4], [3, 8]]), 4)
    assert torch.equal(moved[0], images[0])  # the middle
    assert torch.equal(moved[1, 0, 1:, :2], images[1, 0, :-1, 4:])  # a row up, four columns to the right
    assert torch.equal(moved[1, 0, 0, :2], images[1, 0, 0, 4:])  # the edge repeated
    assert torch.equal(moved[1, 0, :, 2:], moved[1, 0, :, 1:2].expand(6, 4))


def test_sampled_actions_are_clipped_but_their_gradients_are_not() -> None:
    mean_BA = torch.tensor([[0.0, 0.0, 0.95]], dtype=torch.float64, requires_grad=True)
    action_BA = sample(mean_BA, torch.tensor([[1.0, -50.0, 50.0]]), std=0.1, clip=0.3)
    assert torch.allclose(action_BA, torch.tensor([[0.1, -0.3, 1 - 1e-6]], dtype=torch.float64))
    assert torch.autograd.grad(action_BA.sum(), mean_BA)[0].tolist() == [[1, 1, 1]]


def test_what_an_update_moves() -> None:
    before = make_weights()
    agent = make_agent()
    agent.update(make_batch(), make_draws())
    everything = {"encoder", "actor", "critic", "target"}
    start = before | {n.replace("critic", "target"): v for n, v in before.items() if n.startswith("critic")}
    assert changed(agent, start) == everything
    for name in [name for name in start if name.startswith("target.")]:
        online = agent.weights[name.replace("target.", "critic.")]
        assert torch.allclose(agent.weights[name], 0.99 * start[name] + 0.01 * online, atol=1e-15)
    frozen = [name for name in start if "stem_norm" in name or (name.count(".") == 4 and name.split(".")[3] == "1")]
    assert len(frozen) == 25
    assert all(torch.equal(agent.weights[name], start[name]) for name in frozen)
    still = make_agent(encoder_lr=0.0)
    still.update(make_batch(), make_draws())
    assert changed(still, start) == everything - {"encoder"}


def test_batch_norm_in_train_mode_learns_and_follows_both_batches() -> None:
    agent, start = make_agent(batch_norm="train"), make_weights()
    batch, draws = make_batch(), make_draws()
    agent.update(batch, draws)
    assert not torch.equal(agent.weights["encoder.stem_norm.weight"], start["encoder.stem_norm.weight"])
    running_mean = start["encoder.stem_norm.running_mean"]
    for images, offsets in ((batch["obs"], draws.shift_obs_B2), (batch["next_obs"], draws.shift_next_B2)):
        x = normalise(shift(images.double(), offsets, 4))
        x = torch.conv2d(x, start["encoder.stem.weight"], start["encoder.stem.bias"], stride=2)
        running_mean = 0.9 * running_mean + 0.1 * x.mean(dim=(0, 2, 3))
    assert torch.allclose(agent.weights["encoder.stem_norm.running_mean"], running_mean, atol=1e-12)


def test_target_is_the_return_where_the_environment_ended() -> None:
    batch = make_batch() | {"discount": torch.zeros(B)}
    metrics = make_agent().update(batch, make_draws())
    assert metrics["target"] == pytest.approx(float(batch["return"].double().mean()), abs=1e-12)


def test_errors_of_both_heads_from_the_safe_target() -> None:
    weights = make_weights()
    for name in [name for name in weights if name.startswith(("critic.q1.4", "critic.q2.4"))]:
        weights[name] = torch.zeros_like(weights[name])
    weights["critic.q2.4.bias"] += 1
    batch = make_batch() | {"discount": torch.zeros(B), "return": torch.full((B,), 300.0)}
    metrics = make_agent(weights, cql_weight=0.0).update(batch, make_draws())
    assert metrics["target"] == pytest.approx(210)
    assert metrics["td"] == metrics["critic_loss"] == pytest.approx(210**2 + 209**2)  # no factor of 1/2


def test_target_takes_the_smaller_target_head_at_the_next_state() -> None:
    agent, batch, draws = make_agent(), make_batch() | {"return": torch.zeros(B)}, make_draws()
    agent.weights["target.q2.4.bias"] = agent.weights["target.q2.4.bias"] - 50  # the other head is out of the question
    weights = dict(agent.weights)
    _, next_s_BF = agent.states(weights, batch, draws)
    next_action_BA = sample(policy(weights, next_s_BF)[0], draws.target_noise_BA.double(), 0.1, 0.3)
    smaller_B = q_values(weights, "target", next_s_BF, next_action_BA)[1]
    assert agent.update(batch, draws)["target"] == pytest.approx(0.99**3 * float(smaller_B.mean()), rel=1e-6)


def test_cql_reaches_the_encoder_through_the_policys_action() -> None:
    """The gradient at the stem's bias against finite differences of the loss; the next state stands still."""
    agent, batch, draws = make_agent(), make_batch(), make_draws()
    name, step = "encoder.stem.bias", 1e-6
    bias = agent.weights[name].clone().requires_grad_()
    s_BF, next_s_BF = agent.states(agent.weights | {name: bias}, batch, draws)
    loss, _ = agent.critic_loss(agent.weights, s_BF, next_s_BF, batch, draws)
    gradient = torch.autograd.grad(loss, bias)[0]
    for row in (0, 7, 31):
        values = []
        for sign in (1, -1):
            nudged = agent.weights[name].clone()
            nudged[row] += sign * step
            moved_BF, _ = agent.states(agent.weights | {name: nudged}, batch, draws)
            values.append(float(agent.critic_loss(agent.weights, moved_BF, next_s_BF, batch, draws)[0]))
        assert float(gradient[row]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_actor_sees_the_state_before_and_the_critic_after_the_step() -> None:
    agent, batch, draws = make_agent(), make_batch(), make_draws()
    old = dict(agent.weights)
    s_BF, _ = agent.states(old, batch, draws)
    metrics = agent.update(batch, draws)
    mean_BA, _ = policy(old, s_BF)
    action_BA = sample(mean_BA, draws.actor_noise_BA.double(), 0.1, 0.3)
    q_B = torch.minimum(*q_values(agent.weights, "critic", s_BF, action_BA))
    bc = ((mean_BA - batch["action"].double()) ** 2).mean()
    assert metrics["bc"] == pytest.approx(float(bc))
    assert metrics["pretanh"] == 0
    assert metrics["actor_loss"] == pytest.approx(float(0.5 * bc - q_B.mean()), abs=1e-12)
    stale_B = torch.minimum(*q_values(old, "critic", s_BF, action_BA))
    assert abs(float(stale_B.mean() - q_B.mean())) > 1e-4


def test_pretanh_penalty() -> None:
    weights = make_weights()
    weights["actor.net.4.weight"] = torch.zeros_like(weights["actor.net.4.weight"])
    weights["actor.net.4.bias"] = torch.tensor([7.0, -8.0, 4.0], dtype=torch.float64)
    found = [make_agent(weights, pretanh_weight=weight).update(make_batch(), make_draws()) for weight in (0.0, 0.5)]
    assert found[0]["pretanh"] == pytest.approx((4 + 9 + 0) / 3)
    assert found[1]["actor_loss"] - found[0]["actor_loss"] == pytest.approx(0.5 * found[0]["pretanh"])


@pytest.mark.parametrize(
    "field", ["shift_obs_B2", "shift_next_B2", "target_noise_BA", "uniform_RBA", "cql_noise_BA", "cql_next_noise_BA"]
)
def test_each_draw_matters_to_the_critic(field: str) -> None:
    batch, draws = make_batch(), make_draws()
    other = replace(draws, **{field: getattr(make_draws(seed=3), field)})
    assert make_agent().update(batch, draws)["critic_loss"] != make_agent().update(batch, other)["critic_loss"]


def test_critic_learns_on_one_batch() -> None:
    agent = make_agent(cql_weight=0.0, bc_weight=0.0, lr=1e-2)
    batch = make_batch() | {"discount": torch.zeros(B)}
    losses = [agent.update(batch, make_draws())["td"] for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]
