"""One sample between memory and its members: encode and decode (FORMAT.md 4-6, 9).

Memory stays bounded: a member larger than `SPOOL_BYTES` goes through a file, and features may be iterators.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vrl3data import codecs, shard
from vrl3data.errors import DamagedError, SchemaError, locate
from vrl3data.preview import contact_sheet, preview_rows
from vrl3data.schema import PREVIEW, Array, Episode, Feature, Schema, check, check_rows

SPOOL_BYTES = 64 * 1024**2
PSNR_CAP = 100.0
NOT_IN_DIGEST = ("split", "subsets", "psnr", "max_error", "digest", "members", "sizes", "xxh3_128", "meta_xxh3_128")


@dataclass(frozen=True)
class Identity:
    """What the ids of all samples of a dataset start from: source identity, converter, content options."""

    source: str
    converter: str
    options: Mapping[str, Any]

    def sample_id(self, name: str) -> str:
        text = shard.dumps([self.source, self.converter, dict(self.options), name])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class EncodedSample:
    """All members of a sample but its key. A body is bytes, or a spool file that belongs to the receiver."""

    meta: dict[str, Any]
    members: tuple[tuple[str, bytes | memoryview | Path], ...]

    def sizes(self) -> list[int]:
        return [body.stat().st_size if isinstance(body, Path) else len(body) for _, body in self.members]

    @property
    def shard_bytes(self) -> int:
        """What the sample takes in a shard, headers and padding included."""
        return sum(shard.BLOCK + shard.padded(size) for size in self.sizes())

    def discard(self) -> None:
        for _, body in self.members:
            if isinstance(body, Path):
                body.unlink(missing_ok=True)


class _Body:
    """A member that grows: in memory at first, in a spool file when it gets large. Hashes as it grows."""

    def __init__(self, spool: Path) -> None:
        self.spool, self.size, self.hash = spool, 0, xxhash.xxh3_128()
        self.chunks: list[bytes] = []
        self.file: Any = None

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)
        if self.file is None and self.size > SPOOL_BYTES:
            self.spool.mkdir(exist_ok=True)
            self.file = tempfile.NamedTemporaryFile(dir=self.spool, suffix=".member", delete=False)  # noqa: SIM115
            for chunk in self.chunks:
                self.file.write(chunk)
            self.chunks = []
        if self.file is None:
            self.chunks.append(data)
        else:
            self.file.write(data)

    def close(self) -> bytes | Path:
        if self.file is None:
            return b"".join(self.chunks)
        self.file.close()
        return Path(self.file.name)


class _Encoder:
    """The state of encoding one episode."""

    def __init__(self, episode: Episode, schema: Schema, spool: Path) -> None:
        self.episode, self.schema, self.spool = episode, schema, spool
        self.bodies: list[tuple[str, _Body]] = []
        self.content: list[dict[str, Any]] = []
        self.absent: list[str] = []
        self.previews: dict[str, list[Array]] = {}
        self.psnr, self.max_error = -1.0, -1.0
        self.image_size = (0, 0)

    def member(self, name: str) -> _Body:
        body = _Body(self.spool)
        self.bodies.append((name, body))
        return body

    def feature(self, feature: Feature) -> None:
        with locate(feature=feature.name):
            value = self.episode.values.get(feature.name)
            count = self.episode.row_count(feature)
            if value is None:
                self.absent.append(feature.name)
                count = 1
                value = np.zeros((1, *feature.shape), feature.dtype)
            if feature.codec_name == "text":
                self._text(feature, value)
            elif self.schema.kind == "images" and feature.name == "image":
                self._picture(feature, value)
            elif feature.codec_name == "raw":
                self._raw(feature, self._blocks(feature, value, count), count)
            else:
                self._coded(feature, self._blocks(feature, value, count))

    def _blocks(self, feature: Feature, value: Any, count: int) -> Iterator[Array]:
        """Checked blocks of rows; counts them, and keeps a few frames for the preview."""
        wanted = set(preview_rows(count)) if feature.is_image else set()
        seen = 0
        for block in [value] if isinstance(value, np.ndarray) else value:
            rows = check_rows(block, feature)
            for row in sorted(row for row in wanted if seen <= row < seen + len(rows)):
                self.previews.setdefault(feature.name, []).append(rows[row - seen].copy())
            seen += len(rows)
            if seen > count:
                break
            yield rows
        if seen != count:
            more = "more" if seen > count else seen
            raise SchemaError(
                f"expected {count} rows (rows: {feature.rows}, length {self.episode.length}), found {more}"
            )

    def _raw(self, feature: Feature, blocks: Iterator[Array], count: int) -> None:
        body, content = self.member(f"{feature.name}.npy"), hashlib.sha256()
        body.write(shard.npy_header(feature.dtype, (count, *feature.shape)))
        for block in blocks:
            data = block.tobytes()
            content.update(data)
            body.write(data)
        self._lossless(feature, (count, *feature.shape), content.hexdigest())

    def _coded(self, feature: Feature, blocks: Iterator[Array]) -> None:
        codec = codecs.find(feature.codec)
        body, content, offsets = self.member(f"{feature.name}.{codec.suffix}"), hashlib.sha256(), [0]
        error, count = _Error(), 0
        for block in blocks:
            for row in range(len(block)):
                unit = codec.encode(block[row : row + 1], feature)
                body.write(unit)
                offsets.append(body.size)
                content.update(block[row].tobytes() if feature.lossless else unit)
                if not feature.lossless:
                    error.add(block[row : row + 1], codec.decode(unit, feature))
            count += len(block)
        self.member(f"{feature.name}.offsets.npy").write(shard.npy_bytes(np.array(offsets, np.uint64)))
        self._content(feature, (count, *feature.shape), content.hexdigest())
        self._measured(error)

    def _picture(self, feature: Feature, value: Any) -> None:
        """The one picture of a sample in kind `images`."""
        if feature.codec_name == "raw":
            rows = check_rows(value, feature)
            self.member("npy").write(shard.npy_bytes(rows))
            self._lossless(feature, rows.shape, hashlib.sha256(rows.tobytes()).hexdigest())
        else:
            codec = codecs.find(feature.codec)
            unit = value if isinstance(value, bytes) else codec.encode(check_rows(value, feature), feature)
            rows = codec.decode(unit, feature)
            self.member(codec.image_suffix).write(unit)
            hashed = rows.tobytes() if feature.lossless else unit
            self._content(feature, rows.shape, hashlib.sha256(hashed).hexdigest())
            if not feature.lossless and not isinstance(value, bytes):
                error = _Error()
                error.add(check_rows(value, feature), rows)
                self._measured(error)
        self.image_size = (rows.shape[1], rows.shape[2])

    def _text(self, feature: Feature, value: Any) -> None:
        label = check_rows(value, feature)
        if int(label[0]) != self.episode.label:
            raise SchemaError(f"the label is {self.episode.label}, the value of the feature {int(label[0])}")
        self.member(feature.name).write(str(int(label[0])).encode())
        self._lossless(feature, (1,), hashlib.sha256(label.tobytes()).hexdigest())

    def _content(self, feature: Feature, shape: tuple[int, ...], digest: str) -> None:
        if feature.lossless:
            self._lossless(feature, shape, digest)
        else:
            self.content.append({"name": feature.name, "codec": feature.codec, "sha256": digest})

    def _lossless(self, feature: Feature, shape: tuple[int, ...], digest: str) -> None:
        self.content.append({"name": feature.name, "dtype": feature.dtype, "shape": list(shape), "sha256": digest})

    def _measured(self, error: _Error) -> None:
        if error.count:
            self.psnr = error.psnr() if self.psnr < 0 else min(self.psnr, error.psnr())
            self.max_error = max(self.max_error, float(error.greatest))

    def discard(self) -> None:
        """Remove the spool files of a sample that will not be."""
        for _, body in self.bodies:
            if body.file is not None:
                body.file.close()
                Path(body.file.name).unlink(missing_ok=True)

    def preview(self) -> None:
        cameras = [camera.name for camera in self.schema.cameras if camera.name in self.previews]
        sheet = contact_sheet([self.previews[name] for name in cameras])
        self.member(PREVIEW).write(sheet)

    def finish(self, sample_id: str) -> EncodedSample:
        meta = self._meta(sample_id)
        meta["digest"] = sample_digest(meta, self.content)
        meta["members"] = ",".join(name for name, _ in self.bodies)
        meta["sizes"] = ",".join(str(body.size) for _, body in self.bodies)
        meta["xxh3_128"] = ",".join(body.hash.hexdigest() for _, body in self.bodies)
        commit = (shard.COMMIT_MEMBER, shard.commit_bytes(meta))
        return EncodedSample(meta, (*((name, body.close()) for name, body in self.bodies), commit))

    def _meta(self, sample_id: str) -> dict[str, Any]:
        """All keys of FORMAT.md 6 up to `source_meta`, in order."""
        episode = self.episode
        meta: dict[str, Any] = {"id": sample_id}
        for key in ("name", "split", "source", "source_sha256", "task"):
            meta[key] = getattr(episode, key)
        meta |= {"subsets": ",".join(sorted(episode.subsets)), "absent": ",".join(sorted(self.absent))}
        meta["origin"] = episode.origin
        if self.schema.kind == "episodes":
            meta |= {"length": int(episode.length), "final_observation": int(episode.final_observation)}
            for key in ("terminated", "truncated", "success", "start_time_ns"):
                meta[key] = int(getattr(episode, key))
        else:
            meta |= {"label": int(episode.label), "class_name": episode.class_name}
            meta |= {"height": self.image_size[0], "width": self.image_size[1]}
        meta |= {"psnr": self.psnr, "max_error": self.max_error}
        meta["source_meta"] = shard.dumps(_jsonable(dict(episode.source_meta)))
        return meta


@dataclass
class _Error:
    """Squared and greatest error of a lossy feature."""

    squares: int = 0
    greatest: int = 0
    count: int = 0

    def add(self, given: Array, stored: Array) -> None:
        difference = given.astype(np.int32) - stored.astype(np.int32)
        self.squares += int((difference * difference).sum(dtype=np.int64))
        self.greatest = max(self.greatest, int(np.abs(difference).max()))
        self.count += difference.size

    def psnr(self) -> float:
        """dB against a peak of 255."""
        mean = self.squares / self.count
        return PSNR_CAP if mean == 0 else min(PSNR_CAP, round(10 * math.log10(255**2 / mean), 2))


def encode(episode: Episode, schema: Schema, identity: Identity, spool: Path) -> EncodedSample:
    """All members of `episode`; SchemaError if it does not fit `schema`. Large members are files in `spool`."""
    with locate(episode=episode.name):
        check(episode, schema)
        encoder = _Encoder(episode, schema, spool)
        try:
            for feature in schema.features:
                encoder.feature(feature)
            if PREVIEW in schema.extras:
                encoder.preview()
            return encoder.finish(identity.sample_id(episode.name))
        except BaseException:
            encoder.discard()
            raise


def sample_digest(meta: Mapping[str, Any], content: list[dict[str, Any]]) -> str:
    """FORMAT.md 9."""
    covered = {key: value for key, value in meta.items() if key not in NOT_IN_DIGEST}
    return hashlib.sha256(shard.dumps({"features": content, "meta": covered}).encode()).hexdigest()


def member_names(schema: Schema) -> list[str]:
    """The members of every sample of `schema`, in order, commit record last."""
    names: list[str] = []
    for feature in schema.features:
        names.extend(feature_members(feature, schema))
    return [*names, *schema.extras, shard.COMMIT_MEMBER]


def feature_members(feature: Feature, schema: Schema) -> tuple[str, ...]:
    if feature.codec_name == "text":
        return (feature.name,)
    if schema.kind == "images" and feature.name == "image":
        return ("npy",) if feature.codec_name == "raw" else (codecs.find(feature.codec).image_suffix,)
    if feature.codec_name == "raw":
        return (f"{feature.name}.npy",)
    return (f"{feature.name}.{codecs.find(feature.codec).suffix}", f"{feature.name}.offsets.npy")


def decode_rows(feature: Feature, body: memoryview, offsets: memoryview | None, start: int, stop: int) -> Array:
    """Rows [start, stop) of a feature; a view for raw, decoded for the rest. DamagedError if bytes do not fit."""
    if feature.codec_name == "text":
        text = bytes(body)
        if not text.removeprefix(b"-").isdigit():
            raise DamagedError(f"expected a label in decimal digits, found {text[:20]!r}")
        return np.array([int(text)], np.int64)
    if feature.codec_name == "raw":
        array = shard.npy_view(body)
        if array.dtype.name != feature.dtype or len(array.shape) != len(feature.shape) + 1:
            raise DamagedError(f"expected rows {feature.dtype}{feature.shape}, found {array.dtype}{array.shape}")
        return array[start:stop]
    codec = codecs.find(feature.codec)
    if offsets is None:
        return codec.decode(body, feature)
    where = shard.npy_view(offsets)
    rows = [_unit(codec, feature, body, where, row) for row in range(start, min(stop, len(where) - 1))]
    return np.concatenate(rows) if rows else np.zeros((0, *feature.shape), feature.dtype)


def _unit(codec: codecs.Codec, feature: Feature, body: memoryview, where: Array, row: int) -> Array:
    begin, end = int(where[row]), int(where[row + 1])
    if not begin <= end <= len(body):
        raise DamagedError(f"unit {row} would lie at {begin}-{end} of a body of {len(body)} bytes")
    with locate(step=row):
        return codec.decode(body[begin:end], feature)


def row_count(feature: Feature, body: memoryview, offsets: memoryview | None) -> int:
    """How many rows a stored feature has."""
    if offsets is not None:
        return len(shard.npy_view(offsets)) - 1
    return len(shard.npy_view(body)) if feature.codec_name == "raw" else 1


def _jsonable(value: Any) -> Any:
    """Anything a source says, as JSON: arrays become lists, numbers JSON lacks become text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
