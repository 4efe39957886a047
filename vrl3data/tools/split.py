"""split: samples into splits by chance or by a column. filter: the samples that fulfil an expression."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.manifest import Manifest
from vrl3data.report import Reporter
from vrl3data.schema import SPLIT
from vrl3data.tools.expression import Column, evaluate
from vrl3data.tools.link import link
from vrl3data.tools.rewrite import Output, carried, spec, splits_of, write

SHARES_OFF = 1e-3
MAX_SPLITS = 200
"""The writer keeps a file open for each."""
TRISTATE = {1: "yes", 0: "no", -1: "unknown"}


def split(
    dataset: Dataset,
    dest: Path | str,
    shares: Mapping[str, float] | None = None,
    *,
    by: str = "",
    seed: int = 0,
    keep_together: str = "",
    virtual: bool = False,
    output: Output | None = None,
    reporter: Reporter | None = None,
) -> Manifest:
    """Put every sample into a split of a new dataset: by chance in `shares`, or one split per value of column `by`.

    Samples with the same value of column `keep_together` (such as `source` or `task`) stay in one split. The choice
    follows from `seed` and the ids of the samples alone. `virtual` links the shards instead of copying samples.
    """
    if bool(shares) == bool(by):
        raise ConfigError("split needs either shares, such as train=0.8 and val=0.2, or a column to split by")
    if shares:
        names = _by_chance(dataset, shares, seed, keep_together)
        options = {"shares": dict(shares), "seed": seed, "keep_together": keep_together}
    else:
        names = _by_value(by, _column(dataset, by))
        options = {"by": by}
    return _select(dataset, dest, names, ("split", options), virtual, output, reporter)


def select(
    dataset: Dataset, dest: Path | str, expression: str, *, virtual: bool = False, output: Output | None = None,
    reporter: Reporter | None = None,
) -> Manifest:  # fmt: skip
    """The samples that fulfil `expression` (tools/expression.py), in their splits. ConfigError if none does."""
    kept = evaluate(expression, columns(dataset), len(dataset))
    if not kept.any():
        raise ConfigError(f"not one of {len(dataset)} samples fulfils {expression!r}")
    names = [name if keep else "" for name, keep in zip(splits_of(dataset), kept, strict=True)]
    return _select(dataset, dest, names, ("filter", {"expression": expression}), virtual, output, reporter)


def columns(dataset: Dataset) -> dict[str, Column]:
    """The columns of the index that expressions may name: text as objects, all else as numbers."""
    table = dataset.index.table()
    places = (".offset", ".size")
    names = [name for name in table.column_names if not name.endswith(places) and name not in ("key", "shard")]
    return {
        name: np.array(table[name].to_pylist(), object) if str(table[name].type) == "string" else table[name].to_numpy()
        for name in names
    }


def _select(
    dataset: Dataset, dest: Path | str, names: Sequence[str], made: tuple[str, dict[str, object]], virtual: bool,
    output: Output | None, reporter: Reporter | None,
) -> Manifest:  # fmt: skip
    """`names`: the split of every sample; empty leaves it out."""
    described = spec(made[0], [dataset], dataset.schema, made[1] | {"virtual": virtual}, output or Output())
    positions = {
        name: [position for position, other in enumerate(names) if other == name] for name in sorted(set(names) - {""})
    }
    if virtual:
        return link(dataset, dest, described, positions)
    ordered = [position for chosen in positions.values() for position in chosen]
    return write(dest, described, carried(dataset, ordered, names.__getitem__), len(ordered), reporter)


def _by_chance(dataset: Dataset, shares: Mapping[str, float], seed: int, keep_together: str) -> list[str]:
    """Groups in an order that follows from seed and ids, cut where the shares of samples are reached."""
    for name, share in shares.items():
        if not SPLIT.fullmatch(name) or name == "all":
            raise ConfigError(f"split {name!r}: expected lower-case letters, digits and underscores, and not 'all'")
        if not 0 < share <= 1:
            raise ConfigError(f"split {name}: expected a share above 0 and at most 1, found {share}")
    if abs(sum(shares.values()) - 1) > SHARES_OFF:
        raise ConfigError(f"the shares add up to {sum(shares.values()):g}, expected 1")
    ids = dataset.index["id"].to_pylist()
    groups: dict[str, list[int]] = {}
    for position, value in enumerate(_column(dataset, keep_together) if keep_together else ids):
        groups.setdefault(str(value), []).append(position)
    if len(groups) < len(shares):
        raise ConfigError(f"{len(shares)} splits need at least as many groups, found {len(groups)}")
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).hexdigest())
    edges = np.cumsum(list(shares.values())) / sum(shares.values())
    names, done = [""] * len(ids), 0
    for place, group in enumerate(order):
        left = len(order) - place
        target = int(np.searchsorted(edges, (done + len(groups[group]) / 2) / len(ids)))
        # Whatever the sizes of groups, every split gets at least one.
        target = max(min(target, len(shares) - 1, place), len(shares) - left)
        for position in groups[group]:
            names[position] = list(shares)[target]
        done += len(groups[group])
    missing = set(shares) - set(names)
    if missing:
        raise ConfigError(f"split {min(missing)} would get no sample; give it a larger share")
    return names


def _column(dataset: Dataset, name: str) -> list[object]:
    known = columns(dataset)
    if name not in known:
        raise ConfigError(f"no column {name!r}{did_you_mean(name, known)}")
    return list(known[name])


def _by_value(column: str, values: Sequence[object]) -> list[str]:
    """The split of each value. ConfigError if two values would share one."""
    slugs = {value: _slug(column, value) for value in dict.fromkeys(values)}
    first: dict[str, object] = {}
    if len(slugs) > MAX_SPLITS:
        raise ConfigError(f"{column} has {len(slugs)} values; at most {MAX_SPLITS} splits are written")
    for value, name in slugs.items():
        if first.setdefault(name, value) != value:
            raise ConfigError(f"{first[name]!r} and {value!r} would both be split {name!r}")
    return [slugs[value] for value in values]


def _slug(column: str, value: object) -> str:
    """The name of the split for one value of a column: `success_yes`, `open_the_door`."""
    if column in ("success", "terminated", "truncated"):
        return f"{column}_{TRISTATE.get(int(str(value)), 'unknown')}"
    text = re.sub(r"[^a-z0-9_]+", "_", str(value).lower()).strip("_")
    if isinstance(value, str) and value and not text:  # a script that has none of these letters
        text = hashlib.sha256(value.encode()).hexdigest()[:8]
    if not isinstance(value, str):
        text = f"minus_{text}" if str(value).startswith("-") else text
        return f"{column}_{text}"
    return text if text and text != "all" else f"{column}_{text or 'empty'}"
