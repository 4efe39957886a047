"""Where the files of a set lie: path templates from outside, and files that are not where the template says."""

from __future__ import annotations

import os
import re
import string
from functools import cached_property
from pathlib import Path

from vrl3data.errors import SourceError, locate

KEYS = ("episode_chunk", "episode_index", "chunk_index", "file_index", "video_key")
_SPEC = re.compile(r"(0?[1-9]?\d?d?)")
MAX_FILES = 2_000_000


class Template:
    """`data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`: known words and widths, nothing else.

    SourceError for anything that could reach out of the folder or into an object.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise SourceError(f"the path template {text!r} cannot be read: {error}") from error
        for _, word, spec, conversion in parts:
            if word is None:
                continue
            known = word in KEYS and not conversion and _SPEC.fullmatch(spec or "")
            if not known or (word == "video_key" and spec):
                raise SourceError(
                    f"the path template {text[:120]!r} asks for {word[:60]!r}; only {', '.join(KEYS)} are filled in"
                )
        check_relative(self.fill("video", dict.fromkeys(KEYS[:-1], 0)))

    def fill(self, video_key: str, numbers: dict[str, int]) -> str:
        return self.text.format(video_key=video_key, **numbers)


def check_relative(name: str) -> None:
    """SourceError for a path that leads out of the folder it is relative to."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\", "~")) or ".." in parts or "\0" in name or ":" in parts[0]:
        raise SourceError(f"the path {name[:120]!r} leads out of the folder; paths must be relative and without '..'")


class Folder:
    """The folder of a set. Links that lead out of it are not followed, but those of a hub cache into its blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.moved = False
        """Whether a file was found by its name, elsewhere than its template says."""
        blobs = root.absolute().parent.parent / "blobs"
        hub = root.absolute().parent.name == "snapshots" and blobs.is_dir()
        self._bases = [self.root, *([blobs.resolve()] if hub else [])]

    def path(self, name: str) -> Path:
        """The file of a relative name. SourceError if it leads out of the folder."""
        check_relative(name)
        path = self.root / name
        resolved = path.resolve()
        if not any(resolved.is_relative_to(base) for base in self._bases):
            with locate(path=name):
                raise SourceError("a link leads out of the folder, which is not followed; copy the file into it")
        return path

    def has(self, name: str) -> bool:
        try:
            return self.path(name).is_file()
        except OSError as error:
            with locate(path=name[:200]):
                raise SourceError(f"cannot be read: {error.strerror or error}") from error

    def find(self, name: str, video_key: str = "") -> str | None:
        """The name itself if the file is there; else the only file of that name in another folder (of that camera)."""
        if self.has(name):
            return name
        found = [other for other in self._names.get(name.rpartition("/")[2], ()) if not video_key
                 or video_key in other.split("/")[:-1]]  # fmt: skip
        same_top = [other for other in found if other.partition("/")[0] == name.partition("/")[0]]
        if len(same_top) != 1 or not self.has(same_top[0]):
            return None
        self.moved = True
        return same_top[0]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Last part of the name -> names of all files below data/ and videos/."""
        found: dict[str, list[str]] = {}
        count = 0
        for top in ("data", "videos"):
            for folder, _, files in os.walk(self.root / top):
                count += len(files)
                if count > MAX_FILES:
                    raise SourceError(f"more than {MAX_FILES:,} files are in this folder")
                base = Path(folder).relative_to(self.root).as_posix()
                for file in files:
                    found.setdefault(file, []).append(f"{base}/{file}")
        return found

    def below(self, top: str, suffix: str) -> list[str]:
        """Names of all files in a folder with a suffix, sorted."""
        start = self.path(top)
        found = [path for path in start.rglob(f"*{suffix}") if path.is_file() and not path.name.startswith(".")]
        names = sorted(path.relative_to(self.root).as_posix() for path in found)
        for name in names:
            self.path(name)
        return names
