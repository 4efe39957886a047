"""Checks of time stamps, of how episodes end, and of reward against success."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.habits import odd_rewards, reward_shape
from vrl3data.checks.numbers import MIN_OTHERS
from vrl3data.checks.observed import LARGEST, Collected, Observed, Summary
from vrl3data.errors import Source
from vrl3data.schema import Array

GAP = 1.7
"""A step longer than this many usual ones: one lost row makes 2."""
JITTER = 0.15
"""Mean deviation of a step from the usual one, as a share of it. A guess: simulators have none."""
SHORTEST = 100_000
"""Nanoseconds: 10 kHz; no control loop with cameras is faster, but stamps in microseconds look like it."""
RATE_TIMES = 1.25
FLAGS = ("terminated", "truncated", "done", "dones", "is_terminal", "is_last", "terminal", "timeout")
ZERO_SHARE = 0.9
"""Of the other episodes that must have a reward before one without is odd."""


def timestamps(episode: Observed) -> Iterator[Finding]:
    """Stamps that go back, stand still, jump or tremble. Unit: nanoseconds."""
    rows = episode.series.get("timestamp")
    for name, clock in episode.clocks.items():
        yield from _order(episode, name, np.diff(clock.astype(np.int64)))
    if rows is None or not len(rows):
        return
    stamps = rows.reshape(len(rows), -1)[:, 0].astype(np.int64)
    if stamps[0] != 0:
        message = f"the first stamp is {int(stamps[0])}, not 0: stamps count from the first observation"
        yield Finding("timestamps", message, episode.at("timestamp", 0), "warn")
    steps = np.diff(stamps)
    yield from _order(episode, "timestamp", steps)
    if len(steps) >= 4 and np.median(steps) > 0:
        yield from _rhythm(episode, steps)


def _order(episode: Observed, name: str, steps: Array) -> Iterator[Finding]:
    for wrong, message in ((steps < 0, "time goes backwards"), (steps == 0, "the stamp is that of the row before")):
        if wrong.any():
            more = f" ({int(wrong.sum())} times)" if wrong.sum() > 1 else ""
            yield Finding("timestamps", message + more, episode.at(name, int(wrong.argmax()) + 1),
                          "error" if steps.min() < 0 else "warn")  # fmt: skip


def _rhythm(episode: Observed, steps: Array) -> Iterator[Finding]:
    usual = float(np.median(steps))
    if usual < SHORTEST:
        message = f"the usual step of time is {usual / 1000:.3g} microseconds; stamps are in nanoseconds"
        yield Finding("timestamps", message, episode.at("timestamp"), "warn")
    trembling = np.abs(steps[steps < 3 * usual] - usual)
    jitter = float(trembling.mean()) / usual
    if jitter > JITTER:
        message = f"steps of time differ from the usual {usual / 1e6:.3g} ms by {100 * jitter:.0f} % on average"
        yield Finding("timestamps", message, episode.at("timestamp"), "warn")
    gaps = np.flatnonzero(steps > (GAP + 3 * jitter) * usual)
    if len(gaps):
        longest, first = steps[gaps].max() / 1e6, int(gaps[0]) + 1
        message = f"{len(gaps)} gap{'s' * (len(gaps) > 1)}: {longest:.4g} ms where {usual / 1e6:.3g} ms are usual"
        yield Finding("timestamps", message, episode.at("timestamp", first), "warn")


def rates(data: Collected) -> Iterator[Finding]:
    """An episode with another step of time than the others: another rate, or another unit."""
    timed = [summary for summary in data.episodes if summary.facts.get("period")]
    periods = np.array([summary.facts["period"] for summary in timed])
    if len(timed) <= MIN_OTHERS:
        return
    usual = float(np.median(periods))
    off = np.maximum(periods / usual, usual / periods) > RATE_TIMES
    if off.mean() > 0.2:
        return  # a dataset of several rates
    for number in np.flatnonzero(off):
        message = f"the step of time is {periods[number] / 1e6:.4g} ms, in the others {usual / 1e6:.4g} ms"
        yield Finding("timestamps", message, timed[number].at("timestamp"), "warn")


def period(episode: Observed) -> float:
    """The usual step of time in ns; 0 without stamps."""
    rows = episode.series.get("timestamp")
    return float(max(0.0, np.median(np.diff(rows.reshape(-1))))) if rows is not None and len(rows) > 2 else 0.0


def ends(episode: Observed) -> Iterator[Finding]:
    """Flags of single steps that contradict each other or what the episode says of its end."""
    length = int(episode.meta["length"])
    for name, rows in episode.series.items():
        kind = name.rpartition(".")[2]
        if kind not in FLAGS or rows.size != len(rows) or len(rows) < length:
            continue
        ended = rows.reshape(-1)[:length] != 0
        if ended[:-1].any():
            step = int(ended.argmax())
            message = f"{name} is set in the middle of the episode, which goes on for {length - 1 - step} steps"
            yield Finding("ends", message, episode.at(name, step), "warn")
        told = episode.meta.get(kind, -1) if kind in ("terminated", "truncated") else -1
        if told in (0, 1) and bool(told) != bool(ended[-1]):
            message = f"the episode says {kind} = {told}, its last step says {int(ended[-1])}"
            yield Finding("ends", message, episode.at(name, length - 1), "warn")


def continued(data: Collected) -> Iterator[Finding]:
    """An episode that is said to have terminated, and the next one goes on where it stopped: it was cut there."""
    kept = data.excerpts
    pairs = [
        (one, two, a, b)
        for (one, a), (two, b) in zip(kept, kept[1:], strict=False)
        if len(a.states_ND) > 2 and len(b.states_ND) > 2 and len(a.states_ND) > one.meta["length"] - 1
    ]
    if len(pairs) < MIN_OTHERS:
        return
    # Between episodes a body is put back, which is many steps away unless it was never moved.
    apart = np.array([_distance(a.states_ND[-1], b.states_ND[0], a.states_ND) for _, _, a, b in pairs])
    for number, (one, two, _, _) in enumerate(pairs):
        rest = np.delete(apart, number)
        same = one.meta["task"] == two.meta["task"] and one.meta["split"] == two.meta["split"]
        if same and one.meta["terminated"] == 1 and apart[number] < 2 and np.median(rest) > 8:
            message = f"it is said to have terminated, but episode {two.meta['name']} goes on from its last state"
            yield Finding("ends", message, one.at(step=int(one.meta["length"]) - 1), "warn")


def _distance(last: Array, first: Array, states_ND: Array) -> float:
    """In usual steps."""
    step = np.abs(np.diff(states_ND, axis=0)).mean(axis=0)
    used = step > 1e-9
    return float((np.abs(last - first)[used] / step[used]).mean()) if used.any() else np.inf


def reward_facts(episode: Observed) -> dict[str, Any]:
    """What the comparison of episodes needs of the reward."""
    rows = episode.series.get("reward")
    if rows is None or not rows.size or rows.size != len(rows):
        return {}
    values = rows.reshape(-1).astype(np.float64)
    dense = float((np.diff(values) != 0).mean()) if len(values) > 1 else 0.0
    return {"max": float(values.max()), "last": float(values[-1]), "sum": float(values.sum()), "dense": dense,
            "zero": float(not values.any()), "flat": float(np.ptp(values) == 0),
            "shape": reward_shape(np.clip(values, -LARGEST, LARGEST))}  # fmt: skip


def reward(data: Collected) -> Iterator[Finding]:
    """Rewards that are all zero: in the whole dataset, or in an episode among others with one at every step."""
    rewarded = [summary for summary in data.episodes if summary.facts.get("reward")]
    if not rewarded:
        return
    zero = np.array([summary.facts["reward"]["zero"] for summary in rewarded], bool)
    if zero.all():
        yield Finding("reward", f"the reward is zero in all {len(rewarded)} episodes",
                      Source(feature="reward"), "warn")  # fmt: skip
        return
    yield from odd_rewards(data)
    dense = np.array([summary.facts["reward"]["dense"] for summary in rewarded])
    flat = np.array([summary.facts["reward"]["flat"] for summary in rewarded], bool)
    if len(rewarded) <= MIN_OTHERS or np.mean(dense > 0.5) < ZERO_SHARE * 0.9:
        return  # a sparse reward may well be missing in an episode
    for number in np.flatnonzero(flat):
        what = "zero" if zero[number] else "the same"
        message = f"the reward is {what} at every step; in the others it changes"
        yield Finding("reward", message, rewarded[number].at("reward"), "warn")


def success(data: Collected) -> Iterator[Finding]:
    """Success that contradicts the reward, judged by what reward tells of success in the other episodes."""
    told = [s for s in data.episodes if s.facts.get("reward") and s.meta.get("success") in (0, 1)]
    good = [summary for summary in told if summary.meta["success"] == 1]
    paid = [summary for summary in good if summary.facts["reward"]["max"] > 0]
    if len(good) > MIN_OTHERS and len(paid) >= ZERO_SHARE * len(good):
        for summary in good:
            if summary.facts["reward"]["zero"]:
                message = "success = 1, but no reward at all; other successful episodes have one"
                yield Finding("success", message, summary.at("reward"), "warn")
    if len(told) > MIN_OTHERS:
        yield from _against(told)


def _against(told: list[Summary]) -> Iterator[Finding]:
    """Where one threshold on the reward tells success apart in nearly all episodes, the rest contradict it."""
    labels = np.array([summary.meta["success"] for summary in told])
    best: tuple[int, str, float, Array] | None = None
    for statistic in ("max", "last", "sum"):
        values = np.array([summary.facts["reward"][statistic] for summary in told])
        levels = np.unique(values)
        for cut in (levels[1:] + levels[:-1]) / 2:
            wrong = (values > cut) != (labels == 1)
            if best is None or wrong.sum() < best[0]:
                best = (int(wrong.sum()), statistic, float(cut), wrong)
    if best is None or not best[0]:
        return
    minority = min((labels == 1)[~best[3]].sum(), (labels == 0)[~best[3]].sum())
    if best[0] > max(1, 0.05 * len(told)) or minority < 3 * best[0]:
        return
    for number in np.flatnonzero(best[3]):
        summary = told[number]
        message = (
            f"success = {labels[number]}, but {best[1]} of its reward is {summary.facts['reward'][best[1]]:.4g}; "
            f"in the others {best[2]:.4g} separates success from failure"
        )
        yield Finding("success", message, summary.at("reward"), "warn")
