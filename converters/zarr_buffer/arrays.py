"""One array of a Zarr hierarchy: what its metadata claims, checked, and its rows in blocks.

Facts of the format. Chunks of nothing but the fill value are not stored, by design, so a chunk that is lost looks like
one: they are counted and told. A missing fill value (null) is no value, so there a missing chunk is an error.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.zarr_buffer import codecs
from converters.zarr_buffer.stores import MAX_METADATA, Store
from vrl3data.errors import SourceError, locate
from vrl3data.schema import DTYPES, Array

BLOCK_BYTES = 32 * 1024**2
MAX_CHUNK = 512 * 1024**2
"""Of one row of chunks in memory; who wrote it had to hold it too."""
SMALL, MAX_RATIO = 256 * 1024**2, 2000
"""Above `SMALL` bytes, more than this many claimed for each stored one was not recorded by anybody."""
MISSING = 2**64 - 1
MAX_RANK = 8


@dataclass(frozen=True)
class Spec:
    """What an array's metadata says, of either version. `steps` are its codecs in the order of decoding."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: Any
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    separator: str
    prefix: str = ""
    order: tuple[int, ...] = ()
    """Axes of the chunk as it is stored; empty: in C order."""
    shard: tuple[int, ...] = ()
    """Shape of the shards that the chunks lie in, if there are any."""
    index_steps: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    index_first: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def stored_as(self) -> tuple[int, ...]:
        """Shape of what one key holds."""
        return self.shard or self.chunks


