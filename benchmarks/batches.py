"""Random n-step batches of frame stacks: from mapped shards, against fancy indexing of the same array in memory.

python benchmarks/batches.py DATASET [--camera obs.image.top] [--frames 3] [--batch 256] [--rounds 30]

Both sides get the same rows and hand out the same bytes, which is checked first; the array in memory is flattened to
rows, which NumPy copies three times as fast. The whole batch of the replay (stacks of two moments as channels, n-step
returns, sensors) is timed beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from vrl3data.dataset import open_dataset
from vrl3data.loader import load_episodes
from vrl3data.replay import BatchSpec, Replay
from vrl3data.sampling import Starts, stack_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--camera", default="obs.image.top")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    with open_dataset(given.dataset) as dataset:
        features = [given.camera, "obs.proprio", "action", "reward"]
        mapped = load_episodes(dataset, features, storage="mmap")
        memory = load_episodes(dataset, [given.camera]).array(given.camera)
        flat = memory.reshape(len(memory), -1)
        rng, starts = np.random.default_rng(0), Starts.of(mapped.layout, 3)
        sides = {"memory": lambda rows: flat[rows], "mapped": lambda rows: mapped.gather(given.camera, rows)}
        seconds: dict[str, list[float]] = {name: [] for name in (*sides, "batch")}
        replay = Replay(BatchSpec((given.camera,), "obs.proprio", frames=given.frames, n_step=3), mapped)
        for number in range(given.rounds + 1):
            rows_BK = stack_rows(mapped.layout, *starts.draw(given.batch, rng), given.frames)
            if number == 0:
                assert np.array_equal(sides["memory"](rows_BK).ravel(), sides["mapped"](rows_BK).ravel())
            for name, gather in sides.items():
                started = time.perf_counter()
                gather(rows_BK)
                seconds[name].append(time.perf_counter() - started)
            started = time.perf_counter()
            replay.sample(given.batch, rng)
            seconds["batch"].append(time.perf_counter() - started)
        times = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"batch {given.batch} x {given.frames} frames, {len(memory):,} frames of {memory[0].nbytes:,} bytes")
    speed = {name: given.batch / spent for name, spent in times.items()}
    ratio = speed["mapped"] / speed["memory"]
    print(f"memory {speed['memory']:,.0f} windows/s, mapped {speed['mapped']:,.0f} windows/s, ratio {ratio:.2f}")
    print(f"whole batches of the replay, from mapped shards: {speed['batch']:,.0f} transitions/s")


if __name__ == "__main__":
    main()
