"""Line plots as SVG paths; the template draws axes and labels around them, so that text keeps its size.

Letters: T rows, D lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vrl3data.schema import Array

WIDTH, HEIGHT = 1000, 400
"""Of the drawing in its own units; a browser stretches it."""
MAX_BINS = 150
"""More rows than twice as many are drawn as their least and greatest value in each of so many bins."""
MAX_LINES = 64
LIMIT = 1e300
"""Beyond this the difference of two values may not be a number any more."""
SMALLEST = 1e-290
"""A range below this is none: its ticks could not be told apart."""


@dataclass(frozen=True)
class Line:
    label: str
    color: str
    path: str


@dataclass(frozen=True)
class Tick:
    """`at` is in percent of the axis, from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    omitted: int
    """Lines that are not drawn."""


def line_plot(title: str, values: Array, labels: Sequence[str] = ()) -> Plot:
    """All columns of `values`, rows first, over the row number. What is not finite leaves a gap."""
    flat_TD = np.asarray(values).reshape(len(values), -1 if len(values) else 1).astype(np.float64)
    shown_TD = flat_TD[:, :MAX_LINES]
    y_TD = np.clip(np.where(np.isfinite(shown_TD), shown_TD, np.nan), -LIMIT, LIMIT)
    last = max(1, len(y_TD) - 1)
    low, high = _range(y_TD)
    x_N, y_ND = _thinned(y_TD)
    across = np.round(x_N / last * WIDTH).astype(int)
    down_ND = np.round((high - y_ND) / (high - low) * HEIGHT)
    count = y_ND.shape[1]
    lines = tuple(
        Line(labels[d] if len(labels) == flat_TD.shape[1] else str(d), _color(d, count), _path(across, down_ND[:, d]))
        for d in range(count)
    )
    x_ticks = tuple(Tick(100 * at / last, f"{at:.0f}") for at in ticks(0, last) if at == int(at))
    y_ticks = tuple(Tick(100 * (high - at) / (high - low), f"{at:.6g}") for at in ticks(low, high))
    return Plot(title, lines, x_ticks, y_ticks, flat_TD.shape[1] - count)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], with at most `most` steps between the first and the last."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, final = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, final + 1)]


def _range(y_TD: Array) -> tuple[float, float]:
    """Least and greatest value with a little room; never empty."""
    if not np.isfinite(y_TD).any():
        return 0.0, 1.0
    low, high = float(np.nanmin(y_TD)), float(np.nanmax(y_TD))
    greatest = max(abs(low), abs(high))
    flat = high - low <= max(1e-12 * greatest, SMALLEST)
    room = (0.5 * greatest if greatest > SMALLEST else 1.0) if flat else 0.04 * (high - low)
    return low - room, high + room


def _thinned(y_TD: Array) -> tuple[Array, Array]:
    """(row numbers, values): as they are if they are few, else least and greatest of each bin, so no peak is lost."""
    if len(y_TD) <= 2 * MAX_BINS:
        return np.arange(len(y_TD)), y_TD
    starts = np.linspace(0, len(y_TD), MAX_BINS, endpoint=False).astype(int)
    low, high = np.fmin.reduceat(y_TD, starts), np.fmax.reduceat(y_TD, starts)
    return np.repeat(starts, 2), np.stack([low, high], axis=1).reshape(-1, y_TD.shape[1])


def _path(across: Array, down: Array) -> str:
    """Relative steps, which take half the room of absolute ones. A point between gaps becomes a dot."""
    parts: list[str] = []
    before: tuple[int, int] | None = None
    for x, y in zip(across.tolist(), down.tolist(), strict=True):
        if math.isnan(y):
            before = None
            continue
        here = (x, int(y))
        parts.append(f"M{x} {here[1]}h0" if before is None else f"l{x - before[0]}{here[1] - before[1]:+d}")
        before = here
    return "".join(parts)


def _color(line: int, count: int) -> str:
    """Hues around the circle; one line alone is blue."""
    return f"hsl({(215 + 360 * line / count) % 360:.0f} 65% 45%)"
