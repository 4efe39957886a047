"""Tar files as webdataset keeps them: KEY.jpg, KEY.cls and KEY.json are one sample -> a dataset of kind `images`."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.base import check_exists
from converters.images.decode import SUFFIXES
from converters.images.listing import Listing, Place
from converters.images.pictures import Found, PictureConverter, PictureOptions, gathered, named, split_of
from converters.images.tars import Blocks, Member, members
from vrl3data.errors import SourceError, locate

MAX_TEXT = 1024**2
"""Of the .cls or .json of a sample."""
OURS = "this is a dataset of ours already: vrl3data merge joins datasets, vrl3data recode stores one anew"
LABEL_KEYS = ("label", "cls")
PEEKED = 64


@dataclass
class _Sample:
    """What a key holds: ending -> member."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)


class WebdatasetConverter(PictureConverter):
    """Tar files of KEY.jpg|png|webp with KEY.cls (a number or a name), perhaps KEY.json; not datasets of ours."""

    kind = "webdataset"

    def __init__(self, sources: Sequence[Path], options: PictureOptions) -> None:
        super().__init__(sources, options)
        self.tars: list[tuple[str, Path]] = []

    @staticmethod
    def recognises(source: Path) -> bool:
        if (source / "dataset.json").exists():
            return False
        tar = next((path for _, path in tar_files(source)), None)
        return tar is not None and _looks_right(tar)

    def find(self) -> Found:
        for source in self.sources:
            check_exists(source)
            with locate(path=source):
                if (source / "dataset.json").exists():
                    raise SourceError(OURS)
        self.tars = gathered(self.sources, tar_files)
        if not self.tars:
            with locate(path=self.sources[0]):
                raise SourceError(
                    "no .tar files found; unpack .tar.gz with gunzip first, for it cannot be read in places"
                )
        listing, problems, left_out = Listing(), list[tuple[str, SourceError]](), Counter[str]()
        for number in range(len(self.tars)):
            self._index(number, listing, problems, left_out)
        for name in listing.drop_repeated():
            problems.append((name, SourceError(f"the key {name!r} is there more than once; the first one counts")))
        if not len(listing):
            if problems:
                raise problems[0][1]
            with locate(path=self.sources[0]):
                raise SourceError(f"no pictures found; expected members KEY{', KEY'.join(SUFFIXES)}")
        notes = [f"{count} members .{suffix} were left out" for suffix, count in sorted(left_out.items())]
        if not set(listing.classes) - {""}:
            notes.append("no picture has a label: there is neither a .cls nor a label in the .json")
        files = [(name, path.stat().st_size) for name, path in self.tars]
        classes, numbers = named(listing)
        return Found(listing, classes, files, tuple(notes), tuple(problems), numbers=numbers)

    def _index(
        self, number: int, listing: Listing, problems: list[tuple[str, SourceError]], left_out: Counter[str]
    ) -> None:
        name, path = self.tars[number]
        split = split_of(name, self.options.split)
        try:
            with locate(path=name):
                file = self.handles.file(path)
                blocks = Blocks(file, 0, os.fstat(file).st_size)
                for sample in _samples(blocks, name, problems):
                    picture = next((end for end in sample.parts if f".{end.rpartition('.')[2]}" in SUFFIXES), None)
                    left_out.update(end for end in sample.parts if end not in (picture, "cls", "json"))
                    if picture is None:
                        left_out.update(end for end in sample.parts if end in ("cls", "json"))
                        continue
                    member, said = sample.parts[picture], sample.parts.get("json")
                    key = f"{name.removesuffix('.tar')}/{sample.key}"
                    try:
                        with locate(path=f"{name}/{sample.key}", offset=member.offset):
                            class_name = _label(blocks, sample)
                    except SourceError as error:
                        problems.append((key, error))
                        continue
                    more = (said.offset, said.size) if said else (0, 0)
                    listing.add(Place(key, number, member.offset, member.size, split, class_name, more))
        except SourceError as error:
            if error.message == OURS:
                raise
            problems.append((name, error))

    def fetch(self, place: Place) -> tuple[bytes, Mapping[str, Any]]:
        path = self.tars[place.file][1]
        offset, size = place.more
        said = _parsed(self.handles.read(path, offset, size)) if size else {}
        return self.handles.read(path, place.offset, place.size), said

    def source_of(self, place: Place) -> str:
        name = self.tars[place.file][0]
        return f"{name}{place.name[len(name) - len('.tar') :]}"


