"""The log of a run: JSON lines that can be rewound, and TensorBoard where there is one."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from vrl3data import metrics
from vrl3data.errors import DestinationError, MissingExtra
from vrl3data.metrics import Metrics, read_metrics


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A TensorBoard that notes what it is told: the real one is an extra that CI does not install."""
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, directory: str, purge_step: int | None) -> None:
            calls.append(("open", directory, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(metrics, "find_spec", lambda _: object())
    return calls


def test_lines(tmp_path: Path) -> None:
    with Metrics(tmp_path, tensorboard=False) as log:
        log.write(1, {"loss": 0.5, "top1": 1})
        log.write(2, {"loss": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.5, "top1": 1.0}, {"step": 2, "loss": None}]
    assert read_metrics(tmp_path) == [json.loads(line) for line in lines]
    assert read_metrics(tmp_path / "none") == []


def test_rewinding_forgets_what_came_after_and_what_is_not_whole(tmp_path: Path) -> None:
    log = Metrics(tmp_path, tensorboard=False)
    log.rewind(3)  # nothing there yet
    for step in range(5):
        log.write(step, {"loss": step})
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    log.rewind(2)
    log.write(3, {"loss": 9})
    assert read_metrics(tmp_path) == [{"step": step, "loss": float(step)} for step in range(3)] + [
        {"step": 3, "loss": 9.0}
    ]


def test_tensorboard_where_it_is_installed(tmp_path: Path, written: list[Any]) -> None:
    log = Metrics(tmp_path)
    assert written == []  # importing it costs seconds: not before there is a number
    log.rewind(4)
    log.write(5, {"loss": 0.5, "speed": math.nan})
    log.close()
    log.close()
    assert written[:2] == [("open", str(tmp_path), 5), ("loss", 0.5, 5)]
    assert written[2][0] == "speed" and math.isnan(written[2][1])
    assert written[3:] == ["closed"]
    Metrics(tmp_path / "other", tensorboard=False)
    assert len(written) == 4


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"TensorBoard is not installed; pip install 'vrl3data\[track\]'"):
        Metrics(tmp_path, tensorboard=True)
    with pytest.raises(DestinationError, match="cannot write"):
        Metrics(tmp_path / "missing").write(1, {"loss": 1.0})
