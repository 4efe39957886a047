"""One episode or image of a dataset, as a mapping from features to arrays. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vrl3data import sample, shard
from vrl3data.errors import DamagedError, locate
from vrl3data.schema import PREVIEW, Array, Coded, Episode, Feature

if TYPE_CHECKING:
    from vrl3data.dataset import Dataset


class StoredSample:
    """One episode or image in a dataset. Nothing is read before it is asked for.

    `sample["action"]` is a read-only array with rows first; raw features are views of the mapped shard.
    """

    def __init__(self, dataset: Dataset, position: int) -> None:
        self.dataset, self.position = dataset, position
        self._meta: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[str]:
        """Names of the features."""
        return iter(self.dataset.schema.names)

    def __contains__(self, feature: object) -> bool:
        return feature in self.dataset.schema

    def keys(self) -> tuple[str, ...]:
        return self.dataset.schema.names

    def __repr__(self) -> str:
        return f"<sample {self.name!r} of {self.dataset.path.name}: {', '.join(self.keys())}>"

    @property
    def meta(self) -> dict[str, Any]:
        """The commit record (FORMAT.md 6)."""
        if self._meta is None:
            with self._located():
                self._meta = dict(self.dataset.commit(self.position))
        return self._meta

    @property
    def name(self) -> str:
        return str(self.meta["name"] if self._meta else self.dataset.index["name"][self.position].as_py())

    @property
    def length(self) -> int:
        """Steps T of an episode."""
        return int(self.meta["length"] if self._meta else self.dataset.index["length"][self.position].as_py())

    @property
    def source_meta(self) -> dict[str, Any]:
        """Everything else the source said."""
        try:
            return dict(json.loads(self.meta["source_meta"]))
        except (ValueError, TypeError) as error:
            with self._located():
                raise DamagedError(f"source_meta is not a JSON object: {error}") from error

    @property
    def absent(self) -> tuple[str, ...]:
        """Features that are missing in this sample and stand as one row of zeros."""
        return tuple(filter(None, self.meta["absent"].split(",")))

    def __getitem__(self, feature: str) -> Array:
        return self.rows(feature)

    def rows(self, feature: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) of a feature; only their units are decoded. DamagedError on broken bytes."""
        body, offsets = self._bodies(feature)
        described = self.dataset.schema[feature]
        with self._located(feature):
            count = sample.row_count(described, body, offsets, self.meta)
            promised = sample.promised_rows(described, self.meta)
            if count != promised:
                raise DamagedError(f"expected {promised} rows, found {count}")
            start, stop, _ = slice(start, stop).indices(count)
            return sample.decode_rows(described, body, offsets, start, stop, count)

    def row_count(self, feature: str) -> int:
        """How many rows a feature has in this sample; of a remote one by its commit record, without the rows."""
        if self.dataset.remote:
            return sample.promised_rows(self.dataset.schema[feature], self.meta)
        body, offsets = self._bodies(feature)
        with self._located(feature):
            return sample.row_count(self.dataset.schema[feature], body, offsets, self.meta)

    def preview(self) -> bytes | None:
        """The contact sheet, a JPEG file, if there is one."""
        if PREVIEW not in self.dataset.schema.extras:
            return None
        return bytes(self.dataset.member(self.position, PREVIEW))

    def load(self, coded: bool = False) -> Episode:
        """The whole sample in memory, as a writer takes it. With `coded`, coded features stay as they are stored."""
        self.prefetch()
        meta, schema = self.meta, self.dataset.schema
        plain = ("name", "task", "origin", "source", "source_sha256")
        ends = ("length", "terminated", "truncated", "success", "start_time_ns", "label", "class_name")
        values: dict[str, Any] = {}
        for feature in schema.features:
            if feature.name in self.absent:
                continue
            if schema.kind == "images" and feature.codec == "jpeg":
                values[feature.name] = bytes(self._bodies(feature.name)[0])
            elif coded and feature.codec_name not in ("raw", "text"):
                values[feature.name] = self._coded(feature)
            else:
                values[feature.name] = self[feature.name]
        return Episode(
            values=values,
            split=str(self.dataset.index["split"][self.position].as_py()),  # of a linked sample it is another
            final_observation=bool(meta.get("final_observation", 0)),
            subsets=tuple(filter(None, meta["subsets"].split(","))),
            streams=sample.stream_rows(meta),
            source_meta=self.source_meta,
            **{key: meta[key] for key in (*plain, *ends) if key in meta},
        )

    def _coded(self, feature: Feature) -> Coded:
        body, offsets = self._bodies(feature.name)
        lost = (-1.0, -1.0) if feature.lossless else (float(self.meta["psnr"]), float(self.meta["max_error"]))
        with self._located(feature.name):
            return Coded(body, None if offsets is None else shard.npy_view(offsets), *lost, stored=feature)

    def prefetch(self) -> None:
        """All of it will be read: of a remote dataset it is fetched at once."""
        self.dataset.prefetch([self.position], sample.member_names(self.dataset.schema))

    def _bodies(self, feature: str) -> tuple[memoryview, memoryview | None]:
        schema = self.dataset.schema
        members = sample.feature_members(schema[feature], schema)
        self.dataset.prefetch([self.position], members)
        views = [self.dataset.member(self.position, member) for member in members]
        return views[0], views[1] if len(views) > 1 else None

    def _located(self, feature: str | None = None) -> Any:
        key, shard_name = self.dataset.place(self.position)
        name = self._meta["name"] if self._meta else f"{key:09d}"
        return locate(path=self.dataset.path, shard=shard_name, episode=name, feature=feature)
