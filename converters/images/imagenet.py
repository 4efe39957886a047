"""ImageNet as it is downloaded or unpacked, and other class folders of pictures -> a dataset of kind `images`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.base import check_exists, placed, read_bytes
from converters.images.decode import SUFFIXES
from converters.images.folders import holds_pictures, list_files, pictures_root
from converters.images.labels import KAGGLE, Labels, is_labels, read_labels
from converters.images.listing import Listing, Place
from converters.images.pictures import Found, PictureConverter, PictureOptions
from converters.images.tars import Blocks, Member, members
from vrl3data.errors import ConfigError, SourceError, locate

OFFICIAL = re.compile(r"ILSVRC\d+_img_(train|val|test).*\.tar")
WNID = re.compile(r"n\d{8}")
TASK3 = re.compile(r".*_t3\.tar")
"""Pictures of dogs that are in the large file as well."""
NO_LABELS = (
    "the validation pictures have no classes in their own archive: give the devkit (ILSVRC2012_devkit_t12.tar.gz) as "
    f"one more source, or put it, or {KAGGLE}, into the same folder"
)


class ImagenetConverter(PictureConverter):
    """Class folders of pictures (ImageNet, Tiny-ImageNet, Kaggle's layout, ...), and the tar files of ILSVRC2012."""

    kind = "imagenet"

    def __init__(self, sources: Sequence[Path], options: PictureOptions) -> None:
        super().__init__(sources, options)
        given = [source for source in self.sources if not is_labels(source)]
        folders = [source for source in given if source.is_dir()]
        if len(folders) > 1 or (folders and len(given) > 1):
            raise ConfigError(f"imagenet: expected one folder, found {len(given)} sources; or the tar files of ILSVRC")
        if not given:
            raise ConfigError("imagenet: expected a folder or tar files of pictures, found only tables of classes")
        self.given, self.tables = given, [source for source in self.sources if is_labels(source)]
        self.root, self.tars = given[0], list[Path]()

    @staticmethod
    def recognises(source: Path) -> bool:
        if source.is_dir():
            return bool(_official(source)) or holds_pictures(source)
        return OFFICIAL.fullmatch(source.name) is not None and source.is_file()

    def find(self) -> Found:
        for source in self.sources:
            check_exists(source)
        with locate(path=self.root):
            if self.root.is_dir():
                self.tars = _official(self.root)
                self.tables += _tables(self.root)
            else:
                self.tars = sorted(self.given, key=lambda path: (_order(path), path.name))
                wrong = [path for path in self.tars if path.suffix != ".tar"]
                if wrong:
                    raise SourceError(f"expected a folder of class folders, found a file: {wrong[0].name}")
        labels = read_labels(self.tables)
        return self._find_in_tars(labels) if self.tars else self._find_in_folder(labels)

    def _find_in_folder(self, labels: Labels) -> Found:
        with locate(path=self.root):
            self.root = pictures_root(self.root)
            listing, others = list_files(self.root, self.options.split, labels)
        notes = (f"{others} files that are not pictures were left out",) if others else ()
        classes = tuple(sorted((set(listing.classes) | labels.classes) - {""}))
        files = [(place.name, place.size) for place in listing]
        return Found(listing, classes, files, notes, find=lambda name: self.root / name)

    def _find_in_tars(self, labels: Labels) -> Found:
        listing, problems, others = Listing(), list[tuple[str, SourceError]](), 0
        for number in range(len(self.tars)):
            others += self._index(number, labels, listing, problems)
        for name in listing.drop_repeated():
            problems.append((name, SourceError(f"{name} is there more than once; the first one counts")))
        if not len(listing):
            if problems:
                raise problems[0][1]
            with locate(path=self.root):
                raise SourceError(f"no pictures found; expected {', '.join(SUFFIXES)} members, or tar files of them")
        notes = (f"{others} members that are not pictures were left out",) if others else ()
        classes = tuple(sorted((set(listing.classes) | labels.classes) - {""}))
        files = [(path.name, path.stat().st_size) for path in self.tars]
        return Found(listing, classes, files, notes, tuple(problems))

    def _index(self, number: int, labels: Labels, listing: Listing, problems: list[tuple[str, SourceError]]) -> int:
        """Adds the pictures of a tar file; returns how many other members it has."""
        path, others = self.tars[number], 0
        official = _split(path)
        split = official or self.options.split

        def add(member: Member, inner: str) -> None:
            nonlocal others
            if member.problem:
                problems.append(
                    (f"{inner}{member.name}", placed(SourceError(member.problem), path=path.name, offset=member.offset))
                )
            elif not member.name.lower().endswith(SUFFIXES):
                others += 1
            else:
                said = inner.rpartition("/")[0] or member.name.rpartition("/")[0].rpartition("/")[2]
                named = WNID.fullmatch(said) if official else said not in ("", "val", "test")
                class_name = labels.of(member.name) or (said if named else "")
                if not class_name and split != "test":
                    raise SourceError(NO_LABELS if split == "val" else f"{member.name!r} is in no class; {NO_LABELS}")
                name = f"{split}/{class_name}/{member.name.rpartition('/')[2]}" if inner else f"{split}/{member.name}"
                listing.add(Place(name, number, member.offset, member.size, split, class_name))

        def walk(blocks: Blocks, inner: str) -> None:
            try:
                with locate(path=f"{path.name}/{inner}".rstrip("/")):
                    for member in members(blocks):
                        if not inner and member.name.endswith(".tar") and not member.problem:
                            stem = member.name.rpartition("/")[2].removesuffix(".tar")
                            walk(Blocks(blocks.file, member.offset, member.offset + member.size), f"{stem}/")
                        else:
                            add(member, inner)
            except SourceError as error:
                if error.message.endswith(NO_LABELS):
                    raise
                problems.append((f"{path.name}/{inner}".rstrip("/"), error))

        with locate(path=path.name):
            file = self.handles.file(path)
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError("expected a file, found a directory or a device")
        walk(Blocks(file, 0, status.st_size), "")
        return others

    def fetch(self, place: Place) -> tuple[bytes, Mapping[str, Any]]:
        if self.tars:
            return self.handles.read(self.tars[place.file], place.offset, place.size), {}
        return read_bytes(self.root / place.name), {}

    def source_of(self, place: Place) -> str:
        return f"{self.tars[place.file].name}/{place.name.partition('/')[2]}" if self.tars else place.name


def _official(folder: Path) -> list[Path]:
    """The archives of ILSVRC in a folder, train first."""
    found = [item for item in folder.iterdir() if OFFICIAL.fullmatch(item.name) and not TASK3.fullmatch(item.name)]
    return sorted(found, key=lambda path: (_order(path), path.name))


def _tables(folder: Path) -> list[Path]:
    """Tables of classes that lie beside the pictures."""
    names = (KAGGLE, "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12")
    return [folder / name for name in names if (folder / name).exists() and is_labels(folder / name)]


def _split(path: Path) -> str:
    found = OFFICIAL.fullmatch(path.name)
    return found[1] if found else ""


def _order(path: Path) -> int:
    split = _split(path)
    return ("train", "val", "test").index(split) if split else 3
