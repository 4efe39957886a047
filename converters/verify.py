"""Whether the sources of a dataset still are what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from converters.base import file_sha256
from vrl3data import index, scan
from vrl3data.dataset import open_dataset
from vrl3data.errors import SourceError, locate
from vrl3data.report import Reporter
from vrl3data.sample import Identity
from vrl3data.writer import CONFIRM_IMAGES


def verify_sources(dest: Path, find: Callable[[str], Path], identity: Identity, reporter: Reporter) -> int:
    """Hash every source file of the samples in `dest` that were made by `identity`. Returns how many files that were.

    `find`: name of a source as samples state it -> its file. SourceError names the first that is gone or has changed.
    """
    with open_dataset(dest, verify="off") as dataset:
        listed = dataset.manifest.listed()
        columns = (dataset.index[name].to_pylist() for name in ("id", "name", "source", "source_sha256"))
        rows = [row for row in zip(*columns, strict=True) if identity.sample_id(row[1]) == row[0]]
        made, others = {(source, sha256) for _, _, source, sha256 in rows if sha256}, len(dataset) - len(rows)
    for path in index.shard_files(dest):
        if path.name not in listed:  # of an append that was not finished, and will go on
            metas = (entry.meta for entry in scan.scan(path, CONFIRM_IMAGES).entries)
            made |= {(meta["source"], meta["source_sha256"]) for meta in metas
                     if meta["source_sha256"] and identity.sample_id(meta["name"]) == meta["id"]}  # fmt: skip
    if others:
        reporter.note(f"{others} samples of {dest} come from other sources, which were not given and are not verified")
    with reporter.progress("hashing sources", len(made), "files") as advance:
        for source, sha256 in sorted(made):
            _verify(source, find(source), sha256)
            advance(1)
    return len(made)


def _verify(source: str, path: Path, expected: str) -> None:
    with locate(path=source):
        if not path.is_file():
            raise SourceError("this file is gone; the dataset was made from it")
        try:
            found = file_sha256(path)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror or error}") from error
        if found != expected:
            raise SourceError(
                f"this file has changed since it was converted: sha256 {expected[:12]}... then, {found[:12]}... now; "
                "--overwrite converts anew"
            )
