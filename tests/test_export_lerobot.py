"""Datasets as LeRobot v3.0 sets: the layout by the letter, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_episode, make_schema, make_spec, write_dataset

import vrl3data
from converters.episodes import EpisodeOptions
from converters.export.base import ExportReceipt, export, find
from converters.export.lerobot import LerobotExportOptions
from converters.export.lerobot.statistics import Pixels, Pooled, of_numbers
from converters.lerobot import LerobotConverter
from converters.run import run
from vrl3data import codecs
from vrl3data.errors import ConfigError
from vrl3data.manifest import DatasetSpec
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer

KEYS = ("observation.images.top", "observation.environment_state", "action", "next.reward", "timestamp",
        "frame_index", "episode_index", "index", "task_index")  # fmt: skip


def write(path: Path, episodes: list[Episode], spec: DatasetSpec) -> Path:
    with Writer(path, spec) as writer:
        for episode in episodes:
            writer.write(episode)
    return path


def large(path: Path, count: int = 3, size: int = 64, rate: int = 25, **more: Any) -> Path:
    """Episodes whose pictures are large enough for video."""
    episodes = []
    for number in range(count):
        made = make_episode(number, length=5 + number, size=size, task=f"task {number % 2}", **more)
        times = np.array([round(step * 10**9 / rate) for step in range(made.length + 1)], np.int64)
        episodes.append(replace(made, values={**made.values, "timestamp": times}))
    return write(path, episodes, make_spec(make_schema(size=size)))


def exported(source: Path, dest: Path, **options: Any) -> ExportReceipt:
    with vrl3data.open(source) as dataset:
        return export("lerobot", dataset, dest, LerobotExportOptions(**options))


def info(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "meta/info.json").read_text()))


def test_layout_of_pictures(tmp_path: Path) -> None:
    receipt = exported(large(tmp_path / "in"), tmp_path / "out", video=False, robot_type="hand")
    said = info(tmp_path / "out")
    assert tuple(said["features"]) == KEYS
    assert (said["fps"], said["total_episodes"], said["total_frames"], said["total_tasks"]) == (25, 3, 18, 2)
    assert (said["robot_type"], said["splits"], said["video_path"]) == ("hand", {"train": "0:3"}, None)
    assert said["features"]["observation.images.top"]["dtype"] == "image"
    file = pq.ParquetFile(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [5, 6, 7]
    table = file.read()
    assert table["index"].to_pylist() == list(range(18))
    assert table["episode_index"].to_pylist() == [0] * 5 + [1] * 6 + [2] * 7
    assert table["timestamp"].to_pylist() == pytest.approx([n / 25 for n in (*range(5), *range(6), *range(7))])
    assert table.schema.field("timestamp").type == pa.float32()
    assert table.schema.field("action").type == pa.list_(pa.float64(), 2)
    hub = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert hub["observation.images.top"] == {"_type": "Image"}
    (tasks,) = [pq.read_table(tmp_path / "out/meta/tasks.parquet")]
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["task 0", "task 1"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in episodes] == [5, 11, 18]
    assert episodes[1]["stats/action/count"] == [6] and np.shape(episodes[1]["stats/observation.images.top/q50"]) == (
        3,
        1,
        1,
    )
    assert any(line.startswith("final observation: ") for line in receipt.dropped)
    assert any(line.startswith("sim.goal: one value for a whole episode") for line in receipt.dropped)


def test_there_and_back_is_equal(tmp_path: Path) -> None:
    exported(large(tmp_path / "in"), tmp_path / "set", video=False)
    receipt = run(LerobotConverter([tmp_path / "set"], EpisodeOptions()), tmp_path / "back")
    assert not any("statistics" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "in") as ours, vrl3data.open(tmp_path / "back") as back:
        assert set(back.schema.names) == set(ours.schema.names) - {"sim.goal"}
        for one, two in zip(ours, back, strict=True):
            assert one.meta["task"] == two.meta["task"] and "statistics_differ" not in two.source_meta
            for name in back.schema.names:
                assert np.array_equal(one[name][: one.length], two[name]), name
                assert one[name].dtype == two[name].dtype


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_videos_their_offsets_and_quality(tmp_path: Path, codec: str) -> None:
    source = large(tmp_path / "in", rate=30)
    receipt = exported(source, tmp_path / "set", codec=codec, crf=8)
    assert not list((tmp_path / "set").glob("*.mp4"))
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    prefix = "videos/observation.images.top/"
    assert [row[f"{prefix}from_timestamp"] for row in rows] == [0.0, 5 / 30, 11 / 30]
    assert [row[f"{prefix}to_timestamp"] for row in rows] == [5 / 30, 11 / 30, 18 / 30]
    (note,) = [note for note in receipt.notes if " dB" in note]
    stated = float(note.split("obs.image.top: " + codec + ", ")[1].split(" dB")[0])
    run(LerobotConverter([tmp_path / "set"], EpisodeOptions(codec="raw")), tmp_path / "back")
    errors, values = 0.0, 0
    with vrl3data.open(source) as ours, vrl3data.open(tmp_path / "back") as back:
        for one, two in zip(ours, back, strict=True):
            difference = one["obs.image.top"][: one.length].astype(int) - two["obs.image.top"]
            errors, values = errors + float((difference**2).sum()), values + difference.size
            assert np.array_equal(one["action"], two["action"])
    assert stated == pytest.approx(10 * np.log10(255**2 * values / errors), abs=0.01)
    assert stated > 30


def test_the_same_bytes_again(tmp_path: Path) -> None:
    source = large(tmp_path / "in")
    for name in ("one", "two"):
        exported(source, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_files_are_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    schema = Schema("episodes", (codecs.describe(Feature("obs.image.top", "uint8", (96, 96, 3), "state"), "raw"),
                                 Feature("action", "float64", (2,))))  # fmt: skip
    episodes = [Episode(f"e{n}", {"obs.image.top": rng.integers(0, 255, (40, 96, 96, 3), np.uint8),
                                  "action": rng.random((40, 2))}, length=40) for n in range(4)]  # fmt: skip
    source = write(tmp_path / "in", episodes, make_spec(schema, shard_size=10**8))
    exported(source, tmp_path / "png", video=False, fps=10, data_files_size_in_mb=1)
    assert len(list((tmp_path / "png/data/chunk-000").iterdir())) == 4
    exported(source, tmp_path / "mp4", codec="h264", crf=10, fps=10, video_files_size_in_mb=1)
    assert len(list((tmp_path / "mp4/videos/observation.images.top/chunk-000").iterdir())) > 1
    receipt = run(LerobotConverter([tmp_path / "mp4"], EpisodeOptions()), tmp_path / "back")
    assert receipt.manifest.samples == 4


def test_small_and_grey_pictures_depth_and_matrices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = Feature("obs.image.grey", "uint8", (64, 64, 1), "state", color="gray")
    features = (
        codecs.describe(grey, "raw"),
        codecs.describe(Feature("obs.image.odd", "uint8", (33, 47, 3), "state"), "raw"),
        codecs.describe(Feature("obs.depth.top", "uint16", (6, 8), "state", scale_m=0.002), "raw"),
        Feature("obs.grid", "float32", (2, 3, 4), "state"),
        Feature("obs.proprio", "float32", (1,), "state", names=("x",)),
        Feature("sim.qpos", "float64", (3,), "state"),
        Feature("obs.image_embedding", "float32", (3,), "state"),
    )
    values = {
        "obs.image.grey": rng.integers(0, 255, (4, 64, 64, 1), np.uint8),
        "obs.image.odd": rng.integers(0, 255, (4, 33, 47, 3), np.uint8),
        "obs.depth.top": rng.integers(0, 65535, (4, 6, 8), np.uint16),
        "obs.grid": rng.random((4, 2, 3, 4), np.float32),
        "obs.proprio": rng.random((4, 1), np.float32),
        "sim.qpos": rng.random((4, 3)),
        "obs.image_embedding": rng.random((4, 3), np.float32),
    }
    source = write(tmp_path / "in", [Episode("e", values, length=4)], make_spec(Schema("episodes", features)))
    receipt = exported(source, tmp_path / "set", fps=10, codec="h264")
    kinds = {key: entry["dtype"] for key, entry in info(tmp_path / "set")["features"].items()}
    assert kinds["observation.images.grey"] == "video" and kinds["observation.images.odd"] == "image"
    assert any("observation.images.odd: stored as PNG" in note for note in receipt.notes)
    assert any("three equal channels" in note for note in receipt.notes)
    assert any(line.startswith("obs.image_embedding: ") for line in receipt.dropped)
    run(LerobotConverter([tmp_path / "set"], EpisodeOptions()), tmp_path / "back")
    with vrl3data.open(tmp_path / "back") as back:
        assert back.schema["obs.depth.top"].scale_m == 0.002
        assert back.schema["obs.proprio"].names == ("x",)
        for name in ("obs.image.odd", "obs.depth.top", "obs.grid", "obs.proprio", "sim.qpos"):
            assert np.array_equal(back[0][name], values[name]), name


def test_ends_of_episodes(tmp_path: Path) -> None:
    source = large(tmp_path / "in", terminated=1, truncated=0, success=1)
    exported(source, tmp_path / "set", video=False)
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert np.flatnonzero(table["next.done"].to_pylist()).tolist() == [4, 10, 17]
    assert not any(table["next.truncated"].to_pylist())
    run(LerobotConverter([tmp_path / "set"], EpisodeOptions()), tmp_path / "back")
    with vrl3data.open(tmp_path / "back") as back:
        assert {(item.meta["terminated"], item.meta["truncated"], item.meta["success"]) for item in back} == {(1, 0, 1)}
    some = [make_episode(n, success=value) for n, value in enumerate((1, -1))]
    receipt = exported(write(tmp_path / "some", some, make_spec()), tmp_path / "set2", video=False)
    assert "success: 1 episodes do not say it" in receipt.dropped
    assert "next.success" not in info(tmp_path / "set2")["features"]


def test_splits_follow_each_other(tmp_path: Path) -> None:
    episodes = [make_episode(n, split=split) for n, split in enumerate(("val", "train", "val"))]
    exported(write(tmp_path / "in", episodes, make_spec()), tmp_path / "set", video=False)
    splits = info(tmp_path / "set")["splits"]
    assert sorted(splits.values()) in (["0:1", "1:3"], ["0:2", "2:3"])
    receipt = run(LerobotConverter([tmp_path / "set"], EpisodeOptions()), tmp_path / "back")
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 1, "val": 2}


def test_rates(tmp_path: Path) -> None:
    episode = make_episode(0)
    times = episode.values["timestamp"]
    assert isinstance(times, np.ndarray)
    late = times + np.array([0, 0, 0, 9, 0, 0]) * 10**6
    source = write(tmp_path / "in", [replace(episode, values={**episode.values, "timestamp": late})], make_spec())
    with pytest.raises(ConfigError, match=r"not those of 25 frames per second \(up to 0.009 s away\)"):
        exported(source, tmp_path / "set")
    receipt = exported(source, tmp_path / "set", fps=25)
    assert any("timestamps were replaced by those of 25 fps, up to 0.009 s away" in note for note in receipt.notes)
    bare = Schema("episodes", (Feature("action", "float64", (2,)),))
    source = write(tmp_path / "bare", [Episode("e", {"action": np.zeros((3, 2))}, length=3)], make_spec(bare))
    with pytest.raises(ConfigError, match="no timestamps; say the rate"):
        exported(source, tmp_path / "set2")
    assert any("what was asked for" in note for note in exported(source, tmp_path / "set2", fps=7).notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fps": -1}, "fps"), ({"fps": 10**6}, "fps"), ({"crf": 99}, "crf"), ({"codec": "mp3"}, "codec: expected av1"),
     ({"data_files_size_in_mb": 0}, "at least 1")],
)  # fmt: skip
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = large(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match=message):
        exported(source, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_what_cannot_be_a_set(tmp_path: Path) -> None:
    schema = Schema("images", (Feature("image", "uint8", (-1, -1, 3), "episode", "png"),
                               Feature("cls", "int64", (), "episode", "text", names=("a",))))  # fmt: skip
    spec = make_spec(schema)
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    source = write(tmp_path / "in", [Episode("e", {"image": picture, "cls": np.zeros(1, np.int64)}, label=0)], spec)
    with pytest.raises(ConfigError, match="holds images"):
        exported(source, tmp_path / "set")


def test_statistics() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[7, 1] = np.nan
    stats = of_numbers(rows)
    assert stats["mean"] == pytest.approx(np.nanmean(rows, axis=0)) and stats["count"].tolist() == [50]
    assert stats["q90"] == pytest.approx(np.nanquantile(rows, 0.9, axis=0))
    pooled, whole = Pooled(), np.random.default_rng(1).normal(5, 3, size=(30, 2))
    for part in (whole[:4], whole[4:25], whole[25:]):
        pooled.add({"a": of_numbers(part)})
    assert pooled.total["a"]["mean"] == pytest.approx(whole.mean(axis=0))
    assert pooled.total["a"]["std"] == pytest.approx(whole.std(axis=0))
    assert pooled.to_json()["a"]["count"] == [30]
    frames = np.random.default_rng(2).integers(0, 256, (6, 20, 20, 3), np.uint8)
    pixels = Pixels(6)
    pixels.add(0, frames[:4])
    pixels.add(4, frames[4:])
    found, flat = pixels.stats(), frames.reshape(-1, 3) / 255
    assert found["mean"].ravel() == pytest.approx(flat.mean(axis=0))
    assert found["std"].ravel() == pytest.approx(flat.std(axis=0))
    assert found["q50"].ravel() == pytest.approx(np.quantile(flat, 0.5, axis=0), abs=1 / 255)


def test_the_table_of_exports_knows_it(tmp_path: Path) -> None:
    assert find("lerobot").Options is LerobotExportOptions
    write_dataset(tmp_path / "in", 2)
    assert exported(tmp_path / "in", tmp_path / "set", video=False).samples == 2


def test_tasks_and_robot_go_back(tmp_path: Path) -> None:
    changes = {"task_changes": [[0, "reach"], [2, "grasp"], [4, "reach"]], "tasks": ["grasp", "reach"]}
    wrong: list[dict[str, Any]] = [{"task_changes": bad} for bad in ([[1, "b"]], [[0, "b"], [0, "c"]], "many", [[0]])]
    episodes = [make_episode(0, task="reach", source_meta={"dataset": {"robot_type": "so101"}, **changes}),
                make_episode(1, task="other", source_meta=changes),
                *(make_episode(2 + n, task="b", source_meta=said) for n, said in enumerate(wrong))]  # fmt: skip
    source = write(tmp_path / "in", episodes, make_spec())
    receipt = exported(source, tmp_path / "set", video=False)
    assert info(tmp_path / "set")["robot_type"] == "so101"
    tasks = pq.read_table(tmp_path / "set/meta/tasks.parquet").to_pydict()["task"]
    assert tasks == ["grasp", "reach", "other", "b"]
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
    rows = [tasks[n] for n, of in zip(table["task_index"], table["episode_index"], strict=True) if of == 0]
    assert rows == ["reach", "reach", "grasp", "grasp", "reach"]
    assert {tasks[n] for n, of in zip(table["task_index"], table["episode_index"], strict=True) if of > 1} == {"b"}
    listed = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet")["tasks"].to_pylist()
    assert listed[:3] == [["grasp", "reach"], ["other"], ["b"]]
    assert any(line.startswith("source_meta: ") for line in receipt.dropped)
    run(LerobotConverter([tmp_path / "set"], EpisodeOptions()), tmp_path / "back")
    with vrl3data.open(tmp_path / "back") as back:
        assert back[0].source_meta["task_changes"] == changes["task_changes"]
        assert back[0].source_meta["dataset"]["robot_type"] == "so101"
    assert exported(source, tmp_path / "named", video=False, robot_type="aloha").samples == 6
    assert info(tmp_path / "named")["robot_type"] == "aloha"


def test_streams_are_named_and_not_cut(tmp_path: Path) -> None:
    features = (Feature("obs.imu", "float32", (3,), "stream:imu"), Feature("timestamp.imu", "int64", (), "stream:imu"),
                Feature("action", "float32", (2,)))  # fmt: skip
    values = {"obs.imu": np.zeros((9, 3), np.float32), "timestamp.imu": np.arange(9), "action": np.zeros((3, 2), "f4")}
    episode = Episode("e", values, 3, streams={"imu": 9})
    source = write(tmp_path / "in", [episode], make_spec(Schema("episodes", features)))
    receipt = exported(source, tmp_path / "set", fps=10)
    assert [line for line in receipt.dropped if "imu" in line] == [
        "obs.imu: a stream with its own clock (imu); LeRobot has one rate",
        "timestamp.imu: a stream with its own clock (imu); LeRobot has one rate",
    ]
    assert not any("imu" in key for key in info(tmp_path / "set")["features"])
