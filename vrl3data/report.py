"""Reporter: progress, notes and warnings for people on stderr, or nothing, or JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

PLAIN_SECONDS = 2.0


class Reporter(Protocol):
    """Where long work reports to."""

    def note(self, text: str) -> None:
        """Something a person may want to know."""

    def warn(self, text: str) -> None:
        """Something a person should know."""

    def event(self, name: str, **values: Any) -> None:
        """Something a program may want to know, such as `confirmed`."""

    def progress(self, label: str, total: int | None, unit: str) -> Any:
        """A context manager that yields a function to be called with the number of units done since."""


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def event(self, name: str, **values: Any) -> None: ...

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Any]:
        yield lambda done: None  # noqa: ARG005


class Console(Silent):
    """A progress bar on a terminal, a line every two seconds elsewhere. `events` gets JSON lines."""

    def __init__(self, events: TextIO | None = None, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.events, self.quiet = events, quiet
        self.stream = stream or sys.stderr

    def note(self, text: str) -> None:
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=self.stream, flush=True)

    def event(self, name: str, **values: Any) -> None:
        if self.events is not None:
            print(json.dumps({"event": name, **values}), file=self.events, flush=True)

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Any]:
        if self.quiet:
            yield lambda done: None  # noqa: ARG005
        elif self.stream.isatty():
            with _bar(label, total, unit, self.stream) as advance:
                yield advance
        else:
            lines = _Lines(label, total, unit, self.stream)
            yield lines.advance
            lines.last()


@contextmanager
def _bar(label: str, total: int | None, unit: str, stream: TextIO) -> Iterator[Any]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn(f"{{task.fields[speed]:.1f}} {unit}/s")
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), speed)
    started = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=RichConsole(file=stream), transient=True) as bar:
        task = bar.add_task(label, total=total, speed=0.0)
        count = 0

        def advance(done: int = 1) -> None:
            nonlocal count
            count += done
            bar.update(task, advance=done, speed=count / max(time.monotonic() - started, 1e-3))

        yield advance


class _Lines:
    """Progress where there is no terminal: `converting 12/25 episodes, 1.3/s, 10 s left`."""

    def __init__(self, label: str, total: int | None, unit: str, stream: TextIO) -> None:
        self.label, self.total, self.unit, self.stream = label, total, unit, stream
        self.count, self.started = 0, time.monotonic()
        self.shown = self.started
        self.show()

    def advance(self, done: int = 1) -> None:
        self.count += done
        if time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.show()

    def last(self) -> None:
        if self.count != self.printed:
            self.show()

    def show(self) -> None:
        self.shown, self.printed = time.monotonic(), self.count
        rate = self.count / max(self.shown - self.started, 1e-3)
        of = "" if self.total is None else f"/{self.total}"
        known = self.total is not None and self.count > 0
        left = f", {max(0, (self.total or 0) - self.count) / rate:.0f} s left" if known else ""
        print(f"{self.label} {self.count}{of} {self.unit}, {rate:.1f}/s{left}", file=self.stream, flush=True)
