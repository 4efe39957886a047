"""One sample from memory to its members (FORMAT.md 4-6, 9). `vrl3data.sample` reads them.

Memory stays bounded: a member larger than `SPOOL_BYTES` goes through a file, and features may be iterators.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vrl3data import codecs, shard, storage
from vrl3data.errors import SchemaError, locate
from vrl3data.preview import contact_sheet, preview_rows
from vrl3data.sample import Body, Content, EncodedSample, Identity, bytes_of, describe, sample_digest
from vrl3data.schema import PREVIEW, Array, Coded, Episode, Feature, Schema, check, check_rows
from vrl3data.units import cut

SPOOL_BYTES = 64 * 1024**2
COPY_BYTES = 16 * 1024**2
"""Of a body that is passed through."""
PSNR_CAP = 100.0


class _Body:
    """A member that grows: in memory at first, in a spool file when it gets large. Hashes as it grows."""

    def __init__(self, spool: Path, views: bool = False) -> None:
        self.spool, self.size, self.hash = spool, 0, xxhash.xxh3_128()
        self.views = views
        """Whether the parts may stay where they lie until they are written."""
        self.chunks: list[bytes | memoryview] = []
        self.file: Any = None

    def write(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self.size += len(data)
        if self.views or (self.file is None and self.size <= SPOOL_BYTES):
            self.chunks.append(data)
            return
        with storage.writing(self.spool, storage.RESUME_HINT):
            if self.file is None:
                self.spool.mkdir(exist_ok=True)
                self.file = tempfile.NamedTemporaryFile(dir=self.spool, suffix=".member", delete=False)  # noqa: SIM115
                self.file.writelines(self.chunks)
                self.chunks = []
            self.file.write(data)

    def close(self) -> Body:
        if self.views:
            return tuple(self.chunks)
        if self.file is None:
            return b"".join(self.chunks)
        with storage.writing(self.spool, storage.RESUME_HINT):
            self.file.close()
        return Path(self.file.name)


class _Encoder:
    """The state of encoding one episode."""

    def __init__(self, episode: Episode, schema: Schema, spool: Path, views: bool) -> None:
        self.episode, self.schema, self.spool, self.views = episode, schema, spool, views
        self.bodies: list[tuple[str, _Body]] = []
        self.content: list[dict[str, Any]] = []
        self.absent: list[str] = []
        self.previews: dict[str, list[Array]] = {}
        self.psnr, self.max_error = -1.0, -1.0
        self.image_size = (0, 0)

    def member(self, name: str, views: bool = False) -> _Body:
        body = _Body(self.spool, views)
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
            if isinstance(value, Coded):
                self._passed(feature, value, count)
            elif feature.codec_name == "text":
                self._text(feature, value)
            elif self.schema.kind == "images" and feature.name == "image":
                self._picture(feature, value)
            elif feature.codec_name == "raw":
                self._raw(feature, self._blocks(feature, value, count), count, isinstance(value, np.ndarray))
            else:
                self._coded(feature, self._blocks(feature, value, count))

    def _blocks(self, feature: Feature, value: Any, count: int) -> Iterator[Array]:
        """Checked blocks of rows; counts them, and keeps a few frames for the preview."""
        seen = 0
        for block in [value] if isinstance(value, np.ndarray) else value:
            rows = check_rows(block, feature)
            self._look(feature, count, seen, rows)
            seen += len(rows)
            if seen > count:
                break
            yield rows
        if seen != count:
            more = "more" if seen > count else seen
            raise SchemaError(
                f"expected {count} rows (rows: {feature.rows}, length {self.episode.length}), found {more}"
            )

    def _look(self, feature: Feature, count: int, start: int, rows: Array) -> None:
        """Keep what the preview shows of the block of rows that begins at row `start`."""
        if feature.is_image:
            for row in preview_rows(count):
                if start <= row < start + len(rows):
                    self.previews.setdefault(feature.name, []).append(rows[row - start].copy())

    def _raw(self, feature: Feature, blocks: Iterator[Array], count: int, stays: bool) -> None:
        """`stays`: the blocks keep their values until the sample is done. A source may use their memory again."""
        body, content = self.member(f"{feature.name}.npy", views=stays and self.views), Content(feature)
        body.write(shard.npy_header(feature.dtype, (count, *feature.shape)))
        for block in blocks:
            content.add(block)
            body.write(bytes_of(block) if stays else block.tobytes())
        self.content.append(content.to_json())

    def _coded(self, feature: Feature, blocks: Iterator[Array]) -> None:
        codec = codecs.find(feature.codec)
        body, content, offsets = self.member(f"{feature.name}.{codec.suffix}"), Content(feature), [0]
        error = _Error()
        for rows in cut(blocks, feature.unit_rows):
            unit = codec.encode(rows, feature)
            body.write(unit)
            offsets.append(body.size)
            content.add(rows)
            content.add_body(unit)
            if not feature.lossless:
                error.add(rows, codec.decode(unit, feature, len(rows)))
        self.member(f"{feature.name}.offsets.npy").write(shard.npy_bytes(np.array(offsets, np.uint64)))
        self.content.append(content.to_json())
        if error.count:
            self._measured(error.psnr(), float(error.greatest))

    def _passed(self, feature: Feature, value: Coded, count: int) -> None:
        """A body that was coded before: every row is decoded once, to see that it is there, and nothing is encoded."""
        value.check(feature)
        picture = self.schema.kind == "images" and feature.name == "image"
        if picture == (value.offsets is not None):
            raise SchemaError("a picture of kind images has no offsets, every other coded body has some")
        body, codec = memoryview(value.body).cast("B"), codecs.find(feature.codec)
        offsets = None if value.offsets is None else shard.npy_bytes(value.offsets)
        found = describe(
            feature, body, None if offsets is None else memoryview(offsets), count,
            lambda start, rows: self._seen(feature, count, start, rows),
        )  # fmt: skip
        member = self.member(codec.image_suffix if picture else f"{feature.name}.{codec.suffix}")
        for start in range(0, len(body), COPY_BYTES):
            member.write(body[start : start + COPY_BYTES])
        if offsets is not None:
            self.member(f"{feature.name}.offsets.npy").write(offsets)
        self.content.append(found)
        if value.psnr >= 0:
            self._measured(value.psnr, value.max_error)

    def _seen(self, feature: Feature, count: int, start: int, rows: Array) -> None:
        self._look(feature, count, start, rows)
        if self.schema.kind == "images" and feature.name == "image":
            self.image_size = (rows.shape[1], rows.shape[2])

    def _picture(self, feature: Feature, value: Any) -> None:
        """The one picture of a sample in kind `images`."""
        content = Content(feature)
        if feature.codec_name == "raw":
            rows = check_rows(value, feature)
            self.member("npy").write(shard.npy_bytes(rows))
        else:
            codec = codecs.find(feature.codec)
            unit = value if isinstance(value, bytes) else codec.encode(check_rows(value, feature), feature)
            rows = codec.decode(unit, feature, 1)
            self.member(codec.image_suffix).write(unit)
            content.add_body(unit)
            if not feature.lossless and not isinstance(value, bytes):
                error = _Error()
                error.add(check_rows(value, feature), rows)
                self._measured(error.psnr(), float(error.greatest))
        content.add(rows)
        self.content.append(content.to_json())
        self.image_size = (rows.shape[1], rows.shape[2])

    def _text(self, feature: Feature, value: Any) -> None:
        label = check_rows(value, feature)
        if int(label[0]) != self.episode.label:
            raise SchemaError(f"the label is {self.episode.label}, the value of the feature {int(label[0])}")
        self.member(feature.name).write(str(int(label[0])).encode())
        content = Content(feature)
        content.add(label)
        self.content.append(content.to_json())

    def _measured(self, psnr: float, max_error: float) -> None:
        """The worst lossy feature counts."""
        self.psnr = psnr if self.psnr < 0 else min(self.psnr, psnr)
        self.max_error = max(self.max_error, max_error)

    def discard(self) -> None:
        """Remove the spool files of a sample that will not be."""
        for _, body in self.bodies:
            if body.file is not None:
                with suppress(OSError):  # a full disk has refused these bytes already, and that was reported
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
            if self.schema.clocks:
                meta["streams"] = ",".join(f"{clock}={count}" for clock, count in sorted(episode.streams.items()))
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


def encode(
    episode: Episode, schema: Schema, identity: Identity, spool: Path, sample_id: str | None = None, *,
    views: bool = False,
) -> EncodedSample:  # fmt: skip
    """All members of `episode`; SchemaError if it does not fit `schema`. Large members are files in `spool`.

    `sample_id` is that of a sample which was written before, and keeps it. With `views`, raw members are views of the
    arrays of `episode`, which must not change until they are written.
    """
    with locate(episode=episode.name):
        check(episode, schema)
        encoder = _Encoder(episode, schema, spool, views)
        try:
            for feature in schema.features:
                encoder.feature(feature)
            if PREVIEW in schema.extras:
                encoder.preview()
            return encoder.finish(sample_id or identity.sample_id(episode.name))
        except BaseException:
            encoder.discard()
            raise


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
