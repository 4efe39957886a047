"""Checks with damaged copies of the source."""

from __future__ import annotations

import shutil
from pathlib import Path

from converters.conformance.subject import Subject, Unfit, copies, files, spread
from converters.worker import Failed
from vrl3data.errors import SchemaError, SourceError, Vrl3dataError

MAX_FILES = 12
"""Files of a source that are cut, spread evenly."""
READ_ALL = 64
"""Units up to which all of a damaged copy are read."""


def _copied(subject: Subject, name: str) -> list[Path]:
    places = copies(subject.order.sources, subject.order.folder / name)
    for source, place in zip(subject.order.sources, places, strict=True):
        place.parent.mkdir(parents=True)
        shutil.copytree(source, place) if source.is_dir() else shutil.copy2(source, place)
    return places


def _read(subject: Subject, sources: list[Path], what: str) -> int:
    """Read a damaged copy. Returns how many errors that found; Unfit if one is no SourceError."""
    converter = subject.make(sources)
    try:
        plan = converter.plan()
        setup = subject.setup(converter, plan)
        units = list(plan.units)
        errors = len(plan.problems)
        for unit in units if len(units) <= READ_ALL else spread(units, subject.order.most):
            subject.say(f"{what}: reading {unit.name}")
            result = setup.one(unit)
            if isinstance(result, Failed):
                errors += 1
            else:
                result.discard()
    except (SourceError, SchemaError):
        return 1
    except Vrl3dataError as error:
        raise Unfit(f"{what}: expected a SourceError, found {type(error).__name__}: {error}") from error
    finally:
        converter.close()
    return errors if units else 1


def check_truncated(subject: Subject) -> None:
    sources = _copied(subject, "cut")
    whole = list(files(subject.order.sources))
    count = min(MAX_FILES, len(whole))
    for number, original, name in [whole[place * len(whole) // count] for place in range(count)]:
        size, copy = original.stat().st_size, sources[number] / name if name else sources[number]
        for length in sorted({size // 8, size // 2, size * 7 // 8, size - 9, size - 1, 1} - {size}):
            if not 0 < length < size:
                continue
            with copy.open("r+b") as file:
                file.truncate(length)
            what = f"{original.name} cut to {length} of {size} bytes"
            subject.say(what)
            _read(subject, sources, what)
            shutil.copy2(original, copy)


def check_emptied(subject: Subject) -> None:
    sources = _copied(subject, "emptied")
    for _, path, _ in files(sources):
        path.write_bytes(b"")
    subject.say("every file is empty")
    if not _read(subject, sources, "every file is empty"):
        raise Unfit("every file is empty, and there was no error")
    for source in sources:
        if source.is_dir():
            shutil.rmtree(source)
            source.mkdir()
    if sources[0].is_dir() and not _read(subject, sources, "an empty folder"):
        raise Unfit("the folder is empty, and there was no error")


def check_untouched(subject: Subject) -> None:
    """Compared by whoever ordered the checks, who looked at the source before any of them."""
