"""What the configuration of a run becomes: the updates, batches and demonstrations that the agent gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from point_reach import poor_demonstrations
from test_train import BRIEF, POINT, POINT_SETTINGS

import vrl3data
from vrl3data import app, envs
from vrl3data.errors import ConfigError
from vrl3data.replay import Replay
from vrl3data.report import Silent
from vrl3data.rl import pairing
from vrl3data.rl import train as training
from vrl3data.rl.agent import UpdateConfig, VRL3Agent
from vrl3data.rl.config import VRL3Config, preset
from vrl3data.rl.play import EnvSpec, open_stage
from vrl3data.rl.policy import Policy
from vrl3data.rl.train import TrainOptions, train
from vrl3data.writer import Writer


@pytest.fixture(autouse=True)
def _point_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.ENVS, "point-reach", "point_reach:PointReach")


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poor_demonstrations(tmp_path_factory.mktemp("points") / "set", count=6)


def config(**changes: Any) -> VRL3Config:
    short = {"stage2.bc_updates": 2, "stage2.updates": 2, "stage3.frames": 30, "stage3.update_every": 5}
    return preset("paper", POINT_SETTINGS | short | {name.replace("__", "."): value for name, value in changes.items()})


class Spy(list[Any]):
    """Notes what each update of the agent is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original, bc = VRL3Agent.update, VRL3Agent.bc_update

        def update(agent: VRL3Agent, batch: Any, draws: Any, how: UpdateConfig, shift: Any, demo: Any) -> Any:
            rates = {name: group.param_groups[0]["lr"] for name, group in agent.optimizers.items()}
            self.append((how, len(batch["action"]), None if demo is None else demo, batch, rates["actor"]))
            return original(agent, batch, draws, how, shift, demo)

        def bc_update(agent: VRL3Agent, batch: Any, shift: Any) -> Any:
            self.append(("bc", len(batch["action"]), None, batch, agent.optimizers["actor"].param_groups[0]["lr"]))
            return bc(agent, batch, shift)

        monkeypatch.setattr(VRL3Agent, "update", update)
        monkeypatch.setattr(VRL3Agent, "bc_update", bc_update)


