"""Channel inflation: an encoder of single images becomes one of stacked frames (VRL3's channel expansion).

The weights of the first layer, a convolution or the embedding of patches, are repeated over the input channels and
divided by the number of images, so that k equal images give what one image gave.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from vrl3data.encoders.encoder import Encoder
from vrl3data.errors import ConfigError


def inflate(encoder: Encoder, frames: int, cameras: int = 1) -> Encoder:
    """A new encoder of `frames * cameras` images per input, in evaluation mode. The given one is not changed.

    ConfigError if the encoder takes more than one image already, or if there would be less than one.
    """
    images = frames * cameras
    if frames < 1 or cameras < 1:
        raise ConfigError(f"expected at least one frame and one camera, found {frames} and {cameras}")
    if encoder.spec.in_channels != 3:
        raise ConfigError(
            f"the encoder takes {encoder.spec.in_channels // 3} images already; inflate one of 3 channels"
        )
    provenance = {**encoder.spec.provenance, "inflated": {"frames": frames, "cameras": cameras}}
    inflated = Encoder(replace(encoder.spec, in_channels=3 * images, provenance=provenance))
    weights = encoder.state_dict()
    stem = "network.stem.weight"
    # Channel 3k + j is colour j of image k.
    weights[stem] = torch.cat([weights[stem]] * images, dim=1) / images
    inflated.load_state_dict(weights)
    return inflated.eval()
