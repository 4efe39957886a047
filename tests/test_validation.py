"""validate finds each kind of defect by its name and place, and nothing on sound datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_episode, make_schema, make_spec, run_cli, shard_bytes, write_dataset

from vrl3data import index, manifest, scan, shard
from vrl3data.checks.finding import Finding
from vrl3data.schema import Feature, Schema
from vrl3data.validation import CHECKS, validate
from vrl3data.writer import Writer


def errors(path: Path) -> list[Finding]:
    return [finding for finding in validate(path).findings if finding.severity == "error"]


def names(path: Path) -> list[str]:
    return [finding.check for finding in errors(path)]


def rewrite(path: Path, change: Callable[[bytearray, shard.Entry], None], number: int = 0, sample: int = 1) -> None:
    """Change the bytes of one sample in a shard."""
    file = index.shard_files(path)[number]
    data = bytearray(file.read_bytes())
    change(data, scan.scan(file).entries[sample])
    file.write_bytes(data)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = write_dataset(tmp_path / "set", 4, make_spec(shard_size=36_000))
    assert validate(path).ok
    assert len(index.shard_files(path)) == 2
    return path


def test_sound_in_every_codec(tmp_path: Path) -> None:
    for codec in ("raw", "png", "jpeg:80"):
        assert names(write_dataset(tmp_path / codec[:3], 3, make_spec(make_schema(codec)))) == []


@pytest.mark.parametrize("member", ["obs.image.top.npy", "action.npy", "preview.jpg"])
def test_a_flipped_bit(sound: Path, member: str) -> None:
    def flip(data: bytearray, entry: shard.Entry) -> None:
        start, size = entry.members[member]
        data[start + size - 1] ^= 4

    rewrite(sound, flip)
    checksum, sha256 = errors(sound)
    assert (checksum.check, checksum.where.feature, checksum.where.episode) == ("checksum", member, "episode-1")
    assert (sha256.check, sha256.where.shard) == ("shards", "train-000000.tar")
    assert "sha256 of the manifest" in sha256.message


def test_a_flipped_bit_in_the_commit_record_and_in_padding(sound: Path) -> None:
    def flip(data: bytearray, entry: shard.Entry) -> None:
        start, size = entry.members["meta.json"]
        data[start + size // 2] ^= 1

    rewrite(sound, flip)
    assert names(sound)[0] == "structure"
    finding = validate(sound).findings[0]
    assert "commit record meta.json is not whole" in str(finding)
    assert "shard train-000000.tar, offset" in str(finding)


def test_padding_counts_too(sound: Path) -> None:
    def flip(data: bytearray, entry: shard.Entry) -> None:
        start, size = entry.members["action.npy"]
        data[start + size] = 1

    rewrite(sound, flip)
    assert names(sound) == ["shards"]


def test_truncated_missing_and_swapped_shards(sound: Path) -> None:
    one, two = index.shard_files(sound)
    whole = one.read_bytes()
    one.write_bytes(whole[:-700])
    assert names(sound) == ["structure", "shards"]
    one.unlink()
    assert "the shard is missing" in str(validate(sound).findings)
    one.write_bytes(two.read_bytes())
    two.write_bytes(whole)
    assert {"structure", "shards"} == set(names(sound))
    assert "by its head the shard is number 1" in str(validate(sound).findings)
    (sound / "dataset.json").unlink()
    one.unlink()
    two.unlink()
    two.write_bytes(whole.replace(b"train-000000", b"train-000000"))
    assert "structure" in names(sound)


def test_a_foreign_shard(sound: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", 1, make_spec(source="another"), first=9)
    shutil.copy(other / "data" / "train-000000.tar", sound / "data" / "val-000000.tar")
    assert any("by its head" in finding.message for finding in validate(sound).findings)
    (sound / "data" / "val-000000.tar").unlink()
    with Writer(sound.parent / "val", make_spec(source="another")) as writer:
        writer.write(make_episode(9, split="val"))
    shutil.copy(sound.parent / "val" / "data" / "val-000000.tar", sound / "data")
    found = errors(sound)
    assert any("belongs to dataset" in finding.message for finding in found)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    episode = make_episode(0)
    action = episode.values["action"].copy()
    action[3, 1], action[4, 0] = np.nan, np.inf
    with Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(replace(episode, values={**episode.values, "action": action}))
    (finding,) = errors(tmp_path / "set")
    assert (finding.check, finding.where.feature, finding.where.step) == ("nan", "action", 3)


def test_rows_types_and_members_against_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that does not keep its promises: its schema says something else than what it writes."""

    def written_as(change: Callable[[Feature], Feature], drop: str = "") -> list[Finding]:
        path = tmp_path / "set"
        shutil.rmtree(path, ignore_errors=True)
        honest = make_schema()
        told = Schema("episodes", tuple(change(f) for f in honest.features if f.name != drop), honest.extras)
        with monkeypatch.context() as patch:
            real = shard.head_bytes
            patch.setattr(shard, "head_bytes", lambda _, *rest: real(told, *rest))
            with Writer(path, make_spec()) as writer:
                writer.write(make_episode(0))
        return [finding for finding in errors(path) if finding.check not in ("manifest", "stats")]

    assert written_as(lambda f: f) == []
    wrong = written_as(lambda f: replace(f, dtype="float32") if f.name == "action" else f)
    assert "expected rows float32(2,), found float64(5, 2)" in str(wrong[0])
    wrong = written_as(lambda f: replace(f, shape=(3,)) if f.name == "action" else f)
    assert "expected rows float64(3,), found float64(5, 2)" in wrong[0].message
    wrong = written_as(lambda f: replace(f, rows="state") if f.name == "reward" else f)
    assert (wrong[0].check, wrong[0].message) == ("rows", "expected 6 rows, found 5")
    wrong = written_as(lambda f: f, drop="reward")
    assert (wrong[0].check, wrong[0].where.episode) == ("members", "episode-0")


