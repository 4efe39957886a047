"""Loading: windows a second by storage and workers, and what memory does over epochs. One run, both sides, ratios.

python benchmarks/loading.py [DATASET] [--episodes 25] [--batch 256] [--rounds 30] [--epochs 10]

Without DATASET, episodes of 84 x 84 noise are written to a temporary folder, raw and as PNG. `fancy` is the opponent of
every ratio: the same arrays in memory, the same index arithmetic, NumPy's fancy indexing of rows that were flattened
(three times as fast as of pictures). Its batches are checked to equal ours in every array. Sides take turns, so that
load from elsewhere meets all of them; where there is much of it, the processor's time says more. Memory is what a
process of its own holds, at most, in the first and in the last epoch: without the pages of mapped files, which the
system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vrl3data import codecs
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.sampling import n_step, stack_rows
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.windows import WindowPlan
from vrl3data.writer import Writer

CAMERA, LENGTH, SIDE = "obs.image.top", 270, 84
WINDOW = {"cameras": [CAMERA], "frame_stack": 3, "n_step": 3, "replacement": True, "epochs": None}
MEMORY = """
import json, sys
from vrl3data.dataset import open_dataset
def own():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) / 1024
path, options, epochs = json.loads(sys.argv[1])
with open_dataset(path) as dataset, dataset.windows(epochs=epochs, **options) as batches:
    peaks = []
    for _ in range(epochs):
        peak = 0
        for _ in range(batches.steps_per_epoch):
            next(batches)
            peak = max(peak, own())
        peaks.append(peak)
