"""SIGKILL of a whole conversion, workers included, at random moments: what is lost, and what the next run makes of it.

python benchmarks/kill.py [--times 50] [--jobs 1,4] [--pictures 4000] [--episodes 60] [--seed 0]

For each kind and number of workers. After every kill each sample that was confirmed on stdout must be there, with the
right hashes, the samples must be a beginning of the source and `validate` must pass; now and then the next run is
killed too; the last one must leave the bytes of a run that nobody disturbed. Any failure ends this with an error.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from conftest import jpeg
from killing import Trial, kill_and_finish


def pictures(root: Path, count: int) -> list[str]:
    """Two class folders of small JPEG files; the names in source order."""
    for number in range(count):
        folder = root / f"n{number % 2:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.JPEG").write_bytes(jpeg(24 + number % 16, 32, number))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.JPEG"))


def trials(folder: Path, arguments: argparse.Namespace, jobs: int) -> dict[str, Trial]:
    source, images = folder / "episodes.txt", folder / "images"
    source.write_text(str(arguments.episodes))
    order = pictures(images, arguments.pictures) if not images.exists() else sorted(
        str(path.relative_to(images)) for path in images.rglob("*.JPEG")
    )  # fmt: skip
    script = str(Path(__file__).resolve().parent.parent / "tests" / "killing.py")
    convert = [sys.executable, "-m", "vrl3data", "convert", "imagenet", str(images), "{dest}", "--jobs", "{jobs}",
               "--image-size", "32", "--shard-size", "700kB", "--json", "--quiet"]  # fmt: skip
    return {
        "episodes": Trial([sys.executable, script, str(source), "{dest}", "{jobs}"],
                          [f"{number:05d}" for number in range(arguments.episodes)], jobs),
        "images": Trial(convert, order, jobs),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--jobs", default="1,4")
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="episodes,images")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for jobs in map(int, arguments.jobs.split(",")):
            for kind, trial in trials(folder, arguments, jobs).items():
                if kind not in arguments.kinds.split(","):
                    continue
                place, started = folder / f"{kind}-{jobs}", time.monotonic()
                states = kill_and_finish(trial, place, arguments.times, rng)
                where = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
                seconds = time.monotonic() - started
                print(f"{kind}, {jobs} worker(s): {sum(states.values())} kills, 0 confirmed samples missing, "
                      f"same bytes afterwards, {seconds:.0f} s; killed with: {where}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
