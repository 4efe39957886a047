"""Which of its three clocks a topic's messages are placed by, and why.

Times are int64 nanoseconds; N messages in file order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from converters.logs.clock_steps import ClockRules, Jump, Times, lasting_steps, resets
from vrl3data.errors import ConfigError

LATEST = 2**62
"""A stamp beyond this (the year 2116) is as good as none, and differences of smaller ones fit into int64."""
SLOWEST, FASTEST = 0.7, 1.4
"""A rough look, since the delays of a short log vary; `MOST_DRIFT` is the finer one."""
MOST_DRIFT = 0.02
DRIFT_BINS = 20
MOST_GUESSES, MOST_SLOTS = 2000, 20
NOISE_NS, STEP_ERROR_NS = 20_000, 5_000_000
"""Drift adds up to more than this over a log, or is none; the sizes of steps are not known better."""
FEW = 10
"""From fewer messages nobody can tell another zero from a message that was kept for later."""
UNSTEADY = "keep no steady distance from the log time"


@dataclass(frozen=True)
class Clock:
    """The stamps that place a topic's messages, and what was found on the way.

    `delay` is log time less stamp (after `offset_ns`), of the header stamp, else of the publish time.
    """

    stamps_ns: Times
    """In order of time, but never sorted across a split."""
    order: NDArray[np.int64]
    """Message in file order of each stamp; equal stamps keep the order of the file."""
    which: str
    """`header`, `publish` or `log`."""
    reason: str
    splits: tuple[int, ...] = ()
    """Entries of `stamps_ns` before which the clock was set and could not be carried on."""
    jumps: tuple[Jump, ...] = ()
    """Of any of the topic's clocks, the chosen one or not."""
    unset: int = 0
    """Header stamps that are zero."""
    stray: int = 0
    """Stamps far off their neighbours and the log time; filled in like those that are zero."""
    reordered: int = 0
    """Messages that come after one with a later stamp."""
    late_ns: int = 0
    """The most that one of those is behind."""
    duplicates: int = 0
    """Stamps equal to the one before."""
    offset_ns: int = 0
    """What was added to stamps of another epoch; the least delay counts as none."""
    drift_ppm: float = 0.0
    """By how much the stamps' clock runs faster than log time; 0 if that is within the noise."""
    delay_mean_ns: int = 0
    delay_median_ns: int = 0
    delay_p95_ns: int = 0

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of `stamps_ns` without a split inside."""
        edges = [0, *self.splits, len(self.stamps_ns)]
        return tuple(zip(edges, edges[1:], strict=False))


@dataclass(frozen=True)
class _Judged:
    """A clock against the log time: its stamps, mended, or why it is not to be used."""

    refusal: str = ""
    stamps_N: Times | None = None
    jumps: tuple[Jump, ...] = ()
    unset: int = 0
    stray: int = 0
    offset_ns: int = 0
    drift_ppm: float = 0.0
    delay_N: Times | None = None


def choose_clock(
    header_ns: ArrayLike | None, publish_ns: ArrayLike | None, log_ns: ArrayLike, rules: ClockRules | None = None
) -> Clock:
    """The header stamp if it can be trusted, else the publish time, else the log time: one decision for the topic.

    `header_ns` is None for types without one, and 0 where a message has none. Trusted means: set, steady against the
    log time (steps of its clock are taken out and reported) and as fast as it.
    """
    rules = rules or ClockRules()
    log_N = _times(log_ns, None)
    if not len(log_N):
        return Clock(log_N, np.zeros(0, np.int64), "log", "no messages")
    log_N = _filled(log_N)
    header = None if header_ns is None else _judge("header", _times(header_ns, len(log_N)), log_N, rules)
    published_N = None if publish_ns is None else _times(publish_ns, len(log_N))
    why = "the type has no header stamp" if header is None else header.refusal
    if header is not None and not header.refusal:
        chosen = _trusted("header", _words("header", header), header, log_N, rules)
    elif published_N is not None and not np.array_equal(published_N, log_N):
        publish = _judge("publish", published_N, log_N, rules)
        chosen = _log(log_N, f"{why}; {publish.refusal}", rules)
        if not publish.refusal:
            chosen = _trusted("publish", f"{_words('publish', publish)}: {why}", publish, log_N, rules)
    else:
        chosen = _log(log_N, why, rules)
    if chosen.which == "log":
        return replace(chosen, unset=0 if header is None else header.unset, jumps=_jumps(header, chosen))
    unset = 0 if header is None else header.unset
    back = () if chosen.splits else _log_jumps(log_N, rules, mended=True)
    return replace(chosen, unset=unset, jumps=(*_jumps(header, chosen), *back))


def _jumps(header: _Judged | None, chosen: Clock) -> tuple[Jump, ...]:
    own = () if header is None or chosen.which == "header" else header.jumps
    return (*own, *chosen.jumps)


def _times(values: ArrayLike, count: int | None) -> Times:
    times = np.asarray(values)
    if times.ndim != 1 or (len(times) and times.dtype.kind not in "iu"):
        raise ConfigError(f"stamps: expected a row of whole nanoseconds, found {times.dtype} of shape {times.shape}")
    if count is not None and len(times) != count:
        raise ConfigError(f"stamps: expected one for each of {count} messages, found {len(times)}")
    if times.dtype.kind == "u":
        times = np.minimum(times, np.uint64(LATEST + 1))
    return times.astype(np.int64)


def _filled(log_N: Times) -> Times:
    """Log times that were never set take the one before (at the beginning: the first that was)."""
    set_N = (log_N > 0) & (log_N <= LATEST)
    if set_N.all() or not set_N.any():
        return np.clip(log_N, 0, LATEST)
    last_N = np.maximum.accumulate(np.where(set_N, np.arange(len(log_N)), -1))
    return log_N[np.where(last_N < 0, int(np.argmax(set_N)), last_N)]


def _judge(name: str, stamps_N: Times, log_N: Times, rules: ClockRules) -> _Judged:
    label = {"header": "header stamps", "publish": "publish times"}[name]
    set_N = (stamps_N > 0) & (stamps_N <= LATEST)
    count, unset = len(log_N), int(len(log_N) - set_N.sum())
    if unset > rules.unset_share * count:
        return _Judged(f"{unset:,} of {count:,} {label} are zero", unset=unset)
    places_M = np.flatnonzero(set_N)
    part_M, log_M = stamps_N[places_M], log_N[places_M]
    steps = lasting_steps(name, part_M, log_M, rules)
    jumps = tuple(replace(jump, index=int(places_M[jump.index])) for jump in steps.jumps)
    mended_M, steady_log_M = part_M + steps.correction_N, log_M + steps.log_correction_N
    delay_M = steady_log_M - mended_M
    drift = _drift(steady_log_M, delay_M, STEP_ERROR_NS if jumps else NOISE_NS)
    speed = _speed(mended_M, steady_log_M) if not drift else 1 - drift
    if not SLOWEST <= speed <= FASTEST or abs(drift) > MOST_DRIFT:
        return _Judged(f"{label} {_how(speed, mended_M)}", jumps=jumps, unset=unset)
    stray_M = _stray(mended_M, delay_M, steady_log_M, drift, rules)
    if stray_M.sum() > rules.stray_share * len(stray_M):
        return _Judged(f"{label} {UNSTEADY}", jumps=jumps, unset=unset)
    good_M = ~stray_M
    usual = int(np.median(delay_M[good_M]))
    offset = int(np.quantile(delay_M[good_M], 0.05)) if abs(usual) > rules.latency_ns else 0
    if offset and good_M.sum() < FEW:
        return _Judged(f"the few {label} are {usual / 1e9:+.3f} s before the log time", jumps=jumps, unset=unset)
    whole_N = log_N - usual
    whole_N[places_M] = np.where(good_M, mended_M, steady_log_M - usual)
    known_N = np.zeros(count, np.bool_)
    known_N[places_M] = good_M
    _into_holes(whole_N, known_N, int(np.abs(delay_M[good_M] - usual).max()))
    delay_M = delay_M[good_M] - offset
    return _Judged(
        "", whole_N + offset, jumps, unset, int(stray_M.sum()), offset, -drift * 1e6 if drift else 0.0, delay_M
    )


def _into_holes(stamps_N: Times, known_N: NDArray[np.bool_], unsteady_ns: int) -> None:
    """Move each stamp that was guessed into the nearest hole of an even rate, no further than delays differ.

    The guess is off by as much as its message was late; the hole that it left is not.
    """
    guess_K = np.flatnonzero(~known_N)
    if not 0 < len(guess_K) <= MOST_GUESSES or known_N.sum() < 10:
        return
    in_order_M = np.sort(stamps_N[known_N])
    dt = np.diff(in_order_M)
    period = int(np.median(dt))
    if period <= 0 or (np.abs(dt - period) < period / 2).mean() < 0.5:
        return
    reach = min(unsteady_ns, 10 * period) + period * 3 // 4
    holes = [int(in_order_M[0]) - period, int(in_order_M[-1]) + period]
    for place in np.flatnonzero(dt > 1.5 * period)[:MOST_GUESSES]:
        parts = min(round(int(dt[place]) / period), MOST_SLOTS)
        holes += [int(in_order_M[place]) + int(dt[place]) * part // parts for part in range(1, parts)]
    free = np.sort(np.array(holes, np.int64))
    for place in guess_K:
        nearest = int(np.argmin(np.abs(free - stamps_N[place])))
        if abs(int(free[nearest]) - int(stamps_N[place])) <= reach:
            stamps_N[place] = free[nearest]
            free = np.delete(free, nearest)
        if not len(free):
            return


def _how(speed: float, stamps_N: Times) -> str:
    if speed > 0.01 and len(stamps_N) >= FEW:
        return f"run at {speed:.2f} of the log time's rate"
    return "stand still" if 2 * len(np.unique(stamps_N)) < len(stamps_N) else UNSTEADY


def _speed(stamps_N: Times, log_N: Times) -> float:
    """How fast the stamps' clock goes, by the log time; 1 where it cannot be said."""
    if len(log_N) < 5:
        return 1.0
    low, high = np.quantile(log_N, [0.05, 0.95])
    below, above = np.quantile(stamps_N, [0.05, 0.95])
    return float((above - below) / (high - low)) if high > low else 1.0


