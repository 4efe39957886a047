"""HILP: an encoder whose distances are temporal distances (Park, Kreiman, Levine 2024, "Foundation Policies with
Hilbert Representations", section 4.1; the representation part only).

V(s, g) = -|phi(s) - phi(g)| is trained as a goal-conditioned value with reward -1 until the goal is reached, by
expectile regression on transitions of episodes. No action is used.

Shapes: B frames of a batch, M = 2 members of the ensemble, L latent dimensions, P pairs of (state, goal).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pretrain.augment import random_shift
from pretrain.features import calibrate, episode_features
from pretrain.frames import Frames
from pretrain.loop import Draw
from pretrain.measures import goal_correlation, mean_over, pair_correlation
from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import ConfigError
from vrl3data.sampling import Ints, Starts, future_states, random_states

MEMBERS = 2
SMALLEST = 1e-6
"""Of squared distances: the value of a state as its own goal is -0.001, with a gradient of zero."""


@dataclass(frozen=True)
class HilpConfig:
    """The defaults reach a representation within minutes; `PUBLISHED` are the settings of the paper.

    `gamma` is per frame; a transition over `skip` frames costs -1 and discounts by gamma^skip. The value grows by
    about one unit per 1 / target_rate steps, so the published rate of 0.005 needs some 20,000 steps for episodes of
    100 frames.
    """

    sampling: Literal["pairs", "published"] = "pairs"
    """published: states drawn alike, goals `goal_future` from the same episode's future (geometric), else from
    anywhere. pairs: some episodes with `frames` frames each, where every frame is a goal of every other one; the
    two kinds weigh the same as there, but offsets are uniform and past frames of the same episode are left out."""
    latent: int = 32
    hidden: tuple[int, ...] = ()
    """Layers between features and latent, each with GELU and LayerNorm."""
    shared: bool = True
    """Whether the two members share the encoder, and differ in the head only."""
    skip: int = 3
    gamma: float = 0.99
    expectile: float = 0.7
    target_rate: float = 0.1
    goal_future: float = 0.625
    frames: int = 16
    augment: float = 1.0
    """Probability that the frames of a batch are shifted, by at most `pad` pixels."""
    pad: int = 4


PUBLISHED = HilpConfig(
    sampling="published", hidden=(512, 512, 512), shared=False, skip=1, target_rate=0.005, augment=0.5, pad=3
)
"""Visual Kitchen of the paper's code: expectile 0.7, gamma 0.99, latent 32 (lr 3e-4, batch 256 are the loop's)."""


class Phi(nn.Module):
    """Images -> latents of all members (M, B, L)."""

    def __init__(self, encoders: list[Encoder], config: HilpConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.heads = nn.ModuleList(_head(encoders[0].feature_dim, config) for _ in range(MEMBERS))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features = [encoder(images_BCHW) for encoder in self.encoders]
        # Distances below a thousandth matter: heads are single precision whatever the encoder runs in.
        with torch.autocast(images_BCHW.device.type, enabled=False):
            latents = [head(features[member % len(features)].float()) for member, head in enumerate(self.heads)]
        return torch.stack(latents)


class Hilp(nn.Module):
    """The ensemble, its targets, its batches and its scores on held-out episodes."""

    def __init__(
        self, encoders: list[Encoder], train: Frames, held_out: Frames | None, config: HilpConfig
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.train_frames, self.held_out = config, train, held_out
        # A transition needs a next state.
        self.starts = Starts(np.maximum(train.layout.states_E - 1, 0))
        usable = int((train.layout.states_E > 1).sum())
        if usable < 2:
            raise ConfigError(f"expected at least two training episodes of two states or more, found {usable}")
        if not (0 < config.expectile < 1 and 0 < config.gamma < 1 and 0 < config.target_rate <= 1 and config.skip > 0):
            raise ConfigError(
                "expected an expectile, gamma and target rate in 0..1 and a skip of at least 1, found "
                f"{config.expectile}, {config.gamma}, {config.target_rate} and {config.skip}"
            )
        self.phi = Phi(encoders, config)
        self.target = Phi([Encoder(encoder.spec) for encoder in encoders], config).requires_grad_(False)
        self.target.load_state_dict(self.phi.state_dict())

    @property
    def encoder(self) -> Encoder:
        """That of the first member: what is used downstream."""
        first: Any = self.phi.encoders[0]
        return first

    @property
    def examples(self) -> int:
        return self.starts.total

    def sample(self, draw: Draw) -> dict[str, torch.Tensor]:
        """frames and next frames; for published also goals. `reached`, `weight`: of each pair of state and goal."""
        rng = draw.rng()
        rows = self._pairs(draw.batch_size, rng) if self.config.sampling == "pairs" else self._published(draw, rng)
        batch = {name: torch.from_numpy(value) for name, value in rows.items() if name in ("reached", "weight")}
        names = [name for name in ("frames", "next", "goals") if name in rows]
        images = [self.train_frames.images_NCHW(rows[name]) for name in names]
        if rng.random() < self.config.augment:
            alike = self.config.sampling == "published"
            images = _shifted(images, self.config.pad, alike, draw.generator())
        return {**dict(zip(names, images, strict=True)), **batch}

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        """The expectile loss over the pairs of the batch."""
        states, pairs, size = batch["frames"], "goals" not in batch, len(batch["frames"])
        with torch.no_grad():
            seen = self.target(torch.cat([states, batch["next"]] + ([] if pairs else [batch["goals"]])))
        now, after = seen[:, :size], seen[:, size : 2 * size]
        online = self.phi(states if pairs else torch.cat([states, batch["goals"]]))
        if pairs:
            values_MP = value(online[:, :, None], online[:, None, :]).flatten(1)
            now_MP, next_MP = (value(latents[:, :, None], now[:, None, :]).flatten(1) for latents in (now, after))
        else:
            values_MP = value(online[:, :size], online[:, size:])
            now_MP, next_MP = value(now, seen[:, 2 * size :]), value(after, seen[:, 2 * size :])
        gamma = self.config.gamma**self.config.skip
        targets = Targets(next_MP, now_MP, batch["reached"].flatten(), batch["weight"].flatten())
        return hilp_loss(values_MP, targets, gamma, self.config.expectile)

    @torch.no_grad()
    def after_step(self) -> None:
        """The targets follow; statistics of batch norms are copied."""
        for own, copy in zip(self.phi.parameters(), self.target.parameters(), strict=True):
            copy.lerp_(own, self.config.target_rate)
        for mine, other in zip(self.phi.buffers(), self.target.buffers(), strict=True):
            other.copy_(mine)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Correlations on the held-out episodes, of the features that are kept. Batch norms are measured anew."""
        calibrate(self.encoder, self.train_frames)
        if self.held_out is None:
            return {}
        episodes = episode_features(self.encoder, self.held_out)
        return {
            "val_pair": mean_over(episodes, pair_correlation),
            "val_goal": mean_over(episodes, goal_correlation),
        }

    def describe(self) -> dict[str, Any]:
        """What goes into the sidecar of the encoder."""
        return {"hilp": asdict(self.config), "episodes": self.train_frames.layout.episodes}

    def _pairs(self, batch_size: int, rng: np.random.Generator) -> dict[str, Any]:
        """Rows of frames, of what follows them, and (B, B) which pair is what."""
        config, layout = self.config, self.train_frames.layout
        usable_E = np.flatnonzero(self.starts.counts_E)
        count = min(max(2, batch_size // config.frames), len(usable_E))
        episode_B = np.repeat(rng.permutation(usable_E)[:count], max(2, batch_size // count))
        t_B = rng.integers(0, self.starts.counts_E[episode_B])
        next_B = np.minimum(t_B + config.skip, layout.states_E[episode_B] - 1)
        same = episode_B[:, None] == episode_B
        future, other = same & (t_B > t_B[:, None]), ~same
        weight = config.goal_future * future / max(1, future.sum()) + (1 - config.goal_future) * other / other.sum()
        return {
            "frames": layout.state_rows(episode_B, t_B),
            "next": layout.state_rows(episode_B, next_B),
            "reached": np.zeros(same.shape, bool),
            "weight": weight.astype(np.float32),
        }

    def _published(self, draw: Draw, rng: np.random.Generator) -> dict[str, Any]:
        config, layout = self.config, self.train_frames.layout
        episode_B, t_B = self.starts.draw(draw.batch_size, rng)
        next_B = np.minimum(t_B + config.skip, layout.states_E[episode_B] - 1)
        rows_B = layout.state_rows(episode_B, t_B)
        goals_B = self._goals(episode_B, t_B, rng)
        return {
            "frames": rows_B,
            "next": layout.state_rows(episode_B, next_B),
            "goals": goals_B,
            "reached": rows_B == goals_B,
            "weight": np.full(len(rows_B), 1 / len(rows_B), np.float32),
        }

    def _goals(self, episode_B: Ints, t_B: Ints, rng: np.random.Generator) -> Ints:
        """State rows: of the same episode's future, or of anywhere."""
        layout = self.train_frames.layout
        ahead_B = layout.state_rows(episode_B, future_states(layout, episode_B, t_B, self.config.gamma, rng))
        anywhere_B = layout.state_rows(*random_states(layout, len(t_B), rng))
        return np.where(rng.random(len(t_B)) < self.config.goal_future, ahead_B, anywhere_B)


@dataclass(frozen=True)
class Targets:
    """Of P pairs: values of the target networks at the next and the present state, which goals are reached, and
    the weight of each pair in the mean (they add up to 1)."""

    next_MP: torch.Tensor
    now_MP: torch.Tensor
    reached_P: torch.Tensor
    weight_P: torch.Tensor


def value(states_MBL: torch.Tensor, goals_MBL: torch.Tensor) -> torch.Tensor:
    """V(s, g) = -|phi(s) - phi(g)|, of each member."""
    squares = (states_MBL - goals_MBL).square().sum(-1)
    return -torch.sqrt(squares.clamp(min=SMALLEST))


def bootstrap(next_MP: torch.Tensor, reached_P: torch.Tensor, gamma: float) -> torch.Tensor:
    """-1 + gamma * V(s', g), or 0 where the goal is reached: never below -1 / (1 - gamma) if the values are not."""
    return torch.where(reached_P, torch.zeros_like(next_MP), gamma * next_MP - 1)


def hilp_loss(
    values_MP: torch.Tensor, targets: Targets, gamma: float, expectile: float
) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
    """Expectile regression: the weight comes from the advantage of the pessimistic target, each member regresses to
    its own. Reward -1, or 0 and no bootstrap where the goal is reached."""
    q_MP = bootstrap(targets.next_MP, targets.reached_P, gamma)
    advantage_P = q_MP.amin(0) - targets.now_MP.mean(0)
    weight_P = targets.weight_P * (expectile - (advantage_P < 0).float()).abs()
    loss = (weight_P * (q_MP - values_MP).square()).sum()
    mean_value = (targets.weight_P * values_MP.detach().mean(0)).sum()
    return loss, {"loss": loss.detach(), "value": mean_value, "least_value": values_MP.detach().min()}


def _head(features: int, config: HilpConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in config.hidden:
        layers += [nn.Linear(features, width), nn.GELU(), nn.LayerNorm(width)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, config.latent))


def _shifted(images: list[torch.Tensor], pad: int, alike: bool, generator: torch.Generator) -> list[torch.Tensor]:
    """`alike`: the same shift for state, next state and goal of an item. Where items are goals of each other, that
    would give away which frames belong together (all others seem equally far), so there each has its own."""
    if alike:
        return list(random_shift(torch.cat(images, dim=1), pad, generator).chunk(len(images), dim=1))
    return [random_shift(batch_BCHW, pad, generator) for batch_BCHW in images]
