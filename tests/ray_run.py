"""Conversions on a Ray cluster of two nodes, each a process of this machine: python tests/ray_run.py FOLDER

FOLDER holds `pictures`. It gets the datasets
    same    of the pictures, as the command line makes it with --ray-address
    killed  the same, while a worker that has begun is killed
    large   of episodes with members that travel in pieces
and fault.txt, what a converter that makes a mistake ends in.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import killing
import numpy as np
import ray
from ray.cluster_utils import Cluster

import vrl3data
from converters.base import Plan, Unit
from converters.images.imagenet import ImagenetConverter
from converters.run import RunOptions, run
from converters.worker import WorkerFault
from vrl3data import encode
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema


class Large(killing.Synthetic):
    """Episodes of 20 MB: two pieces, and small members besides."""

    def plan(self) -> Plan:
        schema = Schema("episodes", (Feature("obs.state", "float64", (2500,)), Feature("action", "float64", (3,))))
        provenance = Provenance("large", source_identity="1", shard_size=10**8)
        return Plan(DatasetSpec(schema, "large", provenance), (Unit(f"{number:05d}") for number in range(2)), 2)

    def read(self, unit: Unit) -> Episode:
        encode.SPOOL_BYTES = killing.SPOOL
        rng = np.random.default_rng(int(unit.name))
        values = {"obs.state": rng.normal(size=(1000, 2500)), "action": rng.normal(size=(1000, 3))}
        return Episode(unit.name, values, length=1000)


class Faulty(killing.Synthetic):
    """Makes a mistake."""

    def read(self, unit: Unit) -> Episode:
        raise TypeError(f"a mistake in {unit.name}")


class Killed(ImagenetConverter):
    """Says which process reads, and takes its time until one of them has died."""

    def read(self, unit: Unit) -> Episode:
        told = Path(os.environ["KILLED_TOLD"])
        if not (told / "killed").exists():
            (told / f"{os.getpid()}.pid").touch()
            time.sleep(0.2)
        return super().read(unit)


def kill_one(told: Path) -> None:
    """SIGKILL to the first process that reads, half way through its batch."""
    while not (found := sorted(told.glob("*.pid"))):
        time.sleep(0.05)
    time.sleep(1)
    os.kill(int(found[0].stem), signal.SIGKILL)
    (told / "killed").touch()


def convert_all(folder: Path, address: str) -> None:
    how = RunOptions(2, executor="ray", ray_address=address)
    pictures, numbers = folder / "pictures", folder / "numbers.txt"
    numbers.write_text("4")
    vrl3data.convert("imagenet", pictures, folder / "same", {"shard_size": 60_000}, jobs=0, executor="ray",
                     ray_address=address)  # fmt: skip
    threading.Thread(target=kill_one, args=(folder / "told",), daemon=True).start()
    run(Killed([pictures], ImagenetConverter.Options(shard_size=60_000)), folder / "killed", how)
    assert (folder / "told" / "killed").exists()
    run(Large(numbers), folder / "large", how)
    try:
        run(Faulty(numbers), folder / "fault", how)
    except WorkerFault as fault:
        (folder / "fault.txt").write_text(f"{fault}\n{fault.__cause__}")
    assert not ray.is_initialized()  # what we began is over


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "told").mkdir()
    os.environ["KILLED_TOLD"] = str(folder / "told")
    nodes = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    try:
        cluster.add_node(**nodes)
        convert_all(folder, cluster.address)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
