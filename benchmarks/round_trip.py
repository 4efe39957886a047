"""Round trips: a source -> our dataset -> an export -> the package that the export is for, in its own environment.

python benchmarks/round_trip.py PEERS [TO=SOURCE ...] [--work DIR] [--only minari robomimic lerobot] [--options "..."]
    [--export "--final drop-last"]

PEERS is the folder that benchmarks/setup_peers.sh made. Without TO=SOURCE each peer writes sets with its own package,
and each of them goes back to the peer it came from; then the peer's sight of the source and of the export must be the
same, array by array. TO=SOURCE takes any source that `vrl3data convert` reads, or a dataset of ours, to one peer:
lerobot=door-v0_demos.pickle. `--options` are for `vrl3data convert`, `--export` for `vrl3data export`.

Always: every feature of our dataset must be in some array that the peer sees, bit by bit, pictures at least as good as
declared (the export's notes, else --psnr), or be among the fields that the export declared as dropped. Prints a table;
exits with 1 on any difference.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import sight
from compare import FINAL, Verdict, against_ours, against_source
from lerobot_stats import check_stats

from vrl3data.dataset import open_dataset

HERE = Path(__file__).resolve().parent
SOURCES = {
    "lerobot": lambda folder: sorted(path.parent.parent for path in folder.glob("*/meta/info.json")),
    "robomimic": lambda folder: sorted(folder.glob("*.hdf5")),
    "minari": lambda folder: sorted(
        path.parent for path in folder.glob("**/data") if (path / "metadata.json").exists()
    ),
}
"""peer -> the sources that its own writer left in a folder."""
SUFFIX = {"robomimic": ".hdf5", "minari": "-v0"}
"""What the name of an export ends with; Minari finds a dataset by an id with a version."""


@dataclass
class Trip:
    """One source and where it went."""

    source: Path
    to: str
    own: bool
    """Whether the peer it goes to wrote it: then the peer's sight of both ends is compared."""
    episodes: int = 0
    steps: int = 0
    dropped: list[str] = field(default_factory=list)
    ours: Verdict = field(default_factory=Verdict)
    theirs: Verdict | None = None
    failed: str = ""

    @property
    def problems(self) -> list[str]:
        """Everything that is not as it should be."""
        found = [self.failed] if self.failed else []
        found += [f"ours: {problem}" for problem in self.ours.problems]
        return found + [f"source: {problem}" for problem in (self.theirs.problems if self.theirs else [])]


class Failed(Exception):
    """A command did not end well; its last words."""


@dataclass(frozen=True)
class Settings:
    """How the trips are made."""

    peers: Path
    work: Path
    options: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    psnr: float = 30.0


def command(words: list[str | Path], **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        last = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()][-1:]
        raise Failed(f"{Path(str(words[0])).name} {words[1]} ... ended with {done.returncode}: {''.join(last)}")
    return done.stdout


