"""`inspect-log`: what is in robot logs, before anything is converted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import counted, human_bytes, json_option, print_json


@click.command("inspect-log")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@json_option
@click.option("--thumbnails", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write a PNG file of the first picture of every camera.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Time for reading each file; a larger one is looked at from its front.")  # fmt: skip
def inspect_log(files: tuple[Path, ...], as_json: bool, folder: Path | None, seconds: float) -> int:
    """Say what is in robot logs: topics, types, rates, gaps, clocks, first values. No ROS is needed.

    FILE is an MCAP file, a ROS 1 bag, a rosbag2 database (.db3), or the folder of a rosbag2 recording.

    Example: vrl3data inspect-log run1.mcap --thumbnails look
    """
    from converters.logs.messages import open_log
    from converters.logs.survey import survey, thumbnails
    from vrl3data.errors import SourceError

    found, code = [], 0
    for file in files:
        try:
            with open_log(file) as log:
                facts = survey(log, seconds, pictures=folder is not None)
        except SourceError as error:
            click.echo(f"error: {error}", err=True)
            code = error.exit_code
            continue
        if folder is not None:
            for path in thumbnails(facts, folder):
                click.echo(f"{path}", err=True)
        found.append(facts)
        if not as_json:
            click.echo(("\n" if len(found) > 1 else "") + plain(_text(facts)))
    if as_json:
        print_json([facts.to_json() for facts in found])
    return code


def plain(text: str) -> str:
    """Without the control characters that a name in a log may have."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _text(facts: Any) -> str:
    compression = facts.info.get("compression", "none")
    kind = facts.info["container"] + (f", {compression}" if compression != "none" else "")
    size = sum(part["bytes"] for part in facts.info.get("files", {"": facts.info}).values())
    start = datetime.fromtimestamp(facts.start_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    read = f" in {facts.seconds:,.2f} s from {start}" if facts.messages else ""
    lines = [f"{facts.file}: {kind}, {human_bytes(size)}, {counted(facts.messages, 'message')}{read}"]
    if not facts.complete:
        total = sum(topic.count for topic in facts.topics if topic.count > 0)
        of = f" of {total:,}" if total > facts.messages else ""
        lines.append(f"note: looked at the first {facts.messages:,}{of} messages; --seconds gives more time")
    lines += [f"problem: {problem}" for problem in facts.problems]
    for topic in facts.topics:
        lines += ["", *_topic(topic)]
    return "\n".join(lines)


def _topic(topic: Any) -> list[str]:
    count = counted(topic.count, "message") if topic.count >= 0 else f"{topic.looked_at:,} or more messages"
    lines = [f"{topic.name}  {topic.type or 'no type'}  {topic.encoding}  {count}"]
    lines += [f"  {_clock(clock, topic.looked_at)}" for clock in topic.clocks]
    lines += [f"  {_stream(stream)}" for stream in topic.streams]
    lines += [f"  left  {path or 'the message'}: {reason}" for path, reason in topic.left]
    if topic.error:
        lines.append(f"  error  {topic.error}")
    return lines


def _clock(clock: Any, looked_at: int) -> str:
    parts = [f"{clock.rate:,.2f}/s, largest gap {clock.largest_gap:,.3f} s"] if clock.rate else []
    if not clock.rate and looked_at > 1:
        parts.append("all stamps are the same")
    if clock.name != "log":
        parts.append(f"log time is {_later(clock.skew_ms)} later")
    if clock.zeros and clock.name == "header":
        parts.append(f"{clock.zeros:,} not set")
    if clock.back:
        parts.append(f"{clock.back:,} go back")
    return f"clock {clock.name}  {', '.join(parts) or 'one message'}"


def _later(milliseconds: float) -> str:
    seconds = milliseconds / 1000
    if abs(seconds) < 10:
        return f"{milliseconds:,.1f} ms"
    return f"{seconds:,.1f} s" if abs(seconds) < 86_400 else f"{seconds / 86_400:,.1f} days"


def _stream(stream: Any) -> str:
    shape = "x".join(map(str, stream.shape))
    names = f" ({', '.join(stream.names[:12])}{', ...' if len(stream.names) > 12 else ''})" if stream.names else ""
    unit = f" {stream.unit}" if stream.unit else ""
    head = f"{stream.role}  {stream.path or '.'}  {stream.dtype} {shape}{names}{unit}".rstrip()
    if isinstance(stream.first, list):
        more = ", ..." if stream.shape[0] > len(stream.first) else ""
        shown = ", ".join("nan" if number is None else f"{number:.6g}" for number in stream.first)
        return f"{head}  first {shown}{more}"
    return f"{head}  first {stream.first!r}" if stream.first else head
