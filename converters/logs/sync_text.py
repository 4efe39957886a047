"""The sync report in words: a table and the findings, for a terminal and as Markdown for a card."""

from __future__ import annotations

from collections.abc import Sequence

from converters.logs.sync import SyncReport
from converters.logs.sync_findings import Finding, seconds
from converters.logs.timing import TopicTiming

COLUMNS = ("topic", "messages", "rate", "jitter", "gaps", "lost", "clock", "delay", "method",
           "age p50/p95/max", "mixed", "held", "none")  # fmt: skip
RIGHT = frozenset({1, 2, 3, 4, 5, 7, 9, 10, 11, 12})
LEGEND = (
    "rate: 1 / median interval; jitter: p95 of the intervals' distance from it; lost: messages missing; "
    "delay: log time less stamp, mean / p95; age: control time less stamp; mixed: made of two messages; "
    "held: older than the usual interval; none: no message within the tolerance"
)
MOST, WIDEST = 60, 44
"""Findings that are written out (the rest is counted), letters of a topic's name in the terminal."""


def text(report: SyncReport) -> str:
    """For a terminal: a table of the topics, the clocks chosen and why, the findings."""
    rows = [COLUMNS, *(_row(timing) for timing in report.topics)]
    rows = [(_short(name), *rest) for name, *rest in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [_head(report), ""]
    lines += ["  ".join(_padded(row, widths)).rstrip() for row in rows]
    lines += ["", "clocks"]
    lines += [f"  {_short(timing.topic):<{widths[0]}}  {timing.reason}" for timing in report.topics]
    lines += ["", _verdict(report)]
    shown = report.findings[:MOST]
    names = max((len(_short(finding.topic)) for finding in shown), default=0)
    kinds = max((len(finding.name) for finding in shown), default=0)
    for found in shown:
        where = f"{_short(found.topic):<{names}}  {found.name:<{kinds}}"
        lines.append(f"  {found.severity:<5}  {where}  {_sentence(found, report)}")
    lines += _rest(report)
    return "\n".join(lines) + "\n"


def markdown(report: SyncReport) -> str:
    """For a card: the same, as Markdown."""
    lines = [_head(report), "", _cells(COLUMNS)]
    lines.append("|" + "|".join("---:" if column in RIGHT else "---" for column in range(len(COLUMNS))) + "|")
    lines += [_cells(_row(timing)) for timing in report.topics]
    lines += ["", LEGEND + ".", ""]
    lines += [f"- `{_plain(timing.topic)}`: {_plain(timing.reason)}" for timing in report.topics]
    lines += ["", _verdict(report), ""]
    lines += [
        f"- **{finding.severity}** `{_plain(finding.topic)}` {finding.name}: {_plain(_sentence(finding, report))}"
        for finding in report.findings[:MOST]
    ]
    lines += _rest(report)
    return "\n".join(lines).rstrip() + "\n"


def _head(report: SyncReport) -> str:
    span = seconds(report.stop_ns - report.start_ns)
    return f"{len(report.topics)} topics over {span}, {report.steps:,} control steps by {report.control}"


def _row(timing: TopicTiming) -> tuple[str, ...]:
    aligned, regular = timing.method != "", timing.regular
    ages = "/".join(f"{age / 1000:.1f}" for age in (timing.age_p50_us, timing.age_p95_us, timing.age_max_us))
    delay = f"{timing.skew_mean_ns / 1e6:.1f}/{timing.skew_p95_ns / 1e6:.1f} ms" if timing.clock != "log" else "-"
    return (
        timing.topic,
        f"{timing.count:,}",
        f"{timing.rate_hz:.4g} Hz" if regular else "uneven",
        f"{timing.jitter:.1%}" if regular else "-",
        f"{timing.gaps:,}" if regular else "-",
        f"{timing.drops:,}" if regular else "-",
        timing.clock,
        delay,
        timing.method or "own rate",
        f"{ages} ms" if aligned else "-",
        f"{timing.interpolated:.1%}" if aligned else "-",
        f"{timing.held:.1%}" if aligned and regular else "-",
        f"{timing.invalid:.1%}" if aligned else "-",
    )


def _short(topic: str) -> str:
    """Cut in the middle: the ends of topics' names tell them apart. What would move the cursor is taken out."""
    name = "".join(char if char.isprintable() else "?" for char in topic)
    return name if len(name) <= WIDEST else f"{name[: WIDEST // 2 - 2]}...{name[-(WIDEST // 2 - 1) :]}"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{cell:>{width}}" if column in RIGHT else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip


def _cells(row: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in row) + " |"


def _plain(words: str) -> str:
    """A topic is named by whoever made the log: it must not end a cell, a line or a piece of code."""
    return "".join(char if char.isprintable() else " " for char in words).replace("`", "'").replace("|", "\\|")


def _verdict(report: SyncReport) -> str:
    warnings = len(report.findings) - len(report.errors)
    if not report.findings:
        return "nothing found"
    return f"{_number(len(report.errors), 'error')}, {_number(warnings, 'warning')}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _sentence(finding: Finding, report: SyncReport) -> str:
    """With the place in seconds from the beginning of the log."""
    if finding.time_ns < 0:
        return finding.message
    return f"{finding.message}; at {(finding.time_ns - report.start_ns) / 1e9:.3f} s"


def _rest(report: SyncReport) -> list[str]:
    more = len(report.findings) - MOST
    return [f"... and {more:,} more, see the JSON report"] if more > 0 else []
