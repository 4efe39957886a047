"""merge: several datasets of one schema become one. compact: one dataset in full shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError
from vrl3data.manifest import Manifest
from vrl3data.report import Reporter
from vrl3data.tools.rewrite import Output, Piece, carried, same_schema, spec, splits_of, write


def merge(
    inputs: Sequence[Dataset],
    dest: Path | str,
    output: Output | None = None,
    *,
    skip_duplicates: bool = False,
    reporter: Reporter | None = None,
) -> Manifest:
    """All samples of `inputs`, split by split, each in its old order. Nothing is decoded.

    Datasets must have equal schemas; licences are joined by AND. ConfigError for a sample that two of them hold,
    unless `skip_duplicates` keeps the first.
    """
    if len(inputs) < 2:
        raise ConfigError(f"merge needs at least two datasets, found {len(inputs)}")
    doubles = _doubles(inputs)
    if doubles and not skip_duplicates:
        raise ConfigError(
            f"{len(doubles)} samples are in more than one of the datasets, the first with id {min(doubles)}; "
            "to keep one of each, skip duplicates"
        )
    output = output or Output()
    described = spec("merge", inputs, same_schema(inputs), {"skip_duplicates": skip_duplicates}, output)
    total = sum(len(dataset) for dataset in inputs) - len(doubles)
    return write(dest, described, _pieces(inputs), total, reporter)


def compact(
    dataset: Dataset, dest: Path | str, output: Output | None = None, reporter: Reporter | None = None
) -> Manifest:
    """The same samples in full shards of the dataset's own: after appends, of linked shards, with another size."""
    described = spec("compact", [dataset], dataset.schema, {}, output or Output())
    return write(dest, described, _pieces([dataset]), len(dataset), reporter)


def _pieces(inputs: Sequence[Dataset]) -> Iterator[Piece]:
    seen: set[str] = set()
    splits = [splits_of(dataset) for dataset in inputs]
    for name in sorted({name for dataset in inputs for name in dataset.manifest.splits}):
        for dataset, split_N in zip(inputs, splits, strict=True):
            positions = [position for position, split in enumerate(split_N) if split == name]
            for piece in carried(dataset, positions, split_N.__getitem__):
                if piece.sample_id not in seen:
                    seen.add(piece.sample_id)
                    yield piece


def _doubles(inputs: Sequence[Dataset]) -> list[str]:
    """Ids beyond the first time they occur."""
    seen: set[str] = set()
    found = []
    for dataset in inputs:
        for sample_id in dataset.index["id"].to_pylist():
            if sample_id in seen:
                found.append(sample_id)
            seen.add(sample_id)
    return found
