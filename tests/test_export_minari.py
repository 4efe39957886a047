"""Datasets as Minari datasets: the same arrays come back, and what Minari cannot hold is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import make_minari
import numpy as np
import pytest
from conftest import make_episode, make_schema, make_spec, write_dataset

import vrl3data
from converters.episodes import EpisodeOptions
from converters.export.base import export
from converters.export.minari import MinariExporter, MinariExportOptions
from converters.minari.converter import MinariConverter
from converters.run import run
from vrl3data.errors import ConfigError, DestinationError
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer

KEYS = ("length", "final_observation", "terminated", "truncated", "success", "task", "origin", "split", "subsets")


def write(path: Path, episodes: list[Episode], schema: Schema | None = None) -> Path:
    with Writer(path, make_spec(schema or make_schema(size=40))) as writer:
        for episode in episodes:
            writer.write(episode)
    return path


def give(source: Path, dest: Path, **options: Any) -> Any:
    with vrl3data.open(source) as dataset:
        return export("minari", dataset, dest, MinariExportOptions(**options))


def back(source: Path, dest: Path) -> Any:
    receipt = run(MinariConverter([source], EpisodeOptions()), dest)
    assert validate(dest).ok
    return receipt


def test_what_goes_out_comes_back_equal(tmp_path: Path) -> None:
    ends = [{"terminated": 1, "truncated": 0, "success": 1}, {"truncated": 1, "task": "push", "origin": "human"},
            {"subsets": ("a", "b"), "start_time_ns": 17}]  # fmt: skip
    episodes = [make_episode(number, 4 + number, size=40, source_meta={"seed": number, "note": "x"}, **more)
                for number, more in enumerate(ends)]  # fmt: skip
    source = write(tmp_path / "set", episodes)
    receipt = give(source, tmp_path / "root/push/cube-v3", dataset_id="push/cube-v3")
    assert receipt.dropped == ()
    assert any("not known" in note for note in receipt.notes)
    back(tmp_path / "root/push/cube-v3", tmp_path / "again")
    with vrl3data.open(source) as one, vrl3data.open(tmp_path / "again") as two:
        assert set(one.schema.names) == set(two.schema.names)
        for feature in one.schema.features:
            flip = "none" if feature.is_image else ""  # said of all pictures that come from elsewhere
            assert two.schema[feature.name] == replace(feature, flip=flip)
        for left, right in zip(one, two, strict=True):
            assert {key: left.meta[key] for key in KEYS} == {key: right.meta[key] for key in KEYS}
            for name in one.schema.names:
                assert left[name].dtype == right[name].dtype
                assert np.array_equal(left[name], right[name]), name
            assert right.source_meta["note"] == "x"
            assert right.source_meta["seed"] == left.source_meta["seed"]
            assert right.source_meta["minari"]["dataset_id"] == "push/cube-v3"


def test_the_layout_is_that_of_minari(tmp_path: Path) -> None:
    give(write_dataset(tmp_path / "set"), tmp_path / "cube-v0")
    said = json.loads((tmp_path / "cube-v0/data/metadata.json").read_text())
    assert (said["total_episodes"], said["data_format"], said["jpeg_encoding"]) == (3, "hdf5", False)
    assert said["dataset_id"] == "cube-v0"
    space = json.loads(said["observation_space"])
    assert space["subspaces"]["image"]["subspaces"]["top"]["shape"] == [12, 12, 3]
    assert json.loads(said["action_space"])["low"] == [-1.0, -1.0]
    with h5py.File(tmp_path / "cube-v0/data/main_data.hdf5") as file:
        group = file["episode_1"]
        steps = int(group.attrs["total_steps"])
        assert sum(int(file[name].attrs["total_steps"]) for name in file) == said["total_steps"]
        for key in ("actions", "rewards", "terminations", "truncations"):
            assert len(group[key]) == steps
        assert group["observations/image/top"].shape == (steps + 1, 12, 12, 3)
        assert group["truncations"][-1]
        assert not group["truncations"][:-1].any()


def test_one_observation_alone_is_the_observation(tmp_path: Path) -> None:
    schema = Schema(
        "episodes", (Feature("obs.state", "float32", (3,), "state"), Feature("action", "int64", bounds=(2, 5)))
    )
    values = {"obs.state": np.zeros((4, 3), np.float32), "action": np.array([2, 5, 3])}
    write(tmp_path / "set", [Episode("e", values, length=3, final_observation=True)], schema)
    receipt = give(tmp_path / "set", tmp_path / "x-v0")
    assert any("NaN" in note for note in receipt.notes)
    said = json.loads((tmp_path / "x-v0/data/metadata.json").read_text())
    assert json.loads(said["action_space"]) == {"type": "Discrete", "dtype": "int64", "start": 2, "n": 4}
    assert json.loads(said["observation_space"])["low"] == [-np.inf] * 3
    with h5py.File(tmp_path / "x-v0/data/main_data.hdf5") as file:
        assert np.isnan(file["episode_0/rewards"][()]).all()
    back(tmp_path / "x-v0", tmp_path / "again")
    with vrl3data.open(tmp_path / "again") as dataset:
        assert set(dataset.schema.names) == {"obs.state", "action"}
        assert dataset[0].meta["terminated"] == -1


def test_without_a_final_observation_it_is_refused_or_the_last_action_goes(tmp_path: Path) -> None:
    episodes = [make_episode(0, 5, size=40, terminated=1), make_episode(1, 6, final=False, size=40, terminated=1),
                make_episode(2, 1, final=False, size=40)]  # fmt: skip
    source = write(tmp_path / "set", episodes)
    with pytest.raises(ConfigError, match="2 of 3 episodes have no final observation"):
        give(source, tmp_path / "x-v0")
    receipt = give(source, tmp_path / "x-v0", final="drop-last")
    assert "the last action of 2 episodes without a final observation" in receipt.dropped
    assert any("left out: one step" in note for note in receipt.notes)
    with h5py.File(tmp_path / "x-v0/data/main_data.hdf5") as file:
        assert list(file) == ["episode_0", "episode_1"]
        group = file["episode_1"]
        assert np.array_equal(group["observations/state"], episodes[1].values["obs.state"])
        assert np.array_equal(group["actions"], episodes[1].values["action"][:-1])
        assert (group["terminations"][-1], group["truncations"][-1]) == (False, True)
    back(tmp_path / "x-v0", tmp_path / "again")
    with vrl3data.open(tmp_path / "again") as dataset:
        assert [item.meta["terminated"] for item in dataset] == [1, 0]


def test_jpeg_is_by_choice_and_its_loss_is_measured(tmp_path: Path) -> None:
    source = write(tmp_path / "set", [make_episode(0, 3, size=40)])
    receipt = give(source, tmp_path / "x-v0", jpeg=True)
    assert any("dB" in note for note in receipt.notes)
    assert json.loads((tmp_path / "x-v0/data/metadata.json").read_text())["jpeg_encoding"] is True
    back(tmp_path / "x-v0", tmp_path / "again")
    with vrl3data.open(source) as one, vrl3data.open(tmp_path / "again") as two:
        error = one[0]["obs.image.top"].astype(float) - two[0]["obs.image.top"]
        psnr = 10 * np.log10(255**2 / (error**2).mean())
        assert 20 < psnr < 60
        assert any(f"{psnr:.2f} dB" in note for note in receipt.notes)


def test_what_is_absent_somewhere_is_dropped_and_said(tmp_path: Path) -> None:
    whole, part = make_episode(0, 3, size=40), make_episode(1, 3, size=40)
    values = {key: value for key, value in part.values.items() if key not in ("obs.state", "reward", "sim.goal")}
    source = write(tmp_path / "set", [whole, replace(part, values=values)])
    receipt = give(source, tmp_path / "x-v0")
    assert receipt.dropped == ("obs.state: absent in 1 episodes, and Minari wants it in all",)
    back(tmp_path / "x-v0", tmp_path / "again")
    with vrl3data.open(tmp_path / "again") as dataset:
        assert dataset[1].absent == ("reward", "sim.goal")
    no_action = {key: value for key, value in part.values.items() if key != "action"}
    write(tmp_path / "other", [whole, replace(part, values=no_action)])
    with pytest.raises(ConfigError, match="Minari needs actions"):
        give(tmp_path / "other", tmp_path / "y-v0")


def test_the_id_follows_the_rule_of_minari(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", 1)

    def given(dest: str, **options: Any) -> tuple[str, str]:
        receipt = give(source, tmp_path / dest, **options)
        return json.loads((tmp_path / dest / "data/metadata.json").read_text())["dataset_id"], receipt.notes[-1]

    assert given("out push.1")[0] == "out-push-1-v0"
    assert "once it lies in plain-v0 below" in given("plain")[1]
    assert given("cube-v7")[0] == "cube-v7"
    name, how = given("root/ns/cube-v1", dataset_id="ns/cube-v1")
    assert name == "ns/cube-v1"
    assert "set to the folder that holds" in how
    for wrong in ("../b-v1", "b", "a b-v1"):
        with pytest.raises(ConfigError, match="expected \\(namespace/\\)name-vN"):
            give(source, tmp_path / "other", dataset_id=wrong)
    with pytest.raises(ConfigError, match="refuse or drop-last"):
        give(source, tmp_path / "other", final="copy")
    with pytest.raises(DestinationError, match="something already"):
        give(source, tmp_path / "cube-v7")
    assert not list(tmp_path.glob("*.new"))


def test_pictures_alone_are_refused(tmp_path: Path) -> None:
    schema = Schema(
        "images", (Feature("image", "uint8", (-1, -1, 3), "episode"), Feature("cls", "int64", (), "episode", "text"))
    )
    values = {"image": np.zeros((1, 4, 4, 3), np.uint8), "cls": np.array([0])}
    write(tmp_path / "set", [Episode("i", values, label=0)], schema)
    with pytest.raises(ConfigError, match="holds images"):
        give(tmp_path / "set", tmp_path / "x-v0")


def test_what_came_from_minari_goes_back(tmp_path: Path) -> None:
    """Spaces, seeds and what the metadata said survive both ways."""
    first = make_minari.make_arrow(tmp_path / "up-v0")
    run(MinariConverter([first], EpisodeOptions()), tmp_path / "set")
    give(tmp_path / "set", tmp_path / "down-v0")
    said = json.loads((tmp_path / "down-v0/data/metadata.json").read_text())
    assert json.loads(said["env_spec"])["id"] == "Door-v1"
    assert said["algorithm_name"] == "random"
    assert json.loads(said["action_space"]) == make_minari.ACTIONS
    with h5py.File(tmp_path / "down-v0/data/main_data.hdf5") as file:
        want = make_minari.content(2, 5)
        assert np.array_equal(file["episode_2/observations/arm/qpos"], want["observations/arm/qpos"])
        assert np.array_equal(file["episode_2/infos/pose/xyz"], want["infos/pose/xyz"])
        assert file["episode_2"].attrs["seed"] == 102


def test_the_exporter_says_what_it_writes() -> None:
    assert MinariExporter.__doc__


def test_tuples_and_options_go_back_as_they_were(tmp_path: Path) -> None:
    run(MinariConverter([make_minari.make_hdf5(tmp_path / "up-v0")], EpisodeOptions()), tmp_path / "set")
    give(tmp_path / "set", tmp_path / "down-v0")
    space = json.loads(json.loads((tmp_path / "down-v0/data/metadata.json").read_text())["observation_space"])
    goal = space["subspaces"]["goal"]
    assert goal["type"] == "Tuple"
    assert goal["subspaces"][0] == {"type": "Discrete", "dtype": "int64", "start": -1, "n": 4}
    with h5py.File(tmp_path / "down-v0/data/main_data.hdf5") as file:
        assert file["episode_1"].attrs["options/level"] == 2
        want = make_minari.content(1, 1)["observations/goal/_index_0"]
        assert np.array_equal(file["episode_1/observations/goal/_index_0"], want)


def test_spaces_that_features_cannot_say_go_back(tmp_path: Path) -> None:
    """Entries without bounds, flags, choices and texts; a text may change within an episode."""
    up = make_minari.make_hdf5(tmp_path / "up-v0")
    said = json.loads((up / "data/metadata.json").read_text())
    space = json.loads(said["observation_space"])
    arm = {"type": "Box", "dtype": "float64", "shape": [4], "low": [-4.8, -np.inf, -0.4, -np.inf],
           "high": [4.8, np.inf, 0.4, np.inf]}  # fmt: skip
    space["subspaces"]["arm"]["subspaces"]["qpos"] = arm
    (up / "data/metadata.json").write_text(json.dumps(said | {"observation_space": json.dumps(space)}))
    with h5py.File(up / "data/main_data.hdf5", "r+") as file:
        file["episode_2/observations/mission"][3:] = "turn back"
    receipt = run(MinariConverter([up], EpisodeOptions()), tmp_path / "set")
    assert not receipt.skipped
    assert give(tmp_path / "set", tmp_path / "down-v0").dropped == ()
    again = json.loads(json.loads((tmp_path / "down-v0/data/metadata.json").read_text())["observation_space"])
    inner, wanted = again["subspaces"], space["subspaces"]
    assert inner["arm"]["subspaces"]["qpos"] == arm
    assert inner["goal"] == wanted["goal"]
    assert (inner["mode"], inner["mission"]) == (wanted["mode"], wanted["mission"])
    with h5py.File(tmp_path / "down-v0/data/main_data.hdf5") as file:
        assert list(file["episode_2/observations/mission"].asstr()) == ["go to door 2"] * 3 + ["turn back"] * 3
        assert list(file["episode_0/observations/mission"].asstr()) == ["go to door 0"] * 4
    back(tmp_path / "down-v0", tmp_path / "again")
    with vrl3data.open(tmp_path / "set") as one, vrl3data.open(tmp_path / "again") as two:
        for left, right in zip(one, two, strict=True):
            assert left.source_meta["observations/mission"] == right.source_meta["observations/mission"]


def test_spaces_are_not_those_of_other_rows(tmp_path: Path) -> None:
    """What source_meta says is used where it fits the rows, and nowhere else."""
    free = {"type": "Box", "dtype": "float32", "shape": [3], "low": ["-inf", 0, 0], "high": 1}
    for number, (space, low) in enumerate([
        (free, [-np.inf, 0, 0]), (free | {"shape": [4]}, [-np.inf] * 3), ("no space", [-np.inf] * 3),
        ({"type": "Box"}, [-np.inf] * 3),
    ]):  # fmt: skip
        said = {"minari": {"spaces": {"observations/state": space}}, "observations/words": [[1, "not at first"]]}
        source = write(tmp_path / f"set{number}", [make_episode(0, size=40, source_meta=said)])
        give(source, tmp_path / f"x{number}-v0")
        found = json.loads((tmp_path / f"x{number}-v0/data/metadata.json").read_text())["observation_space"]
        assert json.loads(found)["subspaces"]["state"]["low"] == low
        assert "words" not in json.loads(found)["subspaces"]
