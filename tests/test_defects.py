"""Every listed defect is found by its named check and where it is; the clean set has no finding."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm import arm_episodes, write_arm
from click.testing import CliRunner
from conftest import make_spec, shard_bytes
from damage import edit_manifest, flip
from defects import EPISODES, FILES

from converters.adroit import pickles
from vrl3data import index
from vrl3data.checks import CONTENT, DATASET, EPISODE
from vrl3data.checks.finding import Finding
from vrl3data.cli import run as main
from vrl3data.cli.validate import validate as command
from vrl3data.errors import ConfigError
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.validation import CHECKS, Report, validate
from vrl3data.writer import Writer


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return arm_episodes()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> Path:
    return write_arm(tmp_path_factory.mktemp("clean") / "arm", episodes)


def alarms(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity != "info"]


def assert_found(report: Report, check: str, where: dict[str, object]) -> None:
    places = [finding.where for finding in report.findings if finding.check == check]
    assert places, f"expected {check}, found {[str(finding) for finding in report.findings]}"
    assert any(all(getattr(place, key) == value for key, value in where.items()) for place in places), (
        f"expected {where}, found {[str(place) for place in places]}"
    )


def test_the_clean_set_has_no_finding(clean: Path) -> None:
    assert [str(finding) for finding in validate(clean).findings] == []


@pytest.mark.parametrize("name", FILES)
def test_damage_to_files(name: str, clean: Path, tmp_path: Path) -> None:
    defect = FILES[name]
    path = Path(shutil.copytree(clean, tmp_path / "arm"))
    defect.spoil(path)
    assert_found(validate(path), defect.check, dict(defect.where))


@pytest.mark.parametrize("name", EPISODES)
def test_wrong_content(name: str, episodes: list[Episode], tmp_path: Path) -> None:
    defect = EPISODES[name]
    path = write_arm(tmp_path / "arm", defect.spoil(episodes))
    assert_found(validate(path), defect.check, dict(defect.where))


def test_unknown_checks_are_named_and_nothing_is_written(clean: Path) -> None:
    before = shard_bytes(clean)
    assert validate(clean, checks=["stuck"]).ok
    with pytest.raises(ConfigError, match="no check 'stuk'; did you mean 'stuck'"):
        validate(clean, checks=["stuk"])
    with pytest.raises(ConfigError, match="no check 'colour'"):
        validate(clean, skip=["colour"])
    assert shard_bytes(clean) == before


def test_checks_can_be_chosen_and_skipped(episodes: list[Episode], tmp_path: Path) -> None:
    path = write_arm(tmp_path / "arm", EPISODES["stuck joint"].spoil(episodes))
    assert {finding.check for finding in validate(path, checks=["stuck", "bounds"]).findings} == {"stuck"}
    assert "stuck" not in {finding.check for finding in validate(path, skip=["stuck"]).findings}


def test_one_damaged_episode_does_not_hide_the_others(episodes: list[Episode], tmp_path: Path) -> None:
    """Content is compared among what can be read; what cannot is an error of its own."""
    path = write_arm(tmp_path / "arm", EPISODES["stuck joint"].spoil(episodes))
    flip(path, "action.npy", sample=2)
    found = {(finding.check, finding.where.episode) for finding in validate(path).findings}
    assert {("checksum", "arm-2"), ("stuck", "arm-4")} <= found


def test_numbers_beyond_any_scale_do_no_harm(episodes: list[Episode], tmp_path: Path) -> None:
    """Squares of such numbers are infinite; that must end neither in a warning of NumPy nor in silence."""
    huge = np.full_like(episodes[0].values["reward"], 1e300)
    changed = replace(episodes[0], values={**episodes[0].values, "reward": huge})
    report = validate(write_arm(tmp_path / "arm", [changed, *episodes[1:]]))
    assert report.ok
    assert_found(report, "scale", {"episode": "arm-0", "feature": "reward"})


def test_absent_features_and_short_sets_are_not_judged(episodes: list[Episode], tmp_path: Path) -> None:
    kept = {name: value for name, value in episodes[0].values.items() if name not in ("obs.image.front", "reward")}
    report = validate(write_arm(tmp_path / "arm", [replace(episodes[0], values=kept), episodes[1]]))
    assert [str(finding) for finding in report.findings] == []


def test_an_append_that_was_not_finished_is_no_error(clean: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(clean, tmp_path / "arm"))
    last = index.shard_files(path)[1]

    def forget(told: dict[str, Any]) -> None:
        shards = told["splits"]["train"]["shards"]
        gone = shards.pop()
        assert gone["name"] == last.name
        told["splits"]["train"]["samples"] -= gone["samples"]

    edit_manifest(path, forget)
    finding = next(finding for finding in validate(path).findings if finding.check == "shards")
    assert (finding.severity, finding.where.shard) == ("info", last.name)
    assert "an append that was not finished" in finding.message


def test_the_command_groups_and_fails_as_told(episodes: list[Episode], tmp_path: Path) -> None:
    spoilt = EPISODES["held frames in all"].spoil(episodes)
    path = write_arm(tmp_path / "arm", spoilt)
    shown = CliRunner().invoke(command, [str(path), "--quiet"])
    assert "warn: held_frames: in 14 episodes, first: " in shown.output
    assert "sound, 14 warnings (14 samples in 3 shards)" in shown.output
    codes = {
        level: main(["validate", str(path), "--quiet", "--fail-on", level]) for level in ("error", "warn", "never")
    }
    assert codes == {"error": 0, "warn": 1, "never": 0}
    assert main(["validate", str(path), "-q", "--fail-on", "warn", "--skip", "held_frames"]) == 0
    told = json.loads(CliRunner().invoke(command, [str(path), "-q", "--json", "--check", "held_frames"]).output)
    assert {finding["check"] for finding in told["findings"]} == {"held_frames"}
    assert told["ok"] is True
    listed = CliRunner().invoke(command, ["--list"]).output
    assert all(name in listed for name in CHECKS)


def test_every_content_check_has_a_function_and_a_description() -> None:
    beside = {"labels", "license", "version", "stats"}  # not found along a pass over episodes
    assert set(CONTENT) == set(EPISODE) | set(DATASET) | beside
    for place in (*EPISODE.values(), *DATASET.values()):
        module, attribute = place.split(":")
        assert callable(getattr(import_module(module), attribute))


def test_every_defect_names_a_check() -> None:
    assert {defect.check for defect in (*FILES.values(), *EPISODES.values())} <= set(CHECKS)


def test_pictures_that_are_blank_twice_or_mislabelled(tmp_path: Path) -> None:
    image, label = Feature("image", "uint8", (8, 8, 3), "episode"), Feature("cls", "int64", (), "episode", "text")
    schema = Schema("images", (image, label))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (6, 1, 8, 8, 3), dtype=np.uint8)
    pictures[2], pictures[4] = 0, pictures[1]

    def picture(number: int) -> Episode:
        label = number % 2
        values = {"image": pictures[number], "cls": np.array([label])}
        split, name = "val" if number > 3 else "train", ["cat", "dog"][label] if number != 3 else "cow"
        return Episode(f"p{number}", values, label=label, class_name=name, split=split)

    with Writer(tmp_path / "set", make_spec(schema, license="mit")) as writer:
        for number in range(6):
            writer.write(picture(number))
    report = validate(tmp_path / "set")
    found = {(finding.check, finding.where.episode) for finding in report.findings}
    assert found == {("blank_frames", "p2"), ("labels", "p3"), ("leakage", "p4"), ("labels", "p4")}


REAL = ("door-v0_demos", *(f"expert_rollouts/{task}-v0_expert_rollouts" for task in ("hammer", "pen", "relocate")))


def real_episodes(source: Path) -> list[Episode]:
    """The numbers of a DAPG file; frames take minutes to render."""
    return [
        Episode(
            f"real-{number}",
            {"obs.state": item["observations"], "action": item["actions"], "reward": item["rewards"]},
            length=len(item["actions"]),
        )
        for number, item in enumerate(pickles.load(source.read_bytes()))
    ]


def write_real(path: Path, episodes: list[Episode]) -> Path:
    width, moves = (episodes[0].values[name].shape[1:] for name in ("obs.state", "action"))
    state, action = Feature("obs.state", "float64", width, "state"), Feature("action", "float64", moves, bounds=(-1, 1))
    schema = Schema("episodes", (state, action, Feature("reward", "float64")))
    return write_arm(path, episodes, make_spec(schema, license="apache-2.0"))


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_demonstrations_alarm_nobody_and_hide_no_shift(name: str, real_data: Path, tmp_path: Path) -> None:
    episodes = real_episodes(real_data / "adroit" / f"{name}.pickle")
    report = validate(write_real(tmp_path / "clean", episodes))
    assert [str(finding) for finding in report.findings if finding.check != "bounds"] == []
    assert [(finding.check, finding.severity) for finding in report.findings] == [("bounds", "info")]
    late = EPISODES["action shifted by one"].spoil(episodes)
    stuck = replace(late[7], values={**late[7].values, "obs.state": late[7].values["obs.state"].copy()})
    stuck.values["obs.state"][20:, 2] = stuck.values["obs.state"][20, 2]  # type: ignore[index]
    found = validate(write_real(tmp_path / "spoilt", [*late[:7], stuck, *late[8:]]))
    assert_found(found, "stuck", {"episode": "real-7", "feature": "obs.state", "step": 20})
    if "relocate" not in name:  # its motions are too smooth: 5 of 13 episodes are found
        assert_found(found, "shifted_actions", {"episode": "real-4"})
