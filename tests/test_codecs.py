"""Every codec of the table: round trips, ranges of rows, damage, promises that are too large, passing through."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from conftest import make_episode, make_pictures, make_schema, make_spec, run_cli, shard_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import vrl3data
from vrl3data import codecs, sample, shard
from vrl3data.codecs import video
from vrl3data.encode import encode
from vrl3data.errors import ConfigError, DamagedError, MissingExtra, SchemaError
from vrl3data.sample import Identity
from vrl3data.schema import Array, Coded, Episode, Feature, Schema
from vrl3data.units import Units, cut
from vrl3data.validation import validate
from vrl3data.writer import Writer

CODECS = ["raw", "jpeg:90", "png", "dzst", "h264:20:3", "av1:30:4"]
"""One of each name in the table, and raw."""
DEPTH_CODECS = ["raw", "png", "dzst"]
WHO = Identity("source", "test", {})
SIZE = 20


def camera(codec: str, channels: int = 3, size: int = SIZE, width: int = 0) -> Feature:
    return codecs.describe(Feature("obs.image.top", "uint8", (size, width or size, channels), "state"), codec)


def depth(codec: str) -> Feature:
    return codecs.describe(Feature("obs.depth.top", "uint16", (SIZE, SIZE), "state", scale_m=0.001), codec)


def rows_of(feature: Feature, count: int, seed: int = 0) -> Array:
    """A smooth picture that moves: what a video codec can keep."""
    rng = np.random.default_rng(seed)
    places = np.add.outer(np.arange(feature.shape[0]), np.arange(feature.shape[1]))
    moving = places[None] + 3 * np.arange(count)[:, None, None]
    scale = 200 if feature.dtype == "uint16" else 2
    rows = (moving * scale + rng.integers(0, 3, moving.shape)).astype(feature.dtype)
    return rows if len(feature.shape) == 2 else np.repeat(rows[..., None], feature.shape[2], -1)


def members_of(feature: Feature, values: Any, count: int, tmp_path: Path = Path("unused")) -> dict[str, memoryview]:
    schema = Schema("episodes", (feature,))
    coded = encode(Episode("e", {feature.name: values}, length=count), schema, WHO, tmp_path)
    return {name: memoryview(bytes(body)) for name, body in coded.members if not isinstance(body, Path)}


def bodies_of(feature: Feature, values: Any, count: int) -> tuple[memoryview, memoryview | None]:
    return sample.stored_members(feature, Schema("episodes", (feature,)), members_of(feature, values, count))


def test_every_codec_of_the_table_is_tested() -> None:
    assert {codec.partition(":")[0] for codec in CODECS} == {"raw", *codecs.CODECS}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("codec", CODECS)
def test_round_trip_of_any_shape_in_any_blocks_and_any_range(codec: str, data: st.DataObject) -> None:
    least = 16 if codec[:4] in ("h264", "av1:") else 1
    height, width = data.draw(st.integers(least, 35)), data.draw(st.integers(least, 35))
    feature = camera(codec, data.draw(st.sampled_from([1, 3])), height, width)
    count = data.draw(st.integers(1, 70 if codec == "dzst" else 9))
    rows = rows_of(feature, count)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    body, offsets = bodies_of(feature, iter(np.split(rows, cuts)), count)
    whole = sample.decode_rows(feature, body, offsets, 0, count, count)
    assert (whole.shape, whole.dtype) == (rows.shape, rows.dtype)
    worst = int(np.abs(whole.astype(int) - rows).max())
    assert worst == 0 if feature.lossless else worst < 120
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    assert np.array_equal(sample.decode_rows(feature, body, offsets, start, stop, count), whole[start:stop])
    assert np.array_equal(bodies_of(feature, rows, count)[0], body)  # however the blocks were cut


@pytest.mark.parametrize("codec", DEPTH_CODECS)
@pytest.mark.parametrize("count", [1, 32, 33])
def test_depth_loses_nothing(codec: str, count: int) -> None:
    feature = depth(codec)
    rows = np.random.default_rng(0).integers(0, 65536, (count, SIZE, SIZE), dtype=np.uint16)
    rows[0, 0] = 65535
    body, offsets = bodies_of(feature, rows, count)
    assert np.array_equal(sample.decode_rows(feature, body, offsets, 0, count, count), rows)


def test_dzst_takes_any_small_whole_numbers() -> None:
    for dtype, shape in [("uint8", (3, 5)), ("uint8", (3, 5, 7)), ("uint16", (2, 3, 4))]:
        feature = codecs.describe(Feature("x", dtype, shape), "dzst")
        rows = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (40, *shape), dtype=dtype)
        body, offsets = bodies_of(feature, rows, 40)
        assert np.array_equal(sample.decode_rows(feature, body, offsets, 0, 40, 40), rows)
        assert feature.unit_rows == 32


def test_dzst_is_the_differences_in_frames_that_say_their_size() -> None:
    feature = camera("dzst")
    rows = rows_of(feature, 40)
    body, offsets = bodies_of(feature, rows, 40)
    assert offsets is not None
    edges = shard.npy_view(offsets)
    assert len(edges) == 3
    frame = bytes(body[int(edges[1]) : int(edges[2])])
    about = zstandard.get_frame_parameters(frame)
    assert (about.content_size, about.has_checksum, about.dict_id) == (8 * feature.row_bytes, True, 0)
    stored = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8).reshape(8, *feature.shape)
    assert np.array_equal(stored[0], rows[32])
    assert np.array_equal(stored[1], rows[33] - rows[32])


def test_units_are_cut_from_any_blocks_and_held_one_at_a_time() -> None:
    taken: list[int] = []

    def source() -> Iterator[Array]:
        buffer = np.zeros((5, 2), np.uint8)
        for number in range(8):
            taken.append(number)
            buffer[:] = number  # a source that uses its memory again
            yield buffer

    units = cut(source(), 12)
    assert np.array_equal(next(units)[:, 0], [0] * 5 + [1] * 5 + [2] * 2)
    assert taken == [0, 1, 2]
    assert [len(unit) for unit in units] == [12, 12, 4]
    assert [len(unit) for unit in cut(iter([np.zeros((9, 1)), np.zeros((0, 1))]), 4)] == [4, 4, 1]
    assert list(cut(iter([]), 4)) == []


@pytest.mark.parametrize("codec", ["dzst", "h264:20:3", "av1:30:4", "png"])
def test_reading_rows_decodes_only_their_units(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = camera(codec)
    size, count = feature.unit_rows, 3 * feature.unit_rows + 1
    body, offsets = bodies_of(feature, rows_of(feature, count), count)
    decoded: list[int] = []
    original = type(codecs.find(codec)).decode

    def counting(self: Any, unit: bytes, feature: Feature, rows: int) -> Array:
        decoded.append(rows)
        return original(self, unit, feature, rows)

    monkeypatch.setattr(type(codecs.find(codec)), "decode", counting)
    assert len(sample.decode_rows(feature, body, offsets, size - 1, size + 1, count)) == 2
    assert decoded == [size, size]
    assert len(sample.decode_rows(feature, body, offsets, count - 1, count, count)) == 1
    assert decoded[2:] == [1]
    assert len(sample.decode_rows(feature, body, offsets, 2, 2, count)) == 0
    assert len(decoded) == 3
    assert offsets is not None
    units = Units.stored(feature, offsets, count, len(body))
    begin, end = units.extent(size, size + 1)  # what a reader of a remote file has to fetch
    assert (begin, end) == (int(units.edges[1]), int(units.edges[2]))
    assert np.array_equal(
        units.decode(body[begin:end], size, size + 1),
        sample.decode_rows(feature, body, offsets, size, size + 1, count),
    )


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS[1:])
def test_damaged_units_are_our_errors_and_nothing_else(codec: str) -> None:
    feature = camera(codec)
    rows = feature.unit_rows
    find = codecs.find(feature.codec)
    unit = find.encode(rows_of(feature, rows), feature)
    want = find.decode(unit, feature, rows)
    rng = np.random.default_rng(0)
    seen = 0
    for number in range(150):
        broken = bytearray(unit)
        if number % 3 == 2:
            del broken[int(rng.integers(len(unit))) :]
        else:
            place = int(rng.integers(min(len(unit), 40 if number % 3 else len(unit))))
            broken[place] ^= 1 << int(rng.integers(8))
        try:
            found = find.decode(bytes(broken), feature, rows)
        except DamagedError:
            seen += 1
        else:
            assert (found.shape, found.dtype) == (want.shape, want.dtype)
    assert seen >= 50  # the truncated ones at least
    for broken in (b"", b"\0", unit[: len(unit) // 2], unit[len(unit) // 2 :]):
        with pytest.raises(DamagedError):
            find.decode(broken, feature, rows)


@pytest.mark.parametrize("codec", ["h264:20:3", "av1:30:4"])
def test_decoders_of_video_do_not_conceal_damage(codec: str) -> None:
    """They would rather show something; ours are told not to. Checksums find what this leaves."""
    feature = camera(codec, size=48)
    find, rows = codecs.find(codec), feature.unit_rows
    unit, rng, seen = find.encode(rows_of(feature, rows), feature), np.random.default_rng(0), 0
    for _ in range(60):
        broken = bytearray(unit)
        broken[int(rng.integers(len(unit)))] ^= 1 << int(rng.integers(8))
        try:
            find.decode(bytes(broken), feature, rows)
        except DamagedError:
            seen += 1
    assert seen > 30


@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_byte_without_verification_is_no_foreign_error(tmp_path: Path, codec: str) -> None:
    path = _write16(tmp_path / "set", codec)
    file = path / "data" / "train-000000.tar"
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    with vrl3data.open(path, verify="off") as dataset:
        places = [(int(dataset.index[f"{name}.offset"][0].as_py()), int(dataset.index[f"{name}.size"][0].as_py()))
                  for name in sample.feature_members(dataset.schema["obs.image.top"], dataset.schema)]  # fmt: skip
    errors: list[str] = []
    for number in range(80):
        start, size = places[number % len(places)]
        place = start + int(rng.integers(size))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        with vrl3data.open(path, verify="off") as dataset:
            try:
                assert dataset[0]["obs.image.top"].shape == (5, 16, 16, 3)
            except DamagedError as error:
                errors.append(str(error))
        with vrl3data.open(path) as dataset, pytest.raises(DamagedError, match="hash of the commit record"):
            dataset[0]["obs.image.top"].sum()
    assert all("feature obs.image.top" in error for error in errors)
    assert errors or codec == "raw"


def _schema16(codec: str) -> Schema:
    plain = make_schema("raw", 16)
    return replace(plain, features=(codecs.describe(plain.features[0], codec), *plain.features[1:]))


def _write16(path: Path, codec: str, count: int = 1) -> Path:
    """Episodes of four steps and 16 pixels: video needs them."""
    with Writer(path, make_spec(_schema16(codec))) as writer:
        for number in range(count):
            writer.write(make_episode(number, 4, size=16))
    return path


def test_the_error_names_the_step() -> None:
    feature = camera("dzst")
    body, offsets = bodies_of(feature, rows_of(feature, 70), 70)
    assert offsets is not None
    place = int(shard.npy_view(offsets)[1]) + 30
    broken = memoryview(bytes(body[:place]) + bytes([body[place] ^ 1]) + bytes(body[place + 1 :]))
    assert len(sample.decode_rows(feature, broken, offsets, 0, 32, 70)) == 32
    with pytest.raises(DamagedError, match=r"not a readable zstd frame.*step 32"):
        sample.decode_rows(feature, broken, offsets, 0, 70, 70)


def _promise(content: int) -> bytes:
    """The header of a zstd frame that promises `content` bytes, and one empty last block."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", content) + b"\x01\x00\x00"