def _drift(log_N: Times, delay_N: Times, noise_ns: int) -> float:
    """Slope of the least delays over log time: median of the slopes between twenty bins, 0 if within their scatter."""
    if len(log_N) < 5 * DRIFT_BINS:
        return 0.0
    thin = max(1, len(log_N) // 40_000)
    log_N, delay_N = log_N[::thin], delay_N[::thin]
    edges = np.linspace(0, len(log_N), DRIFT_BINS + 1).astype(int)
    bins = list(zip(edges, edges[1:], strict=False))
    at = np.array([np.median(log_N[low:high]) for low, high in bins])
    least = np.array([np.quantile(delay_N[low:high], 0.1) for low, high in bins])
    at -= at[0]
    first, second = np.triu_indices(DRIFT_BINS, 1)
    apart = at[second] - at[first]
    if not (apart > 0).all():
        return 0.0  # log times that stand still
    slope = float(np.median((least[second] - least[first]) / apart))
    rest = least - slope * at
    scatter = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    return slope if abs(slope) * at[-1] > 5 * scatter + noise_ns else 0.0


def _stray(stamps_N: Times, delay_N: Times, log_N: Times, drift: float, rules: ClockRules) -> NDArray[np.bool_]:
    """Stamps far from the usual delay and, unlike those that a slow recorder wrote late, far from their neighbours."""
    off_N = delay_N - np.median(delay_N) - drift * (log_N - np.median(log_N))
    stray_N = np.abs(off_N) > rules.spread_ns
    if stray_N.mean() > rules.stray_share and stray_N.sum() > 1:
        return stray_N if not _own_pace(stamps_N) else np.zeros(len(stamps_N), np.bool_)
    usual = max(1, int(np.median(np.abs(np.diff(stamps_N)))) if len(stamps_N) > 1 else 1)
    for place in np.flatnonzero(stray_N):
        near = np.concatenate([stamps_N[max(0, place - 3) : place], stamps_N[place + 1 : place + 4]])
        lonely = abs(int(stamps_N[place]) - int(np.median(near))) if len(near) else 0
        stray_N[place] = lonely > max(rules.spread_ns, 6 * usual)
    return stray_N


def _own_pace(stamps_N: Times) -> bool:
    """Whether the stamps go on evenly, so that it is the log time that does not."""
    dt = np.diff(stamps_N)
    return bool(len(dt)) and bool((dt > 0).mean() > 0.95) and bool(np.quantile(dt, 0.99) < 3 * np.median(dt))


def _sorted(which: str, reason: str, judged: _Judged, splits: list[int]) -> Clock:
    """The clock in order of time; `splits` are places in file order."""
    stamps_N = judged.stamps_N
    assert stamps_N is not None
    edges = [0, *splits, len(stamps_N)]
    ranges = list(zip(edges, edges[1:], strict=False))
    order_N = np.concatenate([low + np.argsort(stamps_N[low:high], kind="stable") for low, high in ranges])
    late = [np.maximum.accumulate(stamps_N[low:high]) - stamps_N[low:high] for low, high in ranges]
    delay_N = judged.delay_N if judged.delay_N is not None and len(judged.delay_N) else np.zeros(1, np.int64)
    return Clock(
        stamps_N[order_N], order_N, which, reason, tuple(splits), judged.jumps, judged.unset, judged.stray,
        reordered=sum(int((part > 0).sum()) for part in late),
        late_ns=max(int(part.max()) for part in late),
        duplicates=sum(int((np.diff(np.sort(stamps_N[low:high])) == 0).sum()) for low, high in ranges),
        offset_ns=judged.offset_ns,
        drift_ppm=judged.drift_ppm,
        delay_mean_ns=int(delay_N.mean()),
        delay_median_ns=int(np.median(delay_N)),
        delay_p95_ns=int(np.quantile(delay_N, 0.95)),
    )  # fmt: skip


def _trusted(which: str, reason: str, judged: _Judged, log_N: Times, rules: ClockRules) -> Clock:
    """A clock that may have been set back together with the log time: then nothing tells how far, and it is split."""
    stamps_N = judged.stamps_N
    assert stamps_N is not None
    splits = resets(stamps_N, rules)
    back = tuple(
        Jump(which, place, int(log_N[place]), int(stamps_N[place] - stamps_N[place - 1]), False) for place in splits
    )
    return _sorted(which, reason, replace(judged, jumps=(*judged.jumps, *back)), splits)


def _log(log_N: Times, why: str, rules: ClockRules) -> Clock:
    jumps = _log_jumps(log_N, rules, mended=False)
    judged = _Judged(stamps_N=log_N, jumps=jumps)
    return _sorted("log", f"log time: {why}", judged, [jump.index for jump in jumps])


def _log_jumps(log_N: Times, rules: ClockRules, mended: bool) -> tuple[Jump, ...]:
    return tuple(
        Jump("log", place, int(log_N[place]), int(log_N[place] - log_N[place - 1]), mended)
        for place in resets(log_N, rules)
    )


def _words(name: str, judged: _Judged) -> str:
    """Why a clock is good enough."""
    assert judged.delay_N is not None
    label = {"header": "header stamps", "publish": "publish times"}[name]
    if judged.offset_ns:
        return f"{label}, moved by {judged.offset_ns / 1e9:+.3f} s: their clock has another zero than the log time"
    mean = float(judged.delay_N.mean()) / 1e6
    return f"{label}, {abs(mean):.1f} ms {'before' if mean >= 0 else 'after'} the log time on average"
