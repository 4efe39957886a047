"""`push` and `pull`: datasets, encoders and policies to and from a folder or the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vrl3data.cli.common import console, counted, human_bytes, json_option, print_json, quiet_option, rows

if TYPE_CHECKING:
    from cards.hub import Receipt

dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be sent where; write and send nothing.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace another dataset, encoder or policy that a target folder holds."
)


@click.command()
@click.argument("path")
@click.argument("target")
@click.option("--public", is_flag=True, help="Everyone may see it. Without: only you and your organisation.")
@dry_run_option
@overwrite_option
@click.option("--message", default="", help="What the commit on the hub says.")
@json_option
@quiet_option
def push(
    path: str, target: str, public: bool, dry_run: bool, overwrite: bool, message: str, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Bring the dataset, encoder or policy PATH to TARGET: a folder, hf://datasets/USER/NAME or hf://USER/NAME.

    It is checked before and after; repositories are private unless you say --public.

    Example: vrl3data push out/door hf://datasets/me/door --dry-run
    """
    from cards.hub import PushOptions
    from cards.hub import push as send

    options = PushOptions(public=public, dry_run=dry_run, overwrite=overwrite, message=message)
    _show(send(path, target, options, reporter=console(quiet=quiet)), as_json)


@click.command()
@click.argument("source")
@click.argument("path")
@dry_run_option
@overwrite_option
@json_option
@quiet_option
def pull(source: str, path: str, dry_run: bool, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Bring a dataset, encoder or policy from SOURCE into the folder PATH. Running it again goes on.

    SOURCE is a folder, hf://datasets/USER/NAME or hf://USER/NAME, these two with @REVISION if you like. Every byte
    is checked before anything appears at PATH.

    Example: vrl3data pull hf://datasets/me/door out/door
    """
    from cards.hub import PullOptions
    from cards.hub import pull as fetch

    options = PullOptions(dry_run=dry_run, overwrite=overwrite)
    _show(fetch(source, path, options, reporter=console(quiet=quiet)), as_json)


def _show(receipt: Receipt, as_json: bool) -> None:
    if as_json:
        print_json(receipt.to_json())
        return
    seen = {None: "", True: " (private)", False: " (public)"}[receipt.private]
    total = f"{counted(len(receipt.files), 'file')}, {human_bytes(receipt.bytes)}"
    state = "there already" if not receipt.sent else f"{len(receipt.sent)} sent"
    facts = [
        (receipt.kind, receipt.source),
        ("to", f"{receipt.target}{seen}"),
        ("files", f"{total}{'' if receipt.dry_run else f', {state}'}"),
        *([("commit", receipt.commit)] if receipt.commit else []),
        ("fingerprint", receipt.fingerprint),
    ]
    click.echo(rows(facts))
    if receipt.dry_run:
        width = max(len(name) for name in receipt.files)
        click.echo("would be sent:")
        for name, size in receipt.files.items():
            click.echo(f"  {name:<{width}}  {human_bytes(size)}")
