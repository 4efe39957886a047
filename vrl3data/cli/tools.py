"""`merge`, `split`, `filter`, `recode`, `rename-feature`, `rerender`, `compact`, `repair`, `stats`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vrl3data.cli.common import (
    Command,
    Size,
    console,
    counted,
    human_bytes,
    json_option,
    print_json,
    quiet_option,
    rows,
)
from vrl3data.errors import EXIT_SKIPPED, ConfigError

if TYPE_CHECKING:
    from vrl3data.manifest import Manifest
    from vrl3data.tools.rewrite import Output

SHOWN_LOST = 20
SOURCE = click.argument("source")
DEST = click.argument("dest")


def output_options(command: Command) -> Command:
    """What every tool takes."""
    decorators: list[Callable[[Command], Command]] = [
        click.option("--name", default="", help="Name of the new dataset.", show_default="as the source"),
        click.option("--license", "license_", default="", help="Its licence.", show_default="as the sources"),
        click.option("--shard-size", type=Size(), default="256MiB", show_default=True, help="Largest size of a shard."),
        json_option,
        quiet_option,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


virtual_option = click.option(
    "--virtual", is_flag=True, help="Link the shards of SOURCE instead of copying samples: takes no space."
)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="SOURCE SOURCE... DEST")
@click.option("--skip-duplicates", is_flag=True, help="Keep one of each sample that several sources hold.")
@output_options
def merge(paths: tuple[str, ...], skip_duplicates: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make one dataset DEST of several with the same schema; nothing is decoded.

    Example: vrl3data merge out/door out/door-more out/door-all
    """
    from contextlib import ExitStack

    from vrl3data.dataset import open_dataset
    from vrl3data.tools.merge import merge as run

    if len(paths) < 3:
        raise click.UsageError("expected at least two SOURCEs and a DEST")
    *sources, dest = paths
    with ExitStack() as stack:
        inputs = [stack.enter_context(open_dataset(source)) for source in sources]
        found = run(inputs, dest, _output(options), skip_duplicates=skip_duplicates, reporter=console(quiet=quiet))
    _done(dest, found, as_json)


