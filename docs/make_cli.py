"""Writes docs/cli.md from the commands themselves: `make docs`."""

from __future__ import annotations

from pathlib import Path

import click

from vrl3data.cli import cli

TARGET = Path(__file__).resolve().parent / "cli.md"


def pages(command: click.Command, name: str) -> list[tuple[str, str]]:
    """(name, help text) of a command and of all below it."""
    context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
    # What depends on the machine has no place in a page.
    found = [(name, command.get_help(context))]
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner is not None
            found += pages(inner, f"{name} {word}")
    return found


def text() -> str:
    parts = ["# Commands\n\nMade by `make docs` from the commands themselves.\n"]
    parts += [f"## {name}\n\n```\n{help_.strip()}\n```\n" for name, help_ in pages(cli, "vrl3data")]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(text())
    print(TARGET)
