"""One HTML file that shows what a run came to: success, film, curves, times. It asks no network for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cards.html.page import data_uri, template_named
from cards.html.plot import Plot, line_plot
from vrl3data import storage

MAX_POINTS = 160
"""Points of a curve; more are averaged into so many."""


@dataclass(frozen=True)
class Bar:
    """A share with its interval, all in 0..1."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RunPage:
    """What the page shows. `film` is the bytes of a GIF."""

    title: str
    summary: str
    bars: Sequence[Bar]
    measure: str
    film: bytes
    film_text: str
    curves: Mapping[str, Sequence[Plot]]
    times: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    across: str = "record (one every 20 updates; online, every episode)"


def write_run_page(page: RunPage, path: Path) -> Path:
    """Write the page to `path`, whole or not at all."""
    shown = {**vars(page), "film": data_uri(page.film, "gif"), "curves": list(page.curves.items())}
    text = template_named("run.html").render(page=shown)
    with storage.writing(path):
        storage.replace_file(path, text.encode("utf-8"))
    return path


def curves(metrics: Sequence[Mapping[str, Any]], wanted: Mapping[str, str]) -> list[Plot]:
    """A plot of each metric in `wanted` (name -> title) that was recorded at least twice, over its records."""
    plots = []
    for name, title in wanted.items():
        values = [float(row[name]) for row in metrics if isinstance(row.get(name), (int, float))]
        if len(values) > 1:
            plots.append(line_plot(title, _smooth(np.array(values))))
    return plots


def _smooth(values: Any) -> Any:
    """Means of neighbours where there are more than `MAX_POINTS` values."""
    if len(values) <= MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])
