"""LeRobot sets as episodes: one of our samples for each of their episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.episodes import EpisodeConverter
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan, timestamps
from converters.lerobot import checks, v1, v2, v3
from converters.lerobot.columns import (
    BOOKKEEPING,
    RECORDED,
    EpisodeRows,
    Known,
    camera_names,
    changes,
    column_of,
    fields_of,
    rules,
)  # fmt: skip
from converters.lerobot.info import parse_info, read_json
from converters.lerobot.layout import Entry, Layout, Video
from converters.lerobot.paths import Folder
from converters.lerobot.rows import ArrowRows, ParquetRows, is_list, leaf, numpy_name, open_rows, plain_type
from converters.lerobot.videos import DepthScale, VideoFacts, VideoReader, probe
from converters.mapping import FieldMap
from vrl3data.errors import SourceError, locate
from vrl3data.manifest import Provenance

INFO = "meta/info.json"
OPEN_TABLES = 3


class LerobotConverter(EpisodeConverter):
    """LeRobot sets of version 1, 2.0, 2.1 or 3: a folder with meta/ (or meta_data/), data and videos."""

    kind: ClassVar[str] = "lerobot"
    extra: ClassVar[str] = "video"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known = Known()
        self._layouts: dict[str, Layout] = {}
        self._tables: dict[tuple[str, ...], ArrowRows | ParquetRows] = {}
        self._videos: dict[str, tuple[str, VideoReader]] = {}

    @staticmethod
    def recognises(source: Path) -> bool:
        """By info.json, or by what lies around a damaged one."""
        if not source.is_dir():
            return False
        if (source / v1.INFO).is_file():
            return (source / "train").is_dir() or (source / "data").is_dir()
        meta = source / "meta"
        known = any((meta / name).exists() for name in ("episodes.jsonl", "tasks.jsonl", "episodes", "tasks.parquet"))
        if not (source / INFO).is_file():
            return known and (source / "data").is_dir()
        try:
            text = (source / INFO).read_bytes()[:1_000_000]
        except OSError:
            return False
        return known or b'"codebase_version"' in text or (source / "data" / "chunk-000").is_dir()

    # -- what is there ---------------------------------------------------------------------------------------

    def scan(self, source: Path, name: str) -> Scan:
        layout = self._read_layout(source)
        if not layout.entries:
            raise layout.problems[0][1] if layout.problems else SourceError("the set lists no episodes")
        fields, cameras = self._fields(layout)
        self._layouts[name] = replace(layout, entries=[], problems=[], notes=[])
        recordings = tuple(
            Recording(
                entry.name,
                entry.length,
                tuple(f"{name}/{file}" for file in (*entry.data, *(video.file for video in entry.videos))),
                fields,
                (name, entry, number == 0),
            )
            for number, entry in enumerate(layout.entries)
        )
        notes = [*layout.notes, *checks.of_cameras(layout, cameras), *checks.of_statistics(layout, self._rows)]
        self.close()
        names = dict.fromkeys([*layout.meta, *(file for item in layout.entries for file in item.data),
                               *(video.file for item in layout.entries for video in item.videos)])  # fmt: skip
        files = {f"{name}/{file}": layout.folder.path(file) for file in names}
        problems = tuple((f"{name}/{where}", error) for where, error in layout.problems)
        return Scan(recordings, files, problems, tuple(notes), checks.license_of(source), _description(layout))

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        return rules(known, self._known)

    def _read_layout(self, source: Path) -> Layout:
        folder = Folder(source)
        if not (source / INFO).exists() and (source / v1.INFO).exists():
            layout = v1.read(folder)
            checks.read_modality(layout, self._known)
            return layout
        with locate(path=INFO):
            if not folder.has(INFO):
                raise SourceError("the file is missing; a LeRobot set of version 2 or 3 begins with it: fetch it")
            info = parse_info(read_json(folder.path(INFO)))
        if wanted := self.options.camera:
            unwanted = [item.name for item in info.cameras if not camera_names(item.name) & set(wanted)]
            info = replace(info, unwanted=tuple(unwanted))
        layout = (v3 if info.version.lstrip("v").startswith("3") else v2).read(folder, info)
        layout.meta.insert(0, INFO)
        checks.read_modality(layout, self._known)
        return layout

    def _fields(self, layout: Layout) -> tuple[dict[str, Field], dict[str, VideoFacts]]:
        """From the first episode whose files can be read: columns, cameras, our own time."""
        fields: dict[str, Field] = {}
        error: SourceError | None = None
        for entry in layout.entries[:50]:
            try:
                rows = self._rows(layout.folder, entry.data)
                fields = fields_of(layout.info, rows, layout.folder)
                layout.notes += [f"the feature {name} is declared, but is no column of the data files"
                                 for name, item in layout.info.features.items()
                                 if not item.is_video and name not in rows.schema.names]  # fmt: skip
                break
            except SourceError as found:
                error = error or found
        if not fields:
            raise error or SourceError("no data file can be read")
        cameras = _probe_cameras(layout)
        for camera, facts in cameras.items():
            declared = layout.info.features[camera]
            if declared.is_depth and facts.bits > 8:
                with locate(feature=camera):
                    self._known.depth[camera] = DepthScale.of(declared.facts).scale_m
                fields[camera] = Field(camera, "uint16", (facts.height, facts.width), "state", lossy=True)
            else:
                shape = (facts.height, facts.width, facts.channels)
                fields[camera] = Field(camera, "uint8", shape, "state", lossy=True)
        for feature, declared in layout.info.features.items():
            scale = declared.facts.get("scale_m")
            if feature in fields and isinstance(scale, (int, float)) and 0 < scale < 1000:
                self._known.depth[feature] = float(scale)
        fields[TIMESTAMP] = Field(TIMESTAMP, "int64", (), "state")
        if RECORDED in fields and checks.clock_differs(layout, self._rows):
            self._known.recorded = True
            layout.notes.append("the column timestamp is not the row number divided by fps: kept as recorded.timestamp")
        return fields, cameras

    def _provenance(self, map_: FieldMap) -> Provenance:
        """Frames depend on the decoder, so its version counts; a set without videos does not need it."""
        made = super()._provenance(map_)
        lossy = any(self._found.fields[path].lossy for rule in map_.rules for path in rule.source)
        return replace(made, versions={"av": metadata.version("av")}) if lossy else made

    # -- one episode -----------------------------------------------------------------------------------------

    def load(self, recording: Recording) -> Loaded:
        name, entry, first = recording.payload
        layout = self._layouts[name]
        used = dict.fromkeys(path for rule in self._mapping.rules for path in rule.source)
        rows = self._episode(layout, entry)
        loaded = Loaded({}, source_meta={**entry.extra, "episode_index": entry.index})
        cameras = {video.camera: video for video in entry.videos}
        for path in used:
            item = self._found.fields[path]
            if path == TIMESTAMP:
                loaded.arrays[path] = timestamps(entry.length, layout.info.rate)
            elif path in cameras:
                loaded.arrays[path], beyond = self._frames(layout, name, cameras[path], entry.length, item)
                if beyond > 0:
                    loaded.source_meta.setdefault("frames_beyond_rows", {})[path] = beyond
            elif column_of(path) in rows.rows.schema.names:
                loaded.arrays[path] = rows.value(item)
        if first:
            loaded.source_meta["dataset"] = layout.facts
        self._say_tasks(layout, entry, rows, loaded)
        self._say_ends(rows, loaded)
        if texts := _texts(rows):
            loaded.source_meta["columns"] = texts
        loaded.source_meta.update(checks.of_episode(layout, entry, rows, loaded.arrays, self._found.fields, self._rows))
        loaded.split = checks.split_of(layout.info.splits, entry.index)
        return loaded

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        for _, reader in self._videos.values():
            reader.close()
        self._tables, self._videos = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_tables": {}, "_videos": {}}

    def _rows(self, folder: Folder, names: tuple[str, ...]) -> ArrowRows | ParquetRows:
        key = (str(folder.root), *names)
        if key not in self._tables:
            if len(self._tables) >= OPEN_TABLES:
                self._tables.pop(next(iter(self._tables))).close()
            self._tables[key] = open_rows([folder.path(name) for name in names], names[0])
        return self._tables[key]

    def _episode(self, layout: Layout, entry: Entry) -> EpisodeRows:
        """Its rows, found by the column episode_index if there is one."""
        rows = self._rows(layout.folder, entry.data)
        with locate(path=entry.data[0], episode=entry.name):
            start, stop = checks.row_range(rows, entry)
        return EpisodeRows(rows, start, stop, layout.folder)

    def _frames(self, layout: Layout, name: str, video: Video, count: int, item: Field) -> tuple[Any, int]:
        """Blocks of frames, and how many frames the file has beyond those of this episode if it has no other."""
        opened, reader = self._videos.get(video.camera, ("", None))
        if reader is None or opened != f"{name}/{video.file}":
            if reader is not None:
                reader.close()
            reader = VideoReader(layout.folder.path(video.file), video.file)
            self._videos[video.camera] = (f"{name}/{video.file}", reader)
        shape = item.shape
        beyond = reader.facts.frames - video.first - count if video.alone else 0
        frames = reader.read(video.first, count, layout.info.rate, shape, video.alone)
        if len(shape) != 2:
            return frames, beyond
        counts = DepthScale.of(layout.info.features[video.camera].facts).counts()
        return (counts[np.minimum(block, len(counts) - 1)] for block in frames), beyond

    def _say_tasks(self, layout: Layout, entry: Entry, rows: EpisodeRows, loaded: Loaded) -> None:
        """The task of most rows; all of them, and where they change, go to source_meta."""
        tasks = list(entry.tasks)
        if "task_index" in rows.rows.schema.names:
            numbers = rows.column("task_index")
            words = [layout.tasks.get(number, "") for number in numbers]
            if any(words):
                loaded.task = Counter(word for word in words if word).most_common(1)[0][0]
            if len(set(numbers)) > 1:
                loaded.source_meta["task_changes"] = changes(words)
        loaded.task = loaded.task or (tasks[0] if tasks else "")
        if len(tasks) > 1 or (tasks and tasks[0] != loaded.task):
            loaded.source_meta["tasks"] = tasks

    def _say_ends(self, rows: EpisodeRows, loaded: Loaded) -> None:
        """Row t of next.* is about the time after action t. `done` does not say whether it was the task's end."""
        last = {}
        for word in ("done", "terminated", "truncated", "success"):
            name = f"next.{word}"
            if name in rows.rows.schema.names and rows.rows.schema.field(name).type == "bool":
                values = rows.column(name)
                last[word] = values[-1]
                if word == "success":
                    loaded.success = 1 if values[-1] else -1 if any(values) else 0
        if "truncated" in last:
            loaded.truncated = int(bool(last["truncated"]))
        if "terminated" in last:
            loaded.terminated = int(bool(last["terminated"]))
        elif "done" in last and not last["done"]:
            loaded.terminated = 0
        elif "done" in last and last.get("truncated") is False:
            loaded.terminated = 1