def test_a_frame_that_promises_too_much_is_not_unpacked() -> None:
    feature = camera("dzst")
    find = codecs.find("dzst")
    unit = find.encode(rows_of(feature, 2), feature)
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2400))
    large = zstandard.ZstdCompressor().compress(bytes(10**7))
    tracemalloc.start()
    for content in (100 * 1024**3, 2**63, feature.row_bytes * 3, 0):
        with pytest.raises(DamagedError, match=f"expected 2 rows, 2400 bytes, found a zstd frame of {content}"):
            find.decode(_promise(content), feature, 2)
    for wrong in (unknown, large):
        with pytest.raises(DamagedError, match="found a zstd frame of"):
            find.decode(wrong, feature, 2)
    assert tracemalloc.get_traced_memory()[1] < 2 * 10**6
    tracemalloc.stop()
    for wrong in (_promise(2400), unit + b"x", unit + unit):
        with pytest.raises(DamagedError, match="not a readable zstd frame"):
            find.decode(wrong, feature, 2)


@pytest.mark.parametrize("codec", ["h264:20:3", "av1:30:4"])
def test_video_with_other_pictures_than_promised(codec: str) -> None:
    feature = camera(codec, size=32)
    find = codecs.find(codec)
    unit = find.encode(rows_of(feature, 3), feature)
    with pytest.raises(DamagedError, match="expected 2 pictures, found more"):
        find.decode(unit, feature, 2)
    with pytest.raises(DamagedError, match="expected 4 pictures, found 3"):
        find.decode(unit, feature, 4)
    with pytest.raises(DamagedError, match=r"expected pictures of shape \(30, 30, 3\), found 32 x 32"):
        find.decode(unit, camera(codec, size=30), 3)
    large = camera(codec, size=512)
    huge = find.encode(rows_of(large, 1), large)
    with pytest.raises(DamagedError, match="not a readable unit"):  # refused before a picture of it is allocated
        find.decode(huge, feature, 1)


