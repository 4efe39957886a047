"""`train vrl3`: stages 2 and 3 in a directory that holds the run, its metrics and its policies."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pretrain.loop import use_bf16
from vrl3data import __version__, storage
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import ConfigError
from vrl3data.interrupt import deferred
from vrl3data.loader import EpisodeTable
from vrl3data.metrics import Metrics
from vrl3data.replay import BatchSpec, Replay
from vrl3data.report import Reporter, Silent
from vrl3data.rl import pairing
from vrl3data.rl.agent import VRL3Agent
from vrl3data.rl.config import VRL3Config
from vrl3data.rl.evaluation import EVALUATION_SEED, Evaluation, evaluate_policy
from vrl3data.rl.learner import Learner
from vrl3data.rl.play import EnvSpec, Stage, open_stage
from vrl3data.rl.policy import SIDECAR, Policy, PolicySpec

StageName = Literal["2", "3", "both"]
ONLINE_SEED = 10_000_000
"""Online episode k of a run with seed s is reset with this + 1,000,000 s + k: no seed of an evaluation."""
LOG_EVERY = 20
EVALUATION = {"first_seed": EVALUATION_SEED, "action": "mean", "success": "at the last step"}
RESULT = "result.json"


@dataclass(frozen=True)
class TrainOptions:
    """What a run is made of, besides its configuration. Evaluations have `episodes`; 0: none."""

    encoder: str = "none"
    stage: StageName = "both"
    split: str | None = None
    storage: str = "ram"
    seed: int = 0
    episodes: int = 25
    evaluate_every: int = 50_000
    """Raw frames of stage 3 between evaluations."""
    checkpoint_seconds: float = 60.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.seed < 0 or self.episodes < 0 or self.evaluate_every < 1:
            raise ConfigError(
                f"expected seed and episodes of at least 0 and evaluate_every of at least 1, found {self.seed}, "
                f"{self.episodes} and {self.evaluate_every}"
            )


@dataclass(frozen=True)
class TrainResult:
    """The policy after the last stage, and the evaluation after each stage that was evaluated."""

    policy: Path
    scores: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def train(
    data: Path | str | None, env: EnvSpec, out: Path | str, config: VRL3Config, options: TrainOptions,
    reporter: Reporter | None = None,
) -> TrainResult:  # fmt: skip
    """Take demonstrations and an encoder through stage 2, stage 3 or both. Running it again goes on.

    Leaves `stage2/` and `stage3/` with policies, metrics.jsonl, checkpoint.safetensors, and result.json. Without
    `data`, stage 3 only. ConfigError for what does not fit together, Diverged if a loss is not finite.
    """
    directory, reporter = Path(out), reporter or Silent()
    env = replace(env, action_repeat=config.action_repeat)
    if data is None and options.stage != "3":
        raise ConfigError("stage 2 learns from demonstrations: a dataset is needed")
    if options.stage == "3" and not config.stage3.frames:
        raise ConfigError("stage 3 has no frames: set stage3.frames")
    check_device(options.device)
    with open_stage(env, config.frames) as stage, _dataset(data) as dataset, Metrics(_made(directory)) as metrics:
        learner, facts = _learner(dataset, stage, config, options, directory, reporter)
        run = _Run(learner, stage, options, metrics, reporter, facts)
        restored = learner.restore()
        metrics.rewind(learner.counters.updates if restored else -1)
        if restored:
            done = learner.counters
            reporter.note(f"going on after {done.updates} updates and {done.episodes} online episodes")
        with deferred() as interrupted:
            run.interrupted = interrupted
            if options.stage in ("2", "both"):
                run.stage2()
            if options.stage in ("3", "both"):
                run.stage3()
        return run.finish()


class _Run:
    def __init__(self, learner: Learner, stage: Stage, options: TrainOptions, metrics: Metrics, reporter: Reporter,
                 facts: dict[str, Any]) -> None:  # fmt: skip
        self.learner, self.stage, self.options = learner, stage, options
        self.metrics, self.reporter, self.facts = metrics, reporter, facts
        self.interrupted: Callable[[], bool] = lambda: False
        self.scores: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self._saved = self._clock = time.monotonic()
        self.policy = learner.directory / "stage2"

    def stage2(self) -> None:
        """The paper's warm-up, then conservative updates."""
        learner, plan, counters = self.learner, self.learner.config.stage2, self.learner.counters
        if self._ended("stage2", learner.stage2_done):
            return
        if counters.frames:
            raise ConfigError("stage 3 has begun in this directory; choose another --out for stage 2")
        self._clock = time.monotonic()
        self._updates("stage 2, behaviour cloning", plan.bc_updates, lambda: counters.bc, learner.clone_behaviour)
        learner.after_cloning()
        self._updates("stage 2, offline", plan.updates, lambda: counters.offline, learner.learn_offline)
        self._end("stage2")

    def stage3(self) -> None:
        """Episodes, with updates between their steps."""
        learner, plan, counters = self.learner, self.learner.config.stage3, self.learner.counters
        if not plan.frames or self._ended("stage3", counters.frames >= plan.frames):
            return
        if not counters.frames and (counters.bc or counters.offline) and not learner.stage2_done:
            raise ConfigError("stage 2 is not finished in this directory; --stage both goes on with it")
        learner.after_cloning()
        self._clock = time.monotonic()
        evaluated = counters.frames // self.options.evaluate_every
        with self.reporter.progress("stage 3, online", plan.frames, "frames") as advance:
            advance(counters.frames)
            while counters.frames < plan.frames:
                before = counters.frames
                episode = self.stage.play(
                    learner.explore, ONLINE_SEED + 1_000_000 * self.options.seed + counters.episodes, self._after_step
                )
                learner.remember(episode)
                advance(counters.frames - before)
                values = {
                    "episode_return": float(episode.reward_T.sum()),
                    "episode_success": float(episode.success_last),
                }
                self.metrics.write(counters.updates, {**values, "frames": counters.frames})
                if plan.frames > counters.frames and counters.frames // self.options.evaluate_every > evaluated:
                    evaluated = counters.frames // self.options.evaluate_every
                    self._evaluate(f"frames {counters.frames}")
                self._boundary()
        self._end("stage3")

    def finish(self) -> TrainResult:
        result = {"scores": self.scores, "seconds": {name: round(s, 1) for name, s in self.seconds.items()}}
        storage.replace_file(self.learner.directory / RESULT, json.dumps(result, indent=2).encode() + b"\n")
        return TrainResult(self.policy, self.scores, self.seconds)

    def _updates(self, label: str, total: int, done: Callable[[], int], step: Callable[[], dict[str, float]]) -> None:
        with self.reporter.progress(label, total, "updates") as advance:
            advance(done())
            while done() < total:
                self._log(step())
                advance(1)
                self._boundary()

    def _after_step(self) -> None:
        learner = self.learner
        learner.counters.agent_steps += 1
        if learner.counters.agent_steps % learner.config.stage3.update_every == 0 and learner.replay.has_windows:
            self._log(learner.learn_online())

    def _log(self, values: dict[str, float]) -> None:
        if self.learner.counters.updates % LOG_EVERY == 0:
            self.metrics.write(self.learner.counters.updates, values)

    def _boundary(self) -> None:
        """Between updates of stage 2 and between episodes: here a run may stop, and goes on from here."""
        stop = self.interrupted()
        self._count_seconds()
        if stop or time.monotonic() - self._saved >= self.options.checkpoint_seconds:
            self.learner.save()
            self._saved = time.monotonic()
        if stop:
            self.reporter.note(f"saved in {self.learner.directory}; run the same command again to go on")
            raise KeyboardInterrupt

    def _end(self, name: str) -> None:
        self._count_seconds()
        counters = self.learner.counters
        self.seconds[name] = counters.seconds2 if name == "stage2" else counters.seconds3
        self.policy = self.learner.directory / name
        if self.options.episodes:
            self.scores[name] = self._evaluate(name).facts()
        provenance = {
            **self.facts, "stage": name, "counters": asdict(self.learner.counters), "scores": self.scores.get(name, {}),
            "evaluation": EVALUATION, "seconds": round(self.seconds[name], 1),
        }  # fmt: skip
        _policy(self.learner, self.stage, provenance).save_pretrained(self.policy)
        self.learner.save()

    def _count_seconds(self) -> None:
        """Adds what has passed since the last call to the stage that is running; it survives a stop."""
        now, counters = time.monotonic(), self.learner.counters
        if counters.frames or self.learner.stage2_done:
            counters.seconds3 += now - self._clock
        else:
            counters.seconds2 += now - self._clock
        self._clock = now

    def _ended(self, name: str, complete: bool) -> bool:
        """Whether this stage was finished before the run was stopped; its scores are those of its policy then."""
        self.policy = self.learner.directory / name
        if not complete or not (self.policy / SIDECAR).is_file():
            return False
        kept = Policy.from_pretrained(self.policy).spec.provenance
        if self.options.episodes and not kept.get("scores") and name == "stage3":
            return False
        self.scores[name], self.seconds[name] = dict(kept.get("scores", {})), float(kept.get("seconds", 0.0))
        return True

    def _evaluate(self, label: str) -> Evaluation:
        found = evaluate_policy(self.stage, self.learner.exploit, self.options.episodes, self.reporter)
        facts = found.facts()
        self.metrics.write(self.learner.counters.updates, {f"eval_{name}": value for name, value in facts.items()})
        share = f"{facts['success']:.2f} ({facts['success_low']:.2f} to {facts['success_high']:.2f})"
        self.reporter.note(f"{label}: success {share} of {self.options.episodes} episodes")
        return found


