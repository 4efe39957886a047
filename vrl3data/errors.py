"""One exception tree, and the place where an error gets to know where it happened."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Source:
    """Where something was read or written. Every part is optional; `offset` counts bytes."""

    path: str | None = None
    shard: str | None = None
    episode: str | None = None
    step: int | None = None
    feature: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name} {value}" for name, value in parts if value is not None)


class Vrl3dataError(Exception):
    """Base of all our errors. `exit_code` is what the command line answers with."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.source = Source()

    def __str__(self) -> str:
        where = str(self.source)
        return f"{self.message} ({where})" if where else self.message


class ConfigError(Vrl3dataError):
    """A wrong option, argument or call."""


class MissingExtra(ConfigError):
    """An optional dependency is not installed."""


class DestinationError(ConfigError):
    """The target cannot be written: foreign, read-only, full, locked, or another dataset."""


class SourceError(Vrl3dataError):
    """The user's input is not what it says it is."""

    exit_code = 3


class DamagedError(Vrl3dataError):
    """A file of our own format is not whole."""

    exit_code = 4


class FormatError(DamagedError):
    """A file of our own format asks for something this version does not know."""


class SchemaError(Vrl3dataError):
    """An episode does not fit the schema it was announced with."""

    exit_code = 3


class Diverged(Vrl3dataError):
    """A loss is not finite any more."""

    exit_code = 3


EXIT_FINDINGS = 1
EXIT_SKIPPED = 5
EXIT_INTERRUPTED = 130


@contextmanager
def locate(
    path: object = None,
    shard: str | None = None,
    episode: str | None = None,
    step: int | None = None,
    feature: str | None = None,
    offset: int | None = None,
) -> Iterator[None]:
    """Add a place to our errors that pass through. Inner places win over outer ones."""
    try:
        yield
    except Vrl3dataError as error:
        outer = Source(None if path is None else str(path), shard, episode, step, feature, offset)
        known = {
            field.name: getattr(error.source, field.name)
            for field in fields(Source)
            if getattr(error.source, field.name) is not None
        }
        error.source = replace(outer, **known)
        raise


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what there is, or nothing when there is nothing."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(choices)}" if choices else ""
