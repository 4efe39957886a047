"""HDF5 files of no known layout: a group for each episode, numbered arrays side by side, or one episode a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py

from converters import hdf5
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan, timestamps
from converters.mapping import FieldMap, Rule, feature_name
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.schema import DTYPES

NUMBERED = re.compile(r"(.*?)[_-]?(\d+)")
MEANINGS = {
    "action": ("action", "actions", "act", "acts", "control", "controls", "ctrl", "u"),
    "reward": ("reward", "rewards", "rew"),
    "obs.state": ("state", "states", "observation", "observations", "obs"),
    "obs.proprio": ("qpos", "joint_pos", "joint_positions", "proprio", "robot_state"),
}
"""feature -> what its field may be called, last word of the path, the likeliest first."""
SHOWN = 4
TEXTS = 64
"""Entries of an array of text that is kept; a longer one is data that we have no feature for."""


@dataclass(frozen=True)
class Hdf5Options(EpisodeOptions):
    """`rate` is that of the steps, per second; 0: the file does not say, and there are no time stamps."""

    rate: float = 0.0


class Hdf5Converter(EpisodeConverter):
    """HDF5 files of no known layout: a group per episode, numbered arrays (actions_0, ...), or a file per episode."""

    Options = Hdf5Options
    kind = "hdf5"
    suffixes = (".hdf5", ".h5", ".hdf")
    packages = ("h5py",)

    def __init__(self, sources: Sequence[Path], options: Hdf5Options) -> None:
        super().__init__(sources, options)
        if options.rate < 0:
            raise ConfigError(f"rate: expected steps per second, found {options.rate}")
        self._files = hdf5.Hdf5Files()

    @staticmethod
    def recognises(source: Path) -> bool:
        """Any HDF5 file, or a folder of them. The kinds with a layout of their own are asked before this one."""
        if source.is_dir():
            return any(hdf5.is_hdf5(path) for path in source.iterdir())
        return hdf5.is_hdf5(source)

    def scan(self, source: Path, name: str) -> Scan:
        with hdf5.open_hdf5(source) as file:
            episodes, left = find_episodes(file)
            recordings, problems = [], []
            for label, arrays in episodes.items():
                try:
                    with locate(path=name, episode=label):
                        recordings.append(_recording(file, label, arrays, name))
                except SourceError as error:
                    problems.append((f"{name}/{label}", error))
        notes = [f"left out, in no episode: {_few(left)}"] if left else []
        return Scan(tuple(recordings), {name: source}, tuple(problems), tuple(notes))

    def settle(self, recordings: list[Recording]) -> tuple[list[Recording], list[str]]:
        """What the rows of a field are shows only over all episodes: 7 numbers may happen to be 7 steps as well."""
        rows, left = _rows_of(recordings)
        settled = []
        for recording in recordings:
            places, texts, group = recording.payload
            fields = {path: _settled(field, places[path][1], rows[path]) for path, field in recording.fields.items()
                      if path in rows}  # fmt: skip
            final = any(field.rows == "state" for field in fields.values())
            if self.options.rate:
                fields[TIMESTAMP] = Field(TIMESTAMP, "int64", (), "state")
            kept = {path: (places[path][0], fields[path].rows) for path in fields if path != TIMESTAMP}
            settled.append(replace(recording, fields=fields, payload=(kept, texts, final, group)))
        return settled, [
            f"fields with another number of rows than the actions were left out: {_few(left)}"
        ] if left else []

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        taken: dict[str, str] = {}
        for feature, words in MEANINGS.items():
            found = [path for word in words for path in sorted(known) if path.rpartition("/")[2].lower() == word]
            if found:
                taken[found[0]] = feature
        rules = [Rule(taken.get(path) or _name(known[path]), (path,)) for path in known if path != TIMESTAMP]
        stamps = (Rule(TIMESTAMP, (TIMESTAMP,), unit="ns"),) if TIMESTAMP in known else ()
        return FieldMap(self.kind, (*rules, *stamps))

    def load(self, recording: Recording) -> Loaded:
        file = self._files.get(self.path(recording.files[0]))
        arrays, texts, final, group = recording.payload
        loaded = Loaded({}, final_observation=final)
        for path, (place, rows) in arrays.items():
            dataset = _find(file, place)
            loaded.arrays[path] = hdf5.read(dataset)[None] if rows == "episode" else hdf5.blocks(dataset)
        if self.options.rate:
            loaded.arrays[TIMESTAMP] = timestamps(recording.length + final, self.options.rate)
        loaded.source_meta = {"attributes": hdf5.attributes(file[group])} if group else {}
        loaded.source_meta |= {path: hdf5.plain(_find(file, place)[()]) for path, place in texts.items()}
        if common := hdf5.attributes(file):
            loaded.source_meta["file_attributes"] = common
        return loaded

    def close(self) -> None:
        self._files.close()


def find_episodes(file: h5py.File) -> tuple[dict[str, dict[str, str]], list[str]]:
    """({episode: {field: place in the file}}, arrays that lie in no episode). SourceError if there are none."""
    places = [path for path, _ in hdf5.datasets(file)]
    if not places:
        raise SourceError("the file holds no arrays")
    for find in (_groups, _numbered, _single):
        episodes = find(places)
        if episodes:
            used = {place for arrays in episodes.values() for place in arrays.values()}
            return episodes, sorted(set(places) - used)
    raise SourceError(f"no episodes found; expected groups of arrays or numbered arrays, found {_few(places)}")


def _groups(places: list[str]) -> dict[str, dict[str, str]]:
    """Groups whose names differ in a number: at the root, or in the one group that is there."""
    for depth in (0, 1, 2):
        found: dict[str, dict[str, str]] = {}
        for place in places:
            parts = place.split("/")
            if len(parts) > depth + 1 and NUMBERED.fullmatch(parts[depth]):
                found.setdefault("/".join(parts[: depth + 1]), {})["/".join(parts[depth + 1 :])] = place
        if found:
            return dict(sorted(found.items(), key=lambda item: _order(item[0])))
    return {}


def _numbered(places: list[str]) -> dict[str, dict[str, str]]:
    """`actions_0, states_0, actions_1, ...`: every number has the same fields."""
    found: dict[str, dict[str, str]] = {}
    for place in places:
        match = NUMBERED.fullmatch(place)
        if match and match[1]:
            found.setdefault(match[2], {})[match[1]] = place
    whole = Counter(frozenset(arrays) for arrays in found.values()).most_common(1)
    if not whole or (len(whole[0][0]) < 2 and len(found) < 2):
        return {}
    return {number: found[number] for number in sorted(found, key=int)}


def _single(places: list[str]) -> dict[str, dict[str, str]]:
    """All arrays of the file are one episode."""
    return {"0": {place: place for place in places}}


def _recording(file: h5py.File, label: str, arrays: Mapping[str, str], name: str) -> Recording:
    """One episode with all its arrays of numbers. The payload: {field: (place, rows or None)}, texts, group."""
    found = {path: _find(file, place) for path, place in arrays.items()}
    numbers = {path: dataset for path, dataset in found.items() if _is_numbers(dataset)}
    counts = {path: len(dataset) for path, dataset in numbers.items() if dataset.shape}
    if not counts:
        raise SourceError("no arrays of numbers with rows")
    fields = {path: Field(path, dataset.dtype.name, tuple(dataset.shape[1:])) for path, dataset in numbers.items()}
    group = label if isinstance(file.get(label), h5py.Group) else ""
    places = {path: (arrays[path], counts.get(path)) for path in numbers}
    texts = {path: arrays[path] for path, dataset in found.items()
             if h5py.check_string_dtype(dataset.dtype) and dataset.size <= TEXTS}  # fmt: skip
    return Recording(label.replace("/", "_"), _length(counts), (name,), fields, (places, texts, group))


def _rows_of(recordings: Sequence[Recording]) -> tuple[dict[str, str], set[str]]:
    """What each field has in every episode: a row for every step, for every state, or the same number always."""
    counts: dict[str, set[tuple[int | None, int]]] = {}
    for recording in recordings:
        for path, (_, count) in recording.payload[0].items():
            counts.setdefault(path, set()).add((count, recording.length))
    rows = {}
    for path, pairs in counts.items():
        if all(count == length for count, length in pairs):
            rows[path] = "step"
        elif all(count == length + 1 for count, length in pairs):
            rows[path] = "state"
        elif len({count for count, _ in pairs}) == 1 and next(iter(pairs))[0] != 0:
            rows[path] = "episode"
    return rows, set(counts) - set(rows)


def _settled(field: Field, count: int | None, rows: str) -> Field:
    shape = (count, *field.shape) if rows == "episode" and count is not None else field.shape
    return replace(field, rows=rows, shape=shape)


def _length(counts: Mapping[str, int]) -> int:
    """T: the rows of the actions, or else the commonest number of rows."""
    words = MEANINGS["action"]
    for path, count in sorted(counts.items()):
        if path.rpartition("/")[2].lower() in words and count:
            return count
    length = Counter(counts.values()).most_common(1)[0][0]
    if not length:
        raise SourceError("the arrays have no rows")
    return length


def _is_numbers(dataset: h5py.Dataset) -> bool:
    hdf5.check_dataset(dataset)
    return dataset.dtype.name in DTYPES


def _find(file: h5py.File, place: str) -> Any:
    item: Any = file
    for part in place.split("/"):
        item = hdf5.child(item, part)
    return item


def _name(field: Field) -> str:
    words = [word for word in field.path.split("/") if word.lower() not in ("obs", "observation", "observations")]
    picture = field.dtype == "uint8" and len(field.shape) == 3 and field.shape[-1] in (1, 3)
    return feature_name("obs", *(["image", *words[-1:]] if picture else words))


def _order(name: str) -> list[Any]:
    """Numbers by value, so that demo_10 comes after demo_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _few(names: Sequence[str] | set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
