"""Options that the kinds of sources share, as decorators of their commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from vrl3data.cli.common import Command, Size, json_option, quiet_option


def shared_options(command: Command) -> Command:
    """What every kind takes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _decorated(command, [
        click.argument("paths", nargs=-1, required=True, metavar="SOURCE... DEST", type=click.Path(path_type=Path)),
        click.option("--episodes", metavar="0:10,15,NAME", help="Convert only these: half-open ranges and indices in "
                     "source order, names as in the dataset.", show_default="all"),
        click.option("--limit", type=click.IntRange(1), help="Convert at most so many, the first ones.",
                     show_default="all"),
        click.option("--dry-run", is_flag=True, help="Write nothing: read a few, and say what would be written."),
        click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="What a broken file, episode or picture does; skipped ones are listed, and the exit code "
                     "is 5."),
        click.option("--overwrite", is_flag=True, help="Replace a finished dataset in DEST once the new one is whole."),
        click.option("--append", is_flag=True, help="Add to the finished dataset in DEST, in new shards."),
        click.option("--verify-source", is_flag=True,
                     help="Hash the source files of what is already in DEST again, before any of it is reused."),
        click.option("--codec", help="raw, dzst, png, jpeg:Q, h264:CRF or av1:CRF.", show_default="of the kind"),
        click.option("--split", help="Name of the split.", show_default="train"),
        click.option("--name", help="Name of the dataset.", show_default="from kind and source"),
        click.option("--license", help="Licence of the data, as its source states it.", show_default="unknown"),
        click.option("--shard-size", type=Size(), help="Largest size of a shard.", show_default="256MiB"),
        click.option("--config", type=click.Path(path_type=Path), help="TOML file with options of the dataset."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Set one; options by name go before."),
        click.option("--jobs", "-j", type=int, default=cores, show_default="all cores", help="Worker processes."),
        click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                     help="ray: workers of a Ray cluster, which see SOURCE under the same path."),
        click.option("--ray-address", metavar="ADDRESS", help="Of a running Ray cluster: HOST:PORT, or auto.",
                     show_default="one on this machine"),
        json_option,
        quiet_option,
    ])  # fmt: skip


def episode_options(command: Command) -> Command:
    """What the kinds take whose fields have to be matched with features."""
    return _decorated(command, [
        click.option("--camera", multiple=True, help="Camera to keep; repeat for more.", show_default="all"),
        click.option("--image-size", type=click.IntRange(0), help="Height and width in pixels; 0: as stored.",
                     show_default="0"),
        click.option("--fit", type=click.Choice(["crop", "pad", "squash"]), show_default="squash",
                     help="How a picture that is not square gets that size."),
        click.option("--task", help="What the agent was to do, where the source does not say it.",
                     show_default="of the source"),
        click.option("--mapping", metavar="FILE", help="TOML file: which field of the source becomes which feature.",
                     show_default="guessed"),
        click.option("--write-mapping", metavar="FILE", type=click.Path(path_type=Path),
                     help="Write the mapping there, to be edited, and stop."),
    ])  # fmt: skip


def picture_options(command: Command) -> Command:
    """What every kind of pictures takes."""
    for decorator in reversed((
        click.option("--image-size", type=int, help="Pixels of the shorter side, or of both.", show_default="128"),
        click.option("--fit", type=click.Choice(["shorter", "crop", "pad", "squash", "none", "square"]),
                     show_default="shorter", help="shorter: resize, never enlarge. crop: central square. pad: whole, "
                     "black around. squash: out of proportion. none: copy the JPEG files. square: as crop."),
        click.option("--decoder", type=click.Choice(["auto", "pillow", "torchvision"]), show_default="auto",
                     help="auto: torchvision, 1.5 times as fast but slow to start, from 4 GB of pictures on."),
    )):  # fmt: skip
        command = decorator(command)
    return command


def _decorated(command: Command, decorators: list[Callable[[Command], Command]]) -> Command:
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
