"""What a worker process does: read a unit, encode it. Imports little, so that workers start quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from converters.base import Converter, Unit
from vrl3data.encode import encode
from vrl3data.errors import SchemaError, SourceError, Vrl3dataError, locate
from vrl3data.sample import EncodedSample, Identity
from vrl3data.schema import Schema


@dataclass(frozen=True)
class Failed:
    """A unit that could not be read, and why."""

    unit: str
    error: Vrl3dataError


@dataclass(frozen=True)
class Setup:
    """What turns a unit into an encoded sample."""

    converter: Converter
    schema: Schema
    identity: Identity
    spool: Path

    def work(self, units: Sequence[Unit]) -> list[EncodedSample | Failed]:
        return [self._one(unit) for unit in units]

    def _one(self, unit: Unit) -> EncodedSample | Failed:
        try:
            with locate(episode=unit.name):
                return encode(self.converter.read(unit), self.schema, self.identity, self.spool)
        except (SourceError, SchemaError) as error:
            return Failed(unit.name, error)


_setup: Setup | None = None


def start_worker(setup: Setup) -> None:
    """In a worker: remember the setup, leave Ctrl-C to the parent, end when the parent ends."""
    global _setup
    _setup = setup
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One software renderer per core: threads of its own would only get in each other's way.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def work(units: Sequence[Unit]) -> list[EncodedSample | Failed]:
    assert _setup is not None
    return _setup.work(units)


def _end_with(parent: BaseProcess) -> None:
    """A parent that is killed cannot tell its workers; they watch it."""
    parent.join()
    os._exit(1)
