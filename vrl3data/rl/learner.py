"""Learner: an agent with its replay and counters, one update at a time, and where it stands on disk.

Update n draws everything from (seed, n), so a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pretrain import checkpoint
from vrl3data import storage
from vrl3data.encoders.batchnorm import recalibrate
from vrl3data.errors import ConfigError, DamagedError, Diverged, locate
from vrl3data.replay import Replay
from vrl3data.rl.agent import Draws, UpdateConfig, VRL3Agent, to_tensors
from vrl3data.rl.config import VRL3Config
from vrl3data.rl.losses import bc_weight
from vrl3data.rl.play import Played
from vrl3data.schema import Array

ONLINE, BATCH = "online", "diverged_batch.safetensors"
BC_DROP_AT, BC_DROP = 0.7, 0.3
SETTLED = ("config.stage3.protect_demonstrations", "config.stage3.capacity")
"""The replay is made of these from the first update on."""
RECALIBRATION = (12, 128)
"""Batches, and images in each, for BatchNorm's statistics after the warm-up."""


@dataclass
class Counters:
    """How far a run is. `updates` counts those of all phases; `frames` raw frames of the environment."""

    bc: int = 0
    offline: int = 0
    calibrated: bool = False
    episodes: int = 0
    agent_steps: int = 0
    frames: int = 0
    online_updates: int = 0
    seconds2: float = 0.0
    seconds3: float = 0.0

    @property
    def updates(self) -> int:
        return self.bc + self.offline + self.online_updates


