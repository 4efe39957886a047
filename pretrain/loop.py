"""The one training loop of stage 1. An objective brings data and loss; the loop owns optimiser, schedule, moving
average, metrics, checkpoints and resume.

Step s draws everything from (seed, s), so a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pretrain import checkpoint
from vrl3data import storage
from vrl3data.errors import ConfigError, Vrl3dataError
from vrl3data.report import Reporter, Silent

METRICS = "metrics.jsonl"


class Diverged(Vrl3dataError):
    """The loss is not finite any more."""

    exit_code = 3


@dataclass(frozen=True)
class LoopConfig:
    """One optimiser step is a step. `warmup` is a share of all steps. `ema` 0 keeps no moving average."""

    steps: int
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    """Whether weight decay also takes biases and norms (VRL3's stage 1 does)."""
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: float = 0.25
    ema: float = 0.995
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    evaluate_every: int = 0
    """Steps between evaluations; 0: at the end only."""
    checkpoint_every: int = 500


class Objective(Protocol):
    """What the loop trains. An nn.Module as well."""

    examples: int

    def batch(self, rows: torch.Tensor, progress: float, generator: torch.Generator) -> Any: ...

    def loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, Any]]: ...

    def evaluate(self) -> dict[str, float]: ...


class Trainer:
    """Trains `objective` in `directory`, going on with the checkpoint that lies there."""

    def __init__(self, objective: Any, config: LoopConfig, directory: Path, reporter: Reporter | None = None) -> None:
        if config.steps < 1 or not 1 <= config.batch_size <= objective.examples:
            raise ConfigError(
                f"expected at least one step and a batch of 1 to {objective.examples}, "
                f"found {config.steps} and {config.batch_size}"
            )
        self.objective, self.config, self.directory = objective, config, directory
        self.reporter = reporter or Silent()
        self.model: nn.Module = objective.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(self.model, config)
        self.average = _average(self.model, config.ema)
        self.step = 0
        with storage.writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(self) -> dict[str, float]:
        """Train to the end. Returns the last evaluation. Diverged if the loss is not finite."""
        with self.reporter.progress("training", self.config.steps, "steps") as advance:
            advance(self.step)
            started, first = time.monotonic(), self.step
            while self.step < self.config.steps:
                metrics = self.train_step()
                advance(1)
                if self.step % 50 == 0:
                    speed = (self.step - first) * self.config.batch_size / (time.monotonic() - started)
                    self._log({**{k: float(v) for k, v in metrics.items()}, "images_per_s": round(speed, 1)})
                if self.config.evaluate_every and self.step % self.config.evaluate_every == 0:
                    self._log(self.evaluate())
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
        scores = self.evaluate()
        self._log(scores)
        self.save()
        return scores

    def train_step(self) -> dict[str, Any]:
        """One step of the optimiser."""
        config, progress = self.config, self.step / self.config.steps
        self.model.train()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        batch = self.objective.batch(self._rows(), progress, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate(config, progress)
        with self._precision():
            loss, metrics = self.objective.loss(batch)
        if not torch.isfinite(loss):
            place = checkpoint.save_batch(self.directory, batch)
            raise Diverged(
                f"the loss is {float(loss.detach())} at step {self.step}; its batch is in {place}; try a smaller lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return metrics

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
        checkpoint.save(self.directory, state, self.optimizer, {"step": self.step, "config": asdict(self.config)})

    def _resume(self) -> None:
        found = checkpoint.load(self.directory)
        if found is None:
            return
        state, facts = found
        if facts["config"] != json.loads(json.dumps(asdict(self.config))):
            raise ConfigError(
                f"{self.directory} holds a run with another configuration: {facts['config']}; choose another directory"
            )
        checkpoint.restore(self.model, state, "model.")
        if self.average is not None:
            checkpoint.restore(self.average, state, "average.")
        checkpoint.restore_optimizer(self.optimizer, state)
        self.step = facts["step"]
        self.reporter.note(f"going on at step {self.step} of {self.directory}")

    def _rows(self) -> torch.Tensor:
        """The rows of this step: epochs are permutations, drawn from (seed, epoch)."""
        per_epoch = self.objective.examples // self.config.batch_size
        epoch, place = divmod(self.step, per_epoch)
        order = torch.randperm(
            self.objective.examples, generator=torch.Generator().manual_seed(self.config.seed * 7_919 + epoch)
        )
        return order[place * self.config.batch_size : (place + 1) * self.config.batch_size]

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(self.config.precision)):
            yield

    def _log(self, values: dict[str, float]) -> None:
        if values:
            with (
                storage.writing(self.directory, "the checkpoint is safe"),
                (self.directory / METRICS).open("a") as file,
            ):
                file.write(json.dumps({"step": self.step, **values}) + "\n")


def rate(config: LoopConfig, progress: float) -> float:
    """The share of `lr` at `progress` in 0..1: linear warm-up, then cosine to 0, or steps of 0.1 after each third."""
    if progress < config.warmup:
        return (progress + 1 / config.steps) / (config.warmup + 1 / config.steps)
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
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]], lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
    )


def _average(model: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(
        model, avg_fn=lambda old, new, _: old + (1 - decay) * (new - old) if old.is_floating_point() else new,
        use_buffers=True,
    )  # fmt: skip
