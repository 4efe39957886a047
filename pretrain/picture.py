"""Pictures to look at: latents as strands over time, and what a masked autoencoder reconstructs. PNG, by Pillow.

Shapes: T states of an episode, R rows and Q columns of a grid of pictures, H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vrl3data import storage

PANEL, MARGIN, TITLE = 360, 24, 40
SUPERSAMPLED = 3
# From the start of an episode to its end; dark to light, so that it can be read without colours too.
TIME_COLORS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (240, 220, 40)], np.float64)


def strands(
    path: Path, panels: Mapping[str, Sequence[NDArray[np.floating]]], captions: Mapping[str, str]
) -> None:  # fmt: skip
    """One panel for each kind of features: its episodes (T, 2) as lines, coloured by time, a ring at each end."""
    scale, tall = SUPERSAMPLED, PANEL + TITLE + MARGIN
    image = Image.new("RGB", (len(panels) * PANEL * scale, tall * scale), "white")
    for number, (name, episodes) in enumerate(panels.items()):
        draw, left = ImageDraw.Draw(image), number * PANEL * scale
        draw.text((left + MARGIN * scale, 8 * scale), f"{name}: {captions[name]}", "black", font_size=14 * scale)
        points = np.concatenate(list(episodes))
        low, span = points.min(0), max(float(np.ptp(points, axis=0).max()), 1e-9)
        rest = (PANEL - 2 * MARGIN) * (1 - np.ptp(points, axis=0) / span) / 2
        corner = np.array([left / scale + MARGIN, TITLE]) + rest
        for states_T2 in episodes:
            place_T2 = ((states_T2 - low) / span * (PANEL - 2 * MARGIN) + corner) * scale
            _strand(draw, place_T2, scale)
    _legend(ImageDraw.Draw(image), scale, tall)
    _save(path, image.resize((len(panels) * PANEL, tall), Image.Resampling.LANCZOS))


def _strand(draw: ImageDraw.ImageDraw, place_T2: NDArray[np.floating], scale: int) -> None:
    last = max(1, len(place_T2) - 1)
    for t in range(len(place_T2) - 1):
        ends = [tuple(place_T2[t]), tuple(place_T2[t + 1])]
        draw.line(ends, fill=time_color(t / last), width=2 * scale)
    for t, radius in ((0, 3), (last, 5)):
        x, y = place_T2[min(t, len(place_T2) - 1)]
        box = (x - radius * scale, y - radius * scale, x + radius * scale, y + radius * scale)
        draw.ellipse(box, outline=time_color(t / last), width=2 * scale)


def _legend(draw: ImageDraw.ImageDraw, scale: int, tall: int) -> None:
    top, wide = (tall - MARGIN + 4) * scale, 100
    draw.text((MARGIN * scale, top - 2 * scale), "start", "black", font_size=11 * scale)
    for step in range(wide):
        x = (MARGIN + 34 + step) * scale
        draw.rectangle((x, top, x + scale, top + 10 * scale), fill=time_color(step / (wide - 1)))
    draw.text(((MARGIN + 34 + wide + 6) * scale, top - 2 * scale), "end", "black", font_size=11 * scale)


def time_color(progress: float) -> tuple[int, int, int]:
    """The colour of `progress` in 0..1."""
    place = min(max(progress, 0.0), 1.0) * (len(TIME_COLORS) - 1)
    below = min(int(place), len(TIME_COLORS) - 2)
    red, green, blue = TIME_COLORS[below] + (place - below) * (TIME_COLORS[below + 1] - TIME_COLORS[below])
    return int(red), int(green), int(blue)


def grid(path: Path, images_RQHWC: NDArray[np.uint8], titles: Sequence[str], enlarge: int = 2) -> None:
    """Pictures in rows and columns, with a title above each column."""
    rows, columns, height, width, _ = images_RQHWC.shape
    tile_h, tile_w, gap = height * enlarge, width * enlarge, 4
    image = Image.new("RGB", (columns * (tile_w + gap), rows * (tile_h + gap) + MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for column, title in enumerate(titles):
        draw.text((column * (tile_w + gap) + 2, 4), title, "black", font_size=13)
    for row in range(rows):
        for column in range(columns):
            tile = Image.fromarray(images_RQHWC[row, column]).resize((tile_w, tile_h), Image.Resampling.NEAREST)
            image.paste(tile, (column * (tile_w + gap), MARGIN + row * (tile_h + gap)))
    _save(path, image)


def _save(path: Path, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, "PNG")
    with storage.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.replace_file(path, data.getvalue())
