"""A policy's episodes become a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.wrappers import TransformReward

from vrl3data import manifest
from vrl3data.errors import ConfigError
from vrl3data.manifest import Manifest
from vrl3data.record import AlreadyRecorded, Recorder, RecordOptions
from vrl3data.report import Reporter, Silent
from vrl3data.rl.evaluation import EVALUATION_SEED
from vrl3data.rl.play import Stage, make_env
from vrl3data.rl.policy import Policy


@dataclass(frozen=True)
class RolloutOptions:
    """`first_seed` is the reset seed of the first episode; the default is that of `evaluate`."""

    episodes: int = 20
    first_seed: int = EVALUATION_SEED
    codec: str = "raw"
    split: str = "train"
    name: str = ""
    license: str = "unknown"


def rollout(policy: Policy, dest: Path | str, options: RolloutOptions | None = None,
            reporter: Reporter | None = None) -> Manifest:  # fmt: skip
    """Record episodes of `policy` in its environment, mean actions, into the dataset `dest`.

    Rewards are those of the environment before any scaling. Running it again goes on after an interruption.
    """
    options, reporter, spec = options or RolloutOptions(), reporter or Silent(), policy.spec
    if options.episodes < 1:
        raise ConfigError(f"expected at least one episode, found {options.episodes}")
    env = make_env(spec.env_spec())
    described = RecordOptions(
        name=options.name or f"{spec.env}-policy", task=getattr(env.unwrapped, "task", spec.env), origin="policy",
        codec=options.codec, split=options.split, license=options.license, session=f"seed-{options.first_seed}",
        options={"first_seed": options.first_seed, "policy": str(spec.provenance.get("objective", "unknown"))},
        renderer=getattr(env.unwrapped, "renderer", ""),
    )  # fmt: skip
    try:
        with Recorder(_unscaled(env), dest, described, reporter) as recorder:
            stage = Stage(recorder, spec.env_spec(), spec.frames)
            with reporter.progress("recording", options.episodes, "episodes") as advance:
                advance(recorder.episodes)
                for number in range(recorder.episodes, options.episodes):
                    stage.play(policy.choose, options.first_seed + number)
                    advance(1)
    except AlreadyRecorded:
        env.close()
        reporter.note(f"{dest} is already whole")
    found = manifest.read(Path(dest))
    assert found is not None
    return found


def _unscaled(env: Any) -> Any:
    """Datasets hold the environment's own rewards; scaling is the reader's (`Stage.reward_scale`)."""
    scale = float(env.get_wrapper_attr("reward_scale"))
    return env if scale == 1 else TransformReward(env, lambda reward: float(reward) / scale)
