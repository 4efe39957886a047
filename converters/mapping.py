"""Which field of a source becomes which feature: guessed, printed, written as TOML, edited, given back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from converters.fields import Field
from vrl3data import config
from vrl3data.errors import ConfigError, did_you_mean, locate
from vrl3data.schema import DTYPES, ROWS, STREAM

LAYOUTS = ("hwc", "chw")
COLORS = ("rgb", "bgr", "gray")


KEYS = (
    "# A field that becomes no feature stands in `dropped`. A feature may also have:",
    "#   columns = [0, 2]: only these entries; names, unit, description; bounds = [low, high]; dtype",
    "#   rows: step, state, episode or stream:<clock>; quaternion: wxyz or xyzw",
    "#   representation: abs_joint, delta_joint, abs_ee, delta_ee, velocity, torque, ...",
    "#   color: rgb, bgr (turned into rgb) or gray; layout: hwc or chw (channels first)",
    "#   scale_m: metres per stored count of depth",
    "#   flip: vertical or horizontal says how the stored pictures stand; it does not turn them",
)
"""What is said at the top of a mapping."""


@dataclass(frozen=True)
class Rule:
    """One feature and where it comes from. What is empty is as in the source, or not known."""

    name: str
    """Of the feature."""
    source: tuple[str, ...]
    """Fields of the source. Several are joined along the last axis."""
    columns: tuple[int, ...] = ()
    """Which entries of each row, in this order; empty: all. For vectors only."""
    rows: str = ""
    dtype: str = ""
    names: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[Any, ...] = ()
    description: str = ""
    color: str = ""
    """Order of the source's channels: rgb, bgr or gray. Stored is rgb or gray."""
    flip: str = ""
    layout: str = "hwc"
    """Of the source's pictures: hwc, or chw with channels first."""
    scale_m: float = 0.0
    """Of depth: metres per stored count."""
    quaternion: str = ""
    representation: str = ""

    def __post_init__(self) -> None:
        for key, known in (("rows", ROWS), ("dtype", DTYPES), ("layout", LAYOUTS), ("color", COLORS)):
            wrong = getattr(self, key)
            if wrong and wrong not in known and not (key == "rows" and STREAM.fullmatch(wrong)):
                raise ConfigError(f"feature {self.name}: {key} {wrong!r}{did_you_mean(wrong, known)}")
        if not self.source:
            raise ConfigError(f"feature {self.name}: expected a source, the name of a field")

    @property
    def label(self) -> str:
        """The last word of the name: of a camera, what `--camera` says."""
        return self.name.rpartition(".")[2]

    def to_json(self) -> dict[str, Any]:
        """Only what differs from the default."""
        return {
            item.name: list(value) if isinstance(value, tuple) else value
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default
        }


@dataclass(frozen=True)
class FieldMap:
    """All rules of one conversion, and the fields that become no feature."""

    kind: str
    rules: tuple[Rule, ...]
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"mapping: the feature {doubled[0]!r} is given twice")

    def check(self, known: Mapping[str, Field]) -> None:
        """ConfigError if a rule names a field that the source does not have, or a field is forgotten."""
        used = {path for rule in self.rules for path in rule.source}
        for path in sorted(used | set(self.dropped)):
            if path not in known:
                raise ConfigError(f"mapping: the source has no field {path!r}{did_you_mean(path, known)}")
        forgotten = sorted(set(known) - used - set(self.dropped))
        if forgotten:
            raise ConfigError(
                f"mapping: nothing is said of the field {forgotten[0]!r}; give it a feature or add it to `dropped`"
            )

    def only(self, cameras: tuple[str, ...]) -> FieldMap:
        """Without the cameras that were not asked for. ConfigError for one that is not there."""
        if not cameras:
            return self
        there = {rule.label: rule for rule in self.rules if rule.name.startswith(("obs.image.", "obs.depth."))}
        for camera in cameras:
            if camera not in there:
                raise ConfigError(f"camera: the source has no {camera!r}{did_you_mean(camera, there)}")
        gone = tuple(rule for rule in self.rules if there.get(rule.label) and rule.label not in cameras
                     and rule.name.startswith(("obs.image.", "obs.depth.")))  # fmt: skip
        kept = tuple(rule for rule in self.rules if rule not in gone)
        still = {path for rule in kept for path in rule.source}
        left = {path for rule in gone for path in rule.source} - still
        return replace(self, rules=kept, dropped=tuple(sorted({*self.dropped, *left})))

    def to_json(self) -> dict[str, Any]:
        return {"features": [rule.to_json() for rule in self.rules], "dropped": list(self.dropped)}

    def text(self) -> str:
        """For people: one line per feature."""
        width = max((len(rule.name) for rule in self.rules), default=0)
        lines = [f"{rule.name:<{width}}  <- {', '.join(rule.source)}{_facts(rule)}" for rule in self.rules]
        if self.dropped:
            lines.append(f"{'(dropped)':<{width}}  <- {', '.join(self.dropped)}")
        return "\n".join(lines)

    def to_toml(self, known: Mapping[str, Field]) -> str:
        """To be edited and given back with `--mapping`; a comment says what each field is."""
        parts = [
            "# What becomes of the fields of this source. Edit it and give it back with --mapping.",
            *KEYS,
            f"kind = {json.dumps(self.kind)}",
            f"dropped = {_toml(self.dropped)}",
        ]
        for rule in self.rules:
            parts += [
                "",
                *(f"# {_toml(path)[1:-1]}: {known[path].describe}" for path in rule.source if path in known),
                "[[feature]]",
            ]
            parts += [f"{key} = {_toml(value)}" for key, value in rule.to_json().items()]
        return "\n".join(parts) + "\n"


