"""`pretrain-encoder` and `inflate`: stage 1 on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import console, json_option, print_json, quiet_option, rows


@click.group("pretrain-encoder")
def pretrain_encoder() -> None:
    """Train an encoder on a dataset (stage 1).

    Example: vrl3data pretrain-encoder supervised --data out/imagenet --out encoders/mine
    """


@pretrain_encoder.command()
@click.option("--data", required=True, help="Dataset of labelled images.")
@click.option("--val", help="Dataset to score on.", show_default="the split val of --data, if there is one")
@click.option("--split", help="Split of --data to train on.", show_default="train")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the encoder goes.")
@click.option("--encoder", default="resnet6_32channel", show_default=True, help="Architecture.")
@click.option("--recipe", type=click.Choice(["fast", "vrl3"]), default="fast", show_default=True,
              help="fast: for minutes on two cores. vrl3: the released code's.")  # fmt: skip
@click.option("--epochs", type=int, default=0, show_default="180 (fast), 90 (vrl3)")
@click.option("--batch-size", type=int, default=0, show_default="64 (fast), 256 (vrl3)")
@click.option("--image-size", type=int, default=84, show_default=True)
@click.option("--lr", type=float, default=0.1, show_default=True)
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@quiet_option
def supervised(
    data: str, val: str | None, split: str | None, out: Path, as_json: bool, quiet: bool, **config: Any
) -> None:
    """Classify images, as VRL3's stage 1 does. Running it again goes on where it stopped."""
    from pretrain.train import PretrainConfig, pretrain_supervised

    reporter = console(quiet=quiet)
    encoder, scores = pretrain_supervised(data, out, PretrainConfig(**config), val=val, split=split, reporter=reporter)
    facts = {"encoder": str(out), "arch": encoder.spec.arch, "feature_dim": encoder.feature_dim, **scores}
    if as_json:
        print_json(facts)
    else:
        click.echo(rows([(name, str(value)) for name, value in facts.items()]))


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--frames", type=int, default=3, show_default=True, help="Frames in a stack.")
@click.option("--cameras", type=int, default=1, show_default=True, help="Cameras in a frame.")
def inflate(source: Path, dest: Path, frames: int, cameras: int) -> None:
    """Make an encoder of stacked frames from one of single images.

    Example: vrl3data inflate encoders/mine encoders/mine-3 --frames 3
    """
    from pretrain.inflate import inflate as inflate_encoder
    from vrl3data.encoders.encoder import Encoder

    made = inflate_encoder(Encoder.from_pretrained(source), frames, cameras)
    click.echo(f"{made.save_pretrained(dest)}: {made.spec.arch}, {made.spec.in_channels} channels")
