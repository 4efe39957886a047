"""Datasets as robomimic files: what robomimic finds in them, and that we get everything back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import make_robomimic as make
import numpy as np
import pytest

import vrl3data
from converters.export.base import ExportReceipt, export
from converters.export.robomimic import RobomimicExportOptions
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer

CHANGED = {
    "id",
    "name",
    "source",
    "source_sha256",
    "digest",
    "members",
    "sizes",
    "xxh3_128",
    "meta_xxh3_128",
    "source_meta",
}


def written(dataset: Dataset, path: Path, **options: Any) -> ExportReceipt:
    return export("robomimic", dataset, path, RobomimicExportOptions(**options))


def imported(path: Path, dest: Path, **options: Any) -> Dataset:
    vrl3data.convert("robomimic", path, dest, options)
    assert validate(dest).ok
    return vrl3data.open(dest)


def assert_same(one: Dataset, other: Dataset) -> None:
    """All features, arrays and facts but those that name the file."""
    assert set(one.schema.names) == set(other.schema.names)
    for a, b in zip(one, other, strict=True):
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f"), name
            for key in ("rows", "names", "unit", "representation", "quaternion", "color", "flip", "scale_m", "bounds"):
                assert getattr(one.schema[name], key) == getattr(other.schema[name], key), (name, key)
        assert {key: a.meta[key] for key in a.meta if key not in CHANGED} == {
            key: b.meta[key] for key in b.meta if key not in CHANGED
        }
        assert a.source_meta == b.source_meta
        assert a.absent == b.absent


def small(tmp_path: Path, episodes: list[Episode], *features: Feature) -> Dataset:
    schema = Schema("episodes", features)
    from vrl3data.manifest import DatasetSpec, Provenance

    with Writer(tmp_path / "small", DatasetSpec(schema, "small", Provenance("test"))) as writer:
        for episode in episodes:
            writer.write(episode)
        writer.finish()
    return vrl3data.open(tmp_path / "small")


def test_there_and_back(tmp_path: Path) -> None:
    masks = {"train": ["demo_0", "demo_2"], "better": ["demo_2"]}
    source = make.write(tmp_path / "demo.hdf5", masks=masks)
    dataset = imported(source, tmp_path / "one")
    receipt = written(dataset, tmp_path / "again.hdf5")
    assert receipt.dropped == ()
    assert_same(dataset, imported(tmp_path / "again.hdf5", tmp_path / "two"))
    with h5py.File(source) as old, h5py.File(tmp_path / "again.hdf5") as new:
        for number, name in enumerate(make.LENGTHS):
            demo, again = old["data"][name], new["data"][f"demo_{number}"]
            for part in ("obs", "next_obs"):
                for key in demo[part]:
                    rows, copied = demo[part][key][()], again[part][key][()]
                    assert rows.dtype == copied.dtype
                    assert abs(rows.astype(float) - copied).max() < (0.000501 if key.endswith("_depth") else 1e-300)
            for key in ("actions", "dones", "rewards", "states", "action_dict/gripper"):
                assert np.array_equal(demo[key], again[key])
            assert again.attrs["num_samples"] == make.LENGTHS[name]
            assert json.loads(again.attrs["ep_meta"])["lang"] == "lift the cube"
            assert json.loads(again.attrs["camera_info"]) == make.CAMERA
            assert again.attrs["model_file"].startswith("<mujoco>")
        assert json.loads(new["data"].attrs["env_args"]) == make.ENV
        assert new["data"].attrs["total"] == 18
        assert {key: list(new["mask"][key]) for key in new["mask"]} == {
            "better": [b"demo_2"], "train": [b"demo_0", b"demo_2"]}  # fmt: skip


@pytest.mark.parametrize("write", [make.write_isaac, make.write_raw])
def test_other_layouts_there_and_back(tmp_path: Path, write: Any) -> None:
    dataset = imported(write(tmp_path / "demo.hdf5"), tmp_path / "one")
    written(dataset, tmp_path / "again.hdf5")
    assert_same(dataset, imported(tmp_path / "again.hdf5", tmp_path / "two"))


def test_next_obs_that_were_kept_there_and_back(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4, "demo_1": 3})
    with h5py.File(source, "r+") as file:
        file["data/demo_0/next_obs/object"][1] = 7
    dataset = imported(source, tmp_path / "one")
    written(dataset, tmp_path / "again.hdf5")
    with h5py.File(source) as old, h5py.File(tmp_path / "again.hdf5") as new:
        for key in ("object", "agentview_image"):
            assert np.array_equal(old[f"data/demo_1/next_obs/{key}"], new[f"data/demo_1/next_obs/{key}"])
    assert_same(dataset, imported(tmp_path / "again.hdf5", tmp_path / "two"))


def test_a_dataset_from_elsewhere(tmp_path: Path) -> None:
    with vrl3data.open("sample:fetch-reach") as dataset:
        receipt = written(dataset, tmp_path / "reach.hdf5")
        said = "\n".join(receipt.notes)
        assert "env_args is made up from the task" in said
        assert receipt.dropped == ("schema: renderer of obs.image.main",)
        back = imported(tmp_path / "reach.hdf5", tmp_path / "back")
        assert_same(dataset, back)
        with h5py.File(tmp_path / "reach.hdf5") as file:
            args = json.loads(file["data"].attrs["env_args"])
            assert (args["type"], args["env_kwargs"]) == (2, {})
            demo = file["data/demo_0"]
            frames = dataset[0]["obs.image.main"]
            assert np.array_equal(demo["obs/main_image"], frames[: dataset[0].length])
            if dataset[0].meta["final_observation"]:
                assert np.array_equal(demo["next_obs/main_image"], frames[1:])


ACTION = Feature("action", "float32", ())
STATE = Feature("obs.state", "float64", (2,), "state")


def episode(name: str, length: int, **facts: Any) -> Episode:
    rows = length + facts.get("final_observation", False)
    values = {
        "action": np.linspace(-2, 3, length, dtype=np.float32),
        "obs.state": np.arange(2.0 * rows).reshape(rows, 2),
    }
    return Episode(name, values | facts.pop("values", {}), length, **facts)


def test_splits_are_masks(tmp_path: Path) -> None:
    episodes = [episode("a", 2, split="train", subsets=("val", "x")), episode("b", 3, split="val")]
    receipt = written(small(tmp_path, episodes, ACTION, STATE), tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert {key: list(file["mask"][key]) for key in file["mask"]} == {
            "split_val": [b"demo_1"], "train": [b"demo_0"], "val": [b"demo_0"], "x": [b"demo_0"]}  # fmt: skip
        assert file["data/demo_0/actions"].shape == (2, 1)
    assert "the split 'val' is the mask 'split_val': a subset has its name" in receipt.notes
    assert "actions lie in -2 to 3; robomimic expects -1 to 1: scale them before training" in receipt.notes
    back = imported(tmp_path / "out.hdf5", tmp_path / "back")
    assert [(item.meta["split"], item.meta["subsets"]) for item in back] == [("train", "val,x"), ("val", "")]


@pytest.mark.parametrize(
    ("mode", "known", "last"),
    [
        ("auto", True, [1, 0]),
        ("auto", False, [1, 1]),
        ("success", True, [1, 0]),
        ("end", True, [1, 1]),
        ("both", True, [1, 1]),
    ],
)
def test_dones_are_made_up_from_what_is_known(tmp_path: Path, mode: str, known: bool, last: list[int]) -> None:
    episodes = [episode("a", 3, success=1), episode("b", 2, success=0 if known else -1)]
    dataset = small(tmp_path, episodes, ACTION, STATE)
    receipt = written(dataset, tmp_path / "out.hdf5", dones=mode)
    assert any("dones are made up" in note for note in receipt.notes)
    assert any("there are no rewards" in note for note in receipt.notes)
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert [file[f"data/demo_{n}/dones"][-1] for n in (0, 1)] == last
        assert not file["data/demo_0/dones"][:-1].any()
    back = imported(tmp_path / "out.hdf5", tmp_path / "back")
    assert "done" not in back.schema  # what we made up does not come back as a fact
    assert [item.meta["success"] for item in back] == [1, 0 if known else -1]


def test_final_observations_of_some_episodes(tmp_path: Path) -> None:
    clock = Feature("timestamp", "int64", (), "state", unit="ns")
    episodes = [
        episode("a", 2, final_observation=True, values={"timestamp": np.arange(3)}),
        episode("b", 3, values={"timestamp": np.arange(3)}),
    ]
    dataset = small(tmp_path, episodes, ACTION, STATE, clock)
    receipt = written(dataset, tmp_path / "out.hdf5")
    assert "next_obs is there in 1 of 2 demos, those with a final observation" in receipt.notes
    assert any(note.startswith("in the group extra/") for note in receipt.notes)
    assert any(note.startswith("timestamp: extra/timestamp has a row after the last action") for note in receipt.notes)
    back = imported(tmp_path / "out.hdf5", tmp_path / "back")
    for item, again in zip(dataset, back, strict=True):
        assert item.meta["final_observation"] == again.meta["final_observation"]
        assert np.array_equal(item["obs.state"], again["obs.state"])
        assert np.array_equal(item["timestamp"], again["timestamp"])
    receipt = written(dataset, tmp_path / "short.hdf5", next_obs=False)
    assert receipt.dropped == ("final observations of 1 episodes: not asked for",)
    assert imported(tmp_path / "short.hdf5", tmp_path / "short")[0].meta["final_observation"] == 0


def test_only_some_features_packed_and_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = imported(make.write(tmp_path / "demo.hdf5"), tmp_path / "one", codec="dzst")
    monkeypatch.setattr("converters.export.robomimic.BLOCK_BYTES", 100)
    receipt = written(dataset, tmp_path / "out.hdf5", features=("obs.image.agentview",), compress=True)
    assert "sim.state: not asked for" in receipt.dropped
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert list(file["data/demo_0"]) == ["actions", "dones", "next_obs", "obs"]
        assert file["data/demo_0/obs/agentview_image"].compression == "gzip"
        assert np.array_equal(file["data/demo_2/next_obs/agentview_image"], dataset[2]["obs.image.agentview"][1:])


def test_streams_are_named_as_left_out(tmp_path: Path) -> None:
    imu = (Feature("timestamp.imu", "int64", (), "stream:imu"), Feature("obs.imu", "float32", (3,), "stream:imu"))
    values = {"timestamp.imu": np.arange(7), "obs.imu": np.zeros((7, 3), np.float32)}
    dataset = small(tmp_path, [episode("a", 2, values=values, streams={"imu": 7})], ACTION, STATE, *imu)
    receipt = written(dataset, tmp_path / "out.hdf5")
    assert [line.partition(":")[0] for line in receipt.dropped] == ["timestamp.imu", "obs.imu"]
    assert "a stream with its own clock (imu)" in receipt.dropped[1]


def test_env_args_from_a_file(tmp_path: Path) -> None:
    dataset = small(tmp_path, [episode("a", 2)], ACTION, STATE)
    (tmp_path / "env.json").write_text(json.dumps(make.ENV))
    receipt = written(dataset, tmp_path / "out.hdf5", env_args=str(tmp_path / "env.json"))
    assert not any("env_args" in note for note in receipt.notes)
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert json.loads(file["data"].attrs["env_args"]) == make.ENV


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dones": "some"}, "dones: 'some'"),
        ({"dones": "success"}, "it is not known whether this episode was one"),
        ({"features": ("obs.stat",)}, "features: there is no 'obs.stat'; did you mean 'obs.state'"),
        ({"env_args": "{missing}"}, "env_args: expected a JSON file"),
        ({"env_args": "{broken}"}, "env_args: expected a JSON file"),
        ({"env_args": "{list}"}, "expected a JSON object with env_name and type"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    dataset = small(tmp_path, [episode("a", 2)], ACTION, STATE)
    (tmp_path / "broken").write_text("{")
    (tmp_path / "list").write_text("[]")
    if "env_args" in options:
        options = {"env_args": str(tmp_path / options["env_args"].strip("{}"))}
    with pytest.raises(ConfigError, match=message):
        written(dataset, tmp_path / "out.hdf5", **options)
    assert not (tmp_path / "out.hdf5").exists()


def test_what_robomimic_cannot_hold_at_all(tmp_path: Path) -> None:
    dataset = small(tmp_path, [Episode("a", {"obs.state": np.zeros((2, 2))}, 2)], STATE)
    with pytest.raises(ConfigError, match="robomimic needs actions"):
        written(dataset, tmp_path / "out.hdf5")
