"""Version 3.x: many episodes in a parquet file and in a video; a table of episodes says which rows and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.lerobot.info import Info, read_json
from converters.lerobot.layout import Entry, Layout, Video, frame_at, texts, whole
from converters.lerobot.paths import Folder, Template
from converters.lerobot.rows import ParquetRows
from vrl3data.errors import SourceError, locate

EPISODES, TASKS, STATS = "meta/episodes", "meta/tasks.parquet", "meta/stats.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_OWN = ("stats/", "data/", "videos/", "meta/")
_KNOWN = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")


def read(folder: Folder, info: Info) -> Layout:
    """The episodes in order of their numbers, and everything that is wrong with some of them."""
    layout = Layout(info, folder)
    with locate(path="meta/info.json"):
        data_path, video_path = Template(info.data_path or DATA_PATH), Template(info.video_path or VIDEO_PATH)
    _read_tasks(layout)
    files = folder.below(EPISODES, ".parquet") if folder.path(EPISODES).is_dir() else []
    if not files:
        with locate(path=EPISODES):
            raise SourceError("the table of episodes is missing; fetch meta/episodes of the set")
    for file in files:
        layout.meta.append(file)
        with layout.collecting(file), locate(path=file):
            table = ParquetRows(folder.path(file), file)
            plain = [name for name in table.names if not name.startswith("stats/")]
            for number, row in enumerate(table.dicts(plain)):
                with layout.collecting(f"{file} row {number}"):
                    entry = _entry(layout, row, data_path, video_path)
                    stats = (file, number) if len(plain) < len(table.names) else None
                    layout.entries.append(Entry(**{**entry, "stats": stats}))
    if folder.has(STATS):
        layout.meta.append(STATS)
        with layout.collecting(STATS):
            found = read_json(folder.path(STATS))
            layout.stats = found if isinstance(found, dict) else {}
    layout.finish()
    _starts_in_files(layout)
    return layout


def _entry(layout: Layout, row: Mapping[str, Any], data_path: Template, video_path: Template) -> dict[str, Any]:
    index = whole(row, "episode_index")
    with locate(episode=f"episode_{index:06d}"):
        numbers = {"chunk_index": whole(row, "data/chunk_index"), "file_index": whole(row, "data/file_index")}
        name = data_path.fill("", _all(numbers, index))
        data = layout.folder.find(name)
        if data is None:
            raise SourceError(f"the data file {name} is missing; fetch it")
        length = whole(row, "length", 1)
        first, stop = row.get("dataset_from_index"), row.get("dataset_to_index")
        if isinstance(first, int) and isinstance(stop, int) and stop - first != length:
            raise SourceError(f"length {length} contradicts its rows {first} to {stop}")
        return {
            "index": index,
            "length": length,
            "data": (data,),
            "start": first if isinstance(first, int) else -1,
            "videos": tuple(_videos(layout, row, video_path, index, length)),
            "tasks": texts(row.get("tasks")),
            "extra": {key: value for key, value in row.items() if key not in _KNOWN and not key.startswith(_OWN)},
        }


def _videos(layout: Layout, row: Mapping[str, Any], path: Template, index: int, length: int) -> list[Video]:
    found = []
    for camera in layout.info.cameras:
        prefix = f"videos/{camera.name}/"
        if row.get(f"{prefix}chunk_index") is None:
            continue  # this episode, or all of them, has no pictures of that camera
        with locate(feature=camera.name):
            numbers = {key: whole(row, prefix + key) for key in ("chunk_index", "file_index")}
            first = frame_at(row.get(f"{prefix}from_timestamp"), layout.info.rate)
            until = row.get(f"{prefix}to_timestamp")
            if until is not None and abs(frame_at(until, layout.info.rate) - first - length) > 1:
                raise SourceError(
                    f"{length} rows, but the video is said to go from {row[prefix + 'from_timestamp']} to {until} s"
                )
            file = layout.folder.find(path.fill(camera.name, _all(numbers, index)), camera.name)
            found.append(Video(camera.name, file or "", first, alone=False))
    return found


def _all(numbers: dict[str, int], index: int) -> dict[str, int]:
    return {**numbers, "episode_index": index, "episode_chunk": numbers["chunk_index"]}


def _starts_in_files(layout: Layout) -> None:
    """`start` becomes the row within the file: the table counts rows through the whole set."""
    first: dict[tuple[str, ...], int] = {}
    for entry in layout.entries:
        if entry.start >= 0:
            first[entry.data] = min(first.get(entry.data, entry.start), entry.start)
    layout.entries = [
        Entry(**{**vars(entry), "start": entry.start - first[entry.data]}) if entry.start >= 0 else entry
        for entry in layout.entries
    ]


def _read_tasks(layout: Layout) -> None:
    """meta/tasks.parquet, whose texts stand in a column `task` or in the index of a pandas frame."""
    if not layout.folder.has(TASKS):
        return
    layout.meta.append(TASKS)
    with layout.collecting(TASKS), locate(path=TASKS):
        table = ParquetRows(layout.folder.path(TASKS), TASKS)
        words = [name for name in table.names if name != "task_index"]
        column = next((name for name in ("task", "__index_level_0__") if name in words), words[0] if words else "")
        if not column or "task_index" not in table.names:
            raise SourceError(f"expected the columns task_index and task, found {', '.join(table.names) or 'none'}")
        for row in table.dicts(["task_index", column]):
            layout.tasks[whole(row, "task_index")] = str(row[column])
