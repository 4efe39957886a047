"""One Example as an episode: rows of its fields, its pictures, how it ended, and what else it says.

Letters: N steps of the record, T of them with a valid action.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from converters.fields import Loaded
from converters.pictures import Frames, decode, picture_size
from converters.rlds.example import Feature, Pieces
from converters.rlds.features import MARKS, STEPS, Layout, Spec
from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

INSTRUCTIONS = ("language_instruction", "natural_language_instruction", "instruction")
BLOCK_BYTES = 32 * 1024**2
SMALL = 64
"""Entries of a row that goes into source_meta when the dataset has no row for it."""


@dataclass(frozen=True)
class Shown:
    """How a record is to be shown: the rows of each field (step, state, episode), and what its last step is."""

    rows: Mapping[str, str]
    last_is_observation: bool
    any_size: bool
    """Pictures are resized afterwards, so those of a record may have a size of their own."""


class Steps:
    """The lists of one record, as the layout says."""

    def __init__(self, example: Mapping[str, Feature], layout: Layout, count: int) -> None:
        self.example, self.layout, self.count = example, layout, count
        if count < 1:
            raise SourceError("the record has no steps")

    def mark(self, name: str) -> Array | None:
        """is_first, is_last, is_terminal: one bool per step; None if the record does not say."""
        feature = self.example.get(STEPS + name)
        if feature is None or not feature.pieces:
            return None
        with locate(feature=STEPS + name):
            marks_N = feature.ints("bool")
            if len(marks_N) != self.count:
                raise SourceError(f"expected {self.count} steps, found {len(marks_N)}")
        return marks_N

    def numbers(self, spec: Spec) -> Array | None:
        """All rows; None if the record has none."""
        blocks = list(self.blocks(spec))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks) if blocks else None

    def blocks(self, spec: Spec) -> Iterator[Array]:
        """The same as blocks of rows."""
        feature = self.example.get(spec.key)
        if feature is None or not feature.pieces:
            return
        rows = self.count if spec.per_step else 1
        with locate(feature=spec.key):
            if spec.encoding:
                yield from _decoded(spec, feature.strings(), rows)
                return
            flat = feature.floats() if spec.dtype.startswith("float") else feature.ints(spec.dtype)
            if len(flat) != rows * spec.entries:
                raise SourceError(f"expected {rows} x {spec.entries} numbers, found {len(flat)}")
            yield flat.reshape(rows, *spec.shape).astype(spec.dtype, copy=False)

    def strings(self, spec: Spec) -> Pieces | None:
        """The byte strings of a picture or text, one per step (or the text's own number)."""
        feature = self.example.get(spec.key)
        if feature is None or not feature.pieces:
            return None
        with locate(feature=spec.key):
            strings = feature.strings()
            rows = (self.count if spec.per_step else 1) * max(1, spec.entries if spec.form == "text" else 1)
            if len(strings) != rows:
                raise SourceError(f"expected {rows} strings, found {len(strings)}")
        return strings

    def is_constant(self, spec: Spec) -> bool:
        """Whether all steps say the same."""
        rows = self.numbers(spec)
        return rows is None or all(row.tobytes() == rows[0].tobytes() for row in rows)

    def load(self, shown: Shown) -> Loaded:
        """Everything, as the dataset shows it."""
        observed = int(shown.last_is_observation)
        if self.count - observed < 1:
            raise SourceError("the record has one step only, and the last step of these records has no action")
        loaded = Loaded({}, final_observation=bool(observed), **self._end())
        kept = {"step": self.count - observed, "state": self.count, "episode": 1}
        for spec in self.layout.specs:
            with locate(feature=spec.key):
                if spec.form == "picture":
                    self._picture(spec, kept[shown.rows[spec.path]], shown.any_size, loaded)
                elif spec.form == "text":
                    self._text(spec, loaded)
                elif spec.path in shown.rows:
                    self._numbers(spec, shown.rows[spec.path], kept, loaded)
                elif spec.path not in MARKS:
                    self._plain(spec, loaded)
        self._marks(loaded)
        return loaded

    def _numbers(self, spec: Spec, rows: str, kept: Mapping[str, int], loaded: Loaded) -> None:
        row_bytes = spec.entries * np.dtype(spec.dtype).itemsize
        if spec.encoding and spec.per_step and row_bytes * self.count > BLOCK_BYTES:
            loaded.arrays[spec.path] = _first_rows(self.blocks(spec), kept[rows])
            return
        array = self.numbers(spec)
        if array is None:
            return
        if spec.per_step and rows == "episode" and not self.is_constant(spec):
            raise SourceError(
                "changes within the episode, but not in the records that were looked at first: "
                "give it rows = 'step' in the mapping"
            )
        loaded.arrays[spec.path] = array[: kept[rows]]
        if spec.per_step and rows == "step" and len(array) > kept[rows] and spec.entries <= SMALL:
            left = np.nan_to_num(array[-1].astype(np.float64))
            if left.any():  # by the rules of RLDS it means nothing, and yet it was recorded
                loaded.source_meta.setdefault("last_step", {})[spec.path] = _plain(array[-1])

    def pictures(self, spec: Spec, any_size: bool = True) -> Frames | None:
        """One picture per step, black where a step has none; None if all are missing or black."""
        files = self.strings(spec)
        if files is None or not any(map(len, files.views)):
            return None
        at = next(step for step, view in enumerate(files.views) if len(view))
        first = files[at]
        with locate(step=at):
            size = picture_size(first)[:2] if any_size else spec.shape[:2]
        shape = (*size, spec.shape[2]) if spec.dtype == "uint8" else size
        if not all(map(len, files.views)):
            black = _black(shape, first)
            files = Pieces([view if len(view) else black for view in files.views])
        return None if _all_black(files, shape) else Frames(files, shape)

    def _picture(self, spec: Spec, rows: int, any_size: bool, loaded: Loaded) -> None:
        frames, files = self.pictures(spec, any_size), self.strings(spec)
        if frames is None or files is None:
            return
        loaded.arrays[spec.path] = replace(frames, files=frames.files[:rows])
        if empty := [step for step, view in enumerate(files.views) if not len(view)]:
            loaded.source_meta.setdefault("missing_pictures", {})[spec.path] = empty

    def _text(self, spec: Spec, loaded: Loaded) -> None:
        strings = self.strings(spec)
        if strings is None:
            return
        same = spec.per_step and all(view == strings.views[0] for view in strings.views)
        texts = [_string(text) for text in (strings[:1] if same or len(strings) == 1 else strings)]
        if spec.path.rpartition("/")[2] in INSTRUCTIONS and spec.per_step and same and not loaded.task:
            loaded.task = texts[0]
        else:
            loaded.source_meta[spec.path] = texts[0] if len(texts) == 1 else texts

    def _plain(self, spec: Spec, loaded: Loaded) -> None:
        array = self.numbers(spec)
        if array is not None:
            loaded.source_meta[spec.path] = _plain(array[0])

    def _end(self) -> dict[str, Any]:
        """is_terminal says how the last step ends; without it, or if it is no last step, that is not known."""
        last_N, terminal_N = self.mark("is_last"), self.mark("is_terminal")
        terminated = -1 if terminal_N is None else int(terminal_N[-1])
        known = last_N is not None and bool(last_N[-1]) and terminal_N is not None
        return {"terminated": terminated, "truncated": 1 - terminated if known else 0 if terminated == 1 else -1}

    def _marks(self, loaded: Loaded) -> None:
        """Marks at other steps than the ones where they belong are told."""
        last = self.count - 1
        for name, usual in zip(MARKS, ([[0]], [[last]], [[], [last]]), strict=True):
            marks_N = self.mark(name)
            if marks_N is not None and (found := np.flatnonzero(marks_N).tolist()) not in usual:
                loaded.source_meta[name] = found


def says_nothing(rows: Array | None) -> bool:
    """Whether the last row is all zero or NaN, as where it means nothing."""
    return rows is None or not np.nan_to_num(rows[-1].astype(np.float64)).any()


def _decoded(spec: Spec, strings: Sequence[bytes], rows: int) -> Iterator[Array]:
    """Blocks of rows of tensors that are kept as bytes. What they claim to unpack to is not believed."""
    size = spec.entries * np.dtype(spec.dtype).itemsize
    if len(strings) != rows:
        raise SourceError(f"expected {rows} tensors, found {len(strings)}")
    at_a_time = max(1, BLOCK_BYTES // size)
    for start in range(0, rows, at_a_time):
        block = []
        for step, string in enumerate(strings[start : start + at_a_time], start):
            with locate(step=step):
                block.append(_unzipped(string, size) if spec.encoding == "zlib" else string)
                if len(block[-1]) != size:
                    raise SourceError(f"expected a tensor of {size} bytes, found {len(block[-1])}")
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        yield np.stack([np.frombuffer(row, dtype).reshape(spec.shape) for row in block])


def _unzipped(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise SourceError(f"not a tensor compressed with zlib: {error}") from error


def _first_rows(blocks: Iterator[Array], count: int) -> Iterator[Array]:
    for block in blocks:
        if count > 0:
            yield block[:count]
            count -= len(block)


def _black(shape: tuple[int, ...], like: bytes) -> bytes:
    """A picture of zeros, in the file format of the others."""
    mode = "I;16" if len(shape) == 2 else "L" if shape[2] == 1 else "RGB"
    out = io.BytesIO()
    Image.new(mode, (shape[1], shape[0])).save(out, "JPEG" if like.startswith(b"\xff\xd8") else "PNG")
    return out.getvalue()


def _all_black(files: Pieces, shape: tuple[int, ...]) -> bool:
    """Open X sets have black pictures where an episode lacks a camera. All files are the same then."""
    first = files.views[0]
    if any(len(view) != len(first) for view in files.views) or any(view != first for view in files.views):
        return False
    with locate(step=0):
        return not decode(files[0], shape).any()


def _string(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _plain(row: Array) -> Any:
    """Numbers as JSON has them: NaN and infinities as text."""
    if row.ndim:
        return [_plain(item) for item in row]
    value = row.item()
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
