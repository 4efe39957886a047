"""Minari datasets in its three storages, and broken ones."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import make_minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import shard_bytes
from make_minari import LENGTHS, content, make_arrow, make_hdf5
from PIL import Image

import vrl3data
from converters.base import recognise
from converters.episodes import EpisodeOptions
from converters.minari.converter import MinariConverter
from converters.minari.spaces import leaves
from converters.run import RunOptions, run
from vrl3data.errors import SourceError
from vrl3data.validation import validate

FEATURES = {
    "obs.arm.qpos": "observations/arm/qpos",
    "obs.goal.index_0": "observations/goal/_index_0",
    "obs.goal.index_1": "observations/goal/_index_1",
    "obs.mode": "observations/mode",
    "action": "actions",
    "reward": "rewards",
    "info.energy": "infos/energy",
    "info.pose.xyz": "infos/pose/xyz",
}


def make(root: Path, form: str, **more: Any) -> Path:
    return make_hdf5(root, **more) if form == "hdf5" else make_arrow(root, form, **more)


def converter(source: Path, **options: Any) -> MinariConverter:
    return MinariConverter([source], EpisodeOptions(**options))


def edit(root: Path, **changes: Any) -> None:
    path = root / "data/metadata.json"
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_every_storage_gives_the_arrays_that_were_stored(tmp_path: Path, form: str) -> None:
    source = make(tmp_path / "up-v0", form)
    assert recognise(source) == recognise(source / "data") == "minari"
    receipt = run(converter(source), tmp_path / "out")
    assert receipt.notes == ()
    assert receipt.manifest.description == "made by the tests"
    assert receipt.manifest.license == "unknown"
    assert validate(tmp_path / "out").ok
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["name"] for item in dataset] == [f"up-v0/episode_{number}" for number in range(3)]
        assert set(dataset.schema.names) == {*FEATURES, "obs.image.rgb"}
        for number, length in enumerate(LENGTHS):
            want, item = content(number, length), dataset[number]
            for name, path in FEATURES.items():
                assert np.array_equal(item[name], want[path]), name
                assert item[name].dtype == want[path].dtype, name
            frames = [np.asarray(Image.open(io.BytesIO(one))) for one in want["observations/rgb"]]
            assert np.array_equal(item["obs.image.rgb"], np.stack(frames))
            meta = item.meta
            assert (meta["length"], meta["final_observation"], meta["success"]) == (length, 1, -1)
            assert (meta["terminated"], meta["truncated"]) == ((1, 0) if number % 2 == 0 else (0, 1))
            assert meta["task"] == f"go to door {number}"
            said = json.loads(meta["source_meta"])
            assert said.get("seed") == (None if number == 1 else 100 + number)
            assert said["options"] == {"level": 2}
            assert said["rewards_sum"] == 1.5
            assert said["minari"]["author"] == ["A"]
        assert dataset.schema["action"].bounds == (-1.0, 1.0)
        assert dataset.schema["obs.mode"].bounds == ((0, 1), (1, 5))
        assert dataset.schema["obs.goal.index_0"].bounds == (-1, 2)
        assert dataset.schema["obs.arm.qpos"].bounds is None


@pytest.mark.parametrize("form", ["hdf5", "hdf5-same", "arrow", "parquet"])
def test_jpeg_files_pass_untouched(tmp_path: Path, form: str) -> None:
    source = make_hdf5(tmp_path / "a", same_size=True) if form == "hdf5-same" else make(tmp_path / "a", form)
    run(converter(source, codec="jpeg"), tmp_path / "out")
    stored = b"".join(shard_bytes(tmp_path / "out").values())
    assert b"".join(content(2, 5)["observations/rgb"]) in stored
    assert validate(tmp_path / "out").ok


def test_raw_pictures_and_single_arrays(tmp_path: Path) -> None:
    """jpeg_encoding false; the observation is one picture and the action one number; no text: the task is the id."""
    data = tmp_path / "raw-v0/data"
    data.mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (4, *make_minari.SIZE), np.uint8)
    frames[:, 0, 0] = (0xFF, 0xD8, 0xFF)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations"], group["actions"], group["rewards"] = frames, np.arange(3), np.zeros(3)
        group["terminations"], group["truncations"] = np.zeros(3, bool), np.zeros(3, bool)
        group["infos/hyper"] = np.arange(5.0)
        group["infos/big"] = np.zeros((9, 1000))
    said = make_minari.metadata("hdf5", 1, 3, jpeg_encoding=False)
    said["observation_space"] = json.dumps(make_minari.OBSERVATIONS["subspaces"]["rgb"])
    said["action_space"] = json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 3})
    (data / "metadata.json").write_text(json.dumps(said))
    receipt = run(converter(tmp_path / "raw-v0/data/main_data.hdf5"), tmp_path / "out")
    assert any("infos/big" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset:
        item = dataset[0]
        assert item.meta["name"] == "raw-v0/episode_0"
        assert np.array_equal(item["obs.image.camera"], frames)
        assert item["action"].tolist() == [0, 1, 2]
        assert item.meta["task"] == "Door-v1"
        assert (item.meta["terminated"], item.meta["truncated"]) == (0, 0)
        assert json.loads(item.meta["source_meta"])["infos/hyper"] == [0, 1, 2, 3, 4]


def test_episodes_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    lengths = tuple(1 + number % 3 for number in range(12))
    for form in ("hdf5", "arrow"):
        run(converter(make(tmp_path / f"{form}-v0", form, lengths=lengths)), tmp_path / form)
        with vrl3data.open(tmp_path / form) as dataset:
            assert [item.meta["length"] for item in dataset] == list(lengths)
            assert dataset[10].meta["name"].endswith("/episode_10")


def test_attributes_stand_in_for_metadata_of_old_versions(tmp_path: Path) -> None:
    source = make_hdf5(tmp_path / "old-v0")
    said = json.loads((source / "data/metadata.json").read_text())
    (source / "data/metadata.json").unlink()
    with h5py.File(source / "data/main_data.hdf5", "a") as file:
        for key in ("total_episodes", "total_steps", "observation_space", "action_space", "dataset_id"):
            file.attrs[key] = said[key]
    assert recognise(source) == "minari"
    run(converter(source), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset.schema["action"].bounds == (-1.0, 1.0)
        said = dataset[0].source_meta["minari"]
        assert set(said.pop("spaces")) == {f"observations/{name}" for name in ("goal/_index_1", "mission", "mode")}
        assert said == {"dataset_id": "made/up-v0"}


def problems(source: Path) -> dict[str, str]:
    return {name.rpartition("/")[2]: str(error) for name, error in converter(source).plan().problems}


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_missing_episodes_and_wrong_totals_are_told(tmp_path: Path, form: str) -> None:
    source = make(tmp_path / "a-v0", form)
    if form == "hdf5":
        with h5py.File(source / "data/main_data.hdf5", "a") as file:
            del file["episode_1"]
    else:
        shutil.rmtree(source / "data/1")
    edit(source, total_episodes=4)
    assert problems(source) == {
        f"episode_{n}": f"the episode is missing (path a-v0, episode episode_{n})" for n in (1, 3)
    }
    edit(source, total_episodes=2, total_steps=77)
    assert any("says 2 episodes" in note for note in converter(source).plan().notes)
    whole = make(tmp_path / "b-v0", form, total_steps=77)
    assert any("says 77 steps, but there are 9" in note for note in converter(whole).plan().notes)


def test_broken_hdf5_episodes_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    source = make_hdf5(tmp_path / "a-v0", lengths=(3,) * 9)
    with h5py.File(source / "data/main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.zeros((2, 2), np.float32)
        file["episode_1"].attrs["total_steps"] = 4
        del file["episode_2/observations/mode"]
        file["episode_3/terminations"][0] = True
        file["episode_4/observations/rgb"][2] = np.arange(99, dtype=np.uint8)
        file["episode_5/infos/secret"] = h5py.ExternalLink("/etc/passwd", "/x")
        del file["episode_6/observations/arm/qpos"]
        file["episode_6/observations/arm/qpos"] = np.zeros((4, 7))
        del file["episode_7/truncations"]
        file["episode_7/truncations"] = np.zeros(2, bool)
    found = problems(source)
    for number, words in (
        (0, "actions"),
        (1, "total_steps says 4"),
        (2, "mode is missing"),
        (5, "link"),
        (6, "as the space"),
    ):
        assert words in found[f"episode_{number}"], found
    assert len(found) == 5
    receipt = run(converter(source), tmp_path / "out", RunOptions(on_error="skip"))
    reasons = {entry["source"].rpartition("/")[2]: entry["reason"] for entry in receipt.skipped}
    assert "before it" in reasons["episode_3"]
    assert "picture" in reasons["episode_4"]
    assert "expected 3 rows" in reasons["episode_7"]
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["name"] for item in dataset] == ["a-v0/episode_8"]


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_broken_columns_are_named_and_the_rest_is_kept(tmp_path: Path, form: str) -> None:
    source = make_arrow(tmp_path / "a-v0", form, lengths=(3,) * 6)
    part = f"part-0.{form}"
    whole = (source / "data/0" / part).read_bytes()
    (source / "data/0" / part).write_bytes(whole[: len(whole) // 2])
    (source / "data/1" / part).write_bytes(b"")
    (source / "data/2" / part).unlink()
    (source / "data/3/metadata.json").write_text('{"total_steps": 9}')
    (source / "data/4/metadata.json").write_text("[1")
    found = problems(source)
    for number, words in (
        (0, f"not a readable {form}"),
        (1, "empty"),
        (2, "found nothing"),
        (3, "says 9"),
        (4, "JSON"),
    ):
        assert words in found[f"episode_{number}"], found
    run(converter(source), tmp_path / "out", RunOptions(on_error="skip"))
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["name"] for item in dataset][-1] == "a-v0/episode_5"


def test_columns_that_are_not_of_the_space_are_refused(tmp_path: Path) -> None:
    source = make_arrow(tmp_path / "a-v0")
    wrong = json.loads(json.dumps(make_minari.OBSERVATIONS))
    wrong["subspaces"]["other"] = make_minari.box((3,), 0, 1)
    edit(source, observation_space=json.dumps(wrong))
    with pytest.raises(SourceError, match="missing, which the space"):
        converter(source).plan()
    edit(
        source,
        observation_space=json.dumps(make_minari.OBSERVATIONS),
        action_space=json.dumps(make_minari.box((3,), 0, 1)),
    )
    with pytest.raises(SourceError, match="expected rows of 3 numbers"):
        converter(source).plan()
    edit(source, action_space=None)
    with pytest.raises(SourceError, match="action_space is not stated"):
        converter(source).plan()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_format": "xml"}, "data_format"),
        ({"total_steps": "many"}, "whole number"),
        ({"observation_space": "{"}, "not JSON"),
        ({"observation_space": '{"type": "Graph"}'}, "expected a space"),
        ({"observation_space": '{"type": "Box", "dtype": "object", "shape": [1], "low": [0], "high": [1]}'}, "dtype"),
        ({"observation_space": '{"type": "Box"}'}, "cannot be understood"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    source = make_hdf5(tmp_path / "a-v0", lengths=(1,))
    edit(source, **changes)
    with pytest.raises(SourceError, match=words):
        converter(source).plan()


def test_nested_without_end_is_refused() -> None:
    space: dict[str, Any] = make_minari.box((1,), 0, 1)
    for _ in range(40):
        space = {"type": "Dict", "subspaces": {"a": space}}
    with pytest.raises(SourceError, match="expected a space"):
        leaves(json.dumps(space), "observations")
    with pytest.raises(SourceError, match="not JSON"):
        leaves("[" * 100_000, "observations")


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    source = make_hdf5(tmp_path / "root/a-v0")
    main = source / "data/main_data.hdf5"
    main.write_bytes(main.read_bytes()[:3000])
    assert recognise(source) == "minari"
    with pytest.raises(SourceError, match="truncated"):
        converter(source).plan()
    main.unlink()
    with pytest.raises(SourceError, match="HDF5 file"):
        converter(source).plan()
    with pytest.raises(SourceError, match="holds the datasets a-v0"):
        converter(tmp_path / "root").plan()
    (source / "data/metadata.json").unlink()
    assert not MinariConverter.recognises(source)
    (source / "data/main_data.hdf5").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"expected metadata\.json"):
        converter(source).plan()


def test_claims_without_data_are_refused(tmp_path: Path) -> None:
    source = make_hdf5(tmp_path / "a-v0", lengths=(2,))
    with h5py.File(source / "data/main_data.hdf5", "a") as file:
        file.create_dataset("episode_0/infos/huge", (3, 10**6, 10**6), "f4", chunks=(1, 100, 100))
    with pytest.raises(SourceError, match="claims"):
        converter(source).plan()


@pytest.mark.realdata
def test_no_other_real_file_is_taken_for_minari(real_data: Path) -> None:
    assert [path.name for path in real_data.rglob("*") if MinariConverter.recognises(path)] == []


def test_a_number_of_episodes_that_nobody_recorded_takes_no_time(tmp_path: Path) -> None:
    source = make_hdf5(tmp_path / "toy")
    path = source / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_episodes": 10**15}))
    receipt = run(MinariConverter([source], EpisodeOptions()), tmp_path / "out", RunOptions(on_error="skip"))
    assert receipt.manifest.samples == len(LENGTHS)
    assert receipt.skipped[0]["reason"] == "the episode is missing"
    assert "and 999999999999896 after it are missing" in receipt.skipped[-1]["reason"]


@pytest.mark.parametrize("kind", [pa.string(), pa.struct([("x", pa.float32())]), pa.list_(pa.float32())])
def test_rewards_that_are_no_numbers_are_named(tmp_path: Path, kind: pa.DataType) -> None:
    source = make_arrow(tmp_path / "toy", "parquet", lengths=(4,))
    path = source / "data/0/part-0.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("rewards")
    pq.write_table(table.set_column(place, "rewards", pa.nulls(len(table), kind)), path)
    with pytest.raises(SourceError, match="expected a column of numbers, rewards, found"):
        run(MinariConverter([source], EpisodeOptions()), tmp_path / "out")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    source = make_arrow(tmp_path / "a-v0", lengths=(2, 2))
    part = source / "data/0/part-0.arrow"
    part.write_bytes(part.read_bytes().replace(b"rewards", b"r\xffwards"))
    assert "cannot be read" in problems(source)["episode_0"]
