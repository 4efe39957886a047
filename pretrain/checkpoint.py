"""Where a training run stands, as safetensors + JSON: nothing that is read back is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from vrl3data import storage
from vrl3data.errors import DamagedError, locate

STATE = "checkpoint.safetensors"
FACTS = "facts"
BATCH = "diverged_batch.safetensors"


def save(directory: Path, state: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, facts: Any) -> None:
    """One file, replaced by rename: tensors, and the facts as JSON in its header."""
    write(directory, {**state, **optimizer_tensors(optimizer)}, facts)


def write(directory: Path, tensors: Mapping[str, torch.Tensor], facts: Any) -> None:
    """One file, replaced by rename."""
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with storage.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        storage.replace_file(directory / STATE, save_tensors(whole, {FACTS: json.dumps(facts)}))


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> dict[str, torch.Tensor]:
    """What an optimizer remembers, by name; `restore_optimizer` takes it back."""
    return {
        f"{prefix}{index}.{key}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if value is not None
    }


def load(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """(tensors, facts) of `save`; None if there is no checkpoint."""
    path = directory / STATE
    if not path.is_file():
        return None
    with locate(path=path):
        try:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][FACTS])
            return load_tensors(data), facts
        except (SafetensorError, ValueError, KeyError) as error:
            raise DamagedError(f"the checkpoint cannot be read: {error}; remove it to start anew") from error


def restore(module: nn.Module, state: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Load strictly the tensors below `prefix`."""
    module.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor], prefix: str = "optimizer."
) -> None:
    """Give an optimizer back what lies below `prefix`."""
    values: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split(".")
            values.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})


def save_batch(directory: Path, batch: Mapping[str, torch.Tensor]) -> Path:
    """Keep the batch that broke a run."""
    path = directory / BATCH
    storage.replace_file(path, save_tensors({name: tensor.contiguous() for name, tensor in batch.items()}))
    return path
