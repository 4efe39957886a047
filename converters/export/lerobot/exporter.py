"""A dataset as a LeRobot set, v3.0: many episodes in a file, one row group for each."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from converters.export.base import beside_rows
from converters.export.lerobot.clips import GROUP, CameraFile, VideoSettings, blocks, check_codec, fits
from converters.export.lerobot.columns import ENDS, OWN, OWN_TYPES, Column, columns_of, tasks_table
from converters.export.lerobot.files import CHUNKS, PATH, DataFiles, EpisodeTable
from converters.export.lerobot.statistics import Pixels, Pooled, Stats, of_numbers
from converters.export.lerobot.told import listen
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, locate
from vrl3data.report import Reporter
from vrl3data.schema import Array
from vrl3data.stored import StoredSample

TOLERANCE_NS = 100_000
"""How far a recorded time may be from the rate's: LeRobot's own tolerance, 0.1 ms."""
MAX_RATE = 1000


@dataclass(frozen=True)
class LerobotExportOptions:
    """`video` false: pictures as PNG, bit for bit. `fps` 0: from the timestamps. `crf` -1: 30 for av1, 23 for h264."""

    video: bool = field(default=True, metadata={"help": "Cameras as mp4 with loss, or as PNG bit for bit."})
    codec: Literal["av1", "h264"] = field(default="av1", metadata={"help": "Of the videos."})
    crf: int = field(
        default=-1,
        metadata={"help": "Constant rate factor: smaller is better and larger.", "shown": "30 for av1, 23 for h264"},
    )
    fps: int = field(
        default=0,
        metadata={"help": "Frames per second, in place of what the timestamps say.", "shown": "from the timestamps"},
    )
    robot_type: str = field(
        default="", metadata={"help": "Name of the robot, for info.json.", "shown": "as the source says"}
    )
    data_files_size_in_mb: int = field(default=100, metadata={"help": "Largest size of a data file."})
    video_files_size_in_mb: int = field(default=200, metadata={"help": "Largest size of a video."})  # fmt: skip


class LerobotExporter:
    """LeRobot v3.0: parquet and mp4 (or PNG), as LeRobotDataset reads it."""

    Options: type = LerobotExportOptions

    def __init__(self, dataset: Dataset, options: LerobotExportOptions) -> None:
        if dataset.schema.kind != "episodes":
            raise ConfigError("a LeRobot set holds episodes; this dataset holds images")
        if not len(dataset):
            raise ConfigError("the dataset holds no episodes")
        if options.data_files_size_in_mb < 1 or options.video_files_size_in_mb < 1:
            raise ConfigError("data_files_size_in_mb, video_files_size_in_mb: expected at least 1")
        if not 0 <= options.fps <= MAX_RATE or not -1 <= options.crf <= 63:
            raise ConfigError(f"fps: expected 0 to {MAX_RATE}, crf: -1 to 63, found {options.fps} and {options.crf}")
        self.dataset, self.options = dataset, options
        self.order = [position for name in dataset.manifest.splits for position in dataset.split(name)]
        self.notes: list[str] = []
        self.told = listen(dataset, self.order)
        columns, self._dropped = columns_of(dataset.schema.features, options.video, fits)
        if any(column.dtype == "video" for column in columns):
            check_codec(options.codec)
        self.columns = [*columns, *self._endings(columns), *(Column(key, OWN_TYPES[key], (1,)) for key in OWN)]
        self.rate = self._rate()

    def dropped(self) -> tuple[str, ...]:
        """Features and facts that the layout has no place for."""
        index = self.dataset.index
        lines = list(self._dropped)
        if final := sum(index["final_observation"].to_pylist()):
            lines.append(f"final observation: the row after the last action, in {final} episodes")
        named = {"subsets": "", "start_time_ns": -1, "origin": "unknown"}
        for word, empty in named.items():
            if any(value != empty for value in index[word].to_pylist()):
                lines.append(f"{word}: of each episode")
        if self.told.meta:
            lines.append("source_meta: of each episode, but for the type of the robot and changes of the task")
        return (*lines, "name, source: of each episode", *beside_rows(self.dataset, ("names", "scale_m")))

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        """All files. Memory: one episode's numbers and PNG files."""
        dest.mkdir()
        settings = VideoSettings(
            self.options.codec,
            self.options.crf if self.options.crf >= 0 else {"av1": 30, "h264": 23}.get(self.options.codec, 30),
            self.rate, self.options.video_files_size_in_mb * 1024**2, CHUNKS,
        )  # fmt: skip
        cameras = {column.key: CameraFile(dest / "videos" / column.key, settings)
                   for column in self.columns if column.dtype == "video"}  # fmt: skip
        named = self.dataset.index["task"].to_pylist()
        tasks = list(
            dict.fromkeys(word for position in self.order for word in self.told.tasks(position, named[position]))
        )
        data, pooled = DataFiles(dest, self.columns, self.options.data_files_size_in_mb * 1024**2), Pooled()
        table = EpisodeTable(dest)
        with reporter.progress("exporting", len(self.order), "episodes") as advance:
            for number, position in enumerate(self.order):
                item = self.dataset[position]
                with locate(episode=item.name):
                    row, stats = self._episode(item, number, tasks, data, cameras, dest)
                pooled.add(stats)
                table.add(row, stats)
                advance(1)
        data.close()
        table.close()
        for camera in cameras.values():
            camera.close()
        self._write_meta(dest, tasks, pooled, data.rows, settings)
        means = "quantiles of the whole set are means of those of the episodes, as LeRobot makes them"
        push = "before it is used from a hub, give it the git tag v3.0, which LeRobot asks for"
        return (*self.notes, *self._quality(cameras), means, push)

    # -- one episode -----------------------------------------------------------------------------------------

    def _episode(
        self, item: StoredSample, number: int, tasks: list[str], data: DataFiles,
        cameras: dict[str, CameraFile], dest: Path,
    ) -> tuple[dict[str, Any], dict[str, Stats]]:  # fmt: skip
        length = item.length
        arrays: list[Any] = []
        stats: dict[str, Stats] = {}
        row: dict[str, Any] = {"episode_index": number, "length": length}
        row["tasks"] = self.told.tasks(item.position, item.meta["task"])
        clips: dict[str, Any] = {}
        for column in self.columns:
            if column.picture:
                pixels = Pixels(length)
                if column.dtype == "image":
                    arrays.append(_images(item, column, length, pixels))
                else:
                    assert column.feature is not None
                    placed = cameras[column.key].add(item, column.feature, length, dest, pixels)
                    clips |= {f"videos/{column.key}/{word}": value for word, value in placed.items()}
                stats[column.key] = pixels.stats()
            else:
                rows = self._rows(item, column, length, number, data.rows, tasks)
                arrays.append(column.array(rows))
                stats[column.key] = of_numbers(rows)
        first = data.rows
        row |= data.add(arrays, length)
        row |= {"dataset_from_index": first, "dataset_to_index": first + length, **clips}
        return row, stats

    def _rows(
        self, item: StoredSample, column: Column, length: int, number: int, first: int, tasks: list[str]
    ) -> Array:
        """T rows of a column of numbers, in the shape that is declared."""
        if column.feature is not None:
            name = column.feature.name
            if name in item.absent:
                return np.zeros((length, *column.shape), column.dtype)
            return np.array(item.rows(name, 0, length)).reshape(length, *column.shape)
        if column.ending:
            rows = np.zeros((length, 1), bool)
            rows[-1] = item.meta[column.ending] == 1
            return rows
        made: dict[str, Array] = {
            "timestamp": (np.arange(length) / self.rate).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(first, first + length),
        }
        if column.key == "task_index":
            words = self.told.words(item.position, item.meta["task"], length)
            return np.array([tasks.index(word) for word in words], np.int64).reshape(length, 1)
        return made[column.key].reshape(length, 1)

    # -- the set ---------------------------------------------------------------------------------------------

    def _endings(self, columns: list[Column]) -> list[Column]:
        """next.done and the like, where every episode says it."""
        found = []
        taken = {column.key for column in columns}
        for word, key in ENDS.items():
            values = self.dataset.index[word].to_pylist()
            if key in taken or max(values) < 0:
                continue
            if min(values) < 0:
                self._dropped.append(f"{word}: {sum(value < 0 for value in values)} episodes do not say it")
            else:
                found.append(Column(key, "bool", (1,), ending=word))
        return found

    def _rate(self) -> int:
        """Frames per second, a whole number. ConfigError if the timestamps have no such rate."""
        asked = self.options.fps
        if "timestamp" not in self.dataset.schema:
            if not asked:
                raise ConfigError("the dataset has no timestamps; say the rate: fps")
            self.notes.append(f"the dataset has no timestamps: {asked} frames per second is what was asked for")
            return asked
        rate, worst = asked or self._guessed_rate(), 0.0
        for item in self.dataset.ahead(self.order, ["timestamp"]):
            times = item["timestamp"][: item.length].astype(np.int64)
            wanted = np.array([round(Fraction(row * 1_000_000_000, rate)) for row in range(len(times))], np.int64)
            worst = max(worst, float(np.abs(times - times[0] - wanted).max()))
            if worst > TOLERANCE_NS and not asked:
                raise ConfigError(
                    f"the timestamps of {item.name} are not those of {rate} frames per second (up to "
                    f"{worst / 1e9:.4g} s away); a LeRobot set has one whole rate: give fps to write it all the same"
                )
        if worst > TOLERANCE_NS:
            self.notes.append(f"timestamps were replaced by those of {rate} fps, up to {worst / 1e9:.4g} s away")
        return rate

    def _guessed_rate(self) -> int:
        for item in self.dataset.ahead(self.order, ["timestamp"]):
            times = item["timestamp"]
            if item.length > 1 and times[item.length - 1] > times[0]:
                rate = round((item.length - 1) * 1e9 / float(times[item.length - 1] - times[0]))
                if 1 <= rate <= MAX_RATE:
                    return rate
                raise ConfigError(f"the timestamps of {item.name} make {rate} frames per second; give fps")
        raise ConfigError("no episode is long enough to tell its rate; give fps")

    def _write_meta(self, dest: Path, tasks: list[str], pooled: Pooled, rows: int, settings: VideoSettings) -> None:
        pq.write_table(tasks_table(tasks), dest / "meta" / "tasks.parquet")
        _dump(dest / "meta" / "stats.json", pooled.to_json())
        splits, start = {}, 0
        for name in self.dataset.manifest.splits:
            count = len(self.dataset.split(name))
            splits[name], start = f"{start}:{start + count}", start + count
        video = any(column.dtype == "video" for column in self.columns)
        _dump(dest / "meta" / "info.json", {
            "codebase_version": "v3.0",
            "robot_type": self.options.robot_type or self.told.robot_type or None,
            "total_episodes": len(self.order),
            "total_frames": rows,
            "total_tasks": len(tasks),
            "chunks_size": CHUNKS,
            "data_files_size_in_mb": self.options.data_files_size_in_mb,
            "video_files_size_in_mb": self.options.video_files_size_in_mb,
            "fps": self.rate,
            "splits": splits,
            "data_path": f"data/{PATH}.parquet",
            "video_path": f"videos/{{video_key}}/{PATH}.mp4" if video else None,
            "features": {column.key: column.declared(_facts(column, settings)) for column in self.columns},
        })  # fmt: skip
        (dest / "README.md").write_text(_card(self.dataset), "utf-8")

    def _quality(self, cameras: dict[str, CameraFile]) -> list[str]:
        named = {column.key: column.feature.name for column in self.columns if column.feature}
        notes = [f"{named[key]}: {camera.settings.codec}, {_floor(camera.psnr)} dB, the worst episode "
                 f"{_floor(camera.worst_psnr)} dB" for key, camera in cameras.items()]  # fmt: skip
        small = [column.key for column in self.columns if column.dtype == "image"]
        if self.options.video and small:
            notes.append(f"{', '.join(small)}: stored as PNG, since video needs even sizes from 64 pixels on")
        absent = Counter(name for names in self.dataset.index["absent"].to_pylist() for name in names.split(","))
        here = {column.feature.name for column in self.columns if column.feature}
        notes += [f"{name}: absent in {absent[name]} episodes, where zeros stand for it"
                  for name in sorted(here & set(absent))]  # fmt: skip
        if any(column.picture and column.feature and column.feature.shape[2] == 1 for column in self.columns):
            notes.append("grey pictures were written with three equal channels")
        return notes


