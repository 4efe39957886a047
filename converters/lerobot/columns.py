"""Columns of a set as fields: what they hold, and what they are called in a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from converters.fields import TIMESTAMP, Field
from converters.lerobot.info import Declared, Info
from converters.lerobot.paths import Folder
from converters.lerobot.rows import ArrowRows, ParquetRows, broken, leaf, numbers, numpy_name, plain, plain_type
from converters.mapping import FieldMap, Rule, distinct, feature_name
from converters.pictures import Frames, decode, picture_size
from vrl3data.errors import SourceError, locate
from vrl3data.schema import MAX_NAME, Array

RECORDED = "recorded.timestamp"
"""Path of the source's own column `timestamp`, seconds; TIMESTAMP is counted from its rate."""
BOOKKEEPING = ("episode_index", "frame_index", "index", "task_index")
"""They number rows, episodes and tasks; what they say is in the order of the samples and in their task."""
MAX_TEXT = 1_000_000
"""Characters of one text column of an episode that are kept in source_meta."""
BLOCK_BYTES = 32 * 1024**2
PICTURES = 16


def column_of(path: str) -> str:
    return "timestamp" if path == RECORDED else path


def is_image(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    return pa.types.is_struct(kind) and {kind.field(n).name for n in range(kind.num_fields)} == {"bytes", "path"}


def fields_of(info: Info, rows: ArrowRows | ParquetRows, folder: Folder) -> dict[str, Field]:
    """All columns of numbers and pictures. SourceError if a column cannot be what info.json says."""
    found: dict[str, Field] = {}
    for name in rows.schema.names:
        declared, kind = info.features.get(name, Declared(name, "")), rows.schema.field(name).type
        with locate(feature=name):
            if rows.schema.names.count(name) > 1:
                raise SourceError("two columns have this name")
            path = RECORDED if name == "timestamp" else name
            item = _picture(path, rows, folder) if is_image(kind) else _numbers(path, name, declared, rows)
        if item is not None:
            found[path] = item
    return found


def _numbers(path: str, name: str, declared: Declared, rows: ArrowRows | ParquetRows) -> Field | None:
    """None for text and structures: they go to source_meta."""
    kind, depth = leaf(rows.schema.field(name).type)
    dtype = numpy_name(kind)
    if not dtype:
        return None
    dtype = "float64" if path == RECORDED and dtype.startswith("float") else dtype
    if depth == 0:
        vector = declared.shape == (1,) and name.startswith(("observation.", "action"))
        shape: tuple[int, ...] = (1,) if vector else ()
    else:
        found = _first_shape(name, rows)
        shape = declared.shape if np.prod(declared.shape or (0,)) == np.prod(found) else found
    names = declared.names if len(shape) == 1 and len(declared.names) == shape[0] else ()
    return Field(path, dtype, shape, "state" if name.startswith("observation.") else "step", names)


def _first_shape(name: str, rows: ArrowRows | ParquetRows) -> tuple[int, ...]:
    value = _first(name, rows)
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    if not shape or 0 in shape:
        raise SourceError("the first row holds no numbers")
    return tuple(shape)


def _first(name: str, rows: ArrowRows | ParquetRows) -> Any:
    batch = next(rows.batches([name], 0, 1, 1), None)
    if batch is None:
        raise SourceError("the file holds no rows")
    with broken("the first row cannot be read"):
        return plain(batch.column(batch.schema.get_field_index(name))).to_pylist()[0]


def _picture(path: str, rows: ArrowRows | ParquetRows, folder: Folder) -> Field:
    file = picture_bytes(_first(path, rows), folder)
    height, width, channels = picture_size(file)
    if channels == 1 and file.startswith(b"\x89PNG") and file[24:25] == b"\x10":
        return Field(path, "uint16", (height, width), "state")
    return Field(path, "uint8", (height, width, channels), "state", jpeg=file.startswith(b"\xff\xd8"))


def picture_bytes(value: Any, folder: Folder) -> bytes:
    """The file that a cell holds, or names."""
    value = value or {}
    if value.get("bytes"):
        return bytes(value["bytes"])
    if not value.get("path"):
        raise SourceError("the row holds no picture")
    path = folder.path(str(value["path"]))
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"the picture {value['path']} cannot be read: {error.strerror or error}") from error


