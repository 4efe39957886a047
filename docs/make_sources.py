"""Writes docs/sources.md: what becomes of real files. `VRL3DATA_TEST_DATA=... python docs/make_sources.py`.

The files themselves are not part of this project; tests/test_sources.py compares the page with what they become today.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import vrl3data
from converters.base import recognise
from vrl3data.errors import Vrl3dataError
from vrl3data.validation import validate

TARGET = Path(__file__).resolve().parent / "sources.md"
PATTERNS = (
    "adroit/*.pickle", "adroit/*.pkl", "adroit/expert_rollouts/*", "adroit/policies/*", "imagenet/*",
    "robomimic/*/*.hdf5", "lerobot/**/meta/info.json", "lerobot/**/meta_data", "rlds/*/*", "hdf5_generic/*", "csv/*",
    "mcap/*", "rosbag1/*", "ros2_db3/*",
)  # fmt: skip
FEW = {"adroit": 1}
"""Kinds whose samples take seconds each: so many are converted, the rest is counted."""
OPTIONS: dict[str, dict[str, Any]] = {"adroit": {"image_size": 16, "render": "fast"}, "imagenet": {"image_size": 32}}
HEAD = """# What becomes of real files

Made by `docs/make_sources.py` from the files of the project's test data and checked by a test. "steps" counts actions.
A file that cannot be converted says why; nothing is left behind then.

| source | kind | becomes | features |
|---|---|---|---|
"""
SHOWN = 6


def sources(root: Path) -> list[Path]:
    """Every file or folder that somebody would give to `vrl3data convert`."""
    found = {path for pattern in PATTERNS for path in root.glob(pattern)}
    places = {path.parent.parent if path.name == "info.json" else path for path in found}
    return sorted(path.parent if path.name == "meta_data" else path for path in places)


def row(root: Path, source: Path, scratch: Path) -> str:
    name = source.relative_to(root).as_posix()
    try:
        kind = recognise(source)
        dest = scratch / "out"
        receipt = vrl3data.convert(kind, source, dest, OPTIONS.get(kind, {}), limit=FEW.get(kind), on_error="skip",
                                   overwrite=True, jobs=2)  # fmt: skip
    except Vrl3dataError as error:
        return f"| `{name}` |  | refused: {_cell(str(error).replace(str(root), ''))} |  |"
    found = receipt.manifest
    assert validate(dest).ok, f"{name}: what was made is not valid"
    becomes = [f"{found.samples:,} {found.schema.kind}" + (" (the first)" if kind in FEW else "")]
    becomes += [f"{found.steps:,} steps"] if found.steps else []
    becomes += [f"{len(found.schema['cls'].names):,} classes"] if found.schema.kind == "images" else []
    becomes += [f"skipped {_cell(entry['source'])}: {_cell(entry['reason'])}" for entry in receipt.skipped[:2]]
    features = [f"`{item.name}` {'x'.join(map(str, item.shape))}".rstrip() for item in found.schema.features]
    more = [f"and {len(features) - SHOWN} more"] if len(features) > SHOWN else []
    return f"| `{name}` | {kind} | {', '.join(becomes)} | {', '.join([*features[:SHOWN], *more])} |"


def text(root: Path) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        return HEAD + "\n".join(row(root, source, Path(scratch)) for source in sources(root)) + "\n"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    if "VRL3DATA_TEST_DATA" not in os.environ:
        sys.exit("VRL3DATA_TEST_DATA: expected the folder of the test data")
    TARGET.write_text(text(Path(os.environ["VRL3DATA_TEST_DATA"])), encoding="utf-8")
