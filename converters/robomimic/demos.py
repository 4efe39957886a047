"""The demos of a robomimic file: which arrays each has, how many rows they have, and what does not fit.

Letters: T steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from converters.fields import Field
from converters.hdf5 import blocks, check_dataset, child, datasets, names, some_attributes
from converters.robomimic.facts import shown
from vrl3data.errors import SourceError, locate
from vrl3data.schema import DTYPES, ROWS, Array, Rows

OBS, NEXT = "obs", "next_obs"
PER_STEP = ("actions", "actions_abs", "action_dict", "dones", "rewards", "states")
PER_EPISODE = ("initial_state",)
DERIVED = ("dones", "rewards")
SMALL_ARRAY = 1000
"""Entries. An array that has rows of nothing we know goes into source_meta up to this size."""
NUMBERED = re.compile(r"demo_(\d+)")


@dataclass(frozen=True)
class Demo:
    """What one demo holds. `fields` leaves out next_obs; `final` says where the final observation comes from."""

    name: str
    length: int
    fields: dict[str, Field]
    final: str = ""
    """`next_obs` (its last row), `obs` (which have T+1 rows) or empty: there is none."""
    following: tuple[str, ...] = ()
    """Keys of next_obs."""
    small: tuple[str, ...] = ()
    """Datasets for source_meta."""
    left_out: tuple[str, ...] = ()
    told: int = -1
    """num_samples, as the file says."""


@dataclass
class _Found:
    """While a demo is looked at."""

    length: int
    fields: dict[str, Field] = field(default_factory=dict)
    observed: dict[str, int] = field(default_factory=dict)
    following: dict[str, Field] = field(default_factory=dict)
    longer: list[str] = field(default_factory=list)
    """Arrays besides obs that have T+1 rows."""
    small: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def in_order(found: Sequence[str]) -> list[str]:
    """demo_2 before demo_10; names of another form come last."""
    numbers = {name: NUMBERED.fullmatch(name) for name in found}
    return sorted(found, key=lambda name: (0, int(m[1]), name) if (m := numbers[name]) else (1, 0, name))


def gaps(found: Sequence[str]) -> list[str]:
    """What is odd about the numbering, in words."""
    numbers = sorted(int(match[1]) for name in found if (match := NUMBERED.fullmatch(name)))
    notes = []
    if other := [name for name in found if not NUMBERED.fullmatch(name)]:
        notes.append(f"{len(other)} demos have no number: {shown(other)}")
    if numbers and (missing := numbers[-1] - numbers[0] + 1 - len(set(numbers))) > 0:
        there = set(numbers)
        first = [f"demo_{n}" for n in _first_missing(numbers[0], there, missing)]
        more = f" and {missing - len(first)} more" if missing > len(first) else ""
        notes.append(f"the numbering of the demos has gaps: {', '.join(first)}{more} are not there")
    return notes


def _first_missing(start: int, there: set[int], missing: int) -> Iterator[int]:
    left, number = min(missing, 5), start
    while left:
        if number not in there:
            left -= 1
            yield number
        number += 1


def look_at(group: h5py.Group, keep_next: bool, declared: Mapping[str, str]) -> Demo:
    """SourceError if this demo cannot be converted. With `keep_next`, next_obs are arrays like any other.

    `declared`: rows of arrays that our own export wrote, which may be told apart by nothing else.
    """
    arrays = list(datasets(group))
    found = _Found(_length(group))
    for path, dataset in arrays:
        check_dataset(dataset)
        if path in DERIVED and some_attributes(dataset, ("derived",)):  # our export made it up for its readers
            continue
        _sort_in(found, path, dataset, keep_next)
        if path in found.fields and (rows := declared.get(path)) in ROWS:
            found.fields[path] = replace(found.fields[path], rows=rows)
    final = _final(found)
    final = "" if keep_next and final == NEXT else final
    _lengths(found, final)
    told = some_attributes(group, ("num_samples",)).get("num_samples", -1)
    fields = found.fields if keep_next else found.fields | _only_next(found)
    return Demo(
        group.name.rpartition("/")[2],
        found.length,
        fields,
        final,
        tuple(found.following),
        tuple(found.small),
        tuple(found.left_out),
        _number(told),
    )


def _number(told: Any) -> int:
    try:
        return int(told)
    except (TypeError, ValueError):
        return -1


def _length(group: h5py.Group) -> int:
    if "actions" not in names(group):
        raise SourceError("the demo has no actions")
    actions = child(group, "actions")
    if not isinstance(actions, h5py.Dataset) or not actions.shape:
        raise SourceError("expected actions to be an array with one row per step, found a group or a single value")
    check_dataset(actions)
    if not len(actions):
        raise SourceError("the demo has no steps: its actions are empty")
    return len(actions)


def _sort_in(found: _Found, path: str, dataset: h5py.Dataset, keep_next: bool) -> None:
    top, _, key = path.partition("/")
    known = top in (OBS, NEXT, *PER_STEP)
    dtype, full = dataset.dtype, tuple(map(int, dataset.shape or ()))
    rest = found.small if math.prod(full) <= SMALL_ARRAY else found.left_out
    if dtype.name not in DTYPES or not full:
        if known and (dtype.names or h5py.check_string_dtype(dtype) is None):
            with locate(feature=path):
                raise SourceError(f"expected rows of numbers, found {dtype} of shape {full}")
        rest.append(path)
        return
    rows, shape = full[0], full[1:]
    if 0 in shape:
        found.left_out.append(path)
    elif top == NEXT:
        _expect(path, rows, found.length)
        found.following[key] = Field(path, dtype.name, shape)
        if keep_next:
            found.fields[path] = found.following[key]
    elif top == OBS:
        found.observed[key] = rows
        found.fields[path] = Field(path, dtype.name, shape, "state")
    elif rows == found.length and top not in PER_EPISODE:
        found.fields[path] = Field(path, dtype.name, shape)
    elif rows == found.length + 1 and top not in (*PER_EPISODE, "actions", "dones", "rewards"):
        found.longer.append(path)
        found.fields[path] = Field(path, dtype.name, shape, "state")
    elif rows == 1 and not known:
        found.fields[path] = Field(path, dtype.name, shape, "episode")
    elif known:
        _expect(path, rows, found.length)
    else:
        rest.append(path)


def _expect(path: str, rows: int, length: int) -> None:
    if rows != length:
        with locate(feature=path):
            raise SourceError(f"expected {length} rows, one for each of the actions, found {rows}")


def _final(found: _Found) -> str:
    """Where the final observation is."""
    longer = [key for key, rows in found.observed.items() if rows == found.length + 1]
    if longer and len(longer) == len(found.observed):
        return OBS
    if not found.observed and found.longer:
        return OBS
    if found.following and any(key in found.following for key in found.observed):
        return NEXT
    return ""


def _lengths(found: _Found, final: str) -> None:
    """SourceError if an array has not the rows that the others want; `rows` of what has no final one become `step`."""
    for key, rows in found.observed.items():
        path = f"{OBS}/{key}"
        _expect(path, rows, found.length + (final == OBS))
        if final == NEXT and key not in found.following:
            known = found.fields[path]
            found.fields[path] = Field(path, known.dtype, known.shape)
    for path in found.longer:
        if not final:
            with locate(feature=path):
                raise SourceError(
                    f"expected {found.length} rows, one for each of the actions, found {found.length + 1}, "
                    "but there is no final observation"
                )
    for key, other in found.following.items():
        mine = found.fields.get(f"{OBS}/{key}")
        if mine is not None and (mine.dtype, mine.shape) != (other.dtype, other.shape):
            with locate(feature=other.path):
                raise SourceError(f"expected {mine.describe} as in obs, found {other.describe}")


def _only_next(found: _Found) -> dict[str, Field]:
    """Keys that only next_obs has."""
    return {item.path: item for key, item in found.following.items() if f"{OBS}/{key}" not in found.fields}


class Lazy:
    """Rows of a dataset in blocks, as often as they are asked for."""

    def __init__(self, observed: h5py.Dataset, following: h5py.Dataset | None = None) -> None:
        self.observed, self.following = observed, following

    def __iter__(self) -> Rows:
        if self.following is None:
            return blocks(self.observed)
        return with_final(self.observed, self.following)


def with_final(observed: h5py.Dataset, following: h5py.Dataset) -> Rows:
    """T rows of obs and the last of next_obs. SourceError if next_obs[t] is not obs[t+1] somewhere."""
    before: Array | None = None
    start = 0
    for rows, later in zip(blocks(observed), blocks(following), strict=True):
        last = later[-1:]
        told = later[:-1] if before is None else np.concatenate([before, later[:-1]])
        seen = rows[1:] if before is None else rows
        if (wrong := first_difference(told, seen)) is not None:
            with locate(feature=following.name, step=max(0, start - 1) + wrong):
                raise SourceError(
                    f"next_obs is not the next row of obs (they differ by up to {_distance(told, seen):.4g}); "
                    "--next-obs keep stores both"
                )
        yield rows
        before, start = last, start + len(rows)
    assert before is not None  # a demo has at least one step
    yield before


def first_difference(one: Array, other: Array) -> int | None:
    """The first row whose bytes differ: NaN equals NaN."""
    if one.tobytes() == other.tobytes():
        return None
    same = [a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True)]
    return same.index(False)


def _distance(one: Array, other: Array) -> float:
    with np.errstate(invalid="ignore"):  # infinite ones, and NaN that signal
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(np.nanmax(difference)) if not np.isnan(difference).all() else float("nan")


def shifted(group: h5py.Group, demo: Demo) -> str:
    """Empty if next_obs of this demo are obs one step later; else where they are not."""
    for key in demo.following:
        if f"{OBS}/{key}" not in demo.fields:
            continue
        pair = [child(group, f"{part}/{key}") for part in (OBS, NEXT)]
        assert all(isinstance(item, h5py.Dataset) for item in pair)
        rows = with_final(*pair)
        try:
            next(rows)  # the first 32 MB: the rest is checked while it is converted
            next(rows)
        except SourceError as error:
            return f"{demo.name}: {key}, step {error.source.step}"
    return ""
