"""The sync report as a picture: per topic its messages, and what the control steps got of them. PNG, by Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from converters.logs.sync import BINS, FRESH, HELD, INVALID, MIXED, SyncReport, Trace
from converters.logs.timing import TopicTiming

LEFT, RIGHT, TOP, ROW, BOTTOM = 300, 24, 56, 46, 76
MESSAGES_HIGH, STEPS_HIGH, BETWEEN = 20, 9, 3
MOST_TOPICS = 60
INK, FAINT, PALE = (30, 30, 30), (110, 110, 110), (236, 238, 240)
MESSAGE = (38, 84, 124)
GAP, JUMP = (247, 164, 154), (150, 30, 160)
# Apart in lightness too, so that they can be told without colours.
STATES = {FRESH: (168, 213, 186), MIXED: (92, 150, 220), HELD: (242, 166, 40), INVALID: (196, 30, 48)}
LEGEND = (
    (MESSAGE, "messages"), (GAP, "messages missing"), (JUMP, "clock was set"), (STATES[FRESH], "step: fresh"),
    (STATES[MIXED], "interpolated"), (STATES[HELD], "held"), (STATES[INVALID], "no message"),
)  # fmt: skip


def picture(report: SyncReport) -> bytes:
    """A PNG of at most 60 topics, those with findings first to stay; the same report gives the same pixels."""
    timings = _chosen(report)
    wide, tall = LEFT + BINS + RIGHT, TOP + ROW * max(1, len(timings)) + BOTTOM
    image = Image.new("RGB", (wide, tall), "white")
    draw = ImageDraw.Draw(image)
    left_out = len(report.topics) - len(timings)
    head = f"{report.steps:,} control steps by {_printable(report.control)}, "
    head += f"{(report.stop_ns - report.start_ns) / 1e9:.3f} s"
    head += f" ({left_out} more topics without findings are not shown)" if left_out else ""
    draw.text((16, 16), _fitting(draw, head, wide - 32, 17), INK, font_size=17)
    _axis(draw, report, len(timings))
    for number, timing in enumerate(timings):
        _topic(draw, report, timing, TOP + number * ROW)
    _legend(draw, tall)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def _chosen(report: SyncReport) -> list[TopicTiming]:
    named = {finding.topic for finding in report.findings}
    kept = sorted(report.topics, key=lambda timing: timing.topic not in named)[:MOST_TOPICS]
    return [timing for timing in report.topics if timing in kept]


def _topic(draw: ImageDraw.ImageDraw, report: SyncReport, timing: TopicTiming, top: int) -> None:
    trace = report.traces[timing.topic]
    worst = {finding.severity for finding in report.findings if finding.topic == timing.topic}
    ink = STATES[INVALID] if "error" in worst else (176, 96, 0) if worst else INK
    draw.text((16, top), _fitting(draw, _printable(timing.topic), LEFT - 32, 14), ink, font_size=14)
    rate = f"{timing.rate_hz:.4g} Hz" if timing.regular else "uneven"
    words = f"{timing.count:,} messages, {rate}, {timing.clock} time, {timing.method or 'own rate'}"
    draw.text((16, top + 18), _fitting(draw, words, LEFT - 32, 11), FAINT, font_size=11)
    draw.rectangle((LEFT, top, LEFT + BINS - 1, top + MESSAGES_HIGH - 1), fill=PALE)
    _messages(draw, trace, top)
    for begin, end in trace.gaps:
        low, high = _column(begin, report), _column(end, report)
        draw.rectangle((LEFT + low, top, LEFT + max(low + 1, high), top + MESSAGES_HIGH - 1), fill=GAP)
    low = top + MESSAGES_HIGH + BETWEEN
    for begin, end, state in _runs(trace.state):
        draw.rectangle((LEFT + begin, low, LEFT + end - 1, low + STEPS_HIGH - 1), fill=STATES[state])
    for time_ns in trace.jumps:
        x = LEFT + _column(time_ns, report)
        draw.rectangle((x - 1, top - 4, x + 1, low + STEPS_HIGH + 2), fill=JUMP)
        draw.polygon(((x - 5, top - 7), (x + 5, top - 7), (x, top)), fill=JUMP)


def _messages(draw: ImageDraw.ImageDraw, trace: Trace, top: int) -> None:
    """A column is as high as its messages are many, against the fullest; one message is seen."""
    count = trace.messages
    usual = max(1.0, float(np.quantile(count[count > 0], 0.9))) if count.any() else 1.0
    for column in np.flatnonzero(count):
        high = max(4, round(min(1.0, count[column] / usual) * (MESSAGES_HIGH - 2)))
        x, foot = LEFT + int(column), top + MESSAGES_HIGH - 1
        draw.line((x, foot - high, x, foot), fill=MESSAGE)


def _runs(state: NDArray[np.uint8]) -> Iterable[tuple[int, int, int]]:
    """(begin, end, state) of equal columns that are not empty."""
    edges = [0, *(np.flatnonzero(np.diff(state)) + 1).tolist(), len(state)]
    return [(low, high, int(state[low])) for low, high in zip(edges, edges[1:], strict=False) if state[low]]


def _column(time_ns: int, report: SyncReport) -> int:
    width = max(1, report.stop_ns - report.start_ns + 1)
    return min(BINS - 1, max(0, (time_ns - report.start_ns) * BINS // width))


def _axis(draw: ImageDraw.ImageDraw, report: SyncReport, rows: int) -> None:
    """Seconds from the beginning, at round places."""
    span = max(1e-9, (report.stop_ns - report.start_ns) / 1e9)
    power = 10.0 ** np.floor(np.log10(span / 8))
    step = float(next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 10))
    foot = TOP + ROW * max(1, rows) - 4
    for number in range(int(span / step) + 1):
        x = LEFT + min(BINS - 1, int(number * step / span * BINS))
        draw.line((x, TOP - 10, x, foot), fill=(214, 218, 222))
        draw.text((x, foot + 4), f"{number * step:.6g}", FAINT, font_size=12, anchor="ma")
    draw.text((LEFT - 12, foot + 4), "seconds", FAINT, font_size=12, anchor="ra")


def _legend(draw: ImageDraw.ImageDraw, tall: int) -> None:
    x, y = LEFT, tall - 32
    for color, words in LEGEND:
        draw.rectangle((x, y + 2, x + 13, y + 13), fill=color)
        draw.text((x + 19, y), words, INK, font_size=13)
        x += 19 + int(draw.textlength(words, font_size=13)) + 22


def _printable(words: str) -> str:
    """A topic may be named in signs that the font does not have, or with line breaks."""
    return "".join(char if 32 <= ord(char) < 127 or 161 <= ord(char) < 256 else "?" for char in words)


def _fitting(draw: ImageDraw.ImageDraw, words: str, width: int, size: int) -> str:
    """Cut in the middle: the ends of topics' names tell them apart."""
    if draw.textlength(words, font_size=size) <= width:
        return words
    keep = len(words)
    while keep > 4 and draw.textlength(_cut(words, keep), font_size=size) > width:
        keep -= 1
    return _cut(words, keep)


def _cut(words: str, keep: int) -> str:
    return f"{words[: keep // 2]}...{words[len(words) - (keep - keep // 2) :]}"
