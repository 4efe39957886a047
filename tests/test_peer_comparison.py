"""The comparison behind benchmarks/round_trip.py: what it takes for equal, for lossy, for lost. Needs no peer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_episode, make_schema, make_spec, write_dataset

import vrl3data
from vrl3data.schema import Array
from vrl3data.writer import Writer


def module(path: Path) -> ModuleType:
    """A script as a module, under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location(f"peers_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look themselves up
    spec.loader.exec_module(made)
    return made


compare = module(ROOT / "benchmarks/peers/compare.py")
check_stats = module(ROOT / "benchmarks/peers/lerobot_stats.py").check_stats
NUMBERS = np.arange(12.0).reshape(4, 3)
PICTURES = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("theirs", "rank", "how"),
    [
        (NUMBERS, 0, ""),
        (NUMBERS.astype(np.float32), 1, "float64 as float32"),
        (NUMBERS.reshape(4, 3, 1), 1, "rows (3,) as (3, 1)"),
        (NUMBERS[:-1], 2, "without the last row"),
        (NUMBERS[:-2], None, ""),
        (NUMBERS[::-1], None, ""),
        (NUMBERS + 1e-9, None, ""),
    ],
)
def test_fits(theirs: Array, rank: int | None, how: str) -> None:
    found = compare.fit(NUMBERS, theirs, lossy=False)
    assert (None if found is None else found.rank) == rank
    assert found is None or found.how == how


def test_bits_count() -> None:
    zero, nan = np.array([0.0, np.nan]), np.array([-0.0, np.nan])
    assert compare.same_bytes(zero, zero.copy()) and not compare.same_bytes(zero, nan)
    assert compare.same_values(zero, nan)
    assert not compare.same_values(np.array(["a"]), np.array(["b"]))
    assert compare.fit(np.ones((1, 3)), np.ones((4, 3)), lossy=False).how == "repeated in every step"


def test_pictures_are_measured_and_must_not_be_late() -> None:
    noisy = np.clip(PICTURES.astype(int) + 3, 0, 255).astype(np.uint8)
    wanted = 10 * np.log10(255**2 / ((noisy.astype(float) - PICTURES) ** 2).mean())
    assert compare.psnr(PICTURES, noisy) == pytest.approx(wanted, abs=0.01)
    assert compare.fit(PICTURES, noisy, lossy=False) is None
    assert compare.fit(PICTURES, noisy, lossy=True).rank == 4
    assert not compare.shifted(PICTURES, noisy)
    assert compare.shifted(PICTURES, np.roll(noisy, 1, axis=0))


def seen(dataset: Any, **changed: Any) -> dict[str, Any]:
    """What a peer that changes nothing would see; `changed` arrays replace those of every episode, None removes."""
    episodes = []
    for item in dataset:
        arrays = {name: np.array(item[name]) for name in dataset.schema.names}
        arrays |= {key.replace("__", "."): change(arrays[key.replace("__", ".")]) for key, change in changed.items()}
        episodes.append({"arrays": {key: rows for key, rows in arrays.items() if rows is not None}, "about": {}})
    return {"peer": "none", "about": {}, "episodes": episodes}


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Any]:
    with vrl3data.open(write_dataset(tmp_path / "set", 2)) as opened:
        yield opened


def judged(dataset: Any, dropped: tuple[str, ...] = (), least: float = 30.0, **changed: Any) -> Any:
    return compare.against_ours(dataset, seen(dataset, **changed), dropped, lambda _: least)


def test_every_feature_is_found(dataset: Any) -> None:
    verdict = judged(dataset)
    assert (verdict.equal, verdict.problems, verdict.missing) == (len(dataset.schema.names), [], [])


def test_what_is_lost_must_be_declared(dataset: Any) -> None:
    verdict = judged(dataset, action=lambda rows: rows + 1)
    assert verdict.problems == ["action: in no array of the peer, and not declared as dropped"]
    assert judged(dataset, ("action",), action=lambda rows: rows + 1).problems == []
    assert "is not in obs.state, and not declared" in judged(dataset, obs__state=lambda rows: rows[:-1]).problems[0]
    for said in ("obs.state", "final observation"):
        assert judged(dataset, (said,), obs__state=lambda rows: rows[:-1]).problems == []


