"""What a converter is: a plan, units of work in source order, and a way to read one unit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from converters import KINDS
from converters.looks import looks_like
from vrl3data.errors import ConfigError, SourceError, did_you_mean, locate
from vrl3data.manifest import DatasetSpec
from vrl3data.schema import SPLIT, Episode, Feature

SMALLEST_SHARD = 10_000


@dataclass(frozen=True)
class Unit:
    """A piece of a source that becomes one sample. `name` is that sample's, `payload` is the converter's own."""

    name: str
    payload: Any = None


@dataclass(frozen=True)
class Plan:
    """All that is known before the first sample is read."""

    spec: DatasetSpec
    units: Iterable[Unit]
    count: int
    """How many units there are."""
    batch: int = 1
    """Units handed to a worker at once: many where a unit is small."""
    notes: tuple[str, ...] = ()
    """What was assumed or left out, for the receipt."""
    find: Callable[[str], Path] | None = None
    """Name of a source as samples state it -> its file; None if samples are not made of files."""
    problems: tuple[tuple[str, SourceError], ...] = ()
    """(name of a source, why): files among others that cannot be read at all, and so have no units. They stop the run,
    or are skipped and listed; they are no part of the provenance."""


class Converter(Protocol):
    """One kind of source. Instances are sent to worker processes, so they pickle.

    `Options` is a frozen dataclass; every field of it is an option of `vrl3data convert KIND`. A class whose reading
    needs more than the core names it in `extra`: pip install 'vrl3data[EXTRA]'.
    """

    Options: type

    def __init__(self, sources: Sequence[Path], options: Any) -> None: ...

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether `source` is of this kind, by its content."""

    def plan(self) -> Plan:
        """Look at the sources, not yet at all of their data. SourceError, ConfigError."""

    def read(self, unit: Unit) -> Episode:
        """One sample. SourceError if the source is broken there."""

    def close(self) -> None:
        """Let go of what is held open; `read` may be called again."""


class FieldMap(Protocol):
    """Which field of a source becomes which feature."""

    def to_toml(self, known: Mapping[str, Any]) -> str:
        """To be edited and given back. `known`: all fields there are."""

    def text(self) -> str:
        """A table for people."""


@runtime_checkable
class Mapped(Protocol):
    """A converter that matches the fields of its sources with features."""

    def mapping(self) -> FieldMap:
        """As given in the options, else guessed. SourceError, ConfigError."""

    def known(self) -> Mapping[str, Any]:
        """All fields that the sources have."""


def find(kind: str) -> type[Converter]:
    """The converter of a kind; ConfigError for an unknown one."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of source {kind!r}{did_you_mean(kind, KINDS)}")
    module, name = KINDS[kind].split(":")
    return cast(type[Converter], getattr(import_module(module), name))


def recognise(source: Path) -> str:
    """The kind of a source; SourceError if no converter knows it."""
    check_exists(source)
    for kind in KINDS:
        if find(kind).recognises(source):
            return kind
    with locate(path=source):
        raise SourceError(
            f"no converter recognises this: it is {looks_like(source)}; if it is of a known kind after all, name it: "
            + ", ".join(KINDS)
        )


def check_exists(source: Path) -> None:
    with locate(path=source):
        if not source.exists():
            raise SourceError(f"there is no such file or directory (kinds of sources: {', '.join(KINDS)})")
        if str(source.name).encode("utf-8", "replace").decode() != source.name:
            raise SourceError("the name of the source cannot be written as UTF-8; rename it")


def check_file(source: Path) -> None:
    """SourceError unless `source` is a regular file."""
    check_exists(source)
    if not source.is_file():
        with locate(path=source):
            raise SourceError("expected a file, found a directory or a device")


def check_shared(split: str, shard_size: int) -> None:
    """ConfigError for what no dataset can have, before any work is done."""
    if not SPLIT.fullmatch(split) or split == "all":
        raise ConfigError(f"split: expected lower-case letters, digits and underscores, and not 'all', found {split!r}")
    if shard_size < SMALLEST_SHARD:
        raise ConfigError(f"shard_size: expected at least {SMALLEST_SHARD} bytes, found {shard_size}")


def loss_note(feature: Feature) -> str:
    """For the receipt: what is not stored bit by bit."""
    if feature.codec == "jpeg":
        return f"{feature.name}: the JPEG files of the source, as they are"
    return (
        f"{feature.name}: stored as {feature.codec}, with loss (measured in each sample); --codec png keeps every pixel"
    )


def source_identity(sizes: Iterable[tuple[str, int]]) -> str:
    """FORMAT.md 8: over (relative path, size) of all source files."""
    total = hashlib.sha256()
    for name, size in sorted(sizes):
        total.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> bytes:
    """The whole file; SourceError if the disk says no."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror or error}") from error