def _learner(
    dataset: Dataset | None, stage: Stage, config: VRL3Config, options: TrainOptions, directory: Path,
    reporter: Reporter,
) -> tuple[Learner, dict[str, Any]]:  # fmt: skip
    encoder = pairing.find_encoder(options.encoder, stage, config.frames, options.seed, reporter)
    facts: dict[str, Any] = {
        "encoder": _encoder_facts(encoder, options.encoder),
        "env": asdict(stage.spec),
        "data": None,
    }
    facts["data"] = spec = table = None
    if dataset is not None:
        spec = pairing.batch_spec(dataset, stage, config, encoder is not None, reporter)
        table = pairing.load_demonstrations(dataset, spec, stage, options.split, options.storage, reporter)
        found = dataset.manifest
        facts["data"] = {"name": found.name, "fingerprint": found.fingerprint, "license": found.license,
                         "split": options.split}  # fmt: skip
    replay = _replay(spec or pairing.online_spec(stage, config, encoder is not None), table, config)
    if table is not None and config.stage2.updates and options.stage != "3":
        replay.check_windows()
    pairing.check_memory(replay, stage)
    agent = _agent(config, options, encoder, stage)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "mujoco", "gymnasium-robotics")}
    facts |= {"objective": "vrl3", "preset": config.preset, "versions": {"vrl3data": __version__, **versions}}
    learner = Learner(
        agent, replay, config, options.seed, directory, {k: facts.get(k) for k in ("encoder", "env", "data")}
    )
    return learner, {**facts, "config": asdict(config), "seed": options.seed}


