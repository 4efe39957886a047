"""Masked autoencoder (He et al. 2022): three quarters of the patches are hidden, and drawn from the rest.

Shapes: B images, C = 3 channels, H x W pixels, L patches, K of them kept, D features, P = patch * patch * 3 values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pretrain.augment import CropConfig, center_crop, random_resized_crop, random_shift
from pretrain.loop import Draw
from pretrain.picture import grid
from vrl3data.encoders.encoder import Encoder
from vrl3data.encoders.vit import EPS, Block, ViT, sine_cosine
from vrl3data.errors import ConfigError
from vrl3data.images import ImageTable
from vrl3data.sampling import Ints
from vrl3data.stream import Images, ImageStream

SCORED = 512
BATCH = 128
SHOWN = 6
PICTURE_CROP = CropConfig(scale=(0.2, 1.0))
"""He et al., appendix A.1."""


@dataclass(frozen=True)
class MaeConfig:
    """`norm_pix`: targets are standardised within each patch (better features), or pixels as the encoder sees them.

    `crop` is for pictures. Without it images are only shifted, by at most `pad` pixels: frames are all of one size,
    which resampling would blur, and mirrored a right hand is a left one.
    """

    mask_ratio: float = 0.75
    norm_pix: bool = False
    decoder_dim: int = 64
    decoder_depth: int = 2
    decoder_heads: int = 4
    crop: CropConfig | None = None
    pad: int = 4


class Pictures(Protocol):
    """Where images come from: frames of episodes, or a table of pictures."""

    def __len__(self) -> int: ...

    def images_NCHW(self, rows_N: Ints) -> torch.Tensor: ...


class Table:
    """Pictures in memory or of a stream, shared by copies of the objective."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.images_loaded = (
            torch.from_numpy(images.images_NHWC).permute(0, 3, 1, 2) if isinstance(images, ImageTable) else None
        )

    def __len__(self) -> int:
        return len(self.images)

    def images_NCHW(self, rows_N: Ints) -> torch.Tensor:
        if isinstance(self.images, ImageStream):
            return torch.from_numpy(self.images.take(rows_N)).permute(0, 3, 1, 2)
        assert self.images_loaded is not None
        return self.images_loaded[torch.from_numpy(rows_N)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        return self


class Mae(nn.Module):
    """An encoder of visible patches, a small decoder, their batches and scores on held-out images."""

    def __init__(self, encoder: Encoder, train: Pictures, held_out: Pictures | None, config: MaeConfig) -> None:
        super().__init__()
        if not isinstance(encoder.network, ViT):
            raise ConfigError(f"a masked autoencoder needs patches: {encoder.spec.arch} has none; take vit-micro12")
        self.config, self.encoder, self.train_data, self.held_out = config, encoder, train, held_out
        vit, width = encoder.network, config.decoder_dim
        self.patch, self.side = vit.patch, encoder.spec.image_size // vit.patch
        if encoder.spec.image_size % vit.patch:
            raise ConfigError(f"image size: expected a multiple of {vit.patch}, found {encoder.spec.image_size}")
        if not 1 <= kept(self.tokens, config.mask_ratio) < self.tokens:
            raise ConfigError(
                f"mask ratio: expected at least one of {self.tokens} patches kept and one hidden, found "
                f"{config.mask_ratio}"
            )
        self.embed = nn.Linear(vit.feature_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, config.decoder_heads) for _ in range(config.decoder_depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.predict = nn.Linear(width, vit.patch**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        for layer in (self.embed, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def tokens(self) -> int:
        return self.side**2

    @property
    def examples(self) -> int:
        return len(self.train_data)

    def sample(self, draw: Draw) -> dict[str, torch.Tensor]:
        """Cropped or shifted images, and for each a random order of its patches, of which the first are kept."""
        generator, config, size = draw.generator(), self.config, self.encoder.spec.image_size
        images_BCHW = self.train_data.images_NCHW(draw.rows_B(self.examples).numpy())
        if config.crop is not None:
            images_BCHW = random_resized_crop(images_BCHW, size, config.crop, generator)
        else:
            images_BCHW = random_shift(center_crop(images_BCHW, size), config.pad, generator)
        return {"images": images_BCHW, "order": self.order(len(images_BCHW), generator)}

    def order(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(B, L): a random permutation of the patches for each image."""
        return torch.rand(count, self.tokens, generator=generator).argsort(dim=1)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        """Mean squared error of the hidden patches."""
        guess_BLP, target_BLP = self(batch["images"], batch["order"]), self.targets(batch["images"])
        loss = masked_error(guess_BLP, target_BLP, self.hidden(batch["order"]))
        return loss, {"loss": loss.detach()}

    def forward(self, images_BCHW: torch.Tensor, order_BL: torch.Tensor) -> torch.Tensor:
        """Predicted patches (B, L, P) from those that `order` puts first."""
        encoder, vit = self.encoder, self._vit
        keep_BK = order_BL[:, : kept(self.tokens, self.config.mask_ratio)]
        tokens_BLD = vit.patches((images_BCHW.float() - encoder.mean) / encoder.std)
        seen_BKD = tokens_BLD.gather(1, keep_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[-1]))
        known = self.embed(vit.encode(seen_BKD))
        everything = self.mask_token.to(known.dtype).expand(len(known), self.tokens, -1)
        everything = everything.scatter(1, keep_BK[:, :, None].expand(-1, -1, known.shape[-1]), known[:, 1:])
        everything = everything + sine_cosine(self.side, self.side, known.shape[-1], known.device)
        decoded = self.norm(self.blocks(torch.cat([known[:, :1], everything.to(known.dtype)], dim=1)))
        guess_BLP: torch.Tensor = self.predict(decoded[:, 1:]).float()
        return guess_BLP

    def targets(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Patches (B, L, P) of normalised images."""
        patches_BLP = patchify((images_BCHW.float() - self.encoder.mean) / self.encoder.std, self.patch)
        if not self.config.norm_pix:
            return patches_BLP
        mean, var = patches_BLP.mean(-1, keepdim=True), patches_BLP.var(-1, keepdim=True)
        return (patches_BLP - mean) / (var + EPS).sqrt()

    def hidden(self, order_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) True where a patch is hidden."""
        hidden_BL = torch.ones_like(order_BL, dtype=torch.bool)
        return hidden_BL.scatter(1, order_BL[:, : kept(self.tokens, self.config.mask_ratio)], False)

    def after_step(self) -> None:
        """Nothing follows the weights."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Error of hidden patches of held-out images with fixed masks, and its ratio to predictions that know more
        than they may: each hidden patch's own mean, its own mean colour, and the mean of these very images."""
        if self.held_out is None:
            return {}
        rows_N = spread(len(self.held_out), SCORED)
        images_NCHW = center_crop(self.held_out.images_NCHW(rows_N), self.encoder.spec.image_size)
        order_NL = self.order(len(rows_N), torch.Generator().manual_seed(0))
        hidden_NL, targets_NLP = self.hidden(order_NL), self.targets(images_NCHW)
        parts = zip(torch.split(images_NCHW, BATCH), torch.split(order_NL, BATCH), strict=True)
        guesses = {"val_error": torch.cat([self(images, order) for images, order in parts]), **oracles(targets_NLP)}
        errors = {name: float(masked_error(guess, targets_NLP, hidden_NL)) for name, guess in guesses.items()}
        error = errors.pop("val_error")
        return {"val_error": error, **{f"val_over_{name}": error / known for name, known in errors.items()}}

    def describe(self) -> dict[str, Any]:
        """What goes into the sidecar of the encoder."""
        return {"mae": asdict(self.config), "images": self.examples}

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        """A picture of held-out images (training ones where none are held out): whole, visible part, prediction."""
        source = self.held_out if self.held_out is not None else self.train_data
        images = center_crop(source.images_NCHW(spread(len(source), SHOWN)), self.encoder.spec.image_size).float()
        order_BL = self.order(len(images), torch.Generator().manual_seed(1))
        truth_BLP = patchify(images, self.patch)
        guess_BLP = self(images, order_BL)
        if self.config.norm_pix:
            known = patchify((images - self.encoder.mean) / self.encoder.std, self.patch)
            guess_BLP = guess_BLP * (known.var(-1, keepdim=True) + EPS).sqrt() + known.mean(-1, keepdim=True)
        pixels = unpatchify(guess_BLP, self.patch) * self.encoder.std + self.encoder.mean
        hidden_BL1 = self.hidden(order_BL)[..., None]
        visible = torch.where(hidden_BL1, torch.full_like(truth_BLP, 128.0), truth_BLP)
        drawn = torch.where(hidden_BL1, patchify(pixels, self.patch), truth_BLP)
        columns = [images, unpatchify(visible, self.patch), unpatchify(drawn, self.patch)]
        stacked = torch.stack(columns, dim=1).clamp(0, 255).byte().permute(0, 1, 3, 4, 2)
        grid(path, stacked.numpy(), ("image", "visible", "drawn"))

    @property
    def _vit(self) -> ViT:
        network: Any = self.encoder.network
        return network


def kept(tokens: int, mask_ratio: float) -> int:
    """How many patches the encoder sees: int(L * (1 - ratio)), 12 of 49."""
    return int(tokens * (1 - mask_ratio))


def patchify(images_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, L, patch * patch * C), patches row by row, colours last."""
    count, channels, height, width = images_BCHW.shape
    tiles = images_BCHW.reshape(count, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * channels)


def unpatchify(patches_BLP: torch.Tensor, patch: int) -> torch.Tensor:
    """The images (B, C, H, W) of square grids of patches."""
    count, length, _ = patches_BLP.shape
    side = round(length**0.5)
    tiles = patches_BLP.reshape(count, side, side, patch, patch, -1)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(count, -1, side * patch, side * patch)


def masked_error(guess_BLP: torch.Tensor, target_BLP: torch.Tensor, hidden_BL: torch.Tensor) -> torch.Tensor:
    """Mean squared error per patch, averaged over the hidden ones only."""
    error_BL = (guess_BLP - target_BLP).square().mean(-1)
    return (error_BL * hidden_BL).sum() / hidden_BL.sum()


def oracles(targets_NLP: torch.Tensor) -> dict[str, torch.Tensor]:
    """Predictions (N, L, P) to compare with: the mean of each patch over pixels and colours, its mean colour, and
    the mean image."""
    colors_NLV3 = targets_NLP.reshape(*targets_NLP.shape[:2], -1, 3)
    return {
        "patch_mean": targets_NLP.mean(-1, keepdim=True).expand_as(targets_NLP),
        "patch_color": colors_NLV3.mean(2, keepdim=True).expand_as(colors_NLV3).flatten(2),
        "mean_image": targets_NLP.mean(0, keepdim=True).expand_as(targets_NLP),
    }


def spread(total: int, count: int) -> Ints:
    """At most `count` of `total` rows, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(np.int64))
