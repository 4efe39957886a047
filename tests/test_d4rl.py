"""D4RL's flat files: where episodes begin and end, final observations, old files, broken files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import vrl3data
from converters.base import recognise
from converters.d4rl import D4rlConverter, D4rlOptions
from converters.run import RunOptions, run
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate

LENGTHS = (4, 1, 6, 3)
COUNT = sum(LENGTHS)
ENDS = np.cumsum(LENGTHS) - 1


def make_file(path: Path, lengths: tuple[int, ...] = LENGTHS, next_: str = "", drop: tuple[str, ...] = ()) -> Path:
    """Odd episodes terminate, even ones time out; the last one is not over. `next_`: real, or made from the rows."""
    rng = np.random.default_rng(3)
    count = sum(lengths)
    runs = [rng.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    terminals, timeouts = np.zeros(count, bool), np.zeros(count, bool)
    for number, end in enumerate(np.cumsum(lengths)[:-1] - 1):
        (terminals if number % 2 else timeouts)[end] = True
    arrays: dict[str, Any] = {
        "observations": np.concatenate([run[:-1] for run in runs]),
        "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "infos/qpos": rng.normal(size=(count, 5)),
        "infos/goal": rng.normal(size=(count, 2)),
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/iteration": 500,
        "metadata/policy/fc0/weight": rng.normal(size=(30, 40)),
    }
    if next_ == "real":
        arrays["next_observations"] = np.concatenate([run[1:] for run in runs])
    elif next_ == "made":
        arrays["next_observations"] = np.concatenate([arrays["observations"][1:], arrays["observations"][-1:]])
    elif next_ == "other":
        arrays["next_observations"] = rng.normal(size=(count, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            if key not in drop:
                file[key] = value
    return path


def convert(source: Path, dest: Path, **options: Any) -> Any:
    return run(D4rlConverter([source], D4rlOptions(**options)), dest)


def ends(path: Path) -> list[tuple[int, int, int, int]]:
    keys = ("length", "terminated", "truncated", "final_observation")
    with vrl3data.open(path) as dataset:
        return [tuple(item.meta[key] for key in keys) for item in dataset]  # type: ignore[misc]


def test_flags_cut_and_the_rest_of_the_file_is_kept(tmp_path: Path) -> None:
    source = make_file(tmp_path / "hopper.hdf5")
    assert recognise(source) == recognise(tmp_path) == "d4rl"
    receipt = convert(source, tmp_path / "out")
    assert ends(tmp_path / "out") == [(4, 0, 1, 0), (1, 1, 0, 0), (6, 0, 1, 0), (3, 0, -1, 0)]
    assert any("last episode (3 steps) is not over" in note for note in receipt.notes)
    assert any("metadata/policy/fc0/weight" in note for note in receipt.notes)
    assert validate(tmp_path / "out").ok
    with vrl3data.open(tmp_path / "out") as dataset, h5py.File(source) as file:
        names = {"obs.state": "observations", "action": "actions", "reward": "rewards", "sim.qpos": "infos/qpos",
                 "info.goal": "infos/goal"}  # fmt: skip
        assert set(dataset.schema.names) == set(names)
        for name, path in names.items():
            assert np.array_equal(np.concatenate([item[name] for item in dataset]), file[path][()]), name
        said = json.loads(dataset[2].meta["source_meta"])
        assert said == {"metadata/algorithm": "SAC", "metadata/iteration": 500, "rows": [5, 11]}
        assert dataset[2].meta["name"] == "hopper/episode_2"


def test_next_observations_give_the_final_observation(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", next_="real")
    receipt = convert(source, tmp_path / "out")
    assert [end[3] for end in ends(tmp_path / "out")] == [1, 1, 1, 1]
    assert not any("final observation" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset, h5py.File(source) as file:
        assert "obs.next" not in dataset.schema
        for item, end in zip(dataset, ENDS, strict=True):
            assert np.array_equal(item["obs.state"][-1], file["next_observations"][end])
            assert np.array_equal(
                item["obs.state"][1:], file["next_observations"][end + 1 - len(item["action"]) : end + 1]
            )


def test_a_next_observation_that_is_a_copy_is_no_final_observation(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", next_="made")
    receipt = convert(source, tmp_path / "made")
    assert [end[3] for end in ends(tmp_path / "made")] == [0, 0, 0, 0]
    assert any("4 of 4 episodes have no final observation" in note for note in receipt.notes)
    with h5py.File(make_file(tmp_path / "b.hdf5", next_="real"), "a") as file:
        file["next_observations"][ENDS[1]] = file["observations"][ENDS[1] + 1]  # the reset of the next episode
        file["next_observations"][COUNT - 1] = file["observations"][0]
    convert(tmp_path / "b.hdf5", tmp_path / "mixed")
    assert [end[3] for end in ends(tmp_path / "mixed")] == [1, 0, 1, 0]


def test_next_observations_that_are_something_else_stay_a_feature(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", next_="other")
    receipt = convert(source, tmp_path / "out")
    assert any("become obs.next" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset, h5py.File(source) as file:
        found = np.concatenate([item["obs.next"] for item in dataset])
        assert np.array_equal(found, file["next_observations"][()])
        assert len(dataset) == 4


def test_ends_that_no_flag_marks_show_in_next_observations(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", next_="real")
    with h5py.File(source, "a") as file:
        file["timeouts"][ENDS[2]] = False
    receipt = convert(source, tmp_path / "out")
    assert ends(tmp_path / "out")[2] == (6, 0, -1, 1)
    assert any("1 episodes end where" in note for note in receipt.notes)
    old = make_file(tmp_path / "old.hdf5", next_="real", drop=("timeouts",))
    convert(old, tmp_path / "old")
    assert ends(tmp_path / "old") == [(4, 0, -1, 1), (1, 1, 0, 1), (6, 0, -1, 1), (3, 0, -1, 1)]


def test_without_timeouts_the_limit_must_be_said(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", drop=("timeouts",))
    with pytest.raises(SourceError, match="--episode-length"):
        D4rlConverter([source], D4rlOptions()).plan()
    convert(source, tmp_path / "out", episode_length=4)
    assert ends(tmp_path / "out") == [(4, 0, 1, 0), (1, 1, 0, 0), (4, 0, 1, 0), (4, 0, 1, 0), (1, 0, -1, 0)]
    whole = make_file(tmp_path / "b.hdf5")
    with pytest.raises(ConfigError, match="the file has timeouts"):
        D4rlConverter([whole], D4rlOptions(episode_length=4)).plan()
    with pytest.raises(ConfigError, match="at least 1"):
        D4rlConverter([whole], D4rlOptions(episode_length=-4))


def test_a_limit_reached_in_a_terminal_step_is_no_truncation(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", lengths=(4, 4, 4), drop=("timeouts",))
    convert(source, tmp_path / "out", episode_length=4)
    assert ends(tmp_path / "out") == [(4, 0, 1, 0), (4, 1, 0, 0), (4, 0, 1, 0)]


def test_terminals_within_an_episode_can_be_kept_as_data(tmp_path: Path) -> None:
    source = make_file(tmp_path / "ant.hdf5")
    with h5py.File(source, "a") as file:
        file["terminals"][6:10] = True
    receipt = convert(source, tmp_path / "flags")
    assert any("--cut timeouts" in note for note in receipt.notes)
    convert(source, tmp_path / "out", cut="timeouts")
    assert ends(tmp_path / "out") == [(4, 0, 1, 0), (7, 0, 1, 0), (3, 0, -1, 0)]
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset[1]["terminal"].tolist() == [True, False, True, True, True, True, False]
    with pytest.raises(ConfigError, match="no timeouts to cut at"):
        D4rlConverter([make_file(tmp_path / "b.hdf5", drop=("timeouts",))], D4rlOptions(cut="timeouts")).plan()
    with pytest.raises(ConfigError, match="flags or timeouts"):
        D4rlConverter([source], D4rlOptions(cut="never"))


def test_pictures_are_cameras(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 3, 40, 36), np.uint8)
    with h5py.File(tmp_path / "pixels.hdf5", "w") as file:
        file["observations"], file["actions"] = frames, np.zeros((5, 2))
        file["rewards"], file["terminals"], file["timeouts"] = np.zeros(5), np.zeros((5, 1)), np.eye(5)[4]
    convert(tmp_path / "pixels.hdf5", tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert np.array_equal(dataset[0]["obs.image.camera"], frames.transpose(0, 2, 3, 1))


def test_a_nan_is_like_a_nan(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5", next_="real")
    with h5py.File(source, "a") as file:
        file["observations"][2, 1] = file["next_observations"][1, 1] = np.nan
    convert(source, tmp_path / "out")
    assert [end[0] for end in ends(tmp_path / "out")] == list(LENGTHS)


def test_long_files_are_read_in_blocks(tmp_path: Path) -> None:
    count = 400_000
    with h5py.File(tmp_path / "long.hdf5", "w") as file:
        states = np.arange(count * 40, dtype=np.float32).reshape(count, 40)
        file["observations"], file["next_observations"] = states, states + 40
        file["actions"], file["rewards"] = np.zeros((count, 1), np.float32), np.zeros(count, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(count, bool), np.arange(count) % 100_000 == 99_999
    del states
    tracemalloc.start()
    receipt = convert(tmp_path / "long.hdf5", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert receipt.manifest.steps == count
    assert peak < 110e6, peak  # of 128 MB in two arrays: two blocks of 32 MB and their comparison


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": np.zeros(3)}, "expected 14 rows"),
        ({"terminals": np.zeros(9, bool)}, "expected 14 flags"),
        ({"terminals": np.full(14, 3)}, "flags of 0 and 1"),
        ({"next_observations": np.zeros((14, 7))}, "shape of observations"),
        ({"actions": np.zeros((0, 2)), "observations": np.zeros((0, 3)), "rewards": np.zeros(0)}, "no steps"),
        ({"observations": None}, "observations is missing"),
        ({"terminals": None, "timeouts": None}, "nothing says where"),
        ({"infos/elsewhere": h5py.ExternalLink("/etc/passwd", "/x")}, "link"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    source = make_file(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        for key, value in change.items():
            if key in file:
                del file[key]
            if value is not None:
                file[key] = value
    with pytest.raises(SourceError, match=words):
        D4rlConverter([source], D4rlOptions()).plan()


def test_damaged_files_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    make_file(folder / "a.hdf5")
    whole = make_file(folder / "b.hdf5").read_bytes()
    (folder / "b.hdf5").write_bytes(whole[: len(whole) // 2])
    (folder / "c.hdf5").write_bytes(b"")
    converter = D4rlConverter([folder], D4rlOptions())
    found = {name: str(error) for name, error in converter.plan().problems}
    assert "truncated" in found["b.hdf5"]
    assert "empty" in found["c.hdf5"]
    run(converter, tmp_path / "out", RunOptions(on_error="skip"))
    assert len(ends(tmp_path / "out")) == 4


@pytest.mark.realdata
def test_no_other_real_file_is_taken_for_d4rl(real_data: Path) -> None:
    assert [path.name for path in real_data.rglob("*") if D4rlConverter.recognises(path)] == []


def test_files_in_a_folder_keep_their_order_and_all_their_episodes(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("run_1.hdf5", "run_2.hdf5", "run_2.h5", "run_10.hdf5"):
        make_file(tmp_path / "runs" / name, (3, 2))
    with vrl3data.open(convert(tmp_path / "runs", tmp_path / "out").path) as dataset:
        names = [item.meta["name"] for item in dataset]
    files = ("run_1", "run_2.h5", "run_2.hdf5", "run_10")
    assert names == [f"{file}/episode_{number}" for file in files for number in range(2)]


def test_fields_whose_names_become_one_keep_apart(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        file["infos/a b"], file["infos/a_b"] = np.zeros(COUNT), np.ones(COUNT)
    convert(source, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert {float(dataset[0][name][0]) for name in ("info.a_b", "info.a_b_2")} == {0.0, 1.0}


def test_a_field_that_is_called_timestamp_is_not_our_clock(tmp_path: Path) -> None:
    source = make_file(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        file["timestamp"] = np.arange(COUNT) / 50
    convert(source, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert "timestamp" not in dataset.schema.names
        assert dataset[0]["recorded.timestamp"].tolist() == [0.0, 0.02, 0.04, 0.06]
