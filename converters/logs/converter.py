"""Robot logs -> episodes on one control clock, or with every stream at its own rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from converters.base import Plan, check_exists, relative_names
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import TIMESTAMP, Field, Loaded, Recording, Scan
from converters.logs import episode
from converters.logs.gather import Gathered, gather, track_key
from converters.logs.guess import clock_names, guess_rules, is_silent
from converters.logs.log_cuts import parse_cut, ranges
from converters.logs.look import SYSTEM, Look, Pace, look
from converters.logs.messages import is_log, open_log
from converters.logs.placing import How, Placing, field_of, rate_of, slowest_topic
from converters.logs.streams import StreamSpec
from converters.mapping import FieldMap, Rule
from vrl3data.errors import ConfigError, SourceError, did_you_mean, locate
from vrl3data.manifest import Provenance

SUFFIXES = (".mcap", ".bag", ".db3")
ALIGNS, CLOCKS, ON_SYNC = ("hold", "nearest", "linear"), ("auto", "header", "publish", "log"), ("warn", "refuse")
MANY = 6
SMALL = 256 * 1024**2
"""Logs below this are read through before they are converted, so that the receipt tells of their defects."""
LEFT = "fields that became no feature"


@dataclass(frozen=True)
class LogOptions(EpisodeOptions):
    """`control`: a topic, a rate in Hz, or empty: the slowest camera, else the slowest regular topic.

    `tolerance` in seconds, 0: none. `cut`: empty (a file is an episode), `time:S`, `gap:S`, `topic:/NAME`.
    """

    control: str = ""
    align: Literal["hold", "nearest", "linear"] = "hold"
    tolerance: float = 0.0
    cut: str = ""
    clock: Literal["auto", "header", "publish", "log"] = "auto"
    own_rate: bool = False
    on_sync: Literal["warn", "refuse"] = "warn"


class LogConverter(EpisodeConverter):
    """MCAP files, ROS 1 bags and ROS 2 recordings; no ROS is needed."""

    Options = LogOptions
    kind = "log"
    extra = "robotlogs"
    packages = ("numpy", "pillow")

    def __init__(self, sources: Sequence[Path], options: LogOptions) -> None:
        super().__init__(sources, options)
        for key, known in (("align", ALIGNS), ("clock", CLOCKS), ("on_sync", ON_SYNC)):
            if getattr(options, key) not in known:
                raise ConfigError(f"{key} {getattr(options, key)!r}{did_you_mean(getattr(options, key), known)}")
        rate = rate_of(options.control)
        if rate is not None and not 0 < rate <= 10_000:
            raise ConfigError(f"control: expected a topic or a rate of 0 to 10,000 Hz, found {options.control}")
        if not 0 <= options.tolerance < 1e6:
            raise ConfigError(f"tolerance: expected seconds, found {options.tolerance}")
        parse_cut(options.cut)
        self._specs: dict[str, StreamSpec] = {}
        self._looks: dict[str, Look] = {}
        self._opened: dict[str, Path] = {}
        """Name of a source -> the file or folder."""
        self._gathered: tuple[str, Gathered] | None = None

    @staticmethod
    def recognises(source: Path) -> bool:
        """By its content; a folder also if logs lie in it."""
        if is_log(source):
            return True
        inside = [path for path in source.iterdir() if path.suffix in SUFFIXES] if source.is_dir() else []
        return any(is_log(path) for path in inside)

    def _items(self) -> list[tuple[Path, str]]:
        """A folder that is one recording is one source; of other folders, all logs and recordings in them."""
        items: list[Path] = []
        for source in self.sources:
            check_exists(source)
            items += [source] if not source.is_dir() or is_log(source) else _inside(source)
        if len({item.resolve() for item in items}) != len(items):
            raise ConfigError("the same source is given twice")
        return list(zip(items, relative_names(items), strict=True))

    def plan(self) -> Plan:
        """Ages of the control's own streams are always 0: that they are left out need not be said."""
        plan = super().plan()
        left = [path for path in self.mapping().dropped if not path.startswith("age:")]
        notes = [note for note in plan.notes if not note.startswith(LEFT)]
        notes += [f"{LEFT}: {', '.join(left)}"] if left else []
        late = sorted(topic for topic, pace in self._paces().items() if pace.late and topic not in SYSTEM)
        notes += [f"topics of a few messages that come late: {', '.join(late)}"] if late else []
        texts = [spec.name for spec in self._specs.values() if spec.role == "text" and spec.topic not in SYSTEM]
        notes += [f"texts in source_meta: {', '.join(texts)}"] if texts else []
        control = self._how().control
        notes.append(f"control clock: {control}{' Hz' if rate_of(control) else ''}; the sync report is in source_meta")
        return replace(plan, notes=tuple(notes))

    def scan(self, source: Path, name: str) -> Scan:
        with open_log(source) as log:
            files = _files(source, name)
            seen = look(log, sum(path.stat().st_size for path in files.values()) < SMALL)
            if not any(pace.count for pace in seen.paces.values()):
                raise SourceError("; ".join(["no messages can be read", *log.problems]))
            known = {spec.name: spec for spec in seen.specs if spec.role != "text"}
            if not any(spec.topic not in SYSTEM for spec in known.values()):
                raise SourceError(f"no topic holds numbers or pictures: {_few(_described(log.topics(), seen))}")
            self._check_same(known)
            cuts = ranges(log, seen.specs, self.options.cut, self._cut_topics(seen), self.options.clock)
            problems = log.problems
        self._specs.update({spec.name: spec for spec in seen.specs if spec.name not in self._specs})
        self._looks[name], self._opened[name] = seen, source
        fields = self._fields([spec for spec in self._specs.values() if spec.name in known])
        recordings = tuple(
            Recording(f"{number:04d}", 0, tuple(files), fields, (name, place)) for number, place in enumerate(cuts)
        )
        notes = [f"{name}: {text}" for text in problems]
        notes += [f"becomes no feature: {text}" for text in seen.left]
        return Scan(recordings, files, (), tuple(notes))

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        frames = {topic: frame for seen in self._looks.values() for topic, frame in seen.frames.items()}
        finite = {name: flags for seen in reversed(self._looks.values()) for name, flags in seen.finite.items()}
        specs = [spec for spec in self._specs.values() if spec.name in known and not is_silent(spec, finite)]
        paces = self._paces()
        if any(paces[spec.topic].period_ns for spec in specs):
            specs = [spec for spec in specs if not paces[spec.topic].late]
        map_ = FieldMap(self.kind, tuple(guess_rules(specs, frames, finite))).only(self.options.camera)
        control = self._choose_control([path for rule in map_.rules for path in rule.source])
        rules = []
        for rule in map_.rules:
            own = self._specs[rule.source[0]].topic == control
            rules.append(replace(rule, rows=rule.rows or "state") if self.options.own_rate and own else rule)
        more = [] if self.options.own_rate else [
            Rule(f"age.{rule.name}", (f"age:{rule.source[0]}",), unit="us",
                 description="control time less the stamp of the message")
            for rule in rules if self._specs[rule.source[0]].topic != control
        ]  # fmt: skip
        if self.options.own_rate:
            keys = dict.fromkeys(track_key(self._specs[rule.source[0]]) for rule in rules if not rule.rows)
            names = self._clocks()
            more = [Rule(f"timestamp.{names[key]}", (f"timestamp:{key}",), unit="ns") for key in keys]
        stamps = Rule(TIMESTAMP, (TIMESTAMP,), unit="ns", rows="state")
        return FieldMap(self.kind, (*rules, *more, stamps))

    def load(self, recording: Recording) -> Loaded:
        name, place = recording.payload
        placing = Placing(self._gather(name), self._used(), self._how())
        rows = {path: rule.rows or self._found.fields[path].rows for rule in self._mapping.rules
                for path in rule.source}  # fmt: skip
        needs = episode.Needs(rows, self._mapping, place, self.options.on_sync == "refuse")
        with locate(path=name):
            return episode.load(placing, needs)

    def close(self) -> None:
        if self._gathered is not None:
            self._gathered[1].spool.close()
            self._gathered = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_gathered": None}

    def _gather(self, name: str) -> Gathered:
        """The log with all that the mapping uses; the last one is kept, since it may have many episodes."""
        if self._gathered is None or self._gathered[0] != name:
            self.close()
            texts = [spec for spec in self._specs.values() if spec.role == "text" and spec.topic not in SYSTEM]
            with open_log(self._opened[name]) as log:
                self._gathered = name, gather(log, [*self._used(), *texts])
        return self._gathered[1]

    def _used(self) -> list[StreamSpec]:
        paths = [path.partition(":")[2] if path.startswith("age:") else path
                 for rule in self._mapping.rules for path in rule.source]  # fmt: skip
        return [self._specs[path] for path in dict.fromkeys(paths) if path in self._specs]

    def _how(self) -> How:
        used = [spec.name for spec in self._used()]
        tolerance = round(self.options.tolerance * 1e9) or None
        return How(self._choose_control(used), self.options.align, tolerance, self.options.clock)

    def _choose_control(self, paths: Sequence[str]) -> str:
        """A topic, or a rate. By the first messages of the first log that has them."""
        specs = [self._specs[path] for path in paths if path in self._specs]
        topics = {spec.topic for spec in specs}
        if rate_of(self.options.control) is not None:
            return str(self.options.control)
        if self.options.control:
            if self.options.control not in topics:
                wrong = self.options.control
                raise ConfigError(f"control: no feature is made of the topic {wrong!r}{did_you_mean(wrong, topics)}")
            return str(self.options.control)
        paces = self._paces()
        for wanted in (
            {spec.topic for spec in specs if spec.role == "picture" and paces[spec.topic].period_ns},
            {spec.topic for spec in specs if spec.role == "depth" and paces[spec.topic].period_ns},
            {topic for topic in topics if paces[topic].regular},
            {topic for topic in topics if paces[topic].period_ns},
        ):
            if wanted:
                return slowest_topic({topic: paces[topic].period_ns for topic in wanted})
        return max(sorted(topics), key=lambda topic: paces[topic].count)

    def _paces(self) -> dict[str, Pace]:
        """Of the first log that has a topic."""
        return {topic: pace for seen in reversed(self._looks.values()) for topic, pace in seen.paces.items()}

    def _fields(self, specs: Sequence[StreamSpec]) -> dict[str, Field]:
        names = self._clocks()
        fields = {}
        for spec in specs:
            rows = f"stream:{names[track_key(spec)]}" if self.options.own_rate else "state"
            fields[spec.name] = field_of(spec, rows)
        for spec in specs:
            fields[f"age:{spec.name}"] = Field(f"age:{spec.name}", "int32", (), "state")
        if self.options.own_rate:
            for key in dict.fromkeys(track_key(spec) for spec in specs):
                fields[f"timestamp:{key}"] = Field(f"timestamp:{key}", "int64", (), f"stream:{names[key]}")
        return {**fields, TIMESTAMP: Field(TIMESTAMP, "int64", (), "state")}

    def _clocks(self) -> dict[str, str]:
        return clock_names(dict.fromkeys(track_key(spec) for spec in self._specs.values() if spec.role != "text"))

    def _cut_topics(self, seen: Look) -> set[str]:
        if self.options.control and rate_of(self.options.control) is None:
            return {self.options.control}
        return {spec.topic for spec in seen.specs if spec.topic not in SYSTEM}

    def _check_same(self, known: Mapping[str, StreamSpec]) -> None:
        """The columns of a stream are the same in all logs: joints by name, in whatever order."""
        for path, spec in known.items():
            before = self._specs.get(path)
            if before is not None and spec.names_at and set(spec.names) != set(before.names):
                with locate(feature=path):
                    raise SourceError(
                        f"expected {', '.join(before.names)} as in the logs before, found {', '.join(spec.names)}"
                    )

    def _provenance(self, map_: FieldMap) -> Provenance:
        made = super()._provenance(map_)
        return replace(made, options={**made.options, "control": self._how().control})


def _inside(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    recordings = [path for path in paths if path.is_dir() and is_log(path)]
    logs = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()
            and not any(parent in path.parents for parent in recordings)]  # fmt: skip
    if not recordings and not logs:
        with locate(path=folder.name):
            raise SourceError(f"no {' or '.join(SUFFIXES)} files are in this folder")
    return sorted([*recordings, *logs])


def _files(source: Path, name: str) -> dict[str, Path]:
    if not source.is_dir():
        return {name: source}
    inside = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    logs = [path for path in inside if path.suffix in SUFFIXES]
    rest = [path for path in inside if path.name == "metadata.yaml"]
    return {f"{name}/{path.name}": path for path in (*logs, *rest)}


def _described(topics: Mapping[str, Any], seen: Look) -> list[str]:
    why = {text.split(" ")[0].split(":")[0]: text.rpartition(": ")[2] for text in seen.left}
    return [f"{name} ({topic.type}{', ' + why[name] if name in why else ''})" for name, topic in topics.items()]


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:MANY]) + (f" and {len(items) - MANY} more" if len(items) > MANY else "")
