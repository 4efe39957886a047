"""What a set says of itself against what its files hold: rows, clock, statistics, cameras, splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.fields import TIMESTAMP, Field
from converters.lerobot.columns import BOOKKEEPING, RECORDED, EpisodeRows, Known
from converters.lerobot.info import MAX_LINE, parse_json, read_json
from converters.lerobot.layout import Entry, Layout
from converters.lerobot.paths import Folder
from converters.lerobot.rows import ArrowRows, ParquetRows, broken, leaf, numbers, numpy_name
from converters.lerobot.stats import Moments, difference
from converters.lerobot.videos import VideoFacts
from vrl3data.errors import SourceError
from vrl3data.schema import Array

Open = Callable[[Folder, tuple[str, ...]], "ArrowRows | ParquetRows"]

CLOCK = 1e-3
"""Seconds between a stored time and the rate's that are rounding."""
PROBED = 32
"""Episodes whose clock is looked at in advance."""
MAX_CHECKED = 128 * 1024**2
"""Bytes of numbers that are read to check statistics of the whole set."""
MAX_FILES = 500
MODALITY = "meta/modality.json"
_LICENSE = re.compile(r"^license:[ \t]*([A-Za-z0-9.+_-]{1,60})[ \t]*$", re.MULTILINE)
_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


def row_range(rows: ArrowRows | ParquetRows, entry: Entry) -> tuple[int, int]:
    """[first, after the last) row of an episode in its file. SourceError if they are not as many as promised."""
    if "episode_index" not in rows.schema.names:
        start = max(entry.start, 0)
        if start + entry.length > len(rows) or (entry.start < 0 and entry.length != len(rows)):
            raise SourceError(f"the metadata promises {entry.length} rows, the file has {len(rows) - start}")
        return start, start + entry.length
    guess = entry.start if entry.start >= 0 else 0
    if guess + entry.length <= len(rows) and _only(rows, guess, entry):
        return guess, guess + entry.length
    at = np.flatnonzero(_episodes(rows, 0, len(rows)) == entry.index)
    if not len(at):
        raise SourceError(f"no row of the file has episode_index {entry.index}")
    if at[-1] - at[0] + 1 != len(at):
        raise SourceError(f"the rows of episode {entry.index} do not follow each other")
    if len(at) != entry.length:
        raise SourceError(f"the metadata promises {entry.length} rows, {len(at)} have episode_index {entry.index}")
    return int(at[0]), int(at[-1]) + 1


def _only(rows: ArrowRows | ParquetRows, start: int, entry: Entry) -> bool:
    """Whether exactly these rows, and not their neighbours, are of the episode."""
    first, stop = max(start - 1, 0), min(start + entry.length + 1, len(rows))
    found = _episodes(rows, first, stop)
    inside = found[start - first : start - first + entry.length]
    outside = (*found[: start - first], *found[start - first + entry.length :])
    return bool((inside == entry.index).all()) and entry.index not in outside


