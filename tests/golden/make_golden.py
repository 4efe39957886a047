"""Writes the golden files of the current format version. Run once per version; files that exist are never replaced.

python tests/golden/make_golden.py
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import vrl3data
from vrl3data import codecs
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer

HOME = Path(__file__).resolve().parent / "v1.0"


def spec(schema: Schema, name: str, shard_size: int) -> DatasetSpec:
    provenance = Provenance("golden", source_name=name, source_identity=name, shard_size=shard_size)
    return DatasetSpec(schema, name, provenance, "apache-2.0")


def episodes_schema() -> Schema:
    camera = Feature("obs.image.a", "uint8", (8, 8, 3), "state", color="rgb")
    return Schema(
        "episodes",
        (
            camera,
            codecs.describe(replace(camera, name="obs.image.b"), "png"),
            codecs.describe(Feature("obs.image.c", "uint8", (8, 8, 1), "state", color="gray"), "jpeg:80"),
            codecs.describe(Feature("obs.depth.a", "uint16", (8, 8), "state", scale_m=0.001), "png"),
            Feature("obs.proprio", "float16", (3,), "state", names=("x", "y", "z"), unit="m"),
            Feature("obs.contact", "bool", (2,), "state"),
            Feature("action", "float32", (2,), bounds=((-1.0, -1.0), (1.0, 1.0)), representation="delta_ee"),
            Feature("reward", "float64"),
            Feature("timestamp", "int64", rows="state", unit="ns"),
            Feature("sim.board", "int8", (2, 2), "episode"),
        ),
        ("preview.jpg",),
    )


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    length, final = 3 + number, number % 2 == 0
    states = length + int(final)
    values = {
        "obs.image.a": rng.integers(0, 256, (states, 8, 8, 3), dtype=np.uint8),
        "obs.image.b": rng.integers(0, 256, (states, 8, 8, 3), dtype=np.uint8),
        "obs.image.c": rng.integers(0, 256, (states, 8, 8, 1), dtype=np.uint8),
        "obs.depth.a": rng.integers(0, 65536, (states, 8, 8), dtype=np.uint16),
        "obs.proprio": rng.normal(size=(states, 3)).astype(np.float16),
        "obs.contact": rng.integers(0, 2, (states, 2)).astype(bool),
        "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "reward": rng.normal(size=length),
        "timestamp": np.arange(states) * 10**7,
        "sim.board": rng.integers(-9, 9, (1, 2, 2), dtype=np.int8),
    }
    if number == 1:
        del values["obs.proprio"]
    return Episode(
        f"run/{number}", values, length, final, terminated=number % 2, truncated=1 - number % 2,
        success=(-1, 0, 1, 1)[number],
        start_time_ns=1_700_000_000_000_000_000 + number, task="put it \u2192 there", origin="human",
        source=f"run/{number}.log", source_sha256="ab" * 32, split="val" if number == 3 else "train",
        subsets=("easy", "first") if number == 0 else (), source_meta={"operator": None, "gains": [1.5, 2]},
    )  # fmt: skip


def images(name: str, codec: str, shape: tuple[int, ...]) -> None:
    picture = Feature("image", "uint8", shape, "episode", color="rgb", fit="square")
    label = Feature("cls", "int64", (), "episode", codec="text", names=("cat", "dog"))
    schema = Schema("images", (codecs.describe(picture, codec), label))
    with Writer(HOME / name, spec(schema, name, 10**6)) as writer:
        for number in range(4):
            rng = np.random.default_rng(number)
            height = 8 if shape[0] > 0 else 8 + number
            pixels = rng.integers(0, 256, (1, height, 8, 3), dtype=np.uint8)
            values = {"image": pixels, "cls": np.array([number % 2])}
            names = {"label": number % 2, "class_name": ("cat", "dog")[number % 2]}
            writer.write(Episode(f"{names['class_name']}/{number}", values, origin="web", **names))


def expected() -> dict[str, object]:
    """What every reader must find, from now on."""
    found: dict[str, object] = {}
    for path in sorted(HOME.iterdir()):
        if path.is_dir():
            with vrl3data.open(path) as dataset:
                found[path.name] = {
                    "fingerprint": dataset.manifest.fingerprint,
                    "samples": [
                        {"name": item.name, "values": {n: summary(item[n]) for n in dataset.schema.names}}
                        for item in dataset
                    ],
                }
    return found


def summary(array: np.ndarray) -> list[object]:
    return [array.dtype.name, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def main() -> None:
    if HOME.exists():
        raise SystemExit(f"{HOME} exists; golden files are never replaced")
    HOME.mkdir(parents=True)
    with Writer(HOME / "episodes", spec(episodes_schema(), "episodes", 60_000)) as writer:
        for number in range(4):
            writer.write(episode(number))
    unfinished = Writer(HOME / "unfinished", spec(episodes_schema(), "unfinished", 10**6))
    for number in range(3):
        unfinished.write(episode(number))
    unfinished.close()
    part = HOME / "unfinished" / "data" / "train-000000.tar.part"
    part.write_bytes(part.read_bytes()[:-3000])
    images("images-jpeg", "jpeg:90", (-1, -1, 3))
    images("images-png", "png", (-1, -1, 3))
    images("images-raw", "raw", (8, 8, 3))
    (HOME / "expected.json").write_text(json.dumps(expected(), indent=1) + "\n")


if __name__ == "__main__":
    main()
