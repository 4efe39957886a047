"""RLDS and Open X sets: framing, messages, features.json, the last step, what is missing, and what is broken."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import make_rlds as make
import numpy as np
import pytest
from conftest import make_pictures, shard_bytes
from PIL import Image

import vrl3data
from converters.base import recognise
from converters.rlds.converter import RldsConverter, RldsOptions
from converters.run import Receipt, RunOptions, run
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate

FIRST = "toy-train.tfrecord-00000-of-00001"


def convert(source: Path, dest: Path, jobs: int = 1, on_error: Any = "stop", **options: Any) -> Receipt:
    receipt = run(RldsConverter([source], RldsOptions(**options)), dest, RunOptions(jobs=jobs, on_error=on_error))
    assert not [finding for finding in validate(dest).findings if finding.severity == "error"]
    return receipt


def one(tmp_path: Path, lists: Mapping[str, Any], steps: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The only sample of a set of one episode, described by `steps` beside what all episodes have."""
    layout = make.described({**make.STEPS, **(steps or {})}, **make.METADATA)
    source = make.write_set(tmp_path / "source", {"train": [[lists]]}, layout)
    convert(source, tmp_path / "out", **options)
    return vrl3data.open(tmp_path / "out")[0]


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_everything_of_a_set_arrives(tmp_path: Path) -> None:
    source = make.write_set(tmp_path)
    receipt = convert(source, tmp_path / "out")
    assert receipt.manifest.name == "rlds-toy"
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 3, "val": 1}
    assert receipt.manifest.description == "Made up."
    episodes = [make.episode(0), make.episode(1, 7, False), make.episode(2, 4), make.episode(3)]
    with vrl3data.open(tmp_path / "out") as dataset:
        for item, lists in zip(dataset, episodes, strict=True):
            count = len(lists["steps/reward"])
            assert (item.length, item.meta["final_observation"], item.meta["task"]) == (count, 0, "pick up the cup")
            assert np.array_equal(item["action"], lists["steps/action"]) and item["action"].dtype == np.float32
            assert np.array_equal(item["reward"], lists["steps/reward"])
            assert np.array_equal(item["obs.proprio"], lists["steps/observation/state"])
            assert item["obs.proprio"].dtype == np.float64
            assert np.array_equal(item["obs.gripper"], lists["steps/observation/gripper"])
            assert item["obs.gripper"].dtype == np.int32
            assert np.array_equal(item["language_embedding"], lists["steps/language_embedding"][:1])
            expected = [pixels(file) for file in lists["steps/observation/image"]]
            assert np.array_equal(item["obs.image.image"], expected)
            terminated = int(lists["steps/is_terminal"][-1])
            assert (item.meta["terminated"], item.meta["truncated"]) == (terminated, 1 - terminated)
            assert item.source_meta["episode_metadata/rate"] == 10.5
        assert dataset[3].meta["split"] == "val"
        assert [item.name for item in dataset][1:3] == ["toy/train-00000/000001", "toy/train-00001/000000"]
        assert dataset[2].source_meta["episode_metadata/file_path"] == "recorded/2.npy"
        assert dataset[2].meta["source"] == "toy/1.0.0/toy-train.tfrecord-00001-of-00002"
        assert dataset.schema["obs.image.image"].description == "A camera."


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    source = make.write_set(tmp_path)
    convert(source, tmp_path / "one")
    convert(source, tmp_path / "two", jobs=2)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")


def empty_last(number: int, count: int = 5, value: float = 0) -> dict[str, Any]:
    lists = make.episode(number, count)
    lists["steps/action"][-1] = value
    lists["steps/reward"][:] = np.arange(count)[::-1]
    lists["steps/discount"][-1] = 0.5
    return lists


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_last_step_without_an_action_is_the_final_observation(tmp_path: Path, value: float) -> None:
    source = make.write_set(tmp_path, {"train": [[empty_last(0, 5, value), empty_last(1, 3, value)]]})
    receipt = convert(source, tmp_path / "out")
    assert any("last step: only an observation, since its action" in note for note in receipt.notes)
    assert receipt.manifest.provenance["options"]["last_step"] == "observation"
    item = vrl3data.open(tmp_path / "out")[0]
    assert (item.length, item.meta["final_observation"]) == (4, 1)
    assert [len(item[name]) for name in ("action", "reward", "obs.proprio", "obs.image.image")] == [4, 4, 5, 5]
    assert item.source_meta["last_step"] == {"discount": 0.5}


