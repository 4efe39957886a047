"""`probe`: what an encoder is worth on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import console, json_option, print_json, quiet_option, rows
from vrl3data.errors import ConfigError

TITLES = {"encoder": "encoder", "random": "random init", "pixels": "pixel PCA(32)"}


@click.command()
@click.argument("encoder")
@click.option("--data", required=True, help="Dataset of episodes, or of labelled images.")
@click.option("--camera", help="Camera of the episodes.", show_default="that of the training, or the only one")
@click.option("--hold-out", type=float, show_default="the episodes held out in training, or 0.2",
              help="Share of the episodes to score on: every fifth.")  # fmt: skip
@click.option("--fold", type=int, default=0, show_default=True, help="Number of the first held-out episode.")
@click.option("--val", help="Dataset of episodes to score on, in place of --hold-out.")
@click.option("--state", multiple=True, metavar="FEATURE:I,J", help="Dimensions of a state to read out; repeatable.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the held-out latents, coloured by time, as PNG.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random initialisation beside it.")
@json_option
@quiet_option
def probe(
    encoder: str, data: str, hold_out: float | None, fold: int, val: str | None, state: tuple[str, ...],
    as_json: bool, quiet: bool, **config: Any,
) -> None:  # fmt: skip
    """Score a frozen encoder (a directory, or packaged:NAME), beside random initialisation and pixels.

    Episodes, on held-out ones: pair, the rank correlation of latent distance with distance in time; goal, that of the
    distance to the last frame with the time to it; R2 of linear read-outs of action and state. Labelled images: top-1
    of a linear classifier and of nearest neighbours, from the split train to val.

    Example: vrl3data probe encoders/door --data out/door --picture latents.png
    """
    from pretrain.frames import HeldOut
    from pretrain.probes import ProbeConfig
    from pretrain.probes import probe as probe_encoder
    from vrl3data import storage
    from vrl3data.encoders.encoder import Encoder

    if config["picture"] is not None:
        storage.check_target(config["picture"])
    held_out = None if hold_out is None and val is None and not fold else HeldOut(
        0.2 if hold_out is None else hold_out, fold, val=val
    )  # fmt: skip
    settings = ProbeConfig(held_out=held_out, state=dict(_dimensions(text) for text in state), **config)
    found = probe_encoder(Encoder.from_pretrained(encoder), data, settings, console(quiet=quiet))
    if as_json:
        print_json({"encoder": encoder, **found})
        return
    names = list(found["scores"]["encoder"])
    lines = [("", "  ".join(f"{title:>13}" for title in TITLES.values()))]
    lines += [(name, "  ".join(f"{found['scores'][kind][name]:>13.3f}" for kind in TITLES)) for name in names]
    click.echo(rows(lines))


def _dimensions(text: str) -> tuple[str, tuple[int, ...]]:
    """`obs.state:0,1` -> ("obs.state", (0, 1))."""
    name, _, numbers = text.partition(":")
    try:
        return name, tuple(int(number) for number in numbers.split(","))
    except ValueError as error:
        raise ConfigError(f"--state: expected FEATURE:I,J such as obs.state:0,1, found {text!r}") from error
