"""The whole path on fetch-reach: demonstrations, stage 1's encoder, stage 2, stage 3, and what each is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.inflate import inflate
from pretrain.train import SelfSupervisedConfig, pretrain_hilp
from vrl3data import app, storage
from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import ConfigError, DamagedError
from vrl3data.report import Reporter
from vrl3data.rl.config import VRL3Config, preset
from vrl3data.rl.evaluation import FILMED, evaluate_policy
from vrl3data.rl.play import EnvSpec, open_stage
from vrl3data.rl.policy import Policy
from vrl3data.rl.train import TrainOptions, TrainResult, train
from vrl3data.schema import Array
from vrl3data.validation import validate

ENV = "fetch-reach"
PACKAGED_ENCODER = "packaged:resnet6_32channel-imagenette"
RANDOM_ENCODER = "random:resnet6_32channel"
OPTIONS = "demo.json"
NAMED = ("packaged", "hilp", "none")


@dataclass(frozen=True)
class DemoOptions:
    """`stage1`: packaged, hilp (trained on the demonstrations), none, or the directory of an encoder."""

    stage1: str = "packaged"
    seed: int = 0
    demonstrations: int = 100
    steps: int = 25
    goals: int = 100
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class DemoResult:
    """`table`: (what, score as `Evaluation.facts`, seconds of the part that made it)."""

    table: tuple[tuple[str, dict[str, Any], float], ...]
    seconds: Mapping[str, float]
    dataset: Path
    encoder: Path | None
    policy: Path
    film: Path
    runs: Mapping[str, Path]


def demo(dest: Path, options: DemoOptions, reporter: Reporter) -> DemoResult:
    """Record, train and evaluate in `dest`. What is there already is not done again.

    Success is that of the last step, over `goals` fixed goals with mean actions; nothing is selected.
    """
    seconds: dict[str, float] = {}
    data = dest / ENV
    if options.stage1 not in NAMED:
        Encoder.from_pretrained(options.stage1)  # refused before anything is written
    _same_demo(dest, options)
    with _timed("demonstrations", seconds):
        record(data, options, reporter)
    with _timed("stage 1", seconds):
        source, encoder = stage1(dest, data, options, reporter)
    config = preset("short", {"action_repeat": 1, **(options.settings or {})})
    env = EnvSpec(ENV, max_steps=options.steps)
    with _timed("random policy", seconds):
        chance = random_policy(env, config.frames, options, dest, reporter)
    table: list[tuple[str, dict[str, Any], float]] = [("random policy", chance, seconds["random policy"])]
    runs = {}
    if source != RANDOM_ENCODER:
        reporter.note("stage 2 from a random encoder, for comparison")
        runs["random encoder"] = dest / "runs" / "random-encoder"
        found = _train(data, env, runs["random encoder"], config, options, RANDOM_ENCODER, "2", reporter)
        table.append(("stage 2, random encoder", found.scores["stage2"], found.seconds["stage2"]))
    label = f"stage 2, {options.stage1 if options.stage1 in ('packaged', 'hilp') else 'given'} encoder"
    reporter.note(f"{label}, then stage 3")
    runs["vrl3"] = dest / "runs" / "vrl3"
    found = _train(data, env, runs["vrl3"], config, options, source, "both", reporter)
    table.append((label if source != RANDOM_ENCODER else "stage 2, random encoder", found.scores["stage2"],
                  found.seconds["stage2"]))  # fmt: skip
    if "stage3" in found.scores:
        table.append(("after stage 3", found.scores["stage3"], found.seconds["stage3"]))
    for name, _, spent in table:
        seconds[name] = spent
    with _timed("film", seconds):
        policy, film = _keep(found, env, config, dest, reporter)
    return DemoResult(tuple(table), seconds, data, encoder, policy, film, runs)


def _same_demo(dest: Path, options: DemoOptions) -> None:
    """A directory holds one demo: ConfigError if it was begun with other options."""
    facts = json.loads(json.dumps({**asdict(options), "settings": dict(options.settings or {})}))
    path = dest / OPTIONS
    if path.is_file():
        found = json.loads(path.read_bytes())
        changed = sorted(name for name in facts if found.get(name) != facts[name])
        if changed:
            raise ConfigError(f"{dest} holds a demo with another {', '.join(changed)}; choose another DEST")
        return
    with storage.writing(dest):
        dest.mkdir(parents=True, exist_ok=True)
        storage.replace_file(path, json.dumps(facts, indent=2).encode() + b"\n")


def record(data: Path, options: DemoOptions, reporter: Reporter) -> None:
    """The scripted demonstrations, checked."""
    live = app.LiveOptions(options.demonstrations, options.steps, options.seed, license="apache-2.0")
    if not (data / "dataset.json").exists():
        reporter.note(f"recording {options.demonstrations} demonstrations into {data}")
        app.record(ENV, data, live, reporter)
    report = validate(data, reporter)
    if not report.ok:
        raise DamagedError(f"the demonstrations do not pass their own validation: {report.findings[0]}")


def stage1(dest: Path, data: Path, options: DemoOptions, reporter: Reporter) -> tuple[str, Path | None]:
    """(what `train` takes as the encoder, where it lies after inflation to the frame stack)."""
    if options.stage1 == "none":
        return RANDOM_ENCODER, None
    source = PACKAGED_ENCODER if options.stage1 == "packaged" else options.stage1
    if options.stage1 == "hilp":
        reporter.note("training an encoder on the demonstrations with HILP")
        pretrain_hilp(data, dest / "stage1", SelfSupervisedConfig(seed=options.seed), reporter=reporter)
        source = str(dest / "stage1")
    target = dest / "encoder"
    frames = preset("short", options.settings).frames
    inflate(Encoder.from_pretrained(source), frames).save_pretrained(target)
    return str(target), target


def random_policy(env: EnvSpec, frames: int, options: DemoOptions, dest: Path, reporter: Reporter) -> dict[str, Any]:
    """Uniform actions on the same goals."""
    path = dest / "runs" / "random-policy.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    rng = np.random.default_rng(options.seed)
    with open_stage(env, frames) as stage:
        uniform = partial(_uniform, rng, stage.action_dim)
        facts = evaluate_policy(stage, uniform, options.goals, reporter).facts()
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.replace_file(path, json.dumps(facts).encode())
    return facts


def _train(data: Path, env: EnvSpec, out: Path, config: VRL3Config, options: DemoOptions, encoder: str, stage: Any,
           reporter: Reporter) -> TrainResult:  # fmt: skip
    how = TrainOptions(encoder=encoder, stage=stage, seed=options.seed, episodes=options.goals)
    return train(data, env, out, config, how, reporter)


def _keep(found: TrainResult, env: EnvSpec, config: VRL3Config, dest: Path, reporter: Reporter) -> tuple[Path, Path]:
    """The last policy under its own name, and a film of it."""
    policy = Policy.from_pretrained(found.policy)
    policy.save_pretrained(dest / "policy")
    film = dest / "policy.gif"
    with open_stage(env, config.frames) as stage:
        evaluate_policy(stage, policy.choose, FILMED, reporter, film=film)
    return dest / "policy", film


def _uniform(rng: np.random.Generator, action_dim: int, *_: Array | None) -> Array:
    action_A: Array = rng.uniform(-1, 1, action_dim).astype(np.float32)
    return action_A


class _timed:
    """Writes the seconds of a block into `into[name]`."""

    def __init__(self, name: str, into: dict[str, float]) -> None:
        self.name, self.into = name, into

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.into[self.name] = time.monotonic() - self.started
