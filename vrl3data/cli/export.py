"""`vrl3data export KIND DATASET DEST`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from vrl3data.cli.common import (
    Size,
    console,
    explicit,
    human_bytes,
    json_option,
    print_json,
    quiet_option,
    rows,
)

SHOWN_DROPPED = 40


class ExportGroup(click.Group):
    """One command for each kind of the table; its options are the fields of the kind's Options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from converters.export import EXPORTS

        return sorted(EXPORTS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in self.list_commands(ctx) else None


@click.group(cls=ExportGroup, no_args_is_help=True)
def export() -> None:
    """Write a dataset in the layout of another tool: vrl3data export KIND DATASET DEST.

    DATASET may be a URL. DEST must not exist; it appears when it is whole. What the layout cannot hold is listed.
    Example: vrl3data export frames out/door out/door-frames --stride 5
    """


def _command(kind: str) -> click.Command:
    from converters.export.base import find

    exporter = find(kind)
    about = (exporter.__doc__ or "").strip().partition("\n")[0]
    hints = get_type_hints(exporter.Options)
    command: Callable[..., Any] = _runner(kind)
    decorators = [
        click.argument("dataset", metavar="DATASET"),
        click.argument("dest", metavar="DEST"),
        click.option("--split", "splits", multiple=True, help="Split to export; repeat for more.", show_default="all"),
        *(_option(item, hints[item.name]) for item in fields(exporter.Options)),
        json_option,
        quiet_option,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    example = f"Example: vrl3data export {kind} out/door out/door-{kind}"
    return click.command(kind, help=f"{about}\n\n{example}", short_help=about)(command)


def _option(item: Field[Any], hint: Any) -> Callable[..., Any]:
    """The option for a field: `tuple[str, ...]` may be repeated, `bool` has a `--no-`, `Literal` is a choice."""
    name = "--" + item.name.replace("_", "-")
    default = item.default if item.default is not MISSING else None
    more: dict[str, Any] = {
        "help": item.metadata.get("help"),
        "show_default": _shown(item.metadata.get("shown"), default),
    }
    inner = next((choice for choice in get_args(hint) if choice is not type(None)), hint)
    if get_origin(hint) is tuple:
        return click.option(name, item.name, multiple=True, type=inner, default=(), **more)
    if hint is bool:
        return click.option(f"{name}/--no-{name[2:]}", item.name, default=bool(default), **more)
    if get_origin(hint) is Literal:
        choices = click.Choice([str(one) for one in get_args(hint)])
        return click.option(name, item.name, type=choices, default=default, **more)
    kind = Size() if item.metadata.get("size") else inner if inner in (int, float) else str
    return click.option(name, item.name, type=kind, default=default, **more)


def _shown(said: str | None, default: Any) -> str | bool:
    """What the help says of the default; nothing where it is empty."""
    if said:
        return said
    return default not in (None, "", ()) and not isinstance(default, bool)


def _runner(kind: str) -> Callable[..., int]:
    @click.pass_context
    def run(ctx: click.Context, /, **_: Any) -> int:
        from converters.export.base import find
        from vrl3data import app

        params = ctx.params
        chosen = explicit(ctx, {item.name for item in fields(find(kind).Options)})
        receipt = app.export(
            kind, params["dataset"], params["dest"], chosen, splits=params["splits"],
            reporter=console(params["as_json"], params["quiet"]),
        )  # fmt: skip
        if params["as_json"]:
            print_json({"event": "receipt", **receipt_json(receipt)})
        else:
            click.echo(receipt_text(receipt))
        return 0

    return run


def receipt_json(receipt: Any) -> dict[str, Any]:
    return {
        "path": str(receipt.path),
        "kind": receipt.kind,
        "samples": receipt.samples,
        "steps": receipt.steps,
        "bytes": receipt.bytes,
        "dropped": list(receipt.dropped),
        "notes": list(receipt.notes),
        "seconds": round(receipt.seconds, 1),
    }


def receipt_text(receipt: Any) -> str:
    """What was written, what is not in it, and what was changed."""
    lines = [("export", f"{receipt.path} ({receipt.kind}), written in {receipt.seconds:.1f} s")]
    lines.append(("samples", f"{receipt.samples:,}"))
    lines += [("steps", f"{receipt.steps:,}")] if receipt.steps else []
    lines.append(("bytes", human_bytes(receipt.bytes)))
    left = receipt.dropped[SHOWN_DROPPED:]
    lines += [("not in it" if not number else "", text) for number, text in enumerate(receipt.dropped[:SHOWN_DROPPED])]
    lines += [("", f"and {len(left)} more (--json lists all)")] if left else []
    return rows([*lines, *(("note", note) for note in receipt.notes)])
