"""The one conversion loop: workers read and encode, one process writes in source order (FORMAT.md 6)."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from converters.base import Converter, Plan, Unit
from converters.select import Selection, select
from converters.verify import verify_sources
from converters.worker import Setup, find_executor
from vrl3data import index, manifest
from vrl3data.errors import ConfigError, DestinationError, SourceError, Vrl3dataError, locate
from vrl3data.manifest import DatasetSpec, Manifest
from vrl3data.report import Reporter, Silent
from vrl3data.sample import EncodedSample, Identity
from vrl3data.takeover import check_target
from vrl3data.writer import Writer, lock

NEW, OLD = ".new", ".vrl3data-replaced"


@dataclass(frozen=True)
class RunOptions:
    """How to run and what to select, none of which changes a byte of a sample."""

    jobs: int = 1
    """Worker processes; 0, with the executor `ray`: as many as the cluster has cores."""
    on_error: Literal["stop", "skip"] = "stop"
    overwrite: bool = False
    append: bool = False
    """Add to the finished dataset that is there."""
    verify_source: bool = False
    """Before anything is reused, hash the source files it was made from."""
    selection: Selection = field(default_factory=Selection)
    executor: str = "local"
    ray_address: str = ""
    """Of a running cluster; empty to start one on this machine for the run."""

    def __post_init__(self) -> None:
        if self.jobs < (0 if self.executor == "ray" else 1):
            raise ConfigError(f"jobs: expected at least 1, found {self.jobs}")
        if self.append and self.overwrite:
            raise ConfigError("append and overwrite exclude each other")
        if self.ray_address and self.executor != "ray":
            raise ConfigError(f"a ray address goes with the executor 'ray', not with {self.executor!r}")


@dataclass(frozen=True)
class Receipt:
    """What a conversion did."""

    path: Path
    manifest: Manifest
    written: int
    seconds: float
    notes: tuple[str, ...] = ()
    already_complete: bool = False

    @property
    def skipped(self) -> tuple[Mapping[str, str], ...]:
        return self.manifest.skipped


def run(
    converter: Converter, dest: Path, options: RunOptions | None = None, reporter: Reporter | None = None
) -> Receipt:
    """Convert into `dest`. Running it again goes on after an interruption, and does nothing when it is done.

    SourceError names the source that broke (with `on_error="skip"` it is counted instead), DestinationError
    what is wrong with `dest`. What was confirmed before an error stays readable.
    """
    options, reporter = options or RunOptions(), reporter or Silent()
    find_executor(options.executor)
    plan, dest = planned(converter, options), resolved(dest)
    old = dest.with_name(f".{dest.name}{OLD}")
    if old.exists() and not dest.exists():  # an earlier run was killed between its two renames
        old.rename(dest)
    if not options.overwrite or not dest.exists():
        return _run(converter, plan, dest, options, reporter)
    if old.exists():
        shutil.rmtree(old)
    # The new dataset grows beside the old one, which stays where it is until the new one is whole.
    check_target(dest)
    _check_own(dest)
    new = dest.with_name(dest.name + NEW)
    reporter.note(f"writing to {new} until it is whole")
    receipt = _run(converter, plan, new, options, reporter)
    with lock(dest):
        _check_own(dest)
        dest.rename(old)
        new.rename(dest)
    shutil.rmtree(old)
    return replace(receipt, path=dest)


def resolved(dest: Path) -> Path:
    """The absolute path of a target. DestinationError for links that lead to each other."""
    try:
        return dest.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 say RuntimeError
        with locate(path=dest):
            raise DestinationError(f"cannot write: {error}") from error


def planned(converter: Converter, options: RunOptions, stop: bool = True) -> Plan:
    """What is to be done. A file that cannot be read at all stops the run here, if any error does."""
    plan = converter.plan()
    if plan.problems and stop and options.on_error == "stop":
        raise plan.problems[0][1]
    return select(plan, options.selection)


def _check_own(dest: Path) -> None:
    """DestinationError if something lies there that is not of the dataset: it would be deleted with it."""
    ours = ("data", "README.md", manifest.MANIFEST, index.INDEX)
    shards = set(index.shard_files(dest))
    data = (dest / "data").iterdir() if (dest / "data").is_dir() else ()
    foreign = [item for item in dest.iterdir() if item.name not in ours] + [item for item in data if item not in shards]
    for item in sorted(foreign):
        if not item.name.startswith("."):
            with locate(path=dest):
                raise DestinationError(f"{item.name!r} is not of the dataset and would be deleted; move it away")


def _run(converter: Converter, plan: Plan, dest: Path, options: RunOptions, reporter: Reporter) -> Receipt:
    started = time.monotonic()
    verified = _verified(plan, dest, reporter) if options.verify_source else ()
    plan = replace(plan, notes=(*plan.notes, *verified))
    with contextlib.closing(converter), Writer(dest, plan.spec, reporter, append=options.append) as writer:
        if writer.complete:
            found = _finished(dest)
            notes = (*plan.notes, *_unused(plan.spec, found))
            return Receipt(dest, found, 0, time.monotonic() - started, notes, already_complete=True)
        before = len(writer.present)
        _convert(converter, plan, writer, options, reporter)
        if len(writer.present) == writer.appended_to:
            reasons = "; ".join(entry["reason"] for entry in writer.skipped[:3])
            if plan.count and not reasons:
                reasons = "every sample of the source is in the dataset already"
            raise SourceError(f"nothing could be converted: {reasons or 'the source is empty'}")
        seconds = round(time.monotonic() - started, 1)
        found = writer.finish({**_run_block(options.jobs), "seconds": seconds, "notes": _notes(dest, plan)})
    return Receipt(dest, found, len(writer.present) - before, time.monotonic() - started, plan.notes)


def _convert(converter: Converter, plan: Plan, writer: Writer, options: RunOptions, reporter: Reporter) -> None:
    for source, error in plan.problems:
        _skip(writer, source, error, reporter)
    setup = Setup(converter, plan.spec.schema, writer.identity, writer.spool)
    with reporter.progress("converting", plan.count, plan.spec.schema.kind) as advance:
        waiting = _Waiting(plan.units, writer, advance)
        batches = _batches(waiting, plan.batch)
        work = find_executor(options.executor)
        with contextlib.closing(work(setup, batches, options.jobs, options.ray_address)) as results:
            for result in chain.from_iterable(results):
                if isinstance(result, EncodedSample):
                    waiting.check_order(result.meta["name"])
                    writer.append(result)
                elif options.on_error == "stop":
                    raise result.error
                else:
                    _skip(writer, result.unit, result.error, reporter)
                advance(1)


def _skip(writer: Writer, source: str, error: Vrl3dataError, reporter: Reporter) -> None:
    writer.skip(source, error.message)
    reporter.warn(f"skipped: {error}")


class _Waiting:
    """The units that are not written yet. One that comes before a written one failed in an earlier run."""

    def __init__(self, units: Iterable[Unit], writer: Writer, advance: Callable[[int], None]) -> None:
        self.units, self.writer, self.advance = units, writer, advance
        self.failed_before: set[str] = set()

    def __iter__(self) -> Iterator[Unit]:
        left = len(self.writer.present) - self.writer.appended_to
        for unit in self.units:
            if self.writer.has(unit.name):
                left -= not self.writer.in_base(unit.name)
                self.advance(1)
                continue
            if left:
                self.failed_before.add(unit.name)
            yield unit

    def check_order(self, name: str) -> None:
        """A unit that failed before and is whole now would come too late: its place in the order is gone."""
        if name in self.failed_before:
            raise DestinationError(
                f"{name} was skipped by an earlier run but can be read now; use --overwrite to convert anew"
            )


def _batches(units: _Waiting, size: int) -> Iterator[list[Unit]]:
    iterator = iter(units)
    while batch := list(islice(iterator, size)):
        yield batch


def _verified(plan: Plan, dest: Path, reporter: Reporter) -> tuple[str, ...]:
    if plan.find is None:
        raise ConfigError("verify_source: the samples of this kind are not made of files")
    if not index.shard_files(dest):
        return ()
    made = plan.spec.provenance
    files = verify_sources(dest, plan.find, Identity(made.source_identity, made.converter, made.options), reporter)
    return (f"{files} source files have the content they had",)


def _unused(spec: DatasetSpec, found: Manifest) -> list[str]:
    """What was said now and differs from what a finished dataset says of itself."""
    pairs = {"licence": (spec.license, found.license), "name": (spec.name, found.name)}
    return [
        f"the {what} stays {kept!r}, not {now!r}: --overwrite converts anew"
        for what, (now, kept) in pairs.items()
        if now != kept
    ]


def _finished(dest: Path) -> Manifest:
    found = manifest.read(dest)
    assert found is not None
    return found


def _notes(dest: Path, plan: Plan) -> list[str]:
    """What was assumed or left out, now and when the dataset was begun that is appended to."""
    before = manifest.read(dest)
    return list(dict.fromkeys([*(before.run.get("notes", []) if before else []), *plan.notes]))


def _run_block(jobs: int) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return {"finished": now.isoformat(), "jobs": jobs}
