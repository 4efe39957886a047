"""Checks of numbers in time: constant, stuck, out of bounds, unlike in all other episodes.

Thresholds rest on what clean sets show: human door demonstrations, expert rollouts of hammer, pen and relocate, and
scripted reaching. Letters: E episodes, N rows, D entries of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vrl3data.checks.finding import Finding, Severity
from vrl3data.checks.observed import Collected, Observed, Summary, beyond, flat, outside
from vrl3data.errors import Source
from vrl3data.schema import Array, Feature

MIN_OTHERS = 4
"""Episodes beside one, before what is usual can be told from them."""
STUCK_ROWS, STUCK_SHARE, STUCK_TIMES = 10, 0.2, 6.0
"""A stretch without change is a stuck sensor if it is longer than these: rows, share of the episode, and times the
longest stretch of that entry in the other episodes, less up to a quarter that are stuck as well. A finger of pen rests
at its limit 4 times as long in one episode as in the next."""
JUMP_TIMES = 4.0
"""A jump beyond this many times the largest of the other episodes, less up to a quarter that are far above it as well.
In clean sets the greatest is 2.6 (reaching)."""
REACH_TIMES, REACH_TIMES_MANY = 2.0, 3.0
"""A value that lies outside the range of the other episodes by this many times that range; in clean sets 1.06 for one
episode, 1.4 where several are left out."""
SCALE_TIMES = 10.0
"""A range this many times smaller than the smallest of the others; in clean sets 3.0, radians for degrees 57."""
TINY = 1e-30
ROUNDING = float(np.finfo(np.float32).eps)
"""Of the usual range of the widest entry of a feature: what rests in a simulator still jumps by 6e-8 (reaching)."""
HABIT = 0.5
"""If more than this share of episodes leave the bounds, the bounds are wrong, not an episode: DAPG's human actions
leave [-1, 1] in every episode, for 6 % of all numbers."""


def entry(feature: Feature, column: int) -> str:
    """`entry 3 (wrist)` of a row; empty for rows of a single number."""
    if not feature.shape or int(np.prod(feature.shape)) == 1:
        return "the value"
    name = f" ({feature.names[column]})" if column < len(feature.names) else ""
    return f"entry {column}{name}"


def constant(data: Collected) -> Iterator[Finding]:
    """An entry of a feature that never changes in the whole dataset."""
    for feature in data.schema.features:
        having, least = data.stacked(feature.name, "least")
        if not having or not least.size or sum(int(e.meta.get("length", 1)) for e in having) < 2:
            continue
        greatest = data.stacked(feature.name, "greatest")[1]
        for column in np.flatnonzero(least.min(axis=0) == greatest.max(axis=0)):
            value = float(least[0, column])
            # An unused entry of an action is zero by convention, and a simulator has parts that do not move.
            telling = feature.name.startswith("obs.") or (feature.name == "action" and value != 0)
            severity: Severity = "warn" if telling else "info"
            if feature.name.startswith("reward"):
                continue  # the check `reward` speaks of it
            message = f"{entry(feature, int(column))} is {value:g} in every row of every episode"
            yield Finding("constant", message, Source(feature=feature.name), severity)


def stuck(data: Collected) -> Iterator[Finding]:
    """An entry that stops changing in one episode and does not in the others."""
    for feature in data.schema.features:
        if not feature.dtype.startswith("float") or feature.name.startswith("reward"):
            continue
        having, run = data.stacked(feature.name, "run")
        if len(having) <= MIN_OTHERS or not run.size:
            continue
        whole = run.min(axis=1)  # at most what all entries stand still for at once
        lasting, usually = beyond(whole[:, None].astype(float), STUCK_TIMES, 1.0)
        far, usual = beyond(run.astype(float), STUCK_TIMES, 1.0)
        for number, summary in enumerate(having):
            if whole[number] >= STUCK_ROWS and lasting[number, 0]:
                start = int(summary.columns[feature.name].run_at.max())
                message = f"all entries stand still for about {int(whole[number])} rows, in the other episodes for "
                where = summary.at(feature.name, start)
                yield Finding("stuck", f"{message}{int(usually[0])} at most", where, "warn")
            limit = max(STUCK_ROWS, STUCK_SHARE * int(summary.meta["length"]))
            for column in np.flatnonzero(far[number] & (run[number] > limit)):
                start = int(summary.columns[feature.name].run_at[column])
                message = f"{entry(feature, int(column))} does not change for {int(run[number, column])} rows"
                more = f", in the other episodes for {int(usual[column])} at most"
                yield Finding("stuck", message + more, summary.at(feature.name, start), "warn")


def out_of_bounds(episode: Observed) -> dict[str, tuple[Array, int]]:
    """feature -> (share of rows beyond the declared bounds per entry, the first such row)."""
    found = {}
    for name, rows in episode.series.items():
        bounds = episode.schema[name].bounds
        if bounds is None or not len(rows):
            continue
        values = flat(rows)
        low, high = (np.broadcast_to(np.asarray(side, np.float64).reshape(-1), values.shape[1:]) for side in bounds)
        slack = 1e-6 * np.maximum(1.0, np.abs(high - low))  # float32 of a bound is not the bound
        outside = (values < low - slack) | (values > high + slack)
        if outside.any():
            found[name] = (outside.mean(axis=0), int(outside.any(axis=1).argmax()))
    return found


def bounds(data: Collected) -> Iterator[Finding]:
    """Values beyond the bounds that the schema declares, with the share per entry."""
    for feature in data.schema.features:
        having = [summary for summary in data.episodes if feature.name in summary.columns]
        leaving = [summary for summary in having if feature.name in summary.facts.get("bounds", {})]
        if not leaving:
            continue
        told = f"the bounds {feature.bounds}"
        if len(leaving) > HABIT * len(having):
            share = np.mean([summary.facts["bounds"][feature.name][0] for summary in leaving], axis=0)
            message = f"{len(leaving)} of {len(having)} episodes leave {told}: {shares(feature, share)}"
            yield Finding("bounds", message, leaving[0].at(feature.name), "info")
            continue
        for summary in leaving:
            share, step = summary.facts["bounds"][feature.name]
            yield Finding("bounds", f"outside {told}: {shares(feature, share)}", summary.at(feature.name, step), "warn")


def shares(feature: Feature, share: Array) -> str:
    worst = [int(column) for column in np.argsort(-share, kind="stable")[:4] if share[column] > 0]
    rest = int((share > 0).sum()) - len(worst)
    text = ", ".join(f"{entry(feature, column)} in {100 * share[column]:.1f} % of rows" for column in worst)
    return text + (f", and {rest} more" if rest else "")


def jumps(data: Collected) -> Iterator[Finding]:
    """A step far larger than any in the other episodes: a spike, a teleport, two recordings glued together."""
    for feature, having in _compared(data):
        jump = data.stacked(feature.name, "jump")[1]
        reach = _reach(data, feature)
        far, usual = beyond(jump, JUMP_TIMES, np.maximum(1e-3 * reach, _rounding(data, feature)))
        for number, summary in enumerate(having):
            columns = np.flatnonzero(far[number])
            if len(columns):
                column = int(columns[np.argmax(jump[number, columns] / usual[columns])])
                step = int(summary.columns[feature.name].jump_at[column])
                message = (
                    f"{entry(feature, column)} jumps by {jump[number, column]:.4g}, in the other episodes by "
                    f"{usual[column]:.4g} at most"
                )
                yield Finding("jumps", message, summary.at(feature.name, step), "warn")


def _reach(data: Collected, feature: Feature) -> Array:
    """Range of each entry over the whole dataset."""
    reach: Array = data.stacked(feature.name, "greatest")[1].max(axis=0) - data.stacked(feature.name, "least")[1].min(0)
    return reach


def _rounding(data: Collected, feature: Feature) -> float:
    """What an entry that does not move may change by; a median, because one wild episode must hide nothing."""
    spans = data.stacked(feature.name, "greatest")[1] - data.stacked(feature.name, "least")[1]
    return ROUNDING * float(np.median(spans, axis=0).max())


def scale(data: Collected) -> Iterator[Finding]:
    """Values of another size than in all other episodes: another unit, offset or calibration."""
    for feature, having in _compared(data):
        least, greatest = data.stacked(feature.name, "least")[1], data.stacked(feature.name, "greatest")[1]
        far, low, high = outside(least, greatest, REACH_TIMES, REACH_TIMES_MANY)
        span, reach = greatest - least, _reach(data, feature)
        moving = reach > _rounding(data, feature)
        small = beyond(1 / np.maximum(span, TINY), SCALE_TIMES)[0] & (span.min(axis=0) > 0)
        for number, summary in enumerate(having):
            for column in np.flatnonzero(moving & (far[number] | small[number]))[:1]:
                message = (
                    f"{entry(feature, int(column))} lies in {least[number, column]:.4g} to "
                    f"{greatest[number, column]:.4g}, in the other episodes in {low[column]:.4g} to "
                    f"{high[column]:.4g}" + (" and never in so small a part" if small[number, column] else "")
                )
                yield Finding("scale", message, summary.at(feature.name), "warn")


def _compared(data: Collected) -> Iterator[tuple[Feature, list[Summary]]]:
    """Features whose numbers can be compared between episodes."""
    for feature in data.schema.features:
        having, span = data.stacked(feature.name, "least")
        numbers = feature.dtype.startswith(("float", "int", "uint")) and not feature.name.startswith("age.")
        if numbers and len(having) > MIN_OTHERS and span.size:
            yield feature, having


def quaternions(episode: Observed) -> Iterator[Finding]:
    """Rows declared as quaternions that do not have length one."""
    for name, rows in episode.series.items():
        feature = episode.schema[name]
        if not feature.quaternion or feature.shape[-1:] != (4,):
            continue
        length = np.linalg.norm(rows.astype(np.float64), axis=-1).reshape(len(rows), -1)
        wrong = np.abs(length - 1).max(axis=1) > 0.01
        if wrong.any():
            step = int(wrong.argmax())
            message = f"{int(wrong.sum())} quaternions do not have length 1; the first has {length[step].max():.4g}"
            yield Finding("quaternions", message, episode.at(name, step), "warn")
