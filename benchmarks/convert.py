"""How much faster two processes convert a folder of pictures than one, and that the bytes are the same.

python benchmarks/convert.py FOLDER [--rounds 3]
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def convert(source: Path, dest: Path, jobs: int) -> float:
    """Seconds of the whole command, start and card included."""
    command = [sys.executable, "-m", "vrl3data", "convert", "imagenet", source, dest, "--jobs", str(jobs), "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def shards(dest: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((dest / "data").iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for jobs in seconds:
                seconds[jobs].append(convert(arguments.source, Path(folder) / f"{number}-{jobs}", jobs))
            assert shards(Path(folder) / f"{number}-1") == shards(Path(folder) / f"{number}-2"), "bytes differ"
    one, two = (statistics.median(seconds[jobs]) for jobs in (1, 2))
    print(f"1 process {one:.2f} s, 2 processes {two:.2f} s, ratio {one / two:.2f}, identical bytes")


if __name__ == "__main__":
    main()