def test_units_that_do_not_fit_the_promised_rows() -> None:
    feature = camera("dzst")
    body, offsets = bodies_of(feature, rows_of(feature, 40), 40)
    assert offsets is not None
    meta = {"length": 40, "final_observation": 0, "absent": ""}
    assert sample.row_count(feature, body, offsets, meta) == 40
    for length in (32, 65):
        with pytest.raises(DamagedError, match=f"expected {length} rows in . units of 32, found offsets .* 2 units"):
            sample.row_count(feature, body, offsets, {**meta, "length": length})
    with pytest.raises(DamagedError, match="expected 1 rows in 1 units"):
        sample.row_count(feature, body, offsets, {**meta, "absent": "obs.image.top"})
    with pytest.raises(DamagedError, match=r"expected 9 rows, .* found a zstd frame of .*step 32"):
        sample.decode_rows(feature, body, offsets, 33, 41, 41)
    with pytest.raises(DamagedError, match="the body has 5 bytes"):
        sample.decode_rows(feature, body[:5], offsets, 0, 1, 40)
    edges = shard.npy_view(offsets).copy()
    for edge in (int(edges[2]) + 1, 2**64 - 1):
        wrong = memoryview(shard.npy_bytes(np.array([0, edge, edges[2]], np.uint64)))
        with pytest.raises(DamagedError, match="would lie at"):
            sample.decode_rows(feature, body, wrong, 0, 40, 40)
        with pytest.raises(DamagedError, match="units 0 to 0 would lie at"):
            Units.stored(feature, wrong, 40, len(body)).extent(0, 32)
    for wrong_edges in (edges.astype(np.int64), edges.reshape(3, 1)):
        with pytest.raises(DamagedError, match="found offsets"):
            sample.decode_rows(feature, body, memoryview(shard.npy_bytes(wrong_edges)), 0, 1, 40)
    late = memoryview(shard.npy_bytes(edges + np.uint64(1)))
    with pytest.raises(DamagedError, match="the offsets span 1 to"):
        sample.decode_rows(feature, body, late, 0, 1, 40)
    with pytest.raises(DamagedError, match="expected units of 1 row for png, found 2"):
        codecs.find("png").decode(b"", camera("png"), 2)