class ZarrArray:
    """Rows of one array. Keeps the last row of chunks, since episodes end within chunks."""

    def __init__(self, store: Store, path: str, spec: Spec) -> None:
        self.store, self.path, self.spec = store, path, spec
        self._number = -1
        self._rows: Array = np.empty(0)
        self._shard: tuple[str, bytes | None] = "", None

    def blocks(self, start: int, stop: int) -> Iterator[Array]:
        """Rows [start, stop) in blocks of at most 32 MB."""
        step = max(1, BLOCK_BYTES // max(1, self.spec.row_bytes))
        tall = self.spec.chunks[0]
        row = start
        while row < stop:
            until = min(stop, row + step, (row // tall + 1) * tall)
            rows = self._chunk_row(row // tall)
            yield rows[row % tall : row % tall + until - row]
            row = until

    def all(self) -> Array:
        """The whole array, for small ones."""
        found = [block.copy() for block in self.blocks(0, self.spec.shape[0])]
        return np.concatenate(found) if found else np.empty(self.spec.shape, self.spec.dtype)

    def missing(self) -> tuple[int, int, str]:
        """(keys that are not stored, keys there could be, the first that is not)."""
        grid = [math.ceil(size / chunk) for size, chunk in zip(self.spec.shape, self.spec.stored_as, strict=True)]
        there = {key for key, _ in self.store.sizes(self.path)}
        total = math.prod(grid)
        present = sum(self._is_chunk(key) for key in there)
        if present >= total:
            return 0, total, ""
        keys = (self._key(place) for place in itertools.product(*map(range, grid)))
        return total - present, total, next((key for key in keys if key not in there), "")

    def _is_chunk(self, key: str) -> bool:
        inner = key.removeprefix(f"{self.path}/").removeprefix(self.spec.prefix)
        return inner.replace(self.spec.separator, "").replace("/", "").isdigit()

    def _key(self, place: tuple[int, ...]) -> str:
        return f"{self.path}/{self.spec.prefix}{self.spec.separator.join(map(str, place))}"

    def _chunk_row(self, number: int) -> Array:
        """All chunks that hold the rows from number * chunks[0] on, as one array."""
        if number != self._number:
            spec = self.spec
            self._number, self._rows = -1, np.empty(0)
            rows = np.empty((spec.chunks[0], *spec.shape[1:]), spec.dtype)
            inner = list(zip(spec.shape[1:], spec.chunks[1:], strict=True))
            for place in itertools.product(*(range(math.ceil(size / chunk)) for size, chunk in inner)):
                starts = [index * chunk for index, (_, chunk) in zip(place, inner, strict=True)]
                stops = [start + chunk for start, (_, chunk) in zip(starts, inner, strict=True)]
                target = rows[(slice(None), *map(slice, starts, stops))]
                target[...] = self._chunk((number, *place))[tuple(map(slice, target.shape))]
            self._number, self._rows = number, rows
        return self._rows

    def _chunk(self, place: tuple[int, ...]) -> Array:
        spec = self.spec
        size = math.prod(spec.chunks) * np.dtype(spec.dtype).itemsize
        outer = place
        if spec.shard:
            outer = tuple(map(lambda index, chunk, shard: index * chunk // shard, place, spec.chunks, spec.shard))
        key = self._key(outer)
        with locate(path=key):
            data = self._in_shard(key, place) if spec.shard else self.store.get(key, 2 * size + 65536)
            if data is None:
                if spec.fill is None:
                    raise SourceError("the chunk is missing, and the array says no value that stands for it")
                return np.full(spec.chunks, spec.fill, spec.dtype)
            return self._decoded(data, size)

    def _decoded(self, data: bytes, size: int) -> Array:
        spec = self.spec
        for number, (name, config) in enumerate(spec.steps):
            if name in codecs.PICTURES:
                return codecs.picture(name, data, spec.chunks, spec.dtype)
            last = number == len(spec.steps) - 1
            data = codecs.decode(name, config, data, size if last else 8 * size + 1024)
        if len(data) != size:
            raise SourceError(f"expected a chunk of {size:,} bytes, found {len(data):,}")
        flat = np.frombuffer(data, spec.dtype)
        if not spec.order:
            return flat.reshape(spec.chunks)
        stored = flat.reshape([spec.chunks[axis] for axis in spec.order])
        return stored.transpose(np.argsort(spec.order))

    def _in_shard(self, key: str, place: tuple[int, ...]) -> bytes | None:
        """The bytes of one chunk in its shard, by the index at the shard's beginning or end."""
        spec = self.spec
        per = [shard // chunk for shard, chunk in zip(spec.shard, spec.chunks, strict=True)]
        count = math.prod(per)
        limit = 2 * math.prod(spec.shard) * np.dtype(spec.dtype).itemsize + 16 * count + 65536
        if self._shard[0] != key:
            self._shard = "", None
            self._shard = key, self.store.get(key, limit)
        data = self._shard[1]
        if data is None:
            return None
        index_size = 16 * count + 4 * sum(name == "crc32c" for name, _ in spec.index_steps)
        index = data[:index_size] if spec.index_first else data[len(data) - min(index_size, len(data)) :]
        for name, config in spec.index_steps:
            index = codecs.decode(name, config, index, index_size)
        if len(index) != 16 * count:
            raise SourceError(f"expected an index of {count} chunks, found {len(index)} bytes")
        inner = tuple(index_ % size for index_, size in zip(place, per, strict=True))
        offset, length = map(int, np.frombuffer(index, "<u8").reshape(*per, 2)[inner])
        if offset == length == MISSING:
            return None
        if offset + length > len(data):
            raise SourceError(f"the shard has {len(data):,} bytes, but a chunk is said to end at {offset + length:,}")
        return data[offset : offset + length]


def open_array(store: Store, path: str) -> ZarrArray:
    """SourceError if there is no array, or it claims what cannot be."""
    with locate(feature=path):
        said = metadata(store, path)
        if "chunks" in said or "chunk_grid" in said:
            spec = _version_3(said) if "chunk_grid" in said else _version_2(said)
        else:
            raise SourceError("expected an array, found none")
        stored = sum(size for _, size in store.sizes(path))
        claimed = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        if claimed > max(SMALL, MAX_RATIO * stored):
            raise SourceError(f"claims {claimed:,} bytes (shape {spec.shape}), but {stored:,} are stored")
        held = spec.stored_as[0] * spec.row_bytes
        if max(held, math.prod(spec.stored_as) * np.dtype(spec.dtype).itemsize) > MAX_CHUNK:
            raise SourceError(
                f"a row of chunks {spec.stored_as} takes {held:,} bytes; at most {MAX_CHUNK:,} are read at once"
            )
        return ZarrArray(store, path, spec)


def metadata(store: Store, path: str) -> dict[str, Any]:
    """What stands in .zarray or zarr.json; empty if there is neither."""
    for name in (".zarray", "zarr.json"):
        said = read_json(store, f"{path}/{name}" if path else name)
        if said:
            return said
    return {}


def read_json(store: Store, key: str) -> dict[str, Any]:
    """A JSON object; empty if the key is not there. SourceError if it is something else."""
    data = store.get(key, MAX_METADATA)
    if data is None:
        return {}
    with locate(path=key):
        try:
            said = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"not readable as JSON: {error}") from error
        if not isinstance(said, dict):
            raise SourceError(f"expected a JSON object, found {type(said).__name__}")
        return said


def _version_2(said: Mapping[str, Any]) -> Spec:
    names = [said.get("compressor"), *reversed(said.get("filters") or [])]
    steps = tuple(_step(item, item.get("id") if isinstance(item, dict) else None) for item in names if item)
    shape, chunks = _sizes(said.get("shape"), "shape"), _sizes(said.get("chunks"), "chunks")
    order = tuple(reversed(range(len(shape)))) if said.get("order") == "F" else ()
    dtype = said.get("dtype")
    return _checked(Spec(shape, chunks, _dtype(dtype), said.get("fill_value"), steps,
                         str(said.get("dimension_separator", ".")), order=order))  # fmt: skip


def _version_3(said: Mapping[str, Any]) -> Spec:
    try:
        grid, keys = said["chunk_grid"], said.get("chunk_key_encoding", {"name": "default"})
        if grid["name"] != "regular" or keys["name"] not in ("default", "v2"):
            raise SourceError(f"chunk_grid {grid['name']} with keys {keys['name']} is not known")
        shape = _sizes(said["shape"], "shape")
        outer = _sizes(grid["configuration"]["chunk_shape"], "chunk_shape")
        separator = keys.get("configuration", {}).get("separator", "/" if keys["name"] == "default" else ".")
        listed, inner = list(said["codecs"]), outer
        shard: tuple[int, ...] = ()
        index: list[Any] = []
        first = False
        if listed and listed[0]["name"] == "sharding_indexed":
            config = listed[0]["configuration"]
            if len(listed) > 1:
                raise SourceError("codecs around shards are not known")
            listed, index = list(config["codecs"]), list(config.get("index_codecs", []))
            shard, inner = outer, _sizes(config["chunk_shape"], "chunk_shape")
            first = config.get("index_location", "end") == "start"
        order, swap, steps = _pipeline(listed, len(shape))
        dtype = np.dtype(_dtype(said["data_type"])).newbyteorder(">" if swap else "<").str
        index_steps = tuple(
            _step(item.get("configuration", {}), item["name"]) for item in reversed(index) if item["name"] != "bytes"
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the metadata cannot be understood: {type(error).__name__} {error}") from error
    prefix = f"c{separator}" if keys["name"] == "default" else ""
    return _checked(Spec(shape, inner, dtype, said.get("fill_value"), steps, str(separator), prefix, order, shard,
                         index_steps, first))  # fmt: skip


def _pipeline(listed: list[Any], rank: int) -> tuple[tuple[int, ...], bool, tuple[tuple[str, Mapping[str, Any]], ...]]:
    """(order of the axes, whether bytes are swapped, steps of decoding)."""
    order: tuple[int, ...] = ()
    swap, steps = False, []
    for item in listed:
        name, config = str(item["name"]).removeprefix("numcodecs."), item.get("configuration") or {}
        if name == "transpose":
            order = tuple(map(int, config["order"]))
            if order and sorted(order) != list(range(rank)):
                raise SourceError(f"transpose: expected an order of {rank} axes, found {order}")
        elif name == "bytes":
            swap = config.get("endian", "little") == "big"
        else:
            steps.append(_step(config, name))
    return order, swap, tuple(reversed(steps))


def _step(config: Any, name: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(config, dict) or not isinstance(name, str):
        raise SourceError(f"a codec cannot be understood: {str(config)[:80]}")
    codecs.check(name)
    return name, {key: value for key, value in config.items() if key != "id"}


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
    if not whole or not 1 <= len(value) <= MAX_RANK or any(not 0 <= size < 2**48 for size in value):
        raise SourceError(f"{what}: expected one to {MAX_RANK} whole numbers, found {str(value)[:80]}")
    return tuple(value)


def _dtype(value: Any) -> str:
    try:
        found = np.dtype(value) if isinstance(value, str) else None
    except TypeError:
        found = None
    if found is not None and found.hasobject:
        raise SourceError("an array of objects could run code when it is opened; it is not read")
    if found is None or found.name not in DTYPES:
        raise SourceError(f"expected numbers, found dtype {str(value)[:40]}")
    return found.str


def _checked(spec: Spec) -> Spec:
    """SourceError if its parts do not fit each other."""
    parts = [spec.chunks, spec.shard or spec.chunks]
    if any(len(part) != len(spec.shape) or 0 in part for part in parts):
        raise SourceError(f"chunks {spec.chunks} do not fit an array of shape {spec.shape}")
    if spec.shard and any(shard % chunk for shard, chunk in zip(spec.shard, spec.chunks, strict=True)):
        raise SourceError(f"chunks {spec.chunks} do not fit shards of {spec.shard}")
    if spec.separator not in (".", "/"):
        raise SourceError(f"expected the separator . or /, found {spec.separator!r}")
    if spec.fill is not None:
        try:
            np.full(1, spec.fill, spec.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise SourceError(f"fill_value {spec.fill!r} is not a {spec.dtype}") from error
    return spec
