"""VRL3's losses as functions of tensors (paper, section 3; released code, src/vrl3_agent.py).

Legend: B items of a batch, R actions of a state, A action dimensions. `mask_B` is 1 where an item counts.
"""

from __future__ import annotations

import math

import torch


def safe_q(target_B: torch.Tensor, threshold: float, factor: float) -> torch.Tensor:
    """Bellman targets with what exceeds the threshold by more than 1 raised to `factor` (VRL3, eq. 3): 300 -> 210
    for 200 and 0.5."""
    if factor >= 1:
        return target_B
    excess_B = (target_B - threshold).clamp(min=1.0)
    return torch.where(target_B > threshold + 1, threshold + excess_B**factor, target_B)


def td_loss(q1_B: torch.Tensor, q2_B: torch.Tensor, target_B: torch.Tensor, mask_B: torch.Tensor) -> torch.Tensor:
    """Squared error of both heads, summed over heads, mean over the items that count; no factor of 1/2."""
    errors_B = (q1_B - target_B) ** 2 + (q2_B - target_B) ** 2
    return masked_mean(errors_B, mask_B)


def conservative(q_RB: torch.Tensor, q_data_B: torch.Tensor) -> torch.Tensor:
    """CQL's penalty of one head: mean of logsumexp over R actions (the data's among them), minus the data's Q.

    Temperature 1, no density correction: the form of VRL3's release (Kumar et al. 2020, CQL(rho)). R equal values
    give ln R.
    """
    return (torch.logsumexp(q_RB, dim=0) - q_data_B).mean()


def behaviour_cloning(mean_BA: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
    """Mean squared error between the noise-free action and the data's."""
    return ((mean_BA - action_BA) ** 2).mean()


def pretanh_penalty(pretanh_BA: torch.Tensor, threshold: float) -> torch.Tensor:
    """Mean square of what |pre-tanh| exceeds the threshold by: keeps the tanh from saturating."""
    return ((pretanh_BA.abs() - threshold).clamp(min=0) ** 2).mean()


def bc_weight(start: float, decay: float, agent_step: int, every: int) -> float:
    """Weight of BC in stage 3: start * decay^floor(agent_step / every)."""
    return start * decay ** math.floor(agent_step / every)


def masked_mean(values_B: torch.Tensor, mask_B: torch.Tensor) -> torch.Tensor:
    return (values_B * mask_B).sum() / mask_B.sum().clamp(min=1.0)
