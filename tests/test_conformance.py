"""The conformance checker: a good converter passes, and every broken one is caught by the check of its rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_pictures, run_cli
from make_images import write_tables, write_webdataset
from make_minari import make_hdf5
from test_aloha import make_episode
from test_cli import blocks
from test_d4rl import make_file
from test_zarr import make_buffer

from converters import KINDS
from converters.conformance import CHECKS, PLACES
from converters.conformance.checker import How, conform, find_check
from converters.conformance.subject import Order, Subject, Unfit
from vrl3data.errors import ConfigError, SourceError, Vrl3dataError


def make_grids(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        np.save(folder / f"{number}.npy", rng.normal(size=(6 + number, 3)))
    return folder


BROKEN = [
    ("Undocumented", "class", "has no docstring"),
    ("NotFrozen", "class", "Options is not frozen"),
    ("TakenName", "class", "'limit' has the name of an option of vrl3data convert"),
    ("NoDefault", "class", "the option 'size' has no default"),
    ("TakesAll", "recognises", "recognises a foreign source: 'empty'"),
    ("Dated", "plan", "provenance differs in the plan of a second converter"),
    ("Miscounted", "units", "the plan counts 6 units, there are 5"),
    ("Doubled", "units", "two units have the name '0.npy'"),
    ("WrongType", "schema", "expected dtype float64, found float32"),
    ("Renames", "schema", "the unit '0.npy' became a sample of the name '0.NPY'"),
    ("Counting", "again", "0.npy, read again, is another sample"),
    ("Forward", "order", "3.npy, read in reverse order, is another sample"),
    ("ClosesForGood", "close", "TypeError: unsupported operand"),
    ("HoldsLock", "pickle", "TypeError: cannot pickle"),
    ("Sourceless", "source", "source_sha256: expected the sha256 of 0.npy"),
    ("Unfindable", "source", "the plan has no `find`"),
    ("Misplaced", "source", "source_sha256 is not that of"),
    ("OfProcess", "jobs", "two worker processes: the bytes of train-000000.tar differ"),
    ("FreshInTheMiddle", "interrupted", "half and half: the bytes of train-000000.tar differ"),
    ("Backwards", "valid", "timestamp"),
    ("Talkative", "private", "holds the absolute path of the source"),
    ("Trusting", "truncated", "0.npy cut to .* of 272 bytes: .*ValueError"),
    ("WrongError", "truncated", "expected a SourceError, found ConfigError: wrong options"),
    ("Invents", "emptied", "every file is empty, and there was no error"),
]
SLOW = ("jobs",)
"""Checks that start processes."""


@pytest.mark.parametrize(("name", "check", "match"), BROKEN)
def test_every_broken_converter_is_caught_by_its_check(tmp_path: Path, name: str, check: str, match: str) -> None:
    """And by none before it."""
    order = Order(f"grids:{name}", (make_grids(tmp_path / "source"),), (), tmp_path / "work", 8)
    order.folder.mkdir()
    doing = [""]
    subject = Subject(order, lambda what: doing.append(what))
    for other in list(CHECKS)[: list(CHECKS).index(check)]:
        if other not in SLOW:
            find_check(other)(subject)
    with pytest.raises((Unfit, Vrl3dataError, TypeError, ValueError)) as caught:
        find_check(check)(subject)
    reason = f"{doing[-1]}: {type(caught.value).__name__}: {caught.value}"

    assert re.search(match, reason), reason


def test_a_good_converter_passes_all(tmp_path: Path) -> None:
    found = conform("grids:Grids", [make_grids(tmp_path / "source")])
    assert [outcome.check for outcome in found] == list(CHECKS)
    assert [outcome for outcome in found if not outcome.passed] == []
    assert [name for names in PLACES.values() for name in names] != []
    assert {name for names in PLACES.values() for name in names} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("Hangs", {"truncated": "cut to .* bytes: reading 0.npy did not end within 5 s", "emptied": "did not end"}),
        ("Dies", {"truncated": "reading 0.npy ended the process, code 9", "emptied": "ended the process"}),
        ("Litters", {"untouched": "the source has changed: source/cache.bin"}),
    ],
)
def test_what_hangs_or_dies_is_found_and_the_rest_is_checked(
    tmp_path: Path, name: str, failing: dict[str, str]
) -> None:

    checks = ("source", "truncated", "emptied", "untouched")
    found = conform(f"grids:{name}", [make_grids(tmp_path / "source", 3)], how=How(patience_s=5, checks=checks))
    assert [outcome.check for outcome in found] == list(checks)
    failed = {outcome.check: outcome.reason for outcome in found if not outcome.passed}
    assert set(failed) == set(failing)
    for check, match in failing.items():
        assert re.search(match, failed[check]), failed[check]


def test_a_mistake_is_told_with_its_place_and_what_needs_it_is_not_checked(tmp_path: Path) -> None:
    source = make_grids(tmp_path / "source", 3)
    found = {outcome.check: outcome for outcome in conform("grids:WrongType", [source])}
    assert found["units"].passed
    assert not found["schema"].passed
    assert found["jobs"].reason == "not checked: 'schema' failed"
    found = {outcome.check: outcome for outcome in conform("grids:ClosesForGood", [source])}
    assert "reading 0.npy: TypeError" in found["close"].reason
    assert "grids.py, line" in found["close"].reason
    assert found["again"].passed
    assert found["pickle"].passed


def test_wrong_calls(tmp_path: Path) -> None:
    source = make_grids(tmp_path / "source", 1)
    for place, match in [
        ("grids", "expected module:Class, found 'grids'"),
        ("grids:Nothing", "'grids' has no 'Nothing'"),
        (":X", "cannot load '': ValueError: Empty module name"),
        ("no_such_module:X", "cannot load 'no_such_module': ModuleNotFoundError: No module named"),
    ]:
        with pytest.raises(ConfigError, match=match):
            conform(place, [source])
    with pytest.raises(SourceError, match="there is no such file"):
        conform("grids:Grids", [tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no check 'jbos'; did you mean 'jobs'"):
        conform("grids:Grids", [source], how=How(checks=("jbos",)))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(300 * 1024**2)
    with pytest.raises(ConfigError, match="give one of at most 256 MiB"):
        conform("grids:Grids", [tmp_path / "large"])


def test_the_contributors_converter_conforms(tmp_path: Path) -> None:
    """From a folder that is not on the path, as its author would."""
    (code,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    (tmp_path / "mine.py").write_text(code)
    source = make_grids(tmp_path / "source", 3)
    result = run_cli("check-converter", "mine:GridConverter", source, "--json", "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [outcome["check"] for outcome in json.loads(result.stdout)] == list(CHECKS)


def test_a_failing_converter_on_the_command_line(tmp_path: Path) -> None:
    source = make_grids(tmp_path / "source", 3)
    (tmp_path / "mine.py").write_text((Path(__file__).parent / "grids.py").read_text())
    result = run_cli("check-converter", "mine:Doubled", source, cwd=tmp_path)
    assert result.returncode == 1
    assert "ok    plan         planning twice" in result.stdout
    assert "FAIL  units        two units have the name '0.npy'" in result.stdout
    assert run_cli("check-converter", "mine:Nothing", source, cwd=tmp_path).returncode == 2


SMALL: dict[str, tuple[Callable[[Path], Path], int]] = {
    "minari": (lambda path: make_hdf5(path / "toy"), 2),
    "d4rl": (lambda path: make_file(path / "toy.hdf5", next_="real"), 2),
    "zarr": (lambda path: make_buffer(path / "toy.zarr"), 2),
    "aloha": (lambda path: make_episode(path / "episode_0.hdf5", form="padded"), 2),
    "imagenet": (lambda path: make_pictures(path / "pictures", 5), 8),
    "image-table": (lambda path: write_tables(path / "tables"), 8),
    "webdataset": (lambda path: write_webdataset(path / "tars"), 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_our_kinds_conform(tmp_path: Path, kind: str) -> None:
    make, units = SMALL[kind]
    found = conform(kind, [make(tmp_path)], ["image_size=16"], how=How(units))
    assert [outcome for outcome in found if not outcome.passed] == []


def test_the_kinds_are_listed() -> None:
    result = run_cli("sources", "--json")
    assert result.returncode == 0
    found = {kind["name"]: kind for kind in json.loads(result.stdout)}
    assert list(found) == list(KINDS)
    assert found["adroit"]["reads"].startswith("DAPG pickles of the Adroit tasks")
    assert {"name": "image_size", "type": "int", "default": 84} in found["adroit"]["options"]
    assert {"name": "look", "type": "vrl3|gymnasium", "default": "vrl3"} in found["adroit"]["options"]
    assert not {"codec", "shard_size"} & {option["name"] for option in found["adroit"]["options"]}
    text = run_cli("sources").stdout
    for kind in found.values():
        assert f"{kind['name']} " in text
        assert kind["reads"] in text
    assert "--look vrl3|gymnasium" in text
