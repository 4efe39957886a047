"""ImageNet and other class folders of pictures -> a dataset of kind `images`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from converters.base import Plan, Unit, check_exists, check_shared, read_bytes, source_identity
from vrl3data import codecs
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""What a picture may be, whatever its name: other readers of Pillow start programs or are little used."""
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
SPLITS = ("train", "val", "test")
UNLABELLED = "images"
"""Tiny-ImageNet's folder of pictures that are in no class folder; without a table they have no label."""
BATCH = 64
MAX_SIZE = 4096


@dataclass(frozen=True)
class ImagenetOptions:
    """`image_size` is the shorter side (`shorter`) or both sides (`square`), in pixels."""

    image_size: int = 128
    fit: Literal["shorter", "square", "none"] = "shorter"
    codec: str = ""
    split: str = "train"
    name: str = ""
    license: str = "unknown"
    shard_size: int = SHARD_SIZE


@dataclass(frozen=True)
class _File:
    """One picture: its path under the source, its size in bytes, and what it is a picture of."""

    path: str
    size: int
    split: str
    class_name: str


class ImagenetConverter:
    """Class folders of JPEG pictures of any size, greyscale and CMYK too (ImageNet, Tiny-ImageNet, ...)."""

    Options = ImagenetOptions

    def __init__(self, sources: Sequence[Path], options: ImagenetOptions) -> None:
        if len(sources) != 1:
            raise ConfigError(f"imagenet: expected one folder, found {len(sources)} sources")
        if not 1 <= options.image_size <= MAX_SIZE:
            raise ConfigError(f"image_size: expected 1 to {MAX_SIZE}, found {options.image_size}")
        check_shared(options.split, options.shard_size)
        if options.fit not in ("shorter", "square", "none"):
            raise ConfigError(f"fit: expected shorter, square or none, found {options.fit!r}")
        self.root, self.options = Path(sources[0]), options
        default = {"shorter": "jpeg:95", "square": "raw", "none": "jpeg"}[options.fit]
        self.codec = options.codec or default
        if (options.fit == "none") != (self.codec == "jpeg"):
            raise ConfigError(
                f"fit {options.fit!r} does not go with codec {self.codec!r}: none copies JPEG files, the others encode"
            )

    @staticmethod
    def recognises(source: Path) -> bool:
        return source.is_dir() and next(_pictures(source, ""), None) is not None

    def plan(self) -> Plan:
        check_exists(self.root)
        with locate(path=self.root):
            if not self.root.is_dir():
                raise SourceError("expected a folder of class folders, found a file")
            files, ignored = list_files(self.root, self.options.split)
        classes = sorted({file.class_name for file in files} - {""})
        labels = {name: label for label, name in enumerate(classes)} | {"": -1}
        units = (Unit(file.path, (file, labels[file.class_name])) for file in files)
        notes: tuple[str, ...] = (f"{ignored} files that are not pictures were left out",) if ignored else ()
        if len(classes) == 1:
            notes += (f"there is one class only, {classes[0]!r}: SOURCE is the folder that holds the class folders",)
        return Plan(self._spec(files, classes), units, len(files), BATCH, notes, find=lambda name: self.root / name)

    def read(self, unit: Unit) -> Episode:
        file, label = unit.payload
        with locate(path=file.path):
            data = read_bytes(self.root / file.path)
            image: bytes | Array = checked_jpeg(data) if self.codec == "jpeg" else self._pixels(data)
        return Episode(
            name=unit.name,
            values={"image": image, "cls": np.array([label], np.int64)},
            label=label,
            class_name=file.class_name,
            split=file.split,
            source=file.path,
            source_sha256=hashlib.sha256(data).hexdigest(),
            origin="web",
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _pixels(self, data: bytes) -> Array:
        picture = decode(data)
        fitted = fit_square(picture, self.options.image_size) if self.options.fit == "square" else None
        return np.asarray(fitted or fit_shorter(picture, self.options.image_size))[None]

    def _spec(self, files: list[_File], classes: list[str]) -> DatasetSpec:
        options, size = self.options, self.options.image_size
        shape = (size, size, 3) if options.fit == "square" else (-1, -1, 3)
        image = Feature("image", "uint8", shape, "episode", color="rgb", flip="none", fit=options.fit)
        label = Feature("cls", "int64", (), "episode", codec="text", names=tuple(classes))
        provenance = Provenance(
            converter="imagenet",
            source_name=self.root.resolve().name,
            source_identity=source_identity((file.path, file.size) for file in files),
            source_files=len(files),
            source_bytes=sum(file.size for file in files),
            options={key: asdict(options)[key] for key in ("image_size", "fit", "split")},
            versions={"pillow": PIL.__version__},
            shard_size=options.shard_size,
        )
        name = options.name or f"imagenet-{self.root.resolve().name.lower()}"
        schema = Schema("images", (codecs.describe(image, self.codec), label))
        return DatasetSpec(schema, name, provenance, options.license)


def list_files(root: Path, split: str) -> tuple[list[_File], int]:
    """All pictures in order of split and path, and how many other files there are. SourceError if none."""
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()}
    files, others = [], 0
    for name, folder in (folders or {split: root}).items():
        prefix = f"{name}/" if folders else ""
        annotated = _annotations(folder)
        for path, size in _walk(folder, ""):
            if not path.lower().endswith(SUFFIXES):
                others += 1
                continue
            folder_name = path.partition("/")[0]
            class_name = annotated.get(path.rpartition("/")[2]) or ("" if folder_name == UNLABELLED else folder_name)
            if "/" not in path:
                raise SourceError(f"picture {prefix}{path} lies in no class folder; expected CLASS/{path}")
            files.append(_File(prefix + path, size, name, class_name))
    if not files:
        raise SourceError(f"no pictures found; expected class folders with {', '.join(SUFFIXES)} files")
    return files, others


def _annotations(folder: Path) -> dict[str, str]:
    """Tiny-ImageNet keeps the classes of its validation pictures in a table: file name, class, box."""
    table = folder / "val_annotations.txt"
    if not table.is_file():
        return {}
    rows = (line.split("\t") for line in table.read_text(encoding="utf-8", errors="replace").splitlines())
    return {row[0]: row[1] for row in rows if len(row) >= 2}


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """(relative path, size) of every file, sorted by name at each level. Hidden files are passed over."""
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield prefix + entry.name, entry.stat().st_size


def _pictures(folder: Path, prefix: str) -> Iterator[str]:
    return (path for path, _ in _walk(folder, prefix) if path.lower().endswith(SUFFIXES) and "/" in path)


def decode(data: bytes) -> Image.Image:
    """An RGB picture from a file of one of FORMATS; SourceError if it is another, broken, cut off or a bomb."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, NotImplementedError, Image.DecompressionBombError) as error:
        raise SourceError(f"not a readable picture: {_reason(error, data)}") from error


def checked_jpeg(data: bytes) -> bytes:
    """`data` itself if it is a whole JPEG file."""
    if not data.startswith(b"\xff\xd8"):
        raise SourceError("not a JPEG file; --fit none copies JPEG files, --fit shorter reads others too")
    decode(data)
    return data


def fit_shorter(picture: Image.Image, size: int) -> Image.Image:
    """Shorter side = `size`, antialiased; smaller pictures are never enlarged."""
    scale = size / min(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(size, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """The central square, resized to `size` x `size`, antialiased; smaller pictures are enlarged."""
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"the file begins with {data[:12]!r}"
    return str(error)
