"""`validate`: say whether a dataset can be trusted, and where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vrl3data.cli.common import console, counted, json_option, print_json, quiet_option, rows
from vrl3data.errors import EXIT_FINDINGS

if TYPE_CHECKING:
    from vrl3data.checks.finding import Finding
    from vrl3data.validation import Report

SHOWN = 50
FAIL_ON = ("error", "warn", "info", "never")


def _list(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from vrl3data.validation import CHECKS

        click.echo(rows(list(CHECKS.items())))
        ctx.exit()


@click.command()
@click.argument("path")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="Report this check only; may be repeated.")
@click.option("--skip", multiple=True, metavar="NAME", help="Leave this check out; may be repeated.")
@click.option("--fail-on", type=click.Choice(FAIL_ON), default="error", show_default=True,
              help="Exit with code 1 if there is a finding this bad or worse.")  # fmt: skip
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list,
              help="Describe all checks and stop.")  # fmt: skip
@json_option
@quiet_option
def validate(path: str, checks: Sequence[str], skip: Sequence[str], fail_on: str, as_json: bool, quiet: bool) -> int:
    """Check the dataset PATH: every byte, and whether its content makes sense for learning.

    An error is damage or a contradiction; a warning is content that is probably wrong, such as a frozen camera or an
    episode that occurs twice; info is worth knowing. Exit code 1 if there is a finding as bad as --fail-on says.

    Example: vrl3data validate out/door --fail-on warn
    """
    from vrl3data.validation import validate as check

    report = check(path, console(quiet=quiet), checks=checks or None, skip=skip)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(_text(path, report))
    return EXIT_FINDINGS if report.worse_than(fail_on) else 0


def _text(path: str, report: Report) -> str:
    groups = grouped(report.findings)
    lines = [_line(group) for group in groups[:SHOWN]]
    if len(groups) > SHOWN:
        lines.append(f"... and {len(groups) - SHOWN} more kinds; --json lists all")
    counts = [
        (severity, sum(f.severity == severity for f in report.findings)) for severity in ("error", "warn", "info")
    ]
    words = {"error": "error", "warn": "warning", "info": "note"}
    told = ", ".join(counted(count, words[severity]) for severity, count in counts if count)
    verdict = ("sound" if report.ok else "not sound") + (f", {told}" if told else "")
    state = "" if report.complete else ", still being written"
    found = f"{counted(report.samples, 'sample')} in {counted(report.shards, 'shard')}"
    return "\n".join([*lines, f"{path}: {verdict} ({found}{state})"])


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one check, severity and feature together, in order of the first of each."""
    groups: dict[Any, list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.check, finding.where.feature), []).append(finding)
    return list(groups.values())


def _line(group: Sequence[Finding]) -> str:
    first = group[0]
    if len(group) == 1:
        return str(first)
    episodes = {finding.where.episode for finding in group if finding.where.episode}
    where = counted(len(episodes), "episode") if len(episodes) > 1 else f"{len(group)} places"
    return f"{first.severity}: {first.check}: in {where}, first: {first.message} ({first.where})"
