"""Stages 2 and 3 as a whole: what is learned, what is refused, what survives a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_demonstrations, run_cli, write_dataset
from PIL import Image
from point_reach import poor_demonstrations

import vrl3data
from vrl3data import app, envs
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError, DamagedError, DestinationError, Diverged
from vrl3data.rl import train as training
from vrl3data.rl.config import VRL3Config, preset
from vrl3data.rl.evaluation import save_film, wilson
from vrl3data.rl.learner import Learner
from vrl3data.rl.play import EnvSpec, open_stage
from vrl3data.rl.policy import Policy
from vrl3data.rl.rollout import RolloutOptions, rollout
from vrl3data.rl.train import TrainOptions, train

POINT = EnvSpec("point-reach")
POINT_SETTINGS: dict[str, Any] = {
    "frames": 1, "action_repeat": 1, "batch_size": 128, "sample_by": "step", "whole_windows": False,
    "agent.hidden_dim": 128, "agent.lr": 1e-3, "agent.gamma": 0.9, "agent.target_tau": 0.05,
    "agent.safe_q_threshold": 10.0, "stage2.bc_updates": 100, "stage2.updates": 20, "stage3.update_every": 1,
    "stage3.std": 0.3, "stage3.bc_weight": 0.0, "stage3.capacity": 5000, "stage3.frames": 90,
}  # fmt: skip
REACH = EnvSpec("fetch-reach", image_size=32, max_steps=4)
REACH_SETTINGS: dict[str, Any] = {
    "frames": 3, "batch_size": 8, "agent.hidden_dim": 16, "stage2.bc_updates": 4, "stage2.updates": 4,
    "stage2.bc_weight": 1.0, "stage3.frames": 12, "stage3.demo_batch": 4, "stage3.update_every": 1,
    "stage3.capacity": 100, "stage3.std": 0.3, "stage3.q_after": 2,
}  # fmt: skip
BRIEF = TrainOptions(encoder="none", episodes=5)


@pytest.fixture(autouse=True)
def _point_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.ENVS, "point-reach", "point_reach:PointReach")


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poor_demonstrations(tmp_path_factory.mktemp("points") / "set")


@pytest.fixture(scope="module")
def reaching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reach") / "set"
    app.record("fetch-reach", path, app.LiveOptions(episodes=3, steps=4, image_size=32))
    return path


def point_config(**changes: Any) -> VRL3Config:
    return preset("paper", POINT_SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


def reach_config(**changes: Any) -> VRL3Config:
    return preset("short", REACH_SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


# -- learning --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stage_3_goes_from_poor_demonstrations_to_success(points: Path, tmp_path: Path) -> None:
    """From at most 0.3 after behaviour cloning to at least 0.9; takes about 10 s."""
    config = point_config(stage2__bc_updates=300, stage2__updates=0, stage3__frames=15 * 120)
    found = train(points, POINT, tmp_path, config, replace(BRIEF, episodes=100))
    assert found.scores["stage2"]["success"] <= 0.3
    assert found.scores["stage3"]["success"] >= 0.9


def test_cloning_imitates_and_conservatism_keeps_unseen_actions_low(points: Path, tmp_path: Path) -> None:
    gaps = {}
    for weight in (0.0, 5.0):
        seen: dict[str, Learner] = {}
        config = point_config(stage2__bc_updates=150, stage2__updates=200, stage2__cql_weight=weight, stage3__frames=0)
        grab(seen, tmp_path / f"{weight}", points, config)
        learner = seen["learner"]
        batch = {
            n: torch.as_tensor(v)
            for n, v in learner.replay.sample(256, np.random.default_rng(9)).items()
            if v is not None
        }
        with torch.no_grad():
            state = learner.agent.state(None, batch["sensor"])
            data = torch.minimum(*learner.agent.critic(state, batch["action"])).mean()
            generator = torch.Generator().manual_seed(0)
            anything = torch.rand(10, 256, 2, generator=generator) * 2 - 1
            other = torch.minimum(*learner.agent.critic(state, anything)).mean()
        gaps[weight] = float(data - other)
        first, last = cloning_errors(tmp_path / f"{weight}")
        assert last < 0.9 * first
    assert gaps[5.0] > gaps[0.0] + 0.5


def grab(seen: dict[str, Learner], out: Path, data: Path, config: VRL3Config) -> None:
    """Train stage 2 and keep the learner that did it."""
    original = Learner.save

    def save(self: Learner) -> None:
        seen["learner"] = self
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "save", save)
        train(data, POINT, out, config, replace(BRIEF, stage="2", episodes=0))


def cloning_errors(directory: Path) -> tuple[float, float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    errors = [row["bc"] for row in rows if "bc" in row]
    return errors[0], errors[6]


def test_the_whole_path_on_pictures_leaves_policies_metrics_and_facts(reaching: Path, tmp_path: Path) -> None:
    options = TrainOptions(encoder="random:resnet6_32channel", episodes=2, seed=3)
    found = train(reaching, REACH, tmp_path, reach_config(), options)
    assert set(found.scores) == {"stage2", "stage3"}
    assert found.policy == tmp_path / "stage3"
    policy = Policy.from_pretrained(found.policy)
    facts = policy.spec.provenance
    assert facts["data"]["fingerprint"] == vrl3data.open(reaching).manifest.fingerprint
    assert facts["counters"]["frames"] == 12
    assert facts["counters"]["offline"] == 4
    assert facts["encoder"]["in_channels"] == 9
    assert policy.spec.env_spec() == replace(REACH, action_repeat=1)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    # Running it again does nothing but tell the same.
    again = train(reaching, REACH, tmp_path, reach_config(), options)
    assert again.scores == found.scores


def test_stage_2_from_one_encoder_and_seed_is_always_the_same(reaching: Path, tmp_path: Path) -> None:
    options = TrainOptions(encoder="random:resnet6_32channel", episodes=0, stage="2")
    for name in ("a", "b"):
        train(reaching, REACH, tmp_path / name, reach_config(), options)
    train(reaching, REACH, tmp_path / "c", reach_config(), replace(options, seed=1))
    digests = [weights(tmp_path / name / "stage2") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_batch_norm_has_the_statistics_of_the_demonstrations_after_the_warm_up(reaching: Path, tmp_path: Path) -> None:
    """Four updates would leave it with a third of them: momentum 0.1."""
    options = TrainOptions(encoder="random:resnet6_32channel", episodes=0, stage="2")
    policy = Policy.from_pretrained(train(reaching, REACH, tmp_path, reach_config(stage2__updates=0), options).policy)
    assert policy.encoder is not None
    norm, seen = policy.encoder.network.stem_norm, []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with vrl3data.open(reaching) as dataset:
        frames = np.concatenate([sample["obs.image.main"] for sample in dataset])
    stack = torch.from_numpy(np.concatenate([frames] * 3, 3)).permute(0, 3, 1, 2)
    policy.act(stack, torch.zeros(len(stack), 3))
    mean_C, std_C = seen[0].mean((0, 2, 3)), seen[0].std((0, 2, 3))
    assert ((mean_C - norm.running_mean).abs() / std_C).max() < 0.1
    assert ((std_C - norm.running_var.sqrt()).abs() / std_C).max() < 0.1


def weights(directory: Path) -> str:
    return str(json.loads((directory / "policy.json").read_bytes())["sha256"])


# -- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["point", "picture"])
def test_a_run_that_is_stopped_anywhere_ends_in_the_same_policy(
    kind: str, points: Path, reaching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every kind of boundary: in the warm-up, offline, between online episodes."""
    env, data = (POINT, points) if kind == "point" else (REACH, reaching)
    config = point_config(stage2__bc_updates=5, stage2__updates=5) if kind == "point" else reach_config()
    encoder = "none" if kind == "point" else "random:resnet6_32channel"
    options = TrainOptions(encoder=encoder, episodes=2, checkpoint_seconds=0.0)
    whole = train(data, env, tmp_path / "whole", config, options)
    boundary, stops = training._Run._boundary, iter([3, 4, 2, 1, 1])

    def run_and_stop(after: int) -> None:
        calls = 0

        def interrupted(self: Any) -> None:
            nonlocal calls
            calls += 1
            self.interrupted = lambda: calls >= after
            boundary(self)

        with monkeypatch.context() as patch:
            patch.setattr(training._Run, "_boundary", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(data, env, tmp_path / "parts", config, options)

    for after in stops:
        run_and_stop(after)
    parts = train(data, env, tmp_path / "parts", config, options)
    assert parts.scores == whole.scores
    for name in ("stage2", "stage3"):
        assert weights(tmp_path / "parts" / name) == weights(tmp_path / "whole" / name)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("parts", "whole")]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_policy(reaching: Path, tmp_path: Path) -> None:
    settings = [f"{name}={value}" for name, value in REACH_SETTINGS.items()]
    arguments = ["train", "vrl3", "--data", str(reaching), "--env", "fetch-reach", "--preset", "short",
                 "--episodes", "0", "--encoder", "random:resnet6_32channel", "--image-size", "32"]  # fmt: skip
    arguments += [part for s in settings for part in ("--set", s)]
    arguments += ["--max-steps", "4", "--set", "stage2.bc_updates=60"]
    command = [sys.executable, "-m", "vrl3data", *arguments]
    assert subprocess.run([*command, "--out", str(tmp_path / "whole"), "-q"], cwd=ROOT, check=False).returncode == 0
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "parts")], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("stage 2, behaviour cloning"):
                break
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        assert "run the same command again to go on" in run.stderr.read()
    assert run.returncode == 130
    assert subprocess.run([*command, "--out", str(tmp_path / "parts"), "-q"], cwd=ROOT, check=False).returncode == 0
    assert weights(tmp_path / "parts" / "stage3") == weights(tmp_path / "whole" / "stage3")


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(points: Path, tmp_path: Path) -> None:
    train(points, POINT, tmp_path, point_config(stage3__frames=0), replace(BRIEF, stage="2"))
    with pytest.raises(ConfigError, match="a run with another seed; choose another --out"):
        train(points, POINT, tmp_path, point_config(stage3__frames=0), replace(BRIEF, stage="2", seed=1))
    with pytest.raises(ConfigError, match=r"a run with another config.agent.lr, config.stage2.updates; choose"):
        train(points, POINT, tmp_path, point_config(stage2__updates=21, agent__lr=0.5), replace(BRIEF, stage="2"))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedError, match="cannot be read"):
        train(points, POINT, tmp_path, point_config(stage3__frames=0), replace(BRIEF, stage="2"))


