"""VRL3's actor and critic (released code, src/vrl3_agent.py).

Legend: B items, S state features (encoder features, then sensors), A action dimensions, R actions of a state.
"""

from __future__ import annotations

import torch
from torch import nn

EPSILON = 1e-6


class Actor(nn.Module):
    """State features (B, S) -> mean action before the tanh (B, A)."""

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, trunk_dim: int) -> None:
        super().__init__()
        self.trunk = _trunk(state_dim, trunk_dim)
        self.net = _mlp(trunk_dim, action_dim, hidden_dim)
        self.apply(orthogonal)

    def forward(self, state_BS: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.net(torch.tanh(self.trunk(state_BS)))
        return mean


class Critic(nn.Module):
    """Two Q functions over one trunk: state features (B, S), actions (B, A) or (R, B, A) -> two of (B,) or (R, B)."""

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int, trunk_dim: int) -> None:
        super().__init__()
        self.trunk = _trunk(state_dim, trunk_dim)
        self.q1 = _mlp(trunk_dim + action_dim, 1, hidden_dim)
        self.q2 = _mlp(trunk_dim + action_dim, 1, hidden_dim)
        self.apply(orthogonal)

    def forward(self, state_BS: torch.Tensor, action_RBA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        trunk_BT = torch.tanh(self.trunk(state_BS))
        return self.heads(trunk_BT, action_RBA)

    def heads(self, trunk_BT: torch.Tensor, action_RBA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Q values for one or several actions of each state, the trunk's output being known."""
        if action_RBA.ndim == 3:
            trunk_BT = trunk_BT.expand(len(action_RBA), -1, -1)
        both = torch.cat([trunk_BT, action_RBA.to(trunk_BT.dtype)], dim=-1)
        return self.q1(both).squeeze(-1), self.q2(both).squeeze(-1)


def sample_action(pretanh_BA: torch.Tensor, noise_BA: torch.Tensor, std: float, clip: float | None) -> torch.Tensor:
    """tanh of the mean plus clipped Gaussian noise, kept in the open cube; the gradient passes the limit (DrQ-v2).

    `noise_BA` is standard normal. Dimensions before (B, A) of the noise are kept.
    """
    mean = torch.tanh(pretanh_BA)
    noise = noise_BA * std
    noisy = mean + (noise.clamp(-clip, clip) if clip is not None else noise)
    limited = noisy.clamp(-1 + EPSILON, 1 - EPSILON)
    return noisy - noisy.detach() + limited.detach()


def orthogonal(module: nn.Module) -> None:
    """Orthogonal weights with gain 1, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias)


def _trunk(state_dim: int, trunk_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(state_dim, trunk_dim), nn.LayerNorm(trunk_dim))


def _mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
