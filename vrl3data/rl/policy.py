"""Policy: an encoder with an actor, saved as safetensors + JSON, loaded strictly, acting on observations.

Legend: B items, C channels, H x W pixels, S sensor values, A action dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from vrl3data import storage
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError, DamagedError, locate
from vrl3data.rl.networks import Actor
from vrl3data.rl.play import EnvSpec
from vrl3data.schema import Array

WEIGHTS, SIDECAR = "policy.safetensors", "policy.json"
CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class PolicySpec:
    """What a policy is and what it was made for. Actions lie in [-1, 1]."""

    env: str
    action_dim: int
    sensor_dim: int
    frames: int = 1
    cameras: tuple[str, ...] = ()
    sensor: str = ""
    """Feature of the sensors; empty: none."""
    image_size: int = 84
    max_steps: int = 0
    action_repeat: int = 1
    env_options: Mapping[str, Any] = field(default_factory=dict)
    hidden_dim: int = 1024
    trunk_dim: int = 50
    encoder_arch: str = ""
    """Architecture of the encoder; empty: sensors only."""
    encoder_mean: tuple[float, ...] = ()
    encoder_std: tuple[float, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def env_spec(self) -> EnvSpec:
        return EnvSpec(self.env, self.image_size, self.max_steps, self.action_repeat, self.env_options)


class Policy(nn.Module):
    """Images (B, C, H, W) uint8 and sensors (B, S) float32 -> mean actions (B, A) in [-1, 1]."""

    def __init__(self, spec: PolicySpec, encoder: Encoder | None = None, actor: Actor | None = None) -> None:
        super().__init__()
        self.spec = spec
        if encoder is None and spec.encoder_arch:
            channels = 3 * spec.frames * len(spec.cameras)
            encoder = Encoder(
                EncoderSpec(spec.encoder_arch, channels, spec.image_size, spec.encoder_mean, spec.encoder_std)
            )
        self.encoder = encoder
        state_dim = spec.sensor_dim + (encoder.feature_dim if encoder is not None else 0)
        self.actor = actor or Actor(state_dim, spec.action_dim, spec.hidden_dim, spec.trunk_dim)

    @torch.no_grad()
    def act(self, images_BCHW: torch.Tensor | None, sensor_BS: torch.Tensor | None) -> torch.Tensor:
        """Mean actions (B, A) float32, with the running statistics of BatchNorm."""
        self.eval()
        parts = []
        if self.encoder is not None:
            if images_BCHW is None:
                raise ConfigError("this policy needs images")
            parts.append(self.encoder(images_BCHW).float())
        if self.spec.sensor_dim:
            if sensor_BS is None:
                raise ConfigError("this policy needs sensors")
            parts.append(sensor_BS.float())
        return torch.tanh(self.actor(torch.cat(parts, dim=1))).float()

    def choose(self, images_1CHW: Array | None, sensor_1S: Array | None) -> Array:
        """The action (A,) of one observation, as `Stage.play` asks for it."""
        as_tensor = torch.from_numpy
        images = as_tensor(images_1CHW) if images_1CHW is not None else None
        sensor = as_tensor(sensor_1S) if sensor_1S is not None else None
        action_A: Array = self.act(images, sensor)[0].numpy()
        return action_A

    def _weights(self) -> bytes:
        return save({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()})

    def digest(self) -> str:
        """sha256 of the weights, as the sidecar has it."""
        return hashlib.sha256(self._weights()).hexdigest()

    def save_pretrained(self, directory: Path | str) -> Path:
        """Write weights and sidecar; the sidecar, with the hash of the weights, last."""
        target = Path(directory)
        data = self._weights()
        digest = hashlib.sha256(data).hexdigest()
        sidecar = {"checkpoint_version": CHECKPOINT_VERSION, **asdict(self.spec), "sha256": digest}
        with storage.writing(target):
            target.mkdir(parents=True, exist_ok=True)
            storage.replace_file(target / WEIGHTS, data)
            storage.replace_file(target / SIDECAR, json.dumps(sidecar, indent=2).encode() + b"\n")
        return target

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> Policy:
        """Load strictly. ConfigError if there is no policy, DamagedError if it is not whole."""
        source = Path(directory)
        with locate(path=source):
            if not (source / SIDECAR).is_file():
                raise ConfigError(f"this is not a policy: it has no {SIDECAR}")
            try:
                sidecar = json.loads((source / SIDECAR).read_bytes())
                data = (source / WEIGHTS).read_bytes()
                spec = _spec(sidecar)
                if hashlib.sha256(data).hexdigest() != sidecar["sha256"]:
                    raise DamagedError(f"{WEIGHTS} does not have the sha256 of {SIDECAR}")
                policy = cls(spec)
                policy.load_state_dict(load(data))
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
                raise DamagedError(f"the policy cannot be read: {error}") from error
        return policy.eval()


def _spec(sidecar: Mapping[str, Any]) -> PolicySpec:
    if sidecar["checkpoint_version"] != CHECKPOINT_VERSION:
        raise DamagedError(f"checkpoint version {sidecar['checkpoint_version']} is not known to this version")
    values: dict[str, Any] = {}
    for item in fields(PolicySpec):
        value = sidecar[item.name]
        values[item.name] = tuple(value) if isinstance(value, list) else value
    return PolicySpec(**values)
