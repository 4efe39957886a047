"""Small datasets and sources that the tests make themselves."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vrl3data import codecs
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer

# Two test processes on two cores: threads of their own would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def make_schema(codec: str = "raw", size: int = 12) -> Schema:
    camera = Feature("obs.image.top", "uint8", (size, size, 3), "state", color="rgb")
    return Schema(
        "episodes",
        (
            codecs.describe(camera, codec),
            Feature("obs.state", "float32", (3,), "state"),
            Feature("action", "float64", (2,), bounds=(-1.0, 1.0)),
            Feature("reward", "float64"),
            Feature("timestamp", "int64", rows="state", unit="ns"),
            Feature("sim.goal", "float64", (3,), "episode"),
        ),
        ("preview.jpg",),
    )


def make_episode(number: int, length: int = 5, final: bool = True, size: int = 12, **more: Any) -> Episode:
    """An episode whose content depends on `number` alone."""
    rng = np.random.default_rng(number)
    states = length + int(final)
    ramp = np.linspace(0, 255, size)[None, None, :, None] * np.ones((states, size, 1, 3))
    values = {
        "obs.image.top": (ramp * rng.uniform(0.2, 1, (states, 1, 1, 3))).astype(np.uint8),
        "obs.state": rng.normal(size=(states, 3)).astype(np.float32),
        "action": rng.uniform(-1, 1, (length, 2)),
        "reward": rng.normal(size=length),
        "timestamp": np.arange(states, dtype=np.int64) * 40_000_000,
        "sim.goal": rng.normal(size=(1, 3)),
    }
    return Episode(f"episode-{number}", values, length=length, final_observation=final, **more)


def make_spec(schema: Schema | None = None, shard_size: int = 10**6, source: str = "abc", **more: Any) -> DatasetSpec:
    provenance = Provenance("test", source_name="made up", source_identity=source, shard_size=shard_size)
    return DatasetSpec(schema or make_schema(), "made-up", provenance, **more)


def write_dataset(path: Path, count: int = 3, spec: DatasetSpec | None = None, first: int = 0) -> Path:
    with Writer(path, spec or make_spec()) as writer:
        for number in range(first, first + count):
            writer.write(make_episode(number, length=4 + number % 3))
    return path


def shard_bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "data").iterdir())}


def jpeg(width: int, height: int, seed: int = 0, mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    out = io.BytesIO()
    coarse.convert(mode).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_pictures(root: Path, count: int = 6, classes: int = 2) -> Path:
    """Class folders with pictures of different sizes, one greyscale, one CMYK."""
    modes = ["RGB", "L", "CMYK"]
    for number in range(count):
        folder = root / f"n{number % classes:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        data = jpeg(40 + 5 * number, 60 + number, number, modes[number] if number < 3 else "RGB")
        (folder / f"picture_{number}.JPEG").write_bytes(data)
    return root


DIMS = {"door": (39, 28), "hammer": (46, 26), "pen": (45, 24), "relocate": (39, 30)}
QPOS = {"door": 30, "hammer": 33, "pen": 30, "relocate": 36}


def make_demonstrations(path: Path, task: str = "door", count: int = 2, length: int = 4) -> Path:
    """A pickle in DAPG's layout with small random motions."""
    rng = np.random.default_rng(7)
    obs_dim, action_dim = DIMS[task]
    scene = {
        "door": {"door_body_pos": np.array([-0.2, 0.3, 0.3])},
        "hammer": {"board_pos": np.array([0.05, 0.0, 0.2]), "target_pos": np.array([0.0, 0.0, 0.2])},
        "pen": {"desired_orien": np.array([1.0, 0.0, 0.0, 0.0])},
        "relocate": {"obj_pos": np.array([0.0, 0.0, 0.035]), "target_pos": np.array([0.1, 0.1, 0.25])},
    }[task]
    episodes = []
    for number in range(count):
        obs_TD = rng.normal(0, 0.05, (length + number, obs_dim))
        if task == "pen":
            obs_TD[:, 33:36] = obs_TD[:, 36:39] = (0.0, 0.0, 1.0)
        state = {"qpos": np.zeros(QPOS[task]), "qvel": np.zeros(QPOS[task]), **scene}
        episodes.append(
            {
                "observations": obs_TD,
                "actions": rng.uniform(-1, 1, (length + number, action_dim)),
                "rewards": rng.normal(size=length + number),
                "init_state_dict": state,
            }
        )
    path.write_bytes(pickle.dumps(episodes, protocol=3))
    return path


def run_cli(*arguments: object, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vrl3data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=240, check=False, **options)


@pytest.fixture
def real_data() -> Path:
    """The folder of real files; tests that use it carry the marker `realdata`."""
    folder = os.environ.get("VRL3DATA_TEST_DATA")
    if not folder:
        pytest.skip("VRL3DATA_TEST_DATA is not set")
    return Path(folder)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Whoever uses real files says so."""
    for item in items:
        uses: Callable[[], Any] = lambda item=item: getattr(item, "fixturenames", ())  # noqa: E731
        if "real_data" in uses() and item.get_closest_marker("realdata") is None:
            raise pytest.UsageError(f"{item.nodeid} uses real_data without the marker realdata")
