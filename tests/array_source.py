"""A small converter of episodes whose source is a folder of .npz files: the ground that all such converters share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.episodes import EpisodeConverter
from converters.fields import Field, Loaded, Recording, Scan, timestamps
from converters.mapping import FieldMap, Rule
from vrl3data.errors import SourceError


class ArraysConverter(EpisodeConverter):
    """Folders of .npz files, one episode each."""

    kind = "arrays"
    suffixes = (".npz",)
    packages = ("numpy",)

    @staticmethod
    def recognises(source: Path) -> bool:
        return source.is_dir() and any(source.rglob("*.npz"))

    def scan(self, source: Path, name: str) -> Scan:
        found = _arrays(source)
        known = {
            path: Field(path, array.dtype.name, array.shape[1:], "state" if path.startswith("img") else "step")
            for path, array in found.items()
        }
        known["timestamp"] = Field("timestamp", "int64", (), "state")
        return Scan((Recording("0", len(found["act"]), (name,), known),), {name: source}, notes=("made up",))

    def guess(self, known: Mapping[str, Field]) -> FieldMap:
        rules = [Rule("obs.image.front", ("img",)), Rule("action", ("act",), representation="delta_ee")]
        rules += [Rule("obs.state", ("a", "b"))] if {"a", "b"} <= set(known) else []
        return FieldMap(self.kind, (*rules, Rule("timestamp", ("timestamp",), unit="ns")))

    def load(self, recording: Recording) -> Loaded:
        arrays = _arrays(self.path(recording.files[0]))
        final = len(arrays["img"]) > recording.length
        stamps = timestamps(recording.length + final, 30)
        return Loaded({**arrays, "timestamp": stamps}, final_observation=final, task="reach", success=1)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, OSError, EOFError) as error:
        raise SourceError(f"not an .npz file: {error}") from error


def write_source(folder: Path, count: int = 2, size: tuple[int, int] = (20, 30)) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        steps = 4 + number
        np.savez(
            folder / f"episode_{number}.npz",
            img=rng.integers(0, 255, (steps + 1, *size, 3), np.uint8),
            act=rng.normal(size=(steps, 3)),
            a=rng.normal(size=(steps, 2)).astype(np.float32),
            b=rng.normal(size=steps),
            junk=rng.normal(size=(steps, 5)),
        )
    return folder
