"""The one training loop of stage 1. An objective brings data and loss; the loop owns optimiser, schedule, moving
average, metrics, checkpoints and resume.

Step s draws everything from (seed, s), so a run that was stopped goes on exactly as if it had not been.
Shapes: B items of a batch.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pretrain import checkpoint
from vrl3data import storage
from vrl3data.errors import ConfigError, Vrl3dataError
from vrl3data.interrupt import deferred
from vrl3data.metrics import Metrics
from vrl3data.report import Reporter, Silent

LOG_EVERY = 50


class Diverged(Vrl3dataError):
    """The loss or its gradient is not finite any more."""

    exit_code = 3


@dataclass(frozen=True)
class LoopConfig:
    """One optimiser step is a step. `warmup` is a share of all steps. `ema` 0 keeps no moving average."""

    steps: int
    batch_size: int = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    """Of SGD, as `nesterov` is; `betas` are those of Adam and AdamW."""
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_all: bool = False
    """Whether weight decay also takes biases and norms (VRL3's stage 1 does)."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.25
    ema: float = 0.995
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    evaluate_every: int = 0
    """Steps between evaluations; 0: at the end only."""
    checkpoint_every: int = 500


@dataclass(frozen=True)
class Draw:
    """What one step draws from. Everything follows from (seed, step)."""

    seed: int
    step: int
    steps: int
    batch_size: int

    @property
    def progress(self) -> float:
        """How far training is, in 0..1."""
        return self.step / self.steps

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.step))

    def rows_B(self, examples: int) -> torch.Tensor:
        """The rows of this step in a table of `examples`: epochs are permutations, drawn from (seed, epoch)."""
        epoch, place = divmod(self.step, examples // self.batch_size)
        order = _permutation(examples, self.seed * 7_919 + epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]


@lru_cache(maxsize=2)
def _permutation(examples: int, seed: int) -> torch.Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed))


