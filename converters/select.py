"""Which units of a source are converted: `--episodes 0:10,15,demo_3` and `--limit N`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice

from converters.base import Plan
from vrl3data.errors import ConfigError
from vrl3data.sample import SELECTING

NEAR_AMONG = 2000
"""Names that are searched for one that was meant."""
_INDEX = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{0,18}):([0-9]{0,18})")


@dataclass(frozen=True)
class Selection:
    """`episodes`: half-open ranges, indices in source order and names of units, with commas; empty for all.

    `limit`: at most so many, the first of those; None for all.
    """

    episodes: str = ""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: expected at least 1, found {self.limit}")


def select(plan: Plan, selection: Selection) -> Plan:
    """`plan` with the chosen units, in source order. ConfigError names what there is if nothing fits.

    What was chosen goes into the options of the provenance, so that a dataset of some units is never taken for one of
    all; the ids of samples do not depend on it (FORMAT.md 9).
    """
    if not selection.episodes and selection.limit is None:
        return plan
    units, count, made = plan.units, plan.count, plan.spec.provenance
    options = dict(made.options)
    assert not set(options) & set(SELECTING), "a converter has an option of the name of a selection"
    if selection.episodes:
        listed = list(units)
        chosen = _chosen(selection.episodes, [unit.name for unit in listed])
        mask = bytearray(len(listed))
        for index in chosen:
            mask[index] = 1
        units, count = list(compress(listed, mask)), sum(mask)
        options["episodes"] = _ranges(sorted(chosen))
    if selection.limit is not None:
        units, count = islice(units, selection.limit), min(count, selection.limit)
        options["limit"] = selection.limit
    note = f"{count} of {plan.count} {plan.spec.schema.kind} of the source were selected"
    spec = replace(plan.spec, provenance=replace(made, options=options))
    return replace(plan, spec=spec, units=units, count=count, notes=(*plan.notes, note))


def _chosen(text: str, names: Sequence[str]) -> set[int]:
    """Indices that `text` speaks of."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        numbers.setdefault(name, number)
    chosen: set[int] = set()
    for word in (word.strip() for word in text.split(",")):
        found = _found(word, numbers, len(names))
        if not found:
            near = "" if found is not None else _near(word, numbers)
            raise ConfigError(f"episodes: {word!r} selects nothing{near}; there {_there(names)}")
        chosen.update(found)
    return chosen


def _found(word: str, numbers: dict[str, int], count: int) -> range | None:
    """Indices that a word speaks of; None if it is neither a number, nor a range, nor a name."""
    index = int(word) if _INDEX.fullmatch(word) else None
    named = numbers.get(word)
    if index is not None and named is not None and index != named and index < count:
        raise ConfigError(
            f"episodes: {word!r} is an index and the name of the unit with index {named}; say {index}:{index + 1} or "
            f"{named}:{named + 1}"
        )
    if named is not None:
        return range(named, named + 1)
    if index is not None:
        return range(index, min(index + 1, count))
    if bounds := _RANGE.fullmatch(word):
        return range(int(bounds[1] or 0), min(int(bounds[2] or count), count))
    return None


def _near(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, islice(names, NEAR_AMONG), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _there(names: Sequence[str]) -> str:
    if not names:
        return "are none"
    few = f"{names[0]!r}" if len(names) == 1 else f"{names[0]!r} to {names[-1]!r}"
    return f"are {len(names)}, 0 to {len(names) - 1}: {few}"


def _ranges(chosen: Sequence[int]) -> str:
    """`0:10,15`: the same text for every way to say it."""
    parts: list[list[int]] = []
    for index in chosen:
        if parts and parts[-1][1] == index:
            parts[-1][1] += 1
        else:
            parts.append([index, index + 1])
    return ",".join(str(start) if stop == start + 1 else f"{start}:{stop}" for start, stop in parts)
