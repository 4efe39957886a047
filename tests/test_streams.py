"""Features that keep a rate of their own: written, read, checked, carried through the tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_spec

import vrl3data
from vrl3data import codecs
from vrl3data.app import write_card
from vrl3data.errors import DamagedError, FormatError, SchemaError
from vrl3data.sample import stream_rows
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.tools.merge import merge
from vrl3data.tools.recode import recode
from vrl3data.validation import validate
from vrl3data.writer import Writer

IMU = Feature("obs.imu", "float32", (3,), "stream:imu")
STAMPS = Feature("timestamp.imu", "int64", (), "stream:imu", unit="ns")


def schema() -> Schema:
    camera = Feature("obs.image.a", "uint8", (8, 8, 3), "stream:cam", color="rgb")
    plain = Feature("obs.image.main", "uint8", (8, 8, 3), "state", color="rgb")
    return Schema(
        "episodes",
        (codecs.describe(camera, "dzst"), plain, IMU, STAMPS, replace(STAMPS, name="timestamp.cam", rows="stream:cam"),
         Feature("action", "float32", (2,)), Feature("timestamp", "int64", (), "state", unit="ns")),
        ("preview.jpg",),
    )  # fmt: skip


def episode(number: int, camera: bool = True) -> Episode:
    rng = np.random.default_rng(number)
    length, cam, imu = 6 + number, 40 + number, 90 - number
    values = {
        "obs.image.main": rng.integers(0, 255, (length, 8, 8, 3), np.uint8),
        "obs.imu": rng.normal(size=(imu, 3)).astype(np.float32),
        "timestamp.imu": np.arange(imu) * 2_000_000,
        "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "timestamp": np.arange(length) * 50_000_000,
    }
    streams = {"imu": imu}
    if camera:
        frames = rng.integers(0, 255, (cam, 8, 8, 3), np.uint8)
        values |= {"obs.image.a": frames, "timestamp.cam": np.arange(cam) * 33_333_333}
        streams["cam"] = cam
    return Episode(f"e{number}", values, length, streams=streams, source="log")


def written(path: Path, *episodes: Episode) -> Path:
    with Writer(path, make_spec(schema())) as writer:
        for each in episodes:
            writer.write(each)
    return path


def test_streams_come_back_at_their_own_rate(tmp_path: Path) -> None:
    episodes = [episode(0), episode(1, camera=False), episode(2)]
    with vrl3data.open(written(tmp_path / "out", *episodes)) as dataset:
        for item, given in zip(dataset, episodes, strict=True):
            for name, value in given.values.items():
                assert np.array_equal(item[name], value)
        assert dataset[1].absent == ("obs.image.a", "timestamp.cam")
        assert dataset[2].rows("obs.image.a", 39, 42).shape == (3, 8, 8, 3)
        assert dataset.index["streams"].to_pylist() == ["cam=40,imu=90", "imu=89", "cam=42,imu=88"]
    report = validate(tmp_path / "out")
    assert report.ok, report.findings


def test_tools_carry_streams(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", episode(0)), written(tmp_path / "b", episode(3), episode(1, camera=False))
    with vrl3data.open(first) as a, vrl3data.open(second) as b:
        merge([a, b], tmp_path / "all")
    with vrl3data.open(tmp_path / "all") as dataset:
        recode(dataset, tmp_path / "raw", "raw")
        fingerprint = dataset.manifest.fingerprint
    with vrl3data.open(tmp_path / "raw") as dataset:
        assert dataset.manifest.fingerprint == fingerprint
        assert np.array_equal(dataset[1]["obs.image.a"], episode(3).values["obs.image.a"])
    assert validate(tmp_path / "raw").ok


def test_windows_take_what_is_in_step(tmp_path: Path) -> None:
    path = written(tmp_path / "out", episode(0), episode(1))
    with vrl3data.open(path) as dataset, dataset.windows(4, frame_stack=2, seed=0, epochs=1) as batches:
        batch = next(iter(batches))
        assert "obs.image.main" in batch and not {"obs.imu", "obs.image.a"} & set(batch)


@pytest.mark.parametrize(
    ("features", "match"),
    [
        ((IMU,), "the clock 'imu' needs a feature 'timestamp.imu'"),
        ((IMU, replace(STAMPS, dtype="float64")), "the clock 'imu' needs"),
        ((IMU, replace(STAMPS, rows="step")), "the clock 'imu' needs"),
    ],
)
def test_a_clock_needs_its_stamps(features: tuple[Feature, ...], match: str) -> None:
    with pytest.raises(SchemaError, match=match):
        Schema("episodes", features)


def test_counts_must_be_given_and_true(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="expected the number of rows of 'imu' in `streams`"):
        written(tmp_path / "a", replace(episode(0), streams={"cam": 40}))
    with pytest.raises(SchemaError, match="expected 91 rows"):
        written(tmp_path / "b", replace(episode(0), streams={"cam": 40, "imu": 91}))
    with pytest.raises(FormatError, match="rows 'stream:IMU' is not known"):
        Feature("obs.imu", "float32", (3,), "stream:IMU")


def test_a_clock_that_goes_back_is_found(tmp_path: Path) -> None:
    given = episode(0)
    stamps = np.array(given.values["timestamp.imu"])
    stamps[30:] -= 10_000_000
    broken = replace(given, values={**given.values, "timestamp.imu": stamps})
    findings = validate(written(tmp_path / "out", broken)).findings
    places = [(found.check, found.where.feature, found.where.step) for found in findings if found.severity == "error"]
    assert places == [("timestamps", "timestamp.imu", 30)]


def test_a_broken_count_is_damage() -> None:
    assert stream_rows({"streams": "cam=3,imu=20"}) == {"cam": 3, "imu": 20}
    for text in ("imu", "imu=", "imu=-1", "imu=3,", "=3"):
        with pytest.raises(DamagedError, match="streams: expected clock=rows"):
            stream_rows({"streams": text})


def test_datasets_reads_them(tmp_path: Path) -> None:
    import datasets

    path = written(tmp_path / "out", episode(0), episode(1))
    write_card(path)
    loaded = datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert np.asarray(loaded[1]["obs.imu.npy"]).shape == (89, 3)
