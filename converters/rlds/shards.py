"""The files of one set, as TFDS names them: NAME-SPLIT.tfrecord-00003-of-00016, beside dataset_info.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.rlds.features import read_json
from converters.rlds.tfrecord import Record
from vrl3data.errors import SourceError
from vrl3data.schema import SPLIT

SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d{5,})-of-(?P<total>\d{5,})")
INFO = "dataset_info.json"
OTHER_FORMATS = ("*.array_record*", "*.riegeli*", "*.bagz*")


def find_shards(source: Path) -> list[Path]:
    """The TFRecord files of one set, in order of split and number. SourceError if there is none, or several sets."""
    if source.is_file():
        return [source]
    found = sorted(path for path in source.rglob("*") if ".tfrecord" in path.name and path.is_file())
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        other = [path.name for pattern in OTHER_FORMATS for path in source.rglob(pattern)]
        raise SourceError(
            f"expected TFRecord files, found {sorted(other)[0]}; only those are read" if other
            else "expected TFRecord files (NAME-SPLIT.tfrecord-00000-of-00001), found none"
        )  # fmt: skip
    folders = sorted({path.parent.relative_to(source).as_posix() for path in found})
    if len(folders) > 1:
        shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
        raise SourceError(
            f"expected one set, found TFRecord files in {len(folders)} folders: {shown}; name one of them"
        )
    return found


def name_of(path: Path, source: Path, name: str) -> str:
    if path == source:
        return name
    return f"{name}/{path.relative_to(source).as_posix()}" if source.is_dir() else path.name


def stem(path: Path) -> str:
    """`train-00003` for a shard of TFDS, or the name of the file."""
    match = SHARD.fullmatch(path.name)
    return f"{match['split']}-{match['shard']}" if match else path.name.partition(".tfrecord")[0] or path.name


def split(name: str) -> str:
    made = re.sub(r"[^a-z0-9_]+", "_", name.lower())
    return f"{made}_" if made == "all" or not SPLIT.fullmatch(made) else made


def copies(found: Mapping[str, list[Record]]) -> list[str]:
    """A note on records of the same bytes: length and checksum tell them without reading."""
    counts = Counter((record.length, record.crc) for records in found.values() for record in records)
    copies = sum(counts.values()) - len(counts)
    return [f"{copies} of {sum(counts.values())} records are copies of others (same length and checksum)"] * bool(
        copies
    )


def missing_shards(files: Mapping[str, Path]) -> list[str]:
    there: dict[tuple[str, int], set[int]] = {}
    for path in files.values():
        if match := SHARD.fullmatch(path.name):
            there.setdefault((match["split"], int(match["total"])), set()).add(int(match["shard"]))
    return [
        f"split {split}: {len(numbers)} of {total} shards are there"
        for (split, total), numbers in sorted(there.items())
        if len(numbers) < total
    ]


def read_info(
    folder: Path, files: Mapping[str, Path], found: Mapping[str, list[Record]]
) -> tuple[dict[str, Any], list[str]]:
    """dataset_info.json, and where it says something else than the files."""
    if not (folder / INFO).is_file():
        return {}, []
    try:
        info = read_json(folder / INFO)
        told = {(split["name"], number): int(count) for split in info.get("splits", ())
                for number, count in enumerate(split.get("shardLengths", ()))}  # fmt: skip
    except (SourceError, KeyError, TypeError, ValueError, AttributeError) as error:
        return {}, [f"{INFO} cannot be understood: {error}"]
    notes, splits = [], set()
    for label, path in files.items():
        if match := SHARD.fullmatch(path.name):
            splits.add(match["split"])
            want = told.get((match["split"], int(match["shard"])))
            if want is not None and want != len(found[label]):
                notes.append(f"{path.name}: {INFO} promises {want} records, {len(found[label])} were found")
    absent = sorted({split for split, _ in told} - splits) if splits else []
    return info, [*notes, *(f"split {split}: {INFO} names it, but it has no files here" for split in absent)]


def description(info: Mapping[str, Any]) -> str:
    parts = [str(info.get(key) or "").strip() for key in ("description", "citation")]
    return "\n\n".join(part for part in parts if part and "TODO" not in part[:12])
