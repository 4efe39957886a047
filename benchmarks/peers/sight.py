"""What a peer saw of a dataset, as plain files: one .npy for each array of each episode and one seen.json.

Written inside the peer's environment and read outside of it: needs NumPy alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class Sight:
    """Collects episodes into a folder; `close` writes seen.json, which is what makes the folder whole."""

    def __init__(self, folder: str | Path, peer: str, version: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        self.seen: dict[str, Any] = {"peer": peer, "version": version, "about": {}, "episodes": []}

    def episode(self, name: str, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        """Add one: arrays with rows first, texts as NumPy strings, and whatever JSON else the peer says of it."""
        files = {}
        for number, (key, array) in enumerate(sorted(arrays.items())):
            files[key] = f"{len(self.seen['episodes']):06d}_{number:02d}.npy"
            np.save(self.folder / files[key], np.asarray(array), allow_pickle=False)
        self.seen["episodes"].append({"name": name, "arrays": files, "about": about})

    def close(self, **about: Any) -> None:
        """`about`: what the peer says of the whole dataset."""
        self.seen["about"] = about
        (self.folder / "seen.json").write_text(json.dumps(self.seen, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays, bytes, sets and whatever else a peer's metadata holds, as JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def load(folder: str | Path) -> dict[str, Any]:
    """seen.json, with each episode's arrays mapped read-only from their files."""
    seen: dict[str, Any] = json.loads((Path(folder) / "seen.json").read_text())
    for episode in seen["episodes"]:
        episode["arrays"] = {
            key: np.load(Path(folder) / file, mmap_mode="r", allow_pickle=False)
            for key, file in episode["arrays"].items()
        }
    return seen
