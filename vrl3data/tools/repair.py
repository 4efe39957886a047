"""repair: the whole samples of a damaged dataset, saved into a new one, and a list of what is lost."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from vrl3data import __version__, index, manifest, scan, shard
from vrl3data.dataset import locate_dataset
from vrl3data.errors import DamagedError, FormatError, Vrl3dataError, locate
from vrl3data.linked import expand
from vrl3data.manifest import DatasetSpec, Manifest, Provenance
from vrl3data.report import Reporter, Silent
from vrl3data.sample import EncodedSample, member_names
from vrl3data.tools.rewrite import Output, Piece, origin, write

MAGIC = b"ustar\x0000"
MAGIC_AT = 257


@dataclass(frozen=True)
class Lost:
    """A sample that could not be saved; empty where not even that is known."""

    shard: str
    key: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard or 'a shard that is gone'}: sample {self.key or '?'} {self.name}: {self.reason}".rstrip()


@dataclass(frozen=True)
class Whole:
    """A sample with all its members and hashes."""

    path: Path
    key: int
    meta: dict[str, Any]
    places: shard.Places


@dataclass
class Salvage:
    """What is left of a dataset."""

    whole: list[Whole] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    manifest: Manifest | None = None


def examine(path: Path | str, reporter: Reporter | None = None) -> Salvage:
    """Look at every byte of a dataset and say which samples are whole. Nothing is written.

    DamagedError if no shard says what the dataset holds.
    """
    directory, reporter, found = locate_dataset(path), reporter or Silent(), Salvage()
    paths = index.shard_files(directory)
    found.manifest = known = _known(directory, paths)
    seen: set[str] = set()
    with reporter.progress("examining", len(paths), "shards") as advance:
        for file in paths:
            foreign = _foreign(file, known)
            if foreign is not None:
                found.lost.append(foreign)
                continue
            if not file.exists():  # a writer has just given it its final name
                file = file.with_name(file.name.removesuffix(shard.PART))
            for item in _counted(file, _samples(file, member_names(known.schema)), known):
                if isinstance(item, Lost):
                    found.lost.append(item)
                elif item.meta["id"] not in seen:
                    seen.add(item.meta["id"])
                    found.whole.append(item)
            advance(1)
    _as_selected(directory, found)
    told = {(lost.shard, lost.key) for lost in found.lost}
    found.lost += [lost for lost in _missing(directory, known, seen) if (lost.shard, lost.key) not in told]
    return found


def repair(
    path: Path | str, dest: Path | str, output: Output | None = None, reporter: Reporter | None = None
) -> tuple[Manifest, tuple[Lost, ...]]:
    """Write the whole samples of the dataset in `path` into a new one in `dest`. Returns it and what is lost."""
    found, output = examine(path, reporter), output or Output()
    known = found.manifest
    assert known is not None
    if not found.whole:
        with locate(path=path):
            raise DamagedError("not one whole sample is left")
    fingerprint = manifest.fingerprint(item.meta["digest"] for item in found.whole)
    provenance = Provenance(
        converter="repair", source_name=known.name, source_identity=fingerprint,
        source_files=len({item.path for item in found.whole}), options={"lost": len(found.lost)},
        versions={"vrl3data": __version__}, shard_size=output.shard_size, inputs=(origin(known),),
    )  # fmt: skip
    described = DatasetSpec(
        known.schema, output.name or known.name, provenance, output.license or known.license, known.description
    )
    ordered = sorted(found.whole, key=lambda item: (item.meta["split"], item.path.name, item.key))
    pieces = (Piece(item.meta["id"], partial(_carry, item)) for item in ordered)
    return write(dest, described, pieces, len(ordered), reporter), tuple(found.lost)


def _carry(item: Whole, _spool: Path) -> EncodedSample:
    meta = {key: value for key, value in item.meta.items() if key != "meta_xxh3_128"}
    view = memoryview(scan.map_file(item.path))
    members = [(name, view[start : start + size]) for name, (start, size) in item.places.items()]
    return EncodedSample(meta, (*members, (shard.COMMIT_MEMBER, shard.commit_bytes(meta))))


def _as_selected(directory: Path, found: Salvage) -> None:
    """Without dataset.json, an index that is left tells which samples counted, and in which split: shards that were
    linked hold more."""
    path = directory / index.INDEX
    if found.manifest is None or found.manifest.complete or not path.is_file():
        return
    try:
        table = pq.read_table(path, columns=["id", "split"])
    except (pa.ArrowException, OSError):
        return  # nothing to go by: what is whole is saved
    splits = dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    kept = [item for item in found.whole if item.meta["id"] in splits]
    if kept:
        found.whole = [replace(item, meta=item.meta | {"split": splits[item.meta["id"]]}) for item in kept]


def _counted(file: Path, items: Iterable[Whole | Lost], known: Manifest) -> Iterator[Whole | Lost]:
    """Of a linked shard the samples that count, in the split that dataset.json says (FORMAT.md 8)."""
    info, match = known.listed().get(file.name), shard.FILE_NAME.fullmatch(file.name)
    assert match is not None
    if info is None or info.linked is None:
        yield from items
        return
    keys = set(expand(info.linked.get("keys"), info.samples))
    for item in items:
        if int(item.key) in keys:
            yield item if isinstance(item, Lost) else replace(item, meta=item.meta | {"split": match[1]})


def _foreign(file: Path, known: Manifest) -> Lost | None:
    """What is said of a shard whose head, if it is whole, is that of another dataset."""
    info = known.listed().get(file.name)
    wanted = info.linked.get("dataset_id") if info is not None and info.linked else known.dataset_id
    with suppress(Vrl3dataError):
        there = _head(file)["dataset_id"]
        if there != wanted:
            return Lost(file.name, "", "", f"the shard belongs to dataset {there}")
    return None


def _head(path: Path) -> dict[str, Any]:
    with scan.map_file(path) as data:
        name, size = shard.parse_member_header(data[: shard.BLOCK])
        return shard.check_shard_head(shard.unsealed(data[shard.BLOCK : shard.BLOCK + size], name))


def _known(directory: Path, paths: list[Path]) -> Manifest:
    """What the dataset is: from dataset.json, or from the first shard whose head is whole."""
    with suppress(Vrl3dataError):
        found = manifest.read(directory)
        if found is not None:
            return found
    for path in paths:
        with suppress(Vrl3dataError):
            return Manifest.from_head(_head(path))
    with locate(path=directory):
        raise DamagedError("neither dataset.json nor the head of any shard is readable, so the schema is lost")


def _samples(path: Path, members: list[str]) -> Iterator[Whole | Lost]:
    """Every commit record of a shard, wherever it lies, with the sample before it."""
    if not path.stat().st_size:
        return
    with scan.map_file(path) as data:
        place = data.find(MAGIC)
        while place >= 0:
            item = _sample(path, data, place - MAGIC_AT, members)
            if item is not None:
                yield item
            place = data.find(MAGIC, place + 1)


def _sample(path: Path, data: mmap.mmap, start: int, members: list[str]) -> Whole | Lost | None:
    """The sample whose commit record has its header at `start`; None if there is no record."""
    if start < 0:
        return None
    try:
        name, size = shard.parse_member_header(data[start : start + shard.BLOCK])
    except DamagedError:
        return None
    key, _, member = name.partition(".")
    if member != shard.COMMIT_MEMBER or not key.isdigit():
        return None
    lost = Lost(path.name, key, "", "its commit record meta.json is not whole")
    payload = data[start + shard.BLOCK : start + shard.BLOCK + size]
    try:
        meta = shard.parse_commit(payload)
        shard.check_meta(meta, "images" if "label" in meta else "episodes")
    except DamagedError:
        return lost
    lost = replace(lost, name=meta["name"])
    names, sizes = meta["members"].split(","), [int(text) for text in meta["sizes"].split(",")]
    if [*names, shard.COMMIT_MEMBER] != members:
        return replace(lost, reason="its members are not those of the schema")
    offset = start - sum(shard.BLOCK + shard.padded(length) for length in sizes)
    places = {}
    for name, length, expected in zip(names, sizes, meta["xxh3_128"].split(","), strict=True):
        begin = offset + shard.BLOCK
        header = shard.member_header(shard.sample_name(int(key), name), length)
        if offset < 0 or data[offset:begin] != header:
            return replace(lost, reason=f"the header of {name} is damaged")
        if xxhash.xxh3_128_hexdigest(memoryview(data)[begin : begin + length]) != expected:
            return replace(lost, reason=f"the bytes of {name} do not have their hash")
        places[name] = (begin, length)
        offset = begin + shard.padded(length)
    return Whole(path, int(key), meta, places)


def _missing(directory: Path, known: Manifest, seen: set[str]) -> Iterator[Lost]:
    """Samples that the index knows and no shard has."""
    stored = None
    with suppress(DamagedError, FormatError):
        stored = index.read(directory, known)
    if stored is None:
        missing = known.samples - len(seen)
        if known.complete and missing > 0:
            yield Lost(
                "", "", "", f"{missing} of {known.samples} samples in all are gone; the index that names them too"
            )
        return
    columns = (stored[name].to_pylist() for name in ("id", "shard", "key", "name"))
    for sample_id, shard_name, key, name in zip(*columns, strict=True):
        if sample_id not in seen:
            yield Lost(shard_name, f"{key:0{shard.KEY_DIGITS}d}", name, "it is gone")
