"""The episodes of a set as its metadata lists them: the same for all versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from converters.lerobot.info import Info
from converters.lerobot.paths import Folder
from vrl3data.errors import SourceError

MAX_STEPS = 2**31


@dataclass(frozen=True)
class Video:
    """Where the pictures of one camera in one episode begin. Names of files are relative to the set."""

    camera: str
    file: str
    first: int = 0
    """The frame of the file that belongs to the episode's first row."""
    alone: bool = True
    """The file holds this episode only."""


@dataclass(frozen=True)
class Entry:
    """One episode. Names of files are relative to the set."""

    index: int
    length: int
    data: tuple[str, ...]
    start: int = -1
    """Its first row in the data file if no column says it; -1: the column episode_index does."""
    videos: tuple[Video, ...] = ()
    tasks: tuple[str, ...] = ()
    stats: tuple[str, int] | None = None
    """(file, byte or row) where the set keeps statistics of this episode."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the metadata says of it."""

    @property
    def name(self) -> str:
        return f"episode_{self.index:06d}"


@dataclass
class Layout:
    """All of them, and what was wrong on the way."""

    info: Info
    folder: Folder
    entries: list[Entry] = field(default_factory=list)
    tasks: dict[int, str] = field(default_factory=dict)
    problems: list[tuple[str, SourceError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    meta: list[str] = field(default_factory=list)
    """Names of the files with metadata that were read."""
    stats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the whole set, as it states them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the set says of itself and no feature holds."""

    @contextmanager
    def collecting(self, name: str) -> Iterator[None]:
        """A SourceError inside becomes a problem of `name`."""
        try:
            yield
        except SourceError as error:
            self.problems.append((name, error))

    def finish(self) -> None:
        """In order of their numbers; a number that comes twice is a problem of its second holder."""
        unique: dict[int, Entry] = {}
        for entry in self.entries:
            if entry.index in unique:
                text = f"the number {entry.index} is given to two episodes; the first one is taken"
                self.problems.append((f"{entry.name} (again)", SourceError(text)))
            unique.setdefault(entry.index, entry)
        self.entries = [unique[index] for index in sorted(unique)]
        self._drop_cameras()
        said = self.info.total("episodes")
        here = len(self.entries) + len(self.problems)
        if said not in (-1, here):
            self.notes.append(f"info.json promises {said} episodes, the metadata lists {here}")
        last = max(unique, default=-1)
        if gaps := last + 1 - len(unique) - len(self.problems):
            self.notes.append(f"episode numbers run to {last} with {gaps} missing between") if gaps > 0 else None
        if self.folder.moved:
            self.notes.append("some files do not lie where the path template of info.json says; found by their names")

    def _drop_cameras(self) -> None:
        """A declared camera of which no file is there becomes no feature; files missing here and there are problems."""
        there = {video.camera for entry in self.entries for video in entry.videos if video.file}
        for camera in self.info.cameras:
            if camera.name not in there:
                self.notes.append(f"the camera {camera.name} is declared, but none of its videos is there: left out")
        kept = []
        for entry in self.entries:
            videos = tuple(video for video in entry.videos if video.camera in there)
            videos = tuple(video for video in videos if video.file or video.camera not in self.info.unwanted)
            missing = sorted(video.camera for video in videos if not video.file)
            with self.collecting(entry.name):
                if missing:
                    raise SourceError(
                        f"the video of {', '.join(missing)} is missing; fetch it, or ask for the other cameras only"
                    )
                kept.append(replace(entry, videos=videos))
        self.entries = kept


def whole(row: Mapping[str, Any], key: str, least: int = 0, most: int = MAX_STEPS) -> int:
    """A whole number in the metadata. SourceError if it is none, or absurd."""
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SourceError(f"{key}: expected a whole number from {least} to {most}, found {str(value)[:40]}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts, or one text."""
    items: Sequence[Any] = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    return tuple(str(item) for item in items)


def frame_at(seconds: Any, rate: Fraction) -> int:
    """The frame of a file at a time, from a float that may have been summed up."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < MAX_STEPS:
        raise SourceError(f"from_timestamp: expected seconds from the start of the video, found {seconds!r}")
    return round(Fraction(seconds) * rate)
