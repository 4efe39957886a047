"""RLDS and Open X-Embodiment sets -> episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from converters.base import Unit
from converters.episodes import EpisodeConverter, EpisodeOptions
from converters.fields import Field, Loaded, Recording, Scan
from converters.mapping import FieldMap, Rule, feature_name
from converters.pictures import picture_size
from converters.rlds import example, shards, tfrecord
from converters.rlds.features import Layout, Spec, guess_features, read_features, step_count
from converters.rlds.steps import Shown, Steps, says_nothing
from converters.rlds.tfrecord import Record
from vrl3data.errors import ConfigError, SourceError, did_you_mean, locate
from vrl3data.manifest import Provenance
from vrl3data.schema import Episode

FEATURES = "features.json"
LOOKED_AT, LOOKED_BYTES = 8, 256 * 1024**2
"""Records that are read before anything is decided, and as many bytes of them."""
LARGE = 64
"""Entries of a row; one of a step that is this long and never changes is stored once per episode."""
LAST_STEPS = ("auto", "action", "observation")
NO_ROW = ("action", "reward", "discount")
"""What the last step does not have by the rules of RLDS."""


@dataclass(frozen=True)
class RldsOptions(EpisodeOptions):
    """`last_step` says what the last step of a record is: one with an action, or only the final observation.

    RLDS means the latter, many sets of Open X the former; `auto` looks at the first records.
    """

    last_step: Literal["auto", "action", "observation"] = "auto"


@dataclass(frozen=True)
class _Set:
    """What was found out about one set before its records are read."""

    layout: Layout
    last_is_observation: bool
    rows: Mapping[str, str]
    """Of each field: step, state, or episode."""


class RldsConverter(EpisodeConverter):
    """RLDS and Open X sets in TFRecord files, as TFDS lays them out; no TensorFlow is needed."""

    Options = RldsOptions
    kind = "rlds"
    extra = "rlds"
    packages = ("google-crc32c", "pillow")

    def __init__(self, sources: Sequence[Path], options: RldsOptions) -> None:
        super().__init__(sources, options)
        if options.last_step not in LAST_STEPS:
            raise ConfigError(f"last_step {options.last_step!r}{did_you_mean(options.last_step, LAST_STEPS)}")
        self._sets: dict[str, _Set] = {}
        self._builder = ""

    @staticmethod
    def recognises(source: Path) -> bool:
        """By the names of files, so that damaged ones are known too."""
        if source.is_file():
            return ".tfrecord" in source.name
        levels = ("*", "*/*", "*/*/*")  # the version's folder, the set's, or one above
        return any(".tfrecord" in path.name for level in levels for path in source.glob(level) if path.is_file())

    def scan(self, source: Path, name: str) -> Scan:
        tfrecord.masked_crc32c(b"")  # MissingExtra before any work
        paths = shards.find_shards(source)
        folder = paths[0].parent
        files = {shards.name_of(path, source, name): path for path in paths}
        beside = {
            shards.name_of(path, source, name): path
            for path in (folder / FEATURES, folder / shards.INFO)
            if path.is_file()
        }
        found, problems, notes = {}, [], []
        for label, path in files.items():
            found[label], error = tfrecord.scan(path)
            if error is not None:
                problems.append((label, _placed(error, label)))
        set_, more = self._look(folder, files, found)
        notes += [*more, *shards.copies(found), *shards.missing_shards(files)]
        info, more = shards.read_info(folder, files, found)
        self._builder = str(info.get("name") or self._builder)
        self._sets[name] = set_
        recordings = [
            Recording(f"{shards.stem(path)}/{number:06d}", 0, (label,), {}, (name, record))
            for label, path in files.items()
            for number, record in enumerate(found[label])
        ]
        if recordings:  # the others have the same fields
            recordings[0] = replace(recordings[0], fields=_fields(set_))
        license_ = info.get("redistributionInfo")
        return Scan(
            tuple(recordings), {**files, **beside}, tuple(problems), (*notes, *more),
            str(license_.get("license") or "") if isinstance(license_, dict) else "", shards.description(info),
        )  # fmt: skip

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        specs = {spec.path: spec for set_ in self._sets.values() for spec in set_.layout.specs}
        rules = [_rule(path, field, specs[path]) for path, field in known.items() if not path.startswith("action/")]
        parts = [path for path in known if path.startswith("action/")]
        joined = [path for path in parts if known[path].dtype.startswith("float") and len(known[path].shape) < 2]
        if joined and "action" not in known:
            names = tuple(
                f"{path.removeprefix('action/')}{number}" for path in joined for number in _places(known[path])
            )
            rules.append(Rule("action", tuple(joined), names=names))
            parts = [path for path in parts if path not in joined]
        rules += [_rule(path, known[path], specs[path]) for path in parts]
        return FieldMap(self.kind, tuple(sorted(rules, key=lambda rule: rule.name)))

    def read(self, unit: Unit) -> Episode:
        """How many steps a record has stands in the record, so it is read first."""
        recording, sha256 = unit.payload
        set_, steps = self._steps(recording)
        length = steps.count - int(set_.last_is_observation)
        loaded = replace(recording, length=length, payload=(*recording.payload, set_, steps))
        return super().read(replace(unit, payload=(loaded, sha256)))

    def load(self, recording: Recording) -> Loaded:
        _, record, *read = recording.payload
        set_, steps = read or self._steps(recording)
        asked = {path: rule.rows for rule in self._mapping.rules if rule.rows for path in rule.source}
        shown = Shown({**set_.rows, **asked}, set_.last_is_observation, bool(self.look.image_size))
        with locate(path=recording.files[0], offset=record.offset):
            loaded = steps.load(shown)
        split = shards.SHARD.fullmatch(self.path(recording.files[0]).name)
        loaded.split = shards.split(split["split"]) if split else ""
        return loaded

    def _steps(self, recording: Recording) -> tuple[_Set, Steps]:
        name, record = recording.payload
        with locate(path=recording.files[0], offset=record.offset):
            found = example.parse(tfrecord.read(self.path(recording.files[0]), record))
            return self._sets[name], Steps(found, self._sets[name].layout, step_count(found))

    def _look(
        self, folder: Path, files: Mapping[str, Path], found: Mapping[str, list[Record]]
    ) -> tuple[_Set, list[str]]:
        """What the set is, by its description and its first records."""
        examples = _first_examples(files, found)
        described = folder / FEATURES
        if described.is_file():
            with locate(path=FEATURES):
                layout = read_features(described)
        elif examples:
            layout = guess_features(examples[0])
        else:
            layout = Layout(())
        if examples and not any(spec.per_step for spec in layout.specs):
            raise SourceError("the records have no steps: a set of TFDS, but not one of episodes (RLDS)")
        steps = [Steps(item, layout, step_count(item)) for item in examples]
        layout = replace(layout, specs=tuple(_resolved(spec, steps) for spec in layout.specs))
        notes = [f"there is no {FEATURES}: shapes are guessed from the first record"] if layout.guessed else []
        notes += [f"not read: {line}" for line in layout.unread]
        last, note = self._last_step(layout, steps)
        notes += [note] if steps else []
        pictures = [spec for spec in layout.specs if spec.form == "picture"]
        notes += [
            f"{spec.path} is empty or black in the {len(steps)} records that were looked at: absent there"
            for spec in pictures
            if steps and not any(item.pictures(spec) for item in steps)
        ]
        rows = {spec.path: _rows_of(spec, steps) for spec in layout.specs if _is_field(spec)}
        return _Set(layout, last, rows), notes

    def _last_step(self, layout: Layout, steps: Sequence[Steps]) -> tuple[bool, str]:
        """(whether it is only an observation, what to say of it)."""
        if self.options.last_step != "auto":
            return self.options.last_step == "observation", f"last step: {self.options.last_step}, as was asked for"
        specs = [spec for spec in layout.numbers() if _top(spec.path) in ("action", "reward")]
        marked = [item for item in steps if (mark := item.mark("is_last")) is not None and mark[-1]]
        empty = [item for item in marked if all(says_nothing(item.numbers(spec)) for spec in specs if spec.per_step)]
        looked = f"the {len(steps)} records that were looked at"
        if specs and steps and len(empty) == len(steps):
            return True, f"last step: only an observation, since its action and reward are zero in {looked}"
        why = "is_last is not set in" if not marked else "its action or reward is not zero in"
        return False, f"last step: has an action, since {why} {len(steps) - len(empty)} of {looked} (--last-step)"

    def _name(self) -> str:
        return self.options.name or (f"rlds-{feature_name(self._builder)}" if self._builder else super()._name())

    def _provenance(self, map_: FieldMap) -> Provenance:
        """With what was decided about the last step, which lengths depend on."""
        made = super()._provenance(map_)
        decided = sorted({"observation" if set_.last_is_observation else "action" for set_ in self._sets.values()})
        return replace(made, options={**made.options, "last_step": ", ".join(decided)})


def _first_examples(files: Mapping[str, Path], found: Mapping[str, list[Record]]) -> list[dict[str, Any]]:
    """Of the first whole records; a broken one is told when it is its turn."""
    examples: list[dict[str, Any]] = []
    first_error: SourceError | None = None
    size = 0
    for label, path in files.items():
        for record in found[label][:LOOKED_AT]:
            size += record.length
            if len(examples) == LOOKED_AT or (examples and size > LOOKED_BYTES):
                return examples
            try:
                with locate(path=label, offset=record.offset):
                    parsed = example.parse(tfrecord.read(path, record))
                    if step_count(parsed):
                        examples.append(parsed)
            except SourceError as error:
                first_error = first_error or error
    if not examples and first_error is not None:
        raise first_error
    return examples


def _resolved(spec: Spec, steps: Sequence[Steps]) -> Spec:
    """With the size and the file format of the first picture, where the description leaves them open."""
    if spec.form != "picture" or (min(spec.shape) > 0 and spec.encoding):
        return spec
    for item in steps:
        if first := next((file for file in item.strings(spec) or () if file), b""):
            size = spec.shape if min(spec.shape) > 0 else (*picture_size(first)[:2], abs(spec.shape[2]))
            return replace(spec, shape=size, encoding="jpeg" if first.startswith(b"\xff\xd8") else "png")
    return spec


def _is_field(spec: Spec) -> bool:
    """Pictures, and numbers: single ones of the whole episode go into source_meta."""
    return spec.form == "picture" or (spec.form == "numbers" and (spec.per_step or bool(spec.shape)))


def _rows_of(spec: Spec, steps: Sequence[Steps]) -> str:
    if not spec.per_step:
        return "episode"
    if _top(spec.path) in NO_ROW:
        return "step"
    constant = spec.form == "numbers" and spec.entries >= LARGE and _top(spec.path) != "observation"
    small = spec.entries < 10_000
    return "episode" if constant and small and steps and all(item.is_constant(spec) for item in steps) else "state"


def _fields(set_: _Set) -> dict[str, Field]:
    fields = {}
    for spec in set_.layout.specs:
        if spec.path in set_.rows and spec.path not in ("is_first", "is_last", "is_terminal"):
            jpeg = spec.form == "picture" and spec.encoding == "jpeg"
            fields[spec.path] = Field(
                spec.path, spec.dtype, spec.shape, set_.rows[spec.path], jpeg=jpeg, lossy=jpeg
            )  # fmt: skip
    return fields


def _rule(path: str, field: Field, spec: Spec) -> Rule:
    """By the names of RLDS: observation, action, reward, discount."""
    words = path.split("/")
    where = words[1:] if words[0] == "observation" and len(words) > 1 else words
    about = " ".join(spec.description.split())
    if spec.form == "picture" or (field.dtype == "uint8" and len(field.shape) == 3 and field.shape[2] in (1, 3)):
        group = "depth" if field.dtype == "uint16" else "image"
        return Rule(feature_name(f"obs.{group}", "_".join(where)), (path,), description=about)
    if words[0] != "observation":  # a batch of windows has a discount of its own
        words = ["recorded", *words] if words == ["discount"] else words
        return Rule(feature_name(*words), (path,), description=about)
    name = "proprio" if where == ["state"] else ".".join(where)
    return Rule(feature_name("obs", name), (path,), description=about)


def _places(field: Field) -> list[str]:
    return [f".{number}" for number in range(field.shape[0])] if field.shape else [""]


def _top(path: str) -> str:
    return path.partition("/")[0]


def _placed(error: SourceError, label: str) -> SourceError:
    try:
        with locate(path=label):
            raise error
    except SourceError as placed:
        return placed
