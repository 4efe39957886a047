"""Weighted mixing of datasets: windows of several in one batch, under one schema, nothing rewritten. Imports no torch.

Legend: B windows of a batch, D datasets, G = batch_size * world windows of a step over all ranks.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from vrl3data.dataset import Dataset
from vrl3data.delivery import Batches, DeliverySpec
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.exchange import Batch
from vrl3data.sampling import Ints
from vrl3data.schema import Feature
from vrl3data.window_spec import PREFIXES, StorageSpec, WindowSpec, split_options
from vrl3data.windows import WindowPlan

Until = Literal["forever", "first", "all"]
UNTIL = ("forever", "first", "all")
UNITS = 2**32
"""Weights are rounded to this many parts, so that shares are exact whole numbers at every step."""
MIXED = 4
"""Tells the seed of the order within a batch from those of order.py."""
SAME = ("dtype", "shape", "rows", "color", "flip", "scale_m", "quaternion", "representation", "unit")
"""What two features of one name must have in common; texts only where both say something."""


@dataclass(frozen=True)
class MixSpec:
    """How datasets are mixed. `rename`: for a dataset, its feature names by what they shall be called here.

    The features are those that all datasets have; with `fill` those that any has: rows of a dataset without it are
    zeros and have False in `<feature>.known` (B,). `until`: a dataset that is used up begins again in a new order
    (forever); the mix ends before the first window would come a second time (first), or when every window of every
    dataset has come at least once (all).
    """

    rename: Mapping[Dataset, Mapping[str, str]] | None = None
    fill: bool = False
    until: Until = "forever"


class MixPlan:
    """Of the first T windows of the mix, each dataset has its share, as a whole number that differs from weight * T by
    less than the number of datasets. Windows of one dataset come without replacement, in the order its seed gives."""

    def __init__(self, plans: Sequence[WindowPlan], weights: Sequence[float], names: Sequence[Mapping[str, str]],
                 spec: MixSpec) -> None:  # fmt: skip
        self.plans, self.weights, self.names, self.spec = plans, tuple(weights), names, spec
        self.order = plans[0].spec
        self._bounds = _bounds(self.weights)
        self.features = dict.fromkeys(
            called.get(name, name) for plan, called in zip(plans, names, strict=True) for name in plan.table.features
        )
        nothing, rng = np.zeros(0, np.int64), np.random.default_rng(0)
        self._blank: Batch = {
            name: value for number in range(len(plans)) for name, value in self._part(number, nothing, rng).items()
        }
        self.steps = self._steps()
        if self.steps == 0:
            raise ConfigError("a dataset has fewer windows than its share of one batch, and the mix is to end there")

    def __reduce__(self) -> tuple[Any, ...]:
        # The datasets that `rename` names are not needed again: `names` says it.
        return MixPlan, (self.plans, self.weights, self.names, replace(self.spec, rename=None))

    @property
    def steps_per_epoch(self) -> int:
        """An epoch is as many batches as all windows would fill, whatever the weights."""
        return -(-sum(plan.order.total for plan in self.plans) // self._group)

    @property
    def _group(self) -> int:
        return self.order.batch_size * self.order.world

    def identity(self) -> dict[str, Any]:
        """What the batches follow from; neither the rank nor where iteration ends."""
        facts: dict[str, Any] = {"fill": self.spec.fill, "weights": list(self.weights)}
        for number, (plan, called) in enumerate(zip(self.plans, self.names, strict=True)):
            facts |= {f"{key} of dataset {number}": value for key, value in plan.identity().items()}
            facts |= {f"names of dataset {number}": dict(called)}
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain

    def counts(self, step: int) -> list[int]:
        """How many windows of each dataset the steps before `step` took, over all ranks.

        The last dataset's share of T is split off, then that of the one before it from what is left, and so on: in this
        way no count ever falls.
        """
        left, found = step * self._group, list[int]()
        for lower, upper in reversed(list(pairwise(self._bounds))):
            below = left * lower // upper
            found.append(left - below)
            left = below
        return found[::-1]

    def batch(self, step: int) -> Batch:
        """That of a step, for this rank."""
        size, rank = self.order.batch_size, self.order.rank
        spans = list(zip(self.counts(step), self.counts(step + 1), strict=True))
        dataset_G = np.repeat(np.arange(len(self.plans)), [end - start for start, end in spans])
        ordinal_G = np.concatenate([np.arange(*span) for span in spans])
        shuffled_G = np.random.default_rng((self.order.seed, MIXED, step)).permutation(self._group)
        mine_B = shuffled_G[rank * size : (rank + 1) * size]
        found = {name: _blank(value, size) for name, value in self._blank.items()}
        for number, plan in enumerate(self.plans):
            where = np.flatnonzero(dataset_G[mine_B] == number)
            if len(where):
                for name, value in self._part(number, ordinal_G[mine_B[where]], plan.order.rng(step)).items():
                    found[name][where] = value
        return self.plans[0].finished(found | {"dataset": dataset_G[mine_B]})

    def _part(self, number: int, ordinal: Ints, rng: np.random.Generator) -> Batch:
        """The windows of a dataset that come at these places of its endless order, under the names of the mix."""
        plan, called = self.plans[number], self.names[number]
        epoch, position = np.divmod(ordinal, plan.order.total)
        numbers = np.empty_like(ordinal)
        for this in np.unique(epoch):
            inside = epoch == this
            numbers[inside] = plan.order.at(position[inside], int(this))
        part = {_renamed(name, called): value for name, value in plan.take(numbers, rng).items()}
        if self.spec.fill:
            known = {called.get(name, name) for name in plan.table.features}
            part |= {f"{name}.known": np.full(len(ordinal), name in known) for name in self.features}
        return part

    def _steps(self) -> int | None:
        if self.spec.until == "forever":
            return None
        ends = []
        for number, (lower, upper) in enumerate(pairwise(self._bounds)):
            total = self.plans[number].order.total
            last = total * UNITS // (upper - lower) // self._group + len(self.plans) + 2
            cut = bisect_right if self.spec.until == "first" else bisect_left
            found = cut(range(last), total, key=lambda step: self.counts(step)[number])
            ends.append(found - 1 if self.spec.until == "first" else found)
        return min(ends) if self.spec.until == "first" else max(ends)


def mix(datasets: Mapping[Dataset, float], batch_size: int, **options: Any) -> Batches:
    """Batches of windows from several datasets, each with its weight: `mix({one: 0.7, other: 0.3}, 256, n_step=3)`.

    A batch holds what `Dataset.windows` gives, and `dataset` (B,) int64, the number of the dataset each row comes
    from. `options` are those of MixSpec, and of `Dataset.windows` except `split`, `positions`, `epochs`,
    `replacement`, `drop_last` and `pad_last`: a mix has no ends but `until`. ConfigError, naming both datasets,
    for features that differ in dtype, shape or meaning, and for nothing in common.
    """
    if len(datasets) < 2:
        raise ConfigError(f"expected at least two datasets to mix, found {len(datasets)}")
    for dataset, weight in datasets.items():
        if not (weight > 0 and np.isfinite(weight)):
            raise ConfigError(f"{_name(dataset)}: expected a weight above 0, found {weight}")
    for name in ("split", "positions", "epochs", "replacement", "by", "drop_last", "pad_last"):
        if name in options:
            raise ConfigError(f"{name} says nothing about a mix; leave it out")
    given = options | {"batch_size": batch_size, "epochs": None}
    window, storage, delivery, mixing = (
        kind(**values) for kind, values in zip(
            (WindowSpec, StorageSpec, DeliverySpec, MixSpec),
            split_options(given, (WindowSpec, StorageSpec, DeliverySpec, MixSpec)), strict=True,
        )
    )  # fmt: skip
    if mixing.until not in UNTIL:
        raise ConfigError(f"until {mixing.until!r}{did_you_mean(mixing.until, UNTIL)}")
    names = _names(list(datasets), mixing)
    specs = reconciled(list(datasets), names, window, mixing.fill)
    plans = [WindowPlan(dataset, spec, storage) for dataset, spec in zip(datasets, specs, strict=True)]
    if delivery.workers and delivery.worker_kind != "thread" and plans[0].device:
        raise ConfigError("storage of a device cannot be shared with processes; use worker_kind 'thread'")
    return Batches(MixPlan(plans, list(datasets.values()), names, mixing), delivery)


def reconciled(
    datasets: Sequence[Dataset], names: Sequence[Mapping[str, str]], spec: WindowSpec, fill: bool
) -> list[WindowSpec]:
    """The spec for each dataset, in its own names."""
    schemas = [{called.get(f.name, f.name): f for f in d.schema.features if f.rows in ("step", "state")}
               for d, called in zip(datasets, names, strict=True)]  # fmt: skip
    everything = dict.fromkeys(name for schema in schemas for name in schema)
    for name in (*(spec.cameras or ()), *(spec.features or ()), *spec.also):
        lacking = [d for d, schema in zip(datasets, schemas, strict=True) if name not in schema]
        if lacking and (name not in everything or name in spec.also or not fill):
            raise ConfigError(
                f"{_name(lacking[0])} has no feature {name!r}{did_you_mean(name, everything)}; "
                "rename one, or fill what is missing"
            )
    cameras, features = _chosen(spec, schemas, [n for n in everything if fill or all(n in s for s in schemas)])
    taken = dict.fromkeys((*cameras, *features, *spec.also))
    if not taken:
        raise ConfigError(f"{' and '.join(map(_name, datasets))} have no feature in common")
    for name in taken:
        _check_alike(name, [(d, schema[name]) for d, schema in zip(datasets, schemas, strict=True) if name in schema])
    found = []
    for number, schema in enumerate(schemas):
        own = {name: schema[name].name for name in taken if name in schema}
        mine = [tuple(own[name] for name in wanted if name in own) for wanted in (cameras, features)]
        action, reward = (own.get(name, name) for name in (spec.action, spec.reward))
        seed = spec.seed * len(schemas) + number
        found.append(replace(spec, cameras=mine[0], features=mine[1], action=action, reward=reward, seed=seed))
    return found


def _chosen(
    spec: WindowSpec, schemas: Sequence[Mapping[str, Feature]], shared: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """(cameras, features) of the mix: those asked for, or all that are shared."""
    pictures = {name: [s[name].is_image for s in schemas if name in s] for name in shared}
    cameras = spec.cameras
    if cameras is None:
        cameras = tuple(n for n in shared if all(pictures[n]) and all(s[n].rows == "state" for s in schemas if n in s))
    features = spec.features
    if features is None:
        features = tuple(name for name in shared if not any(pictures[name]) and name not in cameras)
    return cameras, features


def _check_alike(name: str, found: Iterable[tuple[Dataset, Feature]]) -> None:
    (first, one), *others = found
    for dataset, other in others:
        for key in SAME:
            a, b = getattr(one, key), getattr(other, key)
            if a != b and (key in ("dtype", "shape", "rows") or (a and b)):
                raise ConfigError(f"{name}: {key} is {a!r} in {_name(first)} and {b!r} in {_name(dataset)}")


def _blank(like: Any, size: int) -> Any:
    """Zeros of `size` rows, in memory or on the device of `like`."""
    shape = (size, *like.shape[1:])
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def _bounds(weights: Sequence[float]) -> list[int]:
    """0, the sums of the first weights, UNITS; ConfigError if one is so small that it vanishes."""
    sums = np.cumsum(np.asarray(weights, np.float64))
    bounds = [0, *(round(part * UNITS) for part in (sums[:-1] / sums[-1]).tolist()), UNITS]
    if any(lower >= upper for lower, upper in pairwise(bounds)):
        raise ConfigError(f"weights {tuple(weights)}: one is less than 1 / {UNITS} of all")
    return bounds


def _names(datasets: Sequence[Dataset], spec: MixSpec) -> list[dict[str, str]]:
    """For each dataset, the names of its features that change, and what they become."""
    rename = spec.rename or {}
    for dataset in rename:
        if dataset not in datasets:
            raise ConfigError(f"rename: {_name(dataset)} is not in the mix")
    found = [dict(rename.get(dataset, {})) for dataset in datasets]
    for dataset, called in zip(datasets, found, strict=True):
        if dataset.schema.kind != "episodes":
            raise ConfigError(f"{_name(dataset)}: expected a dataset of episodes, found one of images")
        for name in called:
            if name not in dataset.schema:
                raise ConfigError(
                    f"rename: {_name(dataset)} has no feature {name!r}{did_you_mean(name, dataset.schema.names)}"
                )
        after = Counter(called.get(name, name) for name in dataset.schema.names)
        twice = [name for name, count in after.items() if count > 1]
        if twice:
            raise ConfigError(f"rename: {_name(dataset)} would have two features {twice[0]!r}")
    return found


def _renamed(key: str, called: Mapping[str, str]) -> str:
    """The key of a batch under the names of the mix: `next.<feature>` follows `<feature>`."""
    if key in called:
        return called[key]
    prefix, _, feature = key.partition(".")
    return f"{prefix}.{called[feature]}" if f"{prefix}." in PREFIXES and feature in called else key


def _name(dataset: Dataset) -> str:
    return f"{dataset.manifest.name} ({dataset.path})"
