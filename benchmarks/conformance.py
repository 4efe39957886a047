"""The first updates of a real run beside a literal float64 transcription of VRL3's losses (tests/literal_vrl3.py).

python benchmarks/conformance.py DATASET [--env adroit-door] [--encoder packaged:resnet6_32channel-imagenette]
    [--updates 3] [--frames 3]

Preset paper, in float32: stage 2 on the demonstrations, then stage 3 on them and one online episode, with BC on the
whole batch as the transcription has it. Prints the greatest relative difference of the losses; exits with 1 above 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vrl3data.dataset import open_dataset
from vrl3data.report import Silent
from vrl3data.rl.agent import UpdateConfig
from vrl3data.rl.config import preset
from vrl3data.rl.learner import Learner
from vrl3data.rl.play import EnvSpec, open_stage
from vrl3data.rl.train import TrainOptions, _learner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from literal_vrl3 import LiteralVRL3

TOLERANCE = 1e-4
PAIRS = {"critic_loss": "td", "cql": "cql", "actor_loss": "actor_loss", "bc": "bc"}


def literal_of(learner: Learner, how: UpdateConfig) -> LiteralVRL3:
    agent, config = learner.agent, learner.config.agent
    weights = {name.replace("encoder.network.", "encoder."): value for name, value in agent.state_dict().items()}
    return LiteralVRL3(
        weights, lr=config.lr, encoder_lr=config.lr * config.encoder_lr_scale, std=how.std, cql_weight=how.cql_weight,
        bc_weight=how.bc_weight, batch_norm=config.batch_norm,
    )  # fmt: skip


def compare(learner: Learner, learn: Callable[[], dict[str, float]], updates: int) -> float:
    """Greatest relative difference of any loss over `updates`; both sides get the same batches and draws."""
    worst, update = 0.0, learner.agent.update
    literal: LiteralVRL3 | None = None

    def both(batch: Any, draws: Any, how: UpdateConfig, *demo: Any) -> dict[str, float]:
        nonlocal literal, worst
        literal = literal or literal_of(learner, how)
        theirs, ours = literal.update(batch, draws), update(batch, draws, how, *demo)
        for one, other in PAIRS.items():
            if one in ours:
                worst = max(worst, abs(ours[one] - theirs[other]) / max(1.0, abs(theirs[other])))
                print(f"  {one:<12} ours {ours[one]:.6f}  literally {theirs[other]:.6f}")
        return ours

    learner.agent.update = both  # type: ignore[method-assign]
    for number in range(updates):
        print(f"update {number}")
        learn()
    learner.agent.update = update  # type: ignore[method-assign]
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--env", default="adroit-door")
    parser.add_argument("--encoder", default="packaged:resnet6_32channel-imagenette")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--frames", type=int, default=3)
    given = parser.parse_args()
    settings = {"precision": "fp32", "frames": given.frames, "stage3.demo_batch": 0, "stage3.capacity": 1000}
    config, options = preset("paper", settings), TrainOptions(encoder=given.encoder)
    spec = EnvSpec(given.env, action_repeat=config.action_repeat, options={"render": "fast"})
    with open_stage(spec, config.frames) as stage, open_dataset(given.dataset) as dataset:
        learner, _ = _learner(dataset, stage, config, options, Path(tempfile.mkdtemp()), Silent())
        print(f"stage 2, {learner.agent.encoder.spec.in_channels if learner.agent.encoder else 0} channels")
        worst = compare(learner, learner.learn_offline, given.updates)
        learner.remember(stage.play(learner.explore, 1))
        print("stage 3")
        learner.agent.fresh_optimizers()
        worst = max(worst, compare(learner, learner.learn_online, given.updates))
    print(f"greatest relative difference {worst:.1e}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
