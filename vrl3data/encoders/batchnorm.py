"""Statistics of batch norms, measured anew: after a short training the running averages are noise.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Set mean and variance of each batch norm in `module` to the mean over `batches` of images (N, C, H, W).

    The batches weigh the same; weights and the mode of the module stay as they are. Returns the number of batch
    norms; without any, or without a batch, nothing changes. (Izmailov et al. 2018, section 3.2, `bn_update`.)
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return 0
    modes = [(part, part.training) for part in module.modules()]
    before = [(norm, norm.momentum) for norm in norms]
    try:
        for number, images_NCHW in enumerate(batches):
            if number == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's word for a cumulative average
                module.train()
            module(images_NCHW)
    finally:
        for norm, momentum in before:
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
    return len(norms)
