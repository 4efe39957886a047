"""`sources`: the kinds that `convert` reads."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from vrl3data.cli.common import json_option, print_json

SHARED = ("codec", "split", "name", "license", "shard_size")
"""Options of every kind."""


@click.command()
@json_option
def sources(as_json: bool) -> None:
    """List the kinds of sources that convert reads, with their own options.

    Example: vrl3data sources --json
    """
    from converters import KINDS

    found = [_described(kind) for kind in KINDS]
    if as_json:
        print_json(found)
        return
    width = max(len(kind) for kind in KINDS)
    for kind in found:
        extra = f" (needs the extra {kind['extra']}: pip install 'vrl3data[{kind['extra']}]')" if kind["extra"] else ""
        click.echo(f"{kind['name']:<{width}}  {kind['reads']}{extra}")
        options = ", ".join(f"--{option['name'].replace('_', '-')} {option['type']}" for option in kind["options"])
        click.echo(f"{'':<{width}}  {options}".rstrip())
    click.echo("\nEvery kind: vrl3data convert KIND --help")


def _described(kind: str) -> dict[str, Any]:
    from converters.base import find

    converter = find(kind)
    hints = get_type_hints(converter.Options)
    options = [
        {"name": field.name, "type": _type_text(hints[field.name]), "default": field.default}
        for field in fields(converter.Options)
        if field.name not in SHARED
    ]
    reads = (converter.__doc__ or "").strip().partition("\n")[0]
    return {"name": kind, "reads": reads, "extra": getattr(converter, "extra", ""), "options": options}


def _type_text(hint: Any) -> str:
    """`int`, `a|b`, `str...` (may be repeated)."""
    if get_origin(hint) is tuple:
        return f"{_type_text(get_args(hint)[0])}..."
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    choices = [choice for choice in get_args(hint) or (hint,) if choice is not type(None)]
    return "|".join(getattr(choice, "__name__", str(choice)) for choice in choices)
