"""ALOHA and ACT recordings: one HDF5 file per episode, with joints and cameras.

Facts of the layout. `/observations/qpos` and `/action` have a row per step; there is no final observation. Joints are
those of the left arm, then of the right one. Pictures are arrays, or JPEG files padded with zeros to one length. The
recorder of ALOHA runs at 50 Hz, but its files do not say so; forks run at other rates.

Colour: a recorder hands arrays to OpenCV, which takes them as BGR. Recorders that gave it RGB wrote JPEG files whose
red and blue are swapped (RoboTwin issue 473), others did not (openpi pull request 304), and no file says which. The
files are taken at their word; `color = bgr` swaps them back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from converters.base import natural, without_suffixes
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan, timestamps
from converters.frame_files import FrameFiles, field_of_files, holds_files
from converters.hdf5 import (
    Hdf5Files,
    attributes,
    blocks,
    check_dataset,
    child,
    datasets,
    field_of,
    is_hdf5,
    is_small,
    names,
    open_hdf5,
    plain,
    read,
)
from converters.mapping import FieldMap, Rule, distinct, feature_name
from converters.pictures import Frames
from vrl3data.errors import ConfigError, SourceError, locate

RATE = 50.0
"""Of ALOHA's own recorder: a step every 0.02 s."""
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
BOTH_ARMS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
SUFFIXES = (".hdf5", ".h5")
TASKS = ("language_raw", "language_instruction", "instruction", "task")
LENGTHS = "compress_len"
"""Of the JPEG files before they were padded; the files themselves say it."""
FEATURES = {
    "observations/qpos": "obs.proprio",
    "observations/qvel": "obs.qvel",
    "observations/effort": "obs.effort",
    "action": "action",
    "base_action": "action.base",
}
SMALL = 4096
"""Values of an array that is not one row per step, up to which it is kept in source_meta."""


@dataclass(frozen=True)
class AlohaOptions(EpisodeOptions):
    """`rate` in steps per second: -1 is ALOHA's 50 where the file has ALOHA's layout, 0 is not known."""

    rate: float = -1.0
    color: str = "rgb"


@dataclass(frozen=True)
class _Payload:
    paths: tuple[str, ...]
    files: tuple[str, ...]
    """Of those, the cameras whose rows are JPEG or PNG files."""
    final: bool
    rate: float


class AlohaConverter(EpisodeConverter):
    """ALOHA and ACT episodes in HDF5 files: joints, actions and cameras, one file per episode."""

    Options = AlohaOptions
    kind = "aloha"
    packages = ("h5py",)

    def __init__(self, sources: Any, options: AlohaOptions) -> None:
        super().__init__(sources, options)
        if options.color not in ("rgb", "bgr"):
            raise ConfigError(f"color: expected rgb or bgr, found {options.color!r}")
        if options.rate < 0 and options.rate != -1:
            raise ConfigError(f"rate: expected steps per second, or 0 if it is not known, found {options.rate}")
        self._open = Hdf5Files()

    @staticmethod
    def recognises(source: Path) -> bool:
        """A file with observations/qpos and action, or a folder of such files."""
        if source.is_dir():
            return any(_is_aloha(path) for path in _files_in(source)[:3])
        return source.suffix.lower() in SUFFIXES and _is_aloha(source)

    def scan(self, source: Path, name: str) -> Scan:
        paths = _files_in(source) if source.is_dir() else [source]
        if not paths:
            raise SourceError("no .hdf5 files are in this folder")
        recordings, problems, notes = [], [], []
        files = {}
        inside = [path.relative_to(source).as_posix() if path != source else path.name for path in paths]
        for path, inner, label in zip(paths, inside, without_suffixes(inside), strict=True):
            file = f"{name}/{inner}" if path != source else name
            files[file] = path
            try:
                with locate(path=file):
                    recording, said = self._recording(path, file, label)
                    recordings.append(recording)
                    notes += said
            except SourceError as error:
                problems.append((f"{name}/{label}" if path != source else name.rpartition(".")[0], error))
        return Scan(tuple(recordings), files, tuple(problems), tuple(dict.fromkeys(notes)))

    def _recording(self, path: Path, name: str, label: str) -> tuple[Recording, list[str]]:
        with open_hdf5(path) as file:
            if not _has_observations(file):
                raise SourceError("expected /observations/qpos and /action, as ALOHA writes them; this is another kind")
            action = child(file, "action") if "action" in names(file) else None
            if not isinstance(action, h5py.Dataset) or not action.shape:
                raise SourceError("expected the dataset /action: without actions there are no steps")
            length = len(action)
            if not length:
                raise SourceError("the episode has no steps: /action is empty")
            found = {item: dataset for item, dataset in datasets(file) if item != LENGTHS}
            final = _has_final(found, length)
            fields: dict[str, Field] = {}
            notes, files = [], []
            for item, dataset in found.items():
                if item == TIMESTAMP or _is_text(dataset) or not _per_step(item, dataset, length, final):
                    if not is_small(dataset, SMALL):
                        notes.append(f"{item}: {dataset.dtype} of shape {dataset.shape} is left out")
                    continue
                rows = "state" if item.startswith("observations/") else "step"
                if _is_coded(item, dataset):
                    fields[item] = field_of_files(dataset, item, rows, depth="depth" in item)
                    files.append(item)
                else:
                    fields[item] = _named(field_of(dataset, item, rows))
            rate, said = self._rate(file, fields)
            notes += said
        if rate:
            fields[TIMESTAMP] = Field(TIMESTAMP, "int64", (), "state")
        payload = _Payload(tuple(item for item in fields if item != TIMESTAMP), tuple(files), final, rate)
        return Recording(label, length, (name,), fields, payload), notes

    def _rate(self, file: h5py.File, fields: Mapping[str, Field]) -> tuple[float, list[str]]:
        """(steps per second, 0 if not known; what is to be said of it)."""
        if self.options.rate >= 0:
            return self.options.rate, []
        own = fields["action"].shape == (14,) and "sim" in attributes(file)
        if own:
            return RATE, [
                "timestamps assume ALOHA's 50 steps per second, which its files do not state; --rate says another"
            ]
        return 0.0, ["no timestamps: the files do not state their rate; --rate says it (ALOHA's own recorder: 50)"]

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        rules = []
        for path, field in known.items():
            name = _feature(path, field)
            if not name:
                continue
            color = self.options.color if name.startswith("obs.image.") and field.shape[-1] == 3 else ""
            means = "abs_joint" if name == "action" else "velocity" if name == "action.base" else ""
            rules.append(Rule(name, (path,), color=color, representation=means, unit="ns" if path == TIMESTAMP else ""))
        return FieldMap(self.kind, distinct(sorted(rules, key=lambda rule: _order(rule.name))))

    def load(self, recording: Recording) -> Loaded:
        payload: _Payload = recording.payload
        file = self._open.get(self.path(recording.files[0]))
        states = recording.length + payload.final
        loaded = Loaded({}, final_observation=payload.final)
        for path in payload.paths:
            dataset = child(file, path)
            if path in payload.files:
                kept = FrameFiles(dataset, states)
                field = self._found.fields[path]
                loaded.arrays[path] = Frames(kept, field.shape)
            else:
                loaded.arrays[path] = blocks(dataset)
        if payload.rate:
            loaded.arrays[TIMESTAMP] = timestamps(states, payload.rate)
        said = attributes(file)
        loaded.success = int(said["success"]) if said.get("success") in (0, 1) else -1
        small = {
            path: plain(read(data))
            for path, data in datasets(file)
            if path not in payload.paths and is_small(data, SMALL)
        }
        loaded.task = _task(said, small)
        small.pop(LENGTHS, None)
        loaded.source_meta = {**said, **small, "action_offset": 0}
        return loaded

    def close(self) -> None:
        self._open.close()


