"""Small LeRobot sets in the exact layouts of versions 1, 2.1 and 3.0, whose frames say which they are."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RATE = 10
SIZE = (32, 48)
NAMES = ["x", "y", "z"]
TASKS = ["push the cube", "öffne die Schublade"]
X264 = {"crf": "0", "preset": "ultrafast"}


def level(camera: int, episode: int, step: int) -> int:
    """Grey of a frame: different for neighbours in time, in other episodes and other cameras."""
    return 16 + (step * 37 + episode * 61 + camera * 97) % 224


def write_video(path: Path, levels: list[int], rate: int = RATE, codec: str = "libx264",
                size: tuple[int, int] = SIZE, options: dict[str, str] | None = None) -> None:  # fmt: skip
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as output:
        stream: Any = output.add_stream(codec, rate=rate, options={**X264, "g": "5", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number, grey in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def frame_levels(rows: np.ndarray) -> np.ndarray:
    """What `level` the frames were, by their middle."""
    return rows[:, SIZE[0] // 2, SIZE[1] // 2, 1].astype(int)


def numbers(episode: int, length: int) -> dict[str, np.ndarray]:
    """State and action whose content depends on the episode alone."""
    rng = np.random.default_rng(episode)
    return {"observation.state": rng.normal(size=(length, 3)).astype(np.float32),
            "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            "next.reward": rng.normal(size=length).astype(np.float32)}  # fmt: skip


def episode_table(episode: int, length: int, first: int, task: int = 0, loose: bool = False) -> pa.Table:
    """Rows of one episode as version 3 (fixed-size lists) or, `loose`, as older writers stored them."""
    made = numbers(episode, length)
    columns: dict[str, Any] = {}
    for key, rows in made.items():
        if rows.ndim == 1:
            columns[key] = pa.array(rows)
        elif loose:
            columns[key] = pa.array(rows.astype(np.float64).tolist(), pa.list_(pa.float64()))
        else:
            columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    done = np.arange(length) == length - 1
    columns |= {
        "next.done": pa.array(done),
        "next.success": pa.array(done & (episode % 2 == 0)),
        "timestamp": pa.array((np.arange(length) / RATE).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(np.arange(first, first + length)),
        "task_index": pa.array(np.full(length, task)),
    }
    return pa.table(columns)


def info(version: str, lengths: list[int], cameras: list[str], **more: Any) -> dict[str, Any]:
    one: dict[str, Any] = {"shape": [1], "names": None}
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": NAMES}},
        "action": {"dtype": "float32", "shape": [2], "names": ["left", "right"]},
        "next.reward": {"dtype": "float32", **one},
        "next.done": {"dtype": "bool", **one},
        "next.success": {"dtype": "bool", **one},
        **{key: {"dtype": "float32" if key == "timestamp" else "int64", **one}
           for key in ("timestamp", "frame_index", "episode_index", "index", "task_index")},
    }  # fmt: skip
    for camera in cameras:
        features[camera] = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"],
                            "info": {"video.fps": RATE, "video.codec": "h264", "is_depth_map": False}}  # fmt: skip
    return {
        "codebase_version": version, "robot_type": "so100", "fps": RATE, "features": features,
        "total_episodes": len(lengths), "total_frames": sum(lengths), "total_tasks": len(TASKS), "chunks_size": 1000,
        "splits": {"train": f"0:{len(lengths)}"}, **more,
    }  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")


def make_v2(root: Path, lengths: list[int], cameras: list[str] | None = None, **more: Any) -> Path:
    """Version 2.1: a parquet file and videos for each episode."""
    cameras = ["observation.images.top"] if cameras is None else cameras
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    first = 0
    for number, length in enumerate(lengths):
        data = root / f"data/chunk-000/episode_{number:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(episode_table(number, length, first, number % 2, loose=True), data)
        first += length
        for place, camera in enumerate(cameras):
            levels = [level(place, number, step) for step in range(length)]
            write_video(root / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4", levels)
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": n, "tasks": [TASKS[n % 2]], "length": length}
                                               for n, length in enumerate(lengths)])  # fmt: skip
    write_lines(root / "meta/tasks.jsonl", [{"task_index": n, "task": task} for n, task in enumerate(TASKS)])
    write_json(root / "meta/info.json", info("v2.1", lengths, cameras, **{**paths, **more}))
    return root


def make_v3(
    root: Path, lengths: list[int], cuts: dict[str, list[int]] | None = None, data_cuts: list[int] | None = None,
    options: dict[str, str] | None = None, **more: Any,
) -> Path:  # fmt: skip
    """Version 3.0. `cuts`: camera -> episodes at which a new mp4 begins; `data_cuts`: the same of the data files."""
    cuts = {"observation.images.top": [2], "observation.images.wrist": [1, 3]} if cuts is None else cuts
    data_cuts = [3] if data_cuts is None else data_cuts
    starts = np.cumsum([0, *lengths])
    rows: list[dict[str, Any]] = []
    for number, length in enumerate(lengths):
        rows.append({
            "episode_index": number, "tasks": [TASKS[number % 2]], "length": length, "data/chunk_index": 0,
            "data/file_index": sum(cut <= number for cut in data_cuts),
            "dataset_from_index": int(starts[number]), "dataset_to_index": int(starts[number + 1]),
        })  # fmt: skip
    for file in {row["data/file_index"] for row in rows}:
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = [episode_table(n, lengths[n], int(starts[n]), n % 2) for n, row in enumerate(rows)
                  if row["data/file_index"] == file]  # fmt: skip
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
    for place, (camera, at) in enumerate(cuts.items()):
        files: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            levels = files.setdefault(sum(cut <= number for cut in at), [])
            prefix = f"videos/{camera}/"
            row |= {f"{prefix}chunk_index": 0, f"{prefix}file_index": len(files) - 1,
                    f"{prefix}from_timestamp": sum([1 / RATE] * len(levels)),
                    f"{prefix}to_timestamp": (len(levels) + lengths[number]) / RATE}  # fmt: skip
            levels += [level(place, number, step) for step in range(lengths[number])]
        for file, levels in files.items():
            write_video(root / f"videos/{camera}/chunk-000/file-{file:03d}.mp4", levels, options=options)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": TASKS}), root / "meta/tasks.parquet")
    paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
             "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}  # fmt: skip
    write_json(root / "meta/info.json", info("v3.0", lengths, list(cuts), **{**paths, **more}))
    return root


def make_v1(root: Path, lengths: list[int]) -> Path:
    """Version 1: an Arrow table of all episodes, safetensors, a video per episode."""
    from safetensors.numpy import save_file

    camera = "observation.images.top"
    starts = np.cumsum([0, *lengths])
    tables = []
    for number, length in enumerate(lengths):
        name = f"videos/{camera}_episode_{number:06d}.mp4"
        write_video(root / name, [level(0, number, step) for step in range(length)])
        cells = [{"path": name, "timestamp": step / RATE} for step in range(length)]
        kind = pa.struct([("path", pa.string()), ("timestamp", pa.float32())])
        table = episode_table(number, length, int(starts[number])).drop_columns(["task_index"])
        tables.append(table.add_column(0, camera, pa.array(cells, kind)))
    (root / "train").mkdir(parents=True, exist_ok=True)
    whole = pa.concat_tables(tables).combine_chunks()
    sink = pa.OSFile(str(root / "train/data-00000-of-00001.arrow"), "wb")
    with sink, pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    write_json(root / "train/state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    write_json(root / "meta_data/info.json", {"fps": RATE, "video": 1})
    save_file({"from": starts[:-1], "to": starts[1:]}, root / "meta_data/episode_data_index.safetensors")
    actions = np.concatenate([numbers(number, length)["action"] for number, length in enumerate(lengths)])
    save_file({"action/mean": actions.mean(axis=0), "action/max": actions.max(axis=0)},
              root / "meta_data/stats.safetensors")  # fmt: skip
    return root
