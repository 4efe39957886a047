"""Clocks, alignment and cutting of robot logs: arithmetic against plain loops, and the truth recovered."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from make_streams import EPOCH, MS, SECOND, Times, Topic, shuffled, topic

from converters.logs import cuts
from converters.logs.align import (
    AGE_LIMIT,
    METHODS,
    align,
    common_span,
    fixed_rate,
    interpolate,
    slowest,
    topic_clock,
    usable,
)
from converters.logs.clock_steps import ClockRules, continuous, resets
from converters.logs.clocks import Clock, choose_clock
from vrl3data.errors import ConfigError

TIMES = st.lists(st.integers(0, 5_000_000), max_size=30).map(lambda values: np.array(sorted(values), np.int64) + EPOCH)
HALF_FRAME = SECOND // 60


def chosen(stream: Topic) -> Clock:
    return choose_clock(stream.header_N, stream.log_N, stream.log_N)


def error_of(clock: Clock, stream: Topic) -> int:
    """The most that a chosen stamp is off the moment its message was made."""
    return int(np.abs(clock.stamps_ns - stream.true_N[clock.order]).max())


# -- alignment -----------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(TIMES, TIMES, st.sampled_from(METHODS), st.none() | st.integers(0, 3_000_000))
def test_align_is_what_a_plain_loop_finds(control: Times, stamps: Times, method: str, tolerance: int | None) -> None:
    found = align(control, stamps, method, tolerance)
    assert found.age_us_N.dtype == np.int32
    for step, now in enumerate(control.tolist()):
        before = [place for place, stamp in enumerate(stamps.tolist()) if stamp <= now]
        after = [place for place, stamp in enumerate(stamps.tolist()) if stamp > now]
        one = two = before[-1] if before else 0
        valid, weight, age = bool(before), 0.0, now - int(stamps[one]) if len(stamps) else 0
        if method == "nearest" and len(stamps):
            if after and (not before or int(stamps[after[0]]) - now < now - int(stamps[before[-1]])):
                one = two = after[0]
            valid, age = True, now - int(stamps[one])
        elif method in ("linear", "slerp") and before and age > 0:
            valid = bool(after)
            if after:
                two, ahead = after[0], int(stamps[after[0]]) - now
                weight, age = age / (age + ahead), -ahead if ahead > age else age
        if tolerance is not None and len(stamps):
            valid = valid and abs(age) <= tolerance
        assert found.valid_N[step] == valid
        if valid:
            assert (found.index_N[step], found.index2_N[step]) == (one, two)
            assert found.weight_N[step] == weight
            assert abs(int(found.age_us_N[step]) * 1000 - age) <= 500


def test_hold_never_looks_ahead() -> None:
    control, stamps = np.array([5, 10, 19, 20, 21], np.int64), np.array([10, 20], np.int64)
    found = align(control, stamps)
    assert found.valid_N.tolist() == [False, True, True, True, True]
    assert found.index_N.tolist() == [0, 0, 0, 1, 1]
    assert align(control, stamps, "nearest").index_N.tolist() == [0, 0, 1, 1, 1]
    assert align(np.array([15]), stamps, "nearest").index_N.tolist() == [0]


def test_of_messages_with_the_same_stamp_hold_takes_the_last() -> None:
    assert align(np.array([7]), np.array([3, 5, 5, 9]), "hold").index_N.tolist() == [2]


def test_an_age_beyond_int32_stays_at_its_end() -> None:
    far = np.array([0, 10**13], np.int64)
    assert align(far, np.array([0]), "hold").age_us_N.tolist() == [0, AGE_LIMIT]
    assert align(np.array([0]), np.array([10**13]), "nearest").age_us_N.tolist() == [-AGE_LIMIT]


def test_nothing_is_made_of_no_messages() -> None:
    found = align(np.array([1, 2]), np.array([], np.int64), "linear")
    assert not found.valid_N.any()
    assert interpolate(np.zeros((0, 3), np.float32), found).shape == (2, 3)


def test_wrong_calls_of_align() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'holt'; did you mean 'hold'\?"):
        align(np.array([1]), np.array([1]), "holt")
    with pytest.raises(ConfigError, match="tolerance: expected nanoseconds, found -1"):
        align(np.array([1]), np.array([1]), "hold", -1)
    with pytest.raises(ConfigError, match="expected stamps in order of time, found one going back at 2 of 3"):
        align(np.array([1]), np.array([1, 5, 4]))


def test_a_million_stamps_are_aligned_at_once() -> None:
    stamps = EPOCH + np.arange(1_000_000) * 2 * MS
    control = fixed_rate(EPOCH, EPOCH + 2000 * SECOND, 30)
    found = align(control, stamps, "linear", 10 * MS)
    assert found.valid_N[:-1].all() and len(control) == 60_000
    assert np.abs(found.age_us_N).max() <= 2000


# -- values --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(TIMES.filter(len), TIMES, st.integers(-5, 5), st.integers(-1000, 1000))
def test_a_straight_line_stays_one(stamps: Times, control: Times, slope: int, start: int) -> None:
    stamps = np.unique(stamps)
    line = start + slope * (stamps - EPOCH).astype(np.float64)
    found = align(control, stamps, "linear")
    want = start + slope * (control - EPOCH).astype(np.float64)
    got = interpolate(line, found)
    np.testing.assert_allclose(got[found.valid_N], want[found.valid_N], rtol=1e-9, atol=1e-3)


@settings(deadline=None)
@given(arrays(np.float64, (4, 2), elements=st.floats(-1e308, 1e308)), st.integers(0, 300))
def test_a_mixed_value_lies_between_its_two(values: np.ndarray, now: int) -> None:
    found = align(np.array([now]), np.array([0, 100, 200, 300]), "linear")
    row = interpolate(values, found)[0]
    low, high = values[found.index_N[0]], values[found.index2_N[0]]
    assert (row >= np.minimum(low, high)).all() and (row <= np.maximum(low, high)).all()


def test_a_missing_value_spoils_only_the_rows_it_is_mixed_into() -> None:
    found = align(np.array([0, 5, 10, 20]), np.array([0, 10, 20]), "linear")
    assert np.isnan(interpolate(np.array([1.0, np.nan, 3.0]), found)).tolist() == [False, True, True, False]


def test_whole_numbers_are_rounded_and_keep_their_type() -> None:
    got = interpolate(np.array([0, 10], np.int16), align(np.array([0, 26, 100]), np.array([0, 100]), "linear"))
    assert got.dtype == np.int16 and got.tolist() == [0, 3, 10]


def test_pictures_and_texts_are_never_mixed() -> None:
    found = align(np.array([5]), np.array([0, 10]), "linear")
    with pytest.raises(ConfigError, match="linear cannot be used for picture: take hold or nearest"):
        interpolate(np.zeros((2, 4, 4, 3), np.uint8), found, "picture")
    with pytest.raises(ConfigError, match="linear cannot be used for <U1"):
        interpolate(np.array(["a", "b"]), found)
    with pytest.raises(ConfigError, match="linear cannot be used for bool"):
        interpolate(np.array([True, False]), found)
    held = align(np.array([5]), np.array([0, 10]), "hold")
    assert interpolate(np.array(["a", "b"]), held, "text").tolist() == ["a"]


@settings(deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(-3.1, 3.1), st.integers(0, 1000), st.sampled_from([1, -1]), st.booleans())
def test_slerp_turns_evenly_the_short_way(one: float, two: float, now: int, sign: int, w_first: bool) -> None:
    def about_z(angle: float) -> list[float]:
        w, z = np.cos(angle / 2), np.sin(angle / 2)
        return [w, 0, 0, z] if w_first else [0, 0, z, w]

    values = np.array([about_z(one), np.array(about_z(two)) * sign])
    got = interpolate(values, align(np.array([now]), np.array([0, 1000]), "slerp"), "quaternion")[0]
    short = (two - one + np.pi) % (2 * np.pi) - np.pi
    want = np.array(about_z(one + short * now / 1000))
    assert abs(np.linalg.norm(got) - 1) < 1e-9
    if abs(abs(short) - np.pi) > 1e-3:  # half a turn has two short ways
        assert min(np.abs(got - want).max(), np.abs(got + want).max()) < 1e-6


def test_slerp_of_what_is_no_quaternion() -> None:
    found = align(np.array([5]), np.array([0, 10]), "slerp")
    with pytest.raises(ConfigError, match=r"quaternion: expected rows of 4 numbers, found \(3,\)"):
        interpolate(np.ones((2, 3)), found, "quaternion")
    with pytest.raises(ConfigError, match="slerp is for quaternions, found vector: take linear"):
        interpolate(np.ones((2, 4)), found)
    unset = interpolate(np.array([[0.0, 0, 0, 0], [0, 0, 0, 1]]), found, "quaternion")
    assert unset.tolist() == [[0, 0, 0, 0]]


# -- control clocks, ranges ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.fractions(Fraction(1, 10), 2000, max_denominator=1001), st.integers(0, 10**18), st.integers(0, 5 * SECOND))
def test_a_fixed_rate_never_drifts(rate: Fraction, start: int, span: int) -> None:
    times = fixed_rate(start, start + span, rate)
    for step in {0, len(times) // 2, len(times) - 1} if len(times) else set():
        assert abs(int(times[step]) - start - Fraction(step * SECOND) / rate) <= Fraction(1, 2)
    assert len(times) in (-(-span * rate // SECOND), -(-span * rate // SECOND) - 1)


def test_a_rate_that_is_none_is_refused() -> None:
    for rate in (0, -5, 2_000_000):
        with pytest.raises(ConfigError, match="expected a rate of"):
            fixed_rate(0, SECOND, rate)


def test_control_clocks_of_topics() -> None:
    slow, fast = np.arange(5) * 100, np.arange(50) * 10
    assert topic_clock(np.array([3, 3, 5])).tolist() == [3, 5]
    assert slowest({"fast": fast, "slow": slow, "one": np.array([4])}) == "slow"
    assert common_span({"fast": fast + 7, "slow": slow}) == (7, 401)
    with pytest.raises(ConfigError, match="no topic has three messages"):
        slowest({"one": np.array([4])})
    with pytest.raises(ConfigError, match="never overlap: a ends before b begins"):
        common_span({"a": np.array([1, 2]), "b": np.array([5])})
    with pytest.raises(ConfigError, match="topics without messages: b"):
        common_span({"a": np.array([1, 2]), "b": np.array([], np.int64)})


def test_head_and_tail_are_dropped_and_gaps_are_a_choice() -> None:
    one = np.array([0, 1, 1, 0, 1, 1, 1, 1], bool)
    two = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
    assert usable({"one": one, "two": two}) == [(1, 7)]
    assert usable({"one": one, "two": two}, cut=True) == [(1, 3), (4, 7)]
    assert usable({"one": one, "two": two}, cut=True, shortest=3) == [(4, 7)]
    assert usable({"one": one & False}) == []
    with pytest.raises(ConfigError, match="no topics to align"):
        usable({})


# -- episodes ------------------------------------------------------------------------------------------------


def test_episodes_by_time() -> None:
    assert cuts.whole(3, 9) == [(3, 9)]
    assert cuts.whole(3, 3) == []
    assert cuts.by_time(0, 25, 10) == [(0, 10), (10, 20)]
    assert cuts.by_time(0, 25, 10, keep_rest=True) == [(0, 10), (10, 20), (20, 25)]
    with pytest.raises(ConfigError, match="length of an episode"):
        cuts.by_time(0, 25, 0)


def test_episodes_by_gaps() -> None:
    assert cuts.by_gaps(np.array([0, 10, 20, 90, 95, 200]), 30) == [(0, 21), (90, 96), (200, 201)]
    assert cuts.by_gaps(np.array([], np.int64), 30) == []
    with pytest.raises(ConfigError, match="gap: expected more than 0 ns"):
        cuts.by_gaps(np.array([1]), 0)


def test_episodes_by_markers() -> None:
    stamps, flags = np.arange(8) * 10, np.array([1, 1, 0, 0, 1, 0, 1, 1])
    assert cuts.rising(stamps, flags).tolist() == [0, 40, 60]
    assert cuts.falling(stamps, flags).tolist() == [20, 50]
    assert cuts.while_true(stamps, flags, 100) == [(0, 20), (40, 50), (60, 100)]
    assert cuts.from_each(np.array([5, 30]), 70) == [(5, 30), (30, 70)]
    assert cuts.between(np.array([5, 8, 30]), np.array([2, 20, 40, 41]), 99) == [(5, 8), (8, 20), (30, 40)]
    assert cuts.by_value(stamps[:5], np.array(["a", "a", "b", "b", "a"]), 99) == [(0, 20), (20, 40), (40, 99)]
    assert cuts.by_value(stamps[:0], np.array([]), 99) == []
    assert cuts.at_jumps([(0, 20), (30, 50)], np.array([0, 10, 40, 60])) == [(0, 10), (10, 20), (30, 40), (40, 50)]
    assert cuts.rising(stamps[:3], np.array([0.0, np.nan, 1.0])).tolist() == [20]
    with pytest.raises(ConfigError, match="expected one true or false per message, found <U1"):
        cuts.rising(stamps[:1], np.array(["a"]))
    with pytest.raises(ConfigError, match="expected a value for each of 8 messages, found 3"):
        cuts.falling(stamps, np.ones(3))


@settings(deadline=None)
@given(TIMES, TIMES)
def test_episodes_never_overlap(starts: Times, stops: Times) -> None:
    end = EPOCH + 6_000_000
    ranges = cuts.between(starts, stops, end)
    edges = [edge for pair in ranges for edge in pair]
    assert edges == sorted(edges) and all(low < high <= end for low, high in ranges)
    assert {low for low, _ in ranges} == set(starts.tolist())


# -- clocks: the truth is recovered --------------------------------------------------------------------------


def test_the_header_stamp_is_taken_when_it_can_be_trusted() -> None:
    stream = topic(0, 30, 20, delay_ms=52)
    clock = chosen(stream)
    assert (clock.which, error_of(clock, stream), clock.offset_ns, clock.jumps) == ("header", 0, 0, ())
    assert clock.reason == "header stamps, 53.0 ms before the log time on average"
    assert abs(clock.delay_median_ns - 52.7 * MS) < MS


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (lambda _: None, "log time: the type has no header stamp"),
        (lambda true_N: true_N * 0, "log time: 600 of 600 header stamps are zero"),
        (lambda true_N: true_N * 0 + EPOCH, "log time: header stamps stand still"),
        (lambda true_N: EPOCH + (true_N - EPOCH) // 2, "log time: header stamps run at 0.50 of the log time's rate"),
        (
            lambda _: np.random.default_rng(0).integers(EPOCH, EPOCH + 20 * SECOND, 600),
            "log time: header stamps keep no steady distance from the log time",
        ),
    ],
)
def test_the_log_time_is_taken_otherwise(header, why: str) -> None:
    stream = topic(0, 30, 20)
    clock = choose_clock(header(stream.true_N), stream.log_N, stream.log_N)
    assert (clock.which, clock.reason, clock.splits) == ("log", why, ())
    assert error_of(clock, stream) < 20 * MS


def test_the_publish_time_comes_before_the_log_time() -> None:
    stream = topic(0, 30, 20, delay_ms=52)
    clock = choose_clock(None, stream.true_N + MS, stream.log_N)
    assert clock.which == "publish"
    assert clock.reason.endswith(": the type has no header stamp")
    assert error_of(clock, stream) == MS
    clock = choose_clock(None, stream.true_N * 0, stream.log_N)
    assert clock.reason == "log time: the type has no header stamp; 600 of 600 publish times are zero"


@pytest.mark.parametrize("size_ms", [-60_000, -300, 150, 3000, 10**9])
@pytest.mark.parametrize("place", [40, 300, 590])
def test_a_clock_that_was_set_is_carried_on(size_ms: int, place: int) -> None:
    stream = topic(1, 30, 20, delay_ms=20)
    stream.header_N[place:] += size_ms * MS
    clock = chosen(stream)
    assert clock.which == "header" and error_of(clock, stream) < 2 * MS
    (jump,) = clock.jumps
    assert (jump.clock, jump.index, jump.mended) == ("header", place, True)
    assert abs(jump.size_ns - size_ms * MS) < 2 * MS


def test_a_clock_that_was_set_among_shuffled_messages() -> None:
    stream = topic(1, 30, 20, delay_ms=20)
    stream.header_N[300:] -= 5 * SECOND
    stream = stream.arrived(shuffled(1, 600, 4))
    clock = chosen(stream)
    assert error_of(clock, stream) < 2 * MS and len(clock.jumps) == 1
    assert clock.reordered > 100


def test_shuffled_messages_are_sorted_and_counted() -> None:
    stream = topic(2, 30, 20).arrived(shuffled(2, 600, 5))
    clock = chosen(stream)
    late_N = np.maximum.accumulate(stream.true_N) - stream.true_N
    assert error_of(clock, stream) == 0 and (np.diff(clock.stamps_ns) >= 0).all()
    assert (clock.reordered, clock.late_ns) == (int((late_N > 0).sum()), int(late_N.max()))
    assert clock.jumps == () and clock.stray == 0


def test_zero_and_stray_stamps_are_filled_in() -> None:
    stream = topic(3, 30, 20, delay_ms=40, latency_ms=2)
    stream.header_N[[0, 5, 77]] = 0
    stream.header_N[[100, 200]] = 10 * SECOND, 2**62 + 1
    stream.header_N[300] += 40 * SECOND
    clock = chosen(stream)
    assert (clock.which, clock.unset, clock.stray) == ("header", 4, 2)
    assert error_of(clock, stream) < HALF_FRAME


def test_a_clock_with_another_zero_is_moved() -> None:
    stream = topic(4, 30, 20, delay_ms=10)
    stream.header_N -= EPOCH - 5 * SECOND
    clock = chosen(stream)
    assert clock.which == "header" and error_of(clock, stream) < HALF_FRAME
    assert abs(clock.offset_ns - EPOCH + 5 * SECOND) < HALF_FRAME
    assert "their clock has another zero" in clock.reason


def test_drift_is_measured() -> None:
    stream = topic(5, 100, 60)
    stream.header_N = EPOCH + ((stream.true_N - EPOCH) * (1 + 300e-6)).astype(np.int64)
    assert abs(chosen(stream).drift_ppm - 300) < 10
    assert chosen(topic(5, 100, 60)).drift_ppm == 0


def test_a_recorder_that_stood_still_is_no_clock_that_was_set() -> None:
    stream = topic(6, 30, 20)
    stream.log_N[250:340] = stream.log_N[340] + np.arange(90) * 1000
    clock = chosen(stream)
    assert (clock.which, error_of(clock, stream), clock.jumps, clock.stray) == ("header", 0, (), 0)


def test_a_log_time_that_was_set_does_not_spoil_the_header() -> None:
    for size in (-50, 50):
        stream = topic(6, 30, 20)
        stream.log_N[300:] += size * SECOND
        clock = chosen(stream)
        assert (clock.which, error_of(clock, stream), clock.splits) == ("header", 0, ())


def test_a_recorder_that_began_in_1970_does_not_spoil_the_header() -> None:
    stream = topic(6, 30, 20)
    stream.log_N[:100] -= EPOCH - SECOND
    clock = chosen(stream)
    assert (clock.which, error_of(clock, stream), clock.offset_ns) == ("header", 0, 0)


def test_log_times_are_never_sorted_across_a_reset() -> None:
    stream = topic(7, 30, 20)
    stream.log_N[300:] -= 5 * SECOND
    clock = choose_clock(None, stream.log_N, stream.log_N)
    assert (clock.splits, clock.ranges) == ((300,), ((0, 300), (300, 600)))
    assert clock.order.tolist() == list(range(600))
    (jump,) = clock.jumps
    assert (jump.clock, jump.mended) == ("log", False) and abs(jump.size_ns + 5 * SECOND) < SECOND // 10
    mended = continuous(stream.log_N)
    assert np.abs(np.diff(mended) - SECOND / 30).max() < SECOND / 30


def test_stamps_that_went_back_together_with_the_log_time_are_split() -> None:
    stream = topic(7, 30, 20)
    for times in (stream.header_N, stream.log_N):
        times[300:] -= 5 * SECOND
    clock = chosen(stream)
    assert (clock.which, clock.splits) == ("header", (300,)) and clock.order.tolist() == list(range(600))
    assert [(jump.clock, jump.mended) for jump in clock.jumps] == [("header", False)]
    clock = choose_clock(stream.header_N, None, continuous(stream.log_N))
    assert clock.splits == () and (np.diff(clock.stamps_ns) >= 0).all() and len(clock.jumps) == 1
    assert np.ptp(clock.stamps_ns - stream.true_N) < 5 * SECOND + 40 * MS


def test_a_few_old_messages_do_not_move_a_clock() -> None:
    """Such as what was published once, long before the recording."""
    log = EPOCH + np.arange(3) * SECOND
    clock = choose_clock(log - 90 * SECOND, log, log)
    assert clock.reason == "log time: the few header stamps are +90.000 s before the log time"
    assert choose_clock(log - 90 * MS, log, log).which == "header"


def test_blocks_out_of_order_are_no_reset() -> None:
    stream = topic(7, 30, 20).kept(np.concatenate([np.arange(300, 600), np.arange(300)]))
    clock = choose_clock(None, stream.log_N, stream.log_N)
    assert clock.splits == () and clock.reordered == 300 and (np.diff(clock.stamps_ns) >= 0).all()
    assert chosen(stream).jumps == ()


def test_a_single_late_message_is_no_reset() -> None:
    times = EPOCH + np.arange(100) * 100 * MS
    times[[50, 51]] = times[[40, 41]] + 1
    assert resets(times, ClockRules()) == []
    times[50:] = EPOCH + np.arange(50) * 100 * MS
    assert resets(times, ClockRules()) == [50]


def test_duplicates_and_unset_log_times() -> None:
    times = EPOCH + np.arange(10) * SECOND
    times[4] = times[3]
    assert choose_clock(times, None, times).duplicates == 1
    times[0] = times[7] = 0
    assert choose_clock(None, None, times).stamps_ns.min() == EPOCH + SECOND


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1)), max_size=40),
    st.booleans(),
)
def test_no_stamps_whatever_break_the_choice(pairs: list[tuple[int, int]], near: bool) -> None:
    header, log = (np.array(part, np.int64) for part in zip(*pairs, strict=True)) if pairs else (np.zeros(0, int),) * 2
    log = EPOCH + log % SECOND if near else log
    clock = choose_clock(header, log, log)
    assert sorted(clock.order.tolist()) == list(range(len(pairs)))
    for low, high in clock.ranges:
        assert (np.diff(clock.stamps_ns[low:high]) >= 0).all()


def test_wrong_stamps_are_refused() -> None:
    times = np.arange(3)
    with pytest.raises(ConfigError, match="expected one for each of 3 messages, found 2"):
        choose_clock(times[:2], times, times)
    with pytest.raises(ConfigError, match="expected a row of whole nanoseconds, found float64"):
        choose_clock(None, None, times / 1e9)
    assert choose_clock(None, None, np.array([], np.int64)).reason == "no messages"