def test_the_last_step_can_be_said(tmp_path: Path) -> None:
    source = make.write_set(tmp_path, {"train": [[empty_last(0)]]})
    said = convert(source, tmp_path / "action", last_step="action")
    assert said.manifest.provenance["options"]["last_step"] == "action"
    assert vrl3data.open(tmp_path / "action")[0].length == 5
    full = make.write_set(tmp_path / "full", {"train": [[make.episode(0)]]})
    convert(full, tmp_path / "observation", last_step="observation")
    kept = vrl3data.open(tmp_path / "observation")[0].source_meta["last_step"]
    assert kept["reward"] == 1 and kept["action"] == pytest.approx(make.episode(0)["steps/action"][-1].tolist())
    with pytest.raises(ConfigError, match="last_step 'last'; there are: action, auto, observation"):
        RldsConverter([source], RldsOptions(last_step="last"))  # type: ignore[arg-type]


def test_one_record_with_an_action_at_its_end_decides(tmp_path: Path) -> None:
    source = make.write_set(tmp_path, {"train": [[empty_last(0), make.episode(1)]]})
    receipt = convert(source, tmp_path / "out")
    assert any("is not zero in 1 of the 2 records" in note for note in receipt.notes)
    assert [item.length for item in vrl3data.open(tmp_path / "out")] == [5, 5]


def test_a_reward_at_the_end_is_never_lost(tmp_path: Path) -> None:
    lists = make.episode(0)
    lists["steps/action"][-1] = 0
    assert one(tmp_path, lists)["reward"].tolist() == [0, 0, 0, 0, 1]


def test_marks_where_they_do_not_belong_are_told(tmp_path: Path) -> None:
    lists = {**make.episode(0), "steps/is_last": np.zeros(5, bool), "steps/is_terminal": np.zeros(5, bool)}
    item = one(tmp_path, lists)
    assert (item.meta["terminated"], item.meta["truncated"], item.length) == (0, -1, 5)
    assert item.source_meta["is_last"] == []


def test_a_set_without_marks_of_its_end(tmp_path: Path) -> None:
    lists = {key: value for key, value in make.episode(0).items() if key not in ("steps/is_last", "steps/is_terminal")}
    item = one(tmp_path, lists)
    assert (item.meta["terminated"], item.meta["truncated"]) == (-1, -1)


def test_without_a_description_shapes_follow_from_the_first_record(tmp_path: Path) -> None:
    lists = make.episode(0) | {"steps/odd": np.arange(7)}
    source = make.write_set(tmp_path, {"train": [[lists]]}, layout={})
    receipt = convert(source, tmp_path / "out")
    assert "there is no features.json: shapes are guessed from the first record" in receipt.notes
    assert "not read: steps/odd: its length does not fit 5 rows" in receipt.notes
    item = vrl3data.open(tmp_path / "out")[0]
    assert np.array_equal(item["action"], lists["steps/action"])
    assert item["obs.image.image"].shape == (5, 16, 20, 3) and item["obs.gripper"].shape == (5,)
    assert item.meta["task"] == "pick up the cup" and item.meta["terminated"] == 1


def test_one_file_finds_the_description_beside_it(tmp_path: Path) -> None:
    source = make.write_set(tmp_path) / "1.0.0" / "toy-val.tfrecord-00000-of-00001"
    receipt = convert(source, tmp_path / "out")
    assert receipt.manifest.samples == 1 and "obs.proprio" in receipt.manifest.schema
    item = vrl3data.open(tmp_path / "out")[0]
    assert (item.meta["split"], item.name) == ("val", "toy-val/val-00000/000000")


