"""The sync report: every defect is named, clean streams name none, and it can be read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_streams import EPOCH, MS, SECOND, Topic, shuffled, topic
from PIL import Image

from converters.logs.align import align, common_span, fixed_rate, topic_clock
from converters.logs.clocks import choose_clock
from converters.logs.sync import BINS, HELD, INVALID, MIXED, SyncReport, report
from converters.logs.sync_findings import Limit, Thresholds, seconds, share
from converters.logs.sync_picture import STATES, picture
from converters.logs.sync_text import markdown, text
from converters.logs.timing import Aligned, TopicTiming, missing

METHODS = {"joints": "linear"}


def reported(
    topics: Mapping[str, Topic], control: str | float = "camera", tolerance_ns: int | None = None,
    thresholds: Thresholds | None = None,
) -> SyncReport:  # fmt: skip
    """As a converter does it: choose clocks, make the control clock within the common span, align, report."""
    clocks = {name: choose_clock(one.header_N, one.log_N, one.log_N) for name, one in topics.items()}
    start, stop = common_span({name: clock.stamps_ns for name, clock in clocks.items() if len(clock.order)})
    times = fixed_rate(start, stop, control) if not isinstance(control, str) else topic_clock(clocks[control].stamps_ns)
    times = times[(times >= start) & (times < stop)]
    streams = [
        Aligned(name, clock, align(times, clock.stamps_ns, METHODS.get(name, "hold"), tolerance_ns))
        for name, clock in clocks.items()
    ]
    return report(streams, times, control if isinstance(control, str) else f"{control:g} Hz", thresholds)


def robot(seed: int, time: float = 20) -> dict[str, Topic]:
    """A camera that is delivered late, joints, a slow pose, and a topic whose type has no header."""
    jitter = (0.005, 0.02, 0.05)[seed % 3]
    topics = {
        "camera": topic(4 * seed, 30, time, 52, jitter, (0.5, 2, 5)[seed % 3]),
        "joints": topic(4 * seed + 1, (100, 500)[seed % 2], time, 1, jitter, 0.3),
        "pose": topic(4 * seed + 2, 10, time, 5, jitter),
        "gripper": topic(4 * seed + 3, 50, time, 1, jitter, 1),
    }
    topics["gripper"].header_N = None
    return topics


def names(found: SyncReport, topic: str = "camera") -> set[str]:
    assert {finding.topic for finding in found.findings} <= {topic}
    return {finding.name for finding in found.findings}


def timing(found: SyncReport, topic: str = "camera") -> TopicTiming:
    return next(one for one in found.topics if one.topic == topic)


def test_clean_streams_are_named_nothing_for() -> None:
    named = [
        (seed, finding)
        for seed in range(200)
        for finding in reported(robot(seed, (5, 10, 20)[seed % 3]), ("camera", 20.0, 30.0)[seed % 3]).findings
    ]
    assert named == []


def test_events_have_no_rate_and_no_findings() -> None:
    for seed in range(50):
        topics = robot(seed, 10)
        when = np.sort(EPOCH + np.random.default_rng(seed).integers(SECOND, 9 * SECOND, 4 + seed))
        topics["button"] = Topic(when, None, when)
        found = reported(topics)
        assert found.findings == () and not timing(found, "button").regular


def drop(stream: Topic) -> Topic:
    keep = np.ones(len(stream.log_N), bool)
    keep[[100, 300, 301, 400]] = False
    return stream.kept(keep)


def gap(stream: Topic) -> Topic:
    return stream.kept(np.r_[0:200, 260 : len(stream.log_N)])


def jump(stream: Topic) -> Topic:
    stream.header_N[300:] -= 3 * SECOND
    return stream


def zeros(stream: Topic) -> Topic:
    stream.header_N[::40] = 0
    return stream


def moved(stream: Topic) -> Topic:
    stream.header_N -= EPOCH - SECOND
    return stream


def shuffle(stream: Topic) -> Topic:
    return stream.arrived(shuffled(0, len(stream.log_N), 4))


def twice(stream: Topic) -> Topic:
    stream.header_N[200] = stream.header_N[199]
    return stream


def late(stream: Topic) -> Topic:
    stream.log_N += 300 * MS
    return stream


def early(stream: Topic) -> Topic:
    stream.log_N -= 150 * MS
    return stream


def fast(stream: Topic) -> Topic:
    stream.header_N = EPOCH + ((stream.true_N - EPOCH) * (1 + 400e-6)).astype(np.int64)
    return stream


def far_off(stream: Topic) -> Topic:
    stream.header_N[77] += 50 * SECOND
    return stream


DEFECTS: list[tuple[Callable[[Topic], Topic], set[str], str]] = [
    (drop, {"drops"}, "4 of 600 messages missing (0.7 %)"),
    (gap, {"gaps", "drops", "held"}, "1 gap, the longest 2.0"),
    (jump, {"clock_jump"}, "a clock was set once, by -3.00"),
    (zeros, {"unset"}, "15 of 600 header stamps are zero"),
    (moved, {"other_epoch"}, "stamps of another clock, moved by +1699999999.0"),
    (shuffle, {"reordered"}, "of 600 messages out of order, by 1"),
    (twice, {"duplicates"}, "1 of 600 stamps are the same as the one before"),
    (late, {"skew"}, "after its stamp on average, p95 35"),
    (early, {"future"}, "before its stamp: the clocks of sender and recorder differ"),
    (fast, {"drift"}, " ppm faster than log time, 8."),
    (far_off, {"stray"}, "1 of 600 stamps are far from their neighbours"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("damage", "named", "words"), DEFECTS, ids=[damage.__name__ for damage, _, _ in DEFECTS])
def test_every_defect_is_named_and_the_truth_recovered(
    damage: Callable[[Topic], Topic], named: set[str], words: str, seed: int
) -> None:
    topics = robot(seed)
    topics["camera"] = damage(topics["camera"])
    found = reported(topics, "pose")
    assert names(found) == named
    assert any(words in finding.message for finding in found.findings), found.findings
    stream = topics["camera"]
    clock = choose_clock(stream.header_N, stream.log_N, stream.log_N)
    off = int(np.abs(clock.stamps_ns - stream.true_N[clock.order]).max())
    # A clock with another zero loses the least delay (52 ms here, unknowable); a wrong frame has a wrong stamp.
    allowed = {moved: 60 * MS, twice: 40 * MS}.get(damage, SECOND // 60)
    assert off < allowed


def test_all_zero_stamps_are_named() -> None:
    topics = robot(0)
    topics["camera"].header_N[:] = 0
    found = reported(topics, "pose")
    assert names(found) == {"unset"} and timing(found).clock == "log"
    assert "600 of 600 header stamps are zero" in timing(found).reason


def test_a_silent_topic_and_a_reset_are_errors() -> None:
    topics = robot(0)
    topics["camera"] = topics["camera"].kept(np.arange(0))
    found = reported(topics, "pose")
    assert {finding.name for finding in found.errors} == {"silent", "invalid"}
    stream = topic(0, 30, 20)
    stream.log_N[300:] -= 5 * SECOND
    clock = choose_clock(None, None, stream.log_N)
    found = report([Aligned("camera", clock)], np.array([], np.int64), "30 Hz")
    (finding,) = found.errors
    assert finding.name == "clock_reset" and "set back once, by -4.9" in finding.message
    assert finding.time_ns == stream.log_N[300]
    assert picture(found)


def test_all_defects_at_once() -> None:
    topics = robot(1)
    stream = shuffle(zeros(jump(drop(topics["camera"]))))
    topics["camera"] = stream
    found = reported(topics, "pose")
    assert names(found) == {"drops", "clock_jump", "unset", "reordered"}
    clock = choose_clock(stream.header_N, stream.log_N, stream.log_N)
    assert np.abs(clock.stamps_ns - stream.true_N[clock.order]).max() < SECOND // 60


def test_the_measures_are_right() -> None:
    topics = robot(0)
    found = reported(topics, "camera")
    camera, joints = timing(found), timing(found, "joints")
    assert abs(camera.rate_hz - 30) < 0.1 and abs(joints.rate_hz - 100) < 0.3
    assert 0.005 < camera.jitter < 0.05
    assert abs(camera.skew_median_ns - 52.3 * MS) < MS and camera.skew_to_control_ns == 0
    assert abs(joints.skew_to_control_ns + 51 * MS) < MS
    assert (camera.age_max_us, camera.interpolated, camera.held, camera.invalid) == (0, 0, 0, 0)
    assert joints.interpolated > 0.99 and 5000 < joints.age_p50_us < 10_000
    pose = timing(found, "pose")
    assert 30_000 < pose.age_p50_us < 60_000 and pose.age_max_us < 110_000 and pose.held == 0


def test_held_and_invalid_steps() -> None:
    topics = robot(0)
    topics["camera"] = gap(topics["camera"])
    found = reported(topics, "pose", tolerance_ns=200 * MS)
    camera = timing(found)
    assert abs(camera.invalid - 18 / 199) < 0.01 and camera.invalid_at_ns > 0
    assert camera.held <= 0.02 and camera.age_max_us <= 200_000
    assert {finding.name: finding.severity for finding in found.errors} == {"invalid": "error"}
    state = found.traces["camera"].state
    assert INVALID in state and HELD in state
    assert (state > 0).mean() > 0.95  # ten steps a second, fifty columns
    assert set(found.traces["joints"].state.tolist()) <= {0, 1, MIXED}


@settings(deadline=None)
@given(st.sets(st.integers(3, 95), max_size=20), st.integers(0, 2**32 - 1), st.floats(0, 0.1))
def test_missing_messages_are_counted(gone: set[int], seed: int, jitter: float) -> None:
    random = np.random.default_rng(seed)
    times = (np.arange(100) * 1000.0 + random.uniform(-jitter, jitter, 100) * 1000).astype(np.int64)
    left = np.delete(times, sorted(gone)) if gone else times
    assert missing(np.diff(left), 1000).sum() == len(gone)


def test_a_message_that_came_late_is_not_missing() -> None:
    times = np.arange(50) * 1000
    times[20:23] = 23_000 + np.arange(3)
    assert missing(np.diff(times), 1000).sum() == 0


def test_bursts_are_jitter_and_nothing_is_called_missing() -> None:
    random = np.random.default_rng(0)
    dt = random.choice([50, 5, 95, 130], 400, p=[0.7, 0.13, 0.13, 0.04]) * MS
    times = EPOCH + np.cumsum(dt)
    clock = choose_clock(times, times, times + MS)
    found = report([Aligned("camera", clock)], np.array([], np.int64), "30 Hz")
    assert names(found) == {"jitter"} and missing(dt, 50 * MS).sum() > 0


# -- thresholds, JSON, text, picture -------------------------------------------------------------------------


def test_thresholds_decide() -> None:
    topics = robot(0)
    topics["camera"] = drop(topics["camera"])
    assert reported(topics, thresholds=Thresholds(drops=Limit(0.01))).findings == ()
    (finding,) = reported(topics, thresholds=Thresholds(drops=Limit(None, 0.005))).findings
    assert (finding.name, finding.severity) == ("drops", "error")
    assert Limit(1, 2).exceeded(1) == "" and Limit(1, 2).exceeded(1.5) == "warn" and Limit(1, 2).exceeded(3) == "error"


def test_json_has_one_set_of_keys() -> None:
    clean, empty = reported(robot(0)), report([], np.array([], np.int64), "30 Hz")
    topics = robot(0)
    topics["camera"] = topics["camera"].kept(np.arange(0))
    damaged = reported(topics, "pose")
    for found in (clean, empty, damaged):
        again = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert again == found.to_json()
        assert list(again) == ["control", "steps", "start_ns", "stop_ns", "topics", "findings", "thresholds"]
    keys = {tuple(one) for found in (clean, damaged) for one in found.to_json()["topics"]}
    assert len(keys) == 1 and len(next(iter(keys))) == 40


def test_the_report_in_words() -> None:
    topics = robot(0)
    topics["camera"] = gap(topics["camera"])
    found = reported(topics, "pose")
    words = text(found)
    assert words.startswith("4 topics over ")
    assert "control steps by pose" in words and "0 errors, 3 warnings" in words
    assert "(usual interval 33.3 ms); at 6." in words
    assert "header stamps, 5" in words
    table = markdown(found)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and len(rows) == 6
    assert "- **warn** `camera` gaps: 1 gap, the longest 2.0" in table
    assert "nothing found" in text(reported(robot(0)))


def test_hostile_names_of_topics_do_no_harm() -> None:
    name = "a|b`c\n\x1b[31m/" + "long/" * 40 + "\u2603"
    found = reported({**robot(0), name: topic(9, 20, 20)}, 30.0)
    assert "\x1b" not in text(found) and "\x1b" not in markdown(found)
    assert len([line for line in markdown(found).splitlines() if line.startswith("|")]) == 7
    assert all("\\|b'c" in line for line in markdown(found).splitlines() if line[2:3] == "a")
    assert Image.open(io.BytesIO(picture(found))).size[0] == 1324


def test_many_findings_are_counted() -> None:
    topics = {f"t{number:02}": drop(topic(number, 30, 20)) for number in range(70)}
    found = reported(topics, 30.0)
    assert len(found.findings) >= 70
    assert "... and 10 more, see the JSON report" in text(found)
    assert Image.open(io.BytesIO(picture(found))).size[1] < 3000


def test_the_picture_shows_what_the_report_says() -> None:
    topics = robot(0)
    topics["camera"] = gap(jump(topics["camera"]))
    found = reported(topics, "pose", tolerance_ns=200 * MS)
    pixels = np.asarray(Image.open(io.BytesIO(picture(found))).convert("RGB")).reshape(-1, 3)
    seen = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    assert set(STATES.values()) <= seen
    lane = np.asarray(Image.open(io.BytesIO(picture(found))).convert("RGB"))[56 + 26, 300 : 300 + BINS]
    red = np.flatnonzero((lane == STATES[INVALID]).all(1))
    # 60 frames of 30 Hz from the 200th on: 6.7 s to 8.7 s of 20 s.
    assert abs(red.min() / BINS * 20 - 6.9) < 0.2 and abs(red.max() / BINS * 20 - 8.7) < 0.2
    assert picture(found) == picture(found)


def test_words_for_figures() -> None:
    assert [seconds(value) for value in (0, 1500, 52_700_000, -5 * SECOND)] == ["0 us", "2 us", "52.7 ms", "-5.000 s"]
    assert [share(value) for value in (0, 0.0004, 0.125)] == ["0.0 %", "< 0.1 %", "12.5 %"]
