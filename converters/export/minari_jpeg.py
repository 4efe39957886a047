"""Pictures of a Minari dataset as JPEG files, and what they lose.

Letters: H height, W width, C channels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vrl3data.schema import Array


@dataclass
class Loss:
    """Of pictures that were encoded with loss: squared and greatest errors."""

    squares: float = 0.0
    count: int = 0
    max_error: float = 0.0

    def add(self, given: Array, decoded: Array) -> None:
        error = given.astype(np.float64) - decoded
        self.squares += float((error**2).sum())
        self.count += error.size
        self.max_error = max(self.max_error, float(np.abs(error).max()))

    @property
    def psnr(self) -> float:
        return 10 * math.log10(255**2 * self.count / self.squares) if self.squares else 100.0


def encoded(frame_HWC: Array, loss: Loss) -> bytes:
    """A JPEG file; what it loses is added to `loss`."""
    out = io.BytesIO()
    Image.fromarray(frame_HWC[..., 0] if frame_HWC.shape[-1] == 1 else frame_HWC).save(out, "JPEG")
    with Image.open(out) as image:
        loss.add(frame_HWC, np.asarray(image).reshape(frame_HWC.shape))
    return out.getvalue()
