"""Encoders: the numbers of VRL3's family, strict checkpoints, inflation."""

from __future__ import annotations

import json
import math
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
from vrl3data.encoders.batchnorm import recalibrate
from vrl3data.encoders.encoder import Encoder, EncoderSpec, packaged_encoders
from vrl3data.encoders.vit import sine_cosine
from vrl3data.errors import ConfigError, DamagedError

# Parameters without a classifier, with a stem of 3, 9 and 27 channels (computed from VRL3's released code).
PARAMETERS = {
    "resnet6_32channel": (398_208, 399_936, 405_120),
    "resnet6_64channel": (1_588_992, 1_592_448, 1_602_816),
    "resnet10_32channel": (1_226_432, 1_228_160, 1_233_344),
    "resnet10_64channel": (4_898_176, 4_901_632, 4_912_000),
    "resnet18_32channel": (2_795_072, 2_796_800, 2_801_984),
    "resnet18_64channel": (11_168_896, 11_172_352, 11_182_720),
    # By hand, for dim D, depth d and C channels: D (144 C + 1) for the patches, D for the class token, 2 D for the last
    # norm, and d (12 D^2 + 13 D) for the blocks.
    "vit-micro12": (1_245_440, 1_356_032, 1_687_808),
    "vit-tiny12": (5_422_080, 5_587_968, 6_085_632),
}
FEATURES = {"vit-micro12": 128, "vit-tiny12": 192}


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
    assert encoder.feature_dim == FEATURES.get(arch, 512 if "64" in arch else 256)


def test_spatial_sizes() -> None:
    encoder, seen = made(), []
    network = encoder.network
    for module in (network.stem, *network.stages):
        module.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    encoder(images())
    assert seen == [41, 41, 21, 11, 6]


@pytest.mark.parametrize("arch", ["resnet6_32channel", "resnet10_32channel", "resnet18_32channel", "vit-micro12"])
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


LITTLE = """
import sys

class OnlyThese:
    allowed = {{"torch", "timm", "safetensors", "numpy", "vrl3data"}}

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in blocked:
            raise ModuleNotFoundError(f"{{top}} is blocked")

from importlib.metadata import packages_distributions, requires
import re

def needs(name, seen):
    # torch, timm, safetensors and numpy bring what they themselves require; timm is allowed, not needed.
    for line in requires(name) or []:
        if "extra ==" not in line:
            other = re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-")
            if other not in seen:
                seen.add(other)
                try:
                    needs(other, seen)
                except Exception:
                    continue
    return seen

free = {{"torch", "safetensors", "numpy"}} | needs("torch", set())
blocked = {{top for top, owners in packages_distributions().items()
           if not {{owner.lower().replace("_", "-") for owner in owners}} & (free | {{"vrl3data", "timm"}})}}
assert {{"datasets", "pyarrow", "PIL", "mujoco", "gymnasium", "webdataset", "h5py", "click", "torchvision"}} <= blocked
sys.meta_path.insert(0, OnlyThese())
import torch
import vrl3data
encoder = vrl3data.Encoder.from_pretrained({path!r})
print(tuple(encoder(torch.zeros(2, 3, 84, 84, dtype=torch.uint8)).shape))
"""