def tar_files(source: Path) -> list[tuple[str, Path]]:
    """(name relative to the source, file), sorted; of a folder, those in it and one level below."""
    if not source.is_dir():
        return [(source.name, source)] if source.suffix == ".tar" and source.is_file() else []
    found = [*source.glob("*.tar"), *source.glob("*/*.tar")]
    return sorted((path.relative_to(source).as_posix(), path) for path in found if path.is_file())


def _looks_right(tar: Path) -> bool:
    """Whether a picture and its label or text share a key among the first members."""
    file = os.open(tar, os.O_RDONLY)
    try:
        ends: dict[str, set[str]] = {}
        for number, member in enumerate(members(Blocks(file, 0, os.fstat(file).st_size))):
            if member.name == "__meta__" or number >= PEEKED:
                break
            key, end = split_name(member.name)
            ends.setdefault(key, set()).add(end)
    except SourceError:
        return False
    finally:
        os.close(file)
    pictures = [found for found in ends.values() if any(f".{end}" in SUFFIXES for end in found)]
    return any(found & {"cls", "json", "txt"} for found in pictures)


def split_name(name: str) -> tuple[str, str]:
    """(key, ending): the ending begins after the first dot of the file's own name."""
    folder, slash, base = name.rpartition("/")
    key, _, end = base.partition(".")
    return f"{folder}{slash}{key}", end.lower()


def _samples(blocks: Blocks, name: str, problems: list[tuple[str, SourceError]]) -> Iterator[_Sample]:
    """Neighbouring members of one key. A member that may not be used is a problem of its own."""
    current: _Sample | None = None
    for number, member in enumerate(members(blocks)):
        if number == 0 and member.name == "__meta__":
            raise SourceError(OURS)
        if member.problem:
            error = SourceError(member.problem)
            problems.append((f"{name}/{member.name}", error))
            continue
        key, end = split_name(member.name)
        if current is None or key != current.key:
            if current is not None:
                yield current
            current = _Sample(key)
        current.parts[end] = member
    if current is not None:
        yield current


def _label(blocks: Blocks, sample: _Sample) -> str:
    """What .cls says, else the label in .json; empty if neither does, or if it is a number below 0."""
    member = sample.parts.get("cls") or sample.parts.get("json")
    if member is None:
        return ""
    if member.size > MAX_TEXT:
        raise SourceError(f"the label or text of {sample.key!r} has {member.size} bytes; at most {MAX_TEXT} are read")
    data = blocks.read(member.offset, member.size)
    if "cls" in sample.parts:
        return _checked(data.decode("utf-8", "replace").strip())
    said = _parsed(data)
    found = next((said[key] for key in LABEL_KEYS if isinstance(said.get(key), (int, str))), "")
    return _checked(str(found).strip())


def _checked(label: str) -> str:
    if _is_number(label):
        return "" if int(label) < 0 else str(int(label))
    if len(label) > 200 or not label.isprintable():
        raise SourceError(f"expected a label, a number or a name, found {label[:40]!r}")
    return label


def _is_number(label: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,18}", label) is not None


def _parsed(data: bytes) -> dict[str, Any]:
    """A JSON object; anything else is kept under a name of ours."""
    if len(data) > MAX_TEXT:
        raise SourceError(f"a .json of {len(data)} bytes; at most {MAX_TEXT} are read")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"the .json of this sample is broken: {error}") from error
    return said if isinstance(said, dict) else {"json": said}
