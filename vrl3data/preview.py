"""preview.jpg: a contact sheet, so that any viewer shows pictures whatever the codec (FORMAT.md 5)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vrl3data.schema import Array

PREVIEW_FRAMES = 8
PREVIEW_HEIGHT = 128


def preview_rows(count: int) -> list[int]:
    """At most eight rows spread evenly."""
    return sorted({round(row) for row in np.linspace(0, count - 1, min(count, PREVIEW_FRAMES))})


def contact_sheet(cameras: list[list[Array]]) -> bytes:
    """One row of frames per camera, as a JPEG file."""
    rows = []
    for frames in cameras:
        pictures = [Image.fromarray(np.broadcast_to(frame, (*frame.shape[:2], 3))) for frame in frames]
        if pictures[0].height > PREVIEW_HEIGHT:
            width = max(1, round(pictures[0].width * PREVIEW_HEIGHT / pictures[0].height))
            pictures = [picture.resize((width, PREVIEW_HEIGHT)) for picture in pictures]
        rows.append(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    sheet = np.zeros((sum(len(row) for row in rows), max(row.shape[1] for row in rows), 3), np.uint8)
    top = 0
    for row in rows:
        sheet[top : top + len(row), : row.shape[1]] = row
        top += len(row)
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "JPEG", quality=85)
    return out.getvalue()
