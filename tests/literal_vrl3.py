"""One gradient update of VRL3 written out as its paper and released code describe it, to compare ours with.

Wang et al. 2022 (VRL3), released code `vrl3_agent.py`; stage 2 with `cql_weight` > 0, stage 3 with 0. Plain tensors in
dictionaries, float64, Adam by hand, no module and no code of vrl3data. Slow on purpose: one line per sentence.

Shapes: B samples, C channels (3 * frames * cameras), H x W pixels, D encoder features, S sensor entries,
A action entries, F = D + S, R random actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Batch = Mapping[str, Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDES = (1, 2, 2, 2)
NORMS = ("stem_norm", *(f"stages.{stage}.1" for stage in range(4)))


@dataclass(frozen=True)
class Draws:
    """All that is random in one update. Noises are standard normal, `uniform_RBA` is in [-1, 1].

    Shifts are int64 (B, 2) in 0..2 * pad: rows and columns from the corner of the padded picture.
    """

    shift_obs_B2: Tensor
    shift_next_B2: Tensor
    target_noise_BA: Tensor
    uniform_RBA: Tensor
    cql_noise_BA: Tensor
    cql_next_noise_BA: Tensor
    actor_noise_BA: Tensor


def shift(images_BCHW: Tensor, shift_B2: Tensor, pad: int) -> Tensor:
    """Each picture padded by repeating its edge, and a part of the old size cut out at its shift."""
    height, width = images_BCHW.shape[2:]
    padded = F.pad(images_BCHW, (pad, pad, pad, pad), mode="replicate")
    cut = [image[:, row : row + height, column : column + width]
           for image, (row, column) in zip(padded, shift_B2.tolist(), strict=True)]  # fmt: skip
    return torch.stack(cut)


def normalise(images_BCHW: Tensor) -> Tensor:
    repeats = images_BCHW.shape[1] // 3
    mean = torch.tensor(IMAGENET_MEAN * repeats, dtype=images_BCHW.dtype).view(1, -1, 1, 1)
    std = torch.tensor(IMAGENET_STD * repeats, dtype=images_BCHW.dtype).view(1, -1, 1, 1)
    return (images_BCHW / 255 - mean) / std


def encode(weights: Weights, images_BCHW: Tensor, train: bool) -> Tensor:
    """Normalised pictures -> (B, D) by resnet6. `train` uses the batch's statistics and updates the running ones."""
    x = F.conv2d(images_BCHW, weights["encoder.stem.weight"], weights["encoder.stem.bias"], stride=2)
    x = F.relu(_batch_norm(weights, "encoder.stem_norm", x, train))
    for stage, stride in enumerate(STRIDES):
        x = F.conv2d(x, weights[f"encoder.stages.{stage}.0.weight"], None, stride=stride, padding=1)
        x = F.relu(_batch_norm(weights, f"encoder.stages.{stage}.1", x, train))
    return x.mean(dim=(2, 3))


def _batch_norm(weights: Weights, name: str, x: Tensor, train: bool) -> Tensor:
    mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"], train, 0.1, 1e-5)