class Learner:
    """`facts` say what the run is; a checkpoint with others is refused. The replay is shared by both stages."""

    def __init__(self, agent: VRL3Agent, replay: Replay, config: VRL3Config, seed: int, directory: Path,
                 facts: Mapping[str, Any]) -> None:  # fmt: skip
        self.agent, self.replay, self.config, self.seed, self.directory = agent, replay, config, seed, directory
        self.facts = json.loads(json.dumps({**facts, "config": asdict(config), "seed": seed}))
        self.counters = Counters()

    def clone_behaviour(self) -> dict[str, float]:
        """One update of the warm-up (the paper's 5,000 before the critic starts)."""
        stage2, done = self.config.stage2, self.counters.bc
        if stage2.bc_lr:
            self.agent.set_lr(stage2.bc_lr * (BC_DROP if done >= BC_DROP_AT * stage2.bc_updates else 1.0))
        self.agent.set_mode(stage2.bc_batch_norm)
        rng, generator = self._randomness()
        batch = self._batch(self.config.batch_size, rng, episodes="offline", bootstrap=False)
        found = self._guarded(
            batch, lambda: self.agent.bc_update(batch, self._shift(self.config.batch_size, generator))
        )
        self.counters.bc += 1
        return found

    def after_cloning(self) -> None:
        """Between warm-up and critic: BatchNorm's statistics anew if they moved; optimisers as configured."""
        stage2, agent = self.config.stage2, self.agent
        if self.counters.calibrated:
            return
        if agent.encoder is not None and stage2.bc_batch_norm == "train" and self.counters.bc:
            rng = np.random.default_rng((self.seed, 2**31))
            count, size = RECALIBRATION
            batches = (self._batch(size, rng, episodes="offline", bootstrap=False)["obs"] for _ in range(count))
            with agent.precision():
                recalibrate(agent.encoder, batches)
        if stage2.fresh_optimizers:
            agent.fresh_optimizers()
        agent.set_lr(self.config.agent.lr)
        self.counters.calibrated = True

    def learn_offline(self) -> dict[str, float]:
        """One conservative update of stage 2."""
        stage2 = self.config.stage2
        how = UpdateConfig(
            stage2.std, stage2.cql_weight, stage2.q_weight, stage2.bc_weight, stage2.encoder_gradient
        )  # fmt: skip
        progress = self.counters.offline / max(1, stage2.updates)
        self.agent.set_lr(self.config.agent.lr * (1 - (1 - stage2.anneal) * progress))
        found = self._update(how, stage2.cql_random, 0)
        self.counters.offline += 1
        return found

    def learn_online(self) -> dict[str, float]:
        """One update of stage 3."""
        stage3, done = self.config.stage3, self.counters.online_updates
        weight = bc_weight(stage3.bc_weight, stage3.bc_decay, self.counters.agent_steps, stage3.bc_decay_steps)
        q_weight = stage3.q_weight if done >= stage3.q_after else 0.0
        self.agent.set_lr(self.config.agent.lr * stage3.lr_scale)
        how = UpdateConfig(stage3.std, stage3.cql_weight, q_weight, weight, stage3.encoder_gradient)
        found = self._update(how, self.config.stage2.cql_random, stage3.demo_batch if weight else 0)
        self.counters.online_updates += 1
        return found

    def explore(self, images: Array | None, sensor: Array | None) -> Array:
        """The mean action plus noise of stage 3, limited to the open cube: (A,). Not clipped otherwise, as released."""
        mean_A = self.exploit(images, sensor)
        rng = np.random.default_rng((self.seed, 1, self.counters.agent_steps))
        noisy = mean_A + self.config.stage3.std * rng.standard_normal(len(mean_A))
        action_A: Array = np.clip(noisy, -1 + 1e-6, 1 - 1e-6).astype(np.float32)
        return action_A

    def exploit(self, images: Array | None, sensor: Array | None) -> Array:
        """The mean action (A,)."""
        tensors = to_tensors({"obs": images, "sensor": sensor}, self.agent.device)
        action_A: Array = self.agent.act(tensors.get("obs"), tensors.get("sensor"))[0].cpu().numpy()
        return action_A

    @property
    def stage2_done(self) -> bool:
        plan, done = self.config.stage2, self.counters
        return done.bc >= plan.bc_updates and done.offline >= plan.updates

    def remember(self, episode: Played) -> None:
        """Add an online episode to the replay, on disk first."""
        values = episode.values(self.replay.spec.sensor)
        _write_episode(self.directory / ONLINE / f"{self.replay.added:08d}.safetensors", values)
        self.replay.add(values, terminated=episode.terminated)
        self.counters.episodes += 1
        self.counters.frames += episode.frames

    def _update(self, how: UpdateConfig, n_random: int, demo_size: int) -> dict[str, float]:
        size = self.config.batch_size
        self.agent.set_mode(self.config.agent.batch_norm)
        rng, generator = self._randomness()
        batch = self._batch(size, rng)
        draws = Draws.make(size, self.agent.action_dim, self.config.agent.shift_pad, n_random, generator)
        demo = shift = None
        if demo_size and self.replay.offline_episodes:
            demo = self._batch(demo_size, rng, episodes="offline", bootstrap=False)
            shift = self._shift(demo_size, generator)
        draws = draws.to(self.agent.device)
        return self._guarded(batch, lambda: self.agent.update(batch, draws, how, shift, demo))

    def _batch(self, size: int, rng: np.random.Generator, **options: Any) -> dict[str, torch.Tensor]:
        if not self.replay.offline_episodes:
            options["episodes"] = "all"
        return to_tensors(self.replay.sample(size, rng, **options), self.agent.device)

    def _shift(self, size: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(0, 2 * self.config.agent.shift_pad + 1, (size, 2), generator=generator)

    def _randomness(self) -> tuple[np.random.Generator, torch.Generator]:
        rng = np.random.default_rng((self.seed, 0, self.counters.updates))
        return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))

    def _guarded(self, batch: Mapping[str, torch.Tensor], update: Callable[[], dict[str, float]]) -> dict[str, float]:
        """A loss that is not finite stops the run and leaves its batch."""
        try:
            return update()
        except Diverged as error:
            path = self.directory / BATCH
            storage.replace_file(path, save_tensors({name: t.contiguous().cpu() for name, t in batch.items()}))
            raise Diverged(f"{error.message}; update {self.counters.updates}, its batch is in {path}") from error

    def save(self) -> None:
        """Everything that the next update depends on; online episodes that left the replay are removed."""
        tensors = {f"agent.{name}": tensor for name, tensor in self.agent.state_dict().items()}
        for part, optimizer in self.agent.optimizers.items():
            tensors |= checkpoint.optimizer_tensors(optimizer, f"optimizer.{part}.")
        tensors |= {f"replay.{name}": torch.from_numpy(value) for name, value in self.replay.state().items()}
        checkpoint.write(self.directory, tensors, {"run": self.facts, "counters": asdict(self.counters)})
        with storage.writing(self.directory):
            kept = {f"{number:08d}.safetensors" for number in self.replay.online_numbers}
            for path in (self.directory / ONLINE).glob("*.safetensors"):
                if path.name not in kept:
                    path.unlink()

    def _check_facts(self, found: Mapping[str, Any], online: bool) -> None:
        """A run may be made longer online, and stage 3 be set otherwise before it has begun. Nothing else changes."""
        free = "config.stage3.frames" if online else "config.stage3."
        changed = [n for n in _differences(self.facts, found) if n in SETTLED or not n.startswith(free)]
        if changed:
            raise ConfigError(f"the directory holds a run with another {', '.join(changed)}; choose another --out")

    def restore(self) -> bool:
        """Go on with the checkpoint of the directory; False if there is none."""
        known = checkpoint.load(self.directory)
        if known is None:
            return False
        tensors, facts = known
        with locate(path=self.directory / checkpoint.STATE):
            try:
                self._check_facts(facts["run"], online=bool(facts["counters"]["frames"]))
                self.agent.load_state_dict(_below(tensors, "agent."))
                for part, optimizer in self.agent.optimizers.items():
                    checkpoint.restore_optimizer(optimizer, tensors, f"optimizer.{part}.")
                places = {name: tensor.numpy() for name, tensor in _below(tensors, "replay.").items()}
                self.replay.restore(places, lambda number: _read_episode(self.directory / ONLINE, number))
                self.counters = Counters(**facts["counters"])
            except (KeyError, TypeError, RuntimeError) as error:
                raise DamagedError(
                    f"the checkpoint is not one of this run: {error}; remove it to start anew"
                ) from error
        return True


def _differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Dotted names of what is not the same in two nested dictionaries."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix.rstrip(".")]
    names = sorted(set(one) | set(other))
    return [name for key in names for name in _differences(one.get(key), other.get(key), f"{prefix}{key}.")]


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_episode(path: Path, values: Mapping[str, Array]) -> None:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}
    with storage.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.replace_file(path, save_tensors(tensors))


def _read_episode(directory: Path, number: int) -> dict[str, Array]:
    path = directory / f"{number:08d}.safetensors"
    with locate(path=path):
        try:
            return {name: tensor.numpy() for name, tensor in load_tensors(path.read_bytes()).items()}
        except (OSError, SafetensorError) as error:
            raise DamagedError(f"an online episode of the run cannot be read: {error}") from error
