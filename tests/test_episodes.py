"""What converters of episodes share: names, mapping, selection of cameras, contradictions, identity."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from array_source import ArraysConverter, write_source
from conftest import shard_bytes

import vrl3data
from converters import hashing
from converters.episodes import EpisodeOptions, relative_names
from converters.run import RunOptions, run
from converters.select import Selection
from vrl3data import manifest
from vrl3data.app import write_card
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate


def converted(source: Path, dest: Path, jobs: int = 1, **options: object) -> vrl3data.Dataset:
    run(ArraysConverter([source], EpisodeOptions(**options)), dest, RunOptions(jobs=jobs))
    assert not [finding for finding in validate(dest).findings if finding.severity == "error"]
    return vrl3data.open(dest)


def test_values_and_facts_arrive(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with converted(source, tmp_path / "out") as dataset, np.load(source / "episode_1.npz") as arrays:
        item = dataset[1]
        assert np.array_equal(item["obs.image.front"], arrays["img"]) and item["obs.image.front"].shape[0] == 6
        assert np.array_equal(item["action"], arrays["act"])
        assert np.array_equal(item["obs.state"], np.c_[arrays["a"], arrays["b"]])
        assert item["timestamp"].tolist() == [0, 33333333, 66666667, 100000000, 133333333, 166666667]
        facts = ("episode_1/0", "episode_1.npz", "reach", 1, 1)
        assert tuple(item.meta[key] for key in ("name", "source", "task", "success", "final_observation")) == facts
        chosen = dataset.manifest.provenance["options"]
        assert chosen["mapping"]["dropped"] == ["junk"]
        assert str(tmp_path) not in str(dataset.manifest.to_json())


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_cameras_are_resized(tmp_path: Path, fit: str) -> None:
    with converted(write_source(tmp_path / "source"), tmp_path / "out", image_size=12, fit=fit) as dataset:
        image_NHWC = dataset[0]["obs.image.front"]
        assert image_NHWC.shape == (5, 12, 12, 3)
        assert dataset.schema["obs.image.front"].fit == fit
        assert (image_NHWC[:, :2].max() == 0) == (fit == "pad")  # 20x30 in 12x12: two black rows above


def test_a_given_mapping_decides(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    guessed = ArraysConverter([source], EpisodeOptions())
    text = guessed.mapping().to_toml(guessed.known())
    text = text.replace('source = ["a", "b"]', 'source = ["junk"]\ncolumns = [4, 0]\nnames = ["x", "y"]\nunit = "m"')
    text = text.replace('dropped = ["junk"]', 'dropped = ["a", "b"]')
    (tmp_path / "map.toml").write_text(text)
    with converted(source, tmp_path / "out", mapping=str(tmp_path / "map.toml")) as dataset:
        with np.load(source / "episode_0.npz") as arrays:
            assert np.array_equal(dataset[0]["obs.state"], arrays["junk"][:, [4, 0]])
        feature = dataset.schema["obs.state"]
        assert (feature.names, feature.unit) == (("x", "y"), "m")


def test_channels_in_another_order(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    guessed = ArraysConverter([source], EpisodeOptions())
    text = guessed.mapping().to_toml(guessed.known()).replace('source = ["img"]', 'source = ["img"]\ncolor = "bgr"')
    (tmp_path / "map.toml").write_text(text)
    with converted(source, tmp_path / "out", mapping=str(tmp_path / "map.toml")) as dataset:
        with np.load(source / "episode_0.npz") as arrays:
            assert np.array_equal(dataset[0]["obs.image.front"], arrays["img"][..., ::-1])
        assert dataset.schema["obs.image.front"].color == "rgb"


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ('source = ["act"]', 'source = ["atc"]', "no field 'atc'; did you mean 'act'"),
        ('dropped = ["junk"]', "dropped = []", "nothing is said of the field 'junk'"),
        ('kind = "arrays"', 'kind = "lerobot"', "expected a mapping of kind 'arrays', found 'lerobot'"),
        ('name = "action"', 'name = "obs.state"', "the feature 'obs.state' is given twice"),
        ("representation", "reprezentation", "unknown key 'reprezentation'; did you mean 'representation'"),
        ('source = ["a", "b"]', 'source = ["a", "b"]\ncolumns = [7]', "columns: expected 0 to 2"),
        ('source = ["a", "b"]', 'source = ["a", "b"]\nnames = ["x"]', "expected 3 names, found 1"),
        ('source = ["a", "b"]', 'source = ["a", "b"]\ndtype = "uint8"', "cannot become uint8"),
        ('source = ["a", "b"]', 'source = ["a", "b"]\nrows = "steps"', "rows 'steps'; did you mean 'step'"),
        ('source = ["img"]', 'source = ["img"]\nlayout = "chw"', "1 or 3 channels"),
        ("[[feature]]", "[feature]", "cannot read this as TOML|expected .*feature"),
        ('source = ["a", "b"]', "bounds = [1]\nsource = ['a', 'b']", "expected .low, high., found"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path: Path, before: str, after: str, match: str) -> None:
    source = write_source(tmp_path / "source")
    guessed = ArraysConverter([source], EpisodeOptions())
    text = guessed.mapping().to_toml(guessed.known())
    assert before in text
    (tmp_path / "map.toml").write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=match):
        ArraysConverter([source], EpisodeOptions(mapping=str(tmp_path / "map.toml"))).plan()


def test_cameras_are_chosen_by_name(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(ConfigError, match="camera: the source has no 'frnt'; did you mean 'front'"):
        ArraysConverter([source], EpisodeOptions(camera=("frnt",))).plan()
    assert "obs.image.front" in ArraysConverter([source], EpisodeOptions(camera=("front",))).plan().spec.schema


def test_an_episode_that_contradicts_the_others_is_a_problem(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 3)
    with np.load(source / "episode_1.npz") as arrays:
        np.savez(source / "episode_1.npz", **{**arrays, "act": arrays["act"][:, :2]})
    (source / "episode_2.npz").write_bytes(b"no archive")
    plan = ArraysConverter([source], EpisodeOptions()).plan()
    assert [name for name, _ in plan.problems] == ["episode_1/0", "episode_2.npz"]
    assert "feature act" in str(plan.problems[0][1]) and "expected float64 3, step" in str(plan.problems[0][1])
    assert plan.count == 1 and [unit.name for unit in plan.units] == ["episode_0/0"]


def test_a_field_that_one_episode_lacks_is_absent_there(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 2)
    with np.load(source / "episode_1.npz") as arrays:
        np.savez(source / "episode_1.npz", **{key: value for key, value in arrays.items() if key != "a"})
    with converted(source, tmp_path / "out") as dataset:
        assert dataset[1].absent == ("obs.state",)


def test_nothing_left_is_an_error_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"not an \.npz file.*broken\.npz"):
        ArraysConverter([tmp_path / "broken.npz"], EpisodeOptions()).plan()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no \.npz files are in this folder"):
        ArraysConverter([tmp_path / "empty"], EpisodeOptions()).plan()
    with pytest.raises(ConfigError, match="the same source is given twice"):
        ArraysConverter([tmp_path / "broken.npz"] * 2, EpisodeOptions()).plan()


def test_the_card_says_what_was_assumed_and_left_out(tmp_path: Path) -> None:
    converted(write_source(tmp_path / "source"), tmp_path / "out").close()
    assert manifest.read(tmp_path / "out").run["notes"] == ["made up", "fields that became no feature: junk"]
    card = write_card(tmp_path / "out").read_text()
    assert "- made up" in card and "| `obs.state` | a, b |" in card and "| (none) | `junk` |" in card


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 5)
    for jobs in (1, 2):
        converted(source, tmp_path / f"out{jobs}", jobs=jobs).close()
    assert shard_bytes(tmp_path / "out1") == shard_bytes(tmp_path / "out2")


def test_workers_get_no_list_of_recordings(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 2)
    converter = ArraysConverter([source], EpisodeOptions())
    unit = next(iter(converter.plan().units))
    copy = pickle.loads(pickle.dumps(converter))
    assert copy._found.recordings == () and copy.read(unit).name == "episode_0/0"


def test_only_files_that_are_read_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source", 4)
    hashed: list[str] = []
    before = hashing.file_sha256
    monkeypatch.setattr(hashing, "file_sha256", lambda path: hashed.append(path.name) or before(path))
    options = RunOptions(selection=Selection(episodes="2"))
    run(ArraysConverter([source], EpisodeOptions()), tmp_path / "out", options)
    assert hashed == ["episode_2.npz"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("monday", "tuesday"):
        write_source(tmp_path / folder, 1)
    sources = [tmp_path / folder / "episode_0.npz" for folder in ("monday", "tuesday")]
    assert relative_names(sources) == ["monday/episode_0.npz", "tuesday/episode_0.npz"]
    assert relative_names([tmp_path / "a/x.h5", Path("/elsewhere/x.h5")]) == ["a/x.h5", "elsewhere/x.h5"]
    units = ArraysConverter(sources, EpisodeOptions()).plan().units
    assert [unit.name for unit in units] == ["monday/episode_0/0", "tuesday/episode_0/0"]
