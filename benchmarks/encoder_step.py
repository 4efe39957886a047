"""One training step of the encoder: our loop (bf16 where the CPU has it, channels_last) against plain fp32 PyTorch.

python benchmarks/encoder_step.py [--batch 256] [--channels 9] [--rounds 5]

Both sides train the same weights on the same uint8 batch with SGD and must agree on the losses of the first steps.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.loop import Draw, LoopConfig, Trainer, use_bf16
from vrl3data.encoders.encoder import Encoder, EncoderSpec

CLASSES, LR, CHECKED, TOLERANCE = 10, 0.01, 3, 0.02


class FixedBatch(nn.Module):
    """An objective of our loop that classifies one batch over and over."""

    def __init__(self, encoder: Encoder, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.feature_dim, CLASSES)
        self.data = {"images": images_BCHW, "labels": labels_B}
        self.examples = len(labels_B)

    def sample(self, draw: Draw) -> dict[str, torch.Tensor]:
        return self.data

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        loss = F.cross_entropy(self.head(self.encoder(batch["images"])).float(), batch["labels"])
        return loss, {"loss": loss.detach()}

    def after_step(self) -> None:
        """Nothing follows the weights."""

    def evaluate(self) -> dict[str, float]:
        return {}


def plain_step(model: FixedBatch, memory_format: torch.memory_format) -> Callable[[], float]:
    """What one writes first: fp32, zero_grad, backward, step."""
    model = model.to(memory_format=memory_format).train()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)

    def step() -> float:
        images_BCHW = model.data["images"].float().to(memory_format=memory_format)
        loss = F.cross_entropy(model.head(model.encoder(images_BCHW)), model.data["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def our_step(model: FixedBatch, folder: Path) -> Callable[[], float]:
    config = LoopConfig(
        10**6, len(model.data["labels"]), lr=LR, schedule="constant", warmup=0.0, ema=0.0, checkpoint_every=10**6
    )  # fmt: skip
    trainer = Trainer(model, config, folder)
    return lambda: float(trainer.train_step()["loss"])


def make_model(batch: int, channels: int) -> FixedBatch:
    """Random pictures in which the class shows: a colour that depends on it, and noise."""
    rng = torch.Generator().manual_seed(0)
    labels_B = torch.randint(0, CLASSES, (batch,), generator=rng)
    tint = 12 * labels_B.view(-1, 1, 1, 1) * torch.rand(channels, generator=rng).view(1, -1, 1, 1)
    images_BCHW = (torch.rand(batch, channels, 84, 84, generator=rng) * 120 + tint).to(torch.uint8)
    torch.manual_seed(0)
    return FixedBatch(Encoder(EncoderSpec("resnet6_32channel", in_channels=channels)), images_BCHW, labels_B)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--channels", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = make_model(arguments.batch, arguments.channels)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "plain fp32": plain_step(copy.deepcopy(model), torch.contiguous_format),
            "fp32, channels_last": plain_step(copy.deepcopy(model), torch.channels_last),
            "ours": our_step(copy.deepcopy(model), Path(folder)),
        }
        losses = {name: [step() for _ in range(CHECKED)] for name, step in sides.items()}  # warms up, too
        for name, found in losses.items():
            for one, other in zip(found, losses["plain fp32"], strict=True):
                assert abs(one - other) < TOLERANCE * other, f"{name} does something else: {losses}"
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, step in sides.items():
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    kind = "bf16" if use_bf16("auto") else "fp32: this CPU has no bf16"
    print(
        f"batch {arguments.batch} x {arguments.channels} x 84 x 84, {torch.get_num_threads()} threads, ours in {kind}"
    )
    for name, found in median.items():
        print(f"{name:<20} {1000 * found:7.0f} ms a step, {median['plain fp32'] / found:5.2f} x")
    print(f"losses of the first steps: {', '.join(f'{n} {f[0]:.4f} .. {f[-1]:.4f}' for n, f in losses.items())}")


if __name__ == "__main__":
    main()
