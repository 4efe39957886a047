"""What an exporter is, and the one way from a dataset to a foreign layout: beside the target, then renamed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pyarrow as pa

from converters.export import EXPORTS
from vrl3data import storage
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, DestinationError, did_you_mean, locate
from vrl3data.report import Reporter, Silent
from vrl3data.schema import PREVIEW

FACTS = ("names", "unit", "bounds", "description", "flip", "fit", "intrinsics", "extrinsics", "renderer", "scale_m",
         "quaternion", "representation")  # fmt: skip
"""What a schema says of a feature besides its rows and how they are stored."""
NEW = ".vrl3data-export"
"""Behind the name of the target: what is not whole. A later export to the same target replaces it."""


class Exporter(Protocol):
    """One foreign layout.

    `Options` is a frozen dataclass; every field of it is an option of `vrl3data export KIND`, with the help that
    `field(metadata={"help": ...})` gives.
    """

    Options: type

    def __init__(self, dataset: Dataset, options: Any) -> None:
        """ConfigError if this dataset cannot have that layout at all (its kind, missing actions, ...)."""

    def dropped(self) -> tuple[str, ...]:
        """What the target cannot hold, one line each: `sim.qpos: ...`. Known before anything is written."""

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        """Write a file or a directory that does not exist yet. Returns notes: what was changed on the way."""


@runtime_checkable
class Measured(Protocol):
    """An exporter that knows beforehand how much it will write."""

    def estimate(self) -> int:
        """Bytes, at least."""


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
    """Write `dataset` to `dest`, which must not exist. What is not whole lies beside it, under another name.

    ConfigError, DestinationError; the dataset is only read.
    """
    started, reporter = time.monotonic(), reporter or Silent()
    exporter_class = find(kind)
    if not len(dataset):
        with locate(path=dataset.path):
            raise ConfigError("the dataset has no samples, so there is nothing to export")
    exporter = exporter_class(dataset, options or exporter_class.Options())
    new = _checked(dest, dataset)
    dest = new.with_name(new.name.removesuffix(NEW))
    _check_space(exporter, dataset, dest, reporter)
    dropped = exporter.dropped()
    for line in dropped:
        reporter.note(f"not in the export: {line}")
    with storage.writing(dest), ExitStack() as leftover:
        _remove(new)
        leftover.callback(_remove, new)  # also when a person stops it; only a killed process leaves it
        notes = exporter.write(new, reporter)
        size = _synced(new)
        if dest.exists():  # somebody was faster, and a rename would put ours in its place
            with locate(path=dest):
                raise DestinationError("there is something now; another process wrote it meanwhile")
        new.rename(dest)
        storage.sync_directory(dest.parent)
    steps = sum(split.steps for split in dataset.manifest.splits.values())
    return ExportReceipt(dest, kind, len(dataset), steps, size, dropped, notes, time.monotonic() - started)


def beside_rows(dataset: Dataset, kept: Sequence[str]) -> tuple[str, ...]:
    """What is lost besides whole features, for `dropped`: facts of features other than `kept`, and extra members."""
    known = [feature for feature in dataset.schema.features if feature.name != "cls"]
    lost = {fact: [feature.name for feature in known if getattr(feature, fact)] for fact in FACTS if fact not in kept}
    said = "; ".join(f"{fact} of {', '.join(names)}" for fact, names in lost.items() if names)
    extras = [extra for extra in dataset.schema.extras if extra != PREVIEW]
    return (*([f"schema: {said}"] if said else []), *(f"{extra}: there is no place for it" for extra in extras))


def selected(dataset: Dataset, splits: Sequence[str]) -> Dataset:
    """The same dataset with these splits only; all if none are named. ConfigError for one that is not there."""
    if not splits:
        return dataset
    with locate(path=dataset.path):
        positions = sorted({position for split in splits for position in dataset.split(split)})
    table = dataset.index.table().take(pa.array(np.array(positions, np.int64)))
    known = {name: info for name, info in dataset.manifest.splits.items() if name in splits}
    return Dataset(dataset._place, replace(dataset.manifest, splits=known), table, dataset.verify)


def _checked(dest: Path, dataset: Dataset) -> Path:
    """Where the export grows. DestinationError if `dest` is taken, lies in the dataset or cannot be written."""
    dest = dest.parent.resolve() / dest.name if dest.name not in ("", "..") else dest.resolve()
    with locate(path=dest):
        if dest.exists() or dest.is_symlink():
            raise DestinationError("there is something already; choose another name, or move it away")
        if isinstance(dataset.path, Path) and dest.is_relative_to(dataset.path.resolve()):
            raise DestinationError("the target would lie inside the dataset; choose another place")
    storage.check_target(dest)
    return dest.with_name(dest.name + NEW)


def _check_space(exporter: Exporter, dataset: Dataset, dest: Path, reporter: Reporter) -> None:
    with storage.writing(dest):
        free = shutil.disk_usage(dest.parent).free
    stored = sum(item.bytes for split in dataset.manifest.splits.values() for item in split.shards)
    if isinstance(exporter, Measured):
        if exporter.estimate() > free:
            with locate(path=dest):
                raise DestinationError(
                    f"the export takes about {exporter.estimate()} bytes, and {free} are free on this disk"
                )
    elif stored > free:
        reporter.warn(f"the dataset has {stored} bytes, and {free} are free where the export goes")


def _synced(path: Path) -> int:
    """Make everything durable. Returns its bytes."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    for file in files:
        storage.sync_file(file)
    return sum(file.stat().st_size for file in files)


def _remove(path: Path) -> None:
    """What an interrupted export left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
