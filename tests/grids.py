"""Converters of folders of .npy files: a good one, and one that breaks each rule of the contract."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.base import Plan, Unit, file_sha256, source_identity
from vrl3data.errors import ConfigError, SourceError
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema


@dataclass(frozen=True)
class Options:
    shard_size: int = SHARD_SIZE


class Grids:
    """Folders of .npy files, one episode each."""

    Options: Any = Options

    def __init__(self, sources: Sequence[Path], options: Options) -> None:
        self.root, self.options, self.born = Path(sources[0]), options, os.getpid()
        self.seen: list[str] = []

    @staticmethod
    def recognises(source: Path) -> bool:
        return source.is_dir() and any(source.glob("*.npy"))

    def plan(self) -> Plan:
        files = sorted(self.root.glob("*.npy"))
        if not files:
            raise SourceError("no .npy files found")
        identity = source_identity((file.name, file.stat().st_size) for file in files)
        provenance = Provenance("grids", source_identity=identity, shard_size=self.options.shard_size)
        features = (Feature("obs.state", "float64", (3,), "state"), Feature("timestamp", "int64", (), "state"))
        spec = DatasetSpec(Schema("episodes", features), "grids", provenance)
        return Plan(spec, [Unit(file.name) for file in files], len(files), find=lambda name: self.root / name)

    def load(self, path: Path) -> Any:
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise SourceError(f"not a .npy file: {error}") from error

    def read(self, unit: Unit) -> Episode:
        path = self.root / unit.name
        states = self.load(path)
        times = np.arange(len(states), dtype=np.int64) * 10**8
        self.seen.append(unit.name)
        values = {"obs.state": states, "timestamp": times}
        return Episode(unit.name, values, length=len(states), source=unit.name, source_sha256=file_sha256(path))

    def close(self) -> None:
        """Nothing is held open."""


class Undocumented(Grids):
    pass


@dataclass
class Thawed:
    shard_size: int = SHARD_SIZE


class NotFrozen(Grids):
    """Options that change."""

    Options = Thawed


@dataclass(frozen=True)
class Limited(Options):
    limit: int = 3


class TakenName(Grids):
    """An option of convert itself."""

    Options = Limited


@dataclass(frozen=True)
class Required:
    size: int
    shard_size: int = SHARD_SIZE


class NoDefault(Grids):
    """An option without a default."""

    Options = Required


class TakesAll(Grids):
    """Says yes to everything."""

    @staticmethod
    def recognises(source: Path) -> bool:
        return source.exists()


class Dated(Grids):
    """Writes the time into the provenance."""

    def plan(self) -> Plan:
        plan = super().plan()
        made = replace(plan.spec.provenance, options={"now": time.time_ns()})
        return replace(plan, spec=replace(plan.spec, provenance=made))


class Miscounted(Grids):
    """Counts one too many."""

    def plan(self) -> Plan:
        plan = super().plan()
        return replace(plan, count=plan.count + 1)


class Doubled(Grids):
    """Two units of one name."""

    def plan(self) -> Plan:
        plan = super().plan()
        return replace(plan, units=[*plan.units, *plan.units], count=2 * plan.count)


class WrongType(Grids):
    """Another dtype than the schema says."""

    def load(self, path: Path) -> Any:
        return super().load(path).astype(np.float32)


class Renames(Grids):
    """Samples have other names than their units."""

    def read(self, unit: Unit) -> Episode:
        return replace(super().read(unit), name=unit.name.upper())


class Counting(Grids):
    """What is read depends on how often."""

    def load(self, path: Path) -> Any:
        return super().load(path) + self.seen.count(path.name)


class Forward(Grids):
    """What is read depends on what was read before."""

    def load(self, path: Path) -> Any:
        return super().load(path) + any(name > path.name for name in self.seen)


class ClosesForGood(Grids):
    """Lets go of what it needs."""

    def close(self) -> None:
        self.root = None  # type: ignore[assignment]


class HoldsLock(Grids):
    """Cannot travel once it has read."""

    def load(self, path: Path) -> Any:
        self.lock = threading.Lock()
        return super().load(path)


class Sourceless(Grids):
    """No hash of the file."""

    def read(self, unit: Unit) -> Episode:
        return replace(super().read(unit), source_sha256="")


class Unfindable(Grids):
    """Names files that nobody can find."""

    def plan(self) -> Plan:
        return replace(super().plan(), find=None)


class Misplaced(Grids):
    """Finds another file."""

    def plan(self) -> Plan:
        plan = super().plan()
        return replace(plan, find=lambda _: next(self.root.glob("*.npy")))


class OfProcess(Grids):
    """What is read depends on the process."""

    def load(self, path: Path) -> Any:
        return super().load(path) + (os.getpid() != self.born)


class FreshInTheMiddle(Grids):
    """What is read depends on where it begins."""

    def load(self, path: Path) -> Any:
        names = sorted(file.name for file in self.root.glob("*.npy"))
        return super().load(path) + (not self.seen and path.name not in (names[0], names[-1]))


class Backwards(Grids):
    """Time runs backwards."""

    def read(self, unit: Unit) -> Episode:
        episode = super().read(unit)
        return replace(episode, values={**episode.values, "timestamp": -episode.values["timestamp"]})  # type: ignore[operator]


class Talkative(Grids):
    """Says where the source lies."""

    def read(self, unit: Unit) -> Episode:
        return replace(super().read(unit), source_meta={"file": str(self.root.resolve() / unit.name)})


class Trusting(Grids):
    """Takes every file for whole."""

    def load(self, path: Path) -> Any:
        return np.frombuffer(path.read_bytes()[128:], "<f8").reshape(-1, 3)


class WrongError(Grids):
    """Blames the configuration for a broken file."""

    def load(self, path: Path) -> Any:
        try:
            return super().load(path)
        except SourceError as error:
            raise ConfigError("wrong options") from error


class Hangs(Grids):
    """Waits for the rest of a file that is cut off."""

    def load(self, path: Path) -> Any:
        try:
            return super().load(path)
        except SourceError:
            time.sleep(1000)
            raise


class Dies(Grids):
    """Ends the process at a broken file."""

    def load(self, path: Path) -> Any:
        try:
            return super().load(path)
        except SourceError:
            os._exit(9)


class Invents(Grids):
    """Makes up what is not there."""

    def load(self, path: Path) -> Any:
        return super().load(path) if path.stat().st_size else np.zeros((2, 3))


class Litters(Grids):
    """Leaves a file in the source."""

    def close(self) -> None:
        (self.root / "cache.bin").write_bytes(b"mine")
