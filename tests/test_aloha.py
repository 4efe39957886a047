"""ALOHA episodes in the exact layout: raw and compressed cameras, forks, and broken files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import shard_bytes
from PIL import Image

import vrl3data
from converters.aloha import BOTH_ARMS, AlohaConverter, AlohaOptions
from converters.base import recognise
from converters.run import RunOptions, run
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate

CAMERAS = ("cam_high", "cam_left_wrist")


def picture(step: int, camera: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Red to the left, brighter with time; the cameras differ in green."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2, 0] = 200
    frame[:, :, 1] = 40 * camera
    frame[:, :, 2] = min(255, 10 * step)
    return frame


def jpeg_file(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=50 + int(frame[0, 0, 2]) % 40)
    return out.getvalue()


def make_episode(path: Path, length: int = 6, form: str = "raw", **more: Any) -> Path:
    """As ALOHA's recorder writes it. `form`: raw, padded (JPEG files in rows of one length) or vlen."""
    rng = np.random.default_rng(length)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file.attrs["compress"] = form != "raw"
        group = file.create_group("observations")
        for key in ("qpos", "qvel", "effort"):
            group[key] = rng.normal(size=(length, 14))
        file["action"] = rng.normal(size=(length, 14))
        images = group.create_group("images")
        for number, camera in enumerate(CAMERAS):
            frames = [picture(step, number) for step in range(length)]
            if form == "raw":
                images.create_dataset(camera, data=np.stack(frames), chunks=(1, 48, 64, 3))
                continue
            files = [jpeg_file(frame) for frame in frames]
            longest = max(map(len, files))
            if form == "padded":
                rows = np.stack([np.frombuffer(one.ljust(longest, b"\0"), np.uint8) for one in files])
                images.create_dataset(camera, data=rows, chunks=(1, longest))
            else:
                data = images.create_dataset(camera, (length,), h5py.vlen_dtype(np.uint8))
                for step, one in enumerate(files):
                    data[step] = np.frombuffer(one, np.uint8)
        if form == "padded":
            file["compress_len"] = np.zeros((len(CAMERAS), length))
        for key, value in more.items():
            file[key.replace("__", "/")] = value
    return path


def make_folder(root: Path, count: int = 3, **more: Any) -> Path:
    root.mkdir(parents=True)
    for number in range(count):
        make_episode(root / f"episode_{number}.hdf5", 4 + number, **more)
    return root


def convert(source: Path, dest: Path, **options: Any) -> Any:
    return run(AlohaConverter([source], AlohaOptions(**options)), dest)


def test_raw_episodes_become_the_same_arrays_with_names_and_times(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "task", 12)
    assert recognise(source) == recognise(source / "episode_3.hdf5") == "aloha"
    receipt = convert(source, tmp_path / "out", codec="png")
    assert any("50 steps per second" in note for note in receipt.notes)
    assert validate(tmp_path / "out").ok
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["name"] for item in dataset] == [f"task/episode_{number}" for number in range(12)]
        item = dataset[11]
        with h5py.File(source / "episode_11.hdf5") as file:
            for name, path in (("action", "action"), ("obs.proprio", "observations/qpos"),
                               ("obs.effort", "observations/effort"),
                               ("obs.image.cam_high", "observations/images/cam_high")):  # fmt: skip
                assert np.array_equal(item[name], file[path][()]), name
        assert item.meta["length"] == 15
        assert item.meta["final_observation"] == 0
        assert item["timestamp"][:3].tolist() == [0, 20_000_000, 40_000_000]
        schema = dataset.schema
        assert schema["action"].names == schema["obs.proprio"].names == BOTH_ARMS
        assert schema["action"].representation == "abs_joint"
        meta = json.loads(item.meta["source_meta"])
        assert (meta["sim"], meta["action_offset"]) == (False, 0)
        assert item.meta["source"] == "task/episode_11.hdf5"


@pytest.mark.parametrize("form", ["padded", "vlen"])
def test_jpeg_files_pass_untouched_without_their_padding(tmp_path: Path, form: str) -> None:
    source = make_folder(tmp_path / "task", 2, form=form)
    receipt = convert(source, tmp_path / "out", codec="jpeg")
    assert not any("compress_len" in note for note in receipt.notes)
    assert validate(tmp_path / "out").ok
    with vrl3data.open(tmp_path / "out") as dataset:
        for step in range(4):
            want = np.asarray(Image.open(io.BytesIO(jpeg_file(picture(step, 1)))))
            assert np.array_equal(dataset[0]["obs.image.cam_left_wrist"][step], want)
        stored = b"".join(shard_bytes(tmp_path / "out").values())
        assert b"".join(jpeg_file(picture(step, 0)) for step in range(4)) in stored


