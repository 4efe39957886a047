"""Frames of episodes and labelled images as tar files, read by webdataset itself."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import jpeg, make_episode, make_pictures, make_schema, make_spec
from PIL import Image
from test_export import images, rich
from things import tree
from webdataset.autodecode import Decoder, imagehandler
from webdataset.tariterators import group_by_keys, tar_file_expander

import vrl3data
from converters.base import recognise
from converters.export import frames
from vrl3data import codecs
from vrl3data.codecs.jpeg import copied
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError
from vrl3data.schema import Coded, Episode, Feature, Schema
from vrl3data.writer import Writer


def exported(source: Path | Dataset, dest: Path, **options: Any) -> Any:
    return vrl3data.export("frames", source, dest, options)


def samples(path: Path, split: str = "train") -> list[dict[str, Any]]:
    """As webdataset gives them: pictures decoded, JSON parsed, classes as integers."""
    decode = Decoder([imagehandler("rgb8")])
    found = []
    for file in sorted(path.glob(f"{split}-*.tar")):
        with file.open("rb") as stream:  # webdataset leaves the files open that it opens itself
            found += map(decode, group_by_keys(tar_file_expander([{"url": file.name, "stream": stream}])))
    return found


def by_place(found: list[dict[str, Any]], ending: str) -> dict[tuple[str, str, int], Any]:
    return {(one["json"]["episode"], one["json"]["camera"], one["json"]["step"]): one[ending] for one in found}


def test_webdataset_reads_every_frame(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    receipt = exported(source, tmp_path / "out", format="png")
    assert "obs.image.top: encoded as PNG" in receipt.notes
    found = by_place(samples(tmp_path / "out") + samples(tmp_path / "out", "val"), "png")
    with vrl3data.open(source) as dataset:
        assert len(found) == sum(len(item["obs.image.top"]) for item in dataset)
        for item in dataset:
            for step, frame in enumerate(item["obs.image.top"]):
                assert np.array_equal(found[item.name, "top", step], frame)
    first = samples(tmp_path / "out", "val")[0]
    assert set(first) == {"__key__", "__url__", "png", "json"}
    assert {key: first["json"][key] for key in ("split", "success", "task")} in (
        {"split": "val", "success": 0, "task": "task 0"}, {"split": "val", "success": 1, "task": "task 1"},
    )  # fmt: skip


def test_jpeg_is_close(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    assert "obs.image.top: encoded as JPEG of quality 95, with loss" in exported(source, tmp_path / "out").notes
    exported(source, tmp_path / "rough", quality=20)
    good, bad = (by_place(samples(tmp_path / name), "jpg") for name in ("out", "rough"))
    with vrl3data.open(source) as dataset:
        frame = dataset[1]["obs.image.top"][2]
    assert ((good["episode-1", "top", 2].astype(float) - frame) ** 2).mean() < 20  # 35 dB
    assert not np.array_equal(good["episode-1", "top", 2], bad["episode-1", "top", 2])


@pytest.mark.parametrize("codec", ["raw", "dzst"])
@pytest.mark.parametrize("stride", [1, 3, 40])
def test_every_nth_frame(codec: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "BLOCK_BYTES", 12 * 12 * 3 * 70)  # two units of dzst: blocks end within the episode
    with Writer(tmp_path / "set", make_spec(make_schema(codec))) as writer:
        writer.write(make_episode(0, 150))
    exported(tmp_path / "set", tmp_path / "out", stride=stride, format="png", order="source")
    found = samples(tmp_path / "out")
    assert [one["json"]["step"] for one in found] == list(range(0, 151, stride))
    with vrl3data.open(tmp_path / "set") as dataset:
        assert np.array_equal([one["png"] for one in found], dataset[0]["obs.image.top"][::stride])


def test_the_order_follows_from_the_seed(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec()) as writer:
        for number in range(6):
            writer.write(make_episode(number, 30))
    steps = {}
    for name, options in {"a": {}, "b": {}, "c": {"seed": 1}, "plain": {"order": "source"}}.items():
        exported(tmp_path / "set", tmp_path / name, **options)
        found = samples(tmp_path / name)
        assert [one["__key__"] for one in found] == [f"{row:09d}" for row in range(186)]
        steps[name] = [(one["json"]["episode"], one["json"]["step"]) for one in found]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert steps["a"] != steps["c"] and sorted(steps["a"]) == sorted(steps["c"]) == sorted(steps["plain"])
    assert steps["plain"] == [(f"episode-{number}", step) for number in range(6) for step in range(31)]
    neighbours = [
        one[0] == two[0] and abs(one[1] - two[1]) == 1 for one, two in zip(steps["a"], steps["a"][1:], strict=False)
    ]
    assert sum(neighbours) < 10


def test_tars_have_a_largest_size(tmp_path: Path) -> None:
    exported(rich(tmp_path / "set"), tmp_path / "out", shard_size=10_240)
    tars = sorted((tmp_path / "out").glob("train-*.tar"))
    assert len(tars) > 2 and max(file.stat().st_size for file in tars) <= 10_240
    assert len(samples(tmp_path / "out")) == 18
    with tarfile.open(tars[0]) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)


def test_classes_by_task_and_success(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec()) as writer:
        for number, (task, success) in enumerate([("open it", 1), ("close\nit", 0), ("", -1)]):
            writer.write(make_episode(number, 3, task=task, success=success))
    receipt = exported(tmp_path / "set", tmp_path / "task", label="task")
    assert (tmp_path / "task" / "classnames.txt").read_text() == "close it\nopen it\n"
    assert "4 pictures have no class: their .cls is -1" in receipt.notes
    assert {(one["json"]["episode"], one["cls"]) for one in samples(tmp_path / "task")} == {
        ("episode-0", 1), ("episode-1", 0), ("episode-2", -1)}  # fmt: skip
    exported(tmp_path / "set", tmp_path / "success", label="success")
    assert (tmp_path / "success" / "classnames.txt").read_text() == "failure\nsuccess\n"
    assert {(one["json"]["episode"], one["cls"]) for one in samples(tmp_path / "success")} == {
        ("episode-0", 1), ("episode-1", 0), ("episode-2", -1)}  # fmt: skip
    exported(tmp_path / "set", tmp_path / "none")
    assert not (tmp_path / "none" / "classnames.txt").exists() and "cls" not in samples(tmp_path / "none")[0]


def cameras(path: Path, codec: str = "raw") -> Path:
    """Two cameras of different colours, one of which an episode lacks; JPEG files are their own."""
    left = Feature("obs.image.left", "uint8", (16, 20, 3), "step", color="rgb")
    right = codecs.describe(Feature("obs.image.wrist.right", "uint8", (8, 8, 1), "step", color="gray"), "png")
    described = copied(left) if codec == "jpeg" else codecs.describe(left, codec)
    rng = np.random.default_rng(0)
    with Writer(path, make_spec(Schema("episodes", (described, right, Feature("action", "float32", (2,)))))) as writer:
        for number in range(2):
            values: dict[str, Any] = {"action": np.zeros((3, 2), np.float32)}
            values["obs.image.left"] = rng.integers(0, 255, (3, 16, 20, 3), np.uint8)
            if codec == "jpeg":
                files = [jpeg(20, 16, 10 * number + step) for step in range(3)]
                ends = np.cumsum([0, *map(len, files)]).astype(np.uint64)
                values["obs.image.left"] = Coded(b"".join(files), ends)
            if number:
                values["obs.image.wrist.right"] = rng.integers(0, 255, (3, 8, 8, 1), np.uint8)
            writer.write(Episode(f"e{number}", values, length=3))
    return path


def test_chosen_cameras_and_absent_ones(tmp_path: Path) -> None:
    source = cameras(tmp_path / "set")
    receipt = exported(source, tmp_path / "both")
    assert "obs.image.wrist.right: 1 episodes lack it" in receipt.notes
    assert receipt.dropped[0] == "action: no picture"
    found = by_place(samples(tmp_path / "both"), "jpg")
    assert sorted({place[:2] for place in found}) == [("e0", "left"), ("e1", "left"), ("e1", "wrist.right")]
    receipt = exported(source, tmp_path / "one", camera=["wrist.right"])
    assert receipt.dropped[0] == "obs.image.left: a camera that was not asked for"
    assert len(samples(tmp_path / "one")) == 3
    with (
        vrl3data.open(source) as dataset,
        pytest.raises(ConfigError, match="no episode has a picture of these cameras"),
    ):
        few = Dataset(source, dataset.manifest, dataset.index.table().slice(0, 1))
        exported(few, tmp_path / "none", camera=["wrist.right"])
    assert not (tmp_path / "none").exists()


def raw_members(path: Path, ending: str) -> list[bytes]:
    found = []
    for file in sorted(path.glob("*.tar")):
        with tarfile.open(file) as archive:
            found += [archive.extractfile(member).read() for member in archive if member.name.endswith(ending)]  # type: ignore[union-attr]
    return found


def test_files_that_are_stored_as_such_are_copied(tmp_path: Path) -> None:
    source = cameras(tmp_path / "set", "jpeg")
    receipt = exported(source, tmp_path / "out", camera=["left"], order="source")
    assert "obs.image.left: files copied untouched" in receipt.notes
    assert raw_members(tmp_path / "out", ".jpg") == [
        jpeg(20, 16, 10 * number + step) for number in (0, 1) for step in range(3)
    ]
    receipt = exported(source, tmp_path / "png", format="png")
    assert "obs.image.wrist.right: files copied untouched" in receipt.notes
    assert "obs.image.left: encoded as PNG" in receipt.notes
    with vrl3data.open(source) as dataset:
        found = by_place(samples(tmp_path / "png"), "png")
        assert np.array_equal(found["e1", "left", 2], dataset[1]["obs.image.left"][2])
        assert np.array_equal(found["e1", "wrist.right", 0][..., :1], dataset[1]["obs.image.wrist.right"][0])


def test_labelled_images_keep_their_files(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures", 8, 2)
    vrl3data.convert("imagenet", root, tmp_path / "set", {"fit": "none"})
    receipt = exported(tmp_path / "set", tmp_path / "out", order="source")
    assert (receipt.samples, receipt.steps) == (8, 0)
    assert raw_members(tmp_path / "out", ".jpg") == [file.read_bytes() for file in sorted(root.rglob("*.JPEG"))]
    found = samples(tmp_path / "out")
    assert [one["cls"] for one in found] == [0] * 4 + [1] * 4
    assert (tmp_path / "out" / "classnames.txt").read_text() == "n00000000\nn00000001\n"
    assert found[0]["json"] == {
        "class_name": "n00000000",
        "label": 0,
        "name": "n00000000/picture_0.JPEG",
        "split": "train",
    }
    exported(tmp_path / "set", tmp_path / "mixed")
    assert [one["cls"] for one in samples(tmp_path / "mixed")] not in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert sorted(raw_members(tmp_path / "mixed", ".jpg")) == sorted(raw_members(tmp_path / "out", ".jpg"))


def test_encoded_images_are_copied_too(tmp_path: Path) -> None:
    source = images(tmp_path / "set")
    exported(source, tmp_path / "out", order="source")
    with vrl3data.open(source) as dataset:
        assert raw_members(tmp_path / "out", ".jpg") == [bytes(dataset.member(row, "jpg")) for row in range(3)]
    exported(source, tmp_path / "png", order="source", format="png")
    with vrl3data.open(source) as dataset:
        for item, file in zip(dataset, raw_members(tmp_path / "png", ".png"), strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), item["image"][0])


def test_from_robot_data_to_a_set_for_pretraining(tmp_path: Path) -> None:
    """The converter of such tars reads ours: the same pictures, the same classes."""
    source = rich(tmp_path / "set")
    exported(source, tmp_path / "out", label="task", format="png")
    assert recognise(tmp_path / "out") == "webdataset"
    receipt = vrl3data.convert(None, tmp_path / "out", tmp_path / "pictures", {"codec": "png"})
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 18, "val": 11}
    with vrl3data.open(source) as episodes, vrl3data.open(tmp_path / "pictures") as pictures:
        frames = {item.name: item["obs.image.top"] for item in episodes}
        for item in pictures:
            said = item.source_meta
            assert np.array_equal(item["image"][0], frames[said["episode"]][said["step"]])
            assert f"task {item.meta['label']}" == said["task"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "expected a stride of at least 1"),
        ({"quality": 101}, "a quality of 1 to 100"),
        ({"shard_size": 5000}, "shard_size: expected at least 10000 bytes, found 5000"),
        ({"camera": ["tops"]}, r"camera: the dataset has no 'tops'; did you mean 'top'\?"),
        ({"format": "gif"}, "format: expected 'jpg' or 'png', found 'gif'|format"),
        ({"label": "reward"}, "label"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with pytest.raises(ConfigError, match=message):
        exported(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_wrong_values_without_the_command(tmp_path: Path) -> None:
    with vrl3data.open(rich(tmp_path / "set")) as dataset:
        for key in ("format", "label", "order"):
            with pytest.raises(ConfigError, match=f"{key} 'odd'; there are"):
                frames.FramesExporter(dataset, frames.FramesOptions(**{key: "odd"}))


def test_datasets_that_have_no_such_frames(tmp_path: Path) -> None:
    with Writer(tmp_path / "blind", make_spec(Schema("episodes", (Feature("action", "float32", (2,)),)))) as writer:
        writer.write(Episode("e", {"action": np.zeros((2, 2), np.float32)}, length=2))
    with pytest.raises(ConfigError, match="the dataset has no cameras"):
        exported(tmp_path / "blind", tmp_path / "out")
    with pytest.raises(ConfigError, match="camera, stride and label are for episodes"):
        exported(images(tmp_path / "images"), tmp_path / "out", stride=2)
    with Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(make_episode(0))
    with pytest.raises(ConfigError, match="label: no episode has a task"):
        exported(tmp_path / "set", tmp_path / "out", label="task")
    with pytest.raises(ConfigError, match="label: of no episode is it known whether it was a success"):
        exported(tmp_path / "set", tmp_path / "out", label="success")


def test_the_estimate_is_no_more_than_what_is_written(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with vrl3data.open(source) as dataset:
        for order, times in (("source", 1), ("shuffled", 2)):
            estimate = frames.FramesExporter(dataset, frames.FramesOptions(order=order)).estimate()  # type: ignore[arg-type]
            receipt = exported(source, tmp_path / order, order=order)
            assert 0.3 * receipt.bytes < estimate / times <= receipt.bytes
    assert json.loads((source / "dataset.json").read_text())["kind"] == "episodes"
