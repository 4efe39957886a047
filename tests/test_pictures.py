"""Pictures on their way in: fit, depth, files of JPEG and PNG, and the codec that follows from them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg, make_spec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vrl3data
from converters.fields import Field, Loaded, timestamps
from converters.mapping import FieldMap, Rule, distinct, feature_name, read_map
from converters.pictures import MEMORY_BYTES, Frames, decode, depth_counts, resized
from converters.values import Look, feature_of, values
from vrl3data.errors import ConfigError, SourceError
from vrl3data.schema import NAME, PREVIEW, Coded, Episode, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer


def test_crop_takes_the_central_square() -> None:
    wide_NHWC = np.zeros((1, 8, 16, 3), np.uint8)
    wide_NHWC[:, :, 4:12] = 200
    assert (resized(wide_NHWC, 8, "crop") == 200).all()
    assert not (resized(wide_NHWC, 8, "squash") == 200).all()
    padded = resized(wide_NHWC, 8, "pad")
    assert padded[0, :2].max() == padded[0, 6:].max() == 0 and padded[0, 4, 4].min() == 200


def test_depth_is_never_averaged() -> None:
    depth_NHW = np.where(np.arange(32) % 2, 500, 3000).astype(np.uint16) * np.ones((1, 32, 1), np.uint16)
    assert set(np.unique(resized(depth_NHW, 10, "squash"))) <= {500, 3000}


def test_depth_in_metres_becomes_counts() -> None:
    assert depth_counts(np.array([0.5, np.nan, -1, np.inf, 65.535]), 0.001).tolist() == [500, 0, 0, 0, 65535]
    with pytest.raises(SourceError, match=r"65\.54 m does not fit in uint16 counts of 0\.001 m"):
        depth_counts(np.array([65.54]), 0.001)


@given(st.integers(1, 400), st.sampled_from([10, 12.5, 15, 29.97, 30, 50, 500]))
def test_stamps_do_not_drift(count: int, rate: float) -> None:
    stamps_N = timestamps(count, rate)
    assert abs(stamps_N - np.arange(count) * 1e9 / rate).max() <= 1


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(SourceError, match="expected a positive rate"):
        timestamps(3, 0)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3))
def test_any_words_make_a_name(words: list[str]) -> None:
    assert NAME.fullmatch(feature_name("obs", *words))


def write_one(path: Path, schema: Schema, episode: Episode) -> None:
    with Writer(path, make_spec(schema)) as writer:
        writer.write(episode)


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_files_decode_to_rows() -> None:
    pictures = [np.full((6, 9, 3), value, np.uint8) for value in range(20)]
    blocks = list(Frames([png(picture) for picture in pictures], (6, 9, 3)).rows())
    assert len(blocks) == 2 and np.array_equal(np.concatenate(blocks), pictures)
    depth = np.arange(54, dtype=np.uint16).reshape(6, 9) * 100
    assert np.array_equal(decode(png(depth), (6, 9)), depth)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (b"", "the file is empty"),
        (b"GIF89a" + bytes(40), "not a readable picture"),
        (jpeg(9, 6)[:100], "not a readable picture"),
        (jpeg(8, 6), "expected a picture of 6x9, found 6x8"),
    ],
)
def test_a_broken_file_is_named_by_its_step(file: bytes, match: str) -> None:
    with pytest.raises(SourceError, match=match) as error:
        list(Frames([jpeg(9, 6), file], (6, 9, 3)).rows())
    assert error.value.source.step == 1


CAMERA = Rule("obs.image.a", ("a",))


@pytest.mark.parametrize(
    ("field", "look", "codec"),
    [
        (Field("a", "uint8", (84, 84, 3)), Look(), "raw"),
        (Field("a", "uint8", (240, 320, 3)), Look(), "dzst"),
        (Field("a", "uint8", (240, 320, 3), lossy=True), Look(), "jpeg:95"),
        (Field("a", "uint8", (240, 320, 3), jpeg=True, lossy=True), Look(), "jpeg"),
        (Field("a", "uint8", (240, 320, 3), jpeg=True, lossy=True), Look(84), "raw"),
        (Field("a", "uint8", (240, 320, 3)), Look(codec="png"), "png"),
    ],
)
def test_the_codec_follows_from_size_and_source(field: Field, look: Look, codec: str) -> None:
    assert feature_of(CAMERA, {"a": field}, look).codec == codec


def test_jpeg_files_pass_untouched(tmp_path: Path) -> None:
    field = Field("a", "uint8", (140, 150, 3), jpeg=True)
    feature = feature_of(CAMERA, {"a": field}, Look())
    files = [jpeg(150, 140, seed) for seed in range(3)]
    loaded = Loaded({"a": Frames(files, field.shape)})
    value = values(FieldMap("x", (CAMERA,)), loaded, {"obs.image.a": feature}, Look())["obs.image.a"]
    assert isinstance(value, Coded) and bytes(value.body) == b"".join(files)
    episode = Episode("e", {"obs.image.a": value}, length=3)
    write_one(tmp_path / "out", Schema("episodes", (feature,), (PREVIEW,)), episode)
    with vrl3data.open(tmp_path / "out") as dataset:
        decoded = [decode(file, (140, 150, 3)) for file in files]
        assert np.array_equal(dataset[0]["obs.image.a"], decoded)
    assert validate(tmp_path / "out").ok
    broken = Loaded({"a": Frames([png(np.zeros((140, 150, 3), np.uint8))], field.shape)})
    with pytest.raises(SourceError, match="expected a JPEG file, found one that begins with"):
        values(FieldMap("x", (CAMERA,)), broken, {"obs.image.a": feature}, Look())


@pytest.mark.parametrize(
    ("rule", "field", "look", "match"),
    [
        (CAMERA, Field("a", "uint8", (84, 84, 4)), Look(), "1 or 3 channels"),
        (CAMERA, Field("a", "uint8", (84, 84, 3)), Look(codec="jpeg"), "copies the source's JPEG files"),
        (Rule("obs.depth.a", ("a",)), Field("a", "float32", (8, 8, 1)), Look(), "say scale_m"),
        (Rule("obs.depth.a", ("a",), scale_m=0.001), Field("a", "uint16", (8,)), Look(), "height x width"),
    ],
)
def test_what_cannot_be_a_picture_is_refused(rule: Rule, field: Field, look: Look, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        feature_of(rule, {"a": field}, look)


def test_any_mapping_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = ("two\nlines", "\U0001f600", "del\x7f", 'quote" and \\', "tab\t")
    vectors = Rule("obs.state", ("a", "two\nlines"), bounds=((0.0, -1e22), (2.5, 3.0)), names=("\x7f", "\U0001f600"))
    known = {path: Field(path, "float32") for path in ("a", *odd)}
    map_ = FieldMap("arrays", (vectors, Rule("obs.one", ("a",), bounds=(0.0, 1.0), scale_m=1e-05)), odd)
    (tmp_path / "map.toml").write_text(map_.to_toml(known), "utf-8")
    assert read_map(tmp_path / "map.toml", "arrays") == map_


def test_names_that_are_taken_get_numbers() -> None:
    rules = [Rule(name, (str(number),)) for number, name in enumerate(["a", "a", "a_2", "a"])]
    assert [rule.name for rule in distinct(rules)] == ["a", "a_2", "a_2_2", "a_3"]


@pytest.mark.parametrize(
    ("rows", "dtype", "match"),
    [
        (np.array([1, 300]), "int8", "300 does not fit int8, which the mapping asks for"),
        (np.array([-1]), "uint8", None),
        (np.array([1e300, np.inf]), "float32", "1e\\+300 does not fit float32"),
        (np.array([0.1, np.inf, np.nan]), "float32", ""),
        (np.array([-128, 127]), "int8", ""),
    ],
)
def test_numbers_must_fit_the_dtype_that_is_asked_for(rows: np.ndarray, dtype: str, match: str | None) -> None:
    rule, known = Rule("obs.a", ("a",), dtype=dtype), {"a": Field("a", rows.dtype.name)}
    if match is None:
        with pytest.raises(ConfigError, match="int64 cannot become uint8"):
            feature_of(rule, known, Look())
        return
    feature = feature_of(rule, known, Look())
    map_ = FieldMap("arrays", (rule,))
    if match:
        with pytest.raises(SourceError, match=match):
            values(map_, Loaded({"a": rows}), {"obs.a": feature}, Look())
    else:
        found = values(map_, Loaded({"a": rows}), {"obs.a": feature}, Look())["obs.a"]
        assert found.dtype == dtype
        assert np.array_equal(found, rows.astype(dtype), equal_nan=dtype == "float32")


@pytest.mark.parametrize("shape", [(6, 8, 1), (6, 8, 3)])
def test_sixteen_bits_are_not_cut_to_eight(shape: tuple[int, ...]) -> None:
    with pytest.raises(SourceError, match="expected a picture of 8 bits, found one of 16"):
        decode(png(np.full((6, 8), 40_000, np.uint16)), shape)


def test_many_files_are_joined_outside_of_memory() -> None:
    """More than fits: the body is a view of a file that has no name any more."""
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=100, subsampling=0)
    file = out.getvalue()
    count = MEMORY_BYTES // len(file) + 2
    few, many = Frames([file] * 2, noise.shape).coded(), Frames([file] * count, noise.shape).coded()
    assert isinstance(few.body, bytes) and isinstance(many.body, memoryview)
    assert many.offsets is not None and many.offsets.tolist() == [number * len(file) for number in range(count + 1)]
    assert len(many.body) == count * len(file) > MEMORY_BYTES
    assert many.body[: len(file)] == many.body[-len(file) :] == file