def test_stage_3_takes_up_a_stage_2_and_can_be_made_longer(points: Path, tmp_path: Path) -> None:
    train(points, POINT, tmp_path, point_config(), replace(BRIEF, stage="2"))
    first = train(points, POINT, tmp_path, point_config(stage3__std=0.2, stage3__frames=15), replace(BRIEF, stage="3"))
    assert first.policy == tmp_path / "stage3"
    train(points, POINT, tmp_path, point_config(stage3__std=0.2, stage3__frames=45), replace(BRIEF, stage="3"))
    assert Policy.from_pretrained(first.policy).spec.provenance["counters"]["frames"] == 45
    with pytest.raises(ConfigError, match=r"another config.stage3.std"):
        train(points, POINT, tmp_path, point_config(stage3__std=0.1, stage3__frames=45), replace(BRIEF, stage="3"))


# -- refusals ----------------------------------------------------------------------------------------------------


def test_wrong_pairings_are_refused_before_training(points: Path, reaching: Path, tmp_path: Path) -> None:
    def refused(match: str, data: Path | None, env: EnvSpec, encoder: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            train(data, env, tmp_path / "run", reach_config(**changes), TrainOptions(encoder=encoder, episodes=0))

    Encoder(EncoderSpec("resnet6_32channel", 6, 32)).save_pretrained(tmp_path / "six")
    Encoder(EncoderSpec("resnet6_32channel", 3, 84)).save_pretrained(tmp_path / "large")
    rnd = "random:resnet6_32channel"
    refused(r"a dataset is needed", None, REACH, rnd)
    refused(r"fetch-reach observes obs.image.main, the dataset has obs.proprio", points, REACH, rnd)
    refused(r"the dataset has \(32, 32, 3\), the environment \(40, 40, 3\): give --image-size 32", reaching,
            replace(REACH, image_size=40), rnd)  # fmt: skip
    refused(r"the encoder takes images of 84 pixels, the environment gives 32: give --image-size 84", reaching, REACH,
            str(tmp_path / "large"))  # fmt: skip
    refused(r"takes 6 channels, 3 frames of 1 cameras have 9: inflate .* --frames 3 --cameras 1", reaching, REACH,
            str(tmp_path / "six"))  # fmt: skip
    refused(r"unknown encoder 'resnet6_32chanel'; did you mean", reaching, REACH, "random:resnet6_32chanel")
    refused(r"no environment 'fetch-reech'; did you mean 'fetch-reach'", reaching, EnvSpec("fetch-reech"), rnd)
    refused(r"point-reach has no cameras; give --encoder none", points, POINT, rnd)
    refused(r"unexpected keyword argument 'colour'", reaching, replace(REACH, options={"colour": 1}), rnd)
    refused(r"obs.proprio: the dataset has \(4,\), point-reach \(9,\)", points, replace(POINT, options={"width": 9}),
            "none")  # fmt: skip
    refused(r"actions: the dataset has \(2,\), point-reach takes \(3,\): another robot", points,
            replace(POINT, options={"actions": 3}), "none")  # fmt: skip
    images = write_dataset(tmp_path / "other")
    refused(r"observes obs.image.main, the dataset has", images, REACH, rnd)


def test_values_that_are_not_finite_are_found_with_their_place(points: Path, tmp_path: Path) -> None:
    with vrl3data.open(points) as dataset, vrl3data.Writer(tmp_path / "bad", replace_spec(dataset)) as writer:
        for number, sample in enumerate(dataset):
            episode = sample.load()
            if number == 4:
                episode.values["reward"] = np.where(np.arange(15) == 7, np.nan, episode.values["reward"]).astype(
                    np.float32
                )
            writer.write(episode)
        writer.finish()
    with pytest.raises(ConfigError, match=r"expected finite numbers \(.*episode 4, step 7, feature reward\)"):
        train(tmp_path / "bad", POINT, tmp_path / "run", point_config(), BRIEF)


def replace_spec(dataset: Any) -> Any:
    from vrl3data.manifest import DatasetSpec, Provenance

    return DatasetSpec(dataset.schema, "bad", Provenance("test", source_identity="bad"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vrl3data.rl import losses

    monkeypatch.setattr(losses, "td_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(Diverged, match=r"the critic is nan; .*; update 100, its batch is in .*diverged_batch"):
        train(points, POINT, tmp_path, point_config(), BRIEF)
    from safetensors.torch import load_file

    batch = load_file(tmp_path / "diverged_batch.safetensors")
    assert batch["action"].shape == (128, 2)


# -- policies, evaluation, rollout -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(reaching: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy")
    options = TrainOptions(encoder="random:resnet6_32channel", episodes=0, stage="2")
    return train(reaching, REACH, out, reach_config(), options).policy


def test_a_policy_loads_strictly_and_acts_alike(policy: Path, tmp_path: Path) -> None:
    first, second = Policy.from_pretrained(policy), Policy.from_pretrained(policy)
    images, sensors = torch.randint(0, 256, (2, 9, 32, 32), dtype=torch.uint8), torch.randn(2, 3)
    assert torch.equal(first.act(images, sensors), second.act(images, sensors))
    with pytest.raises(ConfigError, match="this policy needs images"):
        first.act(None, sensors)
    with pytest.raises(ConfigError, match="this policy needs sensors"):
        first.act(images, None)
    with pytest.raises(ConfigError, match=r"this is not a policy: it has no policy\.json"):
        Policy.from_pretrained(tmp_path)
    broken = shutil.copytree(policy, tmp_path / "broken")
    data = bytearray((broken / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "policy.safetensors").write_bytes(bytes(data))
    with pytest.raises(DamagedError, match="does not have the sha256"):
        Policy.from_pretrained(broken)
    sidecar = json.loads((policy / "policy.json").read_text())
    for key, value, match in (("checkpoint_version", 9, "version 9"), ("hidden_dim", 17, "cannot be read")):
        (broken / "policy.json").write_text(json.dumps(sidecar | {key: value}))
        shutil.copy(policy / "policy.safetensors", broken)
        with pytest.raises(DamagedError, match=match):
            Policy.from_pretrained(broken)


def test_evaluation_is_the_same_every_time_and_makes_a_film(policy: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    arguments = ("evaluate", policy, "--episodes", 3, "--json", "-q")
    one = json.loads(run_cli(*arguments, "--film", film).stdout)
    two = json.loads(run_cli(*arguments).stdout)
    assert one == two
    assert one["episodes"] == 3
    with Image.open(film) as opened:
        assert opened.n_frames == 5
        assert opened.size == (3 * 64, 64)
    assert run_cli("evaluate", policy, "--film", tmp_path / "film.mp4").returncode == 2
    refused = run_cli("evaluate", policy, "--film", film / "inner.gif")
    assert refused.returncode == 2
    assert "evaluating" not in refused.stderr  # before the episodes, not after them
    assert "it has no policy.json" in run_cli("evaluate", tmp_path).stderr


def test_a_rollout_is_a_dataset_that_stage_2_takes(policy: Path, tmp_path: Path) -> None:
    found = rollout(Policy.from_pretrained(policy), tmp_path / "set", RolloutOptions(episodes=2))
    assert found.samples == 2
    with vrl3data.open(tmp_path / "set") as dataset, open_stage(REACH, 3) as stage:
        played = stage.play(Policy.from_pretrained(policy).choose, 300_000_000)
        assert np.array_equal(dataset[0]["obs.image.main"], played.images["obs.image.main"])
        assert np.allclose(dataset[0]["action"], played.action_TA)
        assert dataset[0].meta["origin"] == "policy"
    train(tmp_path / "set", REACH, tmp_path / "run", reach_config(stage3__frames=0),
          TrainOptions(encoder="random:resnet6_32channel", episodes=0, stage="2"))  # fmt: skip
    again = rollout(Policy.from_pretrained(policy), tmp_path / "set", RolloutOptions(episodes=2))
    assert again.fingerprint == found.fingerprint
    with pytest.raises(DestinationError, match="is finished with 2 episodes, not 3"):
        rollout(Policy.from_pretrained(policy), tmp_path / "set", RolloutOptions(episodes=3))
    other = Policy.from_pretrained(policy)
    torch.nn.init.zeros_(other.actor.net[4].weight)
    with pytest.raises(DestinationError, match="another"):
        rollout(other, tmp_path / "set", RolloutOptions(episodes=2))


def test_wilson_intervals() -> None:
    """Against the values of Newcombe 1998, table I."""
    assert wilson(81, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(20, 20)[1] == 1.0


def test_no_film_without_pictures(tmp_path: Path) -> None:
    with open_stage(POINT, 1) as stage:
        played = stage.play(lambda *_: np.zeros(2), 0)
    with pytest.raises(ConfigError, match="there are no images"):
        save_film(tmp_path / "film.gif", [played])


def test_presets_are_printed_with_their_sources() -> None:
    result = run_cli("train", "vrl3", "--env", "fetch-reach", "--out", "x", "--explain", "--preset", "released")
    assert result.returncode == 0
    assert "src/vrl3_agent.py: freeze_bn is never called" in result.stdout
    assert run_cli("train", "vrl3", "--env", "a", "--out", "x", "--set", "oops").returncode == 2


def test_the_demonstrations_of_a_release_can_be_forgotten(reaching: Path, tmp_path: Path) -> None:
    config = reach_config(stage3__protect_demonstrations=False, stage3__frames=24, stage3__capacity=5)
    options = TrainOptions(encoder="random:resnet6_32channel", episodes=0, checkpoint_seconds=0.0)
    train(reaching, REACH, tmp_path, config, options)
    kept = sorted(path.stem for path in (tmp_path / "online").glob("*"))
    assert kept == ["00000006", "00000007", "00000008"]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "channels"), [("door", 9), ("relocate", 27)])
def test_adroit_goes_through_both_stages(task: str, channels: int, tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / f"{task}.pickle", task, count=2, length=6)
    app.convert("adroit", source, tmp_path / "set", {"image_size": 32, "render": "fast", "task": task})
    settings = {"batch_size": 4, "agent.hidden_dim": 16, "stage2.bc_updates": 1, "stage2.updates": 2,
                "stage3.frames": 8, "stage3.capacity": 50, "stage3.demo_batch": 2}  # fmt: skip
    env = EnvSpec(f"adroit-{task}", 32, 8, 2, {"render": "fast"})
    options = TrainOptions(encoder="random:resnet6_32channel", episodes=1)
    found = train(tmp_path / "set", env, tmp_path / "run", preset("paper", settings), options)
    facts = Policy.from_pretrained(found.policy).spec
    assert facts.provenance["encoder"]["in_channels"] == channels
    assert facts.provenance["counters"]["agent_steps"] == 4
    assert facts.sensor_dim == 24


def test_the_learning_rate_falls_over_stage_2(points: Path, tmp_path: Path) -> None:
    seen: dict[str, Learner] = {}
    grab(seen, tmp_path, points, point_config(stage2__anneal=0.1, stage2__updates=10, stage3__frames=0))
    assert seen["learner"].agent.optimizers["actor"].param_groups[0]["lr"] == pytest.approx(1e-3 * (1 - 0.9 * 0.9))
