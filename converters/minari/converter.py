"""Minari datasets, in HDF5, Arrow or Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from converters.base import placed
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import Field, Loaded, Recording, Scan
from converters.mapping import FieldMap, Rule, distinct, feature_name
from converters.minari import metadata, ours
from converters.minari.episode import Found, Storage, words
from converters.minari.hdf5_storage import Hdf5Storage
from converters.minari.metadata import MAIN, METADATA, Metadata
from converters.minari.spaces import SMALLEST_PICTURE, Leaf
from vrl3data.errors import SourceError, locate

NAMED = 100
"""Episodes in a row that are missing and named one by one."""
SIMULATOR = ("qpos", "qvel", "state")
"""Infos that D4RL's datasets have: the state of MuJoCo."""


@dataclass(frozen=True)
class _Payload:
    source: str
    """Name of its dataset in `_known`."""
    number: int
    found: Found


class MinariConverter(EpisodeConverter):
    """Minari datasets (HDF5, Arrow or Parquet): nested observations and actions, final observations, JPEG pictures."""

    Options = EpisodeOptions
    kind = "minari"
    packages = ("h5py", "pyarrow")

    def __init__(self, sources: Sequence[Path], options: EpisodeOptions) -> None:
        super().__init__([_dataset_folder(Path(source)) for source in sources], options)
        self._known: dict[str, Metadata] = {}
        self._hdf5 = Hdf5Storage()

    @staticmethod
    def recognises(source: Path) -> bool:
        """A folder of a dataset, its `data` folder, or its HDF5 file."""
        if source.is_file() and source.name != MAIN:
            return False
        return source.exists() and metadata.is_minari(metadata.data_folder(source))

    def scan(self, source: Path, name: str) -> Scan:
        folder = metadata.data_folder(source)
        if source.is_dir() and not metadata.is_minari(folder):
            inside = sorted(
                path.parent.parent.relative_to(source).as_posix() for path in source.rglob(f"data/{METADATA}")
            )
            hint = f"; it holds the datasets {', '.join(inside[:5])}: name one" if inside else ""
            raise SourceError(f"expected a Minari dataset, a folder with data/{METADATA}{hint}")
        meta = metadata.read(folder)
        self._known[name] = meta
        storage = self._storage(meta)
        numbers = storage.numbers(meta)
        recordings: list[Recording] = []
        problems = _missing(numbers, meta.episodes, name)
        notes: list[str] = []
        files: dict[str, Path] = {}
        for number in numbers:
            label = f"episode_{number}"
            try:
                with locate(path=name, episode=label):
                    found = storage.look(meta, number)
                    parts = {_name(path, source, name): path for path in storage.files(meta, number)}
                notes += found.notes
                files.update(parts)
                payload = _Payload(name, number, found)
                recordings.append(Recording(label, found.length, tuple(parts), found.fields, payload))
            except SourceError as error:
                problems.append((f"{name}/{label}", error))
        notes += _totals(meta, numbers, sum(recording.length for recording in recordings), bool(problems))
        description = str(meta.said.get("description") or "")
        if (folder / METADATA).is_file():
            files[_name(folder / METADATA, source, name)] = folder / METADATA
        return Scan(tuple(recordings), files, tuple(problems), tuple(dict.fromkeys(notes)), description=description)

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        leaves: dict[str, Leaf] = {}
        stated = {path: feature for meta in self._known.values() for path, feature in meta.ours.items()}
        for meta in self._known.values():
            for path, leaf in meta.leaves.items():
                same = leaves.get(path, leaf).bounds == leaf.bounds
                leaves[path] = leaf if same else replace(leaf, bounds=())
        ordered = sorted(known.items(), key=lambda item: _order(item[0]))
        rules = (
            ours.rule(path, stated[path]) if path in stated else _rule(path, field, leaves.get(path))
            for path, field in ordered
        )
        return FieldMap(self.kind, distinct(rules))

    def load(self, recording: Recording) -> Loaded:
        payload: _Payload = recording.payload
        meta = self._known[payload.source]
        loaded, texts, said = self._storage(meta).load(meta, payload.number, payload.found)
        missions = []
        for path, rows in texts.items():
            constant, changes = words(rows)
            missions += [constant] if constant and path.startswith("observations") else []
            said[path] = constant or changes
        loaded.task = missions[0] if len(missions) == 1 else meta.environment
        for key in ("id", "total_steps"):
            said.pop(key, None)
        text = said.pop(ours.KEY, None) if meta.ours else None
        loaded.source_meta = {**said, "minari": dict(meta.said)}
        ours.restore(loaded, text, recording.length, meta.ours, payload.found.fields)
        return loaded

    def close(self) -> None:
        self._hdf5.close()

    def _storage(self, meta: Metadata) -> Storage:
        if meta.format == "hdf5":
            return self._hdf5
        from converters.minari.arrow_storage import ArrowStorage  # pyarrow, for those who have such files

        return ArrowStorage()


