"""Random 3-frame n-step batches: ours from mapped shards against every other way of storing the same episodes.

python benchmarks/loader.py DATASET [--opponents TEXT ...] [--settings best|all] [--peers PYTHON] [--json]

Every side hands out batches of 256 windows {obs, next_obs uint8, sensor, next_sensor, action, return, discount, mask},
n = 3, gamma 0.99, in a process of its own with one thread; images as frames (256, 3, 84, 84, 3), which is what
`Dataset.windows` gives, and again as channels (256, 9, 84, 84), which is what the replay gives. Before anything is
timed, batches of each side are compared with the definition: equal, or with the PSNR of a lossy side and its frames
aligned. Then all sides take turns; speeds are medians over the rounds, ratios the median over the rounds of ours /
theirs in that round.
PYTHON is that of `sh benchmarks/setup_opponents.sh DIR`, DIR/bin/python: for packages that we do not depend on.
benchmarks/README.md says what each side does and which settings were tried.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from opponents import ENTRIES, Entry
from opponents.common import BATCH, COLUMNS, Layout, Source

from vrl3data.dataset import Dataset, open_dataset

HERE = Path(__file__).resolve().parent
SEED = 4
LAYOUTS = ("frames", "channels")


def read_source(dataset: Dataset, camera: str, layout: Layout) -> Source:
    """All episodes as arrays."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for item in dataset:
        for column, name in zip(COLUMNS, (camera, "obs.proprio", "action", "reward"), strict=True):
            columns[column].append(item[name] if name == camera else item[name].astype(np.float32))
    return Source(**columns, layout=layout)


@dataclass
class Running:
    """A side in its process."""

    entry: Entry
    process: subprocess.Popen[str]
    versions: dict[str, str] = field(default_factory=dict)
    found: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list)

    def ask(self, **request: Any) -> dict[str, Any]:
        """RuntimeError with the last lines of the process if it has ended."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}")
        return json.loads(line)

    def speeds(self, clock: str) -> list[float]:
        """Windows a second of each round."""
        return [BATCH * done["batches"] / max(done[clock], 1e-9) for done in self.rounds]

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start(entry: Entry, folder: Path, peers: Path | None) -> Running:
    """RuntimeError if a package is missing."""
    missing = [name for name in entry.needs if find_spec(name) is None]
    python, paths = Path(sys.executable), os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))}
    if missing:
        if peers is None:
            raise RuntimeError(f"needs {', '.join(missing)}; see --peers")
        python, paths["LD_LIBRARY_PATH"] = peers, str(peers.parent.parent / "ffmpeg")
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    command = [str(python), "-W", "ignore", "-m", "opponents.serve", entry.target, entry.setting, str(folder)]
    with (folder / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=paths | threads
        )  # fmt: skip
    running = Running(entry, process)
    try:
        running.versions = running.answer()["versions"]
        running.found = running.ask(do="check", seed=SEED)["found"]
    except RuntimeError as error:
        lines = (folder / "stderr.txt").read_text().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else str(error)) from error
    return running


def report(running: list[Running], clock: str) -> list[dict[str, Any]]:
    """One row for each side: speeds and ratios of ours to theirs."""
    ours = running[0].speeds(clock)
    rows = []
    for side in running:
        theirs, goal = side.speeds(clock), side.entry.goal
        ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
        rows.append({
            "side": side.entry.side, "setting": side.entry.setting, "batches": side.found,
            "windows_per_s": statistics.median(theirs), "slowest": min(theirs), "fastest": max(theirs),
            "ratio": ratio, "goal": goal, "met": None if goal is None else ratio >= goal, "versions": side.versions,
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'side':22} {'setting':24} {'checked':14} {'windows/s':>10} {'ours / theirs':>13} {'goal':>6}  met"]
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        met = {None: "", True: "yes", False: "NO"}[row["met"]]
        lines.append(
            f"{row['side']:22} {row['setting']:24} {row['batches']:14} {row['windows_per_s']:>10,.0f} "
            f"{row['ratio']:>13.2f} {goal:>6}  {met}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--camera", default="obs.image.top")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--opponents", nargs="*", default=[""], metavar="TEXT", help="sides whose name contains it")
    parser.add_argument("--settings", choices=("best", "all"), default="best")
    parser.add_argument("--peers", type=Path, help="python of the environment with robomimic, minari and torchcodec")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each side in each round; at least one batch")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu for machines that are busy")
    parser.add_argument("--scratch", type=Path, help="where files are made; a directory for temporary files if unset")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def chosen(given: argparse.Namespace, layout: Layout) -> list[Entry]:
    """Ours from mapped shards comes first: everything is compared with it."""
    wanted = [entry for entry in ENTRIES[1:] if any(text.lower() in entry.side.lower() for text in given.opponents)]
    fitting = [entry for entry in wanted if layout in entry.layouts and (entry.best or given.settings == "all")]
    return [ENTRIES[0], *fitting]


def measure(given: argparse.Namespace, folder: Path, layout: Layout) -> list[Running]:
    (folder / "dataset.txt").write_text(f"{given.dataset.resolve()}\n{given.camera}\n")
    with open_dataset(given.dataset) as dataset:
        read_source(dataset, given.camera, layout).save(folder / "source.npz")
    running: list[Running] = []
    for entry in chosen(given, layout):
        try:
            running.append(start(entry, folder, given.peers))
        except RuntimeError as error:
            print(f"left out: {entry.side}, {entry.setting}: {error}", file=sys.stderr)
            if entry is ENTRIES[0]:
                sys.exit(1)
    for _ in range(given.rounds):
        for side in running:
            side.rounds.append(side.ask(do="time", seconds=given.seconds, seed=SEED + 1))
    for side in running:
        side.stop()
    return running


def main() -> None:
    given, found = arguments(), {}
    for layout in given.layouts:
        with tempfile.TemporaryDirectory(dir=given.scratch) as name:
            found[layout] = report(measure(given, Path(name), layout), given.clock)
        if not given.json:
            print(f"\n{layout}: batches of {BATCH} windows, median of {given.rounds} rounds, {given.clock} clock")
            print(table(found[layout]), flush=True)
    versions = {"numpy": version("numpy")}
    for row in (row for rows in found.values() for row in rows):
        versions |= row["versions"]
    if given.json:
        print(json.dumps({"clock": given.clock, "versions": versions, "layouts": found}, indent=1))
    else:
        print("\n" + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())))


if __name__ == "__main__":
    main()