def _episodes(rows: ArrowRows | ParquetRows, start: int, stop: int) -> Array:
    parts = [numbers(batch.column(batch.schema.get_field_index("episode_index")), (), "int64")
             for batch in rows.batches(["episode_index"], start, stop, 65_536)]  # fmt: skip
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def clock_differs(layout: Layout, open_: Open) -> bool:
    """Whether stored times are more than rounding away from the rate's, in some episodes spread over the set."""
    entries = layout.entries[:: max(1, len(layout.entries) // PROBED)]
    for entry in entries:
        try:
            rows = open_(layout.folder, entry.data)
            episode = EpisodeRows(rows, *row_range(rows, entry), layout.folder)
            if clock_error(layout, episode) > CLOCK:
                return True
        except SourceError:
            continue  # it fails with this message when it is read
    return False


def clock_error(layout: Layout, episode: EpisodeRows) -> float:
    """Greatest distance, in seconds, of the stored times from the rate's; the first row is 0 in both."""
    if "timestamp" not in episode.rows.schema.names:
        return 0.0
    kind = numpy_name(leaf(episode.rows.schema.field("timestamp").type)[0])
    if not kind:
        return 0.0
    stored_T = np.asarray(episode.value(Field("timestamp", kind)), np.float64)
    wanted_T = np.arange(len(stored_T)) / float(layout.info.rate)
    # float32 seconds of a long episode are coarser than a millisecond
    coarse = float(np.spacing(np.float32(abs(stored_T).max(initial=0.0)))) if kind == "float32" else 0.0
    with np.errstate(invalid="ignore"):
        off_T = np.abs(stored_T - stored_T[0] - wanted_T) - coarse
    return float(np.where(np.isnan(off_T), np.inf, off_T).max(initial=0.0))


def of_cameras(layout: Layout, cameras: Mapping[str, VideoFacts]) -> list[str]:
    """Where a video's header contradicts info.json."""
    notes = []
    for camera, facts in cameras.items():
        declared = layout.info.features[camera]
        sizes = {(facts.height, facts.width), (facts.width, facts.height)}
        named = tuple(size for size in declared.shape if size not in (1, 3)) if len(declared.shape) == 3 else ()
        if len(named) == 2 and named not in sizes:
            notes.append(f"{camera}: declared as {list(declared.shape)}, the video is {facts.height}x{facts.width}")
        if declared.is_depth and facts.bits == 8:
            notes.append(f"{camera}: declared as depth, but its video holds colours; it is read as a camera")
    alone = {video.camera: entry.length for entry in layout.entries[:1] for video in entry.videos if video.alone}
    for camera, facts in cameras.items():
        if facts.frames > alone.get(camera, facts.frames):
            notes.append(f"{camera}: the first video has {facts.frames} frames for {alone[camera]} rows; each row gets "
                         "the frame of its time")  # fmt: skip
        if camera in alone and facts.rate and abs(facts.rate / layout.info.rate - 1) > 0.001:
            rates = f"{float(facts.rate):g} frames per second, the rows at {float(layout.info.rate):g}"
            notes.append(f"{camera}: the video runs at {rates}; where both are as many they are paired in order")
    return notes


def of_statistics(layout: Layout, open_: Open) -> list[str]:
    """Statistics of the whole set against its rows, if it is all here and small enough to be read twice."""
    stated = {name: item for name, item in layout.stats.items() if name not in (*BOOKKEEPING, "timestamp")}
    if not stated:
        return []
    total = layout.info.total("frames")
    here = sum(entry.length for entry in layout.entries)
    if total not in (-1, here):
        return [f"statistics are of {total:,} rows and {here:,} are here: not compared"]
    files = list(dict.fromkeys(entry.data for entry in layout.entries))
    if len(files) > MAX_FILES:
        return [f"statistics of {len(files):,} files are not compared"]
    found: dict[str, Moments] = {}
    read = 0
    for file in files:
        try:
            rows = open_(layout.folder, file)
            columns = {name: numpy_name(leaf(rows.schema.field(name).type)[0]) for name in rows.schema.names
                       if name in stated}  # fmt: skip
            columns = {name: kind for name, kind in columns.items() if kind}
            for batch in rows.batches(list(columns), 0, len(rows)):
                read += batch.nbytes
                if read > MAX_CHECKED:
                    return [f"statistics are not compared: more than {MAX_CHECKED // 1024**2} MB of numbers"]
                for name, kind in columns.items():
                    array = batch.column(batch.schema.get_field_index(name))
                    found.setdefault(name, Moments()).add(_flat(array, kind))
        except SourceError:
            return []  # these episodes fail with this message when they are read
    notes = [(name, difference(stated[name], moments)) for name, moments in sorted(found.items())]
    return [f"stated statistics of {name} are wrong: {words}" for name, words in notes if words]


def _flat(array: Any, kind: str) -> Array:
    with broken("the data cannot be read"):
        values = array
        width = 1
        while hasattr(values, "flatten") and not numpy_name(values.type):
            before = len(values)
            values = getattr(values, "storage", values).flatten()
            width *= len(values) // max(1, before)
    return numbers(values, (), kind).reshape(len(array), -1)


def of_episode(
    layout: Layout, entry: Entry, rows: EpisodeRows, arrays: Mapping[str, Any], fields: Mapping[str, Field], open_: Open
) -> dict[str, Any]:
    """Facts for source_meta: where the clock, or the episode's own statistics, contradict the rows."""
    found: dict[str, Any] = {}
    if (off := clock_error(layout, rows)) > CLOCK:
        found["timestamp_differs_s"] = round(off, 6) if np.isfinite(off) else "not a number"
    wrong = {}
    stated = _stated(layout, entry, open_, [path for path, value in arrays.items() if isinstance(value, np.ndarray)])
    for path, item in sorted(stated.items()):
        if path not in (*BOOKKEEPING, TIMESTAMP, RECORDED) and fields[path].dtype != "bool":
            moments = Moments()
            moments.add(arrays[path])
            if words := difference(item, moments):
                wrong[path] = words
    if wrong:
        found["statistics_differ"] = wrong
    return found


def _stated(layout: Layout, entry: Entry, open_: Open, names: list[str]) -> dict[str, Any]:
    """The episode's own statistics; nothing if they are missing or broken (they are not data)."""
    if entry.stats is None:
        return {}
    file, place = entry.stats
    path = layout.folder.path(file)
    try:
        if file.endswith(".jsonl"):
            with path.open("rb") as lines:
                lines.seek(place)
                stated = parse_json(lines.readline(MAX_LINE)).get("stats")
            return {name: stated[name] for name in names if name in stated}
        rows = open_(layout.folder, (file,))
        wanted = {f"stats/{name}/{key}": (name, key) for name in names for key in ("min", "max", "mean", "std", "count")
                  if f"stats/{name}/{key}" in rows.schema.names}  # fmt: skip
        found: dict[str, dict[str, Any]] = {}
        batch = next(rows.batches(list(wanted), place, place + 1), None) if wanted else None
        if batch is not None:
            for column, value in batch.to_pylist()[0].items():
                if column in wanted:
                    name, key = wanted[column]
                    found.setdefault(name, {})[key] = value
        return found
    except (SourceError, OSError, AttributeError, TypeError):
        return {}


def read_modality(layout: Layout, known: Known) -> None:
    """meta/modality.json (GR00T): which entries of state and action are which part of the robot."""
    layout.facts.update(layout.info.rest)
    if layout.info.robot_type:
        layout.facts["robot_type"] = layout.info.robot_type
    layout.facts.update(codebase_version=layout.info.version, fps=float(layout.info.rate))
    if not layout.folder.has(MODALITY):
        return
    layout.meta.append(MODALITY)
    with layout.collecting(MODALITY):
        found = read_json(layout.folder.path(MODALITY), MAX_LINE)
        layout.facts["modality"] = found
        for kind, column in (("state", "observation.state"), ("action", "action")):
            parts = found.get(kind) if isinstance(found, dict) else None
            if isinstance(parts, dict) and all(isinstance(part, dict) for part in parts.values()):
                words = [f"{name} {part.get('start')}:{part.get('end')}" for name, part in parts.items()]
                known.parts[column] = ", ".join(words)[:1000]


def split_of(splits: Mapping[str, str], index: int) -> str:
    """The set's split of an episode; empty if it has only `train`, which every set states."""
    if set(splits) <= {"train"}:
        return ""
    for name, text in splits.items():
        for part in text.split(","):
            match = _RANGE.fullmatch(part)
            if match and int(match[1]) <= index < int(match[2]):
                word = re.sub(r"[^a-z0-9_]+", "_", name.lower())
                return word if word != "all" else "all_episodes"
    return ""


def license_of(source: Path) -> str:
    """What the card's header says."""
    try:
        text = (source / "README.md").read_bytes()[:8192].decode("utf-8", "replace")
    except OSError:
        return ""
    match = _LICENSE.search(text) if text.startswith("---") else None
    return match[1] if match else ""
