"""Writing raw episodes from memory with all checksums, one core: MB/s beside plain files, h5py and np.savez.

python benchmarks/writer.py [--disk FOLDER] [--memory /dev/shm] [--rounds 3] [--megabytes 600]

Two workloads: episodes of 200 frames of 84x84x3 with states, actions and rewards (4.3 MB each), and of 64 MB. Every
side writes the same arrays; ours flushes and syncs after every episode and keeps xxh3-128, sha256 of the content and
sha256 of the shard. `plain` writes the same bytes into one file with a sync per episode, no hash. On a folder in memory
a sync costs nothing: that row is the cost of the code; on a disk, `plain` says what the disk allows. Also printed: MB
for each second of CPU time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import vrl3data
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.writer import Writer

Values = Mapping[str, Array]
FRAME = (84, 84, 3)


def schema() -> Schema:
    return Schema("episodes", (
        Feature("obs.image.top", "uint8", FRAME, "state", color="rgb"), Feature("obs.state", "float64", (39,), "state"),
        Feature("action", "float32", (28,)), Feature("reward", "float64"),
    ))  # fmt: skip


def episode(length: int, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    return {"obs.image.top": rng.integers(0, 256, (length, *FRAME), dtype=np.uint8),
            "obs.state": rng.normal(size=(length, 39)), "action": rng.normal(size=(length, 28)).astype(np.float32),
            "reward": rng.normal(size=length)}  # fmt: skip


def ours(path: Path, episodes: list[Values], finish: bool = True) -> None:
    writer = Writer(path, DatasetSpec(schema(), "speed", Provenance("speed", source_identity="0")))
    for number, values in enumerate(episodes):
        writer.write(Episode(f"{number:06d}", values, length=len(values["reward"])))
    writer.finish() if finish else writer.close()


def unfinished(path: Path, episodes: list[Values]) -> None:
    """Without closing: no statistics, no index."""
    ours(path, episodes, finish=False)


def plain(path: Path, episodes: list[Values]) -> None:
    path.mkdir()
    with (path / "all").open("wb", buffering=0) as file:
        for values in episodes:
            for value in values.values():
                file.write(value.data)
            os.fsync(file.fileno())


def hdf5(path: Path, episodes: list[Values]) -> None:
    """One file, a group per episode, as robomimic lays it out; no checksums; synced once at the end."""
    path.mkdir()
    with h5py.File(path / "all.hdf5", "w") as file:
        for number, values in enumerate(episodes):
            group = file.create_group(f"data/demo_{number}")
            for name, value in values.items():
                group.create_dataset(name, data=value)
    _sync(path / "all.hdf5")


def hdf5_checked(path: Path, episodes: list[Values]) -> None:
    """The same with HDF5's own checksums (fletcher32), for which it needs chunks."""
    path.mkdir()
    with h5py.File(path / "all.hdf5", "w") as file:
        for number, values in enumerate(episodes):
            group = file.create_group(f"data/demo_{number}")
            for name, value in values.items():
                group.create_dataset(name, data=value, fletcher32=True)
    _sync(path / "all.hdf5")


def npz(path: Path, episodes: list[Values]) -> None:
    """A file per episode (np.savez: CRC32), each synced."""
    path.mkdir()
    for number, values in enumerate(episodes):
        np.savez(path / f"{number}.npz", **values)
        _sync(path / f"{number}.npz")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


SIDES: dict[str, Callable[[Path, list[Values]], None]] = {
    "vrl3data": ours, "vrl3data, not closed": unfinished, "plain file": plain, "h5py": hdf5,
    "h5py fletcher32": hdf5_checked, "np.savez": npz,
}  # fmt: skip


def check(path: Path, episodes: list[Values]) -> None:
    with vrl3data.open(path, verify="always") as dataset:
        for item, values in zip(dataset, episodes, strict=True):
            assert all(np.array_equal(item[name], value) for name, value in values.items())


def measure(folder: Path, episodes: list[Values], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of the clock and of CPU time of each side; the sides take turns."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for side in SIDES.values():  # imports and the like
        side(folder / "target", episodes[:1])
        shutil.rmtree(folder / "target")
    for _ in range(rounds):
        for name, side in SIDES.items():
            target = folder / "target"
            started, used = time.perf_counter(), time.process_time()
            side(target, episodes)
            seconds[name].append((time.perf_counter() - started, time.process_time() - used))
            if name == "vrl3data":
                check(target, episodes)
            shutil.rmtree(target)
            os.sync()
    return {name: (statistics.median(clock for clock, _ in values), statistics.median(used for _, used in values))
            for name, values in seconds.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", default=tempfile.gettempdir())
    parser.add_argument("--memory", default="/dev/shm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=600)
    arguments: Any = parser.parse_args()
    for what, length in (("4.3 MB episodes", 200), ("64 MB episodes", 3000)):
        episodes = [episode(length, 0)]
        size = sum(value.nbytes for value in episodes[0].values())
        episodes += [episode(length, seed) for seed in range(1, max(1, arguments.megabytes * 10**6 // size))]
        size = sum(value.nbytes for values in episodes for value in values.values())
        for place in filter(None, (arguments.memory, arguments.disk)):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                seconds = measure(Path(folder), episodes, arguments.rounds)
            print(f"{len(episodes)} {what}, {size / 1e6:.0f} MB, in {place}")
            for name, (clock, used) in seconds.items():
                speed = f"{size / 1e6 / clock:7.0f} MB/s   {size / 1e6 / used:7.0f} MB per CPU second"
                print(f"  {name:<22} {speed}   {clock / seconds['vrl3data'][0]:5.2f} of our time", flush=True)


if __name__ == "__main__":
    main()