def vrl3data(*words: str | Path) -> dict[str, Any]:
    """One of our commands, in a process of its own; what it says with --json."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    said = command([sys.executable, "-m", "vrl3data", *words, "--json"], PYTHONPATH=path)
    lines = [line for line in said.splitlines() if line.strip()]
    try:
        return dict(json.loads(said))
    except ValueError:
        return dict(json.loads(lines[-1])) if lines else {}


def write_own(settings: Settings, peer: str) -> list[Path]:
    """The sets that a peer writes with its own package, made once."""
    folder = settings.work / "sources" / peer
    folder.mkdir(parents=True, exist_ok=True)
    run = [settings.peers / peer / "run", HERE / "peers" / f"{peer}_write.py"]
    command([*run, folder], MINARI_DATASETS_PATH=str(folder))
    return list(SOURCES[peer](folder))


def look(settings: Settings, peer: str, path: Path, name: str) -> dict[str, Any]:
    """What a peer sees of a dataset in its own layout."""
    out = settings.work / "seen" / name
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command([settings.peers / peer / "run", HERE / "peers" / f"{peer}_read.py", path, out])
    return sight.load(out)


def declared(said: list[str], default: float, feature: str) -> float:
    """The least PSNR that the export states for a feature: in a line that begins with its name, or else for all."""
    for wanted in (f"{feature}:", "pictures"):
        for line in said:
            if line.startswith(wanted) and (found := re.findall(r"(\d+(?:\.\d+)?) ?dB", line)):
                return min(map(float, found))
    return default


def travel(settings: Settings, trip: Trip, name: str) -> None:
    """Convert, export, look, compare."""
    dataset_path, export_path = settings.work / "ours" / name, settings.work / "exports" / name
    export_path = export_path.with_name(export_path.name + SUFFIX.get(trip.to, ""))
    for path in (dataset_path, export_path):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    receipt: dict[str, Any] = {}
    if (trip.source / "dataset.json").is_file():
        dataset_path = trip.source
    else:
        kind = [trip.to] if trip.own else []
        receipt = vrl3data("convert", *kind, trip.source, dataset_path, "--jobs", "1", *settings.options)
    export = vrl3data("export", trip.to, dataset_path, export_path, *settings.export)
    trip.dropped, notes = list(export.get("dropped", ())), list(export.get("notes", ()))
    seen = look(settings, trip.to, export_path, f"{name}-export")
    with open_dataset(dataset_path) as dataset:
        trip.episodes, trip.steps = len(dataset), sum(dataset.index["length"].to_pylist())
        shorter = [line for line in notes if "a row after the last action" in line]
        names = [line.partition(":")[0].strip() for line in (*trip.dropped, *shorter)]
        names += [FINAL] if any(line.startswith("the last action") for line in trip.dropped) else []
        least = functools.partial(declared, [*notes, *trip.dropped], settings.psnr)
        trip.ours = against_ours(dataset, seen, names, least)
        mapping = dict(dataset.manifest.provenance).get("options", {}).get("mapping", {})
        # What became no feature is kept in source_meta; an export that declares that one as dropped drops all of it.
        kept = json.dumps([sample.source_meta for sample in dataset]) if "source_meta" in "".join(trip.dropped) else ""
    said = "\n".join([*mapping.get("dropped", ()), *receipt.get("notes", ()), *trip.dropped, *notes, kept])
    trip.ours.problems += check_stats(seen)
    if trip.to == "robomimic" and seen["about"]["info_rc"]:
        trip.ours.lines.append(f"get_dataset_info.py: {' '.join(seen['about']['info_says'])}")
    if not trip.own:
        return
    try:
        before = look(settings, trip.to, trip.source, f"{name}-source")
    except Failed as error:
        trip.ours.lines.append(f"the peer cannot read the source itself: {error}")
    else:
        trip.theirs = against_source(before, seen, said, lambda key: least(trip.ours.pairs.get(key, key)))


def row(verdict: Verdict | None) -> str:
    """Counts of one comparison: `12 equal, 1 rounded, 2 at 41.2 dB`."""
    if verdict is None:
        return "-"
    worst = verdict.psnr()
    near = f", {verdict.near} rounded" if verdict.near else ""
    return f"{verdict.equal} equal{near}" + (
        f", {len(verdict.lossy)} at {worst:.1f} dB" if math.isfinite(worst) else ""
    )


def show(trips: list[Trip], verbose: bool) -> None:
    """The table, then what is behind the rows that are not as they should be."""
    header = ("source", "to", "episodes", "steps", "features of ours", "arrays of the source", "dropped", "result")
    cells = [header, tuple("---" for _ in header)]
    for trip in trips:
        gone = {line.partition(":")[0] for line in trip.dropped} | set(trip.theirs.missing if trip.theirs else ())
        cells.append(
            (trip.source.name, trip.to, str(trip.episodes), str(trip.steps), row(trip.ours),
             row(trip.theirs), ", ".join(sorted(gone)) or "nothing", "DIFFERS" if trip.problems else "same")
        )  # fmt: skip
    for line in cells:
        print("| " + " | ".join(line) + " |")
    for trip in trips:
        if trip.problems or verbose:
            print(f"\n{trip.source.name} -> {trip.to}")
            for problem in trip.problems:
                print(f"  DIFFERS {problem}")
            for line in [*trip.ours.lines, *(trip.theirs.lines if trip.theirs else ()), *trip.dropped]:
                print(f"  {line}")


def trips_of(settings: Settings, given: list[str], only: list[str]) -> list[Trip]:
    """Those that were asked for, or every set that the peers write."""
    if given:
        pairs = [word.partition("=") for word in given]
        return [Trip(Path(source), to, own=False) for to, _, source in pairs]
    return [Trip(source, peer, own=True) for peer in only for source in write_own(settings, peer)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path)
    parser.add_argument("trips", nargs="*", metavar="TO=SOURCE")
    parser.add_argument("--work", type=Path, help="keep sources, datasets and exports here")
    parser.add_argument("--only", nargs="+", choices=sorted(SOURCES), default=sorted(SOURCES))
    parser.add_argument("--options", default="", help="for vrl3data convert")
    parser.add_argument("--export", default="", help="options for vrl3data export")
    parser.add_argument("--psnr", type=float, default=30.0, help="least dB where the export declares none")
    parser.add_argument("--verbose", action="store_true", help="also the features of trips without a difference")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        options, export = (tuple(shlex.split(words)) for words in (given.options, given.export))
        settings = Settings(given.peers.resolve(), work, options, export, given.psnr)
        trips = trips_of(settings, given.trips, given.only)
        for number, trip in enumerate(trips):
            print(f"[{number + 1}/{len(trips)}] {trip.source.name} -> {trip.to}", file=sys.stderr, flush=True)
            try:
                travel(settings, trip, f"{trip.to}-{trip.source.stem}")
            except Failed as error:
                trip.failed = str(error)
        show(trips, given.verbose)
    return 1 if any(trip.problems for trip in trips) else 0


if __name__ == "__main__":
    sys.exit(main())
