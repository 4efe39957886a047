"""What all converters of pictures share: options, the schema, and the way from the bytes of a file to a sample."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from converters.base import Plan, Unit, check_shared, loss_note, relative_names, source_identity
from converters.images.decode import FITS, MAX_BYTES, Fit, check_decoder, checked_jpeg, has_torchvision
from converters.images.listing import Listing, Place
from vrl3data import codecs
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema

BATCH, BATCH_BYTES = 64, 8 * 1024**2
"""Units of a batch at most, and what their files may have in all: three batches of each process may wait."""
TORCHVISION_FROM = 4 * 1024**3
"""Bytes of all pictures from which on `auto` takes torchvision, whose start takes seconds and 0.4 GB a process."""
MAX_SIZE = 4096
VERSION = 2
"""Of the converters; 1 did not undo EXIF orientations and decoded large files whole."""
MAX_CLASSES = 65_536
"""Where labels are numbers; larger ones are taken for names."""
SPLIT = re.compile(r"(?:^|[/_.-])(train|training|val|valid|validation|dev|test)(?=[/_.-])")
SAID_PROBLEMS = 100
"""Members of archives that cannot be used are named one by one up to here."""


@dataclass(frozen=True)
class PictureOptions:
    """`image_size` is the shorter side (`shorter`) or both sides (`crop`, `pad`, `squash`), in pixels."""

    image_size: int = 128
    fit: Literal["shorter", "crop", "pad", "squash", "none", "square"] = "shorter"
    decoder: Literal["auto", "pillow", "torchvision"] = "auto"
    codec: str = ""
    split: str = "train"
    name: str = ""
    license: str = "unknown"
    shard_size: int = SHARD_SIZE


@dataclass(frozen=True)
class Found:
    """What a source holds. `classes` in the order of labels; `files` are (name, size) of what samples are made from."""

    listing: Listing
    classes: tuple[str, ...]
    files: Sequence[tuple[str, int]] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[tuple[str, SourceError], ...] = ()
    find: Callable[[str], Path] | None = None
    numbers: bool = False
    """The names of classes in the listing are labels already, in decimal."""


@dataclass
class Handles:
    """Files that are held open for reading at any place. They do not travel to other processes."""

    open_files: dict[Path, int] = field(default_factory=dict)

    def file(self, path: Path) -> int:
        """SourceError if the disk says no."""
        if path not in self.open_files:
            try:
                self.open_files[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise SourceError(f"cannot read: {error.strerror or error}") from error
        return self.open_files[path]

    def read(self, path: Path, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self.file(path), size, offset)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror or error}") from error
        if len(data) < size:
            raise SourceError(f"expected {size} bytes, found {len(data)}: the file was cut off meanwhile")
        return data

    def close(self) -> None:
        for file in self.open_files.values():
            os.close(file)
        self.open_files = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"open_files": {}}


class PictureConverter(ABC):
    """A kind is a subclass that finds pictures (`find`) and fetches the bytes of one (`fetch`)."""

    Options = PictureOptions
    kind = ""

    def __init__(self, sources: Sequence[Path], options: PictureOptions) -> None:
        if not 1 <= options.image_size <= MAX_SIZE:
            raise ConfigError(f"image_size: expected 1 to {MAX_SIZE}, found {options.image_size}")
        check_shared(options.split, options.shard_size)
        check_decoder(options.decoder)
        name = "crop" if options.fit == "square" else options.fit
        if name not in FITS:
            raise ConfigError(f"fit: expected {', '.join(FITS)}, found {options.fit!r}")
        if name == "none" and options.image_size != PictureOptions.image_size:
            raise ConfigError("fit 'none' copies the files, so image_size does nothing: leave one of them out")
        self.sources, self.options, self.handles = [Path(source) for source in sources], options, Handles()
        self.fit = Fit(name, options.image_size)
        self.codec = options.codec or {"shorter": "jpeg:95", "none": "jpeg"}.get(name, "raw")
        if (name == "none") != (self.codec == "jpeg"):
            raise ConfigError(
                f"fit {name!r} does not go with codec {self.codec!r}: none copies JPEG files, the others encode"
            )

    @abstractmethod
    def find(self) -> Found:
        """Every picture, none of them read."""

    @abstractmethod
    def fetch(self, place: Place) -> tuple[bytes, Mapping[str, Any]]:
        """The bytes of a picture file and what else the source says of it. SourceError."""

    def source_of(self, place: Place) -> str:
        """What a sample states as its source."""
        return place.name

    def plan(self) -> Plan:
        found = self.find()
        total = found.listing.bytes(MAX_BYTES)
        decoder = self.options.decoder
        if decoder == "auto":
            decoder = "torchvision" if total >= TORCHVISION_FROM and has_torchvision() else "pillow"
        self.fit = Fit(self.fit.name, self.fit.size, "pillow" if self.fit.name == "none" else decoder)
        batch = min(BATCH, max(1, BATCH_BYTES * len(found.listing) // max(total, 1)))
        notes = found.notes
        if len(found.classes) == 1:
            notes += (f"there is one class only, {found.classes[0]!r}: SOURCE is what holds all classes",)
        picture = self._spec(found).schema["image"]
        notes += () if picture.lossless or picture.codec == "jpeg" else (loss_note(picture),)
        return Plan(
            self._spec(found), Units(found), len(found.listing), batch, notes, found.find, _shortened(found.problems)
        )

    def read(self, unit: Unit) -> Episode:
        place, label, class_name = unit.payload
        with locate(path=self.source_of(place)):
            if place.size > MAX_BYTES:
                raise SourceError(f"a picture file of {place.size} bytes; at most {MAX_BYTES} are read")
            data, said = self.fetch(place)
            image: bytes | Array
            image, turn = checked_jpeg(data) if self.fit.name == "none" else self.fit.pixels(data)
        return Episode(
            name=unit.name,
            values={"image": image, "cls": np.array([label], np.int64)},
            label=label,
            class_name=class_name,
            split=place.split,
            source=self.source_of(place),
            source_sha256=hashlib.sha256(data).hexdigest(),
            origin="web",
            source_meta={**said, **({"exif_orientation": turn} if turn != 1 else {})},
        )

    def close(self) -> None:
        self.handles.close()

    def _spec(self, found: Found) -> DatasetSpec:
        options, fit, size = self.options, self.fit, self.fit.size
        shape = (-1, -1, 3) if fit.name in ("shorter", "none") else (size, size, 3)
        image = Feature("image", "uint8", shape, "episode", color="rgb", flip="none", fit=fit.name)
        label = Feature("cls", "int64", (), "episode", codec="text", names=found.classes)
        source_name = self.sources[0].resolve().name
        versions = {"pillow": PIL.__version__}
        if fit.decoder == "torchvision":
            versions |= _torch_versions()
        provenance = Provenance(
            converter=self.kind,
            converter_version=VERSION,
            source_name=source_name,
            source_identity=source_identity(found.files),
            source_files=len(found.files),
            source_bytes=sum(size for _, size in found.files),
            options=self._content_options(),
            versions=versions,
            shard_size=options.shard_size,
        )
        name = options.name or f"{self.kind}-{source_name.partition('.')[0].lower()}"
        schema = Schema("images", (codecs.describe(image, self.codec), label))
        return DatasetSpec(schema, name, provenance, options.license)

    def _content_options(self) -> dict[str, Any]:
        ours = {"image_size": self.fit.size, "fit": self.fit.name, "decoder": self.fit.decoder}
        shared = set(asdict(PictureOptions()))
        own = {key: value for key, value in asdict(self.options).items() if key not in shared}
        return {**ours, "split": self.options.split, **own}


@dataclass(frozen=True)
class Units:
    """Made when they are asked for, any number of times."""

    found: Found

    def __len__(self) -> int:
        return len(self.found.listing)

    def __iter__(self) -> Iterator[Unit]:
        classes = self.found.classes
        labels = {name: label for label, name in enumerate(classes)} | {"": -1}
        for place in self.found.listing:
            if self.found.numbers:
                label = int(place.class_name or -1)
                name = classes[label] if 0 <= label < len(classes) else ""
                yield Unit(place.name, (place, label, name))
            else:
                yield Unit(place.name, (place, labels[place.class_name], place.class_name))


def named(listing: Listing, names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], bool]:
    """(classes in the order of their labels, whether the listing has labels and not names).

    Labels without names are called by their numbers.
    """
    found = set(listing.classes) - {""}
    if names:
        return names, True
    if all(name.isdecimal() for name in found) and max(map(int, found), default=0) < MAX_CLASSES:
        return tuple(map(str, range(1 + max(map(int, found), default=-1)))), True
    return tuple(sorted(found)), False


def gathered(sources: Sequence[Path], listed: Callable[[Path], list[tuple[str, Path]]]) -> list[tuple[str, Path]]:
    """(name, file) of all that the sources hold. The name begins with that of the source where it must."""
    found = [listed(source) for source in sources]
    names = [name for files in found for name, _ in files]
    if len(set(names)) < len(names):
        tops = relative_names(sources)
        found = [
            [(f"{top}/{name}" if source.is_dir() else top, path) for name, path in files]
            for source, top, files in zip(sources, tops, found, strict=True)
        ]
    return [file for files in found for file in files]


def split_of(name: str, otherwise: str) -> str:
    """What the name of a file says of its split; the last word of it counts."""
    return next((found[1] for found in reversed([*SPLIT.finditer(name)])), otherwise)


def _shortened(problems: Sequence[tuple[str, SourceError]]) -> tuple[tuple[str, SourceError], ...]:
    more = len(problems) - SAID_PROBLEMS
    if more <= 0:
        return tuple(problems)
    last = SourceError(f"and {more} more that cannot be used, for reasons like these")
    return (*problems[:SAID_PROBLEMS], ("...", last))


def _torch_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "torchvision")}
