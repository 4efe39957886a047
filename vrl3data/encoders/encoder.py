"""Encoder: a network with its own preprocessing, saved as safetensors + JSON and loaded strictly.

Needs only torch, safetensors and NumPy. Shapes: N images, C channels, H x W pixels, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from vrl3data import storage
from vrl3data.encoders import ARCHITECTURES
from vrl3data.errors import ConfigError, DamagedError, did_you_mean, locate

WEIGHTS, SIDECAR = "encoder.safetensors", "encoder.json"
CHECKPOINT_VERSION = 1
PACKAGED = "packaged:"
STORED_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNIT_RANGE = 1.5
"""A float image whose greatest value is below this was meant as 0..1, not as 0..255."""


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is, as its sidecar says it. `mean` and `std` are per RGB channel, of values in 0..1."""

    arch: str
    in_channels: int = 3
    image_size: int = 84
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Objective, configuration, data with fingerprint, versions, probe scores: whatever made it."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ConfigError(f"unknown encoder {self.arch!r}{did_you_mean(self.arch, ARCHITECTURES)}")
        if self.in_channels < 3 or self.in_channels % 3:
            raise ConfigError(f"in_channels: expected a multiple of 3 (RGB), found {self.in_channels}")


class Encoder(nn.Module):
    """Images (N, C, H, W), uint8 or float, values 0..255 -> features (N, D). Normalises itself.

    C = 3 * frames * cameras, oldest frame first, cameras within a frame. ConfigError for another number of
    channels or size, and for floats that look like 0..1.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        module, name = ARCHITECTURES[spec.arch].split(":")
        self.spec = spec
        self.network = getattr(import_module(module), name)(spec.in_channels)
        repeats = spec.in_channels // 3
        self.register_buffer("mean", _per_channel(spec.mean, repeats), persistent=False)
        self.register_buffer("std", _per_channel(spec.std, repeats), persistent=False)
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self._range_seen = False

    @property
    def feature_dim(self) -> int:
        return int(self.network.feature_dim)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        self._check(images_NCHW)
        images = images_NCHW.float() if images_NCHW.dtype == torch.uint8 else images_NCHW
        features: torch.Tensor = self.network((images - self.mean) / self.std)
        return features

    def _check(self, images_NCHW: torch.Tensor) -> None:
        want = (self.spec.in_channels, self.spec.image_size, self.spec.image_size)
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != want[0]:
            raise ConfigError(
                f"expected images of shape (N, {', '.join(map(str, want))}), found {tuple(images_NCHW.shape)}"
            )
        if images_NCHW.dtype == torch.uint8 or self._range_seen:
            return
        # Once is enough: a wrong scale is wrong from the first batch on, and looking costs a synchronisation.
        self._range_seen = True
        greatest = float(images_NCHW.max())
        if 0 < greatest <= UNIT_RANGE:
            raise ConfigError(
                f"expected values from 0 to 255, found a greatest value of {greatest:.3g}: multiply by 255"
            )

    def save_pretrained(self, directory: Path | str, dtype: torch.dtype | None = None) -> Path:
        """Write weights and sidecar; the sidecar, with the hash of the weights, last.

        `dtype` (torch.float16, bfloat16 or float32) is what floating-point tensors are stored in, None: as they
        are. ConfigError for another one, and where a value would leave its range.
        """
        target = Path(directory)
        data = save({name: _stored(name, tensor, dtype) for name, tensor in self.state_dict().items()})
        facts = {"checkpoint_version": CHECKPOINT_VERSION, **asdict(self.spec)}
        sidecar = {**facts, "dtype": _dtype_name(dtype or self._dtype()), "sha256": _sha256(data)}
        with storage.writing(target):
            target.mkdir(parents=True, exist_ok=True)
            storage.replace_file(target / WEIGHTS, data)
            storage.replace_file(target / SIDECAR, json.dumps(sidecar, indent=2).encode() + b"\n")
        return target

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> Encoder:
        """Load strictly: every tensor, of the right shape, with the hash of the sidecar. In evaluation mode.

        `packaged:NAME` is an encoder that we ship. What was stored in half precision becomes float32.
        ConfigError if there is no encoder, DamagedError if it is not whole.
        """
        source = _locate(directory)
        with locate(path=source):
            if not (source / SIDECAR).is_file():
                raise ConfigError(f"this is not an encoder: it has no {SIDECAR}")
            try:
                sidecar = json.loads((source / SIDECAR).read_bytes())
                data = (source / WEIGHTS).read_bytes()
            except (OSError, ValueError) as error:
                raise DamagedError(f"the encoder cannot be read: {error}") from error
            encoder = cls(_spec(sidecar))
            if _sha256(data) != sidecar.get("sha256"):
                raise DamagedError(f"{WEIGHTS} does not have the sha256 of {SIDECAR}")
            encoder._load(load(data))
        return encoder.eval()

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(weights))
        wrong += sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape)
        if wrong:
            raise DamagedError(
                f"the weights are not those of {self.spec.arch}: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        self.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})


def packaged_encoders() -> dict[str, Path]:
    """The encoders that come with the package: name -> directory."""
    home = Path(str(files("vrl3data").joinpath("packaged", "encoders")))
    found = sorted(home.iterdir()) if home.is_dir() else []
    return {item.name: item for item in found if (item / SIDECAR).is_file()}


def _locate(directory: Path | str) -> Path:
    text = str(directory)
    if not text.startswith(PACKAGED):
        return Path(directory)
    name, known = text.removeprefix(PACKAGED), packaged_encoders()
    if name not in known:
        raise ConfigError(f"no packaged encoder {name!r}{did_you_mean(name, known)}")
    return known[name]


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor.contiguous()
    _dtype_name(dtype)
    stored = tensor.to(dtype)
    if not torch.equal(stored.isfinite(), tensor.isfinite()):
        greatest = float(tensor.abs().max())
        raise ConfigError(f"{name} does not fit in {_dtype_name(dtype)}: its greatest value is {greatest:.3g}")
    return stored.contiguous()


def _dtype_name(dtype: torch.dtype) -> str:
    for name, known in STORED_DTYPES.items():
        if known == dtype:
            return name
    raise ConfigError(f"expected a dtype of {', '.join(STORED_DTYPES)}, found {dtype}")


def _spec(sidecar: Any) -> EncoderSpec:
    try:
        if sidecar["checkpoint_version"] != CHECKPOINT_VERSION:
            raise DamagedError(f"checkpoint version {sidecar['checkpoint_version']} is not known to this version")
        plain = {key: sidecar[key] for key in ("arch", "in_channels", "image_size", "provenance")}
        return EncoderSpec(**plain, mean=tuple(sidecar["mean"]), std=tuple(sidecar["std"]))
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{SIDECAR} lacks {error}") from error


def _per_channel(values: tuple[float, ...], repeats: int) -> torch.Tensor:
    return torch.tensor(values * repeats).mul(255).view(1, -1, 1, 1)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
