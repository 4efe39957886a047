"""Every export against a dataset with every sort of feature: what does not come back is named, and nothing else."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_spec

import vrl3data
from converters.export import EXPORTS
from converters.export.base import FACTS
from vrl3data import codecs
from vrl3data.dataset import Dataset
from vrl3data.schema import PREVIEW, Array, Episode, Feature, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer

SIZE = 64
RATE = 25
OPTIONS: dict[str, dict[str, Any]] = {
    "lerobot": {"codec": "h264", "crf": 10}, "robomimic": {}, "minari": {"final": "drop-last"}, "frames": {},
}  # fmt: skip
BACK = sorted(set(EXPORTS) - {"frames"})
"""Those that a converter of ours reads."""
SAID = ("task", "success", "terminated", "truncated", "subsets", "start_time_ns", "origin", "split")
NAMES = {"lerobot": "out", "robomimic": "out.hdf5", "minari": "out-v0", "frames": "out"}


def camera(name: str, channels: int = 3, **more: Any) -> Feature:
    color = "rgb" if channels == 3 else "gray"
    return codecs.describe(Feature(name, "uint8", (SIZE, SIZE, channels), "state", color=color, **more), "raw")


FEATURES = (
    camera("obs.image.top", intrinsics=((1.0, 0.0, 2.0), (0.0, 1.0, 2.0), (0.0, 0.0, 1.0)), flip="none"),
    camera("obs.image.gray", 1, renderer="none"),
    replace(camera("obs.image.fast"), rows="stream:cam"),
    Feature("timestamp.cam", "int64", (), "stream:cam", unit="ns"),
    Feature("obs.imu", "float32", (3,), "stream:imu"),
    Feature("timestamp.imu", "int64", (), "stream:imu", unit="ns"),
    Feature("obs.depth.top", "uint16", (6, 8), "state", scale_m=0.001),
    Feature("obs.state", "float32", (3,), "state", names=("x", "y", "z"), description="of the hand"),
    Feature("obs.flags", "bool", (4,), "state"),
    Feature("obs.touch", "bool", (), "step"),
    Feature("obs.codes", "uint8", (5,), "state"),
    Feature("obs.quat", "float64", (4,), "state", quaternion="wxyz"),
    Feature("obs.grid", "float32", (2, 3), "state"),
    Feature("obs.some", "float32", (2,), "state"),
    Feature("obs.image_vector", "float32", (7,), "state"),
    Feature("action", "float64", (2,), bounds=(-1.0, 1.0), representation="delta_ee"),
    Feature("action.grip", "float32"),
    Feature("reward", "float64"),
    Feature("timestamp", "int64", (), "state", unit="ns"),
    Feature("age.obs.state", "int32", unit="us"),
    Feature("sim.qpos", "float64", (3,), "state"),
    Feature("sim.goal", "float64", (3,), "episode"),
    Feature("sim.mesh", "float32", (9000,), "episode"),
)


def values(length: int, final: bool, seed: int) -> tuple[dict[str, Array], dict[str, int]]:
    """Rows by chance; pictures are smooth, since videos lose what is not."""
    rng = np.random.default_rng(seed)
    streams = {"cam": 2 * length + 1, "imu": 9 * length}
    counts = {"step": length, "state": length + final, "episode": 1}
    counts |= {f"stream:{clock}": count for clock, count in streams.items()}
    found: dict[str, Array] = {}
    for feature in FEATURES:
        shape = (counts[feature.rows], *feature.shape)
        if feature.name.startswith("timestamp"):
            found[feature.name] = np.arange(shape[0]) * (10**9 // RATE if feature.rows == "state" else 4_000_000)
        elif feature.is_image:
            ramp = np.linspace(0, 1, SIZE)[None, None, :, None] * np.ones(shape)
            found[feature.name] = (ramp * rng.uniform(60, 255, (shape[0], 1, 1, 1))).astype(np.uint8)
        elif feature.dtype.startswith("float"):
            found[feature.name] = rng.uniform(-1, 1, shape).astype(feature.dtype)
        else:
            found[feature.name] = rng.integers(0, 2 if feature.dtype == "bool" else 200, shape).astype(feature.dtype)
    return found, streams


def everything(path: Path, final: bool = True) -> Path:
    """Four episodes in two splits; the second lacks a feature; with `final` false the third has no last observation."""
    with Writer(path, make_spec(Schema("episodes", FEATURES, (PREVIEW,)), shard_size=10**7)) as writer:
        for number in range(4):
            length, whole = 4 + number, final or number != 2
            found, streams = values(length, whole, number)
            if number == 1:
                del found["obs.some"]
            said = {"who": "me", "nested": {"number": number}, "words": "one two", "many": list(range(9000))}
            writer.write(Episode(
                f"e{number}", found, length, final_observation=whole, streams=streams, source_meta=said,
                task=f"task {number % 2}", success=number % 2, terminated=1, truncated=0, origin="human",
                start_time_ns=10**18 + number, split="val" if number == 3 else "train",
                subsets=("good",) if number else (),
            ))  # fmt: skip
    return path


def matched(ours: Dataset, back: Dataset) -> list[tuple[Any, Any]]:
    """Episodes with the same actions; an export may leave out the last one."""
    pairs = [(one, two) for one in ours for two in back
             if np.array_equal(one["action"][: len(two["action"])], two["action"])]  # fmt: skip
    assert [one.name for one, _ in pairs] == [one.name for one in ours] and len(back) == len(ours)
    return pairs


def holds(two: Any, name: str, rows: Array, length: int) -> bool:
    """Whether a feature of the same name has these rows, or the first of them; pictures with loss at 30 dB."""
    if name not in two.keys() or name in two.absent:  # noqa: SIM118 - a sample is no dict
        return False
    there, wanted = two[name], rows
    if len(there) != len(rows) and len(there) >= length:
        wanted = rows[: len(there)]
    if wanted.ndim == 4 and wanted.shape[-1] == 1:
        wanted = np.broadcast_to(wanted, there.shape)
    if np.array_equal(there.reshape(wanted.shape) if there.size == wanted.size else there, wanted):
        return there.dtype == wanted.dtype
    is_camera = name.startswith("obs.image.") and there.shape == wanted.shape
    return is_camera and float(((there.astype(float) - wanted) ** 2).mean()) < 65


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("kind", BACK)
def test_everything_comes_back_or_is_named(kind: str, final: bool, tmp_path: Path) -> None:
    receipt = vrl3data.export(kind, everything(tmp_path / "set", final), tmp_path / NAMES[kind], OPTIONS[kind])
    vrl3data.convert(kind, tmp_path / NAMES[kind], tmp_path / "back")
    assert validate(tmp_path / "back").ok
    heads = [line.partition(":")[0] for line in receipt.dropped]
    named = {word for head in heads for word in head.split(", ")}
    with vrl3data.open(tmp_path / "set") as ours, vrl3data.open(tmp_path / "back") as back:
        pairs = matched(ours, back)
        gone = set()
        for one, two in pairs:
            shorter = len(two["action"]) < one.length
            assert not shorter or any("last action" in head for head in heads)
            for name in set(one) - set(one.absent):
                if not holds(two, name, one[name], two.length):
                    gone.add(name)
                elif len(two[name]) < len(one[name]) and not shorter:
                    assert "final observation" in named, f"{name}: its last row is lost, and nobody said so"
            for name in set(one.absent) - set(two.absent) - named:
                assert any(note.startswith(f"{name}: absent in 1") for note in receipt.notes)
        assert gone == named & set(ours.schema.names), "features that are lost, and those that are named"
        assert all("stream" in line for line in receipt.dropped if line.startswith(("obs.imu:", "timestamp.cam:")))
        for key in SAID:
            same = all(one.meta[key] == two.meta[key] for one, two in pairs)
            assert same or key in named or any("last action" in head for head in heads), key
        whole = all(one.source_meta.items() <= two.source_meta.items() for one, two in pairs)
        assert whole != ("source_meta" in named)
        check_facts(ours.schema, back.schema, receipt.dropped)


def check_facts(ours: Schema, back: Schema, dropped: tuple[str, ...]) -> None:
    """What the schema says of features that came back is there again, or is in the line `schema`."""
    line = next((line for line in dropped if line.startswith("schema:")), "")
    parts = dict(part.strip().split(" of ", 1) for part in line.removeprefix("schema:").split(";") if " of " in part)
    for feature in ours.features:
        for fact in FACTS:
            value = getattr(feature, fact)
            if value and feature.name in back and getattr(back[feature.name], fact) != value:
                assert feature.name in parts.get(fact, "").split(", "), (fact, feature.name)


def test_frames_have_all_rows_of_all_cameras(tmp_path: Path) -> None:
    receipt = vrl3data.export("frames", everything(tmp_path / "set"), tmp_path / "out")
    named = {word for line in receipt.dropped for word in line.partition(":")[0].split(", ")}
    cameras = {"obs.image.top", "obs.image.gray", "obs.image.fast"}
    assert {feature.name for feature in FEATURES} - named == cameras
    assert {"meta", "source_meta"} <= named
    rows: Counter[str] = Counter()
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as file:
            for member in file:
                if member.name.endswith(".json"):
                    rows[json.loads(file.extractfile(member).read())["camera"]] += 1  # type: ignore[union-attr]
    lengths = range(4, 8)
    assert rows == {"top": sum(lengths) + 4, "gray": sum(lengths) + 4, "fast": sum(2 * n + 1 for n in lengths)}


def test_a_dataset_that_says_nothing_more_has_nothing_to_name(tmp_path: Path) -> None:
    schema = Schema("episodes", (Feature("obs.state", "float32", (3,), "state"), Feature("action", "float32", (2,))))
    rows = {"obs.state": np.zeros((4, 3), np.float32), "action": np.zeros((3, 2), np.float32)}
    with Writer(tmp_path / "set", make_spec(schema)) as writer:
        writer.write(Episode("e", rows, 3, final_observation=True))
    for kind in ("minari", "robomimic"):
        assert vrl3data.export(kind, tmp_path / "set", tmp_path / NAMES[kind]).dropped == ()
    heads = [line.partition(":")[0] for line in vrl3data.export("lerobot", tmp_path / "set", tmp_path / "out",
                                                                {"fps": 5}).dropped]  # fmt: skip
    assert heads == ["final observation", "name, source"]
