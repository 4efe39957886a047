"""What belongs to a dataset, an encoder or a policy, by the JSON file that describes it, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import xxhash

from cards.model_card import CARD, parse_sidecar
from vrl3data import index, manifest, shard
from vrl3data.errors import ConfigError, DamagedError, locate
from vrl3data.manifest import Manifest
from vrl3data.report import Reporter
from vrl3data.validation import validate
from vrl3data.writer import LOCK

SIDECARS = {"dataset": manifest.MANIFEST, "policy": "policy.json", "encoder": "encoder.json"}
"""The file that makes a directory what it is; it is written last. A policy may have its encoder beside it."""
POLICY_ENCODER = ("encoder.json", "encoder.safetensors", "encoder/encoder.json", "encoder/encoder.safetensors")
FIXED = (*SIDECARS.values(), index.INDEX, CARD, "encoder.safetensors", "policy.safetensors", *POLICY_ENCODER[2:])
"""Every name that a file of ours can have, beside the shards."""
MAX_SIDECAR = 64 * 1024**2
READ_BYTES = 4 * 1024**2
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """`name` is relative, with slashes. `size` -1 is not known; `digests` are those that are promised for it."""

    name: str
    size: int = -1
    digests: Mapping[str, str] = field(default_factory=dict)
    required: bool = True


@dataclass(frozen=True)
class Bundle:
    """A thing that can be published. `fingerprint` is that of the dataset, or the sha256 of the weights."""

    kind: str
    fingerprint: str
    files: tuple[File, ...]

    @property
    def sidecar(self) -> str:
        return SIDECARS[self.kind]


def find_kind(names: Collection[str]) -> str:
    """dataset, policy or encoder, by the files that are there. ConfigError if there is none or more than one."""
    found = [kind for kind, sidecar in SIDECARS.items() if sidecar in names]
    if "policy" in found:
        found = [kind for kind in found if kind != "encoder"]
    if len(found) != 1:
        known = ", ".join(SIDECARS.values())
        state = f"it has {' and '.join(SIDECARS[kind] for kind in found)}" if found else "it has none"
        raise ConfigError(f"expected one of {known}, {state}")
    return found[0]


def parse(kind: str, data: bytes) -> Bundle:
    """What the sidecar promises. It may come from anywhere: DamagedError if it names files that cannot be its own."""
    if kind == "dataset":
        return _dataset(data)
    sidecar = parse_sidecar(data, SIDECARS[kind])
    sha256 = _checked(sidecar.get("sha256"), f"{SIDECARS[kind]}: sha256")
    files = [File(SIDECARS[kind]), File(f"{kind}.safetensors", digests={"sha256": sha256}), File(CARD, required=False)]
    if kind == "policy":
        files += [File(name, required=False) for name in POLICY_ENCODER]
    return Bundle(kind, sha256, tuple(files))


def _dataset(data: bytes) -> Bundle:
    try:
        found = Manifest.from_json(shard.check_head(json.loads(data)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"this is not a manifest of a dataset: {type(error).__name__} {error}") from error
    if found.is_linked:
        raise ConfigError("a dataset of linked shards does not travel; make it whole first: vrl3data compact")
    promised = found.index.get("xxh3_128")
    digests = {"xxh3_128": promised} if isinstance(promised, str) else {}
    files = [File(manifest.MANIFEST), File(index.INDEX, digests=digests), File(CARD, required=False)]
    for split, item in found.splits.items():
        for info in item.shards:
            match = shard.FILE_NAME.fullmatch(info.name) if isinstance(info.name, str) else None
            if match is None or match[1] != split or match[3]:
                raise DamagedError(f"the manifest names {info.name!r}, which is no finished shard of split {split}")
            if not isinstance(info.bytes, int) or info.bytes < 0:
                raise DamagedError(f"{info.name}: expected a number of bytes, found {info.bytes!r}")
            files.append(File(f"data/{info.name}", info.bytes, {"sha256": _checked(info.sha256, info.name)}))
    if len({file.name for file in files}) != len(files):
        raise DamagedError("the manifest names a shard twice")
    return Bundle("dataset", _checked(found.fingerprint, "fingerprint"), tuple(files))


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise DamagedError(f"{what}: expected 64 hexadecimal digits, found {value!r}")
    return value


# -- on this machine -------------------------------------------------------------------------------------------


def read(directory: Path) -> Bundle:
    """What `directory` holds, with sizes. Looks at names and sizes only; `check` reads.

    ConfigError if it is nothing of ours, DamagedError if a file is missing or has another size.
    """
    with locate(path=directory):
        if not directory.is_dir():
            raise ConfigError("there is no such directory" if not directory.exists() else "expected a directory")
        names = {path.name for path in directory.iterdir() if path.is_file()}
        if not names & set(SIDECARS.values()) and index.shard_files(directory):
            raise ConfigError("the dataset is still being written: it has no dataset.json yet; finish it first")
        kind = find_kind(names)
        bundle = parse(kind, read_small(directory / SIDECARS[kind]))
        return with_sizes(bundle, {file.name: path.stat().st_size for file in bundle.files
                                   if (path := directory / file.name).is_file()})  # fmt: skip


def read_small(path: Path) -> bytes:
    """A sidecar. Nothing of ours is larger than MAX_SIDECAR."""
    if path.stat().st_size > MAX_SIDECAR:
        raise DamagedError(f"{path.name} has {path.stat().st_size:,} bytes, expected at most {MAX_SIDECAR:,}")
    return path.read_bytes()


def with_sizes(bundle: Bundle, sizes: Mapping[str, int]) -> Bundle:
    """Only the files that are there. DamagedError if one that has to be is not, or has not the promised size."""
    files = []
    for file in bundle.files:
        if file.name not in sizes:
            if file.required:
                hint = "; 'vrl3data index rebuild' makes it" if file.name == index.INDEX else ""
                raise DamagedError(f"{file.name} is missing{hint}")
            continue
        if file.size not in (-1, sizes[file.name]):
            raise DamagedError(f"{file.name} has {sizes[file.name]:,} bytes, {bundle.sidecar} promises {file.size:,}")
        files.append(File(file.name, sizes[file.name], file.digests, file.required))
    return Bundle(bundle.kind, bundle.fingerprint, tuple(files))


def check(directory: Path, bundle: Bundle, reporter: Reporter) -> None:
    """Read every byte; for a dataset all that `validate` checks, the fingerprint too. DamagedError if not sound."""
    with locate(path=directory):
        if bundle.kind == "dataset":
            _check_dataset(directory, reporter)
            return
        for file in bundle.files:
            check_file(directory / file.name, file, file.digests)
            if file.name.endswith(".safetensors"):
                _check_tensors(directory / file.name)
        for name in ("encoder.json", "encoder/encoder.json"):
            if bundle.kind == "policy" and any(file.name == name for file in bundle.files):
                inner = parse("encoder", read_small(directory / name)).files[1]
                check_file(directory / name.replace(".json", ".safetensors"), inner, inner.digests)


def _check_dataset(directory: Path, reporter: Reporter) -> None:
    report = validate(directory, reporter)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} more findings ('vrl3data validate' lists them)" if len(errors) > 1 else ""
        with locate(shard=errors[0].where.shard, episode=errors[0].where.episode, feature=errors[0].where.feature):
            raise DamagedError(f"{errors[0].check}: {errors[0].message}{more}")
    if not report.complete:
        raise DamagedError("the dataset is not finished: it has no dataset.json")


def _check_tensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path.name} is not a safetensors file: {error}") from error


def check_idle(directory: Path) -> None:
    """ConfigError if a dataset is being written right now."""
    if any(path.name.endswith(shard.PART) for path in index.shard_files(directory)):
        with locate(path=directory):
            raise ConfigError("the dataset is still being written: it has unfinished shards; finish it first")
    if not (directory / LOCK).exists():
        return
    try:
        with filelock.FileLock(directory / LOCK, blocking=False):
            pass
    except filelock.Timeout as error:
        with locate(path=directory):
            raise ConfigError("another process is writing this dataset; wait for it or stop it") from error


# -- digests ---------------------------------------------------------------------------------------------------


def digests(path: Path, names: Collection[str] = ("sha256",)) -> dict[str, str]:
    """Hexadecimal digests of a file in one pass: sha256, git-sha1 (of a git blob), xxh3_128."""
    made: dict[str, Any] = {
        "sha256": hashlib.sha256(),
        "git-sha1": hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False),
        "xxh3_128": xxhash.xxh3_128(),
    }
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            for name in names:
                made[name].update(block)
    return {name: made[name].hexdigest() for name in names}


def check_file(path: Path, file: File, promised: Mapping[str, str]) -> None:
    """DamagedError naming the file unless it is there with the promised size and digests."""
    if not path.is_file():
        raise DamagedError(f"{file.name} is missing")
    if file.size not in (-1, path.stat().st_size):
        raise DamagedError(f"{file.name} has {path.stat().st_size:,} bytes, expected {file.size:,}")
    found = digests(path, tuple(promised))
    for name, expected in promised.items():
        if found[name] != expected:
            raise mismatch(file.name, name, expected, found[name])


def mismatch(name: str, digest: str, expected: str, found: str) -> DamagedError:
    """The one sentence for a file that is not what was promised."""
    return DamagedError(f"{name} does not have the promised {digest}: expected {expected}, found {found}")


def same(path: Path, file: File, promised: Mapping[str, str]) -> bool:
    """Whether a file need not be fetched again: it is there and has what is promised, and something is."""
    if not promised or path.is_symlink():
        return False
    try:
        check_file(path, file, promised)
    except DamagedError:
        return False
    return True