def _dataset_folder(source: Path) -> Path:
    """The folder that is named as the dataset: not `data`, and not the file in it."""
    if source.name == MAIN and source.is_file():
        source = source.parent
    return source.parent if source.resolve().name == "data" and metadata.is_minari(source) else source


def _name(path: Path, source: Path, name: str) -> str:
    return f"{name}/{path.relative_to(source).as_posix()}"


def _missing(numbers: Sequence[int], promised: int, name: str) -> list[tuple[str, SourceError]]:
    """A problem for each episode that is not there, or one for many that follow each other."""
    ends = [*numbers, max([promised, *(number + 1 for number in numbers[-1:])])]
    problems = []
    for before, after in pairwise([-1, *ends]):
        one_by_one = range(before + 1, min(after, before + 1 + NAMED))
        problems += [(number, "the episode is missing") for number in one_by_one]
        if more := after - before - 1 - len(one_by_one):
            problems.append((one_by_one.stop, f"this episode and {more - 1} after it are missing"))
    labelled = ((f"episode_{number}", text) for number, text in problems)
    return [(f"{name}/{label}", placed(SourceError(text), path=name, episode=label)) for label, text in labelled]


def _totals(meta: Metadata, numbers: Sequence[int], steps: int, broken: bool) -> list[str]:
    """Where the metadata contradicts what is there."""
    notes = []
    if meta.episodes >= 0 and numbers and numbers[-1] >= meta.episodes:
        notes.append(f"{METADATA} says {meta.episodes} episodes, but there are {len(numbers)}")
    if meta.steps >= 0 and steps != meta.steps and not broken:
        notes.append(f"{METADATA} says {meta.steps} steps, but there are {steps}")
    return notes


def _order(path: str) -> tuple[int, str]:
    tops = ("observations", "actions", "rewards", "infos")
    top = path.partition("/")[0]
    return (tops.index(top) if top in tops else len(tops)), path


def _rule(path: str, field: Field, leaf: Leaf | None) -> Rule:
    top, _, rest = path.partition("/")
    rest = rest.replace("/", ".")
    layout = _picture_layout(field, leaf)
    if top == "observations" and layout:
        return Rule(feature_name("obs.image", rest.rpartition(".")[2] or "camera"), (path,), layout=layout)
    bounds = leaf.bounds if leaf else ()
    if top == "observations":
        return Rule(feature_name("obs", rest) if rest else "obs.state", (path,), bounds=bounds)
    if top == "actions":
        return Rule(feature_name("action", rest) if rest else "action", (path,), bounds=bounds)
    if top == "rewards":
        return Rule("reward", (path,))
    if top == "infos":
        return Rule(feature_name("sim" if rest in SIMULATOR else "info", rest), (path,))
    return Rule(feature_name(path.replace("/", ".")), (path,))


def _picture_layout(field: Field, leaf: Leaf | None) -> str:
    """hwc or chw if a field is of pictures, else empty. Small ones are grids of codes, as in Minari's own rule."""
    shape = field.shape
    if field.jpeg:
        return "hwc"
    if field.dtype != "uint8" or (leaf is not None and leaf.bounds and leaf.bounds != (0, 255)):
        return ""
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)):
        return "hwc" if min(shape[:2]) >= SMALLEST_PICTURE else ""
    return "chw" if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= SMALLEST_PICTURE else ""