class EpisodeRows:
    """The rows of one episode in its file."""

    def __init__(self, rows: ArrowRows | ParquetRows, start: int, stop: int, folder: Folder) -> None:
        self.rows, self.start, self.stop, self.folder = rows, start, stop, folder

    def value(self, item: Field) -> Array | Iterator[Array] | Frames:
        """What a field holds; large ones come in blocks."""
        row_bytes = int(np.prod(item.shape, dtype=np.int64)) * np.dtype(item.dtype).itemsize
        if is_image(self.rows.schema.field(column_of(item.path)).type):
            if item.jpeg:
                return Frames([file for part in self._files(item.path) for file in part], item.shape)
            return self._decoded(item)
        if row_bytes * (self.stop - self.start) <= BLOCK_BYTES:
            return np.concatenate(list(self._blocks(item, row_bytes)))
        return self._blocks(item, row_bytes)

    def column(self, name: str) -> list[Any]:
        """Of any type, as plain values."""
        found: list[Any] = []
        for part in self._parts(name, 4096):
            with locate(path=self.rows.name, feature=name), broken("the column cannot be read"):
                found += part.to_pylist()
        return found

    def _parts(self, name: str, rows: int) -> Iterator[pa.Array]:
        for batch in self.rows.batches([name], self.start, self.stop, rows):
            yield plain(batch.column(batch.schema.get_field_index(name)))

    def _blocks(self, item: Field, row_bytes: int) -> Iterator[Array]:
        step, name = self.start, column_of(item.path)
        for part in self._parts(name, max(1, BLOCK_BYTES // max(1, row_bytes))):
            with locate(path=self.rows.name, feature=name, step=step - self.start), broken("the data cannot be read"):
                yield numbers(part, item.shape, item.dtype)
            step += len(part)

    def _files(self, name: str) -> Iterator[list[bytes]]:
        step = 0
        for part in self._parts(name, PICTURES):
            files = []
            for value in part.to_pylist():
                with locate(path=self.rows.name, feature=name, step=step):
                    files.append(picture_bytes(value, self.folder))
                step += 1
            yield files

    def _decoded(self, item: Field) -> Iterator[Array]:
        step = 0
        for files in self._files(item.path):
            pictures = []
            for file in files:
                with locate(path=self.rows.name, feature=item.path, step=step):
                    pictures.append(decode(file, item.shape))
                step += 1
            yield np.stack(pictures)


def changes(values: Sequence[Any]) -> Any:
    """A column that rarely changes: its value, or [[row from which it holds, value], ...]."""
    found: list[list[Any]] = []
    for row, value in enumerate(values):
        if not found or found[-1][1] != value:
            found.append([row, value])
    kept = found[0][1] if len(found) == 1 else found
    text = json.dumps(kept, default=str)
    return f"not kept: {len(text):,} characters" if len(text) > MAX_TEXT else json.loads(text)


@dataclass
class Known:
    """What scanning found out about columns, for the guess."""

    depth: dict[str, float] = field(default_factory=dict)
    """Camera -> metres per count."""
    parts: dict[str, str] = field(default_factory=dict)
    """Column -> what its entries are (modality.json)."""
    recorded: bool = False
    """The column `timestamp` is a clock of its own, not the row number divided by the rate."""


def rules(known: Mapping[str, Field], facts: Known) -> FieldMap:
    """LeRobot's conventions as features."""
    found: list[Rule] = []
    for path, item in known.items():
        if path in BOOKKEEPING or (path == RECORDED and not facts.recorded):
            continue
        name = _feature(path, item)
        if name.startswith("obs.depth."):
            found.append(Rule(name, (path,), scale_m=facts.depth.get(path, 0.001)))
        elif path == TIMESTAMP:
            found.append(Rule(name, (path,), unit="ns", description="row number divided by the frame rate"))
        elif path == RECORDED:
            found.append(Rule(name, (path,), unit="s", description="as recorded, where it differs from the rate"))
        elif name.startswith("obs.image.") and item.dtype == "uint8" and len(item.shape) == 3:
            layout = "chw" if item.shape[0] in (1, 3) and item.shape[2] not in (1, 3) else "hwc"
            found.append(Rule(name, (path,), layout=layout))
        else:
            found.append(Rule(name, (path,), description=facts.parts.get(path, "")))
    return FieldMap("lerobot", distinct(found))


def camera_names(path: str) -> set[str]:
    """What a camera may be asked for by, as colours or as depth."""
    kinds = (Field(path, "uint8", (1, 1, 3)), Field(path, "uint16", (1, 1)))
    return {_feature(path, kind).rpartition(".")[2] for kind in kinds}


def _feature(path: str, item: Field) -> str:
    """`observation.images.top` -> `obs.image.top`, and so on."""
    picture = (item.dtype, len(item.shape)) in (("uint8", 3), ("uint16", 2))
    fixed = {"observation.state": "obs.proprio", "observation.environment_state": "obs.state", "next.reward": "reward"}
    if path in fixed:
        return fixed[path]
    if picture:
        word = path
        for prefix in ("observation.images.", "observation.image.", "observation.depth.", "observation."):
            if path.startswith(prefix):
                word = path[len(prefix) :]
                break
        word = feature_name(word).replace(".", "_")
        if item.dtype == "uint16":
            return f"obs.depth.{word.removesuffix('_depth') or word}"[:MAX_NAME]
        return f"obs.image.{word}"[:MAX_NAME]
    name = feature_name(path)
    name = f"obs.{name[len('observation.') :]}" if name.startswith("observation.") else name
    claimed = name.startswith(("obs.image.", "obs.depth.")) or name.endswith(".offsets")
    if claimed or (name == TIMESTAMP and path != TIMESTAMP):
        name = f"{name}_values"
    return name[:MAX_NAME]
