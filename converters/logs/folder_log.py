"""A folder that rosbag2 made: metadata.yaml and one or more files of one recording, joined in their order."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from converters.logs.messages import Channel, LogFile, Raw, open_log
from vrl3data.errors import SourceError, locate

METADATA, TOP = "metadata.yaml", "rosbag2_bagfile_information"
MAX_METADATA = 2**24
PART = re.compile(r"(.+)_(\d+)\.(db3|mcap)")
WHOLE = (".db3.zstd", ".mcap.zstd")


def is_recording(folder: Path) -> bool:
    """Whether a folder holds one recording: rosbag2's metadata, or files numbered as rosbag2 numbers them."""
    if (folder / METADATA).is_file():
        try:
            with (folder / METADATA).open("rb") as file:
                return TOP.encode() in file.read(4096)
        except OSError:
            return False
    return bool(_numbered(folder))


def _numbered(folder: Path) -> list[Path]:
    """The parts of one recording by their names; none if there are files of two recordings."""
    logs = [path for path in folder.iterdir() if path.suffix in (".db3", ".mcap") and path.is_file()]
    found = [(PART.fullmatch(path.name), path) for path in logs]
    if not all(match for match, _ in found) or len({match[1] for match, _ in found if match}) != 1:
        return []
    return [path for match, path in sorted(found, key=lambda item: int(item[0][2]) if item[0] else 0)]


class FolderLog(LogFile):
    kind = "rosbag2"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._facts: dict[str, Any] = {}
        self._metadata = self._read_metadata()
        distro = self._metadata.get("ros_distro")
        self.hint = distro if isinstance(distro, str) else ""
        self._parts: list[LogFile] = []
        try:
            for part in self._files():
                self._open_part(part)
        except SourceError:
            self.close()
            raise
        if not self._parts:
            raise SourceError("; ".join(self._notes.values()) or "the folder has no .db3 or .mcap files")
        self._numbers: dict[tuple[int, int], int] = {}
        self._channels: dict[int, Channel] = {}
        self._next = count()

    def channels(self) -> Mapping[int, Channel]:
        if not self._numbers:
            for part in range(len(self._parts)):
                self._join(part)
        return self._channels

    def info(self) -> dict[str, Any]:
        parts = {part.path.name: part.info() for part in self._parts}
        return {"container": "rosbag2", **self._facts, "files": parts}

    def close(self) -> None:
        for part in self._parts:
            part.close()

    @property
    def problems(self) -> list[str]:
        parts = [f"{part.path.name}: {text}" for part in self._parts for text in part.problems]
        return [*self._notes.values(), *parts]

    def raw(self, wanted: Collection[int] | None) -> Iterator[Raw]:
        self.channels()
        for part, log in enumerate(self._parts):
            own = None if wanted is None else {
                number for (place, number), ours in self._numbers.items() if place == part and ours in wanted
            }  # fmt: skip
            for number, log_ns, publish_ns, data in log.raw(own):
                if (part, number) not in self._numbers:
                    self._join(part)
                yield Raw(self._numbers[part, number], log_ns, publish_ns, data)

    def _join(self, part: int) -> None:
        """Number the channels of a part in ours."""
        log = self._parts[part]
        for number, channel in log.channels().items():
            if (part, number) not in self._numbers:
                ours = self._numbers[part, number] = next(self._next)
                self._channels[ours] = channel
                if number in log._counts:
                    self._counts[ours] = log._counts[number]

    def _open_part(self, path: Path) -> None:
        try:
            with locate(path=path.name):
                self._parts.append(open_log(path))
        except SourceError as error:
            self.note(f"part {path.name}", f"{path.name} is passed over: {error.message}")

    def _read_metadata(self) -> dict[str, Any]:
        file = self.path / METADATA
        if not file.is_file():
            self.note("metadata", "the folder has no metadata.yaml; its files are joined by their numbers")
            return {}
        try:
            if file.stat().st_size > MAX_METADATA:
                raise SourceError(f"metadata.yaml has {file.stat().st_size:,} bytes")
            found = yaml.safe_load(file.read_text("utf-8", "replace"))
            found = found.get(TOP) if isinstance(found, dict) else None
            if not isinstance(found, dict):
                raise SourceError(f"metadata.yaml does not hold {TOP}")
        except (OSError, yaml.YAMLError, ValueError, RecursionError, SourceError) as error:
            self.note("metadata", f"metadata.yaml is not used: {' '.join(str(error).split())[:200]}")
            return {}
        plain = ("version", "storage_identifier", "compression_format", "compression_mode", "ros_distro")
        self._facts = {key: found[key] for key in plain if isinstance(found.get(key), str | int) and found[key] != ""}
        return found

    def _files(self) -> list[Path]:
        """The parts that the metadata names, as long as they lie in this folder; else those that are numbered."""
        names = self._metadata.get("relative_file_paths")
        if not isinstance(names, list) or not names:
            return _numbered(self.path) or [path for path in sorted(self.path.iterdir())
                                            if path.name.endswith((".db3", ".mcap", *WHOLE))]  # fmt: skip
        files = []
        for name in dict.fromkeys(str(name) for name in names):
            last = name.replace("\\", "/").rpartition("/")[2]  # early versions wrote the folder's name before it
            file = self.path / last
            if last in ("", ".", "..") or file.is_symlink() or not file.is_file():
                self.note(f"part {name}", f"metadata.yaml names {name!r}, which is not a file in this folder")
            else:
                files.append(file)
        left = sorted(path.name for path in self.path.iterdir()
                      if path.suffix in (".db3", ".mcap") and path not in files)  # fmt: skip
        if left:
            self.note("left", f"files that metadata.yaml does not name are passed over: {', '.join(left)[:200]}")
        return files
