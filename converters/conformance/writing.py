"""Checks of what is written."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

from converters.base import Converter, Plan, Unit
from converters.conformance.subject import Subject, Unfit
from converters.run import RunOptions, run
from converters.select import Selection
from vrl3data import index
from vrl3data.errors import SourceError
from vrl3data.schema import Episode
from vrl3data.validation import validate as find_errors

SHORTEST = 6
"""Of a user or host name that is looked for: shorter ones occur by chance."""


def _write(subject: Subject, name: str, jobs: int = 1) -> Path:
    subject.say(f"converting with {jobs} jobs")
    path = subject.order.folder / name
    run(subject.make(), path, _how(subject, jobs))
    return path


def _how(subject: Subject, jobs: int = 1) -> RunOptions:
    return RunOptions(jobs, "skip", selection=Selection(limit=subject.order.most))


def _written(subject: Subject) -> Path:
    """A dataset of the first units, by one process."""
    path = subject.order.folder / "one"
    return path if (path / "dataset.json").exists() else _write(subject, "one")


def _compare(subject: Subject, path: Path, how: str) -> None:
    one, other = ({file.name: file.read_bytes() for file in index.shard_files(folder)}
                  for folder in (_written(subject), path))  # fmt: skip
    if list(one) != list(other):
        raise Unfit(f"{how}: expected the shards {', '.join(one)}, found {', '.join(other)}")
    for name, data in one.items():
        if data != other[name]:
            raise Unfit(f"{how}: the bytes of {name} differ")


def check_jobs(subject: Subject) -> None:
    _compare(subject, _write(subject, "two", 2), "two worker processes")


class _Stopped(SourceError):
    """Half way."""


class _Half:
    """The converter that is checked, until it comes to a unit."""

    Options: type = type(None)

    def __init__(self, converter: Converter, last: str) -> None:
        self.converter, self.last = converter, last

    @staticmethod
    def recognises(source: Path) -> bool:
        return source.exists()

    def plan(self) -> Plan:
        return self.converter.plan()

    def read(self, unit: Unit) -> Episode:
        if unit.name == self.last:
            raise _Stopped("half way")
        return self.converter.read(unit)

    def close(self) -> None:
        self.converter.close()


def check_interrupted(subject: Subject) -> None:
    units = [unit.name for unit in subject.make().plan().units][: subject.order.most]
    path = subject.order.folder / "halves"
    subject.say("converting half")
    stop = RunOptions(selection=Selection(limit=subject.order.most))
    try:
        run(_Half(subject.make(), units[len(units) // 2]), path, stop)
    except SourceError:
        _compare(subject, _write(subject, "halves"), "half and half")
        return
    raise Unfit(f"the unit {units[len(units) // 2]!r} was never read")


def check_valid(subject: Subject) -> None:
    report = find_errors(_written(subject))
    for finding in report.worse_than("error"):
        raise Unfit(f"{finding.check}: {finding.message}")


def check_private(subject: Subject) -> None:
    given = [source.absolute() for source in subject.order.sources]
    folders = {str(path.parent) for source in given for path in (source, source.resolve())}
    secret = {text: "the absolute path of the source" for text in folders if text.count("/") > 1}
    secret[str(subject.order.folder)] = "the path that is written to"
    names = {getpass.getuser(): "the user's name", socket.gethostname(): "the host's name"}
    secret |= {text: what for text, what in names.items() if len(text) >= SHORTEST}
    for path in sorted(_written(subject).rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            for text, what in secret.items():
                if text.encode() in data:
                    raise Unfit(f"{path.name} holds {what}: {text!r}")
