"""Version 1: one table for all episodes (Arrow of `datasets`, or Parquet), a video per camera and episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from converters.lerobot.info import Declared, Info, rate_of, read_json
from converters.lerobot.layout import Entry, Layout, Video
from converters.lerobot.paths import Folder, check_relative
from converters.lerobot.rows import ArrowRows, ParquetRows, broken, open_rows, plain_type
from vrl3data.errors import SourceError, locate

INFO, STATS, INDEX = "meta_data/info.json", "meta_data/stats.safetensors", "meta_data/episode_data_index.safetensors"
MAX_TENSORS = 256 * 1024**2
_DTYPES = {"float": "float32", "double": "float64", "halffloat": "float16"}


def read(folder: Folder) -> Layout:
    """All episodes of the split `train`, the only one this version has."""
    with locate(path=INFO):
        data = read_json(folder.path(INFO))
        if not isinstance(data, dict):
            raise SourceError("expected a JSON object")
        rate = rate_of(data.get("fps"))
    rest = {key: value for key, value in data.items() if key not in ("fps", "video", "codebase_version")}
    files = data_files(folder)
    rows = open_rows([folder.path(file) for file in files], files[0])
    features = {name: _declared(name, rows.schema.field(name).type) for name in rows.schema.names}
    info = Info(str(data.get("codebase_version", "v1")), rate, features, rest=rest)
    layout = Layout(info, folder, meta=[INFO])
    for index, start, stop in _ranges(layout, rows):
        with layout.collecting(f"episode_{index:06d}"):
            if not 0 <= start < stop <= len(rows):
                raise SourceError(f"rows {start} to {stop} of a table of {len(rows)}")
            videos = [_video(folder, rows, camera.name, start, info) for camera in info.cameras]
            layout.entries.append(Entry(index, stop - start, tuple(files), start, tuple(videos)))
    if folder.has(STATS):
        layout.meta.append(STATS)
        with layout.collecting(STATS):
            layout.stats = _nested(tensors(folder, STATS))
    layout.finish()
    return layout


def data_files(folder: Folder) -> list[str]:
    """train/*.arrow in the order of state.json, or data/*.parquet."""
    if folder.path("train").is_dir():
        state = "train/state.json"
        if folder.has(state):
            with locate(path=state):
                listed = read_json(folder.path(state))
                entries = listed.get("_data_files") if isinstance(listed, dict) else None
                names = [item.get("filename") for item in entries or () if isinstance(item, dict)]
                if not names or not all(isinstance(name, str) for name in names):
                    raise SourceError("_data_files: expected a list of file names")
                for name in names:
                    check_relative(str(name))
                return [f"train/{name}" for name in names]
        if found := folder.below("train", ".arrow"):
            return found
    found = folder.below("data", ".parquet") if folder.path("data").is_dir() else []
    if not found:
        raise SourceError("neither train/*.arrow nor data/*.parquet is in this folder")
    return found


def tensors(folder: Folder, name: str) -> dict[str, Any]:
    """A safetensors file as NumPy arrays; torch is not needed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with locate(path=name):
        path = folder.path(name)
        if path.stat().st_size > MAX_TENSORS:
            raise SourceError(f"{path.stat().st_size:,} bytes are too many for a file of this kind")
        try:
            return load(path.read_bytes())
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise SourceError(f"not a readable safetensors file: {str(error)[:120]}") from error


def _ranges(layout: Layout, rows: ArrowRows | ParquetRows) -> list[tuple[int, int, int]]:
    """(episode, first row, row after the last): by the index file, else by the column episode_index."""
    if layout.folder.has(INDEX):
        layout.meta.append(INDEX)
        found = tensors(layout.folder, INDEX)
        first, last = (np.asarray(found.get(key, ())).ravel() for key in ("from", "to"))
        if not len(first) or len(first) != len(last) or first.dtype.kind not in "iu":
            with locate(path=INDEX):
                raise SourceError("expected `from` and `to`, one whole number each per episode")
        return [(number, int(a), int(b)) for number, (a, b) in enumerate(zip(first, last, strict=True))]
    layout.notes.append("episode_data_index.safetensors is missing: episodes are taken from the column episode_index")
    number_N = np.concatenate(
        [batch.column(0).to_numpy(zero_copy_only=False) for batch in rows.batches(["episode_index"], 0, len(rows))]
    )
    starts = [0, *(np.flatnonzero(np.diff(number_N)) + 1).tolist()]
    return [(int(number_N[a]), a, b) for a, b in zip(starts, [*starts[1:], len(number_N)], strict=True)]


def _declared(name: str, kind: pa.DataType) -> Declared:
    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        words = {kind.field(number).name for number in range(kind.num_fields)}
        if words == {"path", "timestamp"}:
            return Declared(name, "video")
        if words == {"bytes", "path"}:
            return Declared(name, "image")
    return Declared(name, _DTYPES.get(str(kind), str(kind)))


def _video(folder: Folder, rows: ArrowRows | ParquetRows, camera: str, start: int, info: Info) -> Video:
    """Each row names its video and time; those of the first row count."""
    with locate(feature=camera), broken("the column cannot be read"):
        batch = next(rows.batches([camera], start, start + 1))
        value = batch.column(0).to_pylist()[0] or {}
        path, time = value.get("path"), value.get("timestamp")
    if not isinstance(path, str):
        return Video(camera, "")
    first = round(float(time or 0.0) * info.rate)
    return Video(camera, folder.find(path) or "", first)


def _nested(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`action/max` -> {action: {max: ...}}."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        feature, _, what = key.rpartition("/")
        found.setdefault(feature, {})[what] = np.asarray(value).tolist()
    return found
