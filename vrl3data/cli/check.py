"""`check-converter`: whether a converter keeps the contract."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from vrl3data.cli.common import console, json_option, print_json, quiet_option
from vrl3data.errors import EXIT_FINDINGS


@click.command("check-converter")
@click.argument("converter", metavar="MODULE:CLASS")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set an option of the converter.")
@click.option("--units", type=click.IntRange(1), default=8, show_default=True, help="Units that are read.")
@click.option("--patience", type=float, default=120.0, show_default=True,
              help="Seconds that a single step may take; what takes longer hangs.")  # fmt: skip
@click.option("--check", "checks", multiple=True, metavar="NAME", help="Only this check; repeat for more.",
              show_default="all")  # fmt: skip
@json_option
@quiet_option
def check_converter(
    converter: str, sources: tuple[Path, ...], settings: tuple[str, ...], units: int, patience: float,
    checks: tuple[str, ...], as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Check a converter on SOURCE, small and whole: contract, order, resume, damage. Exit code 1 if a check fails.

    MODULE is imported from the current directory too; a kind of `vrl3data sources` is taken by its name.
    Example: vrl3data check-converter mymodule:MyConverter recording.log --set image_size=32
    """
    from converters.conformance.checker import How, conform

    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = conform(converter, sources, settings, console(quiet=quiet), How(units, patience, checks))
    if as_json:
        print_json([asdict(outcome) for outcome in found])
    else:
        width = max(len(outcome.check) for outcome in found)
        for outcome in found:
            click.echo(f"{'ok  ' if outcome.passed else 'FAIL'}  {outcome.check:<{width}}  {outcome.reason}")
    return 0 if all(outcome.passed for outcome in found) else EXIT_FINDINGS
