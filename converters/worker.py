"""What a worker process does: read a unit, encode it. Imports little, so that workers start quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn, Protocol, cast

from converters.base import Converter, Unit
from vrl3data.encode import encode
from vrl3data.errors import ConfigError, SchemaError, SourceError, Vrl3dataError, did_you_mean, locate
from vrl3data.sample import EncodedSample, Identity
from vrl3data.schema import Schema

AHEAD = 3
"""Batches per worker that may be under way or wait to be written: bounds the memory."""


FEWER = "run again with fewer jobs; what was confirmed is safe"


class WorkerError(Vrl3dataError):
    """A worker process died."""

    exit_code = 3


class WorkerFault(RuntimeError):
    """A mistake of a converter in a worker process; the cause tells the traceback there."""


@dataclass(frozen=True)
class Failed:
    """A unit that could not be read, and why."""

    unit: str
    error: Vrl3dataError


@dataclass(frozen=True)
class Broke:
    """What ended a worker: an error that is of no single unit, or a mistake, with its traceback."""

    error: Vrl3dataError | None
    reason: str = ""
    trace: str = ""

    def throw(self) -> NoReturn:
        raise self.error or WorkerFault(self.reason) from RuntimeError(self.trace)


Result = EncodedSample | Failed


@dataclass(frozen=True)
class Setup:
    """What turns a unit into an encoded sample."""

    converter: Converter
    schema: Schema
    identity: Identity
    spool: Path

    def work(self, units: Sequence[Unit]) -> list[Result]:
        return [self.one(unit) for unit in units]

    def one(self, unit: Unit) -> Result:
        try:
            with locate(episode=unit.name):
                return encode(self.converter.read(unit), self.schema, self.identity, self.spool)
        except (SourceError, SchemaError) as error:
            return Failed(unit.name, error)


class Executor(Protocol):
    """Works batches of units in processes. Results come in the order of the batches; `AHEAD` bounds what is under way.

    An error of a worker that is of no single unit is raised; WorkerError if a worker died.
    """

    def __call__(
        self, setup: Setup, batches: Iterator[list[Unit]], jobs: int, address: str
    ) -> Generator[list[Result], None, None]: ...


EXECUTORS = {"local": "converters.pool:results", "ray": "converters.ray_pool:results"}
"""name -> Executor."""


def find_executor(name: str) -> Executor:
    if name not in EXECUTORS:
        raise ConfigError(f"unknown executor {name!r}{did_you_mean(name, EXECUTORS)}")
    module, attribute = EXECUTORS[name].split(":")
    return cast(Executor, getattr(import_module(module), attribute))


def prepare() -> None:
    """In a worker, before anything is drawn: one software renderer per core, whose threads would only be in the way."""
    os.environ.setdefault("LP_NUM_THREADS", "0")


def serve(connection: Connection, setup: Setup) -> None:
    """A worker process: batches in, results out, until nobody sends any more or the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us, and the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    prepare()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        while True:
            connection.send(setup.work(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        setup.converter.close()
    except Vrl3dataError as error:
        connection.send(Broke(error))
    except MemoryError:
        connection.send(Broke(WorkerError(f"a worker process has no memory left; {FEWER}")))
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        connection.send(Broke(None, f"{type(error).__name__}: {error}", traceback.format_exc()))
        raise SystemExit(1) from None


def _end_with(parent: BaseProcess) -> None:
    """A parent that is killed cannot tell its workers; they watch it."""
    parent.join()
    os._exit(1)
