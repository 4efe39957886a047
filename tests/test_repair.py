"""repair: whole samples are saved, whatever is wrong around them, and what is lost is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import make_spec, run_cli, write_dataset

import vrl3data
from vrl3data import shard
from vrl3data.errors import DamagedError
from vrl3data.tools.repair import examine, repair
from vrl3data.tools.split import select
from vrl3data.validation import validate

COUNT = 7


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set", COUNT, make_spec(shard_size=30_000))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


def places(source: Path, member: str) -> list[tuple[Path, int]]:
    with vrl3data.open(source) as dataset:
        shards = dataset.index["shard"].to_pylist()
        offsets = dataset.index[f"{member}.offset"].to_pylist()
    return [(source / "data" / name, offset) for name, offset in zip(shards, offsets, strict=True)]


def saved(source: Path, tmp_path: Path) -> tuple[list[str], list[str]]:
    found, lost = repair(source, tmp_path / "out")
    assert validate(tmp_path / "out").ok
    with vrl3data.open(tmp_path / "out") as dataset:
        assert found.samples == len(dataset)
        return [item.name for item in dataset], [str(one) for one in lost]


def test_a_sound_dataset_loses_nothing(source: Path, tmp_path: Path) -> None:
    names, lost = saved(source, tmp_path)
    assert (len(names), lost) == (COUNT, [])
    with vrl3data.open(source) as old, vrl3data.open(tmp_path / "out") as new:
        assert old.manifest.fingerprint == new.manifest.fingerprint


@pytest.mark.parametrize(
    ("member", "shift", "reason"),
    [("action.npy", 130, "action.npy do not have their hash"), ("reward.npy", -500, "header of reward.npy is damaged"),
     ("meta.json", 5, "commit record meta.json is not whole")],
)  # fmt: skip
def test_one_damaged_sample_is_left_out(source: Path, tmp_path: Path, member: str, shift: int, reason: str) -> None:
    path, offset = places(source, member)[2]
    flip(path, offset + shift)
    names, lost = saved(source, tmp_path)
    assert names == [f"episode-{n}" for n in range(COUNT) if n != 2]
    assert len(lost) == 1 and reason in lost[0] and "000000002" in lost[0]


def test_a_header_of_a_commit_record_hides_its_sample_only(source: Path, tmp_path: Path) -> None:
    path, offset = places(source, "meta.json")[2]
    flip(path, offset - 400)
    names, lost = saved(source, tmp_path)
    assert "episode-2" not in names and len(names) == COUNT - 1
    assert lost == [f"{path.name}: sample 000000002 episode-2: it is gone"]


def test_truncated_swapped_and_missing_shards(source: Path, tmp_path: Path) -> None:
    files = sorted((source / "data").iterdir())
    assert len(files) >= 3
    with vrl3data.open(source) as dataset:
        homes = dict(zip([item.name for item in dataset], dataset.index["shard"].to_pylist(), strict=True))
    files[0].write_bytes(files[0].read_bytes()[:-3000])
    files[1].unlink()
    names, lost = saved(source, tmp_path)
    assert set(names) == {name for name, home in homes.items() if home != files[1].name} - {names_cut(homes, files[0])}
    assert len(names) + len(lost) == COUNT
    assert all("it is gone" in one for one in lost)


def names_cut(homes: dict[str, str], shard: Path) -> str:
    """The last sample of a shard."""
    return [name for name, home in homes.items() if home == shard.name][-1]


def test_without_manifest_and_index(source: Path, tmp_path: Path) -> None:
    (source / "dataset.json").write_text("{")
    (source / "index.parquet").write_bytes(b"nothing")
    assert saved(source, tmp_path) == ([f"episode-{n}" for n in range(COUNT)], [])


def test_without_index_the_number_of_lost_samples_is_known(source: Path) -> None:
    (source / "index.parquet").unlink()
    next((source / "data").iterdir()).unlink()
    found = examine(source)
    assert len(found.lost) == 1 and f"of {COUNT} samples in all are gone" in str(found.lost[0])


def test_when_nothing_is_left(source: Path, tmp_path: Path) -> None:
    for file in (source / "data").iterdir():
        file.write_bytes(bytes(2048))
    with pytest.raises(DamagedError, match="not one whole sample"):
        repair(source, tmp_path / "out")
    (source / "dataset.json").unlink()
    with pytest.raises(DamagedError, match="the schema is lost"):
        examine(source)


@pytest.mark.slow
def test_the_command_lists_and_says_so(source: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(source, tmp_path / "whole")
    path, offset = places(source, "action.npy")[0]
    flip(path, offset + 130)
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    found = run_cli("repair", source, tmp_path / "out", "--json")
    assert found.returncode == 5, found.stderr
    assert [one["name"] for one in json.loads(found.stdout)["lost"]] == ["episode-0"]
    looked = run_cli("repair", source)
    assert looked.returncode == 5 and "6 samples can be saved, 1 lost" in looked.stdout
    assert run_cli("repair", whole).returncode == 0
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


def test_only_what_counts_in_linked_shards_is_saved(source: Path, tmp_path: Path) -> None:
    with vrl3data.open(source) as dataset:
        select(dataset, tmp_path / "linked", "name in ('episode-1', 'episode-5')", virtual=True)
    found, lost = repair(tmp_path / "linked", tmp_path / "out")
    assert (found.samples, lost) == (2, ())


def test_shards_of_another_dataset_are_not_saved(source: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", COUNT, make_spec(shard_size=30_000, source="other"))
    for name in ("train-000000.tar", "train-000001.tar"):
        shutil.copy(other / "data" / name, source / "data" / name)
    found = examine(source)
    assert all(item.path.name not in ("train-000000.tar", "train-000001.tar") for item in found.whole)
    assert sum("belongs to dataset" in str(one) for one in found.lost) == 2


def test_a_sample_that_names_a_path_as_its_split_is_lost(source: Path, tmp_path: Path) -> None:
    path, offset = places(source, "meta.json")[0]
    data = path.read_bytes()
    size = int(data[offset - 512 + 124 : offset - 512 + 135], 8)
    meta = json.loads(data[offset : offset + size])
    del meta["meta_xxh3_128"]
    changed = shard.commit_bytes(meta | {"split": "../EV"}).ljust(size)
    assert len(shard.commit_bytes(meta | {"split": "../EV"})) == size
    path.write_bytes(data[:offset] + changed + data[offset + size :])
    names, lost = saved(source, tmp_path)
    assert "episode-0" not in names
    assert len(lost) == 1
    assert not list(tmp_path.rglob("EV*"))


def test_a_selection_without_its_manifest_is_known_by_its_index(source: Path, tmp_path: Path) -> None:
    with vrl3data.open(source) as dataset:
        select(dataset, tmp_path / "linked", "name in ('episode-1', 'episode-2')", virtual=True)
    (tmp_path / "linked" / "dataset.json").unlink()
    assert repair(tmp_path / "linked", tmp_path / "out")[0].samples == 2
