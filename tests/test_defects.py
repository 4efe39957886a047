"""Every listed defect is found by its named check and where it is; the clean set has no finding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from arm import arm_episodes, write_arm
from defects import EPISODES, FILES

from vrl3data.schema import Episode
from vrl3data.validation import Finding, Report, validate


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