def trunk(weights: Weights, name: str, s_BF: Tensor) -> Tensor:
    x = F.linear(s_BF, weights[f"{name}.trunk.0.weight"], weights[f"{name}.trunk.0.bias"])
    scale, offset = weights[f"{name}.trunk.1.weight"], weights[f"{name}.trunk.1.bias"]
    return torch.tanh(F.layer_norm(x, scale.shape, scale, offset))


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    x = F.relu(F.linear(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]))
    x = F.relu(F.linear(x, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"]))
    return F.linear(x, weights[f"{name}.4.weight"], weights[f"{name}.4.bias"])


def policy(weights: Weights, s_BF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean action (B, A) and what it was before tanh."""
    pretanh_BA = mlp(weights, "actor.net", trunk(weights, "actor", s_BF))
    return torch.tanh(pretanh_BA), pretanh_BA


def sample(mean_BA: Tensor, noise_BA: Tensor, std: float, clip: float) -> Tensor:
    """Mean plus clipped noise, clamped into (-1, 1) with the gradient of the identity."""
    raw_BA = mean_BA + torch.clamp(noise_BA * std, -clip, clip)
    clamped_BA = torch.clamp(raw_BA, -1 + 1e-6, 1 - 1e-6)
    return raw_BA - raw_BA.detach() + clamped_BA.detach()


def q_values(weights: Weights, name: str, s_BF: Tensor, action_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Both heads (B,) of `critic` or `target`."""
    x = torch.cat([trunk(weights, name, s_BF), action_BA], dim=1)
    return mlp(weights, f"{name}.q1", x)[:, 0], mlp(weights, f"{name}.q2", x)[:, 0]


def safe_q(y_B: Tensor, threshold: float, factor: float) -> Tensor:
    """Above threshold + 1 only: threshold + (y - threshold) ** factor."""
    if factor >= 1:
        return y_B
    above = y_B > threshold + 1
    return torch.where(above, threshold + torch.where(above, y_B - threshold, 1.0) ** factor, y_B)


def conservative(q_KB: Tensor, q_data_B: Tensor) -> Tensor:
    """CQL's penalty of one head over K values per sample, at temperature 1."""
    return torch.logsumexp(q_KB, dim=0).mean() - q_data_B.mean()


class HandAdam:
    """Adam (Kingma and Ba 2015) with betas 0.9 and 0.999, eps 1e-8, no decay."""

    def __init__(self, lr: float) -> None:
        self.lr, self.steps = lr, 0
        self.first: Weights = {}
        self.second: Weights = {}

    def step(self, weights: Weights, gradients: Weights) -> None:
        self.steps += 1
        for name, gradient in gradients.items():
            m = 0.9 * self.first.get(name, torch.zeros_like(gradient)) + 0.1 * gradient
            v = 0.999 * self.second.get(name, torch.zeros_like(gradient)) + 0.001 * gradient * gradient
            self.first[name], self.second[name] = m, v
            m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
            weights[name] = weights[name] - self.lr * m_hat / (torch.sqrt(v_hat) + 1e-8)


@dataclass(kw_only=True)
class LiteralVRL3:
    """Agent and optimisers. `weights` are copied; read `self.weights` after updates.

    Keys: `encoder.<name in the state dict of resnet6>`, `actor.trunk.0|1`, `actor.net.0|2|4`, `critic.trunk.0|1`,
    `critic.q1.0|2|4`, `critic.q2.0|2|4`, each with `.weight` and `.bias`; `target.` as `critic.`, and taken from it
    where it is not given. `std` is that of the policy for targets, CQL and actor. `cql_weight` 0 is stage 3.
    `batch_norm` frozen: running statistics, no gradient to scale and shift (the paper's runs); train: statistics of the
    batch, gradients, running statistics updated by both forward passes (the released code).
    """

    weights: Weights = field(kw_only=False)
    lr: float
    encoder_lr: float
    std: float
    cql_weight: float
    bc_weight: float
    tau: float = 0.01
    clip: float = 0.3
    safe_threshold: float = 200.0
    safe_factor: float = 0.5
    pretanh_weight: float = 0.001
    pretanh_threshold: float = 5.0
    pad: int = 4
    batch_norm: Literal["frozen", "train"] = "frozen"
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        self.weights = {name: value.detach().clone().to(self.dtype) for name, value in self.weights.items()}
        for name in [name for name in self.weights if name.startswith("critic.")]:
            self.weights.setdefault(name.replace("critic.", "target."), self.weights[name].clone())
        self.encoder_adam, self.critic_adam, self.actor_adam = map(HandAdam, (self.encoder_lr, self.lr, self.lr))

    def update(self, batch: Batch, draws: Draws) -> dict[str, float]:
        """One update, in the order of the released code.

        `batch`: `obs` and `next_obs` uint8 (B, C, H, W), `sensor` and `next_sensor` (B, S), `action` (B, A), `return`
        (B,) of n steps, `discount` (B,), gamma^n or 0 where the environment ended inside the window. Returns
        `critic_loss` (`td` of both heads + weighted `cql`), `actor_loss`, its unweighted `bc` and `pretanh`, and means.
        """
        s_BF, metrics = self.critic_and_encoder_step(batch, draws)
        metrics |= self.actor_step(s_BF.detach(), batch, draws)
        for name in [name for name in self.weights if name.startswith("target.")]:
            online = self.weights[name.replace("target.", "critic.")]
            self.weights[name] = (1 - self.tau) * self.weights[name] + self.tau * online
        return metrics

    def critic_and_encoder_step(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """Returns the state as it was before the step."""
        trained = [name for name in self.weights if name.startswith("critic.") or self._is_trained_encoder(name)]
        weights = self.weights | {name: self.weights[name].clone().requires_grad_() for name in trained}
        s_BF, next_s_BF = self.states(weights, batch, draws)
        loss, metrics = self.critic_loss(weights, s_BF, next_s_BF, batch, draws)
        gradients = dict(zip(trained, torch.autograd.grad(loss, [weights[name] for name in trained]), strict=True))
        self.critic_adam.step(self.weights, {n: g for n, g in gradients.items() if n.startswith("critic.")})
        self.encoder_adam.step(self.weights, {n: g for n, g in gradients.items() if n.startswith("encoder.")})
        return s_BF, metrics

    def states(self, weights: Weights, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Features and sensors of now (with gradient) and of n steps later (without)."""
        train = self.batch_norm == "train"
        obs = normalise(shift(batch["obs"].to(self.dtype), draws.shift_obs_B2, self.pad))
        next_obs = normalise(shift(batch["next_obs"].to(self.dtype), draws.shift_next_B2, self.pad))
        h_BD = encode(weights, obs, train)
        with torch.no_grad():
            next_h_BD = encode(weights, next_obs, train)
        sensor_BS, next_sensor_BS = batch["sensor"].to(self.dtype), batch["next_sensor"].to(self.dtype)
        return torch.cat([h_BD, sensor_BS], dim=1), torch.cat([next_h_BD, next_sensor_BS], dim=1)

    def critic_loss(
        self, weights: Weights, s_BF: Tensor, next_s_BF: Tensor, batch: Batch, draws: Draws
    ) -> tuple[Tensor, dict[str, float]]:
        """Squared errors of both heads, and CQL; the policy of CQL at s sees the features with their gradient."""
        data_BA = batch["action"].to(self.dtype)
        with torch.no_grad():
            next_action_BA = self._sample(weights, next_s_BF, draws.target_noise_BA)
            target_1, target_2 = q_values(weights, "target", next_s_BF, next_action_BA)
            y_B = batch["return"].to(self.dtype) + batch["discount"].to(self.dtype) * torch.minimum(target_1, target_2)
            y_B = safe_q(y_B, self.safe_threshold, self.safe_factor)
        q1_B, q2_B = q_values(weights, "critic", s_BF, data_BA)
        td = ((q1_B - y_B) ** 2).mean() + ((q2_B - y_B) ** 2).mean()
        cql = torch.zeros((), dtype=self.dtype)
        if self.cql_weight > 0:
            actions = [uniform_BA.to(self.dtype) for uniform_BA in draws.uniform_RBA]
            actions.append(data_BA)
            actions.append(self._sample(weights, s_BF, draws.cql_noise_BA))
            actions.append(self._sample(weights, next_s_BF, draws.cql_next_noise_BA))
            values = [q_values(weights, "critic", s_BF, action_BA) for action_BA in actions]
            cql = cql + self.cql_weight * conservative(torch.stack([q1 for q1, _ in values]), q1_B)
            cql = cql + self.cql_weight * conservative(torch.stack([q2 for _, q2 in values]), q2_B)
        loss = td + cql
        found = {"critic_loss": loss, "td": td, "cql": cql}
        found |= {"q1": q1_B.mean(), "q2": q2_B.mean(), "target": y_B.mean()}
        return loss, {name: float(value.detach()) for name, value in found.items()}

    def actor_step(self, s_BF: Tensor, batch: Batch, draws: Draws) -> dict[str, float]:
        """`s_BF` is detached and from before the critic's step; the critic is the one after it."""
        trained = [name for name in self.weights if name.startswith("actor.")]
        weights = self.weights | {name: self.weights[name].clone().requires_grad_() for name in trained}
        mean_BA, pretanh_BA = policy(weights, s_BF)
        action_BA = sample(mean_BA, draws.actor_noise_BA.to(self.dtype), self.std, self.clip)
        q1_B, q2_B = q_values(weights, "critic", s_BF, action_BA)
        bc = ((mean_BA - batch["action"].to(self.dtype)) ** 2).mean()
        pretanh = (torch.clamp(pretanh_BA.abs() - self.pretanh_threshold, min=0) ** 2).mean()
        loss = -torch.minimum(q1_B, q2_B).mean() + self.bc_weight * bc + self.pretanh_weight * pretanh
        gradients = torch.autograd.grad(loss, [weights[name] for name in trained])
        self.actor_adam.step(self.weights, dict(zip(trained, gradients, strict=True)))
        return {"actor_loss": float(loss.detach()), "bc": float(bc.detach()), "pretanh": float(pretanh.detach())}

    def _sample(self, weights: Weights, s_BF: Tensor, noise_BA: Tensor) -> Tensor:
        return sample(policy(weights, s_BF)[0], noise_BA.to(self.dtype), self.std, self.clip)

    def _is_trained_encoder(self, name: str) -> bool:
        if not name.startswith("encoder.") or name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            return False
        is_norm = name.removeprefix("encoder.").rpartition(".")[0] in NORMS
        return self.batch_norm == "train" or not is_norm


def bc_weight(agent_step: int, start: float, decay: float, every: int = 40_000) -> float:
    """Stage 3's weight of behaviour cloning: start * decay ** floor(step / every)."""
    return start * decay ** math.floor(agent_step / every)
