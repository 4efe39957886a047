"""The bytes: tar, npy, commit records, torn and damaged shards (FORMAT.md 2, 5, 6)."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import make_schema, make_spec, shard_bytes, write_dataset
from hypothesis import given
from hypothesis import strategies as st

import vrl3data
from vrl3data import scan, shard
from vrl3data.errors import DamagedError, FormatError, Vrl3dataError
from vrl3data.schema import DTYPES

FACTS = {"dataset_id": "0" * 32, "provenance": {}}
NAMES = st.from_regex(r"[0-9]{9}\.[a-z0-9_]{1,20}(\.[a-z0-9_]{1,20}){0,3}", fullmatch=True)


@given(NAMES, st.integers(0, shard.MAX_MEMBER))
def test_header_is_what_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    header = shard.member_header(name, size)
    assert header == info.tobuf(tarfile.USTAR_FORMAT)
    assert shard.parse_member_header(header) == (name, size)


@given(NAMES, st.integers(0, 10**6), st.integers(0, 511), st.integers(0, 7))
def test_any_flipped_bit_of_a_header_shows(name: str, size: int, place: int, bit: int) -> None:
    block = bytearray(shard.member_header(name, size))
    block[place] ^= 1 << bit
    with pytest.raises(DamagedError, match="expected a tar header"):
        shard.parse_member_header(bytes(block))


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_npy_header_is_read_by_numpy(dtype: str, shape: list[int]) -> None:
    array = np.zeros(shape, dtype)
    data = shard.npy_bytes(array)
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    assert (loaded.shape, loaded.dtype) == (array.shape, array.dtype)
    assert len(data) == shard.NPY_HEADER + array.nbytes
    view = shard.npy_view(memoryview(data))
    assert (view.shape, view.dtype.name) == (array.shape, dtype)


def test_npy_of_a_pickled_object_is_refused() -> None:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match="npy header"):
        shard.npy_view(memoryview(out.getvalue()))


def test_npy_with_missing_bytes_is_refused() -> None:
    with pytest.raises(DamagedError, match="the member has 130 bytes"):
        shard.npy_view(memoryview(shard.npy_bytes(np.zeros(1, np.int64))[:130]))


def test_commit_record_knows_itself() -> None:
    payload = shard.commit_bytes({"id": "a", "psnr": -1.0})
    assert json.loads(payload)["id"] == "a"
    assert shard.parse_commit(payload)["psnr"] == -1.0
    for place in range(len(payload)):
        broken = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        with pytest.raises(DamagedError, match="not whole"):
            shard.parse_commit(broken)


def test_payloads_are_aligned_and_tar_agrees(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    file = path / "data" / "train-000000.tar"
    with tarfile.open(file) as archive:
        members = archive.getmembers()
    assert members[0].name == "__meta__"
    assert all(member.offset_data % 512 == 0 and (member.mode, member.mtime, member.uid) == (0o644, 0, 0)
               for member in members)  # fmt: skip
    listed = subprocess.run(["tar", "tf", file], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [member.name for member in members]
    assert not listed.stderr
    assert file.read_bytes()[-1024:] == bytes(1024)
    assert [member.name.partition(".")[2] for member in members[1:12]] == [
        "obs.image.top.npy", "obs.state.npy", "action.npy", "reward.npy", "timestamp.npy", "sim.goal.npy",
        "preview.jpg", "meta.json", "obs.image.top.npy", "obs.state.npy", "action.npy",
    ]  # fmt: skip


def test_every_prefix_of_a_part_reads_as_a_prefix(tmp_path: Path) -> None:
    """Whatever a crash leaves of a shard being written: whole samples, in order, and nothing else."""
    whole = shard_bytes(write_dataset(tmp_path / "set", 3))["train-000000.tar"][:-1024]
    part = tmp_path / "train-000000.tar.part"
    part.write_bytes(whole)
    entries = scan.scan(part).entries
    records = [entry.members["meta.json"] for entry in entries]
    ends = [start + shard.padded(size) for start, size in records]
    for length in [*range(0, len(whole), 97), *ends, *(end - 1 for end in ends)]:
        for tail in (b"", bytes(512 * 3 - length % 512)):
            part.write_bytes(whole[:length] + tail)
            found = scan.scan(part)
            # Padding is zeros, so zeros that a crash left complete a record that lacks only its padding.
            whole_ends = [start + size for start, size in records] if tail else ends
            assert len(found.entries) == sum(end <= length for end in whole_ends)
            assert [entry.meta for entry in found.entries] == [entry.meta for entry in entries[: len(found.entries)]]


def test_a_finished_shard_has_no_torn_tail(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    file = path / "data" / "train-000000.tar"
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) - 512, len(whole) - 1024, len(whole) // 2, 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match="cut off|two zero blocks"):
            scan.scan(file)
    file.write_bytes(b"")
    with pytest.raises(DamagedError, match="empty"):
        scan.scan(file)


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg:90"])
def test_a_flipped_byte_never_reads_silently(tmp_path: Path, codec: str) -> None:
    """With the default verification: the same data, or one of our errors that names the place."""
    spec = make_spec(make_schema(codec))
    path = write_dataset(tmp_path / "set", 2, spec)
    (path / "index.parquet").unlink()
    file = path / "data" / "train-000000.tar"
    whole = file.read_bytes()
    want = _everything(path)
    rng = np.random.default_rng(3)
    errors = 0
    for place in rng.choice(len(whole), 150, replace=False):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        found = _everything(path)
        assert found == want or "train-000000.tar" in str(found)
        errors += isinstance(found, str)
    assert errors > 50  # the rest are padding, which holds no data


def _everything(path: Path) -> list[object] | str:
    """All that is in a dataset, or the message of our error."""
    try:
        with vrl3data.open(path) as dataset:
            return [(item.meta, [item[name].tobytes() for name in dataset.schema.names]) for item in dataset]
    except Vrl3dataError as error:
        return str(error)


def test_interleaved_members_and_foreign_names_are_damage(tmp_path: Path) -> None:
    head = shard.head_bytes(make_schema(), "train", 0, FACTS)
    file = tmp_path / "train-000000.tar"

    def put(*members: tuple[str, bytes]) -> None:
        blocks = (shard.member_header(n, len(b)) + b + bytes(-len(b) % 512) for n, b in members)
        file.write_bytes(b"".join(blocks) + shard.END)

    put(("__meta__", head), ("000000000.action.npy", b"a"), ("000000001.action.npy", b"a"))
    with pytest.raises(DamagedError, match=r"sample 000000000 has no meta.json before '000000001"):
        scan.scan(file)
    put(("__meta__", head), ("readme.txt", b"a"))
    with pytest.raises(DamagedError, match="belongs to no sample"):
        scan.scan(file)
    put(("000000000.action.npy", b"a"))
    with pytest.raises(DamagedError, match="expected the member __meta__ first"):
        scan.scan(file)
    whole = write_dataset(tmp_path / "whole", 1)
    meta = scan.scan(whole / "data" / "train-000000.tar").entries[0].meta
    meta = {**meta, "members": "action.npy", "sizes": "2", "xxh3_128": "x"}
    del meta["meta_xxh3_128"]
    put(("__meta__", head), ("000000000.action.npy", b"a"), ("000000000.meta.json", shard.commit_bytes(meta)))
    with pytest.raises(DamagedError, match="not those of its commit record"):
        scan.scan(file)
    put(("__meta__", head), ("000000000.action.npy", b"a"), ("000000000.action.npy", b"b"))
    with pytest.raises(DamagedError, match=r"member '000000000.action.npy' occurs twice"):
        scan.scan(file)
    for change, match in [
        ({"success": 7}, "success = 7 is not allowed"),
        ({"task": None}, "expected str for 'task', found None"),
        ({"length": True}, "expected int for 'length'"),
        ({"split": "val"}, "is of split 'val', not of the shard's"),
    ]:
        record = shard.commit_bytes({**meta, "members": "action.npy", "sizes": "1", **change})
        put(("__meta__", head), ("000000000.action.npy", b"a"), ("000000000.meta.json", record))
        with pytest.raises(DamagedError, match=match):
            scan.scan(file)
    (tmp_path / "val-000000.tar").write_bytes(file.read_bytes())
    put(("__meta__", head))
    file.rename(tmp_path / "val-000001.tar")
    with pytest.raises(DamagedError, match="by its head the shard is number 0 of split 'train'"):
        scan.scan(tmp_path / "val-000001.tar")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": {"major": 2, "minor": 0}}, "format version 2 is not known"),
        ({"requires": ["codec:vp9"]}, "requires 'codec:vp9'"),
        ({"kind": "videos"}, "kind 'videos'"),
        ({"format": None}, "'format' is missing"),
    ],
)
def test_what_is_not_known_is_refused_by_name(change: dict[str, object], match: str) -> None:
    head = json.loads(shard.head_bytes(make_schema(), "train", 0, FACTS))
    assert shard.check_head(head) == head
    with pytest.raises(FormatError, match=match):
        shard.check_head(head | change)


def test_a_later_minor_version_is_read() -> None:
    head = json.loads(shard.head_bytes(make_schema(), "train", 0, FACTS))
    head["format"]["minor"] = 7
    head["schema"]["features"][0]["new_key"] = "ignored"
    assert shard.check_head(head)
    assert vrl3data.Schema.from_json("episodes", head["schema"]) == make_schema()