def test_a_depth_picture_of_another_mode_is_refused() -> None:
    unit = codecs.find("png").encode(rows_of(camera("png"), 1), camera("png"))
    with pytest.raises(DamagedError, match="expected a PNG image of 16-bit grey, found mode RGB"):
        codecs.find("png").decode(unit, depth("png"), 1)


def test_validate_names_a_wrong_number_of_coded_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write16(tmp_path / "set", "dzst", 1)
    assert validate(path).ok
    original = sample.promised_rows
    monkeypatch.setattr(
        sample, "promised_rows", lambda feature, meta: original(feature, meta) + (feature.name == "obs.image.top")
    )
    (finding,) = [finding for finding in validate(path).findings if finding.check == "rows"]
    assert "expected 6 rows" in finding.message
    assert finding.where.feature == "obs.image.top"


# -- the table and its options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "feature", "match"),
    [
        ("dzst:9", Feature("x", "uint8", (4, 4, 3)), "it takes no options"),
        ("dzst", Feature("x", "float32", (4, 4)), "needs uint8 or uint16 rows of two or three dimensions"),
        ("dzst", Feature("x", "uint8", (4,)), "needs uint8 or uint16 rows"),
        ("h264:52", Feature("x", "uint8", (32, 32, 3)), r"expected h264\[:CRF\[:ROWS\]\] with a rate factor from 0"),
        ("h264:20:0", Feature("x", "uint8", (32, 32, 3)), "1 to 256 pictures in a group"),
        ("av1:64", Feature("x", "uint8", (32, 32, 3)), "from 0 to 63"),
        ("av1:x", Feature("x", "uint8", (32, 32, 3)), "from 0 to 63"),
        ("h264", Feature("x", "uint16", (32, 32)), "needs sequences of uint8 images"),
        ("h264", Feature("x", "uint8", (32, 32, 3), "episode"), "needs sequences of uint8 images"),
        ("av1", Feature("x", "uint8", (8, 32, 3)), "takes 16 to 8192 pixels, feature x has 8 x 32"),
        ("dzts", Feature("x", "uint8", (8, 32, 3)), "unknown codec 'dzts'; did you mean 'dzst'"),
    ],
)  # fmt: skip
def test_what_a_codec_does_not_take(codec: str, feature: Feature, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        codecs.describe(feature, codec)


def test_the_stored_codec_says_everything() -> None:
    assert camera("h264").codec == "h264:18:8"
    assert camera("h264:23").codec == "h264:23:8"
    stored = camera("av1:30:4")
    assert (stored.codec, stored.unit_rows, stored.lossless) == ("av1:30:4", 4, False)
    assert "libsvtav1" in stored.encoder
    assert "BT.601 limited" in stored.encoder
    assert codecs.describe(replace(stored, codec="raw"), stored.codec) == stored
    assert camera("dzst").encoder.startswith("dzst level 3, zstd ")
    assert codecs.describe(camera("dzst"), "png").unit_rows == 1
    with pytest.raises(SchemaError, match="a picture of kind images is raw, jpeg or png, not 'dzst'"):
        Schema("images", (codecs.describe(Feature("image", "uint8", (8, 8, 3), "episode"), "dzst"),))
    for wrong in (0, True, "8"):
        with pytest.raises(SchemaError, match="is not a number of rows"):
            Feature("x", "uint8", (8, 8, 3), unit_rows=wrong)  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="codec 7 is not a name"):
        Feature("x", "uint8", codec=7)  # type: ignore[arg-type]


