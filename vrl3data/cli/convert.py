"""`vrl3data convert [KIND] SOURCE... DEST`: the group and what all its commands do; they are in kinds.py."""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import console, explicit, human_bytes, print_json, rows
from vrl3data.cli.forecast import show
from vrl3data.errors import EXIT_SKIPPED, ConfigError, SourceError

SHOWN_SKIPS = 5
TRY = ("episodes", "limit", "overwrite", "append")
RUN = ("on_error", "verify_source", "executor", "ray_address")
"""Options of app.forecast and app.convert, and of the latter alone, that are the same for every kind."""


class ConvertGroup(click.Group):
    """Puts the kind in where it was left out, by looking at the first source that exists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_kind_of(args), *args]
        return super().parse_args(ctx, args)


def _kind_of(args: list[str]) -> str:
    from converters import KINDS
    from converters.base import recognise

    words = [Path(word) for word in args if not word.startswith("-")]
    existing = [word for word in words if word.exists()]
    kind = ""
    if not Path(args[0]).exists() and (close := difflib.get_close_matches(args[0], KINDS, n=1)):
        raise ConfigError(f"there is no kind and no file {args[0]!r}; did you mean the kind {close[0]!r}?")
    for word in existing:  # values of options, such as a --config file, may come before the source
        with suppress(SourceError):
            kind = recognise(word)
            break
    if not kind:
        kind = recognise(existing[0] if existing else words[0] if words else Path(args[0]))
    if not {"-q", "--quiet"} & set(args):
        click.echo(f"recognised as {kind}", err=True)
    return kind


@click.group(cls=ConvertGroup, no_args_is_help=True)
def convert() -> None:
    """Turn demonstrations or images into a dataset: vrl3data convert [KIND] SOURCE... DEST.

    KIND is recognised by content when it is left out. Running the same command again goes on after an
    interruption. Example: vrl3data convert adroit door-v0_demos.pickle out/door --render fast
    """


def run_kind(ctx: click.Context, kind: str) -> int:
    """What every command of a kind does."""
    from converters.base import find
    from vrl3data import app, config

    params = ctx.params
    mapping = params.get("write_mapping")
    if len(params["paths"]) < 2 and mapping is None:
        raise click.UsageError("expected at least one SOURCE and a DEST", ctx)
    sources, dest = params["paths"][:-1] or params["paths"], params["paths"][-1]
    options = find(kind).Options
    names = {field.name for field in fields(options)}
    built: Any = config.load(options, params["config"], params["settings"])
    values = {name: getattr(built, name) for name in names} | explicit(ctx, names & set(params))
    reporter = console(params["as_json"], params["quiet"])
    if mapping is not None:
        click.echo(f"written: {app.write_mapping(kind, sources, mapping, values)}", err=True)
        return 0
    if params["dry_run"]:
        return show(app.forecast(kind, sources, dest, values, reporter=reporter, **{key: params[key] for key in TRY}),
                    params["on_error"], params["as_json"])  # fmt: skip
    receipt = app.convert(
        kind, sources, dest, values, reporter=reporter, jobs=_jobs(ctx), **{key: params[key] for key in (*TRY, *RUN)}
    )
    if params["as_json"]:
        print_json({"event": "receipt", **receipt_json(receipt)})
    else:
        click.echo(receipt_text(receipt))
    return EXIT_SKIPPED if receipt.skipped else 0


def _jobs(ctx: click.Context) -> int:
    """A Ray cluster has as many workers as it has cores, if nothing else was said; not as many as this machine."""
    return 0 if ctx.params["executor"] == "ray" and not explicit(ctx, {"jobs"}) else ctx.params["jobs"]


def receipt_json(receipt: Any) -> dict[str, Any]:
    found = receipt.manifest
    return {
        "path": str(receipt.path),
        "name": found.name,
        "kind": found.schema.kind,
        "samples": found.samples,
        "steps": found.steps,
        "bytes": found.bytes,
        "written_now": receipt.written,
        "skipped": list(receipt.skipped),
        "fingerprint": found.fingerprint,
        "seconds": round(receipt.seconds, 1),
        "notes": list(receipt.notes),
    }


def receipt_text(receipt: Any) -> str:
    """What was made, what was not and why, and what to do next."""
    found = receipt.manifest
    shards = sum(len(split.shards) for split in found.splits.values())
    state = (
        "was already whole (vrl3data validate checks it)"
        if receipt.already_complete
        else f"written in {receipt.seconds:.1f} s"
    )
    lines = [("dataset", f"{receipt.path} ({found.name}), {state}"), (found.schema.kind, f"{found.samples:,}")]
    if found.schema.kind == "episodes":
        lines.append(("steps", f"{found.steps:,}"))
    else:
        lines.append(("classes", f"{len(found.schema['cls'].names):,}"))
    lines += [
        ("bytes", f"{human_bytes(found.bytes)} in {shards} shard{'s' if shards > 1 else ''}"),
        ("features", ", ".join(found.schema.names)),
        ("skipped", str(len(receipt.skipped))),
        *(("", f"{entry['source']}: {entry['reason']}") for entry in receipt.skipped[:SHOWN_SKIPS]),
        *(("note", note) for note in receipt.notes),
        ("licence", found.license),
        ("fingerprint", found.fingerprint),
        ("next", f"vrl3data view {receipt.path} --html page.html"),
    ]
    return rows(lines)
