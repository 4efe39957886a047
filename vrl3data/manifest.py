"""dataset.json: what a dataset is and what it was made from (FORMAT.md 8, 9)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vrl3data import __version__, shard, storage
from vrl3data.errors import DamagedError, FormatError, locate
from vrl3data.schema import SPLIT, Schema

MANIFEST = "dataset.json"
SHARD_SIZE = 256 * 1024**2


@dataclass(frozen=True)
class Provenance:
    """What every byte of the shards follows from, beside the source itself."""

    converter: str
    converter_version: int = 1
    source_name: str = ""
    source_identity: str = ""
    source_files: int = 0
    source_bytes: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    shard_size: int = SHARD_SIZE
    inputs: tuple[Mapping[str, Any], ...] = ()
    """What is known of the datasets it was made from, if it was made from datasets."""

    def to_json(self) -> dict[str, Any]:
        source = {"name": self.source_name, "identity": self.source_identity}
        source |= {"files": self.source_files, "bytes": self.source_bytes}  # type: ignore[dict-item]
        data = {
            "tool": f"vrl3data {__version__}",
            "versions": dict(self.versions),
            "converter": self.converter,
            "converter_version": self.converter_version,
            "source": source,
            "options": dict(self.options),
            "storage": {"shard_size": self.shard_size},
        }
        if self.inputs:
            data["inputs"] = list(self.inputs)
        return json.loads(json.dumps(data))


@dataclass(frozen=True)
class DatasetSpec:
    """All that is decided about a dataset before its first sample."""

    schema: Schema
    name: str
    provenance: Provenance
    license: str = "unknown"
    description: str = ""

    def facts(self) -> dict[str, Any]:
        """What every shard says of the dataset besides its schema."""
        return {
            "dataset_id": self.dataset_id,
            "provenance": self.provenance.to_json(),
            "name": self.name,
            "license": self.license,
            "description": self.description,
        }

    @property
    def dataset_id(self) -> str:
        return _dataset_id(self.provenance.to_json(), self.schema)


@dataclass(frozen=True)
class ShardInfo:
    name: str
    samples: int
    bytes: int
    sha256: str
    linked: Mapping[str, Any] | None = None
    """Of a shard taken over from another dataset: its dataset_id, split, shard, and the keys that count."""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SplitInfo:
    samples: int = 0
    steps: int = 0
    shards: tuple[ShardInfo, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"samples": self.samples, "steps": self.steps, "shards": [item.to_json() for item in self.shards]}


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    schema: Schema
    dataset_id: str
    provenance: Mapping[str, Any]
    appended: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    license: str = "unknown"
    description: str = ""
    splits: Mapping[str, SplitInfo] = field(default_factory=dict)
    subsets: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    lossy: Mapping[str, Any] | None = None
    skipped: tuple[Mapping[str, str], ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    """`{"xxh3_128": hash of index.parquet}`."""
    run: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True
    """False for a dataset that is still being written; never stored."""

    @property
    def provenances(self) -> tuple[Mapping[str, Any], ...]:
        """Of what the dataset was begun with and of all that was appended."""
        return (self.provenance, *self.appended)

    @property
    def is_linked(self) -> bool:
        return any(item.linked for split in self.splits.values() for item in split.shards)

    @property
    def samples(self) -> int:
        return sum(split.samples for split in self.splits.values())

    @property
    def steps(self) -> int:
        return sum(split.steps for split in self.splits.values())

    @property
    def bytes(self) -> int:
        return sum(item.bytes for split in self.splits.values() for item in split.shards)

    def to_json(self) -> dict[str, Any]:
        requires = sorted([*self.schema.requires(), *([shard.LINKED] if self.is_linked else [])])
        head = {"format": shard.FORMAT, "requires": requires, "kind": self.schema.kind}
        body = {
            key: getattr(self, key)
            for key in ("name", "license", "description", "dataset_id", "fingerprint", "subsets", "content", "lossy")
        }
        tail = {"skipped": list(self.skipped), "index": self.index, "stats": self.stats, "run": self.run}
        splits = {"splits": {name: split.to_json() for name, split in self.splits.items()}}
        made = {"provenance": self.provenance} | ({"appended": list(self.appended)} if self.appended else {})
        data = head | body | splits | {"schema": self.schema.to_json()} | made | tail
        return {key: value for key, value in data.items() if key != "lossy" or value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        schema = Schema.from_json(data["kind"], data["schema"])
        plain = ("dataset_id", "provenance", "name", "license", "description", "subsets", "fingerprint")
        more = ("content", "lossy", "stats", "run", "index")
        values = {key: data[key] for key in (*plain, *more) if key in data}
        for key in ("provenance", "subsets", "content", "stats", "run", "index"):
            if not isinstance(values.get(key, {}), dict):
                raise ValueError(f"{key} {values[key]!r}")
        if not all(isinstance(count, int) for count in values.get("subsets", {}).values()):
            raise FormatError("subsets that are listed in files are not known to this version")
        for name in data["splits"]:
            if not SPLIT.fullmatch(name):
                raise ValueError(f"split {name!r}")
        for name, item in data["splits"].items():
            if not all(isinstance(item[key], int) and item[key] >= 0 for key in ("samples", "steps")):
                raise ValueError(f"split {name!r} has {item['samples']!r} samples, {item['steps']!r} steps")
        splits = {
            name: SplitInfo(
                item["samples"], item["steps"], tuple(ShardInfo(**_known(entry)) for entry in item["shards"])
            )
            for name, item in data["splits"].items()
        }
        values |= {key: tuple(data.get(key, ())) for key in ("skipped", "appended")}
        return cls(schema, splits=splits, **values)

    @classmethod
    def from_head(cls, head: Mapping[str, Any]) -> Manifest:
        """What `__meta__` alone tells: for a dataset without dataset.json."""
        schema = Schema.from_json(head["kind"], head["schema"])
        return cls(
            schema,
            head["dataset_id"],
            head["provenance"],
            name=str(head.get("name", "")),
            license=str(head.get("license", "unknown")),
            description=str(head.get("description", "")),
            complete=False,
        )

    def write(self, directory: Path) -> None:
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=True, allow_nan=False)
        storage.replace_file(directory / MANIFEST, text.encode("ascii") + b"\n")

    def listed(self) -> dict[str, ShardInfo]:
        """The shards that count, by file name."""
        return {item.name: item for split in self.splits.values() for item in split.shards}

    def shard_sizes(self) -> dict[str, int]:
        return {name: item.bytes for name, item in self.listed().items()}


def read(directory: Path) -> Manifest | None:
    """The manifest of a dataset, None if there is none, DamagedError if it is not one."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    with locate(path=path):
        return parse(path.read_bytes())


