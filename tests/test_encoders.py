"""Encoders: the numbers of VRL3's family, strict checkpoints, inflation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from safetensors.torch import load_file, save_file

import vrl3data
from pretrain.inflate import inflate
from vrl3data.encoders import ARCHITECTURES
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.errors import ConfigError, DamagedError

# Parameters without a classifier, with a stem of 3, 9 and 27 channels (computed from VRL3's released code).
PARAMETERS = {
    "resnet6_32channel": (398_208, 399_936, 405_120),
    "resnet6_64channel": (1_588_992, 1_592_448, 1_602_816),
    "resnet10_32channel": (1_226_432, 1_228_160, 1_233_344),
    "resnet10_64channel": (4_898_176, 4_901_632, 4_912_000),
    "resnet18_32channel": (2_795_072, 2_796_800, 2_801_984),
    "resnet18_64channel": (11_168_896, 11_172_352, 11_182_720),
}


def images(channels: int = 3, count: int = 2, size: int = 84) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def made(arch: str = "resnet6_32channel", channels: int = 3) -> Encoder:
    """An encoder in evaluation mode whose batch norms have seen something."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(arch, channels))
    encoder.train()(images(channels, 4))
    return encoder.eval()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_and_features(arch: str) -> None:
    assert set(PARAMETERS) == set(ARCHITECTURES)
    for channels, want in zip((3, 9, 27), PARAMETERS[arch], strict=True):
        encoder = Encoder(EncoderSpec(arch, channels))
        assert sum(p.numel() for p in encoder.parameters()) == want
    features = made(arch)(images())
    assert features.shape == (2, encoder.feature_dim)
    assert encoder.feature_dim == (512 if "64" in arch else 256)


def test_spatial_sizes() -> None:
    encoder, seen = made(), []
    network = encoder.network
    for module in (network.stem, *network.stages):
        module.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    encoder(images())
    assert seen == [41, 41, 21, 11, 6]


@pytest.mark.parametrize("arch", ["resnet6_32channel", "resnet10_32channel", "resnet18_32channel"])
@pytest.mark.parametrize(("frames", "cameras"), [(1, 1), (3, 1), (3, 3)])
def test_inflation_is_the_identity_on_equal_images(arch: str, frames: int, cameras: int) -> None:
    encoder = made(arch)
    inflated = inflate(encoder, frames, cameras)
    stacked = images().repeat(1, frames * cameras, 1, 1)
    assert inflated.spec.in_channels == 3 * frames * cameras
    with torch.no_grad():
        assert torch.allclose(inflated(stacked), encoder(images()), atol=1e-5)
        different = stacked.clone()
        different[:, :3] = 255 - different[:, :3]
        if frames > 1:
            assert not torch.allclose(inflated(different), encoder(images()), atol=1e-3)
    assert inflated.spec.provenance["inflated"] == {"frames": frames, "cameras": cameras}


def test_inflation_refusals() -> None:
    with pytest.raises(ConfigError, match="takes 3 images already"):
        inflate(inflate(made(), 3), 3)
    with pytest.raises(ConfigError, match="at least one frame and one camera"):
        inflate(made(), 0)


def test_encoders_normalise_themselves_and_refuse_the_wrong_range() -> None:
    encoder = made()
    with torch.no_grad():
        assert torch.allclose(encoder(images()), encoder(images().float()))
        assert encoder(torch.zeros(1, 3, 84, 84)).isfinite().all()  # black is not a mistake
    with pytest.raises(ConfigError, match="expected values from 0 to 255, found .* 1: multiply by 255"):
        made()(images().float() / 255)
    with pytest.raises(ConfigError, match=r"expected images of shape \(N, 3, 84, 84\), found \(2, 9, 84, 84\)"):
        encoder(images(9))
    with pytest.raises(ConfigError, match="unknown encoder 'resnet6_32chanel'; did you mean 'resnet6_32channel'"):
        EncoderSpec("resnet6_32chanel")
    with pytest.raises(ConfigError, match="in_channels: expected a multiple of 3"):
        EncoderSpec("resnet6_32channel", 4)


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    encoder = made()
    encoder.save_pretrained(tmp_path / "enc")
    loaded = vrl3data.Encoder.from_pretrained(tmp_path / "enc")
    assert not loaded.training
    assert loaded.spec == encoder.spec
    with torch.no_grad():
        assert torch.equal(loaded(images()), encoder(images()))


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = made().save_pretrained(tmp_path / "enc")
    weights, sidecar = path / "encoder.safetensors", path / "encoder.json"
    whole, told = weights.read_bytes(), json.loads(sidecar.read_text())
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(DamagedError, match="does not have the sha256"):
        Encoder.from_pretrained(path)

    def store(tensors: dict[str, torch.Tensor]) -> None:
        import hashlib

        save_file(tensors, weights)
        sidecar.write_text(json.dumps({**told, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}))

    weights.write_bytes(whole)
    tensors = load_file(weights)
    fewer = {name: tensor for name, tensor in tensors.items() if name != "network.stem.bias"}
    for change in (fewer, {**tensors, "extra": torch.zeros(1)}, {**tensors, "network.stem.bias": torch.zeros(7)}):
        store(change)
        with pytest.raises(DamagedError, match="the weights are not those of resnet6_32channel: 1 tensors differ"):
            Encoder.from_pretrained(path)
    for change, match in [({"checkpoint_version": 9}, "version 9 is not known"), ({"mean": None}, "lacks")]:
        sidecar.write_text(json.dumps({**told, **change}))
        with pytest.raises(DamagedError, match=match):
            Encoder.from_pretrained(path)
    sidecar.write_text("{")
    with pytest.raises(DamagedError, match="cannot be read"):
        Encoder.from_pretrained(path)
    with pytest.raises(ConfigError, match=r"this is not an encoder: it has no encoder.json"):
        Encoder.from_pretrained(tmp_path)


def test_an_encoder_loads_with_little(tmp_path: Path) -> None:
    """Torch, safetensors and NumPy: no Arrow, no simulator, no image library."""
    path = made().save_pretrained(tmp_path / "enc")
    code = (
        f"import vrl3data, sys; vrl3data.Encoder.from_pretrained({str(path)!r}); "
        "print([m for m in ('pyarrow', 'PIL', 'mujoco', 'gymnasium', 'torchvision', 'datasets') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_inflate_command(tmp_path: Path) -> None:
    path = made().save_pretrained(tmp_path / "enc")
    result = run_cli("inflate", path, tmp_path / "three", "--frames", 3, "--cameras", 2)
    assert result.returncode == 0, result.stderr
    assert Encoder.from_pretrained(tmp_path / "three").spec.in_channels == 18
    again = run_cli("inflate", tmp_path / "three", tmp_path / "more")
    assert (again.returncode, "inflate one of 3 channels" in again.stderr) == (2, True)
    assert not (tmp_path / "more").exists()
