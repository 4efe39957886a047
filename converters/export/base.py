"""What an exporter is, and the one way from a dataset to a foreign layout: beside the target, then renamed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from converters.export import EXPORTS
from vrl3data import storage
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, DestinationError, did_you_mean, locate
from vrl3data.report import Reporter, Silent

NEW = ".new"


class Exporter(Protocol):
    """One foreign layout.

    `Options` is a frozen dataclass; every field of it is an option of `vrl3data export KIND`.
    """

    Options: type

    def __init__(self, dataset: Dataset, options: Any) -> None:
        """ConfigError if this dataset cannot have that layout at all (its kind, missing actions, ...)."""

    def dropped(self) -> tuple[str, ...]:
        """What the target cannot hold, one line each: `sim.qpos: ...`. Known before anything is written."""

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        """Write a file or a directory that does not exist yet. Returns notes: what was changed on the way."""


@dataclass(frozen=True)
class ExportReceipt:
    """What an export did."""

    path: Path
    kind: str
    samples: int
    steps: int
    bytes: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


def find(kind: str) -> type[Exporter]:
    """The exporter of a kind; ConfigError for an unknown one."""
    if kind not in EXPORTS:
        raise ConfigError(f"unknown kind of export {kind!r}{did_you_mean(kind, EXPORTS)}")
    module, name = EXPORTS[kind].split(":")
    return cast(type[Exporter], getattr(import_module(module), name))


def export(
    kind: str, dataset: Dataset, dest: Path, options: Any = None, reporter: Reporter | None = None
) -> ExportReceipt:
    """Write `dataset` to `dest`, which must not exist. What is not whole lies beside it, under another name."""
    started, reporter = time.monotonic(), reporter or Silent()
    exporter_class = find(kind)
    exporter = exporter_class(dataset, options or exporter_class.Options())
    dropped = exporter.dropped()
    for line in dropped:
        reporter.note(f"not in the export: {line}")
    dest = dest.resolve()
    new = dest.with_name(dest.name + NEW)
    with storage.writing(dest):
        if dest.exists():
            with locate(path=dest):
                raise DestinationError("there is something already; choose another name")
        _remove(new)
        dest.parent.mkdir(parents=True, exist_ok=True)
        notes = exporter.write(new, reporter)
        files = [path for path in new.rglob("*") if path.is_file()] if new.is_dir() else [new]
        for path in files:
            storage.sync_file(path)
        new.rename(dest)
        storage.sync_directory(dest.parent)
    size = sum(path.stat().st_size for path in ([dest] if dest.is_file() else dest.rglob("*")) if path.is_file())
    steps = sum(split.steps for split in dataset.manifest.splits.values())
    return ExportReceipt(dest, kind, len(dataset), steps, size, dropped, notes, time.monotonic() - started)


def _remove(path: Path) -> None:
    """What an interrupted export left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
