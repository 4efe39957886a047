"""Folders of datasets on this machine: where they are, and whether their shards are those of the manifest."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from vrl3data import address, index, manifest, scan
from vrl3data.address import Address
from vrl3data.errors import ConfigError, DamagedError, did_you_mean, locate
from vrl3data.manifest import Manifest
from vrl3data.schema import Schema

PACKAGED = "sample:"


def locate_dataset(path: Path | str, to_write: bool = False) -> Path:
    """The directory of a dataset; ConfigError that says what is there instead."""
    text = str(path)
    if address.is_url(path):
        folder = address.parse(text)
        if isinstance(folder, Address):
            with locate(path=folder):
                raise ConfigError("expected a folder on this machine, found a URL; download the dataset first")
        path = folder
    if text.startswith(PACKAGED):
        if to_write:
            raise ConfigError(f"{text} belongs to the package and is not written to; copy it first")
        name = text.removeprefix(PACKAGED)
        home = Path(str(files("vrl3data").joinpath("packaged")))
        known = sorted(item.parent.name for item in home.glob(f"*/{manifest.MANIFEST}"))
        if name not in known:
            raise ConfigError(f"no packaged sample {name!r}{did_you_mean(name, known)}")
        return home / name
    directory = Path(path)
    with locate(path=directory):
        if not directory.exists():
            raise ConfigError("there is no such directory")
        if not directory.is_dir():
            raise ConfigError("expected the directory of a dataset, found a file; 'vrl3data convert' makes a dataset")
        if not (directory / manifest.MANIFEST).is_file() and not index.shard_files(directory):
            raise ConfigError("this is not a vrl3data dataset: it has neither dataset.json nor data/*.tar")
    return directory


def check_shards(directory: Path, found: Manifest) -> None:
    """DamagedError if a shard of the manifest is missing or has another size. Further shards do not count."""
    sizes = index.shard_sizes(directory)
    for name, size in found.shard_sizes().items():
        if sizes.get(name) != size:
            state = "is missing" if name not in sizes else f"has {sizes[name]} bytes"
            with locate(shard=name):
                raise DamagedError(
                    f"the shard {state}, the manifest promises {size} bytes; 'vrl3data repair' saves what is whole"
                )


def check_schema(directory: Path, found: Manifest) -> None:
    """DamagedError if dataset.json, which has no hash, does not describe the features as the first shard does."""
    for name, info in list(found.listed().items())[:1]:
        here = Manifest.from_head(scan.read_head(directory / "data" / name, info.linked))
        told = {"schema": _by_name(found.schema), "dataset_id": here.dataset_id if info.linked else found.dataset_id}
        differing = manifest.differences({"schema": _by_name(here.schema), "dataset_id": here.dataset_id}, told)
        if differing or here.schema != found.schema:
            with locate(shard=name):
                raise DamagedError(
                    f"{manifest.MANIFEST} does not say what the shard says: {'; '.join(differing[:3]) or 'schema'}"
                )


def _by_name(schema: Schema) -> dict[str, Any]:
    return {feature.name: feature.to_json() for feature in schema.features} | {"extras": list(schema.extras)}
