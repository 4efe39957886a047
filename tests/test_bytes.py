"""Any prefix and any flipped bit of any file: the same data, or one of our errors that names the place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_episode, make_schema, make_spec, shard_bytes, write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vrl3data
from vrl3data import codecs, scan, shard
from vrl3data.errors import ConfigError, MissingExtra, Vrl3dataError
from vrl3data.loader import load_episodes
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import DTYPES, Array, Episode, Feature, Kind, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer

SOUND = {"structure", "shards", "checksum", "members", "rows", "meta", "digest", "manifest", "index"}
"""Checks that nothing which came through a Writer may fail."""
SHARD = "train-000000.tar"
NOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def tiny(path: Path, count: int = 2) -> Path:
    """The smallest dataset with every kind of member: about 9 kB in a shard."""
    camera = codecs.describe(Feature("obs.image.a", "uint8", (4, 4, 3)), "png")
    schema = Schema("episodes", (camera, Feature("action", "float32", (2,))), ("preview.jpg",))
    with Writer(path, make_spec(schema)) as writer:
        for number in range(count):
            rng = np.random.default_rng(number)
            values = {"obs.image.a": rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8),
                      "action": rng.normal(size=(2, 2)).astype(np.float32)}  # fmt: skip
            writer.write(Episode(f"e{number}", values, length=2, task="reach", source_meta={"seed": number}))
    return path


def everything(path: Path) -> list[Any] | Vrl3dataError:
    """All that a user can read, or our error. Any other exception goes through."""
    try:
        with vrl3data.open(path) as dataset:
            found: list[Any] = []
            for item in dataset:
                rows = {name: (item[name].tobytes(), item.rows(name, 1, 2).tobytes()) for name in dataset.schema.names}
                loaded = item.load()
                values = {
                    name: value.tobytes() for name, value in loaded.values.items() if isinstance(value, np.ndarray)
                }
                found.append((dict(item.meta), rows, item.preview(), replace(loaded, values={}), values))
            if dataset.schema.kind == "episodes" and len(dataset):
                steps = [f.name for f in dataset.schema.features if f.rows in ("step", "state")]
                table = load_episodes(dataset, steps)
                found.append({name: table.array(name).tobytes() for name in steps})
            return found
    except Vrl3dataError as error:
        return error


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def regions(file: Path) -> dict[str, list[int]]:
    """Offsets of a shard by what they are."""
    found: dict[str, list[int]] = {
        name: [] for name in ("header", "npy header", "payload", "meta.json", "__meta__", "padding")
    }
    walked = scan.scan(file)
    size = file.stat().st_size
    heads = file.read_bytes()
    places = [(shard.BLOCK, shard.parse_member_header(heads[: shard.BLOCK])[1], "__meta__")]
    places += [(start, length, name) for entry in walked.entries for name, (start, length) in entry.members.items()]
    for start, length, name in places:
        found["header"] += range(start - shard.BLOCK, start)
        body = name if name in ("meta.json", "__meta__") else "payload"
        header = shard.NPY_HEADER if name.endswith(".npy") else 0
        found["npy header"] += range(start, start + header)
        found[body] += range(start + header, start + length)
        found["padding"] += range(start + length, start + shard.padded(length))
    found["end"] = list(range(size - len(shard.END), size))
    return found


@pytest.mark.slow
def test_every_prefix_of_a_shard_being_written(tmp_path: Path) -> None:
    """Each length is scanned; each state that a scan can find, and its neighbours, is read in full."""
    path = tiny(tmp_path / "set")
    whole = (path / "data" / SHARD).read_bytes()
    want = everything(path)
    assert isinstance(want, list)
    shutil.rmtree(path)
    (path / "data").mkdir(parents=True)
    part = path / "data" / f"{SHARD}.part"
    part.write_bytes(whole)
    entries = scan.scan(part).entries
    ends = [start + shard.padded(size) for start, size in (entry.members["meta.json"] for entry in entries)]
    rng = np.random.default_rng(0)
    read = {*ends, *(end - 1 for end in ends), *range(0, len(whole), 509), len(whole), *rng.integers(0, len(whole), 40)}
    for length in range(len(whole), -1, -1):
        os.truncate(part, length)
        count = sum(end <= length for end in ends)
        assert [entry.meta for entry in scan.scan(part).entries] == [entry.meta for entry in entries[:count]]
        if length in read:
            found = everything(path)
            if isinstance(found, ConfigError):
                assert not count and "holds no sample yet" in str(found)
            else:
                assert isinstance(found, list), f"{length} bytes: {found}"
                assert found[:count] == want[:count] and len(found) == count + bool(count)
                assert validate(path).ok


@pytest.mark.slow
def test_every_prefix_of_a_finished_shard(tmp_path: Path) -> None:
    """Under its manifest, with and without an index, and alone."""
    path = tiny(tmp_path / "set")
    file = path / "data" / SHARD
    whole = file.read_bytes()
    for length in range(len(whole) - 1, -1, -1):
        os.truncate(file, length)
        with pytest.raises(Vrl3dataError, match=SHARD):  # a length that opens was taken for all
            vrl3data.open(path)
        if length % 499 == 0:
            found = everything(path)
            assert isinstance(found, Vrl3dataError)
            assert SHARD in str(found)
            assert not validate(path).ok
    (path / "dataset.json").unlink()
    (path / "index.parquet").unlink()
    file.write_bytes(whole)
    for length in range(len(whole) - 1, -1, -1):
        os.truncate(file, length)
        with pytest.raises(Vrl3dataError, match=SHARD):
            scan.scan(file)
        if length % 499 == 0:
            found = everything(path)
            assert isinstance(found, Vrl3dataError) and SHARD in str(found)


def test_going_on_from_any_prefix(tmp_path: Path) -> None:
    whole = shard_bytes(write_dataset(tmp_path / "whole", 2))
    rng = np.random.default_rng(1)
    for length in rng.integers(0, len(whole[SHARD]) - 1, 25):
        path = tmp_path / "set"
        shutil.rmtree(path, ignore_errors=True)
        (path / "data").mkdir(parents=True)
        (path / "data" / f"{SHARD}.part").write_bytes(whole[SHARD][:length])
        with Writer(path, make_spec()) as writer:
            for number in range(2):
                if not writer.has(f"episode-{number}"):
                    writer.write(make_episode(number, length=4 + number % 3))
        assert shard_bytes(path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("state", ["finished", "without index", "shards only", "being written"])
def test_single_flips_of_a_shard(tmp_path: Path, state: str) -> None:
    path = tiny(tmp_path / "set")
    want = everything(path)
    file = path / "data" / SHARD
    where = regions(file)
    if state != "finished":
        (path / "index.parquet").unlink()
    if state in ("shards only", "being written"):
        (path / "dataset.json").unlink()
    if state == "being written":
        file = file.rename(path / "data" / f"{SHARD}.part")
        file.write_bytes(file.read_bytes()[: -len(shard.END)])
        where.pop("end")
    whole, rng = file.read_bytes(), np.random.default_rng(2)
    assert everything(path) == want
    for what, offsets in where.items():
        seen = 0
        for place in rng.choice(offsets, 40, replace=False):
            file.write_bytes(flipped(whole, int(place), int(rng.integers(8))))
            found = everything(path)
            assert found == want or (isinstance(found, Vrl3dataError) and SHARD in str(found)), f"{what} {place}"
            seen += isinstance(found, Vrl3dataError)
            if state == "finished" and seen % 10 == 1:
                assert not validate(path).ok
        read = {"payload", "npy header", "meta.json"} if state == "finished" else set(where) - {"padding"}
        # An index leads past headers, and only `validate` looks at what nobody reads.
        assert seen == 40 or what not in read, f"{40 - seen} of 40 flips in {what} went unseen"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dataset.json", "index.parquet"])
def test_single_flips_of_manifest_and_index(tmp_path: Path, name: str) -> None:
    path = tiny(tmp_path / "set")
    want = everything(path)
    file = path / name
    whole, rng = file.read_bytes(), np.random.default_rng(3)
    for place in rng.choice(len(whole), 300, replace=False):
        file.write_bytes(flipped(whole, int(place), int(rng.integers(8))))
        found = everything(path)
        assert found == want or isinstance(found, Vrl3dataError), f"byte {place}"
        if isinstance(found, Vrl3dataError):
            assert str(path) in str(found)
        if place % 5 == 0:
            validate(path)
    assert not isinstance(want, Vrl3dataError)


def test_a_manifest_of_other_features_is_seen(tmp_path: Path) -> None:
    """One changed character in the schema, still valid JSON: no KeyError, no other pictures."""
    path = write_dataset(tmp_path / "set", 2, make_spec(make_schema("png")))
    want, text = everything(path), (path / "dataset.json").read_text()
    for old, new in [('"action"', '"abtion"'), ("12,\n          3", "12,\n          1"), ('"png"', '"raw"'),
                     ('"rows": "step"', '"rows": "state"'), ('"uint8"', '"uint16"'), ('"preview.jpg"', ""),
                     ('"float32"', '"float64"')]:  # fmt: skip
        assert old in text
        (path / "dataset.json").write_text(text.replace(old, new, 1))
        found = everything(path)
        assert found == want or isinstance(found, Vrl3dataError), new
        assert not validate(path).ok


# -- round trips over all codecs -------------------------------------------------------------------------------

CAMERAS = [("uint8", (8, 16, 3)), ("uint8", (16, 8, 1)), ("uint16", (6, 5))]


@cache
def codings() -> tuple[Feature, ...]:
    """A described feature for every codec and every kind of picture that it takes."""
    found = []
    for name in codecs.CODECS:
        for dtype, shape in CAMERAS:
            for text in (f"{name}:90", name):
                try:
                    feature = codecs.describe(Feature("x", dtype, shape), text)
                except MissingExtra:
                    break
                except ConfigError:
                    continue
                if feature.codec != "jpeg":  # that one copies files
                    found.append(feature)
                    break
    return tuple(found)


def test_every_codec_takes_part() -> None:
    assert {"png", "jpeg"} <= {feature.codec_name for feature in codings()} <= set(codecs.CODECS)


TEXT = st.text(max_size=12)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ENDS = st.sampled_from([-1, 0, 1])


@st.composite
def features(draw: Any, number: int, kind: Kind = "episodes") -> Feature:
    rows = draw(st.sampled_from(["step", "state", "episode"])) if kind == "episodes" else "episode"
    coded = [f for f in codings() if f.unit_rows == 1 or rows != "episode"]
    if draw(st.booleans()):
        return replace(draw(st.sampled_from(coded)), name=f"obs.c{number}", rows=rows)
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    return Feature(f"f{number}.x", draw(st.sampled_from(DTYPES)), shape, rows)


@st.composite
def episodes(draw: Any) -> tuple[Schema, list[Episode]]:
    schema = Schema("episodes", tuple(draw(features(number)) for number in range(draw(st.integers(1, 4)))))
    found = []
    for number in range(draw(st.integers(1, 3))):
        episode = Episode(
            f"{number}{draw(TEXT)}", {}, length=draw(st.integers(1, 5)), final_observation=draw(st.booleans()),
            task=draw(TEXT), source=draw(st.just("") | TEXT.map(lambda text: f"a/{text}")), success=draw(ENDS),
            terminated=draw(ENDS), truncated=draw(ENDS), start_time_ns=draw(st.integers(-1, 2**62)),
            split=draw(st.sampled_from(["train", "val", "t0"])),
            source_meta=draw(st.dictionaries(TEXT, JSON, max_size=3)),
            subsets=tuple(sorted(draw(st.sets(st.sampled_from(["a", "b"]))))), origin="scripted",
        )  # fmt: skip
        there = draw(st.sets(st.sampled_from(schema.names), min_size=1))
        values = {f.name: draw(hnp.arrays(f.dtype, (episode.row_count(f), *f.shape)))
                  for f in schema.features if f.name in there}  # fmt: skip
        found.append(replace(episode, values=values))
    return schema, found


def in_blocks(rows: Array, cuts: list[int]) -> Iterator[Array]:
    """Blocks in one buffer that is overwritten after each, as a decoder may do."""
    edges = [0, *sorted({cut % (len(rows) + 1) for cut in cuts} - {0, len(rows)}), len(rows)]
    for start, stop in zip(edges, edges[1:], strict=False):
        block = rows[start:stop].copy()
        yield block
        block.view(np.uint8).fill(77) if block.size else None


def same_texts(stored: Episode, given: Episode) -> bool:
    return replace(stored, values={}, source_meta={}) == replace(given, values={}, source_meta={})


@given(episodes(), st.integers(2000, 30_000), st.lists(st.integers(0, 9), max_size=3), st.booleans())
@NOW
def test_round_trip_of_episodes(
    tmp_path: Path, drawn: tuple[Schema, list[Episode]], shard_size: int, cuts: list[int], blocks: bool
) -> None:
    schema, given_ = drawn
    path = tmp_path / "set"
    shutil.rmtree(path, ignore_errors=True)
    with Writer(path, make_spec(schema, shard_size)) as writer:
        for episode in given_:
            values = {name: in_blocks(np.asarray(value), cuts) for name, value in episode.values.items()}
            writer.write(replace(episode, values=values) if blocks else episode)
    with vrl3data.open(path, verify="always") as dataset:
        stored = {item.name: item for item in dataset}
        assert len(stored) == len(given_)
        for episode in given_:
            item = stored[episode.name]
            loaded = item.load()
            assert same_texts(loaded, episode)
            assert json.loads(json.dumps(loaded.source_meta)) == json.loads(json.dumps(dict(episode.source_meta)))
            assert set(item.absent) == set(schema.names) - set(episode.values)
            worst = -1.0
            for feature in schema.features:
                rows = item[feature.name]
                if feature.name not in episode.values:
                    assert not feature.lossless or not rows.any()
                    continue
                want = np.asarray(episode.values[feature.name])
                assert (rows.dtype, rows.shape) == (want.dtype, want.shape)
                assert np.array_equal(item.rows(feature.name, 1, 3), rows[1:3], equal_nan=want.dtype.kind == "f")
                if feature.lossless:
                    assert rows.tobytes() == want.tobytes()
                else:
                    worst = max(worst, float(np.abs(rows.astype(int) - want).max()))
            if set(schema.names) == set(episode.values):
                assert item.meta["max_error"] == worst
    assert not [finding for finding in validate(path).findings if finding.check in SOUND]


@st.composite
def images(draw: Any) -> tuple[Schema, list[Episode]]:
    picture = draw(st.sampled_from([f for f in codings() if f.dtype == "uint8" and f.unit_rows == 1]))
    raw = draw(st.booleans())
    image = (
        Feature("image", "uint8", (4, 3, 3), "episode")
        if raw
        else codecs.describe(Feature("image", "uint8", (-1, -1, picture.shape[-1]), "episode"), picture.codec)
    )
    label = Feature("cls", "int64", (), "episode", codec="text", names=("a", "b"))
    more = tuple(draw(features(number, "images")) for number in range(draw(st.integers(0, 2))))
    schema = Schema("images", (image, label, *more))
    found = []
    for number in range(draw(st.integers(1, 4))):
        size = (4, 3) if raw else (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
        label_ = draw(st.integers(-1, 1))
        values = {"image": draw(hnp.arrays("uint8", (1, *size, image.shape[-1]))), "cls": np.array([label_], np.int64),
                  **{f.name: draw(hnp.arrays(f.dtype, (1, *f.shape))) for f in more}}  # fmt: skip
        found.append(Episode(f"{number}{draw(TEXT)}", values, label=label_, class_name=draw(TEXT),
                             split=draw(st.sampled_from(["train", "val"])), origin="web"))  # fmt: skip
    return schema, found


@given(images())
@NOW
def test_round_trip_of_images(tmp_path: Path, drawn: tuple[Schema, list[Episode]]) -> None:
    schema, given_ = drawn
    path = tmp_path / "set"
    shutil.rmtree(path, ignore_errors=True)
    spec = DatasetSpec(schema, "images", Provenance("test", source_identity="0", shard_size=20_000))
    with Writer(path, spec) as writer:
        for image in given_:
            writer.write(image)
    with vrl3data.open(path, verify="always") as dataset:
        stored = {item.name: item for item in dataset}
        for image in given_:
            item = stored[image.name]
            assert same_texts(item.load(), image)
            for feature in schema.features:
                rows, want = item[feature.name], np.asarray(image.values[feature.name])
                assert (rows.dtype, rows.shape) == (want.dtype, want.shape)
                assert not feature.lossless or rows.tobytes() == want.tobytes()
    assert not [finding for finding in validate(path).findings if finding.check in SOUND]
