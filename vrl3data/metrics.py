"""Metrics of a run: a line of JSON each, and TensorBoard's event files where that package is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vrl3data import storage
from vrl3data.errors import MissingExtra

METRICS = "metrics.jsonl"


class Metrics:
    """Appends `{"step": 3, "loss": 0.5}` to metrics.jsonl in `directory`, and to event files beside it.

    `tensorboard`: None takes it where it is installed, True insists on it (MissingExtra), False does without.
    DestinationError if the disk refuses.
    """

    def __init__(self, directory: Path, tensorboard: bool | None = None) -> None:
        installed = find_spec("tensorboard") is not None
        if tensorboard and not installed:
            raise MissingExtra("TensorBoard is not installed; pip install 'vrl3data[track]'")
        self.directory, self.path = directory, directory / METRICS
        self._wanted = installed if tensorboard is None else tensorboard
        self._purge: int | None = None
        self._events: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line. What is not a finite number becomes null, since JSON has no word for it."""
        numbers = {name: float(value) for name, value in values.items()}
        plain = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        with storage.writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
        if self._wanted:
            for name, number in numbers.items():
                self._writer().add_scalar(name, number, step)

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`, and a last line that is not whole: a run goes on from there."""
        self._purge = step + 1
        if self.path.is_file():
            with storage.writing(self.path):
                kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
                storage.replace_file(self.path, "".join(line + "\n" for line in kept).encode())

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self) -> Any:
        """Made on the first number: importing it takes seconds."""
        if self._events is None:
            module = import_module("torch.utils.tensorboard")
            with storage.writing(self.directory):
                self._events = module.SummaryWriter(str(self.directory), purge_step=self._purge)
        return self._events


def read_metrics(directory: Path) -> list[dict[str, float | None]]:
    """The whole lines of metrics.jsonl, in order; none if there is no such file."""
    path = directory / METRICS
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _step(line) < math.inf]


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
