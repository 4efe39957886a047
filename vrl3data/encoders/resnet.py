"""The ResNet84 family of VRL3: small residual networks for images of 84 x 84 (Wang et al. 2022, released code).

Shapes: N images, C channels, H x W pixels, D features.
"""

from __future__ import annotations

import torch
from torch import nn

STAGES = 4


class ResNet84(nn.Module):
    """Stem 3x3 stride 2 without padding and with bias, no max-pool; four stages; global average pool.

    `blocks` is the number of residual blocks per stage; 0 means one plain convolution. Features D = 8 * width:
    256 for a width of 32. At 84 pixels the sides are 41, 41, 21, 11, 6.
    """

    def __init__(self, in_channels: int, blocks: int, width: int) -> None:
        super().__init__()
        self.feature_dim = 8 * width
        self.stem = nn.Conv2d(in_channels, width, 3, stride=2)
        self.stem_norm = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(STAGES):
            out, stride = width * 2**stage, 1 if stage == 0 else 2
            stages.append(_stage(channels, out, stride, blocks))
            channels = out
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images -> features (N, D)."""
        maps = torch.relu(self.stem_norm(self.stem(images_NCHW)))
        for stage in self.stages:
            maps = stage(maps)
        return maps.mean(dim=(2, 3))


class PlainBlock(nn.Sequential):
    """Convolution, batch norm, ReLU: a stage of resnet6."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, maps_NCHW: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.conv1(maps_NCHW)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps_NCHW))


def _stage(channels: int, out: int, stride: int, blocks: int) -> nn.Module:
    if blocks == 0:
        return PlainBlock(channels, out, stride)
    first = ResidualBlock(channels, out, stride)
    return nn.Sequential(first, *(ResidualBlock(out, out, 1) for _ in range(blocks - 1)))


def resnet6_32channel(in_channels: int) -> ResNet84:
    """VRL3's default: five convolutions, 398,208 parameters with 3 channels."""
    return ResNet84(in_channels, 0, 32)


def resnet6_64channel(in_channels: int) -> ResNet84:
    return ResNet84(in_channels, 0, 64)


def resnet10_32channel(in_channels: int) -> ResNet84:
    return ResNet84(in_channels, 1, 32)


def resnet10_64channel(in_channels: int) -> ResNet84:
    return ResNet84(in_channels, 1, 64)


def resnet18_32channel(in_channels: int) -> ResNet84:
    return ResNet84(in_channels, 2, 32)


def resnet18_64channel(in_channels: int) -> ResNet84:
    return ResNet84(in_channels, 2, 64)
