"""Small vision transformers for masked autoencoders on 84 x 84: patches of 12, so 49 tokens.

After Dosovitskiy et al. 2021 with the choices of He et al. 2022 (MAE): fixed sine-cosine positions, a class token,
LayerNorm with eps 1e-6, mlp of four times the width. Own blocks, so that nothing but torch is needed to load one.

Shapes: N images, C channels, H x W pixels, L patches, D features, S = L + 1 tokens with the class token first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vrl3data.errors import ConfigError

EPS = 1e-6
MLP_RATIO = 4


class ViT(nn.Module):
    """The feature (N, D) is the mean of the patch tokens after the last norm.

    MAE's loss reaches the class token only through the other tokens, so the mean says more (He et al. fine-tune
    with it, too). `stem` embeds the patches: like that of the other encoders it alone sees channels.
    """

    def __init__(self, in_channels: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.feature_dim, self.patch = dim, patch
        self.stem = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.xavier_uniform_(self.stem.weight.view(dim, -1))
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images -> features (N, D)."""
        return self.encode(self.patches(images_NCHW))[:, 1:].mean(dim=1)

    def patches(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Embedded patches (N, L, D), row by row, with their positions. ConfigError if the sides do not divide."""
        height, width = images_NCHW.shape[-2:]
        if height % self.patch or width % self.patch or not height:
            raise ConfigError(f"expected images whose sides are multiples of {self.patch}, found {height} x {width}")
        maps_NDHW = self.stem(images_NCHW)
        positions_LD = sine_cosine(maps_NDHW.shape[-2], maps_NDHW.shape[-1], self.feature_dim, maps_NDHW.device)
        tokens: torch.Tensor = maps_NDHW.flatten(2).transpose(1, 2) + positions_LD
        return tokens

    def encode(self, tokens_NLD: torch.Tensor) -> torch.Tensor:
        """Any subset of the patches (N, L, D) -> tokens (N, L + 1, D), the class token (at position zero) first."""
        cls_N1D = self.cls_token.expand(len(tokens_NLD), -1, -1).to(tokens_NLD.dtype)
        encoded: torch.Tensor = self.norm(self.blocks(torch.cat([cls_N1D, tokens_NLD], dim=1)))
        return encoded


class Block(nn.Module):
    """Attention and mlp, each after a norm and added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_NSD: torch.Tensor) -> torch.Tensor:
        tokens = tokens_NSD + self._attend(self.norm1(tokens_NSD))
        added: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return added

    def _attend(self, tokens_NSD: torch.Tensor) -> torch.Tensor:
        count, length, dim = tokens_NSD.shape
        split = self.qkv(tokens_NSD).view(count, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.project(mixed.transpose(1, 2).reshape(count, length, dim))
        return projected


def sine_cosine(rows: int, columns: int, dim: int, device: torch.device | None = None) -> torch.Tensor:
    """Fixed positions (rows * columns, dim), float32: half of them for the row, half for the column, each as sines
    and cosines of dim / 4 wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017, in two dimensions as MAE)."""
    assert dim % 4 == 0, dim
    frequency = 10_000 ** (-torch.arange(dim // 4, device=device) / (dim / 4))
    row_L = torch.arange(rows, device=device).repeat_interleave(columns)
    column_L = torch.arange(columns, device=device).repeat(rows)
    angles = [place[:, None] * frequency for place in (row_L, column_L)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def vit_tiny12(in_channels: int) -> ViT:
    return ViT(in_channels, patch=12, dim=192, depth=12, heads=3)


def vit_micro12(in_channels: int) -> ViT:
    """For minutes on two cores: 1.2 million parameters."""
    return ViT(in_channels, patch=12, dim=128, depth=6, heads=4)
