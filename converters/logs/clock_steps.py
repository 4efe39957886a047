"""Where a clock was set: lasting steps between a stamp and the log time, and log time that goes back.

Times are int64 nanoseconds; N messages in file order, M of them around a place, K places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
NEAR = 25
"""Messages on either side of a step that must agree on it."""
FEWEST = 3
FINE = 60
"""Messages on either side that the size of a step is taken from."""


@dataclass(frozen=True)
class ClockRules:
    """What counts as what. Nanoseconds, but for the shares."""

    reorder_ns: int = 500_000_000
    """Log time that goes back by less is messages out of order; by more, the clock was set."""
    jump_ns: int = 100_000_000
    """A lasting step of a stamp against the log time by more: its clock was set."""
    latency_ns: int = 1_000_000_000
    """Stamps further from the log time, in the median, come from a clock with another zero."""
    spread_ns: int = 2_000_000_000
    """A stamp that is off the usual delay by more is a stray one."""
    unset_share: float = 0.5
    """If more stamps than this are zero the clock is not used; fewer are filled in from log time less the delay."""
    stray_share: float = 0.1
    """If more stamps than this are stray the clock is not used."""


@dataclass(frozen=True)
class Jump:
    """A clock was set by `size_ns` (negative: back) before the message `index` (in file order)."""

    clock: str
    index: int
    at_ns: int
    """Log time of that message."""
    size_ns: int
    mended: bool
    """The stamps were carried on over the step by means of the log time. If not, the topic is split there."""


@dataclass(frozen=True)
class Steps:
    """`correction_N` is added to stamps, `log_correction_N` to log times, to take the steps of either out."""

    correction_N: Times
    log_correction_N: Times
    jumps: tuple[Jump, ...]


def median_step(stamps_N: Times) -> int:
    """The median interval in the order given; 0 if there is none."""
    return int(np.median(np.diff(stamps_N))) if len(stamps_N) > 1 else 0


def lasting_steps(clock: str, stamps_N: Times, log_N: Times, rules: ClockRules) -> Steps:
    """Steps of the stamps against the log time that last, each blamed on the clock whose own interval is odd there.

    A message that came late, and a recorder that stood still for a while, are no steps.
    """
    count = len(stamps_N)
    delay_N = log_N - stamps_N
    places_K = np.flatnonzero(np.abs(np.diff(delay_N)) > rules.jump_ns) + 1
    places_K = places_K[(places_K >= FEWEST) & (places_K <= count - FEWEST)]
    if not len(places_K):
        none_N = np.zeros(count, np.int64)
        return Steps(none_N, none_N, ())
    own_K = np.abs(np.diff(stamps_N)[places_K - 1] - median_step(stamps_N))
    log_K = np.abs(np.diff(log_N)[places_K - 1] - median_step(log_N))
    guilty_K = own_K > log_K
    size_K = _sizes(delay_N, places_K)
    least = max(rules.jump_ns, _disorder(stamps_N))
    own = [(at, _size_at(delay_N, at)) for at in _strongest(places_K[guilty_K], size_K[guilty_K], least)]
    correction_N = np.zeros(count, np.int64)
    for at, by in own:
        correction_N[at:] += by
    places = [place for place, _ in own]
    correction_N -= _of_right(places, correction_N, delay_N)
    _settle(delay_N, correction_N, places)
    log_correction_N = _log_steps(delay_N - correction_N, places_K[~guilty_K], rules.spread_ns)
    jumps = tuple(Jump(clock, at, int(log_N[at]), -by, True) for at, by in own)
    return Steps(correction_N, log_correction_N, jumps)


def _sizes(delay_N: Times, places_K: NDArray[np.int64]) -> Times:
    """By how much the median delay of the messages after a place differs from that of those before it."""
    near = min(NEAR, len(delay_N) // 2)
    size_K = np.zeros(len(places_K), np.int64)
    inside_K = (places_K >= near) & (places_K <= len(delay_N) - near)
    window_NM = np.lib.stride_tricks.sliding_window_view(delay_N, near)
    for start in range(0, len(places_K), 65536):
        part = slice(start, start + 65536)
        at = places_K[part][inside_K[part]]
        step = np.median(window_NM[at], axis=1) - np.median(window_NM[at - near], axis=1)
        size_K[part][inside_K[part]] = step.astype(np.int64)
    for number in np.flatnonzero(~inside_K):
        edge = int(places_K[number])
        size_K[number] = int(np.median(delay_N[edge : edge + near]) - np.median(delay_N[max(0, edge - near) : edge]))
    return size_K


def _disorder(stamps_N: Times) -> int:
    """Half as much again as an interval, if messages are out of order: then delays jump about by whole intervals."""
    dt = np.diff(stamps_N)
    return int(1.5 * np.median(np.abs(dt))) if (dt < 0).mean() > 0.02 else 0


def _strongest(places_K: NDArray[np.int64], size_K: Times, least: int) -> list[int]:
    """The strongest of each cluster of places that see the same step."""
    found: list[tuple[int, int]] = []
    last = -NEAR
    for place, size in zip(places_K.tolist(), np.abs(size_K).tolist(), strict=True):
        if size <= least:
            continue
        if place - last > NEAR or not found:
            found.append((place, size))
        elif size > found[-1][1]:
            found[-1] = (place, size)
        last = place
    return [place for place, _ in found]


def _size_at(delay_N: Times, place: int) -> int:
    """The step at a place, from means: where messages are out of order medians are a whole interval off."""
    sides = []
    for part in (delay_N[max(0, place - FINE) : place], delay_N[place : place + FINE]):
        middle = np.median(part)
        off = np.abs(part - middle)
        sides.append(float(middle) + float(np.mean((part - middle)[off <= 5 * np.median(off)])))
    return round(sides[1] - sides[0])


def _of_right(places: list[int], correction_N: Times, delay_N: Times) -> int:
    """The correction of the stretch between places where stamps and log time agree best; the rest follows it."""
    edges = [0, *places, len(delay_N)]
    medians = [_unlikely(np.median(delay_N[low:high])) for low, high in zip(edges, edges[1:], strict=False)]
    return int(correction_N[edges[int(np.argmin(medians))]])


def _unlikely(delay: float) -> float:
    """How far a usual delay is from what is to be expected: messages are rarely written before they are made."""
    return float(delay if delay >= 0 else -5 * delay)


def _settle(delay_N: Times, correction_N: Times, places: list[int]) -> None:
    """Messages out of order around a step belong to the side whose delay they have."""
    for place in places:
        low, high = max(0, place - NEAR), min(len(delay_N), place + NEAR)
        before, after = int(correction_N[place - 1]), int(correction_N[place])
        usual = int(np.median(delay_N[low:high] - correction_N[low:high]))
        part_M = delay_N[low:high]
        is_after_M = np.abs(part_M - after - usual) < np.abs(part_M - before - usual)
        correction_N[low:high] = np.where(is_after_M, after, before)


def _log_steps(delay_N: Times, places_K: NDArray[np.int64], least: int) -> Times:
    """Steps of the log time itself: only such as last to the next one, since a recorder may stand still for a while."""
    correction_N = np.zeros(len(delay_N), np.int64)
    large = [place for place, size in zip(places_K.tolist(), _sizes(delay_N, places_K).tolist(), strict=True)
             if abs(size) > least]  # fmt: skip
    edges = [0, *large[:1000], len(delay_N)]
    medians = [int(np.median(delay_N[low:high])) for low, high in zip(edges, edges[1:], strict=False)]
    # The stretch in which the two clocks agree best is taken for right.
    right = min(medians, key=_unlikely)
    for low, high, median in zip(edges, edges[1:], medians, strict=False):
        if abs(median - right) > least:
            correction_N[low:high] = right - median
    return correction_N


def resets(stamps_N: Times, rules: ClockRules) -> list[int]:
    """Places where a clock without a reference was set back by more than messages come out of order.

    Blocks of a file in another order than that of time, which fill one another's gaps, are none.
    """
    if len(stamps_N) < 2:
        return []
    places = (np.flatnonzero(np.diff(stamps_N) < -rules.reorder_ns) + 1).tolist()
    edges = [0, *places, len(stamps_N)]
    lasting = [place for place, after in zip(edges[1:], edges[2:], strict=False)
               if _lasts(stamps_N, place, after, rules)]  # fmt: skip
    if not lasting or _fit_together(stamps_N, [0, *lasting, len(stamps_N)], rules):
        return []
    return lasting


def _lasts(stamps_N: Times, place: int, after: int, rules: ClockRules) -> bool:
    """A single message that came late is no reset: those behind it are ahead of it again at once."""
    latest = int(stamps_N[place - 1])
    return int(np.median(stamps_N[place : min(after, place + 2 * FEWEST)])) < latest - rules.reorder_ns // 2


def _fit_together(stamps_N: Times, edges: list[int], rules: ClockRules) -> bool:
    runs = [stamps_N[low:high] for low, high in zip(edges, edges[1:], strict=False)]
    spans = sorted((int(run.min()), int(run.max())) for run in runs)
    near = max(rules.reorder_ns, 3 * max(abs(median_step(run)) for run in runs))
    return all(-rules.reorder_ns <= low - high <= near for (_, high), (low, _) in zip(spans, spans[1:], strict=False))


def continuous(log_N: Times, rules: ClockRules | None = None) -> Times:
    """Log times of ALL messages of a file, in file order, carried on over resets by the usual interval.

    For a file whose recorder's clock was set back: given topic by topic, the times after the reset lie on those before.
    """
    whole_N = np.asarray(log_N, np.int64).copy()
    usual = max(0, median_step(whole_N))
    for place in resets(np.asarray(log_N, np.int64), rules or ClockRules()):
        whole_N[place:] += int(whole_N[:place].max()) + usual - int(whole_N[place])
    return whole_N