def _images(item: StoredSample, column: Column, length: int, pixels: Pixels) -> pa.ChunkedArray:
    """PNG files, while the statistics are taken."""
    assert column.feature is not None
    chunks, step = [], 0
    for rows_NHWC in blocks(item, column.feature, length):
        pixels.add(step, rows_NHWC)
        cells = []
        for frame in rows_NHWC:
            out = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(frame)).save(out, "PNG", compress_level=3)
            cells.append({"bytes": out.getvalue(), "path": f"frame-{step:06d}.png"})
            step += 1
        chunks.append(pa.array(cells, column.arrow()))
    return pa.chunked_array(chunks, column.arrow())


def _facts(column: Column, settings: VideoSettings) -> dict[str, Any] | None:
    if column.dtype != "video":
        return None
    return {
        "video.height": column.shape[0], "video.width": column.shape[1], "video.codec": settings.codec,
        "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": settings.rate, "video.channels": 3,
        "has_audio": False, "video.g": GROUP, "video.crf": settings.crf, "is_depth_map": False,
    }  # fmt: skip


def _floor(decibels: float) -> str:
    """Never better than what was measured."""
    return f"{math.floor(decibels * 100) / 100:.2f}"


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4), "utf-8")


def _card(dataset: Dataset) -> str:
    known = dataset.manifest.license
    license_ = [f"license: {known}"] if known and known != "unknown" else []
    made = f"Exported from a vrl3data dataset with the fingerprint `{dataset.manifest.fingerprint}`."
    lines = ["---", *license_, "task_categories:", "- robotics", "tags:", "- LeRobot", "- vrl3data", "configs:",
             "- config_name: default", "  data_files: data/*/*.parquet", "---", "", f"# {dataset.manifest.name}", "",
             dataset.manifest.description, "", made, ""]  # fmt: skip
    return "\n".join(lines)