@pytest.mark.parametrize(("arch", "dim"), [("resnet6_32channel", 256), ("vit-micro12", 128)])
def test_an_encoder_loads_and_runs_with_little(tmp_path: Path, arch: str, dim: int) -> None:
    """Every installed package but torch, timm, safetensors, NumPy and what torch needs is out of reach."""
    path = made(arch).save_pretrained(tmp_path / "enc")
    code = LITTLE.format(path=str(path))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == f"(2, {dim})", found.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_stored_and_comes_back_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    encoder = made()
    path = encoder.save_pretrained(tmp_path / "enc", dtype)
    assert json.loads((path / "encoder.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    stored = load_file(path / "encoder.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype, torch.int64}
    loaded = Encoder.from_pretrained(path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        apart = (loaded(images()) - encoder(images())).abs().max() / encoder(images()).abs().max()
    assert float(apart) <= {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 0.0}[dtype]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}  # the one that was saved is as it was
    if dtype == torch.float16:
        assert (path / "encoder.safetensors").stat().st_size < 1_000_000


def test_a_dtype_that_does_not_hold_the_weights_is_refused(tmp_path: Path) -> None:
    encoder = made()
    with torch.no_grad():
        encoder.network.stem.bias[0] = 1e6
    with pytest.raises(ConfigError, match=r"network.stem.bias does not fit in float16: its greatest value is 1e\+06"):
        encoder.save_pretrained(tmp_path / "enc", torch.float16)
    with pytest.raises(ConfigError, match=r"expected a dtype of float16, bfloat16, float32, found torch.int8"):
        encoder.save_pretrained(tmp_path / "enc", torch.int8)
    assert not (tmp_path / "enc").exists()


def test_packaged_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in packaged_encoders().values():
        assert Encoder.from_pretrained(f"packaged:{path.name}").feature_dim > 0
    made().save_pretrained(tmp_path / "packaged" / "encoders" / "one-encoder")
    monkeypatch.setattr("vrl3data.encoders.encoder.files", lambda _: tmp_path)
    assert list(packaged_encoders()) == ["one-encoder"]
    assert Encoder.from_pretrained("packaged:one-encoder").spec.arch == "resnet6_32channel"
    with pytest.raises(ConfigError, match="no packaged encoder 'one-encodr'; did you mean 'one-encoder'"):
        Encoder.from_pretrained("packaged:one-encodr")
    with pytest.raises(ConfigError, match="no packaged encoder '../../enc'; there are: one-encoder"):
        Encoder.from_pretrained("packaged:../../enc")


# -- vision transformers -------------------------------------------------------------------------------------------


def test_positions_are_sines_and_cosines() -> None:
    """By hand: row r and column c of a grid, wavelengths 2 pi and 200 pi for dim 8."""
    table_LD = sine_cosine(2, 3, 8)
    assert table_LD.shape == (6, 8)
    row, column = 1, 2
    want = [f(place * w) for place in (row, column) for f in (math.sin, math.cos) for w in (1, 0.01)]
    assert torch.allclose(table_LD[row * 3 + column], torch.tensor(want), atol=1e-6)


def test_vit_tokens() -> None:
    encoder = made("vit-micro12")
    with torch.no_grad():
        tokens_NLD = encoder.network.patches(torch.zeros(2, 3, 84, 84))
        assert tokens_NLD.shape == (2, 49, 128)
        assert encoder.network.encode(tokens_NLD[:, :12]).shape == (2, 13, 128)
        moved = images().roll(12, dims=3)
        assert not torch.allclose(encoder(moved), encoder(images()), atol=1e-3)  # it knows where patches are
    assert {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    with pytest.raises(ConfigError, match="sides are multiples of 12, found 80 x 80"):
        encoder(torch.zeros(1, 3, 80, 80, dtype=torch.uint8))


# -- batch norm ----------------------------------------------------------------------------------------------------


def test_recalibration_measures_the_statistics_of_the_batches() -> None:
    encoder = made()
    batches = [images(count=8), images(count=8).roll(40, dims=2) // 2]
    modes = encoder.training
    assert recalibrate(encoder, batches) == 5
    norm, stem = encoder.network.stem_norm, encoder.network.stem
    with torch.no_grad():
        maps = [stem((batch.float() - encoder.mean) / encoder.std) for batch in batches]
    want = torch.stack([part.mean(dim=(0, 2, 3)) for part in maps]).mean(0)
    assert torch.allclose(norm.running_mean, want, atol=1e-5)
    variance = torch.stack([part.var(dim=(0, 2, 3)) for part in maps]).mean(0)
    assert torch.allclose(norm.running_var, variance, rtol=1e-4)
    assert (encoder.training, norm.momentum, norm.training) == (modes, 0.1, False)
    before = norm.running_mean.clone()
    assert recalibrate(encoder, []) == 5
    assert torch.equal(norm.running_mean, before)
    assert recalibrate(made("vit-micro12"), batches) == 0


def test_the_inflate_command(tmp_path: Path) -> None:
    path = made().save_pretrained(tmp_path / "enc")
    result = run_cli("inflate", path, tmp_path / "three", "--frames", 3, "--cameras", 2)
    assert result.returncode == 0, result.stderr
    assert Encoder.from_pretrained(tmp_path / "three").spec.in_channels == 18
    again = run_cli("inflate", tmp_path / "three", tmp_path / "more")
    assert (again.returncode, "inflate one of 3 channels" in again.stderr) == (2, True)
    assert not (tmp_path / "more").exists()
