"""Conversions with the workers of a Ray cluster. Ray runs in processes of its own, never in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_pictures, run_cli, shard_bytes

import vrl3data
from converters.run import RunOptions, run
from vrl3data.errors import MissingExtra

SCRIPT = Path(__file__).parent / "ray_run.py"
pytestmark = pytest.mark.timeout(900)
"""A cluster starts slowly where little memory and few cores are free."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a cluster of two nodes has done all that ray_run.py does; `local` is done without it."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("cluster")
    make_pictures(folder / "pictures", count=150, classes=7)
    vrl3data.convert("imagenet", folder / "pictures", folder / "local", {"shard_size": 60_000}, jobs=2)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SCRIPT.parent}", "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=800,
                            check=False, env=environment)  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_pictures(tmp_path / "pictures")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"the executor ray needs the extra ray: pip install 'vrl3data\[ray\]'"):
        vrl3data.convert("imagenet", root, tmp_path / "out", executor="ray", jobs=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["same", "killed"])
def test_two_nodes_write_the_same_shards(cluster: Path, what: str) -> None:
    """Also when a worker process is killed half way: Ray does its work again."""
    want = shard_bytes(cluster / "local")
    assert shard_bytes(cluster / what) == want
    assert len(want) > 3


@pytest.mark.slow
def test_large_members_travel_in_pieces(cluster: Path, tmp_path: Path) -> None:
    from ray_run import Large

    run(Large(cluster / "numbers.txt"), tmp_path / "local", RunOptions(1))
    assert shard_bytes(cluster / "large") == shard_bytes(tmp_path / "local")
    assert not list((cluster / "large").glob(".*"))


@pytest.mark.slow
def test_a_mistake_of_a_converter_is_told(cluster: Path) -> None:
    told = (cluster / "fault.txt").read_text()
    assert told.startswith("TypeError: a mistake in 00000")
    assert "in read" in told


@pytest.mark.slow
def test_ray_from_the_command_line(tmp_path: Path) -> None:
    """A cluster of our own: nothing of Ray on stdout, broken pictures are told as ever, and it is gone afterwards."""
    pytest.importorskip("ray")
    root = make_pictures(tmp_path / "pictures", count=12)
    (root / "n00000001" / "picture_3.JPEG").write_bytes(b"")
    words = ("convert", root, tmp_path / "out", "--executor", "ray", "--jobs", 2, "--on-error", "skip", "--json")
    result = run_cli(*words)
    assert result.returncode == 5, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["samples"] == 11
    assert "the file is empty" in events[-1]["skipped"][0]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://somewhere:10001", "expected HOST:PORT or auto"),
        ("x", "expected HOST"),
    ],
)
def test_no_cluster_at_an_address(tmp_path: Path, address: str, why: str) -> None:
    """Said at once; Ray would try for minutes."""
    pytest.importorskip("ray")
    root = make_pictures(tmp_path / "pictures", count=2)
    result = run_cli("convert", root, tmp_path / "out", "--executor", "ray", "--ray-address", address)
    assert result.returncode == 2
    assert f"error: no Ray cluster at {address}: " in result.stderr
    assert why in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
