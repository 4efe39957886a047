"""Zarr replay buffers as Diffusion Policy and UMI write them, in versions 2 and 3, and hostile ones."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

import vrl3data
from converters.base import recognise
from converters.episodes import EpisodeOptions
from converters.run import RunOptions, run
from converters.zarr_buffer import codecs
from converters.zarr_buffer.arrays import open_array
from converters.zarr_buffer.converter import ZarrConverter
from converters.zarr_buffer.stores import FolderStore, open_store
from vrl3data.errors import MissingExtra, SourceError
from vrl3data.validation import validate

ENDS = [5, 6, 13]
ROWS = ENDS[-1]


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "img": rng.integers(0, 255, (ROWS, 24, 20, 3), np.uint8),
        "state": rng.normal(size=(ROWS, 5)).astype(np.float32),
        "action": rng.normal(size=(ROWS, 2)),
        "n_contacts": rng.integers(0, 9, (ROWS, 1)).astype(np.float32),
    }


def make_buffer(
    path: Path, found: dict[str, np.ndarray] | None = None, ends: Any = ENDS, form: int = 2, **more: Any
) -> Path:
    root = zarr.open_group(str(path), mode="w", zarr_format=form)
    for key, value in (found if found is not None else arrays()).items():
        chunks = (4, *(max(1, size // 2) for size in value.shape[1:])) if value.ndim > 1 else (4,)
        root.create_array(f"data/{key}", shape=value.shape, dtype=value.dtype, chunks=chunks, **more)[...] = value
    counts = np.asarray(ends)
    root.create_array("meta/episode_ends", shape=counts.shape, dtype=counts.dtype, chunks=(2,))[...] = counts
    return path


def zipped(folder: Path, path: Path, top: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as out:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                out.write(file, top + file.relative_to(folder).as_posix())
    return path


def converter(source: Path, **options: Any) -> ZarrConverter:
    return ZarrConverter([source], EpisodeOptions(**options))


def check_same(path: Path, found: dict[str, np.ndarray]) -> None:
    names = {"img": "obs.image.img", "state": "obs.state", "action": "action", "n_contacts": "obs.n_contacts"}
    assert validate(path).ok
    with vrl3data.open(path) as dataset:
        assert [item.meta["length"] for item in dataset] == [5, 1, 7]
        assert [item.meta["final_observation"] for item in dataset] == [0, 0, 0]
        for key, name in names.items():
            whole = np.concatenate([item[name] for item in dataset])
            assert whole.dtype == found[key].dtype
            assert np.array_equal(whole, found[key]), name


CODECS_2 = {
    "none": None,
    "blosc": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE),
    "zstd": numcodecs.Zstd(3),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(1),
    "gzip": numcodecs.GZip(1),
    "bz2": numcodecs.BZ2(1),
    "lzma": numcodecs.LZMA(),
}


@pytest.mark.parametrize("codec", CODECS_2)
def test_version_2_with_every_codec(tmp_path: Path, codec: str) -> None:
    source = make_buffer(tmp_path / "pusht.zarr", compressors=CODECS_2[codec])
    assert recognise(source) == "zarr"
    receipt = run(converter(source), tmp_path / "out")
    assert receipt.notes == ()
    check_same(tmp_path / "out", arrays())
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset[1].meta["name"] == "pusht/episode_1"
        assert dataset[1].meta["source"] == "pusht.zarr/meta/episode_ends/0"
        assert json.loads(dataset[2].meta["source_meta"])["rows"] == [6, 13]


@pytest.mark.parametrize("more", [{"order": "F"}, {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
                                  {"filters": [numcodecs.Shuffle(4)]}])  # fmt: skip
def test_version_2_in_other_orders(tmp_path: Path, more: dict[str, Any]) -> None:
    run(converter(make_buffer(tmp_path / "a.zarr", **more)), tmp_path / "out")
    check_same(tmp_path / "out", arrays())


CODECS_3: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {"compressors": None},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="shuffle")},
    "gzip": {"compressors": GzipCodec(level=1)},
    "big": {"serializer": BytesCodec(endian="big")},
    "separator": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v2 keys": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
}


@pytest.mark.parametrize("which", CODECS_3)
def test_version_3_with_every_codec(tmp_path: Path, which: str) -> None:
    run(converter(make_buffer(tmp_path / "a.zarr", form=3, **CODECS_3[which])), tmp_path / "out")
    check_same(tmp_path / "out", arrays())


@pytest.mark.parametrize("place", ["start", "end"])
def test_version_3_with_shards_and_transposed_chunks(tmp_path: Path, place: str) -> None:
    found = arrays()
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    for key, value in found.items():
        inner = [TransposeCodec(order=tuple(reversed(range(value.ndim)))), BytesCodec(), ZstdCodec()]
        sharding = ShardingCodec(chunk_shape=(2, *value.shape[1:]), codecs=inner, index_location=place)
        more = {"chunks": (8, *value.shape[1:]), "serializer": sharding, "compressors": None}
        array = root.create_array(f"data/{key}", shape=value.shape, dtype=value.dtype, **more)
        array[...] = value
    root.create_array("meta/episode_ends", data=np.array(ENDS))
    run(converter(tmp_path / "a.zarr"), tmp_path / "out")
    check_same(tmp_path / "out", found)


@pytest.mark.parametrize(("top", "how"), [("", zipfile.ZIP_STORED), ("replay.zarr/", zipfile.ZIP_DEFLATED)])
def test_zip_files(tmp_path: Path, top: str, how: int) -> None:
    source = zipped(make_buffer(tmp_path / "a.zarr"), tmp_path / "cup.zarr.zip", top, how)
    assert recognise(source) == "zarr"
    run(converter(source), tmp_path / "out", RunOptions(jobs=2))
    check_same(tmp_path / "out", arrays())
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset[0].meta["source"] == "cup.zarr.zip"


def test_umi_keys_and_pictures_of_floats(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, (ROWS, 24, 20, 3)).astype(np.float32)
    found = {
        "camera0_rgb": frames, "side_image": frames / 255, "robot0_eef_pos": rng.normal(size=(ROWS, 3)),
        "robot0_eef_rot_axis_angle": rng.normal(size=(ROWS, 3)), "robot0_gripper_width": rng.normal(size=(ROWS, 1)),
        "head_depth": rng.integers(0, 999, (ROWS, 9, 9), np.uint16),
        "timestamp": 1.7e9 + np.arange(ROWS) / 10, "actions_raw": rng.normal(size=(ROWS, 2)),
    }  # fmt: skip
    run(converter(make_buffer(tmp_path / "umi.zarr", found)), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        schema, item = dataset.schema, dataset[2]
        assert np.array_equal(item["obs.image.camera0"], frames[6:].astype(np.uint8))
        assert np.array_equal(item["obs.image.side"], frames[6:].astype(np.uint8))
        assert schema["obs.robot0_eef_pos"].unit == schema["obs.robot0_gripper_width"].unit == "m"
        assert schema["obs.robot0_eef_rot_axis_angle"].unit == ""
        assert schema["obs.depth.head"].dtype == "uint16"
        assert "action.raw" in schema
        assert np.abs(item["timestamp"] - np.arange(7) * 100_000_000).max() < 1000
        assert abs(item.meta["start_time_ns"] - 1_700_000_000_600_000_000) < 1000
    bad = frames.copy()
    bad[7, 0, 0, 0] = 300
    receipt = run(
        converter(make_buffer(tmp_path / "bad.zarr", {"img": bad})), tmp_path / "b", RunOptions(on_error="skip")
    )
    assert "values of pictures" in receipt.skipped[0]["reason"]
    assert receipt.skipped[0]["source"] == "bad/episode_2"


def test_attributes_and_values_of_episodes_are_kept(tmp_path: Path) -> None:
    path = make_buffer(tmp_path / "a.zarr")
    root = zarr.open_group(str(path), mode="a")
    root.attrs["robot"] = "ur5"
    root.create_array("meta/quality", data=np.array([3, 1, 2]))
    root.create_array("meta/norm", data=np.zeros((7, 2)))
    run(converter(path), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        said = json.loads(dataset[1].meta["source_meta"])
        assert said == {"robot": "ur5", "meta/quality": 1, "rows": [5, 6]}


def test_chunks_that_are_not_stored_are_told(tmp_path: Path) -> None:
    path = make_buffer(tmp_path / "a.zarr")
    (path / "data/action/1.0").unlink()
    notes = converter(path).plan().notes
    assert any("1 of 8 chunks are not stored, the first data/action/1.0" in note for note in notes), notes
    run(converter(path), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert (dataset[2]["action"][0, 0], dataset[0]["action"][4, 0]) == (0, 0)
        assert dataset[0]["action"][3, 0] == arrays()["action"][3, 0]
    said = json.loads((path / "data/action/.zarray").read_text())
    (path / "data/action/.zarray").write_text(json.dumps(said | {"fill_value": None}))
    with pytest.raises(SourceError, match="the chunk is missing"):
        run(converter(path), tmp_path / "b")


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([5, 4, 13], "found 4 after 5"),
        ([-1, 4, 13], "found -1"),
        ([5, 14], "says 14 rows, but there are 13"),
        ([], "no episodes"),
        ([5.0, 13.0], "whole numbers"),
        ([[5], [13]], "whole numbers"),
    ],
)
def test_ends_that_make_no_sense_are_refused(tmp_path: Path, ends: list[Any], words: str) -> None:
    path = tmp_path / "a.zarr"
    make_buffer(path)
    shutil.rmtree(path / "meta/episode_ends")
    counts = np.array(ends, float if ends and isinstance(ends[0], float) else np.int64)
    zarr.open_group(str(path), mode="a").create_array("meta/episode_ends", data=counts)
    with pytest.raises(SourceError, match=words):
        converter(path).plan()


def test_empty_episodes_and_rows_of_none_are_told(tmp_path: Path) -> None:
    plan = converter(make_buffer(tmp_path / "a.zarr", ends=[5, 5, 11])).plan()
    assert [name for name, _ in plan.problems] == ["a.zarr/episode_1"]
    assert "no steps" in str(plan.problems[0][1])
    assert any("2 rows after the last episode" in note for note in plan.notes)


def edit(path: Path, key: str, **changes: Any) -> None:
    file = path / key / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [10**9, 10**6]}, "claims"),
        ({"shape": [-3, 2]}, "whole numbers"),
        ({"shape": [13] * 9}, "one to 8"),
        ({"chunks": [0, 2]}, "do not fit"),
        ({"chunks": [4]}, "do not fit"),
        ({"chunks": [2**40, 2]}, "row of chunks"),
        ({"compressor": {"id": "../../evil"}}, "not known"),
        ({"compressor": 7}, "cannot be understood"),
        ({"dimension_separator": "/../"}, "separator"),
        ({"fill_value": "many"}, "fill_value"),
        ({"dtype": "<M8[s]"}, None),
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, None),
        ({"dtype": [["a", "<i4"]]}, None),
    ],
)
def test_metadata_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], words: str | None) -> None:
    path = make_buffer(tmp_path / "a.zarr")
    edit(path, "data/action", **changes)
    if words is None:  # no numbers: left out, and said
        assert any(note.startswith("data/action: left out") for note in converter(path).plan().notes)
        return
    with pytest.raises(SourceError, match=words):
        converter(path).plan()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = make_buffer(tmp_path / "a.zarr")
    edit(path, "data/action", dtype="|O", filters=[{"id": "pickle", "protocol": 5}], compressor=None)
    bomb = tmp_path / "ran"
    for file in (path / "data/action").glob("[0-9]*"):
        file.write_bytes(b"cbuiltins\nexec\n(Vopen(" + repr(str(bomb)).encode() + b", 'w')\ntR.")
    plan = converter(path).plan()
    assert "action" not in plan.spec.schema
    assert any("pickle" in note for note in plan.notes)
    assert not bomb.exists()
    edit(path, "meta/episode_ends", dtype="|O", filters=[{"id": "pickle"}])
    with pytest.raises(SourceError, match="could run code"):
        converter(path).plan()


@pytest.mark.parametrize("codec", ["zlib", "gzip", "bz2", "lzma", "zstd", "blosc", "lz4"])
def test_chunks_that_unpack_to_more_than_they_may_are_refused(tmp_path: Path, codec: str) -> None:
    path = make_buffer(tmp_path / "a.zarr", compressors=CODECS_2[codec])
    chunk = path / "data/action/0.0"
    chunk.write_bytes(CODECS_2[codec].encode(bytes(12_000_000)))
    tracemalloc.start()
    receipt = run(converter(path), tmp_path / "out", RunOptions(on_error="skip"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more" in receipt.skipped[0]["reason"]
    assert peak < 11e6  # of 12 MB


@pytest.mark.parametrize("codec", CODECS_2)
def test_damaged_chunks_are_named(tmp_path: Path, codec: str) -> None:
    path = make_buffer(tmp_path / "a.zarr", compressors=CODECS_2[codec])
    chunk = path / "data/action/0.0"
    whole = chunk.read_bytes()
    for number, data in enumerate((whole[: len(whole) // 2], b"", b"\xff" * 40)):
        chunk.write_bytes(data)
        receipt = run(converter(path), tmp_path / f"out{number}", RunOptions(on_error="skip"))
        assert [entry["source"] for entry in receipt.skipped] == ["a/episode_0"]
        with pytest.raises(SourceError, match="chunk"):
            list(open_array(FolderStore(path), "data/action").blocks(0, 4))


def test_zip_files_that_lead_elsewhere_or_lie_are_refused(tmp_path: Path) -> None:
    folder = make_buffer(tmp_path / "a.zarr")
    for name in ("../evil", "/etc/passwd", "data/../../x", "C:/x", "data\\x"):
        source = zipped(folder, tmp_path / "x.zarr.zip")
        with zipfile.ZipFile(source, "a") as out:
            out.writestr(zipfile.ZipInfo(name), b"x")
        if name == "data\\x":
            data = source.read_bytes()
            assert b"data\\x" in data or b"data/x" in data
            continue
        with pytest.raises(SourceError, match="leads out of it"):
            converter(source).plan()
    source = zipped(folder, tmp_path / "t.zarr.zip")
    source.write_bytes(source.read_bytes()[:-200])
    assert recognise(source) == "zarr"
    with pytest.raises(SourceError, match="not a readable zip"):
        converter(source).plan()


def test_members_that_unpack_to_more_than_they_may_are_refused(tmp_path: Path) -> None:
    folder = make_buffer(tmp_path / "a.zarr")
    (folder / "data/action/0.0").write_bytes(bytes(50_000_000))
    source = zipped(folder, tmp_path / "bomb.zarr.zip", compression=zipfile.ZIP_DEFLATED)
    receipt = run(converter(source), tmp_path / "out", RunOptions(on_error="skip"))
    assert "expected at most" in receipt.skipped[0]["reason"]
    data = bytearray(source.read_bytes())  # a smaller size is claimed in the directory of the file
    at = data.index(b"data/action/0.0", data.index(b"PK\x01\x02")) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 24 : at + 28] = struct.pack("<I", 64)
    source.write_bytes(data)
    receipt = run(converter(source), tmp_path / "lie", RunOptions(on_error="skip"))
    assert "cannot be read" in receipt.skipped[0]["reason"] or "bytes" in receipt.skipped[0]["reason"]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    path = make_buffer(tmp_path / "a.zarr")
    chunk = path / "data/action/0.0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    receipt = run(converter(path), tmp_path / "out", RunOptions(on_error="skip"))
    assert "link" in receipt.skipped[0]["reason"]


def test_shards_that_lie_are_refused(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("data/action", data=np.ones((ROWS, 2)), chunks=(2, 2), shards=(14, 2))
    root.create_array("meta/episode_ends", data=np.array(ENDS))
    shard = tmp_path / "a.zarr/data/action/c/0/0"
    whole = shard.read_bytes()
    index = bytearray(whole[-(16 * 7 + 4) : -4])
    index[8:16] = struct.pack("<Q", 2**40)
    lies = whole[: -len(index) - 4] + bytes(index) + struct.pack("<I", codecs.crc32c(bytes(index)))
    for data, words in ((whole[:-1] + b"\0", "checksum"), (lies, "is said to end at"), (whole[:9], "chunk")):
        shard.write_bytes(data)
        with pytest.raises(SourceError, match=words):
            run(converter(tmp_path / "a.zarr"), tmp_path / words)


def test_checksums_are_castagnolis() -> None:
    assert codecs.crc32c(b"123456789") == 0xE3069283


def test_jpeg_xl_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_buffer(tmp_path / "a.zarr")
    edit(path, "data/img", compressor={"id": "imagecodecs_jpegxl", "lossless": False}, chunks=[1, 24, 20, 3])
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    plan = converter(path).plan()
    assert plan.spec.schema["obs.image.img"].shape == (24, 20, 3)
    with pytest.raises(MissingExtra, match="pip install imagecodecs"):
        run(converter(path), tmp_path / "out")


def test_without_numcodecs_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numcodecs", None)
    with pytest.raises(MissingExtra, match=r"vrl3data\[zarr\]"):
        codecs.decode("blosc", {}, numcodecs.Blosc().encode(b"abcdefgh"), 100)
    assert codecs.decode("zlib", {}, zlib.compress(b"abc"), 3) == b"abc"


def test_large_arrays_are_read_in_chunks(tmp_path: Path) -> None:
    rows = 6000
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    images = root.create_array("data/img", shape=(rows, 96, 96, 3), dtype="u1", chunks=(100, 96, 96, 3))
    images[:1000] = np.random.default_rng(0).integers(0, 255, (1000, 96, 96, 3), np.uint8)
    images[1000:] = 7
    root.create_array("data/action", data=np.ones((rows, 2), np.float32))
    root.create_array("meta/episode_ends", data=np.array([rows]))
    tracemalloc.start()
    run(converter(tmp_path / "a.zarr"), tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90e6, peak  # of 166 MB, of which a writer keeps 64 before it spools
    with vrl3data.open(tmp_path / "out") as dataset:
        assert (dataset[0].rows("obs.image.img", 5990) == 7).all()


def test_other_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "meta/episode_ends").mkdir(parents=True)
    assert not ZarrConverter.recognises(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert not ZarrConverter.recognises(tmp_path / "x.zip")
    path = make_buffer(tmp_path / "a.zarr")
    shutil.rmtree(path / "meta")
    assert ZarrConverter.recognises(path)
    with pytest.raises(SourceError, match="meta/episode_ends"):
        converter(path).plan()
    whole = make_buffer(tmp_path / "b.zarr", {})
    with pytest.raises(SourceError, match="expected arrays in the group data"):
        converter(whole).plan()
    (whole / "meta/episode_ends/.zarray").write_text("[1")
    with pytest.raises(SourceError, match="JSON"):
        converter(whole).plan()
    assert open_store(whole).get("nothing", 10) is None


@pytest.mark.realdata
def test_no_other_real_file_is_taken_for_zarr(real_data: Path) -> None:
    assert [path.name for path in real_data.rglob("*") if ZarrConverter.recognises(path)] == []


def test_what_else_a_buffer_says_is_kept_or_named(tmp_path: Path) -> None:
    source = make_buffer(tmp_path / "a.zarr")
    root = zarr.open_group(str(source), mode="a", zarr_format=2)
    root.create_array("meta/score", data=np.array([np.nan, 1.0, 2.0]))
    root.create_array("meta/names", data=np.array(["a", "b", "c"]))
    root.create_array("meta/limits", data=np.zeros(5))
    root.create_array("labels", data=np.zeros(ROWS))
    receipt = run(converter(source), tmp_path / "out")
    assert receipt.notes[:3] == (
        "meta/limits: left out: it does not have one value for each of 3 episodes",
        "meta/names: left out: expected numbers, found dtype <U1",
        "the groups or arrays labels are not of a replay buffer: left out",
    )
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [json.loads(item.meta["source_meta"])["meta/score"] for item in dataset] == ["nan", 1.0, 2.0]
