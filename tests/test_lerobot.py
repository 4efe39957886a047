"""LeRobot sets of all versions: rows, frames by their times, tasks, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import make_lerobot as make
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import shard_bytes
from make_lerobot import RATE, TASKS, frame_levels, level, make_v1, make_v2, make_v3, numbers, write_json, write_video

import vrl3data
from converters import base
from converters.episodes import EpisodeOptions
from converters.lerobot import LerobotConverter
from converters.lerobot.paths import Folder, Template
from converters.lerobot.videos import DepthScale, VideoReader
from converters.run import Receipt, RunOptions, run
from vrl3data.errors import SourceError
from vrl3data.validation import validate

TOP = "observation.images.top"
LENGTHS = [5, 8, 1, 7]


def convert(source: Path, out: Path, jobs: int = 1, skip: bool = False, **options: Any) -> Receipt:
    converter = LerobotConverter([source], EpisodeOptions(**options))
    return run(converter, out, RunOptions(jobs=jobs, on_error="skip" if skip else "stop"))


def plan(source: Path) -> base.Plan:
    return LerobotConverter([source], EpisodeOptions()).plan()


def edit_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


def check_episode(item: Any, number: int, length: int, cameras: dict[str, int]) -> None:
    made = numbers(number, length)
    assert np.array_equal(item["obs.proprio"], made["observation.state"])
    assert np.array_equal(item["action"], made["action"])
    assert np.array_equal(item["reward"], made["next.reward"])
    assert item["timestamp"].tolist() == [step * 10**9 // RATE for step in range(length)]
    for name, place in cameras.items():
        wanted = [level(place, number, step) for step in range(length)]
        assert abs(frame_levels(item[name]) - wanted).max() <= 2, (name, number)


def test_v3_with_several_files_and_offsets_of_their_own(tmp_path: Path) -> None:
    receipt = convert(make_v3(tmp_path / "set", LENGTHS), tmp_path / "out")
    assert receipt.manifest.samples == 4
    assert receipt.manifest.description == "LeRobot v3.0 set, robot so100, 10 frames per second"
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset.schema["obs.proprio"].names == ("x", "y", "z")
        assert dataset.schema["obs.proprio"].rows == "state"
        for number, item in enumerate(dataset):
            check_episode(item, number, LENGTHS[number], {"obs.image.top": 0, "obs.image.wrist": 1})
            assert item.meta["task"] == TASKS[number % 2]
            assert item.meta["success"] == int(number % 2 == 0)
            assert item.meta["terminated"] == item.meta["truncated"] == -1
            assert item.source_meta["episode_index"] == number
            assert len(item.source_meta["source_files"]) == 2
            assert ("dataset" in item.source_meta) == (number == 0)
    assert validate(tmp_path / "out").ok


@pytest.mark.parametrize("options", [{"bf": "3", "x264-params": "open-gop=1:keyint=6"}, {"g": "250"}, {"g": "2"}])
def test_seeking_gives_the_frames_that_reading_on_gives(tmp_path: Path, options: dict[str, str]) -> None:
    levels = [level(0, 0, step) for step in range(200)]
    write_video(tmp_path / "a.mp4", levels, options={**options, "crf": "10", "preset": "medium"})
    with VideoReader(tmp_path / "a.mp4", "a.mp4") as reader:
        straight = np.concatenate(list(reader.read(0, 200, Fraction(RATE), (*make.SIZE, 3), False)))
        assert abs(frame_levels(straight) - levels).max() <= 4
        for first, count in ((150, 20), (7, 5), (12, 3), (16, 60), (199, 1), (0, 1), (60, 80), (141, 30)):
            again = np.concatenate(list(reader.read(first, count, Fraction(RATE), (*make.SIZE, 3), False)))
            assert np.array_equal(again, straight[first : first + count]), first


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    source = make_v3(tmp_path / "set", [5, 8, 1, 7, 12, 3])
    convert(source, tmp_path / "one")
    convert(source, tmp_path / "two", jobs=2)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")


@pytest.mark.parametrize("codec", ["libsvtav1", "libx265", "mpeg4"])
def test_codecs_of_videos(tmp_path: Path, codec: str) -> None:
    options = {"libsvtav1": {"crf": "5", "preset": "10", "svtav1-params": "lp=1"}, "libx265": {"crf": "4",
               "x265-params": "log-level=none"}, "mpeg4": {"qscale": "1"}}[codec]  # fmt: skip
    levels = [level(0, 0, step) for step in range(12)]
    os.environ.setdefault("SVT_LOG", "1")
    write_video(tmp_path / "a.mp4", levels, codec=codec, size=(64, 64), options=options)
    with VideoReader(tmp_path / "a.mp4", "a.mp4") as reader:
        rows = np.concatenate(list(reader.read(0, 12, Fraction(RATE), (64, 64, 3), True)))
    assert abs(rows[:, 20, 20, 1].astype(int) - levels).max() <= 6


def test_v2_with_loose_lists(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", LENGTHS, splits={"train": "0:2", "Held-Out": "2:4"})
    receipt = convert(source, tmp_path / "out")
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 2, "held_out": 2}
    with vrl3data.open(tmp_path / "out") as dataset:
        for item in dataset:
            number = int(item.name[-6:])
            assert item.meta["split"] == ("train" if number < 2 else "held_out")
            check_episode(item, number, LENGTHS[number], {"obs.image.top": 0})
            assert item["action"].dtype == np.float64  # as stored, not as declared


def test_v1_without_torch(tmp_path: Path) -> None:
    source = make_v1(tmp_path / "set", LENGTHS)
    code = ("import sys, pathlib\nfrom converters.lerobot import LerobotConverter as C\n"
            "from converters.episodes import EpisodeOptions\nfrom converters.run import run\n"
            "if __name__ == '__main__':\n"
            "    receipt = run(C([pathlib.Path(sys.argv[1])], EpisodeOptions()), pathlib.Path(sys.argv[2]))\n"
            "    print(receipt.notes); assert 'torch' not in sys.modules")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "statistics" not in done.stdout  # those of the set are right
    with vrl3data.open(tmp_path / "out") as dataset:
        for number, item in enumerate(dataset):
            check_episode(item, number, LENGTHS[number], {"obs.image.top": 0})


def test_task_that_changes_and_text_columns(tmp_path: Path) -> None:
    source = make_v3(tmp_path / "set", [6], {}, [])
    path = source / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index("task_index"), "task_index", pa.array([0, 1, 1, 1, 1, 0]))
    pq.write_table(table.append_column("note", pa.array(["a", "a", "b", "b", "b", "b"])), path)
    convert(source, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        meta = dataset[0].source_meta
        assert dataset[0].meta["task"] == TASKS[1]
        assert meta["task_changes"] == [[0, TASKS[0]], [1, TASKS[1]], [5, TASKS[0]]]
        assert meta["columns"] == {"note": [[0, "a"], [2, "b"]]}


@pytest.mark.parametrize(
    ("columns", "terminated", "truncated"),
    [({"next.done": True}, -1, -1), ({"next.done": False}, 0, -1), ({"next.done": True, "next.truncated": False}, 1, 0),
     ({"next.done": True, "next.truncated": True}, -1, 1), ({"next.terminated": True}, 1, -1)],
)  # fmt: skip
def test_ends_only_as_far_as_they_are_certain(
    tmp_path: Path, columns: dict[str, bool], terminated: int, truncated: int
) -> None:
    source = make_v3(tmp_path / "set", [4], {}, [])
    path = source / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path).drop_columns(["next.done"])
    for name, last in columns.items():
        table = table.append_column(name, pa.array([False, False, False, last]))
    pq.write_table(table, path)
    convert(source, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert (dataset[0].meta["terminated"], dataset[0].meta["truncated"]) == (terminated, truncated)


def test_statistics_are_compared(tmp_path: Path) -> None:
    source = make_v3(tmp_path / "set", LENGTHS, {}, [2])
    rows = np.concatenate([numbers(number, length)["action"] for number, length in enumerate(LENGTHS)])
    right = {"mean": rows.mean(axis=0).tolist(), "std": rows.std(axis=0).tolist(), "count": [len(rows)]}
    write_json(source / "meta/stats.json", {"action": right})
    assert not [note for note in plan(source).notes if "statistics" in note]
    stale = {**right, "mean": [right["mean"][0], right["mean"][1] + 0.5]}
    write_json(source / "meta/stats.json", {"action": stale})
    wrong = [note for note in plan(source).notes if "statistics" in note]
    assert len(wrong) == 1 and "of action are wrong: mean" in wrong[0] and "entry 1" in wrong[0]
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    means = [numbers(n, length)["action"].mean(axis=0).tolist() for n, length in enumerate(LENGTHS)]
    means[1][0] += 1
    pq.write_table(table.append_column("stats/action/mean", pa.array(means)), path)
    convert(source, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        said = [item.source_meta.get("statistics_differ") for item in dataset]
        assert [bool(item) for item in said] == [False, True, False, False]
        assert "entry 0" in said[1]["action"]


def test_a_clock_of_its_own_is_kept(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [4, 4], [])
    path = source / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    times = [0.05, 0.16, 0.4, 0.5]
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times)), path)
    receipt = convert(source, tmp_path / "out")
    assert any("kept as recorded.timestamp" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset[1]["timestamp"].tolist() == [0, 10**8, 2 * 10**8, 3 * 10**8]
        assert dataset[1]["recorded.timestamp"].tolist() == pytest.approx(times)
        assert dataset[1].source_meta["timestamp_differs_s"] == pytest.approx(0.15)
        assert "timestamp_differs_s" not in dataset[0].source_meta


def test_pictures_in_columns(tmp_path: Path) -> None:
    from conftest import jpeg

    source = make_v3(tmp_path / "set", [3, 2], {}, [])
    path = source / "data/chunk-000/file-000.parquet"
    files = [jpeg(48, 32, seed) for seed in range(5)]
    cells = pa.array([{"bytes": file, "path": "x"} for file in files], pa.struct([("bytes", pa.binary()),
                                                                                   ("path", pa.string())]))  # fmt: skip
    pq.write_table(pq.read_table(path).append_column(TOP, cells), path)
    convert(source, tmp_path / "out", codec="jpeg")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset.schema["obs.image.top"].codec == "jpeg"
        stored = b"".join(bytes(dataset.member(n, "obs.image.top.mjpg")) for n in range(2))
        assert stored == b"".join(files)  # the source's own files


def test_depth_codes() -> None:
    counts = DepthScale().counts()
    assert counts[0] == 0 and counts[-1] == 10_000 and (np.diff(counts.astype(int)) >= 1).all()
    with pytest.raises(SourceError, match="no limits of a depth camera"):
        DepthScale.of({"video.depth_min": 5.0, "video.depth_max": 1.0})


# -- what is not as it should be ---------------------------------------------------------------------------


def test_declared_camera_without_any_file(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [3, 4], [TOP, "observation.images.ghost"])
    shutil.rmtree(source / "videos/chunk-000/observation.images.ghost")
    receipt = convert(source, tmp_path / "out")
    assert "obs.image.ghost" not in receipt.manifest.schema.names and "obs.image.top" in receipt.manifest.schema.names
    assert any("observation.images.ghost is declared, but none of its videos" in note for note in receipt.notes)


@pytest.mark.parametrize("how", ["missing", "empty", "half", "moov", "noise"])
def test_one_bad_video_is_a_problem_of_its_episode(tmp_path: Path, how: str) -> None:
    source = make_v2(tmp_path / "set", [9, 9, 9])
    path = source / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    data = path.read_bytes()
    new = {"empty": b"", "half": data[: len(data) // 2], "moov": data[:-500], "noise": os.urandom(500)}
    path.unlink() if how == "missing" else path.write_bytes(new[how])
    found = plan(source)
    receipt = convert(source, tmp_path / "out", skip=True)
    assert receipt.manifest.samples == 2
    reasons = [error.message for _, error in found.problems] + [entry["reason"] for entry in receipt.skipped]
    assert any("video" in reason for reason in reasons)


def test_videos_that_nobody_asked_for_may_be_missing(tmp_path: Path) -> None:
    wrist = "observation.images.wrist"
    source = make_v2(tmp_path / "set", [3, 3], [TOP, wrist])
    (source / f"videos/chunk-000/{wrist}/episode_000001.mp4").unlink()
    assert len(plan(source).problems) == 1
    receipt = convert(source, tmp_path / "out", camera=("top",))
    assert receipt.manifest.samples == 2 and "obs.image.wrist" not in receipt.manifest.schema.names


def test_missing_frames_are_named(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [6])
    write_video(source / f"videos/chunk-000/{TOP}/episode_000000.mp4", [20, 30, 40, 50])
    with pytest.raises(SourceError, match=r"frame 4 at 10 per second\) is missing: the video ends before it") as caught:
        convert(source, tmp_path / "out")
    assert caught.value.source.step == 4 and caught.value.source.path.endswith("episode_000000.mp4")
    assert caught.value.source.feature == "obs.image.top"


def test_a_video_with_a_clock_of_its_own_and_one_frame_per_row(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [6])
    levels = [level(0, 0, step) for step in range(6)]
    write_video(source / f"videos/chunk-000/{TOP}/episode_000000.mp4", levels, rate=30)
    receipt = convert(source, tmp_path / "out")
    assert any("runs at 30 frames per second" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset:
        check_episode(dataset[0], 0, 6, {"obs.image.top": 0})


def test_frames_beyond_the_rows_are_counted(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [6])
    levels = [level(0, 0, step) for step in range(8)]
    write_video(source / f"videos/chunk-000/{TOP}/episode_000000.mp4", levels)
    receipt = convert(source, tmp_path / "out")
    assert any("has 8 frames for 6 rows" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset:
        check_episode(dataset[0], 0, 6, {"obs.image.top": 0})
        assert dataset[0].source_meta["frames_beyond_rows"] == {TOP: 2}


def test_another_size_in_one_video(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [3, 3])
    write_video(source / f"videos/chunk-000/{TOP}/episode_000001.mp4", [20, 30, 40], size=(64, 64))
    receipt = convert(source, tmp_path / "out", skip=True)
    assert [entry["reason"] for entry in receipt.skipped] == ["expected frames of 32x48, found 64x64"]


def test_files_that_are_not_where_the_template_says(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [3, 3])
    edit_info(source, data_path="data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet",
              video_path="videos/chunk-{episode_index:03d}/{video_key}/episode_{episode_index:06d}.mp4")  # fmt: skip
    receipt = convert(source, tmp_path / "out")
    assert receipt.manifest.samples == 2
    assert any("found by their names" in note for note in receipt.notes)


@pytest.mark.parametrize(
    ("template", "message"),
    [("../{episode_index}.parquet", "leads out of the folder"), ("/etc/{episode_index}", "leads out of the folder"),
     ("data/{episode_index.__class__}", "only episode_chunk"), ("data/{0.__class__}", "only episode_chunk"),
     ("data/{episode_index!r}", "only episode_chunk"), ("data/{episode_index:>9999999999d}", "only episode_chunk"),
     ("data/{secret}", "asks for 'secret'"), ("data/{episode_index", "cannot be read"),
     ("data/{episode_index:{chunk_index}}", "only episode_chunk"), ("C:/{episode_index}", "leads out of the folder"),
     ("data/..\\{episode_index}", "leads out of the folder")],
)  # fmt: skip
def test_hostile_templates(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Template(template)
    source = make_v2(tmp_path / "set", [3], [])
    edit_info(source, data_path=template)
    with pytest.raises(SourceError, match=message):
        plan(source)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [3, 3])
    secret = tmp_path / "secret.mp4"
    video = source / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    video.rename(secret)
    video.symlink_to(secret)
    (problem,) = plan(source).problems
    assert "a link leads out of the folder" in problem[1].message


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "cache/snapshots/abc", [3, 3])
    blobs = tmp_path / "cache/blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert convert(source, tmp_path / "out").manifest.samples == 2
    assert Folder(source).has("meta/info.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fps": 0}, "fps: expected a positive"), ({"fps": -3}, "fps"), ({"fps": float("nan")}, "fps"),
     ({"fps": "10"}, "fps"), ({"fps": 1e300}, "fps"), ({"codebase_version": "v9.0"}, "codebase_version"),
     ({"codebase_version": 3}, "codebase_version"), ({"features": []}, "features"), ({"chunks_size": 0}, "chunks_size"),
     ({"data_path": 5}, "data_path"), ({"features": {"a": {"dtype": "float32", "shape": [-1]}}}, "shape"),
     ({"features": {"a": {"dtype": "float32", "shape": [2**30, 2**30]}}}, "a row would take"),
     ({"features": {"a": {"dtype": "float32", "shape": 3}}}, "shape"), ({"features": {"a": 5}}, "dtype")],
)  # fmt: skip
def test_absurd_info(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = make_v2(tmp_path / "set", [3], [])
    edit_info(source, **changes)
    assert LerobotConverter.recognises(source)
    with pytest.raises(SourceError, match=message) as caught:
        plan(source)
    assert "meta/info.json" in str(caught.value)


@pytest.mark.parametrize(("cut", "message"), [(0, "the file is empty"), (40, "not JSON"), (-3, "not JSON")])
def test_truncated_info(tmp_path: Path, cut: int, message: str) -> None:
    source = make_v3(tmp_path / "set", [3], {}, [])
    path = source / "meta/info.json"
    path.write_bytes(path.read_bytes()[:cut])
    assert LerobotConverter.recognises(source)
    with pytest.raises(SourceError, match=message):
        plan(source)
    path.write_text("[" * 100_000)
    with pytest.raises(SourceError, match="not JSON"):
        plan(source)
    path.unlink()
    with pytest.raises(SourceError, match="the file is missing"):
        plan(source)


@pytest.mark.parametrize("cut", [0, 4, 300, -200, -4])
def test_truncated_parquet(tmp_path: Path, cut: int) -> None:
    source = make_v2(tmp_path / "set", [6, 6, 6], [])
    path = source / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    receipt = convert(source, tmp_path / "out", skip=True)
    assert receipt.manifest.samples == 2
    (entry,) = receipt.skipped
    assert "episode_000001" in entry["source"] and "fetch it again" in entry["reason"]


def test_flipped_bytes_in_parquet_never_end_in_a_traceback(tmp_path: Path) -> None:
    source = make_v3(tmp_path / "set", [30, 30], {}, [])
    path = source / "data/chunk-000/file-000.parquet"
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for trial in range(40):
        broken = bytearray(data)
        for place in rng.integers(4, len(data), 3):
            broken[place] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            outcomes.add(convert(source, tmp_path / f"out{trial}", skip=True).manifest.samples)
        except SourceError:
            outcomes.add(-1)
    assert outcomes & {-1, 0, 1}


def test_lengths_numbers_and_gaps_that_contradict(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [4, 5, 6, 7], [])
    lines = [{"episode_index": 0, "tasks": ["a"], "length": 9}, {"episode_index": 1, "tasks": ["a"], "length": 5},
             {"episode_index": 1, "tasks": ["b"], "length": 5}, {"episode_index": 3, "tasks": [], "length": 7},
             {"episode_index": 8, "tasks": [], "length": 7}, {"episode_index": -1, "length": 3},
             {"episode_index": 2, "length": 1e30}]  # fmt: skip
    make.write_lines(source / "meta/episodes.jsonl", lines)
    with (source / "meta/episodes.jsonl").open("a") as file:
        file.write('{"episode_index": 5, "len')
    found = plan(source)
    reasons = " | ".join(f"{name}: {error}" for name, error in found.problems)
    for words in ("given to two episodes", "data file data/chunk-000/episode_000008.parquet is missing", "not JSON",
                  "episode_index: expected a whole number", "length: expected a whole number"):  # fmt: skip
        assert words in reasons
    receipt = convert(source, tmp_path / "out", skip=True)
    assert receipt.manifest.samples == 2
    assert any("promises 9 rows" in entry["reason"] for entry in receipt.skipped)


def test_v3_rows_are_found_where_the_table_is_wrong(tmp_path: Path) -> None:
    source = make_v3(tmp_path / "set", LENGTHS, {}, [])
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["dataset_from_index"], rows[1]["dataset_to_index"] = 6, 14  # one too late
    rows[3]["length"], rows[3]["dataset_to_index"] = 6, rows[3]["dataset_from_index"] + 6
    pq.write_table(pa.Table.from_pylist(rows), path)
    receipt = convert(source, tmp_path / "out", skip=True)
    with vrl3data.open(tmp_path / "out") as dataset:
        check_episode(dataset[1], 1, LENGTHS[1], {})
    (entry,) = receipt.skipped
    assert "promises 6 rows, 7 have episode_index 3" in entry["reason"]


def test_v3_videos_that_are_too_short_for_their_offsets(tmp_path: Path) -> None:
    source = make_v3(tmp_path / "set", [4, 4, 4], {TOP: []}, [])
    write_video(source / f"videos/{TOP}/chunk-000/file-000.mp4", [level(0, 0, step) for step in range(6)])
    receipt = convert(source, tmp_path / "out", skip=True)
    assert receipt.manifest.samples == 1 and len(receipt.skipped) == 2
    assert "frame 6 at 10 per second" in receipt.skipped[0]["reason"]


def test_gaps_and_other_widths_in_columns(tmp_path: Path) -> None:
    source = make_v2(tmp_path / "set", [3, 3, 3, 3], [])
    cells = {1: [[1.0, 2.0], None, [3.0, 4.0]], 2: [[1.0, 2.0], [1.0], [3.0, 4.0]], 3: [[1.0], [2.0], [3.0]]}
    for number, rows in cells.items():
        path = source / f"data/chunk-000/episode_{number:06d}.parquet"
        table = pq.read_table(path)
        column = pa.array(rows, pa.list_(pa.float64()))
        pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    receipt = convert(source, tmp_path / "out", skip=True)
    reasons = [entry["reason"] for entry in receipt.skipped]
    assert receipt.manifest.samples == 1
    for reason, words in zip(reasons, ("no value", "different lengths", "rows of shape [2]"), strict=True):
        assert words in reason


def test_a_playlist_is_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mp4\n")
    with pytest.raises(SourceError, match="not a readable video"):
        VideoReader(tmp_path / "list.mp4", "list.mp4")
    with pytest.raises(SourceError, match="expected a video"):
        VideoReader(tmp_path / "secret.txt", "secret.txt")


def test_what_is_not_a_set(tmp_path: Path) -> None:
    assert not LerobotConverter.recognises(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "meta").mkdir()
    write_json(tmp_path / "meta/info.json", {"something": "else"})
    assert not LerobotConverter.recognises(tmp_path)
    source = make_v3(tmp_path / "set", [3], {}, [])
    shutil.rmtree(source / "meta/episodes")
    with pytest.raises(SourceError, match="the table of episodes is missing"):
        plan(source)


def test_version_1_in_parquet_and_without_its_index(tmp_path: Path) -> None:
    source = make_v1(tmp_path / "set", LENGTHS)
    table = pa.ipc.open_stream(source / "train/data-00000-of-00001.arrow").read_all()
    shutil.rmtree(source / "train")
    (source / "data").mkdir()
    cells = table[TOP].to_pylist()
    for row in range(sum(LENGTHS[:3]), len(cells)):
        cells[row]["path"] = "../secret.mp4"
    table = table.set_column(0, TOP, pa.array(cells, table.schema.field(TOP).type))
    pq.write_table(table, source / "data/train-00000-of-00001.parquet")
    (source / "meta_data/episode_data_index.safetensors").unlink()
    found = plan(source)
    assert any("taken from the column episode_index" in note for note in found.notes)
    assert [error.message[:40] for _, error in found.problems] == ["the path '../secret.mp4' leads out of th"]
    convert(source, tmp_path / "out", skip=True)
    with vrl3data.open(tmp_path / "out") as dataset:
        assert len(dataset) == 3
        for number, item in enumerate(dataset):
            check_episode(item, number, LENGTHS[number], {"obs.image.top": 0})


def test_hostile_names_in_version_1(tmp_path: Path) -> None:
    source = make_v1(tmp_path / "set", [3])
    write_json(source / "train/state.json", {"_data_files": [{"filename": "../../secret.arrow"}]})
    with pytest.raises(SourceError, match="leads out of the folder"):
        plan(source)
    (source / "train/state.json").unlink()
    index = source / "meta_data/episode_data_index.safetensors"
    data = index.read_bytes()
    index.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + data[8:])
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        plan(source)
    from safetensors.numpy import save_file

    save_file({"from": np.array([0, 5]), "to": np.array([3, 10**9])}, index)
    (problem,) = plan(source).problems
    assert "of a table of 3" in problem[1].message


# -- real sets ---------------------------------------------------------------------------------------------

V1 = "lerobot_v1_fixtures/"
REAL = [
    ("groot_gr1_pickplace_v20", 5, 2096),
    ("so101_cloth_v21_trim4", 4, 1145),
    ("piper_smolvla_v30_novideo", 19, 4958),
    (f"{V1}pusht", 1, 161),
    (f"{V1}aloha_sim_insertion_human", 1, 500),
]


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "episodes", "steps"), REAL)
def test_real_sets_are_read_whole(real_data: Path, name: str, episodes: int, steps: int) -> None:
    source = real_data / "lerobot" / name
    assert base.recognise(source) == "lerobot"
    found = plan(source)
    assert found.count == episodes and not found.problems
    assert sum(unit.payload[0].length for unit in found.units) == steps


@pytest.mark.realdata
def test_real_rows_and_frames(real_data: Path, tmp_path: Path) -> None:
    import av

    source = real_data / "lerobot/so101_cloth_v21_trim4"
    convert(source, tmp_path / "out", image_size=64, camera=("cam1",))
    with vrl3data.open(tmp_path / "out") as dataset:
        for number, item in enumerate(dataset):
            table = pq.read_table(source / f"data/chunk-000/episode_{number:06d}.parquet")
            assert item["action"].tolist() == table["action"].to_pylist()
            assert item["obs.proprio"].tolist() == table["observation.state"].to_pylist()
            path = source / f"videos/chunk-000/observation.images.cam1/episode_{number:06d}.mp4"
            with av.open(str(path)) as video:
                frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert len(frames) == item.length
            from converters.pictures import resized

            for step in (0, 1, 100, item.length - 1):
                assert np.array_equal(item["obs.image.cam1"][step], resized(frames[step][None], 64, "squash")[0])
    assert validate(tmp_path / "out").ok


def test_sets_whose_joints_stand_in_another_order_are_not_mixed(tmp_path: Path) -> None:
    one, two = make_v2(tmp_path / "one", [4], []), make_v2(tmp_path / "two", [4], [])
    features = json.loads((two / "meta/info.json").read_text())["features"]
    features["action"]["names"] = ["right", "left"]
    edit_info(two, features=features)
    receipt = run(LerobotConverter([one, two], EpisodeOptions()), tmp_path / "out", RunOptions(on_error="skip"))
    assert receipt.manifest.samples == 1
    assert (
        receipt.skipped[0]["reason"] == "expected the entries left, right as in the episodes before, found right, left"
    )
