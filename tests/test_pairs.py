"""Two spoilt episodes do not hide one another, and the clean sets they come from have no finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from arm import arm_episodes, write_arm
from pairs import FRONT, PAIRS, SETS, TARGETS, Values, blurred, pushed, spoil

from vrl3data.checks import CONTENT
from vrl3data.checks.frames import FrameCollector, sharpness
from vrl3data.checks.observed import beyond, outside
from vrl3data.schema import Array, Episode
from vrl3data.validation import validate


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return arm_episodes()


@pytest.mark.parametrize("base", SETS)
def test_the_clean_sets_have_no_finding(base: str, episodes: list[Episode], tmp_path: Path) -> None:
    make, spec = SETS[base]
    report = validate(write_arm(tmp_path / "arm", make(episodes), spec()))
    assert [str(finding) for finding in report.findings if finding.severity != "info"] == []


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:1]], ids=["two", "one"])
@pytest.mark.parametrize("name", PAIRS)
def test_each_is_named(name: str, targets: tuple[int, ...], episodes: list[Episode], tmp_path: Path) -> None:
    pair = PAIRS[name]
    make, spec = SETS[pair.base]
    path = write_arm(tmp_path / "arm", spoil(make(episodes), pair.change, targets), spec())
    report = validate(path)
    found = {
        finding.where.episode
        for finding in report.findings
        if finding.check == pair.check and finding.where.feature == pair.feature
    }
    assert found == {f"arm-{number}" for number in targets}, [str(finding) for finding in report.findings]
    said = [finding.message for finding in report.findings if finding.check == pair.check]
    assert any(pair.says.replace("12 of 14", f"{14 - len(targets)} of 14") in message for message in said), said


def test_a_pushed_camera_is_not_taken_for_a_shift_in_time(episodes: list[Episode], tmp_path: Path) -> None:
    path = write_arm(tmp_path / "arm", spoil(episodes, PAIRS["a pushed camera"].change))
    assert {finding.check for finding in validate(path).findings} == {"camera_moved"}


def test_nothing_is_said_of_the_time_of_frames_from_a_pushed_camera(episodes: list[Episode], tmp_path: Path) -> None:
    """What the push changes in the pictures is no motion of the body, so that the fit cannot be trusted."""

    def late(rows: Array) -> Array:
        return np.concatenate([rows[:1] ^ 1, rows[:-1]])

    def found(name: str, make: Callable[[Array], Array]) -> set[str]:
        changed = spoil(episodes, lambda values: {**values, FRONT: make(values[FRONT])}, TARGETS[:1])
        return {finding.check for finding in validate(write_arm(tmp_path / name, changed)).findings}

    assert found("late", late) == {"shifted_frames"}
    assert found("pushed", lambda rows: pushed(late(rows))) == {"camera_moved"}


@pytest.mark.parametrize("name", ["torn frames", "darker and darker"])
def test_what_does_not_come_at_once_and_last_is_no_pushed_camera(
    name: str, episodes: list[Episode], tmp_path: Path
) -> None:
    path = write_arm(tmp_path / "arm", spoil(episodes, PAIRS[name].change))
    assert "camera_moved" not in {finding.check for finding in validate(path).findings}


def test_no_lag_is_named_for_actions_of_nobody(episodes: list[Episode], tmp_path: Path) -> None:
    path = write_arm(tmp_path / "arm", spoil(episodes, PAIRS["actions of nobody"].change))
    assert not [finding for finding in validate(path).findings if "better, unlike" in finding.message]


USUAL = ("darker and darker", "a stuck joint", "noise", "blurred", "nine levels", "cut off", "filled in")


@pytest.mark.parametrize("name", [*USUAL, "played backwards"])
def test_more_than_a_quarter_is_no_outlier(name: str, episodes: list[Episode], tmp_path: Path) -> None:
    """Where every second episode is like that, both kinds are usual."""
    pair = PAIRS[name]
    many = spoil(SETS[pair.base][0](episodes), pair.change, range(0, 14, 2))
    assert pair.check not in {finding.check for finding in validate(write_arm(tmp_path / "arm", many)).findings}


def test_a_body_that_rests_is_not_filled_in(episodes: list[Episode], tmp_path: Path) -> None:
    def rest(values: Values) -> Values:
        values["obs.proprio"][10:19] = values["obs.proprio"][10]
        return values

    path = write_arm(tmp_path / "arm", spoil(episodes, rest))
    assert "interpolated" not in {finding.check for finding in validate(path).findings}


def test_frames_that_come_back_from_elsewhere_do_not_run_backwards(episodes: list[Episode], tmp_path: Path) -> None:
    """The last ones are like the usual beginning, but the first ones are not like the usual end."""

    def there_and_back(values: Values) -> Values:
        home = values[FRONT][:4].copy()
        values[FRONT][-4:], values[FRONT][:4] = home, np.minimum(home, 175) + 80
        return values

    path = write_arm(tmp_path / "arm", spoil(SETS["home"][0](episodes), there_and_back))
    assert "reversed_frames" not in {finding.check for finding in validate(path).findings}


@pytest.mark.parametrize(("jump", "checks"), [(6e-8, set()), (0.3, {"jumps", "scale"})])
def test_what_a_simulator_rounds_is_no_jump(
    jump: float, checks: set[str], episodes: list[Episode], tmp_path: Path
) -> None:
    """An entry that does not move is not quite still, and is judged only where it moves."""

    def resting(values: Values, size: float = 0) -> Values:
        joints = values["sim.qpos"]
        joints[:, 2] = np.random.default_rng(0).normal(0, 1e-9, len(joints))
        joints[9, 2] += size
        return values

    make, spec = SETS["joints"]
    still = spoil(make(episodes), resting, range(len(episodes)))
    path = write_arm(tmp_path / "arm", spoil(still, lambda values: resting(values, jump)), spec())
    assert {f.check for f in validate(path, checks=["jumps", "scale"]).findings} == checks


def test_sharpness_depends_on_detail_and_not_on_light() -> None:
    frames = np.random.default_rng(1).integers(0, 200, (3, 24, 24, 3), dtype=np.uint8)
    sharp = sharpness(frames)
    assert sharpness(frames // 2 + 20) == pytest.approx(sharp, rel=0.02)
    assert (sharpness(blurred(frames)) < 0.5 * sharp).all()
    assert sharpness(np.full((2, 24, 24, 3), 9, np.uint8)).tolist() == [0, 0]
    assert sharpness(frames[:, :2]).tolist() == [0, 0, 0]
    collector = FrameCollector()
    for start, stop in ((0, 1), (1, 7), (7, 8), (8, 13)):
        collector.add(np.concatenate([frames] * 5)[start:stop])
    collected = collector.frames()
    assert collected is not None
    assert collected.sharp_N == pytest.approx(sharp[[0, 1, 2, 0]])  # frames 0, 4, 8 and 12


def test_beyond_leaves_out_up_to_a_quarter() -> None:
    values = np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 9.0, 30.0])[:, None]
    far, usual = beyond(values, 4.0)
    assert far[:, 0].tolist() == [False] * 6 + [True] * 2
    assert usual[0] == pytest.approx(1.2)
    assert not beyond(values, 8.0)[0][:7].any()
    assert not beyond(np.r_[np.zeros((7, 1)), [[3.0]]], 4.0)[0].any()
    half = np.r_[np.ones((4, 1)), np.full((4, 1), 50.0)]
    assert not beyond(half, 4.0)[0].any()


def test_outside_leaves_out_up_to_a_quarter() -> None:
    least = np.array([0.0, 0.1, 0.0, 0.2, 0.1, 0.0, -8.0, 0.0])[:, None]
    greatest = np.array([1.0, 1.1, 0.9, 1.0, 1.1, 1.0, 1.0, 9.0])[:, None]
    far, low, high = outside(least, greatest, 2.0, 3.0)
    assert far[:, 0].tolist() == [False] * 6 + [True] * 2
    assert (low[0], high[0]) == pytest.approx((0.0, 1.1))
    assert not outside(least, greatest, 20.0, 20.0)[0].any()


def test_the_checks_of_pairs_exist() -> None:
    assert {pair.check for pair in PAIRS.values()} <= set(CONTENT)
    assert FRONT in {pair.feature for pair in PAIRS.values()}
