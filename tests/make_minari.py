"""Minari datasets in the exact layout of version 0.5: HDF5, Arrow and Parquet."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LENGTHS = (3, 1, 5)
SIZE = (40, 36, 3)


def box(shape: tuple[int, ...], low: float, high: float, dtype: str = "float32") -> dict[str, Any]:
    return {"type": "Box", "dtype": dtype, "shape": list(shape), "low": np.full(shape, low).tolist(),
            "high": np.full(shape, high).tolist()}  # fmt: skip


OBSERVATIONS = {
    "type": "Dict",
    "subspaces": {
        "rgb": box(SIZE, 0, 255, "uint8"),
        "arm": {"type": "Dict", "subspaces": {"qpos": box((4,), -np.inf, np.inf, "float64")}},
        "goal": {"type": "Tuple", "subspaces": [{"type": "Discrete", "dtype": "int64", "start": -1, "n": 4},
                                               {"type": "MultiBinary", "n": 3}]},
        "mode": {"type": "MultiDiscrete", "dtype": "int64", "nvec": [2, 5], "start": [0, 1]},
        "mission": {"type": "Text", "max_length": 40, "min_length": 1, "charset": "abc "},
    },
}  # fmt: skip
ACTIONS = box((2,), -1, 1)


def jpeg(frame: np.ndarray, quality: int = 75) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality)
    return out.getvalue()


def content(number: int, length: int) -> dict[str, Any]:
    """The arrays of one episode, by the paths of the HDF5 layout; pictures as files."""
    rng = np.random.default_rng(number)
    rows = length + 1
    frames = rng.integers(0, 255, (rows, 4, 3, 3), np.uint8).repeat(10, 1).repeat(12, 2)
    flags = np.zeros(length, bool)
    flags[-1] = True
    return {
        "observations/rgb": [jpeg(frame, 60 + 5 * row) for row, frame in enumerate(frames)],
        "observations/arm/qpos": rng.normal(size=(rows, 4)),
        "observations/goal/_index_0": rng.integers(-1, 3, rows),
        "observations/goal/_index_1": rng.integers(0, 2, (rows, 3), np.int8),
        "observations/mode": rng.integers(0, 2, (rows, 2)) + np.array([0, 1]),
        "observations/mission": [f"go to door {number}"] * rows,
        "actions": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "rewards": rng.normal(size=length),
        "terminations": flags if number % 2 == 0 else np.zeros(length, bool),
        "truncations": flags if number % 2 else np.zeros(length, bool),
        "infos/energy": rng.normal(size=rows),
        "infos/pose/xyz": rng.normal(size=(rows, 1, 3)),
    }


def metadata(form: str, episodes: int, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "total_episodes": episodes, "total_steps": steps, "data_format": form, "minari_version": "0.5.4",
        "observation_space": json.dumps(OBSERVATIONS), "action_space": json.dumps(ACTIONS),
        "dataset_id": "made/up-v0", "description": "made by the tests", "author": ["A"], "algorithm_name": "random",
        "env_spec": json.dumps({"id": "Door-v1", "kwargs": {}}), **more,
    }  # fmt: skip


def make_hdf5(root: Path, lengths: tuple[int, ...] = LENGTHS, same_size: bool = False, **more: Any) -> Path:
    """`same_size`: all JPEG files of one length, which Minari stores as a plain array."""
    data = root / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text(json.dumps(metadata("hdf5", len(lengths), sum(lengths), **more)))
    with h5py.File(data / "main_data.hdf5", "w", track_order=True) as file:
        for number, length in enumerate(lengths):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": length, "options/level": 2, "rewards_sum": 1.5})
            if number != 1:
                group.attrs["seed"] = 100 + number
            for path, value in content(number, length).items():
                if path == "observations/rgb":
                    if same_size:
                        longest = max(map(len, value))
                        value = np.stack([np.frombuffer(one.ljust(longest, b"\0"), np.uint8) for one in value])
                        group.create_dataset(path, data=value, chunks=True)
                        continue
                    rows = group.create_dataset(path, (len(value),), h5py.vlen_dtype(np.uint8), chunks=True)
                    for row, one in enumerate(value):
                        rows[row] = np.frombuffer(one, np.uint8)
                elif isinstance(value, list):
                    group.create_dataset(path, data=value, dtype=h5py.string_dtype())
                else:
                    group.create_dataset(path, data=value, chunks=True, maxshape=(None, *value.shape[1:]))
    return root


def fixed(rows: np.ndarray, pad: int = 0) -> pa.Array:
    flat = np.pad(rows.reshape(len(rows), -1), ((0, pad), (0, 0)))
    return pa.FixedSizeListArray.from_arrays(flat.reshape(-1), flat.shape[1])


def batch(number: int, length: int) -> pa.RecordBatch:
    """All columns padded to one row more than there are steps."""
    found = content(number, length)
    goal = pa.StructArray.from_arrays(
        [pa.array(found["observations/goal/_index_0"]), fixed(found["observations/goal/_index_1"])], ["0", "1"]
    )
    arm = pa.StructArray.from_arrays([fixed(found["observations/arm/qpos"])], ["qpos"])
    rgb, mission = pa.array(found["observations/rgb"], pa.binary()), pa.array(found["observations/mission"])
    mode = fixed(found["observations/mode"])
    columns = {"rgb": rgb, "arm": arm, "goal": goal, "mode": mode, "mission": mission}
    xyz = fixed(found["infos/pose/xyz"])
    pose = pa.StructArray.from_arrays([xyz], fields=[pa.field("xyz", xyz.type, metadata={"shape": "1,3"})])
    infos = pa.StructArray.from_arrays(
        [pa.array(found["infos/energy"]), pose], fields=[pa.field("energy", pa.float64()), pa.field("pose", pose.type)]
    )
    return pa.RecordBatch.from_pydict({
        "observations": pa.StructArray.from_arrays(list(columns.values()), list(columns)),
        "actions": fixed(found["actions"], 1),
        **{key: pa.array(np.pad(found[key], (0, 1))) for key in ("rewards", "terminations", "truncations")},
        "infos": infos,
    })  # fmt: skip


def make_arrow(root: Path, form: str = "arrow", lengths: tuple[int, ...] = LENGTHS, **more: Any) -> Path:
    for number, length in enumerate(lengths):
        folder = root / "data" / str(number)
        folder.mkdir(parents=True)
        said = {"id": number, "total_steps": length, "options": {"level": 2}, "rewards_sum": 1.5}
        (folder / "metadata.json").write_text(json.dumps(said | ({"seed": 100 + number} if number != 1 else {})))
        table = pa.Table.from_batches([batch(number, length)])
        if form == "parquet":
            pq.write_table(table, folder / "part-0.parquet")
            continue
        with pa.OSFile(str(folder / "part-0.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    (root / "data" / "metadata.json").write_text(json.dumps(metadata(form, len(lengths), sum(lengths), **more)))
    return root
