"""The VRL3 agent: one gradient update as the released code makes it, with the switches of `VRL3Config`.

Legend: B items, C channels, H x W pixels, S state features (encoder features, then sensors), A action dimensions,
R random actions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import Diverged
from vrl3data.rl import losses
from vrl3data.rl.config import AgentConfig, EncoderGradient
from vrl3data.rl.networks import Actor, Critic, sample_action

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Draws:
    """All randomness of one update. Noise is standard normal (B, A); `uniform_RBA` lies in [-1, 1]; shifts are
    offsets 0 .. 2 * pad of the crop, int64 (B, 2)."""

    shift_obs_B2: torch.Tensor
    shift_next_B2: torch.Tensor
    target_noise_BA: torch.Tensor
    uniform_RBA: torch.Tensor
    cql_noise_BA: torch.Tensor
    cql_next_noise_BA: torch.Tensor
    actor_noise_BA: torch.Tensor

    @classmethod
    def make(cls, batch: int, action_dim: int, pad: int, n_random: int, generator: torch.Generator) -> Draws:
        """Draws for a batch, all from `generator`."""
        normal = [torch.randn(batch, action_dim, generator=generator) for _ in range(4)]
        shifts = [torch.randint(0, 2 * pad + 1, (batch, 2), generator=generator) for _ in range(2)]
        uniform_RBA = torch.rand(n_random, batch, action_dim, generator=generator) * 2 - 1
        return cls(shifts[0], shifts[1], normal[0], uniform_RBA, normal[1], normal[2], normal[3])

    def to(self, device: str) -> Draws:
        return Draws(*(getattr(self, item.name).to(device) for item in fields(self)))


@dataclass(frozen=True)
class UpdateConfig:
    """What one update of a stage does. `std` is that of the policy for targets, CQL and the actor."""

    std: float
    cql_weight: float = 0.0
    q_weight: float = 1.0
    bc_weight: float = 0.0
    encoder_gradient: EncoderGradient = "critic"


class VRL3Agent(nn.Module):
    """Encoder, actor, critic and target critic with their optimisers.

    `encoder` None: sensors only. `precision` bf16 runs networks in bf16, losses stay in float32.
    """

    def __init__(self, config: AgentConfig, encoder: Encoder | None, sensor_dim: int, action_dim: int,
                 bf16: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.config, self.action_dim, self.bf16 = config, action_dim, bf16
        self.encoder = encoder.to(memory_format=torch.channels_last) if encoder is not None else None
        state_dim = sensor_dim + (encoder.feature_dim if encoder is not None else 0)
        self.actor = Actor(state_dim, action_dim, config.hidden_dim, config.trunk_dim)
        self.critic = Critic(state_dim, action_dim, config.hidden_dim, config.trunk_dim)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.fresh_optimizers()

    @property
    def device(self) -> str:
        return str(next(self.actor.parameters()).device)

    def fresh_optimizers(self) -> None:
        """Adam for each part, without memory."""
        rate = self.config.lr
        rates = {"encoder": rate * self.config.encoder_lr_scale, "actor": rate, "critic": rate}
        parts = {"encoder": self.encoder, "actor": self.actor, "critic": self.critic}
        self.optimizers = {
            name: torch.optim.Adam(part.parameters(), lr=rates[name])
            for name, part in parts.items()
            if part is not None
        }

    def set_lr(self, lr: float) -> None:
        """The learning rate of actor and critic; the encoder's is scaled."""
        for name, optimizer in self.optimizers.items():
            scale = self.config.encoder_lr_scale if name == "encoder" else 1.0
            for group in optimizer.param_groups:
                group["lr"] = lr * scale

    def set_mode(self, batch_norm: str) -> None:
        """train: BatchNorm uses and follows the batch. frozen: it keeps its statistics, scale and shift."""
        self.train()
        if self.encoder is None:
            return
        self.encoder.train(batch_norm == "train")
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(batch_norm == "train")

    def state(self, images_BCHW: torch.Tensor | None, sensor_BS: torch.Tensor | None) -> torch.Tensor:
        """State features (B, S): the encoder's, then the sensors."""
        parts = []
        if self.encoder is not None and images_BCHW is not None:
            parts.append(self.encoder(images_BCHW).float())
        if sensor_BS is not None:
            parts.append(sensor_BS)
        return torch.cat(parts, dim=1)

    def update(self, batch: Batch, draws: Draws, how: UpdateConfig, demo: torch.Tensor | None = None,
               demo_batch: Batch | None = None) -> dict[str, float]:  # fmt: skip
        """One update of critic, encoder and actor (released code, `update`; its order of operations is kept).

        `demo_batch` is what BC imitates (`demo`: shifts of its images), None: the batch itself. Diverged if a loss is
        not finite, before a step is made by it; the actor's comes after the critic's step.
        """
        with self.precision():
            state = self._encode(batch, "obs", draws.shift_obs_B2, grad=how.encoder_gradient != "none")
            next_state = self._encode(batch, "next_obs", draws.shift_next_B2, grad=False)
            taught = None
            if demo_batch is not None and how.bc_weight:
                by_actor = how.encoder_gradient == "actor"
                taught = (self._encode(demo_batch, "obs", demo, grad=by_actor), demo_batch["action"])
        found = self._update_critic(batch, draws, how, state, next_state)
        attached = state if how.encoder_gradient == "actor" and how.bc_weight else None
        found |= self._update_actor(batch, draws, how, state.detach(), taught, attached)
        self._follow()
        return found

    def bc_update(self, batch: Batch, shift_B2: torch.Tensor) -> dict[str, float]:
        """One update of encoder and actor by behaviour cloning alone: the paper's warm-up."""
        with self.precision():
            pretanh_BA = self.actor(self._encode(batch, "obs", shift_B2, grad=True)).float()
        cloning = losses.behaviour_cloning(torch.tanh(pretanh_BA), batch["action"])
        loss = cloning + self._pretanh(pretanh_BA)
        self._check(loss, "behaviour cloning")
        self._step(loss, "actor", *(["encoder"] if self.encoder is not None else []))
        return {"bc": float(cloning.detach())}

    @torch.no_grad()
    def act(self, images_BCHW: torch.Tensor | None, sensor_BS: torch.Tensor | None) -> torch.Tensor:
        """Mean actions (B, A) with BatchNorm's running statistics, in float32 as the saved policy gives them."""
        was_training = self.training and self.encoder is not None and self.encoder.training
        if self.encoder is not None:
            self.encoder.eval()
        action = torch.tanh(self.actor(self.state(images_BCHW, sensor_BS)).float())
        if self.encoder is not None and was_training:
            self.encoder.train()
        return action

    def _encode(self, batch: Batch, name: str, shift_B2: torch.Tensor | None, grad: bool) -> torch.Tensor:
        sensor = batch.get("sensor" if name == "obs" else "next_sensor")
        images = batch.get(name)
        if images is not None and self.encoder is not None:
            if self.config.shift_pad and shift_B2 is not None:
                images = random_shift(images, shift_B2, self.config.shift_pad)
            images = images.to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return self.state(images, sensor)

    def _update_critic(
        self, batch: Batch, draws: Draws, how: UpdateConfig, state: torch.Tensor, next_state: torch.Tensor
    ) -> dict[str, float]:
        through = how.encoder_gradient == "critic" and self.encoder is not None
        state = state if through else state.detach()
        clip = self.config.noise_clip
        with self.precision():
            with torch.no_grad():
                next_pretanh = self.actor(next_state).float()
                next_action = sample_action(next_pretanh, draws.target_noise_BA, how.std, clip)
                target_B = torch.minimum(*self.target(next_state, next_action)).float()
                target_B = losses.safe_q(
                    batch["return"] + batch["discount"] * target_B,
                    self.config.safe_q_threshold, self.config.safe_q_factor,
                )  # fmt: skip
            trunk = torch.tanh(self.critic.trunk(state))
            q1_B, q2_B = (q.float() for q in self.critic.heads(trunk, batch["action"]))
            loss = losses.td_loss(q1_B, q2_B, target_B, batch["mask"])
            found = {"critic_loss": loss.detach(), "q": q1_B.detach().mean(), "target": target_B.mean()}
            if how.cql_weight:
                # Not detached: as released, CQL's policy actions carry gradients to the encoder.
                own = sample_action(self.actor(state).float(), draws.cql_noise_BA, how.std, clip)
                next_own = sample_action(next_pretanh, draws.cql_next_noise_BA, how.std, clip)
                actions_RBA = torch.cat([draws.uniform_RBA, own[None], next_own[None]])
                penalty = self._conservative(trunk, actions_RBA, (q1_B, q2_B))
                loss = loss + how.cql_weight * penalty
                found["cql"] = penalty.detach()
        self._check(loss, "the critic")
        self._step(loss, "critic", *(["encoder"] if through else []))
        return {name: float(value) for name, value in found.items()}

    def _conservative(
        self, trunk: torch.Tensor, actions_RBA: torch.Tensor, data: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Both heads' penalties over the random, the policy's and the data's actions."""
        both = self.critic.heads(trunk, actions_RBA)
        each = [
            losses.conservative(torch.cat([q_RB.float(), q_B[None]]), q_B) for q_RB, q_B in zip(both, data, strict=True)
        ]
        return each[0] + each[1]

    def _update_actor(
        self, batch: Batch, draws: Draws, how: UpdateConfig, state: torch.Tensor,
        taught: tuple[torch.Tensor, torch.Tensor] | None, attached: torch.Tensor | None,
    ) -> dict[str, float]:  # fmt: skip
        """`state` is that from before the critic's step, detached; `attached` the same with its graph."""
        found: dict[str, torch.Tensor] = {}
        with self.precision():
            pretanh_BA = self.actor(state).float()
            loss = self._pretanh(pretanh_BA)
            if how.q_weight:
                action = sample_action(pretanh_BA, draws.actor_noise_BA, how.std, self.config.noise_clip)
                with _fixed(self.critic):
                    q_B = torch.minimum(*self.critic(state, action)).float()
                loss = loss - how.q_weight * q_B.mean()
                found["actor_q"] = q_B.detach().mean()
            if how.bc_weight:
                inputs, wanted = (
                    taught if taught is not None else (state if attached is None else attached, batch["action"])
                )
                cloning = losses.behaviour_cloning(torch.tanh(self.actor(inputs).float()), wanted)
                loss = loss + how.bc_weight * cloning
                found["bc"] = cloning.detach()
        self._check(loss, "the actor")
        self._step(loss, "actor", *(["encoder"] if attached is not None and self.encoder is not None else []))
        return {"actor_loss": float(loss.detach()), **{name: float(value) for name, value in found.items()}}

    def _pretanh(self, pretanh_BA: torch.Tensor) -> torch.Tensor:
        return self.config.pretanh_weight * losses.pretanh_penalty(pretanh_BA, self.config.pretanh_threshold)

    def _step(self, loss: torch.Tensor, *parts: str) -> None:
        for part in parts:
            self.optimizers[part].zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for part in parts:
            self.optimizers[part].step()

    def _check(self, loss: torch.Tensor, what: str) -> None:
        if not torch.isfinite(loss):
            raise Diverged(f"the loss of {what} is {float(loss.detach())}; try a smaller learning rate")

    @torch.no_grad()
    def _follow(self) -> None:
        """The target critic's exponential moving average. The encoder has none."""
        for own, target in zip(self.critic.parameters(), self.target.parameters(), strict=True):
            target.lerp_(own, self.config.target_tau)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Networks in bf16 within it, where that was asked for."""
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.bf16):
            yield


@contextmanager
def _fixed(module: nn.Module) -> Iterator[None]:
    """Gradients pass through `module` but not into it: those of the actor's loss are thrown away anyway."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def random_shift(images_BCHW: torch.Tensor, shift_B2: torch.Tensor, pad: int) -> torch.Tensor:
    """Crop (H, W) at `shift_B2` in 0 .. 2 * pad from images with `pad` repeated edge pixels (DrQ-v2), any dtype."""
    batch, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    shift_B2 = shift_B2.to(device)
    rows_BH = (torch.arange(height, device=device) + shift_B2[:, :1] - pad).clamp(0, height - 1)
    columns_BW = (torch.arange(width, device=device) + shift_B2[:, 1:] - pad).clamp(0, width - 1)
    places_B1P = (rows_BH[:, :, None] * width + columns_BW[:, None, :]).view(batch, 1, height * width)
    flat = images_BCHW.reshape(batch, channels, height * width)
    return flat.gather(2, places_B1P.expand(batch, channels, height * width)).view_as(images_BCHW)


def to_tensors(batch: Mapping[str, Any], device: str = "cpu") -> dict[str, torch.Tensor]:
    """A batch of the replay as tensors; what it lacks (images, sensors) is left out."""
    return {name: torch.as_tensor(value).to(device) for name, value in batch.items() if value is not None}
