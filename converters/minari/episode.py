"""What both storages of Minari say of one episode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from converters.fields import Field, Loaded
from converters.minari.metadata import Metadata
from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

SMALL = 1024
"""Values of an info that is not one per step, up to which it is kept in source_meta."""


@dataclass
class Found:
    """One episode, not yet its data. `rest` are paths of small things that are no features."""

    length: int
    final: bool
    fields: dict[str, Field] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Fields whose rows are JPEG files."""
    texts: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Storage(Protocol):
    """How the episodes of a dataset are stored."""

    def numbers(self, meta: Metadata) -> list[int]:
        """Of the episodes that are there, sorted."""

    def files(self, meta: Metadata, number: int) -> list[Path]:
        """Of one episode. SourceError if there are none."""

    def look(self, meta: Metadata, number: int) -> Found:
        """What an episode holds. SourceError if it is broken."""

    def load(self, meta: Metadata, number: int, found: Found) -> tuple[Loaded, dict[str, list[str]], dict[str, Any]]:
        """(arrays and how the episode ended, texts per row, what else it says)."""

    def close(self) -> None: ...


def rows_of(path: str, count: int, length: int, final: bool) -> str:
    """What the rows of an array are; empty if they are not one per step. SourceError where they must be."""
    top = path.partition("/")[0]
    want = {"observations": length + final, "actions": length, "rewards": length}.get(top)
    if want is not None and count != want:
        with locate(feature=path):
            raise SourceError(f"expected {want} rows, found {count}")
    if want is not None:
        return "state" if top == "observations" else "step"
    return "state" if final and count == length + 1 else "step" if count == length else ""


def ended(flags_T: Array, path: str) -> int:
    """Whether the last step ended the episode so. SourceError if an earlier one did."""
    flags_T = np.asarray(flags_T).reshape(-1).astype(bool)
    early = np.flatnonzero(flags_T[:-1])
    if early.size:
        with locate(step=int(early[0]), feature=path):
            raise SourceError(f"expected the end of the episode at its last step, found {path} before it")
    return int(flags_T[-1]) if flags_T.size else -1


def words(texts: Iterable[str]) -> tuple[str, list[Any]]:
    """(the text if it is the same in all rows; [[first row, text], ...] where it changes)."""
    changes: list[list[Any]] = []
    row = 0
    for text, group in groupby(texts):
        changes.append([row, text])
        row += sum(1 for _ in group)
    return (str(changes[0][1]) if len(changes) == 1 else "", changes)