def test_each_stage_makes_the_updates_that_it_is_configured_for(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Spy(monkeypatch)
    plan = config(
        stage2__std=0.15, stage2__bc_weight=0.7, stage2__cql_weight=0.5, stage3__bc_weight=2.0, stage3__bc_decay=0.5,
        stage3__bc_decay_steps=20, stage3__demo_batch=9, stage3__q_after=2, stage3__lr_scale=0.1,
    )  # fmt: skip
    train(points, POINT, tmp_path, plan, replace(BRIEF, episodes=0))
    assert [entry[0] for entry in seen[:2]] == ["bc", "bc"]
    assert [entry[0] for entry in seen[2:4]] == [UpdateConfig(0.15, 0.5, 1.0, 0.7, "critic")] * 2
    online = seen[4:]
    assert len(online) == 6  # 30 steps, an update every 5
    assert [entry[0].q_weight for entry in online] == [0, 0, 1, 1, 1, 1]
    assert [entry[0].bc_weight for entry in online] == [2, 2, 2, 1, 1, 1]  # steps 5, 10, 15, 20, 25, 30
    assert {entry[0].std for entry in online} == {0.3}
    assert {entry[0].cql_weight for entry in online} == {0.0}
    assert {len(entry[2]["action"]) for entry in online} == {9}
    assert online[0][4] == pytest.approx(1e-4)
    with vrl3data.open(points) as dataset:
        known = np.concatenate([sample["action"] for sample in dataset])
    for entry in online:
        for action in entry[2]["action"].numpy():
            assert (np.abs(known - action).max(1) < 1e-6).any()


def test_optimisers_start_afresh_where_they_should(points: Path, tmp_path: Path) -> None:
    digests = set()
    for fresh in (True, False):
        out = tmp_path / str(fresh)
        plan = config(stage2__fresh_optimizers=fresh, stage3__frames=0)
        digests.add(Policy.from_pretrained(train(points, POINT, out, plan, replace(BRIEF, episodes=0)).policy).digest())
    assert len(digests) == 2


def test_batches_have_the_configured_windows(points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Spy(monkeypatch)
    train(points, POINT, tmp_path, config(agent__n_step=4, agent__gamma=0.5), replace(BRIEF, episodes=0, stage="2"))
    assert set(seen[-1][3]["discount"].unique().tolist()) == {0.5, 0.25, 0.125, 0.0625}
    specs = []
    original = Replay.__init__

    def init(replay: Replay, spec: Any, *rest: Any) -> None:
        specs.append(spec)
        original(replay, spec, *rest)

    monkeypatch.setattr(Replay, "__init__", init)
    plan = config(whole_windows=True, sample_by="episode", frames=2)
    train(points, POINT, tmp_path / "b", plan, replace(BRIEF, episodes=0, stage="2"))
    assert (specs[0].whole_windows, specs[0].by, specs[0].frames) == (True, "episode", 2)


def test_the_action_repeat_is_that_of_the_configuration(points: Path, tmp_path: Path) -> None:
    found = train(points, POINT, tmp_path, config(action_repeat=3), replace(BRIEF, episodes=1))
    spec = Policy.from_pretrained(found.policy).spec
    assert spec.action_repeat == 3
    assert spec.provenance["counters"]["agent_steps"] == 10


def test_demonstrations_are_scaled_clipped_and_of_the_split(tmp_path: Path, points: Path) -> None:
    with vrl3data.open(points) as dataset, Writer(tmp_path / "set", app_spec(dataset)) as writer:
        for number, sample in enumerate(dataset):
            episode = sample.load()
            action = np.array(episode.values["action"])
            action[0] = 3.0
            episode.values["action"] = action
            writer.write(replace(episode, split="train" if number % 2 else "other"))
        writer.finish()
    with vrl3data.open(tmp_path / "set") as dataset, open_stage(POINT, 1) as stage:
        stage.env.unwrapped.reward_scale = 0.5
        spec = pairing.batch_spec(dataset, stage, config(), False, Silent())
        table = pairing.load_demonstrations(dataset, spec, stage, "train", "ram", Silent())
        wanted = np.concatenate([dataset[i]["reward"] for i in dataset.split("train")])
    assert table.layout.episodes == 3
    assert np.allclose(table.array("reward"), 0.5 * wanted)
    assert table.array("action").max() == 1.0


def app_spec(dataset: Any) -> Any:
    from vrl3data.manifest import DatasetSpec, Provenance

    return DatasetSpec(dataset.schema, "made", Provenance("test", source_identity="made"))


def test_actions_of_another_scale_are_refused(tmp_path: Path, points: Path) -> None:
    with vrl3data.open(points) as dataset, Writer(tmp_path / "set", app_spec(dataset)) as writer:
        for sample in dataset:
            episode = sample.load()
            episode.values["action"] = 100 * np.array(episode.values["action"])
            writer.write(episode)
        writer.finish()
    with pytest.raises(ConfigError, match=r"9\d% of the action entries lie outside \[-1, 1\]: they have another scale"):
        train(tmp_path / "set", POINT, tmp_path / "run", config(), BRIEF)


def test_the_order_of_the_stages_is_kept(points: Path, tmp_path: Path) -> None:
    brief = replace(BRIEF, episodes=0)
    train(points, POINT, tmp_path / "a", config(), replace(brief, stage="3"))
    with pytest.raises(ConfigError, match="stage 3 has begun in this directory"):
        train(points, POINT, tmp_path / "a", config(), replace(brief, stage="2"))
    with pytest.raises(ConfigError, match=r"stage 3 has no frames: set stage3\.frames"):
        train(points, POINT, tmp_path / "b", config(stage3__frames=0), replace(brief, stage="3"))
    train(points, POINT, tmp_path / "c", config(), replace(brief, stage="2"))
    with pytest.raises(ConfigError, match=r"another config\.stage3\.protect_demonstrations"):
        train(points, POINT, tmp_path / "c", config(stage3__protect_demonstrations=False), brief)


def test_other_weights_and_other_splits_are_another_run(points: Path, tmp_path: Path) -> None:
    train(points, POINT, tmp_path, config(), replace(BRIEF, episodes=0, stage="2"))
    with pytest.raises(ConfigError, match=r"a run with another data\.split"):
        train(points, POINT, tmp_path, config(), replace(BRIEF, episodes=0, stage="2", split="train"))


def test_what_cannot_work_is_refused_before_training(points: Path, tmp_path: Path) -> None:
    cases = {
        r"no device 'foo'": (config(), replace(BRIEF, device="foo")),
        r"no episode has 99 steps": (config(agent__n_step=99, whole_windows=True), BRIEF),
        r"an episode has up to 16 states: set stage3.capacity": (config(stage3__capacity=9), BRIEF),
        r"would take .* GB in a full replay": (config(stage3__capacity=10**13), BRIEF),
    }
    for match, (plan, options) in cases.items():
        with pytest.raises(ConfigError, match=match):
            train(points, POINT, tmp_path / "run", plan, options)
    assert not list((tmp_path / "run").glob("checkpoint*"))
    with pytest.raises(ConfigError, match="evaluate_every of at least 1"):
        TrainOptions(evaluate_every=0)


def test_evaluations_fall_due_whatever_stops_the_run(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the very boundary at which an evaluation is due."""
    options = replace(BRIEF, episodes=1, evaluate_every=15, checkpoint_seconds=0.0)
    plan = config(stage3__frames=60)
    train(points, POINT, tmp_path / "whole", plan, options)
    boundary = training._Run._boundary

    def stop(run: Any) -> None:
        run.interrupted = lambda: run.learner.counters.frames == 30
        boundary(run)

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_boundary", stop)
        with pytest.raises(KeyboardInterrupt):
            train(points, POINT, tmp_path / "parts", plan, options)
    train(points, POINT, tmp_path / "parts", plan, options)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert lines[0].count('eval_success"') == 5  # frames 15, 30, 45, and the end of each stage


def test_recorded_adroit_rewards_are_not_scaled(tmp_path: Path) -> None:
    """Datasets hold the environment's own rewards; `train` scales them."""
    app.record("adroit-door", tmp_path / "set", app.LiveOptions(episodes=1, steps=3, image_size=16, policy="random"))
    with vrl3data.open(tmp_path / "set") as dataset, open_stage(EnvSpec("adroit-door", 16, 3), 1) as stage:
        raw = dataset[0]["reward"]
        spec = pairing.batch_spec(dataset, stage, config(), True, Silent())
        table = pairing.load_demonstrations(dataset, spec, stage, None, "ram", Silent())
    assert np.allclose(table.array("reward"), raw / 20)
    assert raw.min() < -0.2  # -0.1 (hinge - 1.57)^2 of a closed door
