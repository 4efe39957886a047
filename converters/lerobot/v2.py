"""Versions 2.0 and 2.1: one parquet file and one video per camera for each episode, metadata in JSON Lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from converters.lerobot.info import Info, read_json, read_lines
from converters.lerobot.layout import Entry, Layout, Video, texts, whole
from converters.lerobot.paths import Folder, Template
from converters.lerobot.rows import ParquetRows
from vrl3data.errors import SourceError, locate

EPISODES, TASKS, EPISODE_STATS, STATS = (
    "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl", "meta/stats.json"
)  # fmt: skip
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_EPISODE_FILE = re.compile(r"episode_(\d{1,9})\.parquet")
_KNOWN = ("episode_index", "length", "tasks")


def read(folder: Folder, info: Info) -> Layout:
    """The episodes in order of their numbers, and everything that is wrong with some of them."""
    layout = Layout(info, folder)
    with locate(path="meta/info.json"):
        data_path, video_path = Template(info.data_path or DATA_PATH), Template(info.video_path or VIDEO_PATH)
    _read_tasks(layout)
    stats = _stats_lines(layout)
    rows = _listed(layout) if folder.has(EPISODES) else _unlisted(layout)
    for number, row in rows:
        with layout.collecting(f"{EPISODES} line {number}" if number else str(row.get("data"))):
            if isinstance(row, SourceError):
                raise row
            index = whole(row, "episode_index")
        if isinstance(row, SourceError):
            continue
        with layout.collecting(f"episode_{row.get('episode_index')}"):
            chunk = index // info.chunks_size
            numbers = {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": index, "file_index": index}
            name = data_path.fill("", numbers)
            data = folder.find(name)
            if data is None:
                raise SourceError(f"the data file {name} is missing; fetch it")
            videos = []
            for camera in info.cameras:
                wanted = video_path.fill(camera.name, numbers)
                videos.append(Video(camera.name, folder.find(wanted, camera.name) or ""))
            extra = {key: value for key, value in row.items() if key not in _KNOWN}
            tasks = texts(row.get("tasks", row.get("task")))
            layout.entries.append(Entry(index, whole(row, "length", 1), (data,), -1, tuple(videos), tasks,
                                        stats.get(index), extra))  # fmt: skip
    if folder.has(STATS):
        layout.meta.append(STATS)
        with layout.collecting(STATS):
            found = read_json(folder.path(STATS))
            layout.stats = found if isinstance(found, dict) else {}
    layout.finish()
    return layout


def _listed(layout: Layout) -> Iterator[tuple[int, Any]]:
    layout.meta.append(EPISODES)
    for number, _, row in read_lines(layout.folder.path(EPISODES)):
        yield number, row


def _unlisted(layout: Layout) -> Iterator[tuple[int, Any]]:
    """Without meta/episodes.jsonl: what the names and the lengths of the data files say."""
    layout.notes.append("meta/episodes.jsonl is missing: episodes are taken from the names of the data files")
    for name in layout.folder.below("data", ".parquet"):
        match = _EPISODE_FILE.fullmatch(name.rpartition("/")[2])
        if match is None:
            continue
        with layout.collecting(name):
            rows = ParquetRows(layout.folder.path(name), name)
            yield 0, {"episode_index": int(match[1]), "length": len(rows)}


def _read_tasks(layout: Layout) -> None:
    if not layout.folder.has(TASKS):
        return
    layout.meta.append(TASKS)
    for number, _, row in read_lines(layout.folder.path(TASKS)):
        with layout.collecting(f"{TASKS} line {number}"):
            if isinstance(row, SourceError):
                raise row
            layout.tasks[whole(row, "task_index")] = str(row.get("task", ""))


def _stats_lines(layout: Layout) -> dict[int, tuple[str, int]]:
    """Episode -> where its line of statistics begins."""
    found: dict[int, tuple[str, int]] = {}
    if not layout.folder.has(EPISODE_STATS):
        return found
    layout.meta.append(EPISODE_STATS)
    for number, offset, row in read_lines(layout.folder.path(EPISODE_STATS)):
        with layout.collecting(f"{EPISODE_STATS} line {number}"):
            if isinstance(row, SourceError):
                raise row
            found[whole(row, "episode_index")] = (EPISODE_STATS, offset)
    return found
