"""Runs the checks in a process of their own: a converter may hang, crash or die, and that is a finding too."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

from converters import KINDS
from converters.base import check_exists
from converters.conformance import CHECKS, NEEDED, PLACES
from converters.conformance.subject import Order, Subject, Unfit, load, snapshot
from vrl3data.errors import ConfigError, Vrl3dataError, did_you_mean
from vrl3data.report import Reporter, Silent

MAX_BYTES = 256 * 1024**2
"""Of a source, which is copied to be damaged."""
START_S = 120.0
"""For a process to start."""


@dataclass(frozen=True)
class How:
    """`most` units are read at most; a single step may take `patience_s`; `checks`: only these, empty for all."""

    most: int = 8
    patience_s: float = 120.0
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Whether a check passed; why not, or what it means that it did."""

    check: str
    passed: bool
    reason: str


def conform(
    place: str,
    sources: Sequence[Path],
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
    how: How | None = None,
) -> list[Outcome]:
    """Check the converter `module:Class`, or a kind, on `sources`. One outcome per check, in the order of CHECKS.

    ConfigError if there is no such class or check; SourceError if there is no such source.
    """
    place, reporter, how = KINDS.get(place, place), reporter or Silent(), how or How()
    for name in how.checks:
        if name not in CHECKS:
            raise ConfigError(f"no check {name!r}{did_you_mean(name, CHECKS)}")
    names = [name for name in CHECKS if not how.checks or name in how.checks]
    load(place)
    for source in sources:
        check_exists(source)
    before = snapshot(sources)
    if sum(size for _, size, _ in before.values()) > MAX_BYTES:
        raise ConfigError(f"the source is copied and damaged; give one of at most {MAX_BYTES // 1024**2} MiB")
    outcomes = []
    with (
        tempfile.TemporaryDirectory(prefix="vrl3data-") as folder,
        reporter.progress("checking", len(names), "checks") as advance,
    ):
        order = Order(place, tuple(sources), tuple(settings), Path(folder), how.most)
        for outcome in _outcomes(order, names, how.patience_s):
            outcomes.append(outcome)
            advance(1)
    changed = sorted({name for name, _ in before.items() ^ snapshot(sources).items()})
    if changed and "untouched" in names:
        outcomes[-1] = Outcome("untouched", False, f"the source has changed: {', '.join(changed[:3])}")
    return outcomes


def _outcomes(order: Order, left: list[str], patience_s: float) -> Iterator[Outcome]:
    """A process does one check after the other; where it ends or hangs, another one does the rest."""
    left = list(left)
    while left:
        with _Process(order, left) as process:
            for outcome in process.outcomes(patience_s):
                yield outcome
                left.remove(outcome.check)
                if not outcome.passed and outcome.check in NEEDED:
                    yield from (Outcome(name, False, f"not checked: {outcome.check!r} failed") for name in left)
                    return


class _Process:
    """One process that checks."""

    def __init__(self, order: Order, names: Sequence[str]) -> None:
        self.names = list(names)
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_check_all, args=(theirs, order, self.names))
        self.process.start()
        theirs.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.ours.close()

    def outcomes(self, patience_s: float) -> Iterator[Outcome]:
        """Ends early after a check that ended the process."""
        doing = ""
        self.ours.poll(START_S)
        for name in self.names:
            while True:
                if not self.ours.poll(patience_s):
                    yield Outcome(name, False, f"{doing or 'it'} did not end within {patience_s:.0f} s")
                    return
                try:
                    message: str | Outcome | None = self.ours.recv()
                except EOFError:
                    self.process.join()
                    yield Outcome(name, False, f"{doing or 'it'} ended the process, code {self.process.exitcode}")
                    return
                if message is None:
                    return
                if isinstance(message, Outcome):
                    yield message
                    break
                doing = message


# -- in that process ---------------------------------------------------------------------------------------------------


def _check_all(connection: Connection, order: Order, names: Sequence[str]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for name in ("LOGNAME", "USER"):
        os.environ[name] = "vrl3data-somebody"  # a name that does not occur by chance
    doing = _Doing(connection)
    subject = Subject(order, doing)
    for name in names:
        doing("")
        try:
            find_check(name)(subject)
        except (Unfit, Vrl3dataError) as error:
            connection.send(Outcome(name, False, str(error)))
        except Exception as error:  # noqa: BLE001 - it is told, and ends this process
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
            connection.send(Outcome(name, False, f"{doing.what}: {reason}" if doing.what else reason))
            connection.send(None)
            raise SystemExit(1) from None  # what it left open is unknown: the rest is checked by a new process
        else:
            connection.send(Outcome(name, True, CHECKS[name]))


class _Doing:
    """Tells the parent what is being done."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.what = connection, ""

    def __call__(self, what: str) -> None:
        self.what = what
        self.connection.send(what)


def find_check(name: str) -> Callable[[Subject], None]:
    """The function of a check, which raises Unfit."""
    (module,) = (module for module, names in PLACES.items() if name in names)
    return cast(Callable[[Subject], None], getattr(import_module(module), f"check_{name}"))


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
