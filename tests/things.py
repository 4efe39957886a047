"""Small datasets, encoders and policies to publish, and what the tests of publishing look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_spec, write_dataset
from safetensors.numpy import save as save_tensors

from cards.bundle import digests
from vrl3data.dataset import open_dataset
from vrl3data.report import Silent

KINDS = ("dataset", "encoder", "policy")
FIRST = "data/train-000000.tar"
ARCH = "resnet6_32channel"


def write_model(path: Path, kind: str = "encoder", seed: int = 0, **more: Any) -> Path:
    """Weights and sidecar as `save_pretrained` lays them out; nothing here loads them."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = path / f"{kind}.safetensors"
    weights.write_bytes(save_tensors({"stem.weight": rng.normal(size=(4, 3)).astype(np.float32)}))
    facts = {"encoder": {"arch": ARCH, "in_channels": 3, "image_size": 84, "mean": [0.5] * 3, "std": [0.2] * 3},
             "policy": {"env": "fetch-reach", "cameras": ["main"], "frames": 3, "action_dim": 4}}[kind]  # fmt: skip
    sidecar = {"checkpoint_version": 1, **facts, "provenance": {"objective": "bc"}, **more}
    (path / f"{kind}.json").write_text(json.dumps({**sidecar, "sha256": digests(weights)["sha256"]}))
    return path


def write_thing(path: Path, kind: str, seed: int = 0) -> Path:
    if kind == "dataset":
        return write_dataset(path, 5, make_spec(shard_size=30_000), first=seed)
    return write_model(path, kind, seed)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def fingerprint(path: Path, kind: str) -> str:
    if kind == "dataset":
        with open_dataset(path) as dataset:
            return dataset.manifest.fingerprint
    return digests(path / f"{kind}.safetensors")["sha256"]


def flip(path: Path, offset: int = -700) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


class Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