def test_swapped_colours_can_be_swapped_back(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "task", 1, form="padded")
    convert(source, tmp_path / "rgb")
    convert(source, tmp_path / "bgr", color="bgr")
    with vrl3data.open(tmp_path / "rgb") as one, vrl3data.open(tmp_path / "bgr") as two:
        red, blue = one[0]["obs.image.cam_high"], two[0]["obs.image.cam_high"]
        assert red[0, 20, 10].argmax() == 0
        assert np.array_equal(red, blue[..., ::-1])
    with pytest.raises(ConfigError, match="expected rgb or bgr"):
        AlohaConverter([source], AlohaOptions(color="cmyk"))


def test_what_forks_add_is_kept(tmp_path: Path) -> None:
    path = make_episode(tmp_path / "episode_0.hdf5", 5, base_action=np.ones((5, 2)), reward=np.arange(5.0),
                        language_raw=np.array([b"fold the towel"]), calibration=np.eye(3),
                        observations__images_depth__cam_high=np.full((5, 8, 9), 700, np.uint16))  # fmt: skip
    with h5py.File(path, "a") as file:
        file.attrs["success"] = True
    convert(path, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        item = dataset[0]
        assert item.meta["task"] == "fold the towel"
        assert item.meta["success"] == 1
        assert item["action.base"].shape == (5, 2)
        assert item["reward"].tolist() == [0, 1, 2, 3, 4]
        assert item["obs.depth.cam_high"].dtype == np.uint16
        assert (item["obs.depth.cam_high"] == 700).all()
        assert json.loads(item.meta["source_meta"])["calibration"] == np.eye(3).tolist()


def test_times_follow_the_rate_that_is_said(tmp_path: Path) -> None:
    path = make_episode(tmp_path / "episode_0.hdf5")
    convert(path, tmp_path / "slow", rate=30)
    convert(path, tmp_path / "none", rate=0)
    with vrl3data.open(tmp_path / "slow") as slow, vrl3data.open(tmp_path / "none") as none:
        assert slow[0]["timestamp"][3] == 100_000_000
        assert "timestamp" not in none.schema
    with h5py.File(path, "a") as file:
        del file.attrs["sim"]  # not ALOHA's own recorder
    receipt = convert(path, tmp_path / "fork")
    assert any("do not state their rate" in note for note in receipt.notes)
    with pytest.raises(ConfigError, match="rate"):
        AlohaConverter([path], AlohaOptions(rate=-3))


def test_a_row_more_of_observations_is_the_final_observation(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file["observations/qpos"] = np.arange(12.0).reshape(6, 2)
        file["action"] = np.zeros((5, 2))
    convert(tmp_path / "episode_0.hdf5", tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset[0].meta["final_observation"] == 1
        assert dataset[0]["obs.proprio"].shape == (6, 2)
        assert dataset.schema["action"].names == ()


def test_broken_episodes_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "task", 7, form="padded")
    whole = (source / "episode_1.hdf5").read_bytes()
    (source / "episode_1.hdf5").write_bytes(whole[: len(whole) // 2])
    (source / "episode_2.hdf5").write_bytes(b"")
    with h5py.File(source / "episode_3.hdf5", "a") as file:
        row = file["observations/images/cam_high"][2]
        row[200:] = 7
        file["observations/images/cam_high"][2] = row
    with h5py.File(source / "episode_4.hdf5", "a") as file:
        del file["action"]
    with h5py.File(source / "episode_5.hdf5", "a") as file:
        del file["observations/qvel"]
        file["observations/qvel"] = np.zeros((3, 14))
    with h5py.File(source / "episode_6.hdf5", "a") as file:
        file["observations/images/other"] = h5py.ExternalLink("/etc/passwd", "/x")
    problems = {name: str(error) for name, error in AlohaConverter([source], AlohaOptions()).plan().problems}
    for number, words in ((1, "truncated"), (2, "empty"), (4, "/action"), (5, "found 3"), (6, "link")):
        assert words in problems[f"task/episode_{number}"], problems
        assert f"episode_{number}.hdf5" in problems[f"task/episode_{number}"]
    assert len(problems) == 5
    receipt = run(AlohaConverter([source], AlohaOptions()), tmp_path / "out", RunOptions(on_error="skip"))
    assert "readable picture" in {entry["source"]: entry["reason"] for entry in receipt.skipped}["task/episode_3"]
    with vrl3data.open(tmp_path / "out") as dataset:
        assert len(dataset) == 1


def test_other_layouts_are_not_taken_for_aloha(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations"] = np.zeros((3, 2))
        file["action"] = np.zeros((3, 2))
    assert not AlohaConverter.recognises(tmp_path / "x.hdf5")
    with pytest.raises(SourceError, match="another kind"):
        AlohaConverter([tmp_path / "x.hdf5"], AlohaOptions()).plan()
    (tmp_path / "empty").mkdir()
    assert not AlohaConverter.recognises(tmp_path / "empty")
    with pytest.raises(SourceError, match=r"no \.hdf5 files"):
        AlohaConverter([tmp_path / "empty"], AlohaOptions()).plan()
    (tmp_path / "episode_7.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    assert AlohaConverter.recognises(tmp_path / "episode_7.hdf5")


def test_claims_without_data_are_refused(tmp_path: Path) -> None:
    path = make_episode(tmp_path / "episode_0.hdf5", 5)
    with h5py.File(path, "a") as file:
        file.create_dataset("observations/images/huge", (5, 10**5, 10**5, 3), np.uint8, chunks=(1, 100, 100, 3))
    with pytest.raises(SourceError, match="claims"):
        convert(path, tmp_path / "out")


@pytest.mark.realdata
def test_no_other_real_file_is_taken_for_aloha(real_data: Path) -> None:
    inside = [path for path in real_data.rglob("*") if path.suffix in (".hdf5", ".h5") or path.is_dir()]
    assert [path.name for path in inside if AlohaConverter.recognises(path)] == []


def test_texts_and_single_values_are_kept(tmp_path: Path) -> None:
    source = make_episode(tmp_path / "episode_0.hdf5", language_raw=b"pick up", note="left", mass=3.5)
    with h5py.File(source, "a") as file:
        file.create_dataset("objects", data=["cup", "lid"], dtype=h5py.string_dtype())
        file.attrs["success"] = 7
    run(AlohaConverter([source], AlohaOptions()), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        meta = dataset[0].meta
    assert (meta["task"], meta["success"]) == ("pick up", -1)
    said = json.loads(meta["source_meta"])
    assert (said["note"], said["mass"], said["objects"], said["success"]) == ("left", 3.5, ["cup", "lid"], 7)


def test_links_are_not_followed_when_a_file_is_looked_at(tmp_path: Path) -> None:
    make_episode(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "link.hdf5", "w") as file:
        file["observations"] = h5py.ExternalLink("other.hdf5", "/observations")
        file["action"] = np.zeros((6, 14))
    assert not AlohaConverter.recognises(tmp_path / "link.hdf5")
    with pytest.raises(SourceError, match="'observations' is a link to another place"):
        run(AlohaConverter([tmp_path / "link.hdf5"], AlohaOptions()), tmp_path / "out")


def test_two_files_that_differ_in_their_ending_are_two_episodes(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    make_episode(tmp_path / "set/episode_0.hdf5")
    make_episode(tmp_path / "set/episode_0.h5", 9)
    run(AlohaConverter([tmp_path / "set"], AlohaOptions()), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["name"] for item in dataset] == ["set/episode_0.h5", "set/episode_0.hdf5"]


@pytest.mark.parametrize("rate", [-1.0, 0.0])
def test_a_clock_of_the_file_is_kept_beside_ours(tmp_path: Path, rate: float) -> None:
    source = make_episode(tmp_path / "episode_0.hdf5", 3, timestamp=np.arange(3) / 30)
    run(AlohaConverter([source], AlohaOptions(rate=rate)), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert ("timestamp" in dataset.schema.names) == (rate < 0)
        assert json.loads(dataset[0].meta["source_meta"])["timestamp"] == [0.0, 1 / 30, 2 / 30]


def test_damaged_groups_are_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "task", 2)
    path = source / "episode_1.hdf5"
    path.write_bytes(path.read_bytes().replace(b"SNOD", b"XXXX"))
    problems = dict(AlohaConverter([source], AlohaOptions()).plan().problems)
    assert "cannot be read" in str(problems["task/episode_1"])
    assert "episode_1.hdf5" in str(problems["task/episode_1"])