def test_a_camera_that_an_episode_lacks_is_absent(tmp_path: Path) -> None:
    black = make.picture(np.zeros((16, 20, 3), np.uint8))
    camera = {"observation": make.features(left=make.image([16, 20, 3]), right=make.image([16, 20, 3]))}
    files = make.episode(0)["steps/observation/image"]
    episodes = [
        make.episode(0) | {"steps/observation/left": [b""] * 5, "steps/observation/right": files},
        make.episode(1) | {"steps/observation/left": files, "steps/observation/right": [black] * 5},
        make.episode(2) | {"steps/observation/left": files, "steps/observation/right": [*files[:3], b"", black]},
    ]
    source = make.write_set(tmp_path, {"train": [episodes]}, make.described({**make.STEPS, **camera}))
    convert(source, tmp_path / "out")
    items = list(vrl3data.open(tmp_path / "out"))
    assert [item.meta["absent"] for item in items] == ["obs.image.left", "obs.image.right", ""]
    assert not items[2]["obs.image.right"][3:].any() and items[2]["obs.image.right"][:3].any(axis=(1, 2, 3)).all()
    assert items[2].source_meta["missing_pictures"] == {"observation/right": [3]}


def test_a_camera_that_no_record_has_is_said(tmp_path: Path) -> None:
    source = make.write_set(tmp_path, {"train": [[make.episode(0) | {"steps/observation/image": [b""] * 5}]]})
    receipt = convert(source, tmp_path / "out")
    assert "observation/image is empty or black in the 1 records that were looked at: absent there" in receipt.notes


def test_jpeg_files_stay_as_they_are_and_depth_is_depth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [make.picture(rng.integers(0, 255, (150, 140, 3), dtype=np.uint8), "JPEG") for _ in range(5)]
    depth_NHW = rng.integers(0, 60_000, (5, 16, 20), dtype=np.uint16)
    more = {
        "steps/observation/wrist": files,
        "steps/observation/depth": [make.picture(row[..., None]) for row in depth_NHW],
    }
    steps = {
        "observation": make.features(wrist=make.image([-1, -1, 3], ""), depth=make.image([16, 20, 1], "png", "uint16"))
    }
    item = one(tmp_path, make.episode(0) | more, steps)
    feature = item.dataset.schema["obs.image.wrist"]
    assert (feature.codec, feature.shape) == ("jpeg", (150, 140, 3))
    assert bytes(item._coded(feature).body) == b"".join(files)
    assert np.array_equal(item["obs.depth.depth"], depth_NHW)


def test_pictures_of_any_size_when_they_are_resized(tmp_path: Path) -> None:
    larger = make.episode(1) | {"steps/observation/image": [make.picture(np.full((32, 40, 3), 9, np.uint8))] * 5}
    source = make.write_set(tmp_path, {"train": [[make.episode(0), larger]]})
    convert(source, tmp_path / "out", image_size=8)
    assert vrl3data.open(tmp_path / "out")[1]["obs.image.image"].shape == (5, 8, 8, 3)
    with pytest.raises(SourceError, match=r"expected a picture of 16x20, found 32x40 .*step 0"):
        convert(source, tmp_path / "refused")


def test_every_way_to_store_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes_NHW = rng.integers(0, 256, (5, 30, 40), dtype=np.uint8)
    cloud_NPD = rng.normal(size=(5, 6, 3)).astype(np.float32)
    counts_N = np.array([2**63 + 5, 0, 1, 2**64 - 1, 7], np.uint64)
    single = b"".join(make.varint(1 * 8 + 5) + struct.pack("<f", value) for value in (1.5, -2, 3, 4, 5))
    wide = b"".join(make.varint(1 * 8) + make.varint(value) for value in (-5, 0, 300, 2**40, 1))
    more = {
        "steps/codes": codes_NHW, "steps/cloud": [zlib.compress(row.tobytes()) for row in cloud_NPD],
        "steps/plain": [row.tobytes() for row in cloud_NPD], "steps/counts": counts_N.view(np.int64),
        "steps/single": make.field(2, single), "steps/wide": make.field(3, wide), "steps/kind": np.arange(5),
        "steps/pair/ragged_flat_values": np.arange(10, dtype=np.float32),
        "steps/pair/ragged_row_lengths_0": np.full(5, 2),
        "episode_metadata/box": np.float32([1, 2, 3, 4]),
    }  # fmt: skip
    steps = {
        "codes": make.tensor([30, 40], "uint8"), "cloud": make.tensor([6, 3], "float32", "zlib"),
        "plain": make.tensor([6, 3], "float32", "bytes"), "counts": make.scalar("uint64"),
        "single": make.scalar("float32"), "wide": make.scalar("int64"),
        "pair": make.sequence(make.scalar("float32"), 2),
        "kind": {"pythonClassName": make.CLASS + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "9"}},
    }  # fmt: skip
    box = {"pythonClassName": make.CLASS + "bounding_boxes.BBoxFeature"}
    layout = make.described({**make.STEPS, **steps}, **make.METADATA, box=box)
    convert(make.write_set(tmp_path, {"train": [[make.episode(0) | more]]}, layout), tmp_path / "out")
    item = vrl3data.open(tmp_path / "out")[0]
    assert np.array_equal(item["codes"], codes_NHW) and item["codes"].dtype == np.uint8
    assert np.array_equal(item["cloud"], cloud_NPD) and np.array_equal(item["plain"], cloud_NPD)
    assert item["counts"].tolist() == counts_N.tolist()
    assert item["single"].tolist() == [1.5, -2, 3, 4, 5] and item["wide"].tolist() == [-5, 0, 300, 2**40, 1]
    assert item["pair"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]] and item["kind"].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert item["episode_metadata.box"].tolist() == [[1, 2, 3, 4]]