@click.command()
@SOURCE
@DEST
@click.option("--share", "shares", multiple=True, metavar="NAME=PART", help="A split and its share: train=0.8.")
@click.option("--by", default="", metavar="COLUMN", help="One split per value, such as task or success.")
@click.option("--seed", default=0, show_default=True, help="Of the choice.")
@click.option("--keep-together", default="", metavar="COLUMN", help="Same value, same split: source, task, ...")
@virtual_option
@output_options
def split(
    source: str, dest: str, shares: tuple[str, ...], by: str, seed: int, keep_together: str, virtual: bool,
    as_json: bool, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Put the samples of SOURCE into splits of a new dataset DEST, by chance or by a column.

    Example: vrl3data split out/door out/door-split --share train=0.8 --share val=0.2
    """
    from vrl3data.dataset import open_dataset
    from vrl3data.tools.split import split as run

    parts = {name: _number(value, name) for name, value in _pairs(shares, "--share").items()}
    with open_dataset(source) as dataset:
        found = run(
            dataset, dest, parts, by=by, seed=seed, keep_together=keep_together, virtual=virtual,
            output=_output(options), reporter=console(quiet=quiet),
        )  # fmt: skip
    _done(dest, found, as_json)


@click.command("filter")
@SOURCE
@DEST
@click.argument("expression")
@virtual_option
@output_options
def select(
    source: str, dest: str, expression: str, virtual: bool, as_json: bool, quiet: bool, **options: Any
) -> None:  # fmt: skip
    """Keep the samples of SOURCE that fulfil EXPRESSION, which names columns of the index.

    What is not known is -1: `success` means success == 1, `not success` all others, `success == 0` known failures.

    Example: vrl3data filter out/door out/door-good "success and length > 50"
    """
    from vrl3data.dataset import open_dataset
    from vrl3data.tools.split import select as run

    with open_dataset(source) as dataset:
        found = run(dataset, dest, expression, virtual=virtual, output=_output(options), reporter=console(quiet=quiet))
    _done(dest, found, as_json)


@click.command()
@SOURCE
@DEST
@click.option("--codec", required=True, help="raw, dzst, png, jpeg:Q, h264:CRF or av1:CRF.")
@click.option("--feature", "features", multiple=True, help="Feature to recode.", show_default="pictures and depth")
@output_options
def recode(
    source: str, dest: str, codec: str, features: tuple[str, ...], as_json: bool, quiet: bool, **options: Any
) -> None:  # fmt: skip
    """Store the pictures of SOURCE with another codec; a lossless one keeps the fingerprint.

    Example: vrl3data recode out/door out/door-small --codec dzst
    """
    from vrl3data.dataset import open_dataset
    from vrl3data.tools.recode import recode as run

    with open_dataset(source) as dataset:
        found = run(dataset, dest, codec, features, _output(options), console(quiet=quiet))
    _done(dest, found, as_json)


@click.command("rename-feature")
@SOURCE
@DEST
@click.argument("names", nargs=-1, required=True, metavar="OLD=NEW...")
@output_options
def rename(source: str, dest: str, names: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Give features of SOURCE other names.

    Example: vrl3data rename-feature out/door out/door-b obs.image.top=obs.image.front
    """
    from vrl3data.dataset import open_dataset
    from vrl3data.tools.recode import rename as run

    with open_dataset(source) as dataset:
        found = run(dataset, dest, _pairs(names, "names"), _output(options), console(quiet=quiet))
    _done(dest, found, as_json)


@click.command()
@SOURCE
@DEST
@click.option("--camera", multiple=True, help="Camera to draw; repeat for more.", show_default="as the source")
@click.option(
    "--image-size", type=click.IntRange(16, 1024), help="Height and width in pixels.", show_default="as the source"
)
@click.option("--look", type=click.Choice(["vrl3", "gymnasium"]), help="Of Adroit tasks.", show_default="as the source")
@click.option("--render", type=click.Choice(["exact", "fast"]), default="exact", show_default=True)
@click.option("--codec", default="raw", show_default=True, help="Of the new pictures.")
@output_options
def rerender(
    source: str, dest: str, camera: tuple[str, ...], image_size: int | None, look: str | None, render: str, codec: str,
    as_json: bool, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Draw the pictures of SOURCE anew from its stored simulator states.

    Example: vrl3data rerender out/door out/door-128 --image-size 128
    """
    from vrl3data.dataset import open_dataset
    from vrl3data.tools.rerender import View
    from vrl3data.tools.rerender import rerender as run

    view = View(camera, image_size or 0, look or "", render, codec)
    with open_dataset(source) as dataset:
        found = run(dataset, dest, view, _output(options), console(quiet=quiet))
    _done(dest, found, as_json)


@click.command()
@SOURCE
@DEST
@output_options
def compact(source: str, dest: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write the samples of SOURCE into full shards: after appends, of linked shards, or for another shard size."""
    from vrl3data.dataset import open_dataset
    from vrl3data.tools.merge import compact as run

    with open_dataset(source) as dataset:
        found = run(dataset, dest, _output(options), console(quiet=quiet))
    _done(dest, found, as_json)


@click.command()
@SOURCE
@click.argument("dest", required=False)
@output_options
def repair(source: str, dest: str | None, as_json: bool, quiet: bool, **options: Any) -> int:
    """Save the whole samples of the damaged dataset SOURCE into DEST, and list what is lost (exit code 5).

    Without DEST, only say what could be saved. SOURCE is not touched.
    """
    from vrl3data.tools.repair import examine
    from vrl3data.tools.repair import repair as run

    reporter = console(quiet=quiet)
    if dest is None:
        salvage = examine(source, reporter)
        whole, lost = len(salvage.whole), tuple(salvage.lost)
    else:
        found, lost = run(source, dest, _output(options), reporter)
        whole = found.samples
    if as_json:
        gone = [{"shard": one.shard, "key": one.key, "name": one.name, "reason": one.reason} for one in lost]
        print_json({"whole": whole, "lost": gone, "path": dest})
    else:
        for one in lost[:SHOWN_LOST]:
            click.echo(str(one))
        if len(lost) > SHOWN_LOST:
            click.echo(f"... and {len(lost) - SHOWN_LOST} more; --json lists all")
        state = f"saved in {dest}" if dest else "can be saved"
        click.echo(f"{source}: {counted(whole, 'sample')} {state}, {len(lost)} lost")
    if dest is not None:
        from vrl3data import app

        app.write_card(dest)
    return EXIT_SKIPPED if lost else 0


@click.command()
@click.argument("path")
@json_option
@quiet_option
def stats(path: str, as_json: bool, quiet: bool) -> None:
    """Compute mean, deviation, least and greatest value of every feature of the dataset PATH from its data."""
    from vrl3data import stats as statistics
    from vrl3data.dataset import open_dataset

    with open_dataset(path) as dataset:
        console(quiet=quiet).note(f"reading {counted(len(dataset), 'sample')}")
        found = statistics.compute(dataset)
    if as_json:
        print_json(found)
        return
    table: list[tuple[str, ...]] = [("feature", "entry", "mean", "std", "min", "max", "NaN")]
    for name, values in found["features"].items():
        for entry in range(len(values.get("mean", ()))):
            numbers = [f"{values[key][entry]:.6g}" for key in ("mean", "std", "min", "max")]
            table.append((name if not entry else "", str(entry), *numbers, str(values["nan"]) if not entry else ""))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _output(options: dict[str, Any]) -> Output:
    from vrl3data.tools.rewrite import Output

    return Output(options["name"], options["license_"], options["shard_size"])


def _pairs(words: tuple[str, ...], what: str) -> dict[str, str]:
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{what}: expected NAME=VALUE, found {word!r}")
        if name in found:
            raise ConfigError(f"{what}: {name!r} is given twice")
        found[name] = value
    return found


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--share: expected a number for {name!r}, found {text!r}") from None


def _done(dest: str, found: Manifest, as_json: bool) -> None:
    from vrl3data import app

    app.write_card(dest)
    if as_json:
        splits = {name: part.samples for name, part in found.splits.items()}
        print_json({"path": dest, "name": found.name, "samples": found.samples, "splits": splits, "bytes": found.bytes,
                    "license": found.license, "fingerprint": found.fingerprint})  # fmt: skip
        return
    splits_text = ", ".join(f"{name} {part.samples:,}" for name, part in found.splits.items())
    lines = [
        ("dataset", f"{dest} ({found.name})"), (found.schema.kind, f"{found.samples:,} ({splits_text})"),
        ("bytes", human_bytes(found.bytes)), ("licence", found.license), ("fingerprint", found.fingerprint),
    ]  # fmt: skip
    click.echo(rows(lines))