def test_video_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = camera("h264")
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (
        lambda: codecs.describe(replace(feature, codec="raw"), "h264"),
        lambda: codecs.find("h264").decode(b"", feature, 1),
        lambda: codecs.find("av1").encode(rows_of(feature, 1), feature),
    ):
        with pytest.raises(MissingExtra, match=r"pip install 'vrl3data\[video\]'"):
            call()


def test_a_build_without_the_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", {"h264"})
    with pytest.raises(ConfigError, match="this PyAV has no encoder libx264"):
        camera("h264")


def test_the_command_line_knows_the_codecs(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    for codec, match in [("dzts", "did you mean 'dzst'"), ("dzst", "not feature image")]:
        result = run_cli("convert", "imagenet", pictures, tmp_path / "set", "--codec", codec)
        assert match in result.stderr
        assert result.returncode == 2


# -- video -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264:10", "av1:10"])
@pytest.mark.parametrize("shape", [(84, 84, 3), (85, 85, 3), (17, 30, 1)])
def test_video_keeps_colours_places_and_odd_sizes(codec: str, shape: tuple[int, ...]) -> None:
    feature = camera(codec, shape[2], shape[0], shape[1])
    rows = np.zeros((3, *shape), np.uint8)
    rows[:, : shape[0] // 2] = (220, 60, 30)[: shape[2]]
    rows[:, :, shape[1] // 2 :] = (20, 40, 200)[: shape[2]]
    found = codecs.find(codec).decode(codecs.find(codec).encode(rows, feature), feature, 3).astype(int)
    edges = np.abs(found - rows)
    assert np.percentile(edges, 90) <= 6
    assert np.abs(found[:, 2:-2, 2:6] - rows[:, 2:-2, 2:6]).mean() < 6
    assert np.abs(found[:, -1, -1] - rows[:, -1, -1]).max() <= 16


@pytest.mark.parametrize("codec", ["h264:18:4", "av1:30:4"])
def test_the_bytes_of_a_unit_depend_on_its_rows_alone(codec: str) -> None:
    feature, other = camera(codec, size=24), camera(codec, size=48)
    find = codecs.find(codec)
    rows = rows_of(feature, 4)
    want = find.encode(rows, feature)
    for seed in range(4):
        find.encode(rows_of(other, seed + 1, seed), other)
        assert find.encode(rows, feature) == want
    assert b"x264" not in want


def test_the_settings_of_x264_are_cut_out_of_every_unit() -> None:
    remark = b"\0\0\1\x06\x05\xffx264 - core"
    unit = b"\0\0\0\1\x67abc" + remark + b"\0\0\0\1\x65picture"
    assert video._without_remarks(unit, "h264") == b"\0\0\0\1\x67abc\0\0\0\1\x65picture"
    assert video._without_remarks(unit, "av1") == unit


def test_measured_loss_is_that_of_the_decoded_rows(tmp_path: Path) -> None:
    path = _write16(tmp_path / "set", "h264:30", 2)
    with vrl3data.open(path) as dataset:
        for number, item in enumerate(dataset):
            given = make_episode(number, 4, size=16).values["obs.image.top"]
            difference = np.asarray(given).astype(int) - item["obs.image.top"]
            assert item.meta["max_error"] == np.abs(difference).max()
            psnr = 10 * np.log10(255**2 / (difference**2).mean())
            assert item.meta["psnr"] == pytest.approx(psnr, abs=0.006)
        assert dataset.manifest.lossy["psnr_min"] == min(item.meta["psnr"] for item in dataset)
    assert validate(path).ok


# -- passing through -------------------------------------------------------------------------------------------------


def copy(path: Path, dest: Path, codec: str | None = None, coded: bool = False) -> Path:
    """The dataset again, with another codec or with the bodies as they are; ids are kept."""
    with vrl3data.open(path) as dataset:
        schema = dataset.schema
        if codec is not None:
            plain = replace(schema.features[0], codec="raw", encoder="", unit_rows=1, lossless=True)
            schema = replace(schema, features=(codecs.describe(plain, codec), *schema.features[1:]))
        with Writer(dest, make_spec(schema)) as writer:
            for item in dataset:
                writer.append(encode(item.load(coded=coded), schema, WHO, writer.spool, sample_id=item.meta["id"]))
    return dest


def fingerprint(path: Path) -> str:
    with vrl3data.open(path) as dataset:
        return dataset.manifest.fingerprint


def test_recoding_without_loss_keeps_the_fingerprint(tmp_path: Path) -> None:
    paths = [_write16(tmp_path / "0", "raw", 3)]
    for number, codec in enumerate(("dzst", "png", "raw"), 1):
        paths.append(copy(paths[-1], tmp_path / str(number), codec))
        assert validate(paths[-1]).ok
    assert len({fingerprint(path) for path in paths}) == 1
    assert shard_bytes(paths[-1]) == shard_bytes(paths[0])


@pytest.mark.parametrize("codec", CODECS)
def test_what_passes_through_keeps_every_byte(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write16(tmp_path / "set", codec, 2)
    if codec != "raw":
        monkeypatch.setattr(type(codecs.find(codec)), "encode", lambda *_: pytest.fail("encoded again"))
    again = copy(path, tmp_path / "again", coded=True)
    assert fingerprint(again) == fingerprint(path)
    with vrl3data.open(path) as one, vrl3data.open(again) as two:
        for old, new in zip(one, two, strict=True):
            assert {k: v for k, v in old.meta.items() if k in ("id", "digest", "psnr", "max_error")} == {
                k: new.meta[k] for k in ("id", "digest", "psnr", "max_error")
            }
            for name in sample.feature_members(one.schema["obs.image.top"], one.schema):
                assert one.member(old.position, name) == two.member(new.position, name)
    assert validate(again).ok
    if one.schema["obs.image.top"].lossless:
        assert shard_bytes(again) == shard_bytes(path)


@pytest.mark.parametrize("codec", ["jpeg:80", "png"])
def test_pictures_pass_through(tmp_path: Path, codec: str) -> None:
    picture = codecs.describe(Feature("image", "uint8", (-1, -1, 3), "episode"), codec)
    schema = Schema("images", (picture, Feature("cls", "int64", (), "episode", codec="text")))
    rows = rows_of(camera("raw", size=9, width=14), 1)
    with Writer(tmp_path / "one", make_spec(schema)) as writer:
        writer.write(Episode("a", {"image": rows, "cls": np.array([1])}, label=1))
    with vrl3data.open(tmp_path / "one") as dataset, Writer(tmp_path / "two", make_spec(schema)) as writer:
        values = dataset[0].load(coded=True).values
        assert isinstance(values["image"], Coded)
        assert not isinstance(values["cls"], Coded)
        writer.write(dataset[0].load(coded=True))
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    wrong = Episode("a", {"image": Coded(b"x", np.zeros(2, np.uint64)), "cls": np.array([1])}, label=1)
    with pytest.raises(SchemaError, match="a picture of kind images has no offsets"):
        encode(wrong, schema, WHO, tmp_path)


def test_what_may_not_pass_through() -> None:
    feature = camera("jpeg:90")
    body, offsets = bodies_of(feature, rows_of(feature, 4), 4)
    assert offsets is not None
    edges = shard.npy_view(offsets)

    def passing(coded: Coded, target: Feature, length: int = 4) -> None:
        members_of(target, coded, length)

    passing(Coded(body, edges, stored=feature), feature)
    with pytest.raises(SchemaError, match=r"expected a body with codec 'jpeg:80', found 'jpeg:90'"):
        passing(Coded(body, edges, stored=feature), camera("jpeg:80"))
    with pytest.raises(SchemaError, match="with encoder"):
        passing(Coded(body, edges, stored=replace(feature, encoder="an older one")), feature)
    with pytest.raises(SchemaError, match="expected rows, found a coded body"):
        passing(Coded(body, edges), camera("raw"))
    with pytest.raises(SchemaError, match="every other coded body has some"):
        passing(Coded(body), feature)
    with pytest.raises(DamagedError, match=r"expected 5 rows in 5 units.*feature obs.image.top"):
        passing(Coded(body, edges), feature, 5)
    with pytest.raises(DamagedError, match=r"not a readable JPEG image.*step 1"):
        broken = bytearray(body)
        broken[int(edges[1])] ^= 255
        passing(Coded(bytes(broken), edges), feature)


def test_the_worst_loss_of_what_passes_and_what_is_encoded_counts() -> None:
    one, two = camera("jpeg:90"), replace(camera("jpeg:90"), name="obs.image.two")
    rows = rows_of(one, 4)
    body, offsets = bodies_of(one, rows, 4)
    assert offsets is not None
    schema = Schema("episodes", (one, two))

    def meta(psnr: float, error: float) -> dict[str, Any]:
        passed = Coded(body, shard.npy_view(offsets), psnr, error)  # type: ignore[arg-type]
        values: dict[str, Any] = {one.name: passed, two.name: rows}
        return encode(Episode("e", values, length=4), schema, WHO, Path("unused")).meta

    alone = meta(-1.0, -1.0)
    assert meta(5.0, 200.0)["psnr"] == 5.0
    assert meta(5.0, 200.0)["max_error"] == 200.0
    assert meta(99.0, 0.0)["psnr"] == alone["psnr"] < 99
    assert meta(99.0, 0.0)["max_error"] == alone["max_error"] > 0


def test_a_given_id_stays(tmp_path: Path) -> None:
    schema = make_schema("raw", 16)
    assert encode(make_episode(0, size=16), schema, WHO, tmp_path, sample_id="f" * 32).meta["id"] == "f" * 32
    assert encode(make_episode(0, size=16), schema, WHO, tmp_path).meta["id"] == WHO.sample_id("episode-0")
