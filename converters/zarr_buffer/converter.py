"""Replay buffers of Diffusion Policy and UMI: arrays of all steps in Zarr, and where each episode ends.

Facts of the layout. Group `data` holds arrays with a row per step, `meta/episode_ends` the number of rows up to the end
of each episode. There is no final observation. Pictures are T x H x W x 3, uint8 or floats of 0..255 or 0..1. UMI names
its arrays camera0_rgb, robot0_eef_pos (metres), robot0_eef_rot_axis_angle, robot0_gripper_width (metres), and stores no
actions: they are made of the poses.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.base import placed
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan
from converters.mapping import FieldMap, Rule, distinct, feature_name
from converters.zarr_buffer.arrays import ZarrArray, metadata, open_array, read_json
from converters.zarr_buffer.stores import BROKEN, FolderStore, Store, ZipStore, open_store
from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

ENDS = "meta/episode_ends"
MAX_ENDS = 50_000_000
LOOK_ROWS = 16
"""Rows of pictures of floats that are looked at to see whether they are 0..1 or 0..255."""
PICTURE = re.compile(r"(rgb|image|img|color|cam\w*)", re.IGNORECASE)
DEPTH = re.compile(r"_?depth_?", re.IGNORECASE)
ENDING = re.compile(r"[_.](rgb|image|img|color)$", re.IGNORECASE)
ORDER = ("obs.image.", "obs.depth.", "obs.", "action", "reward")
NAMES = {"action": "action", "actions": "action", "state": "obs.state", "reward": "reward", "rewards": "reward"}
METRES = re.compile(r"robot\d+_(eef_pos|gripper_width)")
SMALLEST_PICTURE = 8
YEAR_2000_S = 946_684_800
SMALL = 64 * 1024


@dataclass(frozen=True)
class _Payload:
    source: str
    number: int
    start: int
    stop: int
    start_time_ns: int = -1


@dataclass(frozen=True)
class _Buffer:
    """One hierarchy. `scales` are of pictures of floats: what a value is multiplied with."""

    paths: tuple[str, ...]
    scales: Mapping[str, float]
    clock: str
    """Path of the seconds of each row, where they increase in every episode; empty if there are none."""
    said: Mapping[str, Any]
    per_episode: Mapping[str, list[Any]]


class ZarrConverter(EpisodeConverter):
    """Zarr replay buffers (Diffusion Policy, UMI): data/<key> and meta/episode_ends, in a folder or a .zarr.zip."""

    Options = EpisodeOptions
    kind = "zarr"
    extra = "zarr"

    def __init__(self, sources: Sequence[Path], options: EpisodeOptions) -> None:
        super().__init__(sources, options)
        self._buffers: dict[str, _Buffer] = {}
        self._stores: dict[str, FolderStore | ZipStore] = {}
        self._arrays: dict[tuple[str, str], ZarrArray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_arrays": {}}

    @staticmethod
    def recognises(source: Path) -> bool:
        """A hierarchy with meta/episode_ends; a folder or zip file named .zarr that is damaged."""
        if source.is_dir():
            if (source / "meta/episode_ends").is_dir():
                return any((source / ENDS / name).is_file() for name in (".zarray", "zarr.json"))
            return source.suffix == ".zarr" and any((source / name).is_file() for name in (".zgroup", "zarr.json"))
        if not source.is_file() or source.suffix.lower() != ".zip":
            return False
        try:
            with zipfile.ZipFile(source) as opened:
                return any(name.endswith((f"{ENDS}/.zarray", f"{ENDS}/zarr.json")) for name in opened.namelist())
        except BROKEN:
            return source.name.lower().endswith(".zarr.zip")

    def scan(self, source: Path, name: str) -> Scan:
        store = self._stores[name] = open_store(source)
        ends = _ends(store)
        notes: list[str] = []
        arrays: dict[str, ZarrArray] = {}
        for path in _paths(store, "data"):
            try:
                arrays[path] = open_array(store, path)
            except SourceError as error:
                if "objects" not in error.message and "expected numbers" not in error.message:
                    raise
                notes.append(f"{path}: left out: {error.message}")
        if not arrays:
            raise SourceError(f"expected arrays in the group data, found none{_because(notes)}")
        for path, array in arrays.items():
            if array.spec.shape[0] < ends[-1]:
                with locate(feature=path):
                    raise SourceError(f"episode_ends says {ends[-1]} rows, but there are {array.spec.shape[0]}")
            notes += _told(path, array, int(ends[-1]))
        buffer, more = _look(store, arrays, ends)
        self._buffers[name] = buffer
        notes += more
        fields = {path: _field(path, array, buffer) for path, array in arrays.items()}
        if buffer.clock:
            fields[TIMESTAMP] = Field(TIMESTAMP, "int64", (), "state")
        files = _files(store, source, name)
        first = next((key for key in files if f"/{ENDS}/" in key and key[-1].isdigit()), name)
        recordings, problems = [], []
        start = 0
        for number, stop in enumerate(ends.tolist()):
            label = f"episode_{number}"
            payload = _Payload(name, number, start, stop)
            if stop > start:
                recordings.append(Recording(label, stop - start, (first,), fields, payload))
            else:
                empty = SourceError("the episode has no steps: episode_ends repeats a number")
                problems.append((f"{name}/{label}", placed(empty, path=name, episode=label)))
            start = stop
        return Scan(tuple(recordings), files, tuple(problems), tuple(notes))

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        found = distinct(_rule(path, field) for path, field in known.items())
        return FieldMap(self.kind, tuple(sorted(found, key=_place)))

    def load(self, recording: Recording) -> Loaded:
        payload: _Payload = recording.payload
        buffer = self._buffers[payload.source]
        loaded = Loaded({})
        for path in buffer.paths:
            rows = self._array(payload.source, path).blocks(payload.start, payload.stop)
            scale = buffer.scales.get(path)
            loaded.arrays[path] = _native(rows) if scale is None else _as_pictures(rows, scale, path)
        if buffer.clock:
            clock = self._array(payload.source, buffer.clock)
            seconds = np.concatenate([block.reshape(-1) for block in clock.blocks(payload.start, payload.stop)])
            loaded.arrays[TIMESTAMP] = np.rint((seconds - seconds[0]) * 1e9).astype(np.int64)
            loaded.start_time_ns = int(seconds[0] * 1e9) if seconds[0] > YEAR_2000_S else -1
        of_this = {path: values[payload.number] for path, values in buffer.per_episode.items()}
        loaded.source_meta = {**buffer.said, **of_this, "rows": [payload.start, payload.stop]}
        return loaded

    def close(self) -> None:
        for store in self._stores.values():
            store.close()
        self._arrays.clear()

    def _array(self, source: str, path: str) -> ZarrArray:
        if (source, path) not in self._arrays:
            self._arrays[source, path] = open_array(self._stores[source], path)
        return self._arrays[source, path]


def _place(rule: Rule) -> tuple[int, str]:
    return next((place for place, head in enumerate(ORDER) if rule.name.startswith(head)), len(ORDER)), rule.name


def _ends(store: Store) -> Array:
    """Rows up to the end of each episode. SourceError if they are not that."""
    if not metadata(store, ENDS):
        raise SourceError(f"expected the array {ENDS}, as Diffusion Policy and UMI write it")
    array = open_array(store, ENDS)
    with locate(feature=ENDS):
        shape = array.spec.shape
        if len(shape) != 1 or np.dtype(array.spec.dtype).kind not in "iu" or shape[0] > MAX_ENDS:
            raise SourceError(f"expected a list of whole numbers, found {array.spec.dtype} of shape {shape}")
        missing, _, key = array.missing()
        if missing:
            raise SourceError(f"the chunk {key} is missing")
        ends = array.all().astype(np.int64)
        if not len(ends):
            raise SourceError("there are no episodes")
        back = np.flatnonzero(np.diff(ends) < 0)
        if ends[0] < 0 or back.size:
            at = int(back[0]) + 1 if back.size else 0
            raise SourceError(f"expected numbers that increase, found {ends[at]} after {ends[at - 1] if at else 0}")
    return ends


def _paths(store: Store, prefix: str, depth: int = 0) -> Iterator[str]:
    """Arrays below a group. Groups in it are looked into."""
    if depth > 8:
        raise SourceError(f"{prefix}: groups lie more than 8 deep")
    for name in store.children(prefix):
        path = f"{prefix}/{name}"
        said = metadata(store, path)
        if "shape" in said:
            yield path
        else:
            yield from _paths(store, path, depth + 1)


def _look(store: Store, arrays: Mapping[str, ZarrArray], ends: Array) -> tuple[_Buffer, list[str]]:
    """What it says besides its arrays, and notes on what of that is left out."""
    scales = {}
    for path, array in arrays.items():
        if _is_picture(path, array.spec.shape[1:]) and np.dtype(array.spec.dtype).kind == "f":
            with locate(feature=path):
                rows = np.concatenate([block.copy() for block in array.blocks(0, min(LOOK_ROWS, int(ends[-1])))])
            scales[path] = 255.0 if rows.size and float(np.nanmax(rows, initial=0.0)) <= 1.0 else 1.0
    said = {key: value for name in ("", "data", "meta") for key, value in _attributes(store, name).items()}
    per_episode, notes = {}, []
    for path in _paths(store, "meta"):
        if path == ENDS:
            continue
        if metadata(store, path).get("shape") != [len(ends)]:
            notes.append(f"{path}: left out: it does not have one value for each of {len(ends)} episodes")
            continue
        try:
            per_episode[path] = open_array(store, path).all().tolist()
        except SourceError as error:
            notes.append(f"{path}: left out: {error.message}")
    others = [name for name in store.children("") if name not in ("data", "meta")]
    notes += [f"the groups or arrays {', '.join(others[:5])} are not of a replay buffer: left out"] if others else []
    return _Buffer(tuple(arrays), scales, _clock(arrays, ends), said, per_episode), notes


def _attributes(store: Store, group: str) -> dict[str, Any]:
    prefix = f"{group}/" if group else ""
    said = read_json(store, f"{prefix}.zattrs") or read_json(store, f"{prefix}zarr.json").get("attributes") or {}
    return said if isinstance(said, dict) and len(str(said)) <= SMALL else {}


def _clock(arrays: Mapping[str, ZarrArray], ends: Array) -> str:
    """The path of `timestamp`, if it is of seconds that increase within each episode."""
    array = arrays.get("data/timestamp")
    if array is None or array.spec.shape[1:] not in ((), (1,)) or np.dtype(array.spec.dtype) != np.float64:
        return ""
    seconds = np.concatenate([block.reshape(-1).copy() for block in array.blocks(0, int(ends[-1]))])
    steps = np.diff(seconds)
    steps = np.delete(steps, [end - 1 for end in ends[:-1].tolist() if 0 < end <= len(steps)])
    return "data/timestamp" if np.isfinite(seconds).all() and bool((steps > 0).all()) else ""


def _told(path: str, array: ZarrArray, rows: int) -> list[str]:
    notes = []
    missing, total, key = array.missing()
    if missing:
        notes.append(
            f"{path}: {missing} of {total} chunks are not stored, the first {key}: they are all {array.spec.fill}, "
            "which Zarr leaves out, or they are lost"
        )
    if array.spec.shape[0] > rows:
        notes.append(
            f"{path}: {array.spec.shape[0] - rows} rows after the last episode belong to none and are left out"
        )
    return notes


def _files(store: FolderStore | ZipStore, source: Path, name: str) -> dict[str, Path]:
    if source.is_file():
        return {name: source}
    return {f"{name}/{key}": source / key for key, _ in sorted(store.sizes(""))}


def _because(notes: Sequence[str]) -> str:
    return f" that can be read ({notes[0]})" if notes else ""


def _is_picture(path: str, shape: tuple[int, ...]) -> bool:
    large = len(shape) == 3 and shape[2] in (1, 3) and min(shape[:2]) >= SMALLEST_PICTURE
    return large and (PICTURE.search(path) is not None or min(shape[:2]) >= 2 * SMALLEST_PICTURE)


def _field(path: str, array: ZarrArray, buffer: _Buffer) -> Field:
    spec = array.spec
    dtype = "uint8" if path in buffer.scales else np.dtype(spec.dtype).name
    name = path.rpartition("/")[2]
    rows = "step" if NAMES.get(name, "obs") in ("action", "reward") or name.startswith("action") else "state"
    coded = any(step == "imagecodecs_jpegxl" and not config.get("lossless") for step, config in spec.steps)
    return Field(path, dtype, spec.shape[1:], rows, lossy=coded)


def _rule(path: str, field: Field) -> Rule:
    name = path.removeprefix("data/").replace("/", ".")
    if path == TIMESTAMP:
        return Rule(TIMESTAMP, (path,), unit="ns")
    if name == TIMESTAMP:
        return Rule("obs.clock", (path,), unit="s" if field.dtype == "float64" else "")
    if name in NAMES:
        return Rule(NAMES[name], (path,))
    if DEPTH.search(name) and field.dtype == "uint16" and len(field.shape) in (2, 3):
        return Rule(feature_name("obs.depth", DEPTH.sub("", name) or "camera"), (path,))
    if field.dtype == "uint8" and _is_picture(path, field.shape):
        return Rule(feature_name("obs.image", ENDING.sub("", name).replace(".", "_")), (path,))
    if name.startswith("action"):
        return Rule(feature_name("action", name.removeprefix("action").strip("s_.") or "x"), (path,))
    return Rule(feature_name("obs", name), (path,), unit="m" if METRES.fullmatch(name) else "")


def _native(rows: Iterator[Array]) -> Iterator[Array]:
    for block in rows:
        yield block.astype(block.dtype.newbyteorder("="), copy=True)


def _as_pictures(rows: Iterator[Array], scale: float, path: str) -> Iterator[Array]:
    """Floats as uint8, rounded. SourceError for values that no picture has."""
    for block in rows:
        values = np.rint(block.astype(np.float32) * scale)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            with locate(feature=path):
                raise SourceError("expected values of pictures, 0 to 1 or 0 to 255, found others or NaN")
        yield values.astype(np.uint8)