def _probe_cameras(layout: Layout) -> dict[str, VideoFacts]:
    """Of each camera, the header of its first video that can be read."""
    found: dict[str, VideoFacts] = {}
    failed: dict[str, int] = {}
    for entry in layout.entries:
        for video in entry.videos:
            if video.camera in found or failed.get(video.camera, 0) > 50:
                continue
            try:
                found[video.camera] = probe(layout.folder.path(video.file), video.file)
            except SourceError:
                failed[video.camera] = failed.get(video.camera, 0) + 1  # its episodes fail when they are read
    for camera in sorted(set(failed) - set(found)):
        layout.notes.append(f"no video of the camera {camera} can be read: left out")
    return found


def _texts(rows: EpisodeRows) -> dict[str, Any]:
    """Columns of text and of structures."""
    found = {}
    for name in rows.rows.schema.names:
        kind = plain_type(rows.rows.schema.field(name).type)
        numbers = numpy_name(leaf(kind)[0])
        struct = str(kind).startswith("struct") and not is_list(kind)
        if not numbers and not struct and name not in BOOKKEEPING:
            found[name] = changes(rows.column(name))
    return found


def _description(layout: Layout) -> str:
    info = layout.info
    robot = f", robot {info.robot_type}" if info.robot_type else ""
    return f"LeRobot {info.version} set{robot}, {float(info.rate):g} frames per second"
