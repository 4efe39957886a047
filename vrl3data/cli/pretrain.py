"""`pretrain-encoder` and `inflate`: stage 1 on the command line. Training again goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vrl3data.cli.common import Command, console, json_option, print_json, quiet_option, rows

if TYPE_CHECKING:
    from vrl3data.encoders.encoder import Encoder


@click.group("pretrain-encoder")
def pretrain_encoder() -> None:
    """Train an encoder on a dataset (stage 1).

    Example: vrl3data pretrain-encoder supervised --data out/imagenet --out encoders/mine

    Example: vrl3data pretrain-encoder hilp --data out/door --out encoders/door
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
@click.option("--stream/--in-memory", "stream", default=None, show_default="whichever fits",
              help="Decode images as they are needed, or all of them first.")  # fmt: skip
@json_option
@quiet_option
def supervised(
    data: str,
    val: str | None,
    split: str | None,
    out: Path,
    stream: bool | None,
    as_json: bool,
    quiet: bool,
    **config: Any,
) -> None:
    """Classify images, as VRL3's stage 1 does. Running it again goes on where it stopped."""
    from pretrain.train import PretrainConfig, pretrain_supervised

    reporter = console(quiet=quiet)
    encoder, scores = pretrain_supervised(
        data, out, PretrainConfig(**config), val=val, split=split, stream=stream, reporter=reporter
    )
    _say(out, encoder, scores, as_json)


def self_supervised_options(command: Command) -> Command:
    """The options that `hilp` and `mae` share."""
    options = [
        click.option("--data", required=True, help="Dataset to train on."),
        click.option("--val", help="Dataset to score on, in place of --hold-out."),
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the encoder goes."),
        click.option("--init", help="Encoder to start from: a directory, or packaged:NAME."),
        click.option("--camera", help="Camera of the episodes.", show_default="the only one"),
        click.option("--hold-out", type=float, default=0.2, show_default=True,
                     help="Share of the episodes to score on: every fifth; 0 keeps none."),
        click.option("--fold", type=int, default=0, show_default=True, help="Number of the first held-out episode."),
        click.option("--image-size", type=int, default=0, show_default="84, or that of --init"),
        click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto", show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
        json_option,
        quiet_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@pretrain_encoder.command()
@self_supervised_options
@click.option("--encoder", default="", show_default="resnet6_32channel", help="Architecture.")
@click.option("--recipe", type=click.Choice(["fast", "published"]), default="fast", show_default=True,
              help="fast: for minutes on two cores. published: the paper's sampling, networks and rates.")  # fmt: skip
@click.option("--steps", type=int, default=0, show_default="900 (fast), 500000 (published)")
@click.option("--batch-size", type=int, default=0, show_default="64 (fast), 256 (published)")
@click.option("--lr", type=float, default=0.0, show_default="0.002 (fast), 0.0003 (published)")
def hilp(
    data: str, val: str | None, out: Path, recipe: str, as_json: bool, quiet: bool, **config: Any
) -> None:  # fmt: skip
    """Learn distances in time from episodes (HILP). Uses no actions.

    Example: vrl3data pretrain-encoder hilp --data out/door --out encoders/door
    """
    from pretrain.objectives.hilp import PUBLISHED, HilpConfig
    from pretrain.train import SelfSupervisedConfig, pretrain_hilp

    settings = PUBLISHED if recipe == "published" else HilpConfig()
    reporter = console(quiet=quiet)
    encoder, scores = pretrain_hilp(data, out, SelfSupervisedConfig(**config), settings, val=val, reporter=reporter)
    _say(out, encoder, scores, as_json)


@pretrain_encoder.command()
@self_supervised_options
@click.option("--encoder", default="", show_default="vit-micro12", help="Architecture, a vision transformer.")
@click.option("--mask-ratio", type=float, default=0.75, show_default=True, help="Share of the patches that is hidden.")
@click.option("--norm-pix", is_flag=True, help="Standardise each patch that is to be predicted.")
@click.option("--steps", type=int, default=0, show_default="2000")
@click.option("--batch-size", type=int, default=0, show_default="64")
@click.option("--lr", type=float, default=0.0, show_default="0.0015")
def mae(
    data: str, val: str | None, out: Path, mask_ratio: float, norm_pix: bool, as_json: bool, quiet: bool, **config: Any
) -> None:  # fmt: skip
    """Draw hidden patches from visible ones (MAE), of frames or of pictures.

    Example: vrl3data pretrain-encoder mae --data out/door --out encoders/door-mae
    """
    from pretrain.train import MaeOptions, SelfSupervisedConfig, pretrain_mae

    reporter, options = console(quiet=quiet), MaeOptions(mask_ratio, norm_pix)
    encoder, scores = pretrain_mae(data, out, SelfSupervisedConfig(**config), options, val=val, reporter=reporter)
    _say(out, encoder, scores, as_json)


def _say(out: Path, encoder: Encoder, scores: dict[str, float], as_json: bool) -> None:
    facts = {"encoder": str(out), "arch": encoder.spec.arch, "feature_dim": encoder.feature_dim, **scores}
    if as_json:
        print_json(facts)
    else:
        plain = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in facts.items()}
        click.echo(rows(list(plain.items())))


@click.command()
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--frames", type=int, default=3, show_default=True, help="Frames in a stack.")
@click.option("--cameras", type=int, default=1, show_default=True, help="Cameras in a frame.")
def inflate(source: str, dest: Path, frames: int, cameras: int) -> None:
    """Make an encoder of stacked frames from one of single images (a directory, or packaged:NAME).

    Example: vrl3data inflate encoders/mine encoders/mine-3 --frames 3
    """
    from pretrain.inflate import inflate as inflate_encoder
    from vrl3data.encoders.encoder import Encoder

    made = inflate_encoder(Encoder.from_pretrained(source), frames, cameras)
    click.echo(f"{made.save_pretrained(dest)}: {made.spec.arch}, {made.spec.in_channels} channels")
