"""`info`, `view`, `card`, `index`: look at a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import human_bytes, json_option, print_json, rows

PATH = click.argument("path")


@click.command()
@PATH
@json_option
def info(path: str, as_json: bool) -> None:
    """Say what is in the dataset PATH. Example: vrl3data info sample:fetch-reach"""
    from vrl3data.dataset import open_dataset

    with open_dataset(path) as dataset:
        if as_json:
            print_json(
                {
                    "path": str(dataset.path) if dataset.remote else path,
                    "complete": dataset.manifest.complete,
                    **dataset.manifest.to_json(),
                }
            )
        else:
            click.echo(_info_text(dataset))
        if dataset.remote:
            click.echo(str(dataset.fetched), err=True)


def _info_text(dataset: Any) -> str:
    found, schema = dataset.manifest, dataset.schema
    state = "" if found.complete else " (still being written)"
    splits = ", ".join(f"{name} {split.samples:,}" for name, split in found.splits.items())
    lines = [
        ("dataset", f"{found.name or dataset.path.name}{state}"),
        (schema.kind, f"{len(dataset):,} ({splits})"),
        *([("steps", f"{found.steps:,}")] if schema.kind == "episodes" else []),
        ("bytes", human_bytes(found.bytes)),
        ("licence", found.license),
        ("made by", f"{found.provenance.get('tool')}, converter {found.provenance.get('converter')}"),
        ("source", ", ".join(str(made.get("source", {}).get("name", "")) for made in found.provenances)),
        ("fingerprint", found.fingerprint),
    ]
    table = [("feature", "dtype", "shape", "rows", "codec")]
    table += [(f.name, f.dtype, str(f.shape), f.rows, f.codec) for f in schema.features]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    features = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return f"{rows(lines)}\n\n{features}"


@click.command()
@PATH
@click.option("--html", "target", type=click.Path(path_type=Path), default=Path("page.html"), show_default=True,
              help="Where to write the page.")  # fmt: skip
@click.option("--limit", type=int, default=50, show_default=True, help="Episodes shown at most.")
def view(path: str, target: Path, limit: int) -> None:
    """Make one offline HTML page of the dataset PATH: previews, actions, rewards, schema.

    Example: vrl3data view sample:fetch-reach --html page.html
    """
    from cards.html.page import write_page
    from vrl3data import storage
    from vrl3data.dataset import open_dataset

    with open_dataset(path) as dataset, storage.writing(target):
        click.echo(write_page(dataset, target, limit))


@click.command()
@PATH
def card(path: str) -> None:
    """Write README.md of the dataset PATH anew, so that the hub's viewer reads its shards."""
    from vrl3data import app, storage

    with storage.writing(Path(path)):
        click.echo(app.write_card(path))


@click.group()
def index() -> None:
    """The index of a dataset: where every member of every sample lies."""


@index.command()
@PATH
def rebuild(path: str) -> None:
    """Make index.parquet anew from the shards of PATH. Example: vrl3data index rebuild out/door"""
    from dataclasses import replace

    from vrl3data import index as indexes
    from vrl3data import manifest, storage
    from vrl3data.dataset import check_shards, locate_dataset
    from vrl3data.derive import from_shards
    from vrl3data.errors import DamagedError, locate
    from vrl3data.writer import lock

    directory = locate_dataset(path, to_write=True)
    with lock(directory):  # an append may be about to replace what is read here
        known = manifest.read(directory)
        if known is not None:
            check_shards(directory, known)
        found, table = from_shards(directory, None if known is None else known.listed())
        same = known is None or known.is_linked or known.dataset_id == found.dataset_id
        if known is not None and not (same and known.samples == len(table)):
            with locate(path=directory):
                raise DamagedError("the shards are not those of dataset.json: another dataset or number of samples")
        with storage.writing(directory):
            facts = indexes.write(directory, table)
            if known is not None:
                replace(known, index=facts).write(directory)
    click.echo(f"{directory / indexes.INDEX}: {len(table):,} samples")