def test_one_row_of_an_episode_may_be_said_of_it(dataset: Any) -> None:
    view = seen(dataset, sim__goal=lambda _: None)
    for item, episode in zip(dataset, view["episodes"], strict=True):
        episode["about"] = {"sim.goal": item["sim.goal"][0].tolist()}
    assert compare.against_ours(dataset, view, (), lambda _: 30.0).problems == []
    view["episodes"][1]["about"]["sim.goal"][0] += 1e-15
    problems = compare.against_ours(dataset, view, (), lambda _: 30.0).problems
    assert problems == ["sim.goal: in no array of the peer, and not declared as dropped"]


def test_times_may_be_in_seconds(dataset: Any) -> None:
    assert judged(dataset, timestamp=lambda rows: (rows / 1e9).astype(np.float32)).near == 1
    short = judged(dataset, ("final observation",), timestamp=lambda rows: (rows[:-1] / 1e9).astype(np.float32))
    assert (short.near, short.problems) == (1, [])
    assert "not declared" in judged(dataset, timestamp=lambda rows: rows[:-1] / 1e9).problems[0]
    assert "in no array" in judged(dataset, timestamp=lambda rows: rows / 1e9 + 1).problems[0]


def test_pictures_must_be_as_good_as_declared(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec(make_schema(size=32))) as writer:
        writer.write(make_episode(0, size=32))

    def worse(rows: Array) -> Array:
        return rows ^ np.uint8(2)

    with vrl3data.open(tmp_path / "set") as dataset:
        assert judged(dataset, obs__image__top=worse).lossy == [pytest.approx(42.1, abs=0.1)]
        assert judged(dataset, obs__image__top=worse).problems == []
        assert "declared 50.00" in judged(dataset, least=50.0, obs__image__top=worse).problems[0]
        short = judged(dataset, ("final observation",), obs__image__top=lambda rows: worse(rows)[:-1])
        assert (len(short.lossy), short.problems) == (1, [])
        assert "not declared" in judged(dataset, obs__image__top=lambda rows: worse(rows)[:-1]).problems[0]
        late = judged(dataset, least=0.0, obs__image__top=lambda rows: np.roll(rows, 1, axis=0))
        assert any("fit better when shifted by a step" in problem for problem in late.problems)


def test_the_source_and_the_export_must_look_alike(dataset: Any) -> None:
    source, export = seen(dataset), seen(dataset)
    assert compare.against_source(source, export, "", lambda _: 30.0).problems == []
    export = seen(dataset, action=lambda rows: rows + 1, sim__goal=lambda _: None)
    problems = compare.against_source(source, export, "", lambda _: 30.0).problems
    assert len(problems) == 2 and "action: float64" in problems[0] and "nobody said so" in problems[1]
    assert len(compare.against_source(source, export, "sim.goal: gone", lambda _: 30.0).problems) == 1
    for side, fps in ((source, 30), (export, 10)):
        side |= {"peer": "lerobot", "about": {"fps": fps}}
    assert "fps: 30 became 10" in compare.against_source(source, export, "", lambda _: 30.0).problems


def test_statistics_are_checked() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    true = {"min": [0, 1], "max": [4, 5], "mean": [2, 3], "std": rows.std(0), "count": [3]}
    whole = {"about": {"stats": {"a": true}}, "episodes": [{"arrays": {"a": rows}}]}
    assert check_stats(whole) == []
    whole["about"] = {"stats": {"a": true | {"std": [0, 0]}}}
    assert len(check_stats(whole)) == 1 and "std" in check_stats(whole)[0]


def test_the_declared_quality_is_that_of_the_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    round_trip = module(ROOT / "benchmarks/round_trip.py")
    said = ["obs.image.top_left: av1, 50.00 dB", "obs.image.top: av1, 40.12 dB, the worst episode 38.50 dB"]
    assert round_trip.declared(said, 30.0, "obs.image.top") == 38.5
    assert round_trip.declared(said, 30.0, "obs.image.wrist") == 30.0
    assert round_trip.declared(["pictures as JPEG files: 33.10 dB"], 30.0, "obs.image.top") == 33.1
