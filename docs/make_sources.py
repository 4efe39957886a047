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
from converters.base import find, recognise
from vrl3data import config
from vrl3data.errors import Vrl3dataError
from vrl3data.schema import Schema
from vrl3data.validation import validate

TARGET = Path(__file__).resolve().parent / "sources.md"
PATTERNS = (
    "adroit/*.pickle", "adroit/*.pkl", "adroit/expert_rollouts/*", "adroit/policies/*", "imagenet/*",
    "robomimic/*/*.hdf5", "lerobot/**/meta/info.json", "lerobot/**/meta_data", "rlds/*/*", "hdf5_generic/*", "csv/*",
    "mcap/*", "rosbag1/*", "ros2_db3/*",
)  # fmt: skip
COUNTED = ("adroit",)
"""Kinds of which a sample takes many seconds: tests/test_real.py converts some."""
FEW = {"imagenet": 50, "lerobot": 1, "hdf5": 10, "robomimic": 5, "rlds": 5}
"""Of these kinds so many samples are converted, the first ones; the rest is counted."""
OPTIONS: dict[str, dict[str, Any]] = {"adroit": {"image_size": 16, "render": "fast"}, "imagenet": {"image_size": 32}}
HEAD = """# What becomes of real files

Made by `docs/make_sources.py` from the files of the project's test data and checked by a test. "steps" counts actions;
of large sources the first samples were converted, the others counted. A file that cannot be converted says why.

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
        options = OPTIONS.get(kind, {})
        plan = find(kind)([source], config.build(find(kind).Options, options)).plan()
        if kind in COUNTED:
            return _row(name, kind, [f"{plan.count:,} {plan.spec.schema.kind} (counted)"], plan.spec.schema)
        receipt = vrl3data.convert(kind, source, dest, options, limit=FEW.get(kind), on_error="skip", overwrite=True)
    except Vrl3dataError as error:
        return f"| `{name}` |  | refused: {_cell(str(error).replace(str(root), ''))} |  |"
    found = receipt.manifest
    assert validate(dest).ok, f"{name}: what was made is not valid"
    whole = found.samples + len(receipt.skipped) == plan.count
    becomes = [
        f"{plan.count - len(receipt.skipped):,} {found.schema.kind}"
        + ("" if whole else f" ({found.samples} converted)")
    ]
    becomes += [f"{found.steps:,} steps"] if found.steps and whole else []
    becomes += [f"{len(found.schema['cls'].names):,} classes"] if found.schema.kind == "images" else []
    becomes += [f"skipped {_cell(entry['source'])}: {_cell(entry['reason'])}" for entry in receipt.skipped[:2]]
    return _row(name, kind, becomes, found.schema)


def _row(name: str, kind: str, becomes: list[str], schema: Schema) -> str:
    features = [f"`{item.name}` {'x'.join(map(str, item.shape))}".rstrip() for item in schema.features]
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
