"""validate: every check that says whether a dataset can be trusted, and where it cannot."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from vrl3data import index, manifest, sample, scan, shard, stats
from vrl3data.dataset import locate_dataset
from vrl3data.derive import from_shards
from vrl3data.errors import Source, Vrl3dataError, locate
from vrl3data.manifest import Manifest
from vrl3data.report import Reporter, Silent
from vrl3data.schema import PREVIEW, Array, Feature, Schema

CHECKS = {
    "structure": "headers, order, contiguity and commit records of a shard are as FORMAT.md says",
    "shards": "no shard is missing, foreign, swapped or different from the manifest",
    "checksum": "every member has the hash of its commit record",
    "members": "every sample has the members of the schema",
    "rows": "dtype, row shape and number of rows are those of the schema and the episode",
    "meta": "what meta.json says fits together",
    "nan": "no number is NaN or infinite",
    "digest": "the stored digest is that of the content",
    "duplicates": "no id occurs twice",
    "manifest": "counts and fingerprint are those of the shards",
    "index": "the index is there and says what the shards say",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `check` is a key of CHECKS."""

    check: str
    message: str
    where: Source = field(default_factory=Source)
    severity: str = "error"

    def __str__(self) -> str:
        where = str(self.where)
        return f"{self.severity}: {self.check}: {self.message}{f' ({where})' if where else ''}"

    def to_json(self) -> dict[str, Any]:
        return {"check": self.check, "severity": self.severity, "message": self.message, **_present(self.where)}


@dataclass(frozen=True)
class Report:
    """What `validate` found. `complete` is false for a dataset that is still being written."""

    path: str
    findings: tuple[Finding, ...]
    shards: int
    samples: int
    complete: bool

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        head = {"path": self.path, "ok": self.ok, "complete": self.complete}
        counts = {"shards": self.shards, "samples": self.samples}
        return head | counts | {"findings": [finding.to_json() for finding in self.findings]}


def validate(path: Path | str, reporter: Reporter | None = None) -> Report:
    """Read every byte of a dataset and report what is wrong. Raises only if there is no dataset to read."""
    directory = locate_dataset(path)
    checker = _Checker(directory, reporter or Silent())
    checker.run()
    return Report(str(path), tuple(checker.findings), checker.shards, checker.samples, checker.complete)


class _Checker:
    """The state of one validation."""

    def __init__(self, directory: Path, reporter: Reporter) -> None:
        self.directory, self.reporter = directory, reporter
        self.findings: list[Finding] = []
        self.shards = self.samples = 0
        self.complete = False
        self.ids: dict[str, str] = {}

    def add(self, check: str, error: Vrl3dataError | str, where: Source | None = None) -> None:
        assert check in CHECKS
        if isinstance(error, Vrl3dataError):
            self.findings.append(Finding(check, error.message, error.source))
        else:
            self.findings.append(Finding(check, error, where or Source()))

    def run(self) -> None:
        found: Manifest | None = None
        try:
            found = manifest.read(self.directory)
        except Vrl3dataError as error:
            self.add("manifest", error)
        self.complete = found is not None
        paths = index.shard_files(self.directory)
        with self.reporter.progress("validating", len(paths), "shards") as advance:
            for path in paths:
                self._shard(path, found)
                advance(1)
        whole = not self.findings
        if found is not None:
            self._against_manifest(found, paths)
        if whole:
            self._derived(found)

    def _shard(self, path: Path, found: Manifest | None) -> None:
        self.shards += 1
        try:
            walked = scan.scan(path)
        except Vrl3dataError as error:
            self.add("structure", error)
            return
        if not walked.head:
            return
        try:
            with locate(shard=path.name):
                here = Manifest.from_head(walked.head)
        except Vrl3dataError as error:
            self.add("structure", error)
            return
        if found is not None and here.dataset_id != found.dataset_id:
            self.add("shards", f"the shard belongs to dataset {here.dataset_id}", Source(shard=path.name))
            return
        with scan.map_file(path) as data:
            for entry in walked.entries:
                self.samples += 1
                where = Source(shard=path.name, episode=entry.meta["name"])
                self._identity(entry, where)
                for finding in check_sample(data, entry, here.schema, where):
                    self.findings.append(finding)

    def _identity(self, entry: shard.Entry, where: Source) -> None:
        sample_id = entry.meta["id"]
        if sample_id in self.ids:
            self.add("duplicates", f"the id {sample_id} is also that of {self.ids[sample_id]}", where)
        self.ids[sample_id] = entry.meta["name"]

    def _against_manifest(self, found: Manifest, paths: list[Path]) -> None:
        listed = {item.name: item for split in found.splits.values() for item in split.shards}
        for name in sorted(set(listed) - {path.name for path in paths}):
            self.add("shards", "the shard is missing", Source(shard=name))
        for path in paths:
            if path.name not in listed:
                self.add("shards", "the shard is not in the manifest", Source(shard=path.name))
            elif _sha256(path) != listed[path.name].sha256:
                self.add("shards", "the shard does not have the sha256 of the manifest", Source(shard=path.name))

    def _derived(self, found: Manifest | None) -> None:
        """Compare manifest and index with what the shards, all sound, say."""
        try:
            here, table = from_shards(self.directory, None if found is None else found.listed())
        except Vrl3dataError as error:
            self.add("shards", error)
            return
        if found is None:
            return
        for name in sorted(set(here.splits) | set(found.splits)):
            ours, theirs = here.splits.get(name), found.splits.get(name)
            counts = [(split.samples, split.steps) if split else (0, 0) for split in (theirs, ours)]
            if counts[0] != counts[1]:
                self.add("manifest", f"split {name}: {counts[0]} samples and steps, the shards hold {counts[1]}")
        pairs = {
            "fingerprint": (found.fingerprint, here.fingerprint),
            "schema": (found.schema, here.schema),
            "provenance": (found.provenance, here.provenance),
            "subsets": (dict(found.subsets), stats.subsets(table)),
            "content": (dict(found.content), stats.content(table)),
            "lossy": (found.lossy, stats.lossy(table)),
            "fingerprint of the statistics": (found.stats.get("fingerprint"), here.fingerprint),
        }
        for what, (told, real) in pairs.items():
            if told != real:
                self.add("manifest", f"{what}: the manifest does not say what the shards say")
        self._index(found, table)

    def _index(self, found: Manifest, table: pa.Table) -> None:
        try:
            stored = index.read(self.directory, found)
        except Vrl3dataError as error:
            self.add("index", error)
            return
        if stored is None:
            self.add("index", "missing, stale or broken; 'vrl3data index rebuild' makes it anew")
        elif not stored.table().replace_schema_metadata(None).equals(table):
            self.add("index", "it does not say what the shards say; 'vrl3data index rebuild' makes it anew")