def read_map(path: Path, kind: str) -> FieldMap:
    """A mapping that `to_toml` wrote and a person edited. ConfigError says what is wrong with it."""
    with locate(path=path):
        data = config.read_toml(path)
        if data.get("kind") != kind:
            raise ConfigError(f"expected a mapping of kind {kind!r}, found {data.get('kind')!r}")
        if unknown := sorted(set(data) - {"kind", "dropped", "feature"}):
            raise ConfigError(f"unknown key {unknown[0]!r}{did_you_mean(unknown[0], ('kind', 'dropped', 'feature'))}")
        tables, dropped = data.get("feature", []), data.get("dropped", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigError("expected [[feature]] tables")
        if not isinstance(dropped, list) or not all(isinstance(item, str) for item in dropped):
            raise ConfigError(f"dropped: expected a list of names, found {dropped!r}")
        return FieldMap(kind, tuple(_rule(table) for table in tables), tuple(dropped))


def feature_name(*parts: str) -> str:
    """Words of a source as the name of a feature: lower case, letters, digits and underscores between the dots."""
    words = (re.sub(r"[^a-z0-9_]+", "_", part.lower()).strip("_") or "x" for part in ".".join(parts).split("."))
    return ".".join(words)


def distinct(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules with names of their own: a name that is taken becomes NAME_2, NAME_3, ..."""
    taken: set[str] = set()
    found = []
    for rule in rules:
        name, number = rule.name, 2
        while name in taken:
            name, number = f"{rule.name}_{number}", number + 1
        taken.add(name)
        found.append(replace(rule, name=name))
    return tuple(found)


def _rule(table: dict[str, Any]) -> Rule:
    for key in ("name", "source"):
        if key not in table:
            raise ConfigError(f"[[feature]]: expected a {key}, found only {sorted(table)}")
    if isinstance(table.get("bounds"), list):  # numbers or lists of numbers
        bounds = tuple(tuple(item) if isinstance(item, list) else item for item in table["bounds"])
        return replace(_rule({key: value for key, value in table.items() if key != "bounds"}), bounds=bounds)
    return config.build(Rule, table)


def _facts(rule: Rule) -> str:
    shown = {"representation": rule.representation, "unit": rule.unit, "color": rule.color}
    words = [f"{key} {value}" for key, value in shown.items() if value]
    words += [f"columns {_ranges(rule.columns)}"] if rule.columns else []
    return f" ({', '.join(words)})" if words else ""


def _ranges(columns: tuple[int, ...]) -> str:
    whole = columns == tuple(range(columns[0], columns[-1] + 1))
    return f"{columns[0]}..{columns[-1]}" if whole and len(columns) > 2 else ",".join(map(str, columns))


def _toml(value: Any) -> str:
    """Text, numbers and lists are written alike in JSON and TOML, but for floats without a point and the sign DEL."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return text.replace("\x7f", "\\u007f")
