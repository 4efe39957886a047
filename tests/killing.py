"""Conversions to be killed: a fast synthetic converter as a program, and what must hold after any kill.

python tests/killing.py SOURCE DEST JOBS      SOURCE is a number of episodes in a file; events as JSON on stdout
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vrl3data
from converters.base import Plan, Unit
from converters.run import RunOptions, run
from vrl3data import codecs, encode, index, scan
from vrl3data.errors import ConfigError, SourceError, Vrl3dataError
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.report import Console
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.validation import validate

LENGTH, SIZE, SPOOL, SHARD = 20, 24, 20_000, 400_000
"""Steps of an episode, pixels, bytes from which a member goes through a spool file, bytes of a shard."""


class Synthetic:
    """Episodes that follow from their number; a source `N broken=K` fails at episode K."""

    Options = type(None)

    def __init__(self, source: Path) -> None:
        words = source.read_text().split()
        self.count, self.broken = int(words[0]), int(words[1]) if len(words) > 1 else -1

    def plan(self) -> Plan:
        camera = Feature("obs.image.top", "uint8", (SIZE, SIZE, 3), "state", color="rgb")
        schema = Schema("episodes", (
            camera, codecs.describe(Feature("obs.image.side", "uint8", (SIZE, SIZE, 3), "state"), "png"),
            Feature("obs.state", "float32", (7,), "state"), Feature("action", "float64", (3,)),
        ), ("preview.jpg",))  # fmt: skip
        provenance = Provenance("synthetic", source_identity=str(self.count), shard_size=SHARD)
        units = (Unit(f"{number:05d}") for number in range(self.count))
        return Plan(DatasetSpec(schema, "synthetic", provenance), units, self.count)

    def read(self, unit: Unit) -> Episode:
        encode.SPOOL_BYTES = SPOOL  # here, since this runs in the workers
        number = int(unit.name)
        if number == self.broken:
            raise SourceError("the episode is broken")
        rng = np.random.default_rng(number)
        frames = rng.integers(0, 256, (LENGTH + 1, SIZE, SIZE, 3), dtype=np.uint8)
        values = {"obs.image.top": _blocks(frames), "obs.image.side": frames // 64,
                  "obs.state": rng.normal(size=(LENGTH + 1, 7)).astype(np.float32),
                  "action": rng.uniform(-1, 1, (LENGTH, 3))}  # fmt: skip
        split = "train" if number % 10 else "val"
        return Episode(unit.name, values, length=LENGTH, final_observation=True, split=split)

    def close(self) -> None:
        """Nothing is held open."""


def _blocks(rows: Array) -> Iterator[Array]:
    yield from np.array_split(rows, 4)


@dataclass
class Outcome:
    """What a command printed before it ended or was killed."""

    confirmed: list[tuple[str, int, str]] = field(default_factory=list)
    confirmations: int = 0
    seconds: float = 0.0
    last_confirmed: float = 0.0
    """Seconds from start to the last confirmation."""
    code: int = 0
    errors: str = ""


@dataclass(frozen=True)
class Moment:
    """When to send `signal`: so many seconds after the start or, with `confirmations`, after that many of them."""

    delay: float
    confirmations: int = 0
    signal: int = signal.SIGKILL
    group: bool = True


def launch(command: Sequence[str], moment: Moment | None = None, **options: Any) -> Outcome:
    """Run `command` in a process group of its own, keep what it confirms, end it at `moment`."""
    started, outcome = time.monotonic(), Outcome()
    with subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
        reader.start()
        timer = threading.Timer(moment.delay if moment else 0.0, _end, (process, moment))
        if moment and not moment.confirmations:
            timer.start()
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                break  # the kill came in the middle of a line
            if event["event"] == "confirmed":
                outcome.confirmed += [tuple(entry) for entry in event["samples"]]
                outcome.last_confirmed, outcome.confirmations = time.monotonic() - started, outcome.confirmations + 1
                if moment and outcome.confirmations == moment.confirmations:
                    timer.start()
        process.wait()
        reader.join()
        timer.cancel()
    outcome.seconds, outcome.code, outcome.errors = time.monotonic() - started, process.returncode, errors[0]
    return outcome


def _end(process: subprocess.Popen[str], moment: Moment) -> None:
    try:
        os.killpg(process.pid, moment.signal) if moment.group else process.send_signal(moment.signal)
    except ProcessLookupError:
        return  # it was faster


def state(dest: Path) -> str:
    """Where in its life a killed conversion is, by what lies on the disk."""
    shards = index.shard_files(dest) if dest.is_dir() else []
    names = {path.name for path in dest.iterdir()} if dest.is_dir() else set()
    if "dataset.json" in names:
        return "manifest written"
    if "index.parquet" in names:
        return "index written"
    if not shards:
        return "nothing yet"
    open_ones = [path for path in shards if path.name.endswith(".part")]
    if not open_ones:
        return "no shard open"
    whole = [scan.scan(path) for path in open_ones]
    if any(walked.closed for walked in whole):
        return "between end mark and rename"
    return "torn tail" if any(walked.torn_bytes for walked in whole) else "between samples"


def check_after_kill(dest: Path, confirmed: list[tuple[str, int, str]], order: Sequence[str]) -> int:
    """Every confirmed sample is there, verified; the samples are a beginning of `order`. Returns how many there are."""
    there: dict[tuple[str, int, str], str]
    try:
        with vrl3data.open(dest, verify="always") as dataset:
            there = {(item.meta["split"], dataset.place(item.position)[0], item.meta["id"]): item.name
                     for item in dataset}  # fmt: skip
            for item in dataset:
                assert all(item[name].size for name in dataset.schema.names)
    except ConfigError:
        there = {}  # killed before the first sample
    assert set(confirmed) <= set(there), f"{len(set(confirmed) - set(there))} confirmed samples are missing"
    assert set(there.values()) == set(order[: len(there)]), "what is there is not a beginning of the source"
    if there:
        report = validate(dest)
        assert report.ok, report.findings
    return len(there)


def contents(dest: Path) -> dict[str, Any]:
    """All that must not depend on kills: shards, index, manifest without `run`; and that no file is left over."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted((dest / "data").iterdir())}
    found["index.parquet"] = (dest / "index.parquet").read_bytes()
    found["dataset.json"] = {k: v for k, v in json.loads((dest / "dataset.json").read_text()).items() if k != "run"}
    found["left over"] = sorted(path.name for path in dest.iterdir() if path.name.startswith("."))
    return found


