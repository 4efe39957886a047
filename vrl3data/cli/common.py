"""Options and output that several commands share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vrl3data.report import Console

Command = TypeVar("Command", bound=Callable[..., Any])
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


class Size(click.ParamType[int]):
    """`256MiB`, `1GB`, `1000000` -> bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", str(value).strip().lower())
        if not match:
            self.fail(f"expected a size such as 256MiB, found {value!r}", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs.")(command)


def quiet_option(command: Command) -> Command:
    return click.option("--quiet", "-q", is_flag=True, help="No progress and no notes on stderr.")(command)


def console(as_json: bool = False, quiet: bool = False) -> Console:
    """Progress for people on stderr; with `--json`, events as JSON lines on stdout."""
    return Console(events=sys.stdout if as_json else None, quiet=quiet)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=None if isinstance(value, dict) and "event" in value else 2))


def human_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(number: int, word: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def explicit(ctx: click.Context, names: set[str]) -> dict[str, Any]:
    """The options among `names` that were given on the command line."""
    given = click.core.ParameterSource.COMMANDLINE
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) is given}


def rows(pairs: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)