def _agent(config: VRL3Config, options: TrainOptions, encoder: Encoder | None, stage: Stage) -> VRL3Agent:
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        auto = options.device != "cpu" and config.precision == "auto"
        bf16 = torch.cuda.is_bf16_supported() if auto else use_bf16(config.precision)
        bf16 = bf16 and encoder is not None
        agent = VRL3Agent(config.agent, encoder, stage.sensor_dim, stage.action_dim, bf16)
    if options.device != "cpu":
        agent = agent.to(options.device)
        agent.fresh_optimizers()
    return agent


def _replay(spec: BatchSpec, table: EpisodeTable | None, config: VRL3Config) -> Replay:
    """Demonstrations stay for good, or, as released, are the first to go when the replay is full."""
    capacity = config.stage3.capacity if config.stage3.frames else 0
    if table is None or config.stage3.protect_demonstrations:
        return Replay(spec, table, capacity)
    replay = Replay(spec, None, max(capacity, table.layout.states + table.layout.episodes))
    replay.absorb(table)
    return replay


def _encoder_facts(encoder: Encoder | None, source: str) -> dict[str, Any] | None:
    if encoder is None:
        return None
    made = {name: encoder.spec.provenance.get(name) for name in ("objective", "data")}
    named = source if ":" in source else Path(source).name
    weights = b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in encoder.state_dict().values())
    digest = hashlib.sha256(weights).hexdigest()
    return {
        "source": named,
        "arch": encoder.spec.arch,
        "in_channels": encoder.spec.in_channels,
        "weights": digest,
        **made,
    }


def _policy(learner: Learner, stage: Stage, provenance: dict[str, Any]) -> Policy:
    described: dict[str, Any]
    agent, config = learner.agent, learner.config
    encoder, described = agent.encoder, {}
    if encoder is not None:
        arch, mean, std = encoder.spec.arch, encoder.spec.mean, encoder.spec.std
        described = {"encoder_arch": arch, "encoder_mean": mean, "encoder_std": std}
    spec = PolicySpec(
        env=stage.spec.name, action_dim=stage.action_dim, sensor_dim=stage.sensor_dim, frames=config.frames,
        cameras=stage.cameras, sensor=stage.sensor or "", image_size=stage.spec.image_size,
        max_steps=stage.spec.max_steps, action_repeat=stage.spec.action_repeat, env_options=stage.spec.options,
        hidden_dim=config.agent.hidden_dim, trunk_dim=config.agent.trunk_dim, provenance=provenance, **described,
    )  # fmt: skip
    return Policy(spec, encoder, agent.actor)


@contextmanager
def _dataset(data: Path | str | None) -> Iterator[Dataset | None]:
    if data is None:
        yield None
        return
    with open_dataset(data) as dataset:
        yield dataset


def check_device(device: str) -> None:
    """ConfigError if torch has no such device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device {device!r}: {str(error).splitlines()[0]}") from error


def _made(directory: Path) -> Path:
    with storage.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory
