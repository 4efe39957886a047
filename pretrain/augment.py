"""Augmentations of whole batches on the device of the images: one call, no loop over images.

Shapes: B images, C channels, H x W pixels; values 0..255. Randomness comes from a torch.Generator on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class CropConfig:
    """`scale`: range of the area of the crop; `ratio`: range of width / height (torchvision's defaults)."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: float = 0.0
    """Brightness, contrast and saturation are each multiplied by a factor in [1 - jitter, 1 + jitter]."""


def random_resized_crop(
    images_BCHW: torch.Tensor, size: int, config: CropConfig, generator: torch.Generator
) -> torch.Tensor:
    """A random part of each image, resized to `size` with bilinear interpolation, half of them mirrored.

    Takes uint8 or float, returns float of 0..255. Where torchvision would try again because a crop is
    larger than the image, the side is clamped to it.
    """
    count, _, height, width = images_BCHW.shape
    area = _uniform(count, config.scale, generator)
    ratio = torch.exp(_uniform(count, (math.log(config.ratio[0]), math.log(config.ratio[1])), generator))
    crop_w = torch.sqrt(area * ratio * height / width).clamp(max=1)
    crop_h = torch.sqrt(area / ratio * width / height).clamp(max=1)
    # Centres in the coordinates of grid_sample, where the image spans -1..1.
    center_x = (2 * torch.rand(count, generator=generator) - 1) * (1 - crop_w)
    center_y = (2 * torch.rand(count, generator=generator) - 1) * (1 - crop_h)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if config.flip else torch.ones(count)
    theta_B23 = torch.zeros(count, 2, 3)
    theta_B23[:, 0, 0], theta_B23[:, 0, 2] = crop_w * mirror, center_x
    theta_B23[:, 1, 1], theta_B23[:, 1, 2] = crop_h, center_y
    grid_BHW2 = F.affine_grid(theta_B23, [count, 1, size, size], align_corners=False).to(images_BCHW.device)
    images = images_BCHW.float()
    crops = F.grid_sample(images, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False)
    return color_jitter(crops, config.jitter, generator) if config.jitter else crops


def color_jitter(images_BCHW: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast, saturation, in this order, each by its own factor per image. RGB, 0..255."""
    count, device = len(images_BCHW), images_BCHW.device
    span = (1 - strength, 1 + strength)
    brightness, contrast, saturation = (_uniform(count, span, generator).view(-1, 1, 1, 1).to(device) for _ in range(3))
    images = images_BCHW * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    grey = images.mean(dim=1, keepdim=True)
    return ((images - grey) * saturation + grey).clamp(0, 255)


def random_shift(images_BCHW: torch.Tensor, pad: int, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by whole pixels, at most `pad` in each direction, edges repeated (DrQ-v2's augmentation)."""
    count, channels, height, width = images_BCHW.shape
    padded = F.pad(images_BCHW.float(), (pad, pad, pad, pad), mode="replicate")
    shift_B2 = torch.randint(0, 2 * pad + 1, (count, 2), generator=generator).to(images_BCHW.device)
    rows_BH = shift_B2[:, :1] + torch.arange(height, device=images_BCHW.device)
    columns_BW = shift_B2[:, 1:] + torch.arange(width, device=images_BCHW.device)
    batch = torch.arange(count, device=images_BCHW.device).view(-1, 1, 1)
    taken_BHWC = padded.permute(0, 2, 3, 1)[batch, rows_BH[:, :, None], columns_BW[:, None, :]]
    shifted: torch.Tensor = taken_BHWC.permute(0, 3, 1, 2).view(count, channels, height, width)
    return shifted


def center_crop(images_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    height, width = images_BCHW.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    return images_BCHW[..., top : top + size, left : left + size]


def _uniform(count: int, span: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    return span[0] + (span[1] - span[0]) * torch.rand(count, generator=generator)
