"""The conversion loop and both converters, on sources the tests make."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import jpeg, make_demonstrations, make_pictures, run_cli, shard_bytes
from kinds import SOURCES
from PIL import Image

import vrl3data
from converters import KINDS
from converters.adroit import pickles
from converters.base import find, recognise
from converters.images.decode import decode, fitted
from vrl3data import index, manifest
from vrl3data.errors import ConfigError, DestinationError, SourceError
from vrl3data.validation import validate

SMALL = {"image_size": 16, "render": "fast"}


def rows_of(value: Any) -> Any:
    """All of a feature at once: a converter may give blocks of rows."""
    return np.concatenate(list(value)) if isinstance(value, Iterator) else value


@pytest.mark.parametrize("kind", KINDS)
def test_every_converter_keeps_the_contract(tmp_path: Path, kind: str) -> None:
    """Recognised by content; units and samples agree; ids do not depend on how it is stored; read twice, same."""
    source = SOURCES[kind](tmp_path)
    assert recognise(source) == kind
    converter_class = find(kind)
    assert converter_class.__doc__
    assert not converter_class.recognises(tmp_path / "nothing")
    converter = converter_class([source], converter_class.Options(image_size=16))
    plan = converter.plan()
    units = list(plan.units)
    assert len(units) == plan.count > 1
    travelled = pickle.loads(pickle.dumps(converter))
    once, twice = converter.read(units[1]), travelled.read(units[1])
    assert once.name == twice.name == units[1].name
    for name in plan.spec.schema.names:
        assert np.array_equal(rows_of(once.values[name]), rows_of(twice.values[name]))
    converter.close()
    travelled.close()
    vrl3data.convert(kind, source, tmp_path / "a", {"image_size": 16})
    vrl3data.convert(None, source, tmp_path / "b", {"image_size": 16, "codec": "png", "shard_size": 50_000})
    with vrl3data.open(tmp_path / "a") as one, vrl3data.open(tmp_path / "b") as two:
        assert [item.meta["id"] for item in one] == [item.meta["id"] for item in two]
        assert one.manifest.content == two.manifest.content
        assert one[0].meta["source_sha256"] in (file["sha256"] for file in one.manifest.content["listed"])
    assert validate(tmp_path / "a").ok
    assert validate(tmp_path / "b").ok


# -- adroit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["door", "hammer", "pen", "relocate"])
def test_adroit_keeps_what_was_recorded(tmp_path: Path, task: str) -> None:
    source = make_demonstrations(tmp_path / f"{task}.pickle", task)
    episodes = pickles.load(source.read_bytes())
    receipt = vrl3data.convert("adroit", source, tmp_path / "out", {**SMALL, "rewards": "vrl3", "origin": "policy"})
    assert receipt.manifest.name == f"adroit-{task}-policy"
    with vrl3data.open(tmp_path / "out") as dataset:
        assert len(dataset) == 2
        cameras = {"pen": ["vil_camera"], "relocate": ["cam1", "cam2", "cam3"]}.get(task, ["top"])
        assert [feature.name for feature in dataset.schema.cameras] == [f"obs.image.{name}" for name in cameras]
        for item, episode in zip(dataset, episodes, strict=True):
            assert np.array_equal(item["action"], episode["actions"])
            assert np.array_equal(item["reward.recorded"], episode["rewards"])
            assert np.array_equal(item["obs.state"], episode["observations"])
            assert item["reward"].shape == (item.length,)
            assert item[f"obs.image.{cameras[0]}"].shape == (item.length, 16, 16, 3)
            assert item[f"obs.image.{cameras[0]}"].std() > 1
            assert item.meta["origin"] == "policy"
            assert item.meta["final_observation"] == 0
            assert item.meta["success"] in (0, 1)
            assert (item.meta["terminated"], item.meta["truncated"]) == (-1, -1)
            assert item["timestamp"].tolist() == [10_000_000 * step for step in range(item.length)]
            assert set(item.source_meta["reconstruction_error"]) == {"mean", "max"}
        if task == "door":
            assert np.array_equal(dataset[1]["sim.qpos"][:, 28], episodes[1]["observations"][:, 28])
            assert dataset[0]["sim.door_body_pos"].tolist() == [[-0.2, 0.3, 0.3]]


def test_adroit_does_not_invent(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle")
    receipt = vrl3data.convert("adroit", source, tmp_path / "out", SMALL)
    assert receipt.notes == ("origin unknown: say --origin human or --origin policy",)
    assert receipt.manifest.license == "unknown"
    with vrl3data.open(tmp_path / "out") as dataset:
        assert (dataset[0].meta["origin"], dataset[0].meta["success"]) == ("unknown", -1)
        assert "reward.recorded" not in dataset.schema
    other = vrl3data.convert("adroit", source, tmp_path / "fixed", {**SMALL, "camera": ["fixed", "vil_camera"]})
    assert [f.name for f in other.manifest.schema.cameras] == ["obs.image.fixed", "obs.image.vil_camera"]


def test_adroit_frames_follow_the_recorded_states(tmp_path: Path) -> None:
    """A door that the recording says is open is drawn open, whatever the actions would have done."""
    source = make_demonstrations(tmp_path / "door.pickle", count=1, length=3)
    episodes = pickles.load(source.read_bytes())
    episodes[0]["observations"][:] = 0
    episodes[0]["observations"][2, 28] = 1.5
    source.write_bytes(pickle.dumps(episodes))
    vrl3data.convert("adroit", source, tmp_path / "out", {"image_size": 48})
    with vrl3data.open(tmp_path / "out") as dataset:
        frames = dataset[0]["obs.image.top"].astype(int)
        assert abs(frames[1] - frames[0]).mean() < 0.1
        assert abs(frames[2] - frames[0]).mean() > 10


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "evil.pickle"
    source.write_bytes(pickle.dumps([{"init_state_dict": _Evil()}], protocol=3))
    with pytest.raises(SourceError, match=r"refused: the pickle asks for (posix|nt)\.system.*evil.pickle"):
        vrl3data.convert(None, source, tmp_path / "out", SMALL)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["evil.pickle"]
    for hostile in (b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy.core.multiarray\nscalars\n.", b"c_codecs\ndecode\n."):
        with pytest.raises(SourceError, match="refused: the pickle asks for"):
            pickles.load(hostile)
    with pytest.raises(SourceError, match="asks to encode text as 'zip'"):
        pickles.load(b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.")


def test_pickles_of_python_2_and_protocol_2_are_read(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "d.pickle")
    episodes = pickles.load(source.read_bytes())
    again = pickles.load(pickle.dumps(episodes, protocol=2))
    assert np.array_equal(again[0]["actions"], episodes[0]["actions"])
    old = pickle.dumps(episodes, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert np.array_equal(pickles.load(old)[1]["observations"], episodes[1]["observations"])


def _changed(**change: Any) -> bytes:
    episode = {"observations": np.zeros((3, 39)), "actions": np.zeros((3, 28)), "rewards": np.zeros(3),
               "init_state_dict": {"qpos": np.zeros(30), "door_body_pos": np.zeros(3)}}  # fmt: skip
    return pickle.dumps([{**episode, **change}])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a whole pickle file"),
        (_changed()[:-200], "not a whole pickle file"),
        (b"\x80\x03garbage", "not a whole pickle file"),
        (b"\x89HDF\r\n", "this is an HDF5 file, not a pickle"),
        (pickle.dumps([]), "expected a list of episodes, found an empty list"),
        (_changed(observations=np.zeros((0, 39)), actions=np.zeros((0, 28)), rewards=np.zeros(0)), "has no steps"),
        (pickle.dumps({"a": 1}), "expected a list of episodes, found dict"),
        (pickle.dumps([{"actions": 1}]), r"expected a dict with observations, .*, found \['actions'\].*episode 0"),
        (_changed(rewards=np.zeros(2)), "as many observations as actions and rewards"),
        (_changed(actions="no"), "actions: expected an array of 2 dimensions of numbers"),
        (_changed(observations=np.full((3, 39), np.nan)), "NaN or infinite.*step 0, feature observations"),
        (_changed(actions=np.zeros((3, 5))), "expected the task door, hammer, pen or relocate, found 39 observation"),
        (_changed(init_state_dict={}), "expected the task door"),
        (
            _changed(rewards=[[1.0], [1.0, 2.0], [3.0]]),
            "rewards: expected an array of numbers, found lists of different",
        ),
        (_changed(rewards=np.zeros((3, 2))), "rewards: expected one number per step"),
        (_changed(init_state_dict=3), "init_state_dict: expected a dict, found int"),
    ],
)
def test_broken_pickles_are_refused_with_a_reason(tmp_path: Path, data: bytes, match: str) -> None:
    source = tmp_path / "demos.pickle"
    source.write_bytes(data)
    with pytest.raises(SourceError, match=match):
        vrl3data.convert("adroit", source, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_wrong_task_unknown_camera_and_other_wrong_options(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle")
    for options, error, match in [
        ({"task": "hammer"}, SourceError, "expected the task hammer, found door"),
        ({"camera": ["tpo"]}, ConfigError, "no camera 'tpo' in the vrl3 look; there are: .*top"),
        ({"image_size": 3}, ConfigError, "image_size: expected 16 to 1024, found 3"),
        ({"image_sise": 84}, ConfigError, "unknown key 'image_sise'; did you mean 'image_size'"),
        ({"render": "fsat"}, ConfigError, "render: expected 'exact' or 'fast', found 'fsat'"),
        ({"image_size": "big"}, ConfigError, "image_size: expected int, found 'big'"),
    ]:
        with pytest.raises(error, match=match):
            vrl3data.convert("adroit", source, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="unknown kind of source 'adriot'; did you mean 'adroit'"):
        vrl3data.convert("adriot", source, tmp_path / "out")
    with pytest.raises(ConfigError, match="pickle files with different names"):
        vrl3data.convert("adroit", [source, source], tmp_path / "out")
    for options, match in [
        ({"split": "TRAIN"}, "split: expected lower-case letters"),
        ({"split": "all"}, "and not 'all'"),
        ({"camera": ["top", "top"]}, "camera: each can be given once"),
        ({"shard_size": 10}, "shard_size: expected at least 10000 bytes"),
        ({"codec": "jpeg"}, "to encode, say jpeg:Q"),
    ]:
        with pytest.raises(ConfigError, match=match):
            vrl3data.convert("adroit", source, tmp_path / "out", {**SMALL, **options})
    with pytest.raises(SourceError, match="expected a file, found a directory or a device"):
        (tmp_path / "folder").mkdir()
        vrl3data.convert("adroit", tmp_path / "folder", tmp_path / "out")
    with pytest.raises(SourceError, match="expected a folder of class folders, found a file"):
        vrl3data.convert("imagenet", source, tmp_path / "out")
    odd = tmp_path / "bad\udcff.pickle"
    odd.write_bytes(source.read_bytes())
    with pytest.raises(SourceError, match="cannot be written as UTF-8; rename it"):
        vrl3data.convert("adroit", odd, tmp_path / "out")
    with pytest.raises(ConfigError, match="jobs: expected at least 1"):
        vrl3data.convert("adroit", source, tmp_path / "out", jobs=0)


def test_a_broken_episode_stops_or_is_skipped(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=3)
    episodes = pickles.load(source.read_bytes())
    episodes[1]["observations"][2, 5] = np.nan
    source.write_bytes(pickle.dumps(episodes))
    with pytest.raises(SourceError, match="NaN or infinite.*door.pickle, episode door/0001, step 2"):
        vrl3data.convert("adroit", source, tmp_path / "out", SMALL)
    assert len(vrl3data.open(tmp_path / "out")) == 1
    receipt = vrl3data.convert("adroit", source, tmp_path / "out", SMALL, on_error="skip")
    assert [entry["source"] for entry in receipt.skipped] == ["door/0001"]
    assert "NaN" in receipt.skipped[0]["reason"]
    assert [item.name for item in vrl3data.open(tmp_path / "out")] == ["door/0000", "door/0002"]


# -- imagenet ------------------------------------------------------------------------------------------------------


def test_imagenet_fits(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", root, tmp_path / "shorter", {"image_size": 32})
    vrl3data.convert("imagenet", root, tmp_path / "square", {"image_size": 32, "fit": "square"})
    vrl3data.convert("imagenet", root, tmp_path / "none", {"fit": "none"})
    with vrl3data.open(tmp_path / "shorter") as dataset:
        assert {item.name for item in dataset} == {f"n{i % 2:08d}/picture_{i}.JPEG" for i in range(6)}
        for item in dataset:
            height, width, channels = item["image"].shape[1:]
            assert (min(height, width), channels) == (32, 3)
            assert (item.meta["height"], item.meta["width"]) == (height, width)
            assert item["cls"].tolist() == [item.meta["label"]]
            assert dataset.schema["cls"].names[item.meta["label"]] == item.meta["class_name"]
            assert item.meta["class_name"] == item.name.partition("/")[0]
            assert item.meta["psnr"] > 30
    with vrl3data.open(tmp_path / "square") as dataset:
        assert all(item["image"].shape == (1, 32, 32, 3) for item in dataset)
        assert dataset.schema["image"].codec == "raw"
        source = Image.open(root / dataset[3].name).convert("RGB")
        assert np.array_equal(dataset[3]["image"][0], np.asarray(fitted(source, "crop", 32)))
    with vrl3data.open(tmp_path / "none") as dataset:
        for item in dataset:
            copied = bytes(dataset.member(item.position, "jpg"))
            assert copied == (root / item.name).read_bytes()
            assert item.meta["source_sha256"] == hashlib.sha256(copied).hexdigest()
            assert item.meta["psnr"] == -1


def test_small_pictures_are_not_enlarged() -> None:
    picture = Image.new("RGB", (40, 20))
    assert fitted(picture, "shorter", 32).size == (40, 20)
    assert fitted(picture, "shorter", 10).size == (20, 10)
    assert fitted(picture, "crop", 32).size == (32, 32)


def test_resizing_is_antialiased() -> None:
    """A fine checkerboard becomes grey, not stripes."""
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = np.asarray(fitted(Image.fromarray(np.stack([board] * 3, -1)), "shorter", 32))
    assert small.std() < 2


def test_imagenet_splits_and_tiny_imagenets_table(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    for number, name in enumerate(["n01", "n02"]):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder / f"{name}_0.JPEG").write_bytes(jpeg(20, 20, number))
    (root / "val" / "images").mkdir(parents=True)
    (root / "val" / "images" / "val_0.JPEG").write_bytes(jpeg(20, 20, 5))
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\n")
    receipt = vrl3data.convert(None, root, tmp_path / "out")
    assert receipt.notes[0] == "1 files that are not pictures were left out"
    with vrl3data.open(tmp_path / "out") as dataset:
        assert {name: split.samples for name, split in dataset.manifest.splits.items()} == {"train": 2, "val": 1}
        val = dataset[dataset.split("val")[0]]
        assert (val.meta["class_name"], val.meta["label"]) == ("n02", 1)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"this is a text", "not a readable picture: the file begins with b'this is a te'"),
        (b"", "the file is empty"),
        (jpeg(50, 50)[:-300], "not a readable picture: image file is truncated"),
    ],
)
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_broken_picture_stops_or_is_skipped(tmp_path: Path, data: bytes, match: str, jobs: int) -> None:
    root = make_pictures(tmp_path / "pictures")
    (root / "n00000001" / "picture_3.JPEG").write_bytes(data)
    stop = run_cli("convert", root, tmp_path / "out", "--jobs", jobs, "--quiet")
    assert stop.returncode == 3
    assert f"{match.partition(':')[0]}" in stop.stderr
    assert "n00000001/picture_3.JPEG" in stop.stderr
    assert "Traceback" not in stop.stderr
    skip = run_cli("convert", root, tmp_path / "out", "--jobs", jobs, "--on-error", "skip", "--json")
    assert skip.returncode == 5
    receipt = json.loads(skip.stdout.splitlines()[-1])
    assert receipt["samples"] == 5
    assert receipt["skipped"][0]["source"] == "n00000001/picture_3.JPEG"
    assert match in receipt["skipped"][0]["reason"]


def test_other_imagenet_refusals(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="no pictures found"):
        vrl3data.convert("imagenet", empty, tmp_path / "out")
    with pytest.raises(SourceError, match="no converter recognises this"):
        vrl3data.convert(None, empty, tmp_path / "out")
    with pytest.raises(SourceError, match="no such file"):
        vrl3data.convert("imagenet", tmp_path / "nowhere", tmp_path / "out")
    (empty / "loose.jpg").write_bytes(jpeg(9, 9))
    with pytest.raises(SourceError, match="picture loose.jpg lies in no class folder"):
        vrl3data.convert("imagenet", empty, tmp_path / "out")
    root = make_pictures(tmp_path / "pictures")
    out = io.BytesIO()
    Image.new("RGB", (9, 9)).save(out, "PNG")
    (root / "n00000000" / "is_png.JPEG").write_bytes(out.getvalue())
    with pytest.raises(SourceError, match="--fit none copies JPEG files.*is_png.JPEG"):
        vrl3data.convert("imagenet", root, tmp_path / "none", {"fit": "none"})
    assert vrl3data.convert("imagenet", root, tmp_path / "shorter").manifest.samples == 7
    with pytest.raises(ConfigError, match="fit 'none' does not go with codec 'png'"):
        vrl3data.convert("imagenet", root, tmp_path / "out", {"fit": "none", "codec": "png"})
    with pytest.raises(ConfigError, match="would lie inside the source"):
        vrl3data.convert("imagenet", root, root / "out")
    with pytest.raises(ConfigError, match="expected one folder, found 2"):
        vrl3data.convert("imagenet", [root, root], tmp_path / "out")
    with pytest.raises(ConfigError, match="image_size: expected 1 to 4096"):
        vrl3data.convert("imagenet", root, tmp_path / "out", {"image_size": 0})
    with pytest.raises(SourceError, match="decompression bomb"):
        decode(_huge_png())


def test_no_picture_starts_a_program(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    root = make_pictures(tmp_path / "pictures", count=2)
    (root / "n00000000" / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(SourceError, match=r"the file begins with b'%!PS-Adobe"):
        vrl3data.convert("imagenet", root, tmp_path / "out")


def test_one_class_is_said_so(tmp_path: Path) -> None:
    """Whoever gives the folder above the right one gets one class."""
    make_pictures(tmp_path / "data" / "imagenet")
    receipt = vrl3data.convert(None, tmp_path / "data", tmp_path / "out")
    assert "there is one class only, 'imagenet'" in receipt.notes[0]


def test_pictures_without_a_class_have_no_label(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    for folder in ("train/n01/images", "train/n02/images", "test/images"):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.JPEG").write_bytes(jpeg(20, 20))
    vrl3data.convert("imagenet", root, tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset.schema["cls"].names == ("n01", "n02")
        test = dataset[dataset.split("test")[0]]
        assert (test.meta["label"], test.meta["class_name"], test["cls"].tolist()) == (-1, "", [-1])
    assert validate(tmp_path / "out").ok


def _huge_png() -> bytes:
    """A header that promises 20,000 x 20,000 pixels."""
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    return out.getvalue()


# -- running -------------------------------------------------------------------------------------------------------


def test_same_bytes_for_any_number_of_jobs(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", count=150, classes=7)
    demos = make_demonstrations(tmp_path / "door.pickle", count=5)
    for name, source, more in [("im", pictures, ()), ("ad", demos, ("--image-size", 16))]:
        for jobs in (1, 2, 4):
            result = run_cli(
                "convert", source, tmp_path / f"{name}{jobs}", "--jobs", jobs, "--shard-size", "60kB", *more
            )
            assert result.returncode == 0, result.stderr
        want = shard_bytes(tmp_path / f"{name}1")
        assert len(want) > 1
        for jobs in (2, 4):
            assert shard_bytes(tmp_path / f"{name}{jobs}") == want
            one, other = (json.loads((tmp_path / f"{name}{n}" / "dataset.json").read_text()) for n in (1, jobs))
            assert {**one, "run": 0} == {**other, "run": 0}
            assert (tmp_path / f"{name}1" / "index.parquet").read_bytes() == (
                tmp_path / f"{name}{jobs}" / "index.parquet"
            ).read_bytes()


def test_running_again_does_nothing_and_other_options_are_refused(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", root, tmp_path / "out")
    before = shard_bytes(tmp_path / "out")
    again = vrl3data.convert("imagenet", root, tmp_path / "out")
    assert again.already_complete
    other = vrl3data.convert("imagenet", root, tmp_path / "out", {"license": "cc0-1.0"})
    assert "the licence stays 'unknown', not 'cc0-1.0'" in other.notes[-1]
    with pytest.raises(DestinationError, match=r"options.image_size: 128 there, 32 now"):
        vrl3data.convert("imagenet", root, tmp_path / "out", {"image_size": 32})
    assert shard_bytes(tmp_path / "out") == before


def test_overwriting_keeps_the_old_dataset_until_the_new_one_is_whole(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", root, tmp_path / "out")
    before = shard_bytes(tmp_path / "out")
    broken = root / "n00000001" / "picture_5.JPEG"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken".ljust(len(whole)))
    with pytest.raises(SourceError, match="picture_5"):
        vrl3data.convert("imagenet", root, tmp_path / "out", {"image_size": 32}, overwrite=True)
    assert shard_bytes(tmp_path / "out") == before
    assert validate(tmp_path / "out").ok
    broken.write_bytes(whole)
    receipt = vrl3data.convert("imagenet", root, tmp_path / "out", {"image_size": 32}, overwrite=True)
    assert receipt.written == 1  # it went on with what the first try had written
    assert receipt.path == (tmp_path / "out").resolve()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "pictures"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("work")
    with pytest.raises(DestinationError, match="not a vrl3data dataset"):
        vrl3data.convert("imagenet", root, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "work"


def test_overwriting_an_unfinished_dataset(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=3)
    whole = source.read_bytes()
    source.write_bytes(whole)
    vrl3data.convert("adroit", source, tmp_path / "out", SMALL)
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(DestinationError, match=r"or replace it \(convert: --overwrite\)"):
        vrl3data.convert("adroit", source, tmp_path / "out", {"image_size": 24})
    vrl3data.convert("adroit", source, tmp_path / "out", {"image_size": 24}, overwrite=True)
    assert vrl3data.open(tmp_path / "out")[0]["obs.image.top"].shape[1] == 24


def test_overwrite_replaces_a_whole_dataset(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", root, tmp_path / "out")
    vrl3data.convert("imagenet", root, tmp_path / "out", {"image_size": 32}, overwrite=True)
    assert manifest.read(tmp_path / "out").provenance["options"]["image_size"] == 32
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "pictures"]


def test_a_source_that_was_mended_meanwhile_is_not_put_out_of_order(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=3)
    whole = source.read_bytes()
    episodes = pickles.load(whole)
    episodes[0]["observations"][0, 0] = np.inf
    broken = pickle.dumps(episodes, protocol=3)
    assert len(broken) == len(whole)
    source.write_bytes(broken)
    vrl3data.convert("adroit", source, tmp_path / "out", SMALL, on_error="skip")
    (tmp_path / "out" / "dataset.json").unlink()
    source.write_bytes(whole)
    with pytest.raises(DestinationError, match=r"door/0000 was skipped by an earlier run but can be read now"):
        vrl3data.convert("adroit", source, tmp_path / "out", SMALL, on_error="skip")


def test_a_picture_that_was_mended_meanwhile_is_not_put_out_of_order(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    mended = root / "n00000000" / "picture_0.JPEG"
    whole = mended.read_bytes()
    mended.write_bytes(b"x" * len(whole))
    vrl3data.convert("imagenet", root, tmp_path / "out", on_error="skip")
    (tmp_path / "out" / "dataset.json").unlink()
    mended.write_bytes(whole)
    with pytest.raises(DestinationError, match="was skipped by an earlier run but can be read now"):
        vrl3data.convert("imagenet", root, tmp_path / "out", on_error="skip")


def _kill(command: list[str], confirmed: int) -> list[tuple[str, int, str]]:
    """Run, keep a list of what it confirms, SIGKILL it right after `confirmed` confirmations."""
    samples: list[tuple[str, int, str]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "confirmed":
                samples += [tuple(sample) for sample in event["samples"]]
                seen += 1
            if seen >= confirmed:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.read()
    return samples


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_sigkill_loses_nothing_that_was_confirmed(tmp_path: Path, jobs: int) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=10, length=6)
    options = ["--image-size", "16", "--render", "fast", "--jobs", str(jobs), "--json", "--shard-size", "40kB"]
    command = [sys.executable, "-m", "vrl3data", "convert", "adroit", str(source)]
    whole = subprocess.run([*command, str(tmp_path / "whole"), *options], check=True, capture_output=True, text=True)
    want = json.loads(whole.stdout.splitlines()[-1])["fingerprint"]
    out = tmp_path / "out"
    for moment in (1, 1, 2, 3):
        samples = _kill([*command, str(out), *options], moment)
        assert samples
        time.sleep(0.3)
        with vrl3data.open(out, verify="always") as dataset:
            ids = {item.meta["id"] for item in dataset}
            assert {sample_id for _, _, sample_id in samples} <= ids
            assert all(item[name].size for item in dataset for name in dataset.schema.names)
        assert validate(out).ok
    last = subprocess.run([*command, str(out), *options], check=True, capture_output=True, text=True)
    assert json.loads(last.stdout.splitlines()[-1])["fingerprint"] == want
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    assert not list(out.glob(".*"))


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=40, length=20)
    command = [sys.executable, "-m", "vrl3data", "convert", "adroit", str(source), str(tmp_path / "out"),
               "--image-size", "64", "--jobs", "2", "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        message = process.stderr.read()
    assert process.returncode == 130
    assert "run the same command again to go on" in message
    assert "Traceback" not in message
    assert len(vrl3data.open(tmp_path / "out")) >= 1


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=30, length=20)
    command = [sys.executable, "-m", "vrl3data", "convert", "adroit", str(source), str(tmp_path / "out"),
               "--image-size", "64", "--jobs", "2", "--json"]  # fmt: skip
    _kill(command, 1)
    for _ in range(50):
        left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert index.shard_files(tmp_path / "out")