def parse(text: bytes) -> Manifest:
    """The content of a dataset.json. DamagedError if it is none, FormatError for what this version cannot read."""
    try:
        return Manifest.from_json(shard.check_head(json.loads(text)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"this is not a manifest of a dataset: {type(error).__name__} {error}") from error


def fingerprint(digests: Iterable[str]) -> str:
    """FORMAT.md 9: independent of order, shards and lossless codecs."""
    total = hashlib.sha256()
    for digest in sorted(digests):
        total.update(digest.encode() + b"\n")
    return total.hexdigest()


def _dataset_id(provenance: Mapping[str, Any], schema: Schema) -> str:
    text = shard.dumps([provenance, schema.to_json(), schema.kind])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_first(dataset_id: str, provenance: Mapping[str, Any], schema: Schema) -> bool:
    """Whether a dataset was begun with `provenance`, as far as its id tells (FORMAT.md 9)."""
    return dataset_id == _dataset_id(provenance, schema)


def differences(there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`options.image_size: 84 there, 100 now`, for every leaf that differs."""
    found: list[str] = []
    for key in sorted(set(there) | set(now)):
        old, new = there.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {_short(old)} there, {_short(new)} now")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    # Names become paths and parts of URLs, sizes are promises: neither is taken from outside as it comes.
    if not isinstance(entry["name"], str) or not shard.FILE_NAME.fullmatch(entry["name"]):
        raise ValueError(f"shard {entry['name']!r}")
    if not all(isinstance(entry[key], int) and entry[key] >= 0 for key in ("samples", "bytes")):
        raise ValueError(f"shard {entry['name']!r} has {entry['samples']!r} samples, {entry['bytes']!r} bytes")
    if not isinstance(entry.get("linked") or {}, dict):
        raise ValueError(f"shard {entry['name']!r} is linked to {entry['linked']!r}")
    return {key: entry[key] for key in ("name", "samples", "bytes", "sha256")} | {"linked": entry.get("linked")}