@dataclass(frozen=True)
class Trial:
    """A conversion that is killed again and again. `order`: the names of its samples."""

    command: Sequence[str]
    """Without DEST and the number of processes: `{dest}` and `{jobs}` stand for them."""
    order: Sequence[str]
    jobs: int

    def at(self, dest: Path) -> list[str]:
        return [word.format(dest=dest, jobs=self.jobs) for word in self.command]


def moments(whole: Outcome, rng: random.Random) -> Moment:
    """Half of them any time of the run, a quarter soon after a confirmation, a quarter while finishing."""
    kind = rng.random()
    if kind < 0.5:
        return Moment(rng.uniform(0, whole.seconds))
    if kind < 0.75:
        return Moment(rng.uniform(0, 0.03), rng.randint(1, whole.confirmations))
    return Moment(rng.uniform(0, max(0.05, 0.7 * (whole.seconds - whole.last_confirmed))), whole.confirmations)


def kill_and_finish(trial: Trial, folder: Path, times: int, rng: random.Random) -> dict[str, int]:
    """Kill `times` times, going on one to three times in between; returns how many kills fell into which state."""
    want_at, dest = folder / "whole", folder / "killed"
    whole = launch(trial.at(want_at))
    assert whole.code == 0, whole.errors
    want = contents(want_at)
    states: dict[str, int] = {}
    while sum(states.values()) < times:
        shutil.rmtree(dest, ignore_errors=True)
        confirmed: list[tuple[str, int, str]] = []
        for _ in range(rng.randint(1, 3)):
            outcome = launch(trial.at(dest), moments(whole, rng))
            if outcome.code != -signal.SIGKILL:
                break  # it was faster than the signal
            confirmed += outcome.confirmed
            where = state(dest)
            check_after_kill(dest, confirmed, trial.order)
            states[where] = states.get(where, 0) + 1
        last = launch(trial.at(dest))
        assert last.code == 0, last.errors
        assert contents(dest) == want, "the bytes are not those of an undisturbed run"
    assert want["left over"] == []
    return states


def main() -> None:
    source, dest, jobs = sys.argv[1:]
    try:
        run(Synthetic(Path(source)), Path(dest), RunOptions(int(jobs)), Console(sys.stdout, quiet=True))
    except Vrl3dataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