def test_large_tensors_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.rlds.steps.BLOCK_BYTES", 200)
    cloud_NPD = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    more = {"steps/cloud": [zlib.compress(row.tobytes()) for row in cloud_NPD]}
    steps = {"cloud": make.tensor([6, 3], "float32", "zlib")}
    item = one(tmp_path, make.episode(0) | more, steps, last_step="observation")
    assert np.array_equal(item["cloud"], cloud_NPD)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    steps = {
        "sound": {"pythonClassName": make.CLASS + "audio_feature.Audio"}, "brain": make.tensor([2], "bfloat16"),
        "any": make.tensor([-1]), "words": make.sequence(make.text()), "rgba": make.image([4, 4, 4]),
        "packed": make.tensor([2], "float32", "lz4"), "deep": make.image([4, 4, 3], "png", "uint16"),
    }  # fmt: skip
    source = make.write_set(tmp_path, layout=make.described({**make.STEPS, **steps}, **make.METADATA))
    notes = "\n".join(convert(source, tmp_path / "out").notes)
    assert "steps/sound: features of the class Audio are not read" in notes
    assert "steps/brain: the dtype bfloat16 is not read" in notes
    assert "steps/any: rows of the shape [-1] differ from step to step or are empty" in notes
    assert "steps/words: a sequence whose length may differ from step to step is not read" in notes
    assert "steps/rgba: pictures of uint8 and shape [4, 4, 4] are not read" in notes
    assert "steps/packed: the encoding 'lz4' is not read" in notes
    assert "steps/deep: pictures of uint16 with more than one channel are not read" in notes


def test_text_that_changes_and_numbers_that_json_has_not(tmp_path: Path) -> None:
    more = {"steps/language_instruction": [b"go", b"go", b"stop", b"\xff", b""], "steps/note": [b"same"] * 5,
            "episode_metadata/rate": np.float32([np.nan])}  # fmt: skip
    item = one(tmp_path, make.episode(0) | more, {"note": make.text()})
    assert item.meta["task"] == ""
    assert item.source_meta["language_instruction"] == ["go", "go", "stop", "\\xff", ""]
    assert (item.source_meta["note"], item.source_meta["episode_metadata/rate"]) == ("same", "nan")


def test_an_action_in_parts_becomes_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    move_ND, grip_N = rng.random((5, 2), dtype=np.float32), rng.random(5, dtype=np.float32)
    lists = {key: value for key, value in make.episode(0).items() if key != "steps/action"}
    lists |= {"steps/action/move": move_ND, "steps/action/grip": grip_N, "steps/action/end": np.arange(5)}
    parts = make.features(move=make.tensor([2]), grip=make.scalar("float32"), end=make.scalar("int32"))
    item = one(tmp_path, lists, {"action": parts})
    assert np.array_equal(item["action"], np.c_[move_ND, grip_N]) and item["action.end"].tolist() == [0, 1, 2, 3, 4]
    assert item.dataset.schema["action"].names == ("move.0", "move.1", "grip")


