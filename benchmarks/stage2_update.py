"""One update of VRL3's stage 2: our agent against a literal transcription of the released update in float32.

python benchmarks/stage2_update.py [--batch 256] [--channels 9] [--rounds 3] [--batch-norm train|frozen]

Both sides start from the same weights and see the same batches and random numbers. Before anything is timed, a copy of
our agent in float32 must give the transcription's losses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from pretrain.loop import use_bf16
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.rl.agent import Draws, UpdateConfig, VRL3Agent
from vrl3data.rl.config import AgentConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from literal_vrl3 import LiteralVRL3

SENSORS, ACTIONS, RANDOM, TOLERANCE = 24, 28, 10, 1e-3
"""Door's sizes, CQL's random actions, and how far float32 sums may be apart."""
STAGE2 = UpdateConfig(std=0.1, cql_weight=1.0)


def make_agent(config: AgentConfig, channels: int, bf16: bool) -> VRL3Agent:
    torch.manual_seed(0)
    agent = VRL3Agent(config, Encoder(EncoderSpec("resnet6_32channel", channels)), SENSORS, ACTIONS, bf16)
    agent.set_mode(config.batch_norm)
    return agent


def make_literal(agent: VRL3Agent) -> LiteralVRL3:
    weights = {name.replace("encoder.network.", "encoder."): value for name, value in agent.state_dict().items()}
    config = agent.config
    return LiteralVRL3(
        weights, lr=config.lr, encoder_lr=config.lr * config.encoder_lr_scale, std=STAGE2.std,
        cql_weight=STAGE2.cql_weight, bc_weight=STAGE2.bc_weight, batch_norm=config.batch_norm, dtype=torch.float32,
    )  # fmt: skip


def make_batch(size: int, channels: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (size, channels, 84, 84), generator=rng).to(torch.uint8) for _ in range(2)]
    sensors = [torch.randn(size, SENSORS, generator=rng) for _ in range(2)]
    return {"obs": images[0], "next_obs": images[1], "sensor": sensors[0], "next_sensor": sensors[1],
            "action": torch.rand(size, ACTIONS, generator=rng) * 2 - 1, "return": torch.rand(size, generator=rng),
            "discount": torch.full((size,), 0.99**3), "mask": torch.ones(size)}  # fmt: skip


def check(config: AgentConfig, channels: int, batch: dict[str, torch.Tensor], draws: Draws) -> str:
    agent = make_agent(config, channels, bf16=False)
    theirs = make_literal(agent).update(batch, draws)
    ours = agent.update(batch, draws, STAGE2)
    pairs = {"td": (ours["critic_loss"], theirs["td"]), "cql": (ours["cql"], theirs["cql"]),
             "actor": (ours["actor_loss"], theirs["actor_loss"])}  # fmt: skip
    for name, (one, other) in pairs.items():
        assert abs(one - other) < TOLERANCE * max(1.0, abs(other)), f"{name}: ours {one}, literally {other}"
    return ", ".join(f"{name} {one:.5f} / {other:.5f}" for name, (one, other) in pairs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--channels", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-norm", choices=["train", "frozen"], default="train", help="train is the release's")
    arguments = parser.parse_args()
    config = replace(AgentConfig(), batch_norm=arguments.batch_norm)
    batch, rng = make_batch(arguments.batch, arguments.channels), torch.Generator().manual_seed(2)
    draws = Draws.make(arguments.batch, ACTIONS, config.shift_pad, RANDOM, rng)
    found = check(config, arguments.channels, batch, draws)
    agent = make_agent(config, arguments.channels, use_bf16("auto"))
    literal = make_literal(agent)
    sides = {"literal fp32": lambda: literal.update(batch, draws), "ours": lambda: agent.update(batch, draws, STAGE2)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, update in sides.items():
            started = time.perf_counter()
            update()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    literally, ours = (statistics.median(seconds[name]) for name in sides)
    shape = f"batch {arguments.batch} x {arguments.channels} x 84 x 84, BatchNorm {arguments.batch_norm}"
    kind = "bf16" if use_bf16("auto") else "fp32: this CPU has no bf16"
    print(f"{shape}, {torch.get_num_threads()} threads, ours in {kind}")
    print(f"literal transcription {literally:.2f} s an update, ours {ours:.2f} s, {literally / ours:.2f} x")
    print(f"first losses, ours in fp32 / literal: {found}")


if __name__ == "__main__":
    main()
