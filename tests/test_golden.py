"""Every format version ever released stays readable, by us and by a reader written from FORMAT.md alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import spec_digest
import spec_reader

import vrl3data
from vrl3data import manifest
from vrl3data.validation import validate

GOLDEN = Path(__file__).parent / "golden"
SETS = sorted(path.parent for path in GOLDEN.glob("v*/*/data"))


def expected(path: Path) -> dict[str, object]:
    return json.loads((path.parent / "expected.json").read_text())[path.name]


def agrees(array: np.ndarray, want: list[object], lossless: bool) -> bool:
    """JPEG decoders may differ by rounding; everything else is exact."""
    same = hashlib.sha256(array.tobytes()).hexdigest() == want[2]
    return [array.dtype.name, list(array.shape)] == want[:2] and (same or not lossless)


def test_there_are_golden_files_for_this_version() -> None:
    found: dict[str, list[str]] = {}
    for path in SETS:
        found.setdefault(path.parent.name, []).append(path.name)
    assert found == {
        "v1.0": ["episodes", "images-jpeg", "images-png", "images-raw", "unfinished"],
        "v1.0-codecs": ["av1", "dzst", "h264"],
        "v1.0-streams": ["streams"],
    }


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.name)
def test_our_reader(path: Path) -> None:
    want = expected(path)
    with vrl3data.open(path) as dataset:
        assert dataset.manifest.fingerprint == want["fingerprint"]
        assert [item.name for item in dataset] == [sample["name"] for sample in want["samples"]]
        for item, sample in zip(dataset, want["samples"], strict=True):
            for feature in dataset.schema.features:
                assert agrees(item[feature.name], sample["values"][feature.name], feature.lossless)
    report = validate(path)
    assert report.ok, report.findings
    assert report.complete == (path.name != "unfinished")


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.name)
def test_reader_written_from_the_specification(path: Path) -> None:
    want = expected(path)
    samples = sorted(spec_reader.read(path), key=lambda sample: (sample["split"], sample["key"]))
    assert [sample["meta"]["name"] for sample in samples] == [sample["name"] for sample in want["samples"]]
    for sample, facts in zip(samples, want["samples"], strict=True):
        for feature in sample["schema"]["features"]:
            assert agrees(sample["values"][feature["name"]], facts["values"][feature["name"]], feature["lossless"])
        assert spec_digest.digest(sample, sample["schema"]) == sample["meta"]["digest"]
    assert manifest.fingerprint(sample["meta"]["digest"] for sample in samples) == want["fingerprint"]


def test_the_reader_is_as_short_as_promised() -> None:
    for name, promised in (("spec_reader.py", 60), ("spec_units.py", 40)):
        lines = (Path(__file__).parent / name).read_text().splitlines()
        assert len(lines) <= promised
        assert not any("vrl3data" in line for line in lines if "import" in line)


@pytest.mark.parametrize(("name", "codec"), [("h264", "h264:20:8"), ("av1", "av1:20:8")])
def test_the_colours_of_video_are_those_of_the_specification(name: str, codec: str) -> None:
    """`spec_units` has the matrix of FORMAT.md 5, we have swscale; how Cb and Cr of 4:2:0 are scaled is not said."""
    path = GOLDEN / "v1.0-codecs" / name
    with vrl3data.open(path) as dataset:
        assert dataset.schema["obs.image.a"].codec == codec
        for item, told in zip(dataset, spec_reader.read(path), strict=True):
            for feature in ("obs.image.a", "obs.image.b"):
                difference = np.abs(item[feature].astype(int) - told["values"][feature])
                exact = name == "h264" or feature == "obs.image.b"  # grey pictures have nothing to scale
                assert difference.max() <= 3 if exact else difference.mean() < 5


def test_what_the_golden_episodes_say() -> None:
    with vrl3data.open(GOLDEN / "v1.0" / "episodes") as dataset:
        assert dataset.manifest.splits["train"].samples == 3
        assert dataset.manifest.subsets == {"easy": 1, "first": 1}
        first, second = dataset[0], dataset[1]
        assert first.meta["success"] == -1
        assert first.row_count("obs.image.a") == 4
        assert first.source_meta == {"operator": None, "gains": [1.5, 2]}
        assert first.meta["task"] == "put it → there"
        assert second.absent == ("obs.proprio",)
        assert second["obs.proprio"].tolist() == [[0, 0, 0]]
        assert second.row_count("obs.image.a") == second.length
        assert dataset[dataset.split("val")[0]].name == "run/3"
        assert dataset.schema["obs.depth.a"].scale_m == 0.001
