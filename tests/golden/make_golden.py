"""Writes the golden files that are missing. Run once per version and set; files that exist are never replaced.

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

GOLDEN = Path(__file__).resolve().parent
HOME = GOLDEN / "v1.0"
CODECS_HOME = GOLDEN / "v1.0-codecs"
"""dzst and video, which the first release of 1.0 did not write."""
STREAMS_HOME = GOLDEN / "v1.0-streams"
"""Features at rates of their own."""


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


def moving(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Colours that change from place to place and from frame to frame."""
    rng = np.random.default_rng(seed)
    waves = np.add.outer(np.arange(shape[0]), 2 * np.arange(shape[1]))[None] + 5 * np.arange(count)[:, None, None]
    tint = rng.integers(1, 4, shape[2])
    return (waves[..., None] * tint + rng.integers(0, 2, (count, *shape))).astype(np.uint8)


def codecs_episode(number: int, cameras: tuple[Feature, ...]) -> Episode:
    rng = np.random.default_rng(number)
    length, final = (2, 33, 70)[number], number == 1
    states = length + int(final)
    values: dict[str, np.ndarray] = {"action": rng.uniform(-1, 1, (length, 2)).astype(np.float32)}
    for camera in cameras:
        rows = states if camera.rows == "state" else length
        if camera.dtype == "uint16":
            values[camera.name] = rng.integers(0, 65536, (rows, *camera.shape), dtype=np.uint16)
        else:
            values[camera.name] = moving(rows, camera.shape, number)
    if number == 0:
        del values[cameras[-1].name]
    return Episode(f"run/{number}", values, length, final, source=f"run/{number}.log", source_sha256="cd" * 32)


def codecs_set(name: str, cameras: tuple[Feature, ...]) -> None:
    schema = Schema("episodes", (*cameras, Feature("action", "float32", (2,))), ("preview.jpg",))
    with Writer(CODECS_HOME / name, spec(schema, name, 10**6)) as writer:
        for number in range(3):
            writer.write(codecs_episode(number, cameras))


def write_codecs() -> None:
    camera = Feature("obs.image.a", "uint8", (8, 8, 3), "state", color="rgb")
    gray = Feature("obs.image.b", "uint8", (17, 30, 1), "step", color="gray")
    depth = Feature("obs.depth.a", "uint16", (5, 7), "state", scale_m=0.001)
    dzst = (camera, depth, replace(camera, name="sim.pair", dtype="uint16", shape=(3, 2, 2), color=""))
    codecs_set("dzst", tuple(codecs.describe(feature, "dzst") for feature in dzst))
    video = replace(camera, shape=(24, 32, 3))
    codecs_set("h264", (codecs.describe(video, "h264:20"), codecs.describe(gray, "h264:24:3")))
    codecs_set("av1", (codecs.describe(video, "av1:20"), codecs.describe(gray, "av1:30:3")))


def write_streams() -> None:
    camera = Feature("obs.image.a", "uint8", (8, 8, 3), "stream:cam", color="rgb")
    schema = Schema(
        "episodes",
        (
            codecs.describe(camera, "dzst"),
            Feature("obs.imu", "float32", (3,), "stream:imu"),
            Feature("timestamp.cam", "int64", (), "stream:cam", unit="ns"),
            Feature("timestamp.imu", "int64", (), "stream:imu", unit="ns"),
            Feature("action", "float32", (2,)),
            Feature("timestamp", "int64", (), "state", unit="ns"),
        ),
        ("preview.jpg",),
    )
    with Writer(STREAMS_HOME / "streams", spec(schema, "streams", 10**6)) as writer:
        for number in range(3):
            writer.write(streams_episode(number))


def streams_episode(number: int) -> Episode:
    """The second has no camera, the third a final observation."""
    rng = np.random.default_rng(number)
    length, cam, imu = 4 + number, 40 + number, 11 - number
    values: dict[str, np.ndarray] = {
        "obs.imu": rng.normal(size=(imu, 3)).astype(np.float32),
        "timestamp.imu": np.arange(imu) * 2_000_000 - 1_000_000,
        "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "timestamp": np.arange(length + (number == 2)) * 10**7,
    }
    streams = {"imu": imu}
    if number != 1:
        values |= {"obs.image.a": moving(cam, (8, 8, 3), number), "timestamp.cam": np.arange(cam) * 33_333_333}
        streams["cam"] = cam
    return Episode(
        f"run/{number}", values, length, number == 2, streams=streams, source="run.log", source_sha256="ef" * 32
    )


def expected(home: Path) -> dict[str, object]:
    """What every reader must find, from now on."""
    found: dict[str, object] = {}
    for path in sorted(home.iterdir()):
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


def write_first() -> None:
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


def main() -> None:
    for home, write in ((HOME, write_first), (CODECS_HOME, write_codecs), (STREAMS_HOME, write_streams)):
        if home.exists():
            print(f"{home} exists; golden files are never replaced")
            continue
        home.mkdir(parents=True)
        write()
        (home / "expected.json").write_text(json.dumps(expected(home), indent=1) + "\n")


if __name__ == "__main__":
    main()