def check_sample(data: mmap.mmap, entry: shard.Entry, schema: Schema, where: Source) -> Iterator[Finding]:
    """All checks of one sample in its shard."""
    if list(entry.members) != sample.member_names(schema):
        yield Finding("members", f"found {', '.join(entry.members)}", where)
        return
    view = memoryview(data)
    bodies = {name: view[start : start + size] for name, (start, size) in entry.members.items()}
    for name, expected in entry.hashes().items():
        if xxhash.xxh3_128_hexdigest(bodies[name]) != expected:
            yield Finding("checksum", "the bytes do not have the hash of the commit record", _at(where, name))
            return
    yield from _check_meta(entry.meta, where)
    content: list[dict[str, Any]] = []
    for feature in schema.features:
        try:
            with locate(shard=where.shard, episode=where.episode, feature=feature.name):
                problems, described = _check_feature(feature, schema, bodies, entry.meta)
        except Vrl3dataError as error:
            yield Finding("rows", error.message, error.source)
            return
        content.append(described)
        for check, message, step in problems:
            yield Finding(check, message, _at(where, feature.name, step))
    content += [
        {"name": extra, "sha256": hashlib.sha256(bodies[extra]).hexdigest()}
        for extra in schema.extras
        if extra != PREVIEW
    ]
    if sample.sample_digest(entry.meta, content) != entry.meta["digest"]:
        yield Finding("digest", "the content does not have the digest of the commit record", where)


def _check_meta(meta: dict[str, Any], where: Source) -> Iterator[Finding]:
    """What types alone do not tell (FORMAT.md 6)."""
    try:
        said = json.loads(meta["source_meta"])
    except ValueError:
        said = None
    if not isinstance(said, dict):
        yield Finding("meta", "source_meta is not a JSON object", where)
    if meta["source"].startswith(("/", "\\")) or meta["source"][1:2] == ":":
        yield Finding("meta", f"source {meta['source']!r} is an absolute path", where)


def _check_feature(
    feature: Feature, schema: Schema, bodies: dict[str, memoryview], meta: dict[str, Any]
) -> tuple[list[tuple[str, str, int | None]], dict[str, Any]]:
    """(problems, the feature's part of the digest)."""
    body, offsets = sample.stored_members(feature, schema, bodies)
    count, expected = sample.row_count(feature, body, offsets, meta), sample.promised_rows(feature, meta)
    problems: list[tuple[str, str, int | None]] = []
    if count != expected:
        problems.append(("rows", f"expected {expected} rows, found {count}", None))

    def look(start: int, rows: Array) -> None:
        if any(want not in (-1, got) for want, got in zip(feature.shape, rows.shape[1:], strict=True)):
            problems.append(("rows", f"expected rows of shape {feature.shape}, found {rows.shape[1:]}", None))
        if (bad := _not_finite(rows)) is not None:
            problems.append(("nan", f"{rows[bad].size - int(np.isfinite(rows[bad]).sum())} values are NaN or infinite",
                             start + bad))  # fmt: skip
        if feature.codec_name == "text" and int(rows[0]) != meta["label"]:
            problems.append(("meta", f"label {meta['label']} in meta.json, {int(rows[0])} in the feature", None))

    return problems, sample.describe(feature, body, offsets, count, look)


def _not_finite(rows: Array) -> int | None:
    """The first row with a value that is not finite."""
    if rows.dtype.kind != "f" or bool(np.isfinite(rows).all()):
        return None
    return int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0])


def _at(where: Source, feature: str, step: int | None = None) -> Source:
    return Source(shard=where.shard, episode=where.episode, feature=feature, step=step)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _present(where: Source) -> dict[str, Any]:
    return {key: value for key, value in asdict(where).items() if value is not None}