def _files_in(folder: Path) -> list[Path]:
    """In the order of their numbers: episode_2 before episode_10."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: natural(path.as_posix()))


def _is_aloha(path: Path) -> bool:
    if not is_hdf5(path):
        return False
    try:
        with open_hdf5(path) as file:
            return _has_observations(file) and "action" in names(file)
    except SourceError:  # named as ALOHA names its episodes: its own message says what is wrong with it
        return re.fullmatch(r"episode_\d+", path.stem) is not None


def _has_observations(file: h5py.File) -> bool:
    """Whether there is observations/qpos. SourceError if the file is damaged there, or has links in place of it."""
    group = child(file, "observations") if "observations" in names(file) else None
    return isinstance(group, h5py.Group) and "qpos" in names(group)


def _has_final(found: Mapping[str, h5py.Dataset], length: int) -> bool:
    """Whether observations have a row more than there are actions. SourceError if qpos has neither number."""
    rows = len(found["observations/qpos"]) if found["observations/qpos"].shape else 0
    if rows not in (length, length + 1):
        with locate(feature="observations/qpos"):
            raise SourceError(f"expected {length} rows, one per action, found {rows}")
    return rows == length + 1


def _per_step(path: str, dataset: h5py.Dataset, length: int, final: bool) -> bool:
    """Whether an array has a row per step. SourceError for an observation that has another number of rows."""
    rows = len(dataset) if dataset.shape else 0
    want = length + final if path.startswith("observations/") else length
    if rows != want and (path in FEATURES or path.startswith("observations/images/")):
        with locate(feature=path):
            raise SourceError(f"expected {want} rows, found {rows}")
    return rows == want


def _is_text(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None and not _is_coded(dataset.name, dataset)


def _is_coded(path: str, dataset: h5py.Dataset) -> bool:
    if "image" not in path and "depth" not in path:
        return False
    check_dataset(dataset)
    with locate(feature=path):
        coded = holds_files(dataset)
        if not coded and len(dataset.shape) < 3 and "images/" in path:
            raise SourceError(f"expected pictures or JPEG files, found {dataset.dtype} of shape {dataset.shape}")
    return coded


def _named(field: Field) -> Field:
    both = field.path in ("action", "observations/qpos", "observations/qvel", "observations/effort")
    return (
        Field(field.path, field.dtype, field.shape, field.rows, BOTH_ARMS) if both and field.shape == (14,) else field
    )


def _feature(path: str, field: Field) -> str:
    """Name of the feature that a field becomes; empty for none."""
    if path == TIMESTAMP:
        return TIMESTAMP
    if path in FEATURES:
        return FEATURES[path]
    last = path.rpartition("/")[2]
    if "depth" in path:
        camera = re.sub(r"_?depth_?", "", last) or last
        return feature_name("obs.depth", camera) if field.dtype == "uint16" and len(field.shape) in (2, 3) else ""
    if "image" in path and field.dtype == "uint8" and len(field.shape) == 3:
        return feature_name("obs.image", last)
    if path.startswith("observations/"):
        return feature_name("obs", path.removeprefix("observations/").replace("/", "."))
    return feature_name(path.replace("/", "."))


def _order(name: str) -> tuple[int, str]:
    heads = ("obs.image.", "obs.depth.", "obs.", "action", "timestamp")
    return next((place for place, head in enumerate(heads) if name.startswith(head)), len(heads)), name


def _task(said: Mapping[str, Any], small: Mapping[str, Any]) -> str:
    """What the file calls its task, in an attribute or a dataset."""
    for key in TASKS:
        value = said.get(key, small.get(key, ""))
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value:
            return value
    return ""
