"""Checks in time between series: actions that are shifted against states, frames against states.

Both series are whitened (each column less what its own last rows predict; Box, Jenkins & Reinsel 2015, 12.1), because
smooth motions resemble themselves some steps later; then one linear map is fitted from one to the other over all
episodes, and each episode is asked at which lag it follows the map best. Letters: E episodes, T steps, D columns,
L lags.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.observed import Collected, Summary
from vrl3data.errors import Source
from vrl3data.schema import Array

LAGS = (-3, -2, -1, 0, 1, 2, 3)
ZERO = LAGS.index(0)
ORDER = 2
"""Rows of its past that predict a column: position and speed."""
MIN_STEPS, MIN_EPISODES, MIN_ROWS = 12, 5, 200
CLIP = 4.0
"""Standard deviations; one contact must not outweigh an episode."""
RIDGE = 1e-3
RULES = ((0.05, 0.25), (0.02, 2.25))
"""(excess, margin): by how much another lag must correlate better in an episode, and by how many deviations of the other
episodes that must pass the greatest of so many normal numbers, sqrt(2 ln E). Clean sets: 0.044 once with a margin below 0
(relocate, cam3), else 0.007. One step more or less in a smooth motion does not show (frames of door and relocate)."""
TIMES, EXPLAINED = 2.0, 0.03
"""For the whole dataset: another lag must explain twice as much, and this share. The servos of hammer
answer nearly alike to the stored action and to the one after it: 1.06 times."""
LOST, KNOWN = 0.35, 0.35
"""An episode follows the map less than this share of what is usual, where that is a correlation of at least `KNOWN`."""


@dataclass
class Lagged:
    """How well each episode, and all together, follow one map at each lag."""

    owners: list[Summary]
    correlation_EL: Array
    explained_L: Array
    """Adjusted share of the variance that a map fitted at this lag explains over all episodes."""


def shifted_actions(data: Collected) -> Iterator[Finding]:
    """Actions stored a step too early or too late, in one episode or in all."""
    kept = [(summary, excerpt) for summary, excerpt in data.excerpts if excerpt.actions_TD.size]
    moved = [np.diff(excerpt.states_ND, axis=0) for _, excerpt in kept]
    result = lagged([s for s, _ in kept], [excerpt.actions_TD for _, excerpt in kept], moved)
    if result:
        yield from _shifted(result, "shifted_actions", "action", "actions", "changes of state")
        yield from _unrelated(result)


def shifted_frames(data: Collected) -> Iterator[Finding]:
    """Frames of a camera stored a step too early or too late, in one episode or in all."""
    for name in sorted({name for _, excerpt in data.excerpts for name in excerpt.energy}):
        kept = [(summary, excerpt) for summary, excerpt in data.excerpts if name in excerpt.energy]
        moved = [np.abs(np.diff(excerpt.states_ND, axis=0)) for _, excerpt in kept]
        seen = [excerpt.energy[name].astype(np.float32) for _, excerpt in kept]
        result = lagged([s for s, _ in kept], seen, moved)
        if result:
            yield from _shifted(result, "shifted_frames", name, "frames", "states")


def _shifted(result: Lagged, check: str, feature: str, what: str, against: str) -> Iterator[Finding]:
    best = int(result.explained_L.argmax())
    explained, usual = float(result.explained_L[best]), max(0.0, float(result.explained_L[ZERO]))
    if best != ZERO and explained > EXPLAINED and explained > TIMES * usual:
        message = f"in all episodes the {what} fit the {against} {_lag(best)} better"
        yield Finding(check, message, Source(feature=feature), "warn")
        return
    rest = np.delete(result.correlation_EL, ZERO, axis=1)
    excess = rest.max(axis=1) - result.correlation_EL[:, ZERO]
    middle = float(np.median(excess))
    spread = max(1.4826 * float(np.median(np.abs(excess - middle))), 0.01)
    margin = (excess - middle) / spread - np.sqrt(2 * np.log(len(excess)))
    odd = np.any([(excess > least) & (margin > beyond) for least, beyond in RULES], axis=0)
    for episode in np.flatnonzero(odd):
        lag = int(result.correlation_EL[episode].argmax())
        message = f"the {what} fit the {against} {_lag(lag)} better, unlike in the other episodes"
        yield Finding(check, message, result.owners[episode].at(feature), "warn")


def _unrelated(result: Lagged) -> Iterator[Finding]:
    """Actions that do not move the body as they do in the other episodes: of another episode, scaled or reversed."""
    usual = float(np.median(result.correlation_EL[:, ZERO]))
    greatest = result.correlation_EL.max(axis=1)
    for episode in np.flatnonzero(greatest < LOST * usual):
        if usual > KNOWN:
            told = f"{float(result.correlation_EL[episode, ZERO]):.2f}, in the others {usual:.2f}"
            message = f"the actions do not move the body as in the other episodes: correlation {told}"
            yield Finding("shifted_actions", message, result.owners[episode].at("action"), "warn")


def _lag(position: int) -> str:
    lag = LAGS[position]
    steps = f"{abs(lag)} step{'s' * (abs(lag) > 1)}"
    return f"{steps} {'before' if lag > 0 else 'after'} them"


def lagged(owners: list[Summary], inputs: list[Array], outputs: list[Array]) -> Lagged | None:
    """None if there is too little to tell. `inputs` and `outputs`: T x D for each episode."""
    chosen = [n for n, (x, y) in enumerate(zip(inputs, outputs, strict=True)) if min(len(x), len(y)) >= MIN_STEPS]
    pairs = [(x[: len(y)], y[: len(x)]) for x, y in ((inputs[n], outputs[n]) for n in chosen)]
    if len(pairs) < MIN_EPISODES or sum(len(x) for x, _ in pairs) < MIN_ROWS:
        return None
    if len({x.shape[1] for x, _ in pairs}) > 1 or len({y.shape[1] for _, y in pairs}) > 1:
        return None
    x, y = whitened([x for x, _ in pairs]), whitened([y for _, y in pairs])
    if not x[0].shape[1] or not y[0].shape[1]:
        return None
    explained, maps = zip(*(_fit(x, y, lag) for lag in LAGS), strict=True)
    correlation = [[_follows(a, b, lag, maps[ZERO]) for lag in LAGS] for a, b in zip(x, y, strict=True)]
    return Lagged([owners[n] for n in chosen], np.array(correlation), np.array(explained))


def whitened(series: list[Array]) -> list[Array]:
    """Each column less what its last ORDER rows predict, in standard deviations; still columns are dropped."""
    now = np.concatenate([rows[ORDER:] for rows in series]).astype(np.float64)
    past = [np.concatenate([rows[ORDER - back : len(rows) - back] for rows in series]).astype(np.float64)
            for back in range(1, ORDER + 1)]  # fmt: skip
    past_DKK = np.einsum("ktd,jtd->dkj", past, past)
    past_DKK += 1e-6 * np.trace(past_DKK, axis1=1, axis2=2)[:, None, None] * np.eye(ORDER) + 1e-12 * np.eye(ORDER)
    weights_DK = np.linalg.solve(past_DKK, np.einsum("ktd,td->dk", past, now)[..., None])[..., 0]
    rest = now - sum(item * weights_DK[:, back] for back, item in enumerate(past))
    spread = rest.std(axis=0)
    used = spread > 1e-7
    rest = np.clip(rest[:, used] / spread[used], -CLIP, CLIP)
    return np.split(rest, np.cumsum([len(rows) - ORDER for rows in series])[:-1])


def _aligned(x: Array, y: Array, lag: int) -> tuple[Array, Array]:
    """Row t of `y` beside row t + lag of `x`, both less their means."""
    count = min(len(x), len(y))
    a, b = x[max(0, lag) : count + min(0, lag)], y[max(0, -lag) : count - max(0, lag)]
    return a - a.mean(axis=0), b - b.mean(axis=0)


def _fit(x: list[Array], y: list[Array], lag: int) -> tuple[float, Array]:
    pairs = [_aligned(a, b, lag) for a, b in zip(x, y, strict=True)]
    inputs, outputs = np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])
    gram = inputs.T @ inputs
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)) + 1e-12 * np.eye(len(gram))
    weights = np.linalg.solve(gram, inputs.T @ outputs)
    rest = ((outputs - inputs @ weights) ** 2).sum() / max((outputs**2).sum(), 1e-12)
    free = max(1, len(inputs) - inputs.shape[1] - 1)
    return float(1 - rest * (len(inputs) - 1) / free), weights


def _follows(x: Array, y: Array, lag: int, weights: Array) -> float:
    inputs, outputs = _aligned(x, y, lag)
    told = inputs @ weights
    return float((told * outputs).sum() / np.sqrt((told**2).sum() * (outputs**2).sum() + 1e-9))
