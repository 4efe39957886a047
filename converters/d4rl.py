"""D4RL's flat HDF5 files: all steps of all episodes in one array each, with flags where an episode ends.

Facts of the layout. `observations`, `actions`, `rewards`, `terminals` have one row per step; `timeouts` is missing in
old files. Files of version 2 have `next_observations`. MuJoCo's medium-replay sets do not mark every time-out (D4RL
issue 162), AntMaze marks every step in the goal as terminal, and Maze2D is one run whose time-outs are arrivals at a
goal (issue 85). `infos/*` are per step, `metadata/*` of the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import h5py

from converters import d4rl_cuts
from converters.d4rl_cuts import Cut, Flags
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import Field, Loaded, Recording, Scan
from converters.hdf5 import (
    BROKEN,
    Hdf5Files,
    attributes,
    blocks,
    check_dataset,
    child,
    datasets,
    field_of,
    is_hdf5,
    is_small,
    open_hdf5,
    plain,
    read,
)
from converters.mapping import FieldMap, Rule, distinct, feature_name
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.schema import DTYPES

OBSERVATIONS, NEXT = "observations", "next_observations"
TERMINALS, TIMEOUTS = "terminals", "timeouts"
CUTS = ("flags", "timeouts")
FEATURES = {OBSERVATIONS: "obs.state", NEXT: "obs.next", "actions": "action", "rewards": "reward",
            TERMINALS: "terminal", "infos/qpos": "sim.qpos", "infos/qvel": "sim.qvel"}  # fmt: skip
ORDER = ("obs.", "action", "reward")
SMALL = 256
"""Values up to which what is not per step is kept in source_meta of every episode."""
SMALLEST_PICTURE = 32
MANY_SHORT = 0.1
"""Share of episodes of one step from which on they are told of."""


@dataclass(frozen=True)
class D4rlOptions(EpisodeOptions):
    """`episode_length`: the time limit, for files without time-outs. `cut`: at all flags, or at time-outs alone."""

    episode_length: int = 0
    cut: str = "flags"


class D4rlConverter(EpisodeConverter):
    """D4RL datasets: flat HDF5 files, cut into episodes where terminals or timeouts say so."""

    Options = D4rlOptions
    kind = "d4rl"
    suffixes = (".hdf5", ".h5")
    packages = ("h5py",)

    def __init__(self, sources: Any, options: D4rlOptions) -> None:
        super().__init__(sources, options)
        if options.cut not in CUTS:
            raise ConfigError(f"cut: expected {' or '.join(CUTS)}, found {options.cut!r}")
        if options.episode_length < 0:
            raise ConfigError(f"episode_length: expected at least 1, found {options.episode_length}")
        self._open = Hdf5Files()

    @staticmethod
    def recognises(source: Path) -> bool:
        """A file with observations, actions and terminals as arrays of one length, or a folder of such files."""
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if path.suffix.lower() in D4rlConverter.suffixes)
            return bool(inside) and _is_d4rl(inside[0])
        return _is_d4rl(source)

    def scan(self, source: Path, name: str) -> Scan:
        with open_hdf5(source) as file:
            arrays = dict(datasets(file))  # all of it is read through child(), which says what is damaged
            rows = _rows(arrays)
            cuts, shifted, notes = self._cuts(arrays, rows)
            used = {TIMEOUTS, *([TERMINALS] if self.options.cut == "flags" else []), *([NEXT] if shifted else [])}
            fields: dict[str, Field] = {}
            left_out = []
            for path, dataset in arrays.items():
                check_dataset(dataset)
                if _is_per_step(path, dataset, rows):
                    fields[path] = field_of(dataset, path, "state" if path == OBSERVATIONS else "step")
                elif not is_small(dataset, SMALL):
                    left_out.append(path)
        if left_out:
            notes.append(f"arrays that are not one row per step, left out: {_listed(left_out)}")
        fields = {path: field for path, field in fields.items() if path not in used}
        recordings = tuple(
            Recording(f"episode_{number}", cut.stop - cut.start, (name,), fields, cut)
            for number, cut in enumerate(cuts)
        )
        return Scan(recordings, {name: source}, (), tuple(notes))

    def _cuts(self, arrays: Mapping[str, h5py.Dataset], rows: int) -> tuple[list[Cut], bool, list[str]]:
        """(episodes, whether next_observations is the shifted observations, notes)."""
        flags: dict[str, Any] = {
            path: d4rl_cuts.marked(arrays[path], rows) if path in arrays else None for path in (TERMINALS, TIMEOUTS)
        }
        gaps, real = d4rl_cuts.gaps(arrays[OBSERVATIONS], arrays[NEXT]) if NEXT in arrays else (None, False)
        known = Flags(rows, flags[TERMINALS], flags[TIMEOUTS], gaps, real)
        cuts, notes = d4rl_cuts.cut(known, self.options.episode_length, self.options.cut == "timeouts")
        shifted = NEXT in arrays and not any("obs.next" in note for note in notes)
        if shifted and not all(cut.final for cut in cuts):
            without = sum(not cut.final for cut in cuts)
            notes.append(f"{without} of {len(cuts)} episodes have no final observation: next_observations copies a row")
        short = sum(cut.stop - cut.start == 1 for cut in cuts)
        if short > MANY_SHORT * len(cuts) and len(cuts) > 1:
            notes.append(
                f"{short} of {len(cuts)} episodes have one step; where terminals follow one another (AntMaze marks "
                "every step in the goal), --cut timeouts keeps them together"
            )
        return cuts, shifted, notes

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        rules = []
        for path, field in known.items():
            name = FEATURES.get(path) or feature_name(path.replace("infos/", "info/").replace("/", "."))
            layout = _picture_layout(field) if path in (OBSERVATIONS, NEXT) else ""
            if layout:
                name = "obs.image.camera" if path == OBSERVATIONS else "obs.image.next"
            rules.append(Rule(name, (path,), layout=layout or "hwc"))
        return FieldMap(self.kind, distinct(sorted(rules, key=_place)))

    def load(self, recording: Recording) -> Loaded:
        cut: Cut = recording.payload
        file = self._open.get(self.path(recording.files[0]))
        loaded = Loaded({}, final_observation=cut.final, terminated=cut.terminated, truncated=cut.truncated)
        for path in self._paths(file):
            rows = blocks(child(file, path), cut.start, cut.stop)
            if path == OBSERVATIONS and cut.final:
                last = read(child(file, NEXT), slice(cut.stop - 1, cut.stop))
                rows = chain(rows, [last.astype(self._found.fields[path].dtype)])
            loaded.arrays[path] = rows
        small = {
            path: plain(read(data))
            for path, data in datasets(file)
            if path not in loaded.arrays and is_small(data, SMALL)
        }
        skip = {TERMINALS, TIMEOUTS, NEXT}
        small = {path: value for path, value in small.items() if path not in skip}
        loaded.source_meta = {**attributes(file), **small, "rows": [cut.start, cut.stop]}
        return loaded

    def close(self) -> None:
        self._open.close()

    def _paths(self, file: h5py.File) -> list[str]:
        return [path for path in self._found.fields if path in file]


def _place(rule: Rule) -> tuple[int, str]:
    return next((place for place, head in enumerate(ORDER) if rule.name.startswith(head)), len(ORDER)), rule.name


def _is_d4rl(path: Path) -> bool:
    if path.suffix.lower() not in D4rlConverter.suffixes or not is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            kinds = {key: file.get(key) for key in (OBSERVATIONS, "actions", TERMINALS, TIMEOUTS)}
            found = [item for item in kinds.values() if isinstance(item, h5py.Dataset) and item.shape]
            both = all(isinstance(kinds[key], h5py.Dataset) for key in (OBSERVATIONS, "actions"))
            return both and len(found) > 2 and len({len(item) for item in found}) == 1
    except BROKEN:
        return False


def _rows(arrays: Mapping[str, h5py.Dataset]) -> int:
    """How many steps there are. SourceError if what must have a row for each has not."""
    for path in (OBSERVATIONS, "actions"):
        if path not in arrays or not arrays[path].shape:
            raise SourceError(f"expected the arrays observations and actions, as D4RL writes them; {path} is missing")
    rows = len(arrays["actions"])
    for path in (OBSERVATIONS, "rewards"):
        if path in arrays and (not arrays[path].shape or len(arrays[path]) != rows):
            with locate(feature=path):
                raise SourceError(f"expected {rows} rows, one per action, found shape {arrays[path].shape}")
    if TERMINALS not in arrays and TIMEOUTS not in arrays:
        raise SourceError("expected terminals or timeouts: nothing says where an episode ends")
    if not rows:
        raise SourceError("the file holds no steps")
    return rows


def _is_per_step(path: str, dataset: h5py.Dataset, rows: int) -> bool:
    return (
        bool(dataset.shape)
        and len(dataset) == rows
        and dataset.dtype.name in DTYPES
        and not path.startswith("metadata/")
    )


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _picture_layout(field: Field) -> str:
    """hwc or chw if rows are pictures, else empty."""
    shape = field.shape
    if field.dtype != "uint8" or len(shape) != 3:
        return ""
    if shape[2] in (1, 3) and min(shape[:2]) >= SMALLEST_PICTURE:
        return "hwc"
    return "chw" if shape[0] in (1, 3) and min(shape[1:]) >= SMALLEST_PICTURE else ""
