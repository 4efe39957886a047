"""The index of a dataset as large as ImageNet: what building it takes, and how long opening it takes.

python benchmarks/open_index.py [--images 1281167] [--folder FOLDER]

Shards hold their heads alone (the rest of each file is a hole of the promised size), since opening reads no more than
that. Opening is timed in fresh processes, after what it needs was imported.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vrl3data import codecs, index, manifest, shard
from vrl3data.manifest import DatasetSpec, Manifest, Provenance, ShardInfo, SplitInfo
from vrl3data.schema import Feature, Schema

PER_SHARD = 2_200
SAMPLE = 120_000
"""Bytes of a sample in its shard."""
OPEN = """
import sys, time
import vrl3data
vrl3data.open  # imports what opening needs
start = time.perf_counter()
dataset = vrl3data.open(sys.argv[1])
opened = time.perf_counter() - start
start = time.perf_counter()
found = dataset[len(dataset) // 2].name, len(dataset.split("train"))
print(f"{opened:.3f} {time.perf_counter() - start:.3f} {len(dataset)} {found[1]}")
"""


def entry(number: int) -> shard.Entry:
    digest, key = hashlib.sha256(str(number).encode()).hexdigest(), number
    name = f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG"
    meta = {"id": digest[:32], "name": name, "split": "train", "source": name, "source_sha256": digest, "task": "",
            "subsets": "", "absent": "", "origin": "web", "label": number % 1000, "class_name": f"n{number % 1000:08d}",
            "height": 128, "width": 171, "psnr": -1.0, "max_error": -1.0, "source_meta": "{}",
            "digest": digest[::-1]}  # fmt: skip
    start = 65_536 + SAMPLE * (number % PER_SHARD)
    places = {"jpg": (start, 15_000), "cls": (start + 15_872, 3), "meta.json": (start + 16_896, 900)}
    return shard.Entry(key, places, meta)


def build(folder: Path, images: int) -> None:
    picture = codecs.describe(Feature("image", "uint8", (-1, -1, 3), "episode"), "jpeg")
    label = Feature("cls", "int64", (), "episode", codec="text", names=tuple(f"n{n:08d}" for n in range(1000)))
    spec = DatasetSpec(Schema("images", (picture, label)), "synthetic", Provenance("synthetic"))
    builder = index.IndexBuilder(spec.schema)
    for number in range(images):
        builder.add(f"train-{number // PER_SHARD:06d}.tar", entry(number))
    (folder / "data").mkdir(parents=True)
    infos = []
    for number in range(-(-images // PER_SHARD)):
        head = shard.head_bytes(spec.schema, "train", number, spec.facts())
        path = folder / "data" / f"train-{number:06d}.tar"
        path.write_bytes(shard.member_header(shard.HEAD_MEMBER, len(head)) + head)
        count = min(PER_SHARD, images - number * PER_SHARD)
        size = 65_536 + SAMPLE * count + len(shard.END)
        with path.open("r+b") as file:
            file.truncate(size)
        infos.append(ShardInfo(path.name, count, size, "0" * 64))
    found = Manifest(spec.schema, spec.dataset_id, spec.provenance.to_json(), name="synthetic",
                     splits={"train": SplitInfo(images, 0, tuple(infos))})  # fmt: skip
    replace(found, index=index.write(folder, builder)).write(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch) / "set"
        start = time.perf_counter()
        build(folder, arguments.images)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = (folder / index.INDEX).stat().st_size / 1e6
        print(f"built in {time.perf_counter() - start:.0f} s, peak {peak:.0f} MB; {index.INDEX} has {size:.0f} MB")
        assert manifest.read(folder) is not None
        for _ in range(3):
            found = subprocess.run(
                [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True
            )
            opened, more, count, split = found.stdout.split()
            print(f"{int(count):,} images open in {opened} s; a name and the positions of split train in {more} s more")
            assert count == split == str(arguments.images)


if __name__ == "__main__":
    main()
