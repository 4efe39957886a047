"""Adding to a finished dataset: nothing that is there is touched, and a half-done append is not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import (
    jpeg,
    make_demonstrations,
    make_episode,
    make_pictures,
    make_schema,
    make_spec,
    run_cli,
    shard_bytes,
    write_dataset,
)

import vrl3data
from vrl3data import index, manifest
from vrl3data.errors import DestinationError, SourceError
from vrl3data.validation import validate
from vrl3data.writer import Writer


def append(path: Path, count: int = 2, first: int = 10, source: str = "more", **more: str) -> None:
    with Writer(path, make_spec(source=source), append=True) as writer:
        for number in range(first, first + count):
            writer.write(make_episode(number, **more))


def test_new_shards_follow_and_old_ones_stay(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 3)
    before, began = shard_bytes(path), manifest.read(path)
    append(path)
    append(path, 1, 20, "third", split="val")
    assert {name: data for name, data in shard_bytes(path).items() if name in before} == before
    with vrl3data.open(path) as dataset:
        assert [item.name for item in dataset] == [f"episode-{n}" for n in (0, 1, 2, 10, 11, 20)]
        assert (dataset[4]["action"] == make_episode(11).values["action"]).all()
        found = dataset.manifest
        assert [int(key) for key in dataset.index["key"].to_pylist()] == [0, 1, 2, 3, 4, 0]
    assert began is not None and (found.dataset_id, found.provenance) == (began.dataset_id, began.provenance)
    assert [made["source"]["identity"] for made in found.appended] == ["more", "third"]
    assert sorted(shard_bytes(path)) == ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert validate(path).ok
    (path / "index.parquet").unlink()
    (path / "dataset.json").unlink()
    with vrl3data.open(path) as dataset:  # all of it follows from the shards
        assert (dataset.manifest.fingerprint, len(dataset)) == (found.fingerprint, 6)
        assert dataset.manifest.appended == found.appended


def test_an_append_that_was_done_is_not_done_again(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    append(path)
    before = shard_bytes(path), (path / "dataset.json").read_bytes()
    with Writer(path, make_spec(source="more"), append=True) as writer:
        assert writer.complete
    assert before == (shard_bytes(path), (path / "dataset.json").read_bytes())


def test_an_interrupted_append_is_not_seen_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = write_dataset(tmp_path / "whole", 2)
    append(whole, 3)
    path = write_dataset(tmp_path / "set", 2)
    with pytest.raises(RuntimeError), Writer(path, make_spec(source="more"), append=True) as writer:
        writer.write(make_episode(10))
        raise RuntimeError
    with vrl3data.open(path) as dataset:
        assert len(dataset) == 2
    with pytest.raises(DestinationError, match=r"was begun here and not finished: source.identity: \"more\" there"):
        append(path, source="another")
    with Writer(path, make_spec(source="more"), append=True) as writer:
        assert writer.has("episode-10") and not writer.has("episode-11")
        for number in (11, 12):
            writer.write(make_episode(number))
    assert shard_bytes(path) == shard_bytes(whole)
    assert (path / index.INDEX).read_bytes() == (whole / index.INDEX).read_bytes()
    assert validate(path).ok


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="no finished dataset to append to"):
        append(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    path = write_dataset(tmp_path / "set", 2)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(DestinationError, match='obs.image.top.codec: "raw" there, "png" now'):
        Writer(path, make_spec(make_schema("png"), source="more"), append=True)
    with pytest.raises(DestinationError, match='licence: "unknown" there, "mit" now'):
        Writer(path, make_spec(source="more", license="mit"), append=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    with pytest.raises(DestinationError, match="a sample of this name is already"):
        Writer(path, make_spec(source="abc", shard_size=999_999), append=True).write(make_episode(0))
    with vrl3data.open(path) as dataset:
        assert len(dataset) == 2


@pytest.mark.slow
def test_the_command_appends_and_verifies_sources(tmp_path: Path) -> None:
    one, two = make_pictures(tmp_path / "one"), make_pictures(tmp_path / "two", 4)
    out = tmp_path / "out"
    assert run_cli("convert", "imagenet", one, out, "--append").returncode == 2
    assert run_cli("convert", "imagenet", one, out, "--jobs", "1").returncode == 0
    found = run_cli("convert", "imagenet", two, out, "--append", "--jobs", "1", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1])["samples"] == 10
    again = run_cli("convert", "imagenet", two, out, "--append", "--verify-source", "--jobs", "1")
    assert again.returncode == 0, again.stderr
    assert "already whole" in again.stdout and "4 source files have the content they had" in again.stdout
    changed = next(two.rglob("picture_3*"))
    data = bytearray(changed.read_bytes())
    data[-3] ^= 1  # the same size: only the hash knows
    changed.write_bytes(data)
    refused = run_cli("convert", "imagenet", two, out, "--append", "--verify-source", "--jobs", "1")
    assert refused.returncode == 3
    assert "has changed since it was converted" in refused.stderr and changed.name in refused.stderr
    assert validate(out).ok


def test_sources_are_verified_before_anything_is_reused(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle")
    vrl3data.convert("adroit", source, tmp_path / "out", {"image_size": 16, "render": "fast"}, verify_source=True)
    receipt = vrl3data.convert("adroit", source, tmp_path / "out", {"image_size": 16, "render": "fast"},
                               verify_source=True)  # fmt: skip
    assert receipt.already_complete and "1 source files have the content they had" in receipt.notes
    pictures = make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", pictures, tmp_path / "images")
    next(pictures.rglob("*_4.JPEG")).write_bytes(jpeg(60, 64, 99))
    # Another size means another source: that is found without hashing, and says so.
    with pytest.raises((DestinationError, SourceError), match="another dataset|has changed"):
        vrl3data.convert("imagenet", pictures, tmp_path / "images", verify_source=True)


@pytest.mark.parametrize("storage", ["ram", "stream"])
def test_an_open_reader_does_not_notice_an_append(tmp_path: Path, storage: str) -> None:
    path = write_dataset(tmp_path / "set", 4)
    with vrl3data.open(path) as dataset:
        append(path, 3, split="before")  # a split that comes first
        assert [item.name for item in dataset] == [f"episode-{n}" for n in range(4)]
        assert (dataset[0]["action"] == make_episode(0, 4).values["action"]).all()
        with dataset.windows(2, features=("obs.state",), cameras=(), storage=storage, epochs=1, workers=1) as batches:
            seen = {int(n) for batch in batches for n in batch["episode"]}
        assert seen == {0, 1, 2, 3}
    with vrl3data.open(path) as dataset:
        assert dataset[0].name == "episode-10"


def test_an_append_of_nothing_leaves_no_trace(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    with Writer(path, make_spec(source="more"), append=True):
        pass
    assert validate(path).ok


def test_sources_of_an_unfinished_append_are_verified(tmp_path: Path) -> None:
    vrl3data.convert("imagenet", make_pictures(tmp_path / "one"), tmp_path / "out")
    more = make_pictures(tmp_path / "two", 4)
    broken = sorted(more.rglob("*.JPEG"))[-1]
    whole = broken.read_bytes()
    broken.write_bytes(b"\xff\xd8\xff no picture".ljust(len(whole)))
    with pytest.raises(SourceError):
        vrl3data.convert("imagenet", more, tmp_path / "out", append=True)
    broken.write_bytes(whole)
    first = sorted(more.rglob("*.JPEG"))[0]
    first.write_bytes(first.read_bytes()[:-2] + b"\xff\xd8")
    with pytest.raises(SourceError, match="has changed since it was converted"):
        vrl3data.convert("imagenet", more, tmp_path / "out", append=True, verify_source=True)
