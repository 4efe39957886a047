"""`record` and `demo`: datasets from a live environment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import console, human_bytes, json_option, print_json, quiet_option, rows
from vrl3data.errors import DamagedError

DEMO_EPISODES = 20


@click.command()
@click.argument("env")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--episodes", type=int, default=20, show_default=True, help="How many.")
@click.option("--steps", type=int, default=25, show_default=True, help="Steps of an episode, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--policy", type=click.Choice(["scripted", "random"]), default="scripted", show_default=True)
@click.option("--noise", type=float, default=0.1, show_default=True, help="Added to scripted actions (std).")
@click.option("--image-size", type=int, default=84, show_default=True, help="Pixels (fetch-reach).")
@click.option("--codec", default="raw", show_default=True, help="raw, png, or jpeg:Q.")
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
        click.echo(_receipt(dest, found))


@click.command()
@click.argument("dest", type=click.Path(path_type=Path), default=Path("demo"))
@quiet_option
def demo(dest: Path, quiet: bool) -> None:
    """Record 20 fetch-reach demonstrations into DEST, validate them, and make their card and page.

    Running it again shows what is there. Takes less than a minute on two cores.
    """
    from cards.html.page import write_page
    from vrl3data import app
    from vrl3data.dataset import open_dataset
    from vrl3data.validation import validate

    reporter, started = console(quiet=quiet), time.monotonic()
    target = dest / "fetch-reach"
    if not (target / "dataset.json").exists():
        reporter.note(f"recording {DEMO_EPISODES} fetch-reach demonstrations into {target}")
        app.record("fetch-reach", target, app.LiveOptions(episodes=DEMO_EPISODES, license="apache-2.0"), reporter)
    report = validate(target, reporter)
    if not report.ok:
        raise DamagedError(f"the demo does not pass its own validation: {report.findings[0]}")
    with open_dataset(target) as dataset:
        page = write_page(dataset, dest / "fetch-reach.html")
        solved = sum(item.meta["success"] == 1 for item in dataset)
        click.echo(_receipt(target, dataset.manifest))
    lines = [
        ("solved", f"{solved} of {len(dataset)} episodes, by the scripted demonstrator"),
        ("validated", f"{report.samples} episodes, {len(report.findings)} findings"),
        ("card", str(target / "README.md")),
        ("page", str(page)),
        ("took", f"{time.monotonic() - started:.0f} s"),
    ]
    click.echo(rows([(f"{name:<11}", value) for name, value in lines]))


def _receipt(dest: Path, found: Any) -> str:
    return rows([
        ("dataset", f"{dest} ({found.name})"),
        ("episodes", f"{found.samples:,}"),
        ("steps", f"{found.steps:,}"),
        ("bytes", human_bytes(found.bytes)),
        ("fingerprint", found.fingerprint),
    ])  # fmt: skip
