"""What is checked: a converter, its sources, its options, and room to work in."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from converters.base import Converter, Plan, Unit
from converters.worker import Failed, Setup
from vrl3data import config
from vrl3data.errors import ConfigError, SourceError, did_you_mean
from vrl3data.sample import Identity


class Unfit(Exception):
    """A check does not pass, and why."""


@dataclass(frozen=True)
class Order:
    """What to check; travels to the process that does it."""

    place: str
    """`module:Class`."""
    sources: tuple[Path, ...]
    settings: tuple[str, ...]
    folder: Path
    """To write to."""
    most: int
    """Units that are read."""


def load(place: str) -> Any:
    """The class; ConfigError if there is none."""
    module, colon, name = place.partition(":")
    if not colon:
        raise ConfigError(f"expected module:Class, found {place!r}")
    try:
        found = import_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if last.filename.startswith("<") else f" in {Path(last.filename).name}, line {last.lineno}"
        raise ConfigError(f"cannot load {module!r}: {type(error).__name__}: {error}{where}") from error
    if not hasattr(found, name):
        public = [word for word in vars(found) if not word.startswith("_")]
        raise ConfigError(f"{module!r} has no {name!r}{did_you_mean(name, public)}")
    return getattr(found, name)


class Subject:
    """An order under way. `say` is told what is being done, so that whoever waits knows where it hangs."""

    def __init__(self, order: Order, say: Callable[[str], None]) -> None:
        self.order, self.say = order, say
        self.cls = load(order.place)

    def make(self, sources: Sequence[Path] | None = None) -> Converter:
        return self.cls(list(sources or self.order.sources), config.load(self.cls.Options, None, self.order.settings))

    def planned(self) -> tuple[Converter, Plan, list[Unit]]:
        """A new converter, its plan and the units that are to be read, spread evenly."""
        converter = self.make()
        plan = converter.plan()
        return converter, plan, spread(list(plan.units), self.order.most)

    def setup(self, converter: Converter, plan: Plan) -> Setup:
        made = plan.spec.provenance
        spool = self.order.folder / "spool"
        return Setup(converter, plan.spec.schema, Identity(made.source_identity, made.converter, made.options), spool)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Name of a unit -> digest of its sample, or why there is none."""
        converter, plan, units = self.planned()
        setup = self.setup(converter, plan)
        found = {unit.name: self.digest(setup, unit) for unit in units}
        converter.close()
        return found

    def digest(self, setup: Setup, unit: Unit) -> str:
        self.say(f"reading {unit.name}")
        result = setup.one(unit)
        if isinstance(result, Failed):
            if not isinstance(result.error, SourceError):
                raise Unfit(f"{unit.name}: {result.error}")
            return f"broken: {result.error}"
        result.discard()
        if result.meta["name"] != unit.name:
            raise Unfit(f"the unit {unit.name!r} became a sample of the name {result.meta['name']!r}")
        return str(result.meta["digest"])


def spread(units: list[Unit], most: int) -> list[Unit]:
    count = min(most, len(units))
    return [units[number * len(units) // count] for number in range(count)]


def copies(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Where copies of the sources lie in `folder`: each in a folder of its own, since names may be the same."""
    return [folder / str(number) / source.name for number, source in enumerate(sources)]


def files(sources: Sequence[Path]) -> Iterator[tuple[int, Path, str]]:
    """(number of the source, file, its path in the source, empty for the source itself) of all files."""
    for number, source in enumerate(sources):
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                yield number, path, "" if path == source else path.relative_to(source).as_posix()


def snapshot(sources: Sequence[Path]) -> dict[str, tuple[int, int, str]]:
    """What must be the same afterwards: time of change, size and content of every file."""
    found = {}
    for number, path, name in files(sources):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        label = f"{sources[number].name}/{name}" if name else sources[number].name
        found[label] = (path.stat().st_mtime_ns, path.stat().st_size, sha256)
    return found
