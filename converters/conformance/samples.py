"""Checks of what is read."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from converters.base import file_sha256
from converters.conformance.subject import Subject, Unfit, files
from vrl3data.errors import SourceError


def check_schema(subject: Subject) -> None:
    broken = [why for why in subject.digests.values() if why.startswith("broken")]
    if len(broken) == len(subject.digests):
        raise Unfit(f"no unit can be read: {broken[0]}")


def check_again(subject: Subject) -> None:
    converter, plan, units = subject.planned()
    setup = subject.setup(converter, plan)
    for unit in units:
        for _ in range(2):
            _same(subject, unit.name, subject.digest(setup, unit), "read again")
    converter.close()


def check_order(subject: Subject) -> None:
    converter, plan, units = subject.planned()
    setup = subject.setup(converter, plan)
    for unit in reversed(units):
        _same(subject, unit.name, subject.digest(setup, unit), "read in reverse order")
    converter.close()


def check_close(subject: Subject) -> None:
    converter, plan, units = subject.planned()
    setup = subject.setup(converter, plan)
    converter.close()
    for unit in (units[0], units[-1]):
        _same(subject, unit.name, subject.digest(setup, unit), "read after close")
        converter.close()
        converter.close()


def _same(subject: Subject, name: str, digest: str, how: str) -> None:
    if digest != subject.digests[name]:
        raise Unfit(f"{name}, {how}, is another sample ({digest:.60}, not {subject.digests[name]:.60})")


def check_source(subject: Subject) -> None:
    converter, plan, units = subject.planned()
    sources = subject.order.sources
    inside = [(sources[number].name, name) for number, _, name in files(sources)]
    whole = {name for source, inner in inside for name in (inner or source, f"{source}/{inner}")}
    for unit in units:
        subject.say(f"reading {unit.name}")
        try:
            episode = converter.read(unit)
        except SourceError:
            continue
        name, stated = episode.source, episode.source_sha256
        if not name and not stated and plan.find is None:
            continue  # not made of files
        if not name or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
            raise Unfit(f"{unit.name}: source: expected a relative path, found {name!r}")
        if not re.fullmatch("[0-9a-f]{64}", stated):
            raise Unfit(f"{unit.name}: source_sha256: expected the sha256 of {name}, found {stated!r}")
        if plan.find is None:
            if name in whole:
                raise Unfit("samples name their files, but the plan has no `find`, so that they can never be verified")
            continue  # a part of a file: a member of an archive, a row of a table
        try:
            path = plan.find(name)
        except (KeyError, ValueError, OSError) as error:
            raise Unfit(f"{unit.name}: the plan does not find {name!r}: {error!r}") from error
        if not path.is_file():
            raise Unfit(f"{unit.name}: the plan finds {name!r} where there is no file")
        if file_sha256(path) != stated:
            raise Unfit(f"{unit.name}: source_sha256 is not that of {name!r}")
    converter.close()
