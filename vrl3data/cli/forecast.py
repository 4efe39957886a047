"""What `convert --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vrl3data.cli.common import counted, human_bytes, print_json, rows
from vrl3data.errors import EXIT_SKIPPED, SourceError

if TYPE_CHECKING:
    from converters.forecast import Forecast

SHOWN_PROBLEMS = 20


def show(found: Forecast, on_error: str, as_json: bool) -> int:
    """Print it. The exit code is what a conversion with `on_error` would have by what is known."""
    if as_json:
        print_json({"event": "forecast", **found.to_json()})
    else:
        click.echo(forecast_text(found))
    if not found.problems:
        return 0
    return EXIT_SKIPPED if on_error == "skip" else SourceError.exit_code


def forecast_text(found: Forecast) -> str:
    spec, about = found.spec, "" if found.exact else "about "
    lines = [("dry run", f"nothing is written; tried {found.tried:,} of {found.units:,} {spec.schema.kind}")]
    lines.append(("dataset", f"{found.path} ({spec.name})"))
    if found.there:
        lines.append(("there", f"{found.there:,} {spec.schema.kind} are in it already"))
    lines.append((spec.schema.kind, f"{found.units:,}"))
    if spec.schema.kind == "episodes":
        lines.append(("steps", f"{about}{found.steps:,}"))
    lines.append(("bytes", f"{about}{human_bytes(found.bytes)} in {counted(found.shards, 'shard')}"))
    short = ": NOT ENOUGH" if found.bytes > found.free else ""
    lines.append(("free disk", f"{human_bytes(found.free)}{short}"))
    names = max(len(feature.name) for feature in spec.schema.features)
    for number, feature in enumerate(spec.schema.features):
        kind = f"{feature.dtype}[{', '.join('?' if size < 0 else str(size) for size in feature.shape)}]"
        text = f"{feature.name:<{names}}  {kind:<22} {feature.rows:<8}{feature.codec}"
        lines.append(("" if number else "features", text))
    lines.append(("problems", str(len(found.problems))))
    lines += [("", f"{name}: {error}") for name, error in found.problems[:SHOWN_PROBLEMS]]
    lines += [("note", note) for note in found.notes]
    return rows([*lines, ("licence", spec.license)])
