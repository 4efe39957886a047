"""`record`: a dataset from a live environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import console, human_bytes, json_option, print_json, quiet_option, rows


@click.command()
@click.argument("env")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--episodes", type=int, default=20, show_default=True, help="How many.")
@click.option("--steps", type=int, default=25, show_default=True, help="Steps of an episode, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--policy", type=click.Choice(["scripted", "random"]), default="scripted", show_default=True)
@click.option("--noise", type=float, default=0.1, show_default=True, help="Added to scripted actions (std).")
@click.option("--image-size", type=int, default=84, show_default=True, help="Pixels (fetch-reach).")
@click.option("--codec", default="raw", show_default=True, help="raw, dzst, png, jpeg:Q, h264:CRF or av1:CRF.")
@click.option("--split", default="train", show_default=True)
@click.option("--name", default="", help="Name of the dataset.", show_default="from environment and policy")
@click.option("--license", default="unknown", show_default=True)
@json_option
@quiet_option
def record(env: str, dest: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Record episodes of ENV into the dataset DEST: fetch-reach, or any Gymnasium id with --policy random.

    Running the same command again goes on after an interruption.
    Example: vrl3data record fetch-reach out/reach --episodes 100
    """
    from vrl3data import app

    found = app.record(env, dest, app.LiveOptions(**options), console(as_json, quiet))
    if as_json:
        print_json({"event": "receipt", "path": str(dest), "fingerprint": found.fingerprint, "samples": found.samples,
                    "steps": found.steps, "bytes": found.bytes})  # fmt: skip
    else:
        click.echo(receipt(dest, found))


def receipt(dest: Path, found: Any) -> str:
    return rows([
        ("dataset", f"{dest} ({found.name})"),
        ("episodes", f"{found.samples:,}"),
        ("steps", f"{found.steps:,}"),
        ("bytes", human_bytes(found.bytes)),
        ("fingerprint", found.fingerprint),
    ])  # fmt: skip
