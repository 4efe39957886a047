"""A conversion that is killed, interrupted, or fails: what was confirmed stays, and the next run finishes it."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import make_episode, make_pictures, make_spec, shard_bytes, write_dataset
from killing import SHARD, Moment, Outcome, Trial, check_after_kill, contents, kill_and_finish, launch

import vrl3data
from vrl3data import storage
from vrl3data.errors import DestinationError
from vrl3data.validation import validate
from vrl3data.writer import LOCK, Writer

SCRIPT = str(Path(__file__).parent / "killing.py")


def names(count: int) -> list[str]:
    return [f"{number:05d}" for number in range(count)]


def command(tmp_path: Path, source: str, jobs: int) -> list[str]:
    """Of the synthetic converter; `source` is a number of episodes and perhaps the one that is broken."""
    (tmp_path / "source.txt").write_text(source)
    return [sys.executable, SCRIPT, str(tmp_path / "source.txt"), "{dest}", str(jobs)]


def at(words: list[str], dest: Path) -> list[str]:
    return [word.format(dest=dest) for word in words]


def converted(folder: Path, words: list[str]) -> dict[str, Any]:
    outcome = launch(at(words, folder / "whole"))
    assert outcome.code == 0, outcome.errors
    return contents(folder / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Twenty episodes that nobody disturbed; the number of workers does not matter."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return converted(folder, command(folder, "20", 1))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 4])
def test_sigkill_at_random_moments(tmp_path: Path, jobs: int) -> None:
    """benchmarks/kill.py does it fifty times, and with images."""
    trial = Trial(command(tmp_path, "20", jobs), names(20), jobs)
    states = kill_and_finish(trial, tmp_path, 3, random.Random(jobs))
    assert sum(states.values()) >= 3


def test_the_check_sees_a_missing_sample(tmp_path: Path) -> None:
    """The checks of the test above fail when something is lost, out of order or damaged."""
    path = write_dataset(tmp_path / "set", 3)
    order = [f"episode-{number}" for number in range(3)]
    with vrl3data.open(path) as dataset:
        confirmed = [("train", number, dataset[number].meta["id"]) for number in range(3)]
    assert check_after_kill(path, confirmed, order) == 3
    with pytest.raises(AssertionError, match="1 confirmed samples are missing"):
        check_after_kill(path, [*confirmed, ("train", 3, "f" * 32)], order)
    with pytest.raises(AssertionError, match="not a beginning of the source"):
        check_after_kill(path, confirmed, ["episode-7", *order])
    with pytest.raises(AssertionError, match="2 confirmed samples are missing"):
        check_after_kill(tmp_path / "nothing", confirmed[:2], order)


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "number"), [(1, signal.SIGTERM), (4, signal.SIGINT)])
def test_an_interrupted_conversion_of_images(tmp_path: Path, jobs: int, number: int) -> None:
    """Ctrl-C reaches all processes of a terminal, SIGTERM of a scheduler only the first."""
    root = make_pictures(tmp_path / "pictures", 400)
    words = [sys.executable, "-m", "vrl3data", "convert", "imagenet", str(root), "{dest}", "--jobs", str(jobs),
             "--image-size", "32", "--shard-size", "60kB", "--json", "--quiet"]  # fmt: skip
    dest = tmp_path / "out"
    outcome = launch(at(words, dest), Moment(0.0, 2, number, group=number == signal.SIGINT))
    assert outcome.code == 130
    assert "what was confirmed is safe, run the same command again to go on" in outcome.errors
    assert "Traceback" not in outcome.errors
    order = sorted(str(path.relative_to(root)) for path in root.rglob("*.JPEG"))
    assert 0 < check_after_kill(dest, outcome.confirmed, order) < len(order)
    assert not list(dest.glob(".*"))  # a lock or spool of nobody
    words[words.index("--jobs") + 1] = "1"
    assert launch(at(words, dest)).code == 0
    assert contents(dest) == converted(tmp_path, words)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 4])
def test_a_source_that_fails_in_the_middle(tmp_path: Path, jobs: int, whole: dict[str, Any]) -> None:
    dest = tmp_path / "out"
    outcome = launch(at(command(tmp_path, "20 17", jobs), dest))
    assert outcome.code == 3
    assert "the episode is broken (episode 00017)" in outcome.errors
    assert check_after_kill(dest, outcome.confirmed, names(17)) == 17
    assert launch(at(command(tmp_path, "20", 1), dest)).code == 0  # mended
    assert contents(dest) == whole


def limited(size: int) -> Any:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "size"), [(4, SHARD // 2), (1, 30_000), (4, 30_000)])
def test_a_disk_that_is_full(tmp_path: Path, jobs: int, size: int, whole: dict[str, Any]) -> None:
    """A limit of file sizes stands in for it: in the shard, and in the spool file of a large member."""
    dest = tmp_path / "out"
    words = command(tmp_path, "20", jobs)
    outcome = launch(at(words, dest), preexec_fn=limited(size))
    assert outcome.code == 2
    assert "cannot write: the file would be larger than is allowed here" in outcome.errors
    assert "what was confirmed is safe; run the same command again to go on" in outcome.errors
    assert "Traceback" not in outcome.errors
    assert check_after_kill(dest, outcome.confirmed, names(20)) == len(outcome.confirmed)
    assert launch(at(command(tmp_path, "20", 1), dest)).code == 0
    assert contents(dest) == whole


def test_a_second_writer_waits_for_no_lock_and_takes_none_away(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with Writer(path, make_spec()) as writer:
        writer.write(make_episode(0))
        for _ in range(2):
            with pytest.raises(DestinationError, match="another process is writing this dataset"):
                Writer(path, make_spec())
            assert (path / LOCK).exists()
        writer.write(make_episode(1))
    assert not (path / LOCK).exists()
    assert len(vrl3data.open(path)) == 2


@pytest.mark.slow
def test_two_conversions_into_one_directory(tmp_path: Path, whole: dict[str, Any]) -> None:
    """One of them finishes as if it were alone; the other says why it does not."""
    words, dest = command(tmp_path, "20", 1), tmp_path / "out"
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(launch(at(words, dest)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(outcome.code for outcome in outcomes)
    assert codes in ([0, 2], [0, 0])  # or the second came when the first was done
    if codes[1]:
        assert any("another process is writing this dataset" in outcome.errors for outcome in outcomes)
    assert contents(dest) == whole


class Disk:
    """Calls that make something durable, counted; the disk goes away at one of them."""

    def __init__(self, fail_at: int) -> None:
        self.calls, self.fail_at, self.fsync = 0, fail_at, os.fsync

    def __call__(self, handle: int) -> None:
        self.calls += 1
        if self.calls >= self.fail_at:
            raise OSError(28, "No space left on device")
        self.fsync(handle)


def test_a_disk_that_fails_at_any_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC may come as late as fsync: at a sample, a shard change, the index, the manifest."""
    spec = make_spec(shard_size=15_000)
    want = shard_bytes(write_dataset(tmp_path / "whole", 4, spec))
    assert len(want) > 2
    failed = 0
    for fail_at in range(1, 60):
        path, disk = tmp_path / f"set-{fail_at}", Disk(fail_at)
        monkeypatch.setattr(os, "fsync", disk)
        try:
            write_dataset(path, 4, spec)
        except DestinationError as error:
            assert "the disk is full" in str(error)  # noqa: PT017 - most calls fail, the last ones do not
            failed += 1
        monkeypatch.setattr(os, "fsync", disk.fsync)
        with Writer(path, spec) as writer:
            for number in range(4):
                if not writer.complete and not writer.has(f"episode-{number}"):
                    writer.write(make_episode(number, length=4 + number % 3))
        assert shard_bytes(path) == want
        assert validate(path).ok
        if disk.calls < fail_at:
            break
    assert failed > 15
    assert disk.calls < fail_at  # the last round had no failure: all moments were tried


def test_nothing_is_confirmed_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a power cut tests: payload, sync, then the word; directories after new names."""
    happened: list[str] = []
    fsync, sync_directory = os.fsync, storage.sync_directory
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(storage, "sync_directory", lambda path: (happened.append("names"), sync_directory(path))[1])

    class Events(vrl3data.report.Silent):
        def event(self, name: str, **values: Any) -> None:
            happened.append(name)

    with Writer(tmp_path / "set", make_spec(), Events()) as writer:
        for number in range(2):
            before = len(happened)
            writer.write(make_episode(number))
            assert happened[before:][-2:] == ["sync", "confirmed"]
        before = len(happened)
    assert happened[before:].count("names") == 3  # shard, index, manifest
    for number, event in enumerate(happened):
        if event == "names":
            assert "sync" in happened[max(0, number - 2) : number]