print(json.dumps([peaks[0], peaks[-1]]))
"""


def make(path: Path, episodes: int, codec: str) -> Path:
    """Smooth frames with a little noise, which PNG can do something with."""
    camera = codecs.describe(Feature(CAMERA, "uint8", (SIDE, SIDE, 3), "state", color="rgb"), codec)
    others = (
        Feature("obs.proprio", "float32", (24,), "state"),
        Feature("action", "float32", (28,)),
        Feature("reward", "float32"),
    )
    provenance = Provenance("benchmark", source_name="made up", source_identity=str(episodes))
    rng = np.random.default_rng(0)
    with Writer(path, DatasetSpec(Schema("episodes", (camera, *others)), "benchmark", provenance)) as writer:
        for number in range(episodes):
            noise = rng.integers(0, 8, (LENGTH + 1, SIDE, SIDE, 3), dtype=np.uint8)
            values = {
                CAMERA: noise + np.linspace(0, 240, SIDE, dtype=np.uint8)[:, None],
                "obs.proprio": rng.normal(size=(LENGTH + 1, 24)).astype(np.float32),
                "action": rng.uniform(-1, 1, (LENGTH, 28)).astype(np.float32),
                "reward": rng.normal(size=LENGTH).astype(np.float32),
            }
            writer.write(Episode(f"episode-{number}", values, length=LENGTH, final_observation=True))
        writer.finish()
    return path


def fancy(plan: WindowPlan) -> Callable[[int], dict[str, Array]]:
    """The same batches by fancy indexing of arrays in memory."""
    layout, arrays = plan.layout, {name: np.asarray(plan.table.array(name)) for name in plan.table.features}
    flat = arrays[CAMERA].reshape(len(arrays[CAMERA]), -1)
    spec, shape = plan.spec, arrays[CAMERA].shape[1:]

    def batch(step: int) -> dict[str, Array]:
        at = plan.order.starts.place(plan.order.numbers(step)[0])
        ahead = n_step(layout, lambda rows: arrays[spec.reward][rows], at, spec.n_step or 1, spec.discount)
        found: dict[str, Array] = {"episode": plan.positions_E[at[0]], "step": at[1]}
        for prefix, t in (("", at[1]), ("next.", ahead.next_t_B)):
            rows = stack_rows(layout, at[0], t, spec.frame_stack)
            found[prefix + CAMERA] = flat[rows].reshape(*rows.shape, *shape)
            for name in plan.names:
                if plan.table.features[name].rows == "state":
                    found[prefix + name] = arrays[name][layout.state_rows(at[0], t)]
        steps = [name for name in plan.names if plan.table.features[name].rows == "step"]
        found |= {name: arrays[name][layout.step_rows(*at)] for name in steps}
        return found | {
            "return": ahead.returns_B.astype(np.float32), "discount": ahead.discount_B.astype(np.float32),
            "mask": ahead.mask_B,
        }  # fmt: skip

    return batch


def by_storage(dataset: Dataset, storages: list[str], batch: int, rounds: int) -> None:
    plans = {name: dataset.windows(batch, storage=name, **WINDOW).source for name in storages}
    opponent = fancy(dataset.windows(batch, storage="ram", **WINDOW).source)
    sides: dict[str, Callable[[int], dict[str, Any]]] = {"fancy": opponent}
    sides |= {name: plan.batch for name, plan in plans.items()}
    wanted = opponent(0)
    for name, side in sides.items():
        found = side(0)
        assert found.keys() == wanted.keys() and all(np.array_equal(found[key], wanted[key]) for key in wanted), name
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for step in range(1, rounds + 1):
        # Whoever comes after a side finds the heap as that side leaves it: the order changes.
        for name in np.random.default_rng(step).permutation(list(sides)).tolist():
            started = time.perf_counter(), time.process_time()
            sides[name](step)
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    middle = {name: [statistics.median(kind) for kind in zip(*spent, strict=True)] for name, spent in seconds.items()}
    for name, (wall, cpu) in middle.items():
        ratios = f"{middle['fancy'][0] / wall:5.2f} of fancy, {middle['fancy'][1] / cpu:5.2f} in time of the processor"
        print(f"  {name:8} {batch / wall:8,.0f} windows/s, {ratios}")


def by_workers(dataset: Dataset, storage: str, batch: int, rounds: int) -> None:
    base = 0.0
    for workers, kind in ((0, "thread"), (1, "thread"), (2, "thread"), (4, "thread"), (2, "fork")):
        options = {"storage": storage, "workers": workers, "worker_kind": kind, **WINDOW}
        with dataset.windows(batch, **options) as batches:
            next(batches)
            started = time.perf_counter()
            for _ in range(rounds):
                next(batches)
            speed = batch * rounds / (time.perf_counter() - started)
        base = base or speed
        print(f"  {storage}, {workers} workers ({kind}): {speed:8,.0f} windows/s, {speed / base:5.2f} of none")


def memory(path: Path, epochs: int, **options: Any) -> None:
    """What a process takes that loads and does nothing else."""
    call = [sys.executable, "-c", MEMORY, json.dumps([str(path), options, epochs])]
    early, late = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    shown = {name: value for name, value in options.items() if name in ("storage", "workers", "cache_bytes")}
    print(f"  memory with {shown}: at most {early:,.0f} MB in the first epoch, {late:,.0f} MB in epoch {epochs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--episodes", type=int, default=25)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    machine = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {machine}")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(given.dataset)] if given.dataset else [
            make(Path(folder) / codec, given.episodes, codec) for codec in ("raw", "png")
        ]  # fmt: skip
        for path in paths:
            with open_dataset(path) as dataset:
                codec = dataset.schema[CAMERA].codec
                print(f"{codec}: {dataset.manifest.steps:,} steps, batches of {given.batch} with 3 frames, n = 3")
                by_storage(dataset, ["ram", "stream", *(["mmap"] if codec == "raw" else [])], given.batch, given.rounds)
                by_workers(dataset, "mmap" if codec == "raw" else "stream", given.batch, given.rounds)
            window = {"batch_size": given.batch, "cameras": [CAMERA], "frame_stack": 3, "n_step": 3}
            cached = {"cache_bytes": 32 * 2**20, "shuffle_buffer": 2048}
            memory(path, given.epochs, **window, storage="ram")
            memory(path, given.epochs, **window, storage="stream", **cached)
            memory(path, given.epochs, **window, storage="stream", workers=2, **cached)


if __name__ == "__main__":
    main()
