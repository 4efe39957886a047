"""What a crash, a power cut or a kill may leave, and what writing on makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg, make_episode, make_spec, shard_bytes, write_dataset

import vrl3data
from vrl3data import codecs, encode, index, scan, shard
from vrl3data.errors import ConfigError, DamagedError, DestinationError, FormatError
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.splits import SplitWriter
from vrl3data.validation import validate
from vrl3data.writer import Writer


def images_spec(shard_size: int = 10**7) -> DatasetSpec:
    picture = Feature("image", "uint8", (-1, -1, 3), "episode", color="rgb")
    label = Feature("cls", "int64", (), "episode", codec="text", names=("a", "b"))
    schema = Schema("images", (codecs.describe(picture, "png"), label))
    return DatasetSpec(schema, "pictures", Provenance("test", source_identity="abc", shard_size=shard_size))


def picture(number: int, split: str = "train") -> Episode:
    pixels = np.random.default_rng(number).integers(0, 256, (1, 6, 6, 3), dtype=np.uint8)
    values = {"image": pixels, "cls": np.array([number % 2])}
    return Episode(f"{number:04d}", values, label=number % 2, class_name="ab"[number % 2], split=split)


def interrupted(path: Path, count: int = 20) -> Path:
    """An image dataset whose writer was stopped; returns its `.part`."""
    writer = Writer(path, images_spec())
    for number in range(count):
        writer.write(picture(number))
    writer.confirm()
    writer.close()
    return index.shard_files(path)[0]


def finish(path: Path, count: int = 20) -> None:
    with Writer(path, images_spec()) as writer:
        for number in range(count):
            if not writer.has(f"{number:04d}"):
                writer.write(picture(number))


def test_an_empty_part_is_a_beginning(tmp_path: Path) -> None:
    want = shard_bytes(write_dataset(tmp_path / "whole", 2))
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "train-000000.tar.part").touch()
    with pytest.raises(ConfigError, match="holds no sample yet"):
        vrl3data.open(tmp_path / "set")
    assert shard_bytes(write_dataset(tmp_path / "set", 2)) == want


def test_a_shard_without_samples_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "set", images_spec())
    writer.write(picture(0))
    assert scan.scan(index.shard_files(tmp_path / "set")[0]).head["kind"] == "images"
    writer.close()


@pytest.mark.parametrize("what", ["payload", "header", "zeros to the end"])
def test_blocks_of_unconfirmed_images_that_never_reached_the_disk(tmp_path: Path, what: str) -> None:
    """A file system may keep a later page and lose an earlier one."""
    finish(tmp_path / "whole")
    part = interrupted(tmp_path / "set")
    entry = scan.scan(part).entries[15]
    start, size = entry.members["png"]
    data = bytearray(part.read_bytes())
    if what == "payload":
        data[start : start + size] = bytes(size)
    elif what == "header":
        data[start - 512 : start] = bytes(512)
    else:
        data[start:] = bytes(len(data) - start)
    part.write_bytes(data)
    finish(tmp_path / "set")
    assert shard_bytes(tmp_path / "set") == shard_bytes(tmp_path / "whole")
    assert validate(tmp_path / "set").ok


def test_damage_before_confirmed_samples_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = interrupted(tmp_path / "set")
    start, _ = scan.scan(part).entries[3].members["png"]
    whole = part.read_bytes()
    monkeypatch.setattr("vrl3data.writer.CONFIRM_IMAGES", 10)
    for place in (start + 20, start - 500):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedError):
            Writer(tmp_path / "set", images_spec())
        assert len(part.read_bytes()) == len(whole)


def test_what_is_on_disk_is_a_beginning_over_all_splits(tmp_path: Path) -> None:
    """A sample of another split is written only when those before it are confirmed."""
    writer = Writer(tmp_path / "set", images_spec())
    for number in range(5):
        writer.write(picture(number))
    writer.write(picture(5, "val"))
    train = scan.scan(tmp_path / "set" / "data" / "train-000000.tar.part")
    assert len(train.entries) == 5
    writer.close()


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_crash import images_spec, picture
from vrl3data.writer import Writer
writer = Writer({path!r}, images_spec())
for number in range(4000):
    writer.write(picture(number, "train" if number < 300 else "val"))
    if number % 50 == 0:
        print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [50, 250, 300, 350, 900, 1500])
def test_sigkill_among_images_of_two_splits(tmp_path: Path, moment: int) -> None:
    path = tmp_path / "set"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= moment:
                os.kill(process.pid, signal.SIGKILL)
                break
    with Writer(path, images_spec()) as writer:
        present = [writer.has(f"{number:04d}") for number in range(4000)]
        assert present == sorted(present, reverse=True)  # a beginning, without gaps
        for number in range(1600):
            if not present[number]:
                writer.write(picture(number, "train" if number < 300 else "val"))
    assert validate(path).ok


def test_a_member_that_is_too_large_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(make_episode(0))
        with monkeypatch.context() as patch:
            patch.setattr(shard, "MAX_MEMBER", 3000)
            patch.setattr(encode, "SPOOL_BYTES", 100)
            with pytest.raises(FormatError, match="the format allows 3000"):
                writer.write(make_episode(1, length=9))
            assert not list(writer.spool.iterdir())
        writer.write(make_episode(2))
    assert [item.name for item in vrl3data.open(tmp_path / "set")] == ["episode-0", "episode-2"]
    assert validate(tmp_path / "set").ok


def test_a_sample_that_fails_leaves_no_spool_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "SPOOL_BYTES", 100)
    with Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(make_episode(0))
        episode = make_episode(1)
        bad = Episode("bad", {**episode.values, "timestamp": np.zeros(2, np.int64)}, length=5, final_observation=True)
        with pytest.raises(vrl3data.errors.SchemaError):
            writer.write(bad)
        assert not list(writer.spool.iterdir())


def test_two_versions_of_a_source_are_not_mixed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "set", make_spec())
    writer.write(make_episode(0, source="log.bag", source_sha256="1" * 64))
    writer.close()
    with Writer(tmp_path / "set", make_spec()) as writer:
        with pytest.raises(DestinationError, match="log.bag has changed since the dataset was begun"):
            writer.write(make_episode(1, source="log.bag", source_sha256="2" * 64))
        writer.write(make_episode(1, source="log.bag", source_sha256="1" * 64))


def test_a_flipped_bit_in_the_index_is_seen(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 3)
    file = path / "index.parquet"
    whole = file.read_bytes()
    with vrl3data.open(path) as dataset:
        want = dataset.index.table().to_pylist()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 60, replace=False):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        with vrl3data.open(path) as dataset:  # made anew from the shards
            assert dataset.index.table().to_pylist() == want


def test_other_files_beside_the_shards_do_not_matter(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    for name in ("._train-000000.tar", "notes.txt", "train-000000.tar.bak", "backup.tar", "Train-000001.tar"):
        (path / "data" / name).write_bytes(b"not ours")
    assert len(vrl3data.open(path)) == 2
    assert validate(path).ok


def test_many_shards_take_few_file_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrl3data.members.MAX_MAPPED", 2)
    path = write_dataset(tmp_path / "set", 6, make_spec(shard_size=15_000))
    with vrl3data.open(path) as dataset:
        frames = [item["obs.image.top"] for item in dataset]
        assert len(index.shard_files(path)) == 6
        assert len(dataset.members.maps) == 2
        assert all(frame.sum() > 0 for frame in frames)


def test_readers_and_a_writer_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "set"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from conftest import *\nwrite_dataset(Path({str(path)!r}), 500, make_spec(shard_size=20_000))"
    )
    seen = [0]
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while process.poll() is None:
            with suppress(ConfigError), vrl3data.open(path) as dataset:  # at first there is none
                seen.append(len(dataset))
                assert not len(dataset) or dataset[-1].name == f"episode-{len(dataset) - 1}"
            time.sleep(0.01)
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def test_small_files_that_promise_huge_pictures_are_not_decoded(tmp_path: Path) -> None:
    feature = codecs.describe(Feature("obs.image.top", "uint8", (4, 4, 3), "state"), "png")
    from PIL import Image

    Image.new("RGB", (5000, 5000)).save(tmp_path / "huge.png")
    with pytest.raises(DamagedError, match=r"expected an image of shape \(4, 4, 3\), found 5000 x 5000"):
        codecs.find("png").decode((tmp_path / "huge.png").read_bytes(), feature, 1)
    with pytest.raises(DamagedError, match="not a readable JPEG"):
        codecs.find("jpeg").decode(jpeg(4, 4)[:60], codecs.describe(feature, "jpeg:90"), 1)


def test_sealed_nonsense_is_refused(tmp_path: Path) -> None:
    """A head or schema that is whole by its hash and yet makes no sense."""
    path = write_dataset(tmp_path / "set", 1)
    file = path / "data" / "train-000000.tar"
    whole = file.read_bytes()
    (path / "dataset.json").unlink()
    head = scan.scan(file).head
    old = shard.member_header("__meta__", len(shard.sealed(shard.dumps(_bare(head)))))
    assert whole.startswith(old)
    rest = whole[512 + shard.padded(len(shard.sealed(shard.dumps(_bare(head))))) :]
    for change, match in [
        ({"schema": {"features": 3}}, "the schema cannot be understood"),
        ({"schema": {"features": [{"name": "x"}]}}, "a feature of the schema cannot be understood"),
        ({"split": "../../x"}, "is not a name"),
        ({"dataset_id": 7}, "expected str for 'dataset_id'"),
        ({"provenance": None}, "expected dict for 'provenance'"),
    ]:
        sealed = shard.sealed(shard.dumps(_bare({**head, **change})))
        member = shard.member_header("__meta__", len(sealed)) + sealed + bytes(-len(sealed) % 512)
        file.write_bytes(member + rest)
        with pytest.raises(FormatError, match=match):
            vrl3data.open(path)
        assert not validate(path).ok


def _bare(head: dict[str, object]) -> dict[str, object]:
    return json.loads(json.dumps({key: value for key, value in head.items() if key != "meta_xxh3_128"}))


def test_an_interruption_inside_a_write_ends_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a sample may lie in the file: going on with this writer would make a dataset that no reader opens."""
    writer = Writer(tmp_path / "set", make_spec())
    writer.write(make_episode(0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SplitWriter, "sync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        writer.write(make_episode(1))
    with pytest.raises(DestinationError, match="this writer has failed"):
        writer.write(make_episode(2))
    writer.close()
    with Writer(tmp_path / "set", make_spec()) as again:
        for number in range(3):
            if not again.has(f"episode-{number}"):
                again.write(make_episode(number))
    assert validate(tmp_path / "set").ok


def test_a_zeroed_beginning_is_damage_and_not_an_empty_shard(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "set", make_spec())
    for number in range(3):
        writer.write(make_episode(number))
    writer.close()
    part = index.shard_files(tmp_path / "set")[0]
    data = part.read_bytes()
    part.write_bytes(bytes(512) + data[512:])
    with pytest.raises(DamagedError):
        Writer(tmp_path / "set", make_spec())
    assert part.stat().st_size == len(data)


def test_rows_of_another_size_are_not_addressed(tmp_path: Path) -> None:
    """An array with smaller rows than the schema says: mapped rows would lie outside of it."""
    path = write_dataset(tmp_path / "set", 2)
    with vrl3data.open(path) as dataset:
        features = [replace(f, shape=(64, 64, 3)) if f.is_image else f for f in dataset.schema.features]
        lying = replace(dataset.manifest, schema=replace(dataset.schema, features=tuple(features)))
        for storage in ("mmap", "ram", "stream"):
            with (
                vrl3data.Dataset(path, lying, dataset.index) as other,
                pytest.raises(DamagedError, match="expected rows"),
            ):
                vrl3data.load_episodes(other, ["obs.image.top"], storage=storage).array("obs.image.top")
