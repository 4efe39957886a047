"""Recording live environments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from conftest import run_cli, shard_bytes
from gymnasium import spaces

import vrl3data
from vrl3data import manifest
from vrl3data.app import LiveOptions, record
from vrl3data.dataset import locate_dataset
from vrl3data.errors import ConfigError, DestinationError, SchemaError
from vrl3data.record import Recorder, RecordOptions
from vrl3data.validation import validate


class Counter(gymnasium.Env):  # type: ignore[type-arg]
    """Counts steps; shows the count in every observation."""

    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (6, 8, 3), np.uint8),
            "Left Wrist": spaces.Box(0, 255, (6, 8, 1), np.uint8),
            "proprio": spaces.Box(-1, 1, (2,), np.float32),
            "lives": spaces.Discrete(100),
        }
    )
    action_space = spaces.Box(-2, 2, (3,), np.float32)

    def __init__(self, end: int = 4) -> None:
        self.end, self.count = end, 0

    def _observe(self) -> dict[str, Any]:
        c = self.count
        return {"image": np.full((6, 8, 3), c, np.uint8), "Left Wrist": np.full((6, 8, 1), 100 + c, np.uint8),
                "proprio": np.full(2, c, np.float32), "lives": c}  # fmt: skip

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._observe(), self.count / 2, self.count >= self.end, False, {"is_success": self.count >= self.end}


def play(env: Any, steps: int, seed: int | None = None) -> None:
    env.reset(seed=seed)
    for step in range(steps):
        env.step(np.full(3, step, np.float32))


def test_recorder_writes_what_happened(tmp_path: Path) -> None:
    with Recorder(Counter(), tmp_path / "set", RecordOptions(task="count", session="s")) as env:
        play(env, 4, seed=7)
        play(env, 2)  # cut short by the reset that follows
        play(env, 3)  # cut short by close
        assert env.episodes == 2
    with vrl3data.open(tmp_path / "set") as dataset:
        assert [item.length for item in dataset] == [4, 2, 3]
        first, second = dataset[0], dataset[1]
        assert first["obs.image.main"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert first["obs.image.left_wrist"].shape == (5, 6, 8, 1)
        assert first["obs.lives"].tolist() == [0, 1, 2, 3, 4]
        assert first["obs.proprio"].dtype == np.float32
        assert first["action"][:, 0].tolist() == [0, 1, 2, 3]
        assert first["reward"].tolist() == [0.5, 1, 1.5, 2]
        assert first["timestamp"].tolist() == [0, 10**8, 2 * 10**8, 3 * 10**8, 4 * 10**8]
        keys = ("terminated", "truncated", "success", "final_observation", "task", "origin")
        assert [first.meta[key] for key in keys] == [1, 0, 1, 1, "count", "policy"]
        assert [second.meta[key] for key in keys] == [0, 1, 0, 1, "count", "policy"]
        assert first.source_meta == {"seed": 7}
        assert dataset.schema["action"].bounds == ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
    assert validate(tmp_path / "set").ok


def test_recorder_drops_what_an_exception_cuts_and_goes_on(tmp_path: Path) -> None:
    whole = RecordOptions(session="s")
    with Recorder(Counter(), tmp_path / "whole", whole) as env:
        play(env, 4)
        play(env, 4)

    def crash() -> None:
        with Recorder(Counter(), tmp_path / "set", whole) as env:
            play(env, 4)
            play(env, 2)
            raise RuntimeError("the robot fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        crash()
    assert len(vrl3data.open(tmp_path / "set")) == 1
    with Recorder(Counter(), tmp_path / "set") as env:  # takes over the session of what is there
        assert env.episodes == 1
        play(env, 4)
    assert shard_bytes(tmp_path / "set") == shard_bytes(tmp_path / "whole")
    with pytest.raises(DestinationError, match="already finished"):
        Recorder(Counter(), tmp_path / "set")


def test_steps_after_the_end_are_refused(tmp_path: Path) -> None:
    with Recorder(Counter(), tmp_path / "set") as env:
        with pytest.raises(ConfigError, match="has ended or not begun: call reset first"):
            env.step(np.zeros(3, np.float32))
        play(env, 4)
        with pytest.raises(ConfigError, match="goes around the Recorder, not into it"):
            env.step(np.zeros(3, np.float32))
        play(env, 4)
    assert [item.length for item in vrl3data.open(tmp_path / "set")] == [4, 4]


class Odd(Counter):
    """An environment that does not keep the promises of its spaces at step 2."""

    def __init__(self, **change: Any) -> None:
        super().__init__()
        self.change = change

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        if self.count == 2:
            reward = self.change.get("reward", reward)
            observation |= self.change.get("observation", {})
            for key in self.change.get("drop", ()):
                del observation[key]
        return observation, reward, *rest  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reward": None}, r"expected shape \(\), found None .*step 1, feature reward"),
        ({"reward": "high"}, "expected float64 of shape.*feature reward"),
        (
            {"observation": {"proprio": np.zeros(3)}},
            r"expected shape \(2,\), found \(3,\) .*step 2, feature obs",
        ),
        ({"drop": ["lives"]}, "the observation has no 'lives', which its space promises"),
    ],
)
def test_what_does_not_fit_its_space_is_refused_at_once(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(SchemaError, match=match), Recorder(Odd(**change), tmp_path / "set") as env:
        play(env, 4)
    assert not (tmp_path / "set").exists()  # nothing was recorded, so nothing is left


def test_values_that_are_not_finite_are_warned_of(tmp_path: Path) -> None:
    env = Recorder(Odd(observation={"proprio": np.array([np.nan, 0])}), tmp_path / "set")
    with env, pytest.warns(UserWarning, match="obs.proprio is NaN or infinite at step 2 of episode 000000"):
        play(env, 4)
    assert [finding.check for finding in validate(tmp_path / "set").worse_than("error")] == ["nan"]


def test_two_recordings_have_different_ids(tmp_path: Path) -> None:
    ids = set()
    for name in "ab":
        with Recorder(Counter(), tmp_path / name) as env:
            play(env, 4)
        ids |= {item.meta["id"] for item in vrl3data.open(tmp_path / name)}
    assert len(ids) == 2


def test_plain_spaces_and_refused_ones(tmp_path: Path) -> None:
    with Recorder(gymnasium.make("CartPole-v1"), tmp_path / "set") as env:
        env.reset(seed=0)
        while not env.step(env.action_space.sample())[2]:
            pass
    with vrl3data.open(tmp_path / "set") as dataset:
        assert dataset[0]["obs.state"].shape == (dataset[0].length + 1, 4)
        assert dataset[0]["action"].dtype == np.int64
        assert dataset[0]["timestamp"][1] == 20_000_000
        assert dataset[0].preview() is None
    env = Counter()
    env.action_space = spaces.MultiBinary(3)
    with pytest.raises(ConfigError, match="Box or Discrete action space, found MultiBinary"):
        Recorder(env, tmp_path / "other")
    env = Counter()
    env.observation_space = spaces.Dict({"words": spaces.Text(9)})
    with pytest.raises(ConfigError, match="observation 'words': expected a Box or Discrete space, found Text"):
        Recorder(env, tmp_path / "other")


def test_fetch_reach_again_and_on(tmp_path: Path) -> None:
    """The same bytes from the same seed, also when the recording was interrupted."""
    whole = record("fetch-reach", tmp_path / "whole", LiveOptions(episodes=3, steps=6, image_size=24))
    record("fetch-reach", tmp_path / "part", LiveOptions(episodes=1, steps=6, image_size=24))
    shards = shard_bytes(tmp_path / "part")
    (tmp_path / "on" / "data").mkdir(parents=True)
    part = tmp_path / "on" / "data" / "train-000000.tar.part"
    part.write_bytes(shards["train-000000.tar"][:-1024])
    record("fetch-reach", tmp_path / "on", LiveOptions(episodes=3, steps=6, image_size=24))
    assert shard_bytes(tmp_path / "on") == shard_bytes(tmp_path / "whole")
    with vrl3data.open(tmp_path / "whole") as dataset:
        assert dataset.schema["obs.image.main"].renderer.startswith("mujoco ")
        assert dataset[0]["sim.goal"].shape == (7, 3)
        assert dataset[0].meta["origin"] == "scripted"
        goals = {tuple(item["sim.goal"][0]) for item in dataset}
        assert len(goals) == 3
        assert abs(dataset[0]["action"]).max() <= 1
    assert (tmp_path / "whole" / "README.md").is_file()
    assert whole.steps == 18


def test_record_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scripted demonstrator for 'fetch-raech'; did you mean 'fetch-reach'"):
        record("fetch-raech", tmp_path / "set")
    with pytest.raises(ConfigError, match="unknown environment 'NoSuchEnv-v0'"):
        record("NoSuchEnv-v0", tmp_path / "set", LiveOptions(policy="random"))
    with pytest.raises(ConfigError, match="to encode, say jpeg:Q with a quality Q"):
        record("fetch-reach", tmp_path / "jpeg", LiveOptions(episodes=1, steps=2, codec="jpeg"))
    for wrong in (LiveOptions(noise=-1), LiveOptions(seed=-1), LiveOptions(image_size=10**5)):
        with pytest.raises(ConfigError, match="expected noise and seed of at least 0 and an image size"):
            record("fetch-reach", tmp_path / "set", wrong)
    with pytest.raises(DestinationError, match="belongs to the package"):
        record("fetch-reach", "sample:fetch-reach", LiveOptions(episodes=1, steps=2))
    with pytest.raises(ConfigError, match="at least one episode"):
        record("fetch-reach", tmp_path / "set", LiveOptions(episodes=0))
    assert not (tmp_path / "set").exists()


def test_the_record_command_with_a_gymnasium_id(tmp_path: Path) -> None:
    result = run_cli("record", "CartPole-v1", tmp_path / "set", "--policy", "random", "--episodes", 3, "--json")
    assert result.returncode == 0, result.stderr
    *confirmed, receipt = (json.loads(line) for line in result.stdout.splitlines())
    assert [event["event"] for event in confirmed] == ["confirmed"] * 3
    assert receipt["samples"] == 3
    found = manifest.read(tmp_path / "set")
    assert found.name == "cartpole-v1-random"
    assert found.provenance["options"]["policy"] == "random"
    again = run_cli("record", "CartPole-v1", tmp_path / "set", "--policy", "random", "--episodes", 3)
    assert (again.returncode, "is already whole" in again.stderr) == (0, True)
    more = run_cli("record", "CartPole-v1", tmp_path / "set", "--policy", "random", "--episodes", 5)
    assert (more.returncode, "is finished with 3 episodes, not 5" in more.stderr) == (2, True)


def test_the_packaged_sample_is_what_its_command_makes(tmp_path: Path) -> None:
    """Its schema and numbers; frames may differ in a bit on another renderer."""
    with vrl3data.open("sample:fetch-reach") as packaged:
        files = [file for file in locate_dataset("sample:fetch-reach").rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 300_000
        record("fetch-reach", tmp_path / "set", LiveOptions(3, 8, codec="png", license="apache-2.0"))
        with vrl3data.open(tmp_path / "set") as made:
            assert len(packaged) == len(made) == 3
            assert packaged.schema.names == made.schema.names
            for one, other in zip(packaged, made, strict=True):
                assert np.allclose(one["action"], other["action"], atol=1e-4)
                assert one.meta["success"] == 1
                difference = abs(one["obs.image.main"].astype(int) - other["obs.image.main"])
                assert difference.mean() < 1
    assert validate("sample:fetch-reach").ok
