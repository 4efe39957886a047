"""What a LeRobot set says of itself in meta/info.json, checked before any of it is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from vrl3data.errors import SourceError, locate

MAX_JSON = 256 * 1024**2
MAX_LINE = 16 * 1024**2
MAX_ROW_BYTES = 256 * 1024**2
MAX_RATE = 100_000
MAX_FEATURES = 10_000
INFO_KEYS = ("codebase_version", "robot_type", "fps", "features", "splits", "data_path", "video_path", "chunks_size")
"""What is understood here; the rest of info.json is kept for `source_meta`."""


@dataclass(frozen=True)
class Declared:
    """One entry of `features`. `shape` is empty where the set does not say (version 1)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of videos: codec, rate, whether it is a depth map."""

    @property
    def is_video(self) -> bool:
        return self.dtype == "video"

    @property
    def is_depth(self) -> bool:
        return any(self.facts.get(key) is True for key in ("is_depth_map", "video.is_depth_map"))


@dataclass(frozen=True)
class Info:
    """The whole of it. `rate` is frames per second; `total_*` are -1 where they are not said."""

    version: str
    rate: Fraction
    features: Mapping[str, Declared]
    data_path: str = ""
    video_path: str = ""
    chunks_size: int = 1000
    splits: Mapping[str, str] = field(default_factory=dict)
    robot_type: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()
    """Cameras that nobody asked for: their videos may be missing."""

    @property
    def cameras(self) -> tuple[Declared, ...]:
        """Features whose pictures lie in video files."""
        return tuple(item for item in self.features.values() if item.is_video)

    def total(self, what: str) -> int:
        """`total_episodes` and the like."""
        value = self.rest.get(f"total_{what}")
        return value if isinstance(value, int) else -1


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """A JSON file from outside. SourceError if it is missing, too large, or not JSON."""
    with locate(path=path.name):
        try:
            size = path.stat().st_size
            if size > limit:
                raise SourceError(f"{size:,} bytes are too many for a file of this kind; at most {limit:,} are read")
            return parse_json(path.read_bytes())
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror or error}") from error


def parse_json(data: bytes) -> Any:
    """SourceError says where it stops being JSON."""
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise SourceError(f"not UTF-8 text: byte {error.start}") from error
    except json.JSONDecodeError as error:
        reason = "the file is empty" if not data.strip() else f"{error.msg} in line {error.lineno}"
        raise SourceError(f"not JSON: {reason}; it may be cut off: fetch it again") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not JSON that can be read: {str(error)[:80]}") from error


def read_lines(path: Path) -> Iterator[tuple[int, int, Any]]:
    """(line number, byte offset, value or SourceError) of a JSON Lines file; a broken line does not end it."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                if line.strip():
                    yield number, offset, _line(line, path.name, number)
                offset += len(line)
    except OSError as error:
        with locate(path=path.name):
            raise SourceError(f"cannot be read: {error.strerror or error}") from error


def _line(line: bytes, name: str, number: int) -> Any:
    try:
        with locate(path=f"{name} line {number}"):
            value = parse_json(line)
            if not isinstance(value, dict):
                raise SourceError("expected a JSON object")
            return value
    except SourceError as error:
        return error


def parse_info(data: Any) -> Info:
    """info.json of versions 2 and 3. SourceError names the key that cannot be."""
    if not isinstance(data, dict):
        raise SourceError("expected a JSON object")
    version = data.get("codebase_version")
    if not isinstance(version, str) or version.lstrip("v").split(".")[0] not in ("2", "3"):
        raise SourceError(f"codebase_version: expected v2.0, v2.1 or v3.x, found {version!r}")
    features = data.get("features")
    if not isinstance(features, dict) or not features or len(features) > MAX_FEATURES:
        raise SourceError("features: expected an object with one entry per feature")
    chunks = data.get("chunks_size", 1000)
    if not isinstance(chunks, int) or isinstance(chunks, bool) or chunks < 1:
        raise SourceError(f"chunks_size: expected a positive whole number, found {chunks!r}")
    return Info(
        version=version,
        rate=rate_of(data.get("fps")),
        features={name: _declared(name, entry) for name, entry in features.items()},
        data_path=_text(data, "data_path"),
        video_path=_text(data, "video_path"),
        chunks_size=chunks,
        splits=_splits(data.get("splits")),
        robot_type=_text(data, "robot_type"),
        rest={key: value for key, value in data.items() if key not in INFO_KEYS},
    )


def rate_of(fps: Any) -> Fraction:
    """Frames per second, exact. SourceError if it is not a positive number."""
    good = isinstance(fps, (int, float)) and not isinstance(fps, bool) and math.isfinite(fps)
    if not good or not 0 < fps <= MAX_RATE:
        raise SourceError(f"fps: expected a positive number of frames per second, found {str(fps)[:40]}")
    return Fraction(str(fps)).limit_denominator(100_000)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise SourceError(f"{key}: expected text, found {str(value)[:40]}")
    return value or ""


def _declared(name: str, entry: Any) -> Declared:
    with locate(feature=name):
        if name != name.encode("utf-8", "replace").decode() or not name:
            raise SourceError("the name of a feature cannot be written as UTF-8, or is empty")
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise SourceError("expected an object with a dtype")
        shape = entry.get("shape") or ()
        if not isinstance(shape, (list, tuple)) or len(shape) > 8 or not all(_size(size) for size in shape):
            raise SourceError(f"shape: expected positive whole numbers, found {str(shape)[:60]}")
        if math.prod(shape) * 8 > MAX_ROW_BYTES:
            raise SourceError(f"shape {list(shape)}: a row would take {math.prod(shape) * 8:,} bytes")
        facts = {**_object(entry.get("video_info")), **_object(entry.get("info"))}
        return Declared(name, entry["dtype"], tuple(shape), _names(entry.get("names"), tuple(shape)), facts)


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _names(value: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """One per entry of the last axis: from a list, or from lists in an object, or from an object name -> number."""
    if isinstance(value, dict) and all(isinstance(item, int) for item in value.values()):
        value = sorted(value, key=value.__getitem__)
    elif isinstance(value, dict):
        value = [word for item in value.values() for word in (item if isinstance(item, list) else [item])]
    if not isinstance(value, list) or len(shape) != 1 or len(value) != shape[0]:
        return ()
    return tuple(value) if all(isinstance(word, str) for word in value) else ()


def _splits(value: Any) -> dict[str, str]:
    return {key: text for key, text in _object(value).items() if isinstance(text, str)}
