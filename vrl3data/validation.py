"""validate: every check that says whether a dataset can be trusted, and where it cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from vrl3data import index, manifest, scan, shard, stats
from vrl3data.checks import CONTENT, facts
from vrl3data.checks.content import Content
from vrl3data.checks.finding import SEVERITIES, Finding
from vrl3data.checks.structure import check_sample
from vrl3data.dataset import Dataset, locate_dataset
from vrl3data.derive import chosen, from_shards
from vrl3data.errors import ConfigError, DamagedError, Source, Vrl3dataError, did_you_mean, locate
from vrl3data.manifest import Manifest
from vrl3data.report import Reporter, Silent

STRUCTURE = {
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
CHECKS = STRUCTURE | CONTENT
"""name -> what holds if the check finds nothing."""
ALWAYS = ("structure",)
"""Reported whatever is chosen: what cannot be read cannot be checked."""
HARMLESS = ("nan", "digest", "meta")
"""Findings that leave the rows of a sample readable."""


@dataclass(frozen=True)
class Report:
    """What `validate` found, errors first. `complete` is false for a dataset that is still being written."""

    path: str
    findings: tuple[Finding, ...]
    shards: int
    samples: int
    complete: bool

    @property
    def ok(self) -> bool:
        """No error; there may be warnings."""
        return not self.worse_than("error")

    def worse_than(self, severity: str) -> list[Finding]:
        """Findings of this severity (`error`, `warn`, `info`) or worse; none for `never`."""
        counted = SEVERITIES[: SEVERITIES.index(severity) + 1] if severity in SEVERITIES else ()
        return [finding for finding in self.findings if finding.severity in counted]

    def to_json(self) -> dict[str, Any]:
        head = {"path": self.path, "ok": self.ok, "complete": self.complete}
        counts = {"shards": self.shards, "samples": self.samples}
        return head | counts | {"findings": [finding.to_json() for finding in self.findings]}


def validate(
    path: Path | str,
    reporter: Reporter | None = None,
    *,
    checks: Iterable[str] | None = None,
    skip: Iterable[str] = (),
) -> Report:
    """Read every byte of a dataset and report what is wrong. Raises only if there is no dataset to read.

    `checks` are the names (of CHECKS) to report, None for all; `skip` those to leave out; `structure` is always
    reported. ConfigError for an unknown name. One pass over the shards, and one over numbers and a few frames for the
    statistics; of each episode about 100 to 200 kB are kept, 512 MB in all at most, and 40 bytes per number of a row.
    """
    wanted = set(CHECKS) if checks is None else set(checks)
    for name in (*sorted(wanted), *skip):
        if name not in CHECKS:
            raise ConfigError(f"no check {name!r}{did_you_mean(name, CHECKS)}")
    directory = locate_dataset(path)
    checker = _Checker(directory, reporter or Silent(), (wanted - set(skip)) | set(ALWAYS))
    checker.run()
    findings = sorted(checker.findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(str(path), tuple(findings), checker.shards, checker.samples, checker.complete)


class _Checker:
    """The state of one validation."""

    def __init__(self, directory: Path, reporter: Reporter, wanted: Collection[str]) -> None:
        self.directory, self.reporter, self.wanted = directory, reporter, wanted
        self.findings: list[Finding] = []
        self.sound = True
        """No error yet, whether or not it is reported."""
        self.shards = self.samples = 0
        self.complete = False
        self.ids: dict[str, str] = {}
        self.content = Content(set(wanted) & set(CONTENT))

    def keep(self, finding: Finding) -> None:
        assert finding.check in CHECKS
        self.sound = self.sound and finding.severity != "error"
        if finding.check in self.wanted:
            self.findings.append(finding)

    def add(self, check: str, error: Vrl3dataError | str, where: Source | None = None) -> None:
        if isinstance(error, Vrl3dataError):
            self.keep(Finding(check, error.message, error.source))
        else:
            self.keep(Finding(check, error, where or Source()))

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
                try:
                    self._shard(path, found)
                except FileNotFoundError:  # a writer has just given it its final name
                    self._shard(path.with_name(path.name.removesuffix(shard.PART)), found)
                advance(1)
        whole = self.sound
        for finding in self.content.finish():
            self.keep(finding)
        if found is not None:
            self._against_manifest(found, paths)
            for finding in (*facts.licence(found), *facts.version(self.directory)):
                self.keep(finding)
        if whole:
            self._derived(found)

    def _shard(self, path: Path, found: Manifest | None) -> None:
        walked = self._walk(path, found)
        self.shards += 1
        if walked is None:
            return
        schema = Manifest.from_head(walked.head).schema
        with scan.map_file(path) as data:
            for entry in walked.entries:
                self.samples += 1
                where = Source(shard=path.name, episode=entry.meta["name"])
                self._identity(entry, where)
                watch = self.content.sample(schema, entry.meta, where)
                readable = True
                for finding in check_sample(data, entry, schema, where, watch):
                    readable = readable and finding.check in HARMLESS
                    self.keep(finding)
                if readable:
                    for finding in self.content.take(watch):
                        self.keep(finding)
                del watch  # it holds views of the mapping

    def _walk(self, path: Path, found: Manifest | None) -> scan.Scan | None:
        """The samples of a shard that count; None, with the reason kept, if there are none to look at."""
        info = found.listed().get(path.name) if found is not None else None
        linked = info.linked if info is not None else None
        try:
            walked = scan.scan(path, linked=linked)
            if not walked.head:
                return None
            if info is not None and linked is not None:
                return chosen(walked, info)
            with locate(shard=path.name):
                here = Manifest.from_head(walked.head)
        except Vrl3dataError as error:
            self.add("structure", error)
            return None
        if found is not None and here.dataset_id != found.dataset_id:
            self.add("shards", f"the shard belongs to dataset {here.dataset_id}", Source(shard=path.name))
            return None
        if found is not None and info is None:
            self._not_listed(path, len(walked.entries))
            return None
        return walked

    def _not_listed(self, path: Path, samples: int) -> None:
        """FORMAT.md 8: such a shard does not count."""
        message = f"an append that was not finished: {samples} samples that dataset.json does not list do not count yet"
        self.keep(Finding("shards", message, Source(shard=path.name), "info"))

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
                continue  # said where it was read
            if _sha256(path) != listed[path.name].sha256:
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
            "provenance": (_sorted(found.provenances), _sorted(here.provenances)),
            "subsets": (dict(found.subsets), stats.subsets(table)),
            "content": (dict(found.content), stats.content(table)),
            "lossy": (found.lossy, stats.lossy(table)),
        }
        if found.is_linked:
            del pairs["provenance"]  # the heads of its shards speak of the dataset they were taken from
        for what, (told, real) in pairs.items():
            if told != real:
                self.add("manifest", f"{what}: the manifest does not say what the shards say")
        self._index(found, table)
        if "stats" in self.wanted:
            self._statistics(found, here, table)

    def _statistics(self, found: Manifest, here: Manifest, table: pa.Table) -> None:
        real = replace(here, stats=found.stats)
        try:
            with Dataset(self.directory, real, table, verify="off") as dataset:
                for finding in facts.statistics(dataset):
                    self.keep(finding)
        except DamagedError as error:
            self.add("stats", error)

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


def _sorted(provenances: Iterable[Any]) -> list[str]:
    return sorted(shard.dumps(provenance) for provenance in provenances)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
