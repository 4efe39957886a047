"""A conversion of many gigabytes, one very long episode among them, in bounded memory; then open, read, validate.

python benchmarks/big.py [--gb 10] [--large-gb 4] [--jobs 1,2] [--folder /tmp] [--steps convert,open,validate]

Episodes come as blocks of rows and never lie in memory whole. Each step runs in processes of its own. Printed: MB/s,
the peak of the resident memory of all of them together (shared pages counted once for each), and the part of it that is
anonymous: what the machine must have. The rest are pages of mapped files, which it takes back when it needs them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import vrl3data
from converters.base import Plan, Unit
from converters.run import RunOptions, run
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.validation import validate

FRAME, STATES, BLOCK = (84, 84, 3), 32, 400
ROW = int(np.prod(FRAME)) + 4 * STATES
EPISODE = 64 * 10**6


class Synthetic:
    """Episodes of EPISODE bytes; the second one is as large as asked."""

    Options = type(None)

    def __init__(self, total: int, large: int) -> None:
        self.lengths = [EPISODE // ROW] * max(2, (total - large) // EPISODE)
        self.lengths[1] = large // ROW

    def plan(self) -> Plan:
        camera = Feature("obs.image.top", "uint8", FRAME, color="rgb")
        schema = Schema("episodes", (camera, Feature("obs.state", "float32", (STATES,))), ("preview.jpg",))
        provenance = Provenance("big", source_identity=str(sum(self.lengths)), shard_size=SHARD_SIZE)
        units = (Unit(f"{number:05d}", number) for number in range(len(self.lengths)))
        return Plan(DatasetSpec(schema, "big", provenance), units, len(self.lengths))

    def read(self, unit: Unit) -> Episode:
        length = self.lengths[unit.payload]
        values = {"obs.image.top": frames(unit.payload, length),
                  "obs.state": np.zeros((length, STATES), np.float32) + unit.payload}  # fmt: skip
        return Episode(unit.name, values, length=length)

    def close(self) -> None:
        """Nothing is held open."""


def frames(number: int, length: int) -> Iterator[Array]:
    """Noise that differs from block to block, made faster than anything writes it."""
    noise = np.random.default_rng(number).integers(0, 256, (BLOCK, *FRAME), dtype=np.uint8)
    for start in range(0, length, BLOCK):
        yield (noise + np.uint8(start // BLOCK % 256))[: length - start]


def read_all(path: Path) -> None:
    """Open, and touch a frame in a thousand of each episode, the data verified."""
    with vrl3data.open(path) as dataset:
        for item in dataset:
            count = item.row_count("obs.image.top")
            assert sum(int(item.rows("obs.image.top", row, row + 1).max()) for row in range(0, count, 1000))


def step(what: str, path: Path, jobs: int, total: int, large: int) -> None:
    if what == "convert":
        run(Synthetic(total, large), path, RunOptions(jobs))
    elif what == "open":
        read_all(path)
    else:
        report = validate(path)
        assert report.ok, report.findings


@dataclass
class Peak:
    """Bytes of all processes of a group together."""

    rss: int = 0
    anonymous: int = 0

    def look(self, group: int) -> None:
        totals = [0, 0]
        for name in os.listdir("/proc"):
            if name.isdigit():
                for place, value in enumerate(_memory(int(name), group)):
                    totals[place] += value
        self.rss, self.anonymous = max(self.rss, totals[0]), max(self.anonymous, totals[1])


def _memory(process: int, group: int) -> tuple[int, int]:
    try:
        if os.getpgid(process) != group:
            return 0, 0
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0, 0
    found = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS:", "RssAnon:"))}
    return found.get("VmRSS:", 0), found.get("RssAnon:", 0)


def watched(arguments: list[str]) -> tuple[float, Peak]:
    """Seconds and peak memory of this script with `arguments`, its workers included."""
    peak, started = Peak(), time.perf_counter()
    with subprocess.Popen([sys.executable, __file__, *arguments], start_new_session=True) as process:
        while process.poll() is None:
            peak.look(process.pid)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - started, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=10)
    parser.add_argument("--large-gb", type=float, default=4)
    parser.add_argument("--jobs", default="1,2")
    parser.add_argument("--steps", default="convert,open,validate")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, path, *numbers = arguments.one
        step(what, Path(path), *map(int, numbers))
        return
    total, large = int(arguments.gb * 1e9), int(arguments.large_gb * 1e9)
    free = shutil.disk_usage(arguments.folder).free
    if free < 1.1 * total + 2.2 * large:
        raise SystemExit(
            f"{arguments.folder} has {free / 1e9:.0f} GB, needed are {(1.1 * total + 2.2 * large) / 1e9:.0f}"
        )
    for jobs in arguments.jobs.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "set"
            for what in arguments.steps.split(","):
                seconds, peak = watched(["--one", what, str(path), jobs, str(total), str(large)])
                speed = f"{total / 1e6 / seconds:5.0f} MB/s, {seconds:.0f} s"
                memory = f"{peak.anonymous / 1e6:.0f} MB anonymous, {peak.rss / 1e6:.0f} MB resident"
                print(f"{what:<9} {jobs} process(es): {speed}, peak {memory}", flush=True)


if __name__ == "__main__":
    main()
