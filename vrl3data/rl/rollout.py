"""A policy's episodes become a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vrl3data import manifest
from vrl3data.envs.repeat import unscaled
from vrl3data.errors import ConfigError, DestinationError
from vrl3data.manifest import Manifest
from vrl3data.record import AlreadyRecorded, Recorder, RecordOptions
from vrl3data.report import Reporter, Silent
from vrl3data.rl.play import Stage, make_env
from vrl3data.rl.policy import Policy

ROLLOUT_SEED = 300_000_000
"""Goals of their own: what is recorded to be learned from must not be what `evaluate` asks."""


@dataclass(frozen=True)
class RolloutOptions:
    """`first_seed` is the reset seed of the first episode."""

    episodes: int = 20
    first_seed: int = ROLLOUT_SEED
    codec: str = "raw"
    split: str = "train"
    name: str = ""
    license: str = "unknown"


def rollout(policy: Policy, dest: Path | str, options: RolloutOptions | None = None,
            reporter: Reporter | None = None) -> Manifest:  # fmt: skip
    """Record episodes of `policy` in its environment, mean actions, into the dataset `dest`.

    Rewards are those of the environment before any scaling. Running it again goes on after an interruption;
    DestinationError if `dest` holds other episodes.
    """
    options, reporter, spec = options or RolloutOptions(), reporter or Silent(), policy.spec
    if options.episodes < 1:
        raise ConfigError(f"expected at least one episode, found {options.episodes}")
    env, digest = make_env(spec.env_spec()), policy.digest()
    made_by = str(spec.provenance.get("objective", "unknown"))
    described = RecordOptions(
        name=options.name or f"{spec.env}-policy", task=getattr(env.unwrapped, "task", spec.env), origin="policy",
        codec=options.codec, split=options.split, license=options.license,
        session=f"seed-{options.first_seed}-{digest[:16]}",
        options={"first_seed": options.first_seed, "policy": made_by, "policy_sha256": digest},
        renderer=getattr(env.unwrapped, "renderer", ""),
    )  # fmt: skip
    try:
        with Recorder(unscaled(env), dest, described, reporter) as recorder:
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
    if found.samples != options.episodes:
        raise DestinationError(f"{dest} is finished with {found.samples} episodes, not {options.episodes}")
    return found
