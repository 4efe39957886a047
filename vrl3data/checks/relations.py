"""Checks in time between series: actions that are shifted against states, frames against states.

Both series are whitened (each column less what its own last rows predict; Box, Jenkins & Reinsel 2015, 12.1), because
smooth motions resemble themselves some steps later; then a linear map is fitted from one to the other over all other
episodes, and each episode is asked at which lag it follows that map best. Letters: E episodes, T steps, D columns,
L lags.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.lighting import with_moved_camera
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
SHARP, MOST = -0.02, 0.8
"""No episode is judged unless lag 0 is the best by this much in this share of all. Frames of door and relocate are not
judged: their motions are smooth, and small in the picture."""
EXCESS, MARGIN = 0.05, 0.25
"""By how much another lag must correlate better in an episode, and by how many deviations of the other episodes that
must pass the greatest of so many normal numbers, sqrt(2 ln E). Clean sets, where lag 0 is sharp: 0.044 at most, with a
margin below 0; an episode shifted by one step: mostly 0.05 to 1.1."""
TELLING = 0.6
"""A lag is named only if the episode follows the map at it at least this well, against what is usual without one."""
RARE, USUAL = 0.1, 0.9
"""Shares of episodes in which a repeated frame at the edge is one's own mistake, or a mistake of all."""
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
        moved_away = with_moved_camera(data, name)  # whose frames cannot be asked when they were taken
        kept = [(s, excerpt) for s, excerpt in data.excerpts if name in excerpt.energy and id(s) not in moved_away]
        moved = [np.abs(np.diff(excerpt.states_ND, axis=0)) for _, excerpt in kept]
        seen = [excerpt.energy[name].astype(np.float32) for _, excerpt in kept]
        result = lagged([s for s, _ in kept], seen, moved)
        found = list(_shifted(result, "shifted_frames", name, "frames", "states")) if result else []
        yield from found or _repeated(data, name)


def _repeated(data: Collected, name: str) -> Iterator[Finding]:
    """The first or last frame twice and no other, although the body moved: what a shift leaves behind at the edge."""
    having = [summary for summary in data.episodes if name in summary.facts.get("repeated", {})]
    for edge in ("first", "last"):
        odd = [summary for summary in having if summary.facts["repeated"][name] == edge]
        if len(having) >= MIN_EPISODES and 0 < len(odd) <= RARE * len(having):
            for summary in odd:
                step = 1 if edge == "first" else int(summary.meta["length"])
                message = f"the {edge} frame, and no other, is there twice although the body moves: shifted by one?"
                yield Finding("shifted_frames", message, summary.at(name, step), "warn")
        elif len(having) >= MIN_EPISODES and len(odd) > USUAL * len(having):
            message = (
                f"in {len(odd)} of {len(having)} episodes the {edge} frame, and no other, is there twice although "
            )
            yield Finding("shifted_frames", message + "the body moves: shifted by one?", Source(feature=name), "warn")


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
    if np.quantile(excess, MOST) > SHARP:
        return
    margin = (excess - middle) / spread - np.sqrt(2 * np.log(len(excess)))
    for episode in np.flatnonzero((excess > EXCESS) & (margin > MARGIN)):
        lag = int(result.correlation_EL[episode].argmax())
        own, usually = float(result.correlation_EL[episode, lag]), float(np.median(result.correlation_EL[:, ZERO]))
        message = f"the {what} fit the {against} {_lag(lag)} better, unlike in the other episodes"
        if own < TELLING * usually:
            message = f"the {what} do not fit the {against}: correlation {own:.2f} at best, in the others {usually:.2f}"
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
    explained = [_explained(x, y, lag) for lag in LAGS]
    correlation = [
        [_follows(a, b, lag, weights) for lag in LAGS] for a, b, weights in zip(x, y, _maps(x, y), strict=True)
    ]
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


def _explained(x: list[Array], y: list[Array], lag: int) -> float:
    pairs = [_aligned(a, b, lag) for a, b in zip(x, y, strict=True)]
    inputs, outputs = np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])
    weights = _solved(inputs.T @ inputs, inputs.T @ outputs)
    rest = ((outputs - inputs @ weights) ** 2).sum() / max((outputs**2).sum(), 1e-12)
    free = max(1, len(inputs) - inputs.shape[1] - 1)
    return float(1 - rest * (len(inputs) - 1) / free)


def _maps(x: list[Array], y: list[Array]) -> Iterator[Array]:
    """For each episode the map that all others follow: with its own part in it, a spoilt episode would pass."""
    pairs = [_aligned(a, b, 0) for a, b in zip(x, y, strict=True)]
    gram = sum((a.T @ a for a, _ in pairs), start=np.zeros((x[0].shape[1],) * 2))
    product = sum((a.T @ b for a, b in pairs), start=np.zeros((x[0].shape[1], y[0].shape[1])))
    for a, b in pairs:
        yield _solved(gram - a.T @ a, product - a.T @ b)


def _solved(gram: Array, product: Array) -> Array:
    size = len(gram)
    weights: Array = np.linalg.solve(gram + (RIDGE * np.trace(gram) / size + 1e-9) * np.eye(size), product)
    return weights


def _follows(x: Array, y: Array, lag: int, weights: Array) -> float:
    inputs, outputs = _aligned(x, y, lag)
    told = inputs @ weights
    return float((told * outputs).sum() / np.sqrt((told**2).sum() * (outputs**2).sum() + 1e-9))
