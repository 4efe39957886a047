"""A side in a process of its own: `python -m opponents.serve TARGET SETTING FOLDER`, one JSON line for each request.

Requests on stdin: {"do": "check", "seed"} compares batches with the definition; {"do": "time", "seconds"} hands out
batches for about that long and tells how many, their wall and their CPU seconds (of all threads and children).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from opponents.common import Side, Source, check

CHECKED = 3
"""Batches that are compared; the third comes when caches are warm."""


def check_batches(side: Side, source: Source, seed: int) -> str:
    found = side.batches(np.random.default_rng(seed))
    return [check(side, source, *next(found)) for _ in range(CHECKED)][-1]


class Clock:
    """Hands out batches and counts the time. As in a training loop, a batch lives until the next one has come."""

    def __init__(self, side: Side, seed: int) -> None:
        self.batches = side.batches(np.random.default_rng(seed))
        self.batch_seconds, self.held = 0.0, next(self.batches)

    def run(self, seconds: float) -> dict[str, float]:
        if not self.batch_seconds:
            self._count(2)
            self.batch_seconds = self._count(1)["wall"]
        return self._count(max(1, round(seconds / self.batch_seconds)))

    def _count(self, count: int) -> dict[str, float]:
        cpu, started = cpu_seconds(), time.perf_counter()
        for _ in range(count):
            self.held = next(self.batches)
        return {"batches": count, "wall": time.perf_counter() - started, "cpu": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    """Of this process and its workers, as far as they can be seen: those that run do not count until they end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    target, setting, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    source, clock = Source.load(folder / "source.npz"), None
    made: Any = getattr(import_module(f"opponents.{module}"), name)
    own = folder / f"{name}-{setting}".replace(" ", "_")
    own.mkdir(exist_ok=True)
    side: Side = made(source, own, setting)
    print(json.dumps({"versions": {package: version(package) for package in side.versions}}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "check":
            answer: dict[str, Any] = {"found": check_batches(side, source, request["seed"])}
            del source
        else:
            clock = clock or Clock(side, request["seed"])
            answer = dict(clock.run(request["seconds"]))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
