"""Class folders of pictures: ImageNet unpacked, Kaggle's layout of it, Tiny-ImageNet, anything like them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from converters.images.decode import SUFFIXES
from converters.images.labels import HINT, Labels
from converters.images.listing import Listing, Place
from vrl3data.errors import SourceError

SPLITS = ("train", "val", "test")
UNLABELLED = "images"
"""Tiny-ImageNet's folder of pictures that are in no class folder; without a table they have no label."""
KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
LOOKED_AT = 1000
FOREIGN = (".hdf5", ".h5", ".pickle", ".pkl", ".parquet", ".mp4", ".mcap", ".bag", ".db3", ".zarr")
"""Suffixes of other kinds: their folders may hold pictures as well."""


@dataclass(frozen=True)
class Entry:
    path: str
    size: int


def pictures_root(root: Path) -> Path:
    """Where the folders of the splits are: Kaggle puts them three deep."""
    return next((root / inner for inner in KAGGLE if (root / inner).is_dir()), root)


def list_files(root: Path, split: str, labels: Labels | None = None) -> tuple[Listing, int]:
    """All pictures in order of split and path, and how many other files there are. SourceError if none."""
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()}
    listing, others = Listing(), 0
    for name, folder in (folders or {split: root}).items():
        prefix = f"{name}/" if folders else ""
        annotated = _annotations(folder)
        for entry in walk(folder, ""):
            if not entry.path.lower().endswith(SUFFIXES):
                others += 1
                continue
            class_name = _class_of(entry.path, annotated, labels or Labels())
            if class_name is None:
                if name != "test":
                    hint = f"; {HINT}" if name == "val" else ""
                    raise SourceError(
                        f"picture {prefix}{entry.path} lies in no class folder; expected CLASS/{entry.path}{hint}"
                    )
                class_name = ""
            listing.add(Place(prefix + entry.path, 0, 0, entry.size, name, class_name))
    if not len(listing):
        raise SourceError(f"no pictures found; expected class folders with {', '.join(SUFFIXES)} files")
    return listing, others


def _class_of(path: str, annotated: dict[str, str], labels: Labels) -> str | None:
    """Tables go before folders. None if nothing says it."""
    folder, _, name = path.partition("/")
    said = annotated.get(path.rpartition("/")[2])
    if said:
        return said
    if not name:
        return labels.of(path)
    return (labels.of(path) or "") if folder == UNLABELLED else folder


def _annotations(folder: Path) -> dict[str, str]:
    """Tiny-ImageNet keeps the classes of its validation pictures in a table: file name, class, box."""
    table = folder / "val_annotations.txt"
    if not table.is_file():
        return {}
    rows = (line.split("\t") for line in table.read_text(encoding="utf-8", errors="replace").splitlines())
    return {row[0]: row[1] for row in rows if len(row) >= 2}


def walk(folder: Path, prefix: str) -> Iterator[Entry]:
    """Every file, sorted by name at each level. Hidden files, and links to a folder above, are passed over."""
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.is_symlink() and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(entry.path)):
                continue
            yield from walk(folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield Entry(prefix + entry.name, entry.stat().st_size)


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder in it, and near the top nothing that other kinds are made of."""
    tops = [folder, *(path for path in sorted(folder.iterdir())[:LOOKED_AT] if path.is_dir())]
    for path in (path for top in tops for path in islice(top.iterdir(), LOOKED_AT)):
        if path.suffix.lower() in FOREIGN or ".tfrecord" in path.name:
            return False
    return any(entry.path.lower().endswith(SUFFIXES) and "/" in entry.path for entry in walk(folder, ""))