class Objective(Protocol):
    """What the loop trains: an nn.Module whose state says everything about it, target networks included."""

    @property
    def examples(self) -> int:
        """How much there is to draw from; a batch is at most this."""

    def sample(self, draw: Draw) -> dict[str, torch.Tensor]:
        """The batch of a step, from `draw` and nothing else."""

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss, and numbers for the log."""

    def after_step(self) -> None:
        """Called after each step of the optimiser: target networks follow here."""

    def evaluate(self) -> dict[str, float]:
        """Scores; the module is in evaluation mode."""


class Trainer:
    """Trains `objective` in `directory`, going on with the checkpoint that lies there.

    `run` says what else must be equal for that (encoder, data); ConfigError if it is not.
    """

    def __init__(
        self, objective: Any, config: LoopConfig, directory: Path, reporter: Reporter | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if config.steps < 1 or not 1 <= config.batch_size <= objective.examples:
            raise ConfigError(
                f"expected at least one step and a batch of 1 to {objective.examples}, "
                f"found {config.steps} and {config.batch_size}"
            )
        self.objective, self.config, self.directory = objective, config, directory
        self.reporter = reporter or Silent()
        self.facts = json.loads(json.dumps({"config": asdict(config), "run": dict(run or {})}))
        self.model: nn.Module = objective.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(self.model, config)
        self.average = _average(self.model, config.ema)
        self.step = 0
        with storage.writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self.metrics = Metrics(directory)
        self._resume()

    def run(self) -> dict[str, float]:
        """Train to the end. Returns the last evaluation.

        Diverged if the loss or its gradient is not finite. Ctrl-C takes effect after the step that it meets, and
        leaves a checkpoint there.
        """
        with self.metrics, deferred() as interrupted:
            with self.reporter.progress("training", self.config.steps * self.config.batch_size, "images") as advance:
                advance(self.step * self.config.batch_size)
                started, first = time.monotonic(), self.step
                while self.step < self.config.steps:
                    metrics = self.train_step()
                    advance(self.config.batch_size)
                    if self.step % LOG_EVERY == 0:
                        speed = (self.step - first) * self.config.batch_size / (time.monotonic() - started)
                        self._log({**{k: float(v) for k, v in metrics.items()}, "images_per_s": round(speed, 1)})
                    if self.config.evaluate_every and self.step % self.config.evaluate_every == 0:
                        self._log(self.evaluate())
                    if interrupted() or self.step % self.config.checkpoint_every == 0:
                        self.save()
                    if interrupted():
                        raise KeyboardInterrupt
            scores = self.evaluate()
            self._log(scores)
            self.save()
        return scores

    def train_step(self) -> dict[str, Any]:
        """One step of the optimiser."""
        config, draw = self.config, Draw(self.config.seed, self.step, self.config.steps, self.config.batch_size)
        self.model.train()
        batch = self.objective.sample(draw)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate(config, draw.progress)
        with self._precision():
            loss, metrics = self.objective.loss(batch)
        self._check("loss", loss, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._check("gradient's norm", torch.nn.utils.get_total_norm(gradients), batch)
        self.optimizer.step()
        self.objective.after_step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return metrics

    def _check(self, name: str, value: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        if not torch.isfinite(value):
            place = checkpoint.save_batch(self.directory, batch)
            raise Diverged(
                f"the {name} is {float(value.detach())} at step {self.step}; its batch is in {place}; try a smaller lr"
            )

    def evaluate(self) -> dict[str, float]:
        """Scores of the averaged weights where there are any."""
        model = self.best()
        was_training = model.training
        with self._precision():
            scores: dict[str, float] = model.eval().evaluate()  # type: ignore[operator]
        model.train(was_training)
        return scores

    def best(self) -> nn.Module:
        return self.average.module if self.average is not None else self.model

    def save(self) -> None:
        """Everything that the next step depends on."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            state |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        checkpoint.save(self.directory, state, self.optimizer, {"step": self.step, **self.facts})

    def _resume(self) -> None:
        found = checkpoint.load(self.directory)
        if found is None:
            self.metrics.rewind(0)
            return
        state, facts = found
        for name, now in self.facts.items():
            then = facts.get(name)
            if then != now:
                raise ConfigError(
                    f"{self.directory} holds a run with another configuration: {_differences(then, now)}; "
                    "choose another directory"
                )
        checkpoint.restore(self.model, state, "model.")
        if self.average is not None:
            checkpoint.restore(self.average, state, "average.")
        checkpoint.restore_optimizer(self.optimizer, state)
        self.step = facts["step"]
        self.metrics.rewind(self.step)
        self.reporter.note(f"going on at step {self.step} of {self.directory}")

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(self.config.precision)):
            yield

    def _log(self, values: dict[str, float]) -> None:
        if values:
            self.metrics.write(self.step, values)


def _differences(then: Any, now: Any) -> str:
    """`lr 0.1, not 0.05`, of what differs."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return f"{then}, not {now}"
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {then.get(name)}, not {now.get(name)}" for name in names)


def rate(config: LoopConfig, progress: float) -> float:
    """The share of `lr` at `progress` in 0..1: linear warm-up, then cosine to 0, a tenth after each third, or 1."""
    if progress < config.warmup:
        return (progress + 1 / config.steps) / (config.warmup + 1 / config.steps)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return float(0.1 ** int(progress * 3))
    return 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))


def use_bf16(precision: str) -> bool:
    """bf16 pays where the CPU multiplies it in hardware; elsewhere it is slower than fp32."""
    if precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return precision == "bf16"


def _optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [p for _, p in named if p.ndim > 1 or config.decay_all]
    others = [p for _, p in named if p.ndim <= 1 and not config.decay_all]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}
    ]  # fmt: skip
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas)


def _average(model: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(
        model, avg_fn=lambda old, new, _: old + (1 - decay) * (new - old) if old.is_floating_point() else new,
        use_buffers=True,
    )  # fmt: skip