def test_a_digest_that_is_not_the_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vrl3data import encode

    with monkeypatch.context() as patch:
        patch.setattr(encode, "sample_digest", lambda *_: "0" * 64)
        write_dataset(tmp_path / "set", 1)
    assert names(tmp_path / "set") == ["digest"]


def test_the_same_sample_twice(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(make_episode(0))
        writer.present.clear()
        writer.write(make_episode(0))
    (finding,) = errors(tmp_path / "set")
    assert (finding.check, finding.where.episode) == ("duplicates", "episode-0")


def test_index_and_manifest_against_the_shards(sound: Path) -> None:
    (sound / "index.parquet").unlink()
    assert names(sound) == ["index"]
    assert run_cli("index", "rebuild", sound).returncode == 0
    assert names(sound) == []
    table = pq.read_table(sound / "index.parquet")
    column = table.column_names.index("action.npy.offset")
    offsets = table["action.npy.offset"].to_numpy() + 512
    wrong = table.set_column(column, table.schema.field(column), [offsets])
    pq.write_table(wrong.replace_schema_metadata(table.schema.metadata), sound / "index.parquet")
    assert names(sound) == ["index"]
    (sound / "index.parquet").write_bytes(b"no parquet")
    assert names(sound) == ["index"]
    run_cli("index", "rebuild", sound)
    text = (sound / "dataset.json").read_text()
    whole = json.loads(text)
    for change in (
        {"fingerprint": "0" * 64},
        {"subsets": {"easy": 3}},
        {"content": {}},
        {"lossy": {"samples": 1}},
        {"provenance": {**whole["provenance"], "tool": "another"}},
    ):
        (sound / "dataset.json").write_text(json.dumps({**whole, **change}))
        assert names(sound) == ["manifest"], change
    (sound / "dataset.json").write_text(json.dumps({**whole, "stats": {**whole["stats"], "fingerprint": "0"}}))
    assert names(sound) == ["stats"]
    (sound / "dataset.json").write_text(text.replace('"samples": 4', '"samples": 5', 1))
    assert names(sound) == ["manifest"]
    (sound / "dataset.json").write_text("{")
    assert "manifest" in names(sound)


def test_a_rebuilt_index_is_the_same(sound: Path) -> None:
    before = (sound / "index.parquet").read_bytes()
    (sound / "index.parquet").unlink()
    assert run_cli("index", "rebuild", sound).returncode == 0
    assert (sound / "index.parquet").read_bytes() == before


def test_an_unfinished_dataset_is_sound(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "set", make_spec())
    writer.write(make_episode(0))
    report = validate(tmp_path / "set")
    writer.close()
    assert (report.ok, report.complete, report.samples) == (True, False, 1)


def test_every_check_is_described_and_the_command_tells_where(sound: Path) -> None:
    assert all(CHECKS.values())
    clean = run_cli("validate", sound, "--json")
    assert clean.returncode == 0
    assert [finding["check"] for finding in json.loads(clean.stdout)["findings"]] == ["license"]
    before = shard_bytes(sound)

    def flip(data: bytearray, entry: shard.Entry) -> None:
        data[entry.members["reward.npy"][0] + 130] ^= 1

    rewrite(sound, flip)
    found = run_cli("validate", sound)
    assert found.returncode == 1
    assert "error: checksum" in found.stdout
    assert "episode episode-1, feature reward.npy" in found.stdout
    (finding, *_) = json.loads(run_cli("validate", sound, "--json").stdout)["findings"]
    assert (finding["check"], finding["shard"], finding["episode"]) == ("checksum", "train-000000.tar", "episode-1")
    assert set(before) == set(shard_bytes(sound))
    assert manifest.read(sound) is not None