def test_an_embedding_that_changes_later(tmp_path: Path) -> None:
    changing = make.episode(9)
    changing["steps/language_embedding"][2:] += 1
    source = make.write_set(tmp_path, {"train": [[*map(make.episode, range(8)), changing]]})
    with pytest.raises(SourceError, match=r"changes within the episode.*rows = 'step'.*000008, feature .*language_emb"):
        convert(source, tmp_path / "out")
    converter = RldsConverter([source], RldsOptions())
    rules = converter.mapping().to_toml(converter.known())
    assert 'source = ["language_embedding"]' in rules
    edited = rules.replace('source = ["language_embedding"]', 'source = ["language_embedding"]\nrows = "step"')
    (tmp_path / "map.toml").write_text(edited)
    convert(source, tmp_path / "mapped", mapping=str(tmp_path / "map.toml"))
    item = vrl3data.open(tmp_path / "mapped")[8]
    assert np.array_equal(item["language_embedding"], changing["steps/language_embedding"])


def test_notes_on_what_is_missing_or_there_twice(tmp_path: Path) -> None:
    info = {"splits": [{"name": "train", "shardLengths": ["2", "3"]}, {"name": "test", "shardLengths": ["1"]}],
            "redistributionInfo": {"license": "CC-BY-4.0"}}  # fmt: skip
    source = make.write_set(tmp_path, {"train": [[make.episode(0), make.episode(0)], [], []]}, info=info)
    (source / "1.0.0" / "toy-train.tfrecord-00002-of-00003").unlink()
    receipt = convert(source, tmp_path / "out")
    notes = "\n".join(receipt.notes)
    assert "1 of 2 records are copies of others" in notes
    assert "split train: 2 of 3 shards are there" in notes
    assert "toy-train.tfrecord-00001-of-00003: dataset_info.json promises 3 records, 0 were found" in notes
    assert "split test: dataset_info.json names it, but it has no files here" in notes
    assert receipt.manifest.license == "CC-BY-4.0"


def test_names_of_splits_that_we_cannot_have(tmp_path: Path) -> None:
    source = make.write_set(tmp_path, {"all": [[make.episode(0)]], "Test.Easy": [[make.episode(1)]]})
    assert sorted(convert(source, tmp_path / "out").manifest.splits) == ["all_", "test_easy"]


def test_dataset_info_that_is_broken_is_a_note(tmp_path: Path) -> None:
    source = make.write_set(tmp_path)
    (source / "1.0.0" / "dataset_info.json").write_text("[" * 100_000)
    assert any("dataset_info.json cannot be understood" in note for note in convert(source, tmp_path / "out").notes)


def test_recognition(tmp_path: Path) -> None:
    source = make.write_set(tmp_path)
    shard = source / "1.0.0" / "toy-val.tfrecord-00000-of-00001"
    assert [recognise(path) for path in (source, source / "1.0.0", shard, tmp_path)] == ["rlds"] * 4
    shard.write_bytes(b"damaged")
    assert recognise(shard) == "rlds"
    assert not RldsConverter.recognises(make_pictures(tmp_path / "pictures"))
    (tmp_path / "other.bin").write_bytes(b"")
    assert not RldsConverter.recognises(tmp_path / "other.bin")


@pytest.mark.realdata
def test_bridge(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "rlds/bridge_debug"
    receipt = convert(source, tmp_path / "out")
    shards = sorted(source.rglob("*.tfrecord*"))
    records = [lists for shard in shards for lists in make.decode(shard)]
    assert receipt.manifest.samples == len(records) and len(records) % 25 == 0
    assert any("last step: has an action" in note for note in receipt.notes)
    with vrl3data.open(tmp_path / "out") as dataset:
        for item, lists in zip(dataset, records, strict=True):
            assert item["action"].tobytes() == lists["steps/action"].tobytes()
            assert item["obs.proprio"].tobytes() == lists["steps/observation/state"].tobytes()
            assert item.meta["task"].encode() == lists["steps/language_instruction"][0]
            for camera in ("image_0", "image_1", "image_2"):
                expected = [pixels(file) for file in lists[f"steps/observation/{camera}"]]
                assert np.array_equal(item[f"obs.image.{camera}"], expected)
            assert item.absent == ("obs.image.image_3",)
            assert item.source_meta["episode_metadata/episode_id"] == lists["episode_metadata/episode_id"][0]
