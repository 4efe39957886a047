"""What converters of episodes share: several sources, the mapping, the schema, selection of cameras, one episode.

A converter of episodes says what a source holds (`scan`), what its fields probably mean (`guess`) and gives the data
of one recording (`load`); names, identity, sizes, codecs and the receipt come from here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from converters.base import (
    Plan,
    Unit,
    check_exists,
    check_shared,
    loss_note,
    natural,
    placed,
    relative_names,
    source_identity,
    without_suffixes,
)
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan
from converters.hashing import LazyHash
from converters.mapping import FieldMap, distinct, read_map
from converters.pictures import check_fit
from converters.values import Look, feature_of, values
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.schema import PREVIEW, Episode, Schema

NOT_CONTENT = ("codec", "name", "license", "shard_size", "mapping")
"""Options that stand elsewhere in a dataset, or change no sample."""


@dataclass(frozen=True)
class EpisodeOptions:
    """`image_size` 0 keeps the source's; `codec` empty: raw up to 128 pixels; `mapping` is a TOML file."""

    codec: str = ""
    split: str = "train"
    name: str = ""
    license: str = "unknown"
    shard_size: int = SHARD_SIZE
    camera: tuple[str, ...] = ()
    image_size: int = 0
    fit: str = "squash"
    task: str = ""
    mapping: str = ""


@dataclass(frozen=True)
class _Found:
    """All sources together."""

    recordings: tuple[tuple[str, Recording], ...]
    """(name of the sample, recording)."""
    fields: Mapping[str, Field]
    files: Mapping[str, Path]
    problems: tuple[tuple[str, SourceError], ...]
    notes: tuple[str, ...]
    license: str
    description: str


class EpisodeConverter(ABC):
    """Base of all converters whose episodes are named arrays."""

    Options: type = EpisodeOptions
    kind: ClassVar[str]
    version: ClassVar[int] = 1
    extra: ClassVar[str] = ""
    """The extra of vrl3data that this kind needs."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """A folder given as source stands for all files in it with one of these; empty: a folder is one source."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Whose versions matter for the bytes."""

    def __init__(self, sources: Sequence[Path], options: Any) -> None:
        check_shared(options.split, options.shard_size)
        check_fit(options.fit, options.image_size)
        if len(set(options.camera)) != len(options.camera):
            raise ConfigError(f"camera: each can be given once, found {', '.join(options.camera)}")
        self.sources, self.options = [Path(source) for source in sources], options
        self.look = Look(options.image_size, options.fit, options.codec)

    # -- what a kind says ----------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def recognises(source: Path) -> bool:
        """Whether `source` is of this kind, by its content."""

    @abstractmethod
    def scan(self, source: Path, name: str) -> Scan:
        """What one source holds. `name` is its relative name: file names in the Scan begin with it.

        SourceError if nothing of it can be converted; a broken episode is one of the Scan's problems.
        """

    @abstractmethod
    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        """What the fields probably mean. Those that no rule uses are dropped, and listed."""

    @abstractmethod
    def load(self, recording: Recording) -> Loaded:
        """The data of one recording. SourceError if it is broken. Files are `self.path(name)`."""

    def settle(self, recordings: list[Recording]) -> tuple[list[Recording], list[str]]:
        """The recordings of all sources as they are when they are seen together, and notes on that."""
        return recordings, []

    def close(self) -> None:
        """Let go of what is held open; `read` may be called again."""
        return

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: what was found, without the recordings, which come one by one."""
        state = self.__dict__.copy()
        if "_found" in state:
            state["_found"] = replace(state["_found"], recordings=())
        return state

    # -- what they share -----------------------------------------------------------------------------------

    def plan(self) -> Plan:
        found, map_ = self._found, self.mapping()
        schema = self._schema
        notes = [*found.notes]
        if map_.dropped:
            notes.append(f"fields that became no feature: {', '.join(map_.dropped)}")
        notes += [loss_note(feature) for feature in schema.features if not feature.lossless]
        return Plan(
            DatasetSpec(schema, self._name(), self._provenance(map_), self._license(), found.description),
            _Units(self),
            len(found.recordings),
            notes=tuple(notes),
            find=found.files.__getitem__,
            problems=found.problems,
        )

    def mapping(self) -> FieldMap:
        """The mapping that was given, or else guessed, with the cameras that were asked for."""
        return self._mapping

    def known(self) -> Mapping[str, Field]:
        """All fields that the sources have."""
        return self._found.fields

    def read(self, unit: Unit) -> Episode:
        recording, sha256 = unit.payload
        loaded = self.load(recording)
        if self.options.task:
            loaded.task = self.options.task
        kept = ("final_observation", "terminated", "truncated", "success", "start_time_ns", "task", "origin", "subsets")
        return Episode(
            name=unit.name,
            values=values(self._mapping, loaded, self._features, self.look),
            length=recording.length if loaded.length < 0 else loaded.length,
            streams=loaded.streams,
            source=recording.files[0],
            source_sha256=str(sha256),
            split=loaded.split or self.options.split,
            source_meta=self._source_meta(recording, loaded),
            **{key: getattr(loaded, key) for key in kept},
        )

    def path(self, name: str) -> Path:
        """The file of a name of the scan."""
        return self._found.files[name]

    @cached_property
    def _features(self) -> Mapping[str, Any]:
        return {feature.name: feature for feature in self._schema.features}

    @cached_property
    def _schema(self) -> Schema:
        features = tuple(feature_of(rule, self._found.fields, self.look) for rule in self._mapping.rules)
        if not features:
            raise ConfigError("mapping: no field becomes a feature")
        return Schema("episodes", features, (PREVIEW,) if any(feature.is_image for feature in features) else ())

    @cached_property
    def _mapping(self) -> FieldMap:
        known = self._found.fields
        if not self.options.mapping:
            map_ = _own_clock(self.guess(known))
            used = {path for rule in map_.rules for path in rule.source}
            return replace(map_, dropped=tuple(sorted(set(known) - used))).only(self.options.camera)
        map_ = read_map(Path(self.options.mapping), self.kind)
        with locate(path=self.options.mapping):
            map_.check(known)
        return map_.only(self.options.camera)

    @cached_property
    def _found(self) -> _Found:
        scans = [self._scan(source, name) for source, name in self._items()]
        found, notes = self.settle([recording for _, scan in scans for recording in scan.recordings])
        settled = iter(found)
        together = [
            (name, replace(scan, recordings=tuple(islice(settled, len(scan.recordings))))) for name, scan in scans
        ]
        return _join(together, notes)

    def _items(self) -> list[tuple[Path, str]]:
        """(file or folder, its relative name) of everything the sources stand for."""
        items = []
        for source in self.sources:
            check_exists(source)
            if source.is_dir() and self.suffixes:
                inside = [path for path in source.rglob("*") if path.suffix.lower() in self.suffixes]
                inside = [path for path in inside if path.is_file() and not path.name.startswith(".")]
                inside.sort(key=lambda path: natural(path.as_posix()))
                if not inside:
                    with locate(path=source.name):
                        raise SourceError(f"no {' or '.join(self.suffixes)} files are in this folder")
                items += inside
            else:
                items.append(source)
        if len({item.resolve() for item in items}) != len(items):
            raise ConfigError("the same source is given twice")
        return list(zip(items, relative_names(items), strict=True))

    def _scan(self, source: Path, name: str) -> tuple[str, Scan]:
        try:
            with locate(path=name):
                return name, self.scan(source, name)
        except SourceError as error:
            return name, Scan((), {}, ((name, error),))

    def _source_meta(self, recording: Recording, loaded: Loaded) -> dict[str, Any]:
        """What the source said, and the other files of this episode with their hashes."""
        others = {name: str(LazyHash(self.path(name))) for name in recording.files[1:]}
        return {**loaded.source_meta, **({"source_files": others} if others else {})}

    def _name(self) -> str:
        return self.options.name or f"{self.kind}-{_stem(self.sources[0].resolve())}".lower()

    def _license(self) -> str:
        given: str = self.options.license
        return self._found.license if given == "unknown" and self._found.license else given

    def _provenance(self, map_: FieldMap) -> Provenance:
        sizes = [(name, _size(path)) for name, path in self._found.files.items()]
        asked = {key: value for key, value in asdict(self.options).items() if key not in NOT_CONTENT}
        defaults = {item.name: item.default for item in fields(self.options)}
        return Provenance(
            converter=self.kind,
            converter_version=self.version,
            source_name=", ".join(name for _, name in self._items())[:200],
            source_identity=source_identity(sizes),
            source_files=len(sizes),
            source_bytes=sum(size for _, size in sizes),
            options={key: value for key, value in asked.items() if key in ("split", "image_size", "fit")
                     or value != defaults[key]} | {"mapping": map_.to_json()},
            versions={name: metadata.version(name) for name in self.packages},
            shard_size=self.options.shard_size,
        )  # fmt: skip


class _Units:
    """The recordings in order. Files are not hashed before a recording of theirs is read: units may be passed over."""

    def __init__(self, converter: EpisodeConverter) -> None:
        self.converter = converter

    def __iter__(self) -> Iterator[Unit]:
        for name, recording in self.converter._found.recordings:
            yield Unit(name, (replace(recording, fields={}), LazyHash(self.converter.path(recording.files[0]))))


def _join(scans: Sequence[tuple[str, Scan]], more_notes: list[str]) -> _Found:
    """All scans as one. A recording whose fields contradict those of the first that has them is a problem."""
    known: dict[str, Field] = {}
    recordings: list[tuple[str, Recording]] = []
    problems: list[tuple[str, SourceError]] = []
    files: dict[str, Path] = {}
    taken: set[str] = set()
    for label, (_, scan) in zip(without_suffixes([source for source, _ in scans]), scans, strict=True):
        files.update(scan.files if scan.recordings else {})  # only what samples are made from (FORMAT.md 8)
        problems += scan.problems
        for recording in scan.recordings:
            name = f"{label}/{recording.name}"
            contradiction = _contradiction(known, recording)
            if name in taken:
                contradiction = SourceError(f"two episodes have the name {name!r}; the first one counts")
            taken.add(name)
            if contradiction is not None:
                problems.append((name, contradiction))
                continue
            known.update({path: field for path, field in recording.fields.items() if path not in known})
            recordings.append((name, recording))
    if not recordings:
        raise problems[0][1] if problems else SourceError("the source holds no episodes")
    licenses = {scan.license for _, scan in scans if scan.recordings}
    notes = tuple(dict.fromkeys([*(note for _, scan in scans for note in scan.notes), *more_notes]))
    descriptions = dict.fromkeys(scan.description for _, scan in scans if scan.description)
    license_ = licenses.pop() if len(licenses) == 1 else ""
    return _Found(tuple(recordings), known, files, tuple(problems), notes, license_, "\n".join(descriptions))


def _own_clock(map_: FieldMap) -> FieldMap:
    """A field that only has the name of our clock keeps it apart: nobody knows what it counts, and from when."""
    rules = (
        replace(rule, name=f"recorded.{TIMESTAMP}") if rule.name == TIMESTAMP and rule.unit != "ns" else rule
        for rule in map_.rules
    )
    return replace(map_, rules=distinct(rules))


def _contradiction(known: Mapping[str, Field], recording: Recording) -> SourceError | None:
    for path, field in recording.fields.items():
        want = known.get(path, field)
        error = None
        if (want.dtype, want.shape, want.rows) != (field.dtype, field.shape, field.rows):
            error = SourceError(f"expected {want.describe} as in the episodes before, found {field.describe}")
        elif want.names and field.names and want.names != field.names:
            first, other = (", ".join(names)[:120] for names in (want.names, field.names))
            error = SourceError(f"expected the entries {first} as in the episodes before, found {other}")
        if error is not None:
            return placed(error, path=recording.files[0], episode=recording.name, feature=path)
    return None


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
