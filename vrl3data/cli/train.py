"""`train`, `evaluate` and `rollout`: stages 2 and 3 on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vrl3data.cli.common import console, json_option, print_json, quiet_option, rows


@click.group()
def train() -> None:
    """Train a policy (stages 2 and 3).

    Example: vrl3data train vrl3 --data out/door --encoder packaged:resnet6_32channel-imagenette --env adroit-door
    --out runs/door
    """


@train.command()
@click.option("--data", help="Dataset of demonstrations; not needed for --stage 3.")
@click.option("--encoder", default="none", show_default=True,
              help="Directory, packaged:NAME, random:ARCHITECTURE, or none (sensors only).")  # fmt: skip
@click.option("--env", "env_name", required=True, help="fetch-reach, adroit-door, -hammer, -pen or -relocate.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the run goes.")
@click.option("--stage", type=click.Choice(["2", "3", "both"]), default="both", show_default=True)
@click.option("--preset", default="paper", show_default=True, help="paper, released, bc or short.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Such as stage2.updates=1000.")
@click.option("--explain", is_flag=True, help="Print what the preset sets and where it comes from, and stop.")
@click.option("--split", help="Split of --data.", show_default="all episodes")
@click.option("--storage", default="ram", show_default=True, help="Where frames are: ram, mmap, or cuda.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--image-size", type=click.IntRange(16, 1024), default=84, show_default=True)
@click.option(
    "--max-steps", type=click.IntRange(0), default=0, help="Frames of an episode.", show_default="the environment's"
)
@click.option("--env-set", multiple=True, metavar="KEY=VALUE", help="Of the environment, such as rewards=gymnasium.")
@click.option(
    "--episodes", type=click.IntRange(0), default=25, show_default=True, help="Of each evaluation; 0 for none."
)
@click.option("--evaluate-every", type=click.IntRange(1), default=50_000, show_default=True, help="Frames of stage 3.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
@quiet_option
def vrl3(data: str | None, env_name: str, out: Path, preset: str, explain: bool, as_json: bool, quiet: bool,
         **options: Any) -> None:  # fmt: skip
    """VRL3: offline actor-critic on demonstrations, then online. Running it again goes on where it stopped."""
    from vrl3data.rl.config import explain as explained
    from vrl3data.rl.config import preset as find_preset
    from vrl3data.rl.play import EnvSpec
    from vrl3data.rl.train import TrainOptions
    from vrl3data.rl.train import train as run

    config = find_preset(preset, pairs(options.pop("settings")))
    table = explained(config)
    if explain:
        click.echo(rows([(name, f"{value:<10} {source}") for name, value, source in table]))
        return
    reporter = console(quiet=quiet)
    for name, value, source in table:
        reporter.note(f"{name} = {value} ({source})")
    env = EnvSpec(env_name, options.pop("image_size"), options.pop("max_steps"), config.action_repeat,
                  pairs(options.pop("env_set")))  # fmt: skip
    result = run(data, env, out, config, TrainOptions(**options), reporter)
    facts = {"policy": str(result.policy), "scores": result.scores, "seconds": result.seconds}
    if as_json:
        print_json(facts)
        return
    lines = [("policy", str(result.policy))]
    lines += [(name, _score(score)) for name, score in result.scores.items() if score]
    click.echo(rows(lines))


@click.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.option("--episodes", type=int, default=100, show_default=True)
@click.option(
    "--first-seed", type=click.IntRange(0), default=500_000, show_default=True, help="Reset seed of the first episode."
)
@click.option("--film", type=click.Path(path_type=Path), help="Film of the first eight episodes (.gif, .webp, .png).")
@json_option
@quiet_option
def evaluate(policy: Path, episodes: int, first_seed: int, film: Path | None, as_json: bool, quiet: bool) -> None:
    """Success of a policy at the last step, over episodes with fixed seeds and mean actions.

    Example: vrl3data evaluate runs/door/stage3 --episodes 100 --film door.gif
    """
    from vrl3data.rl.evaluation import evaluate as run
    from vrl3data.rl.policy import Policy

    loaded = Policy.from_pretrained(policy)
    found = run(loaded, episodes, first_seed=first_seed, film=film, reporter=console(quiet=quiet))
    facts = {"policy": str(policy), "env": loaded.spec.env, "first_seed": first_seed, **found.facts()}
    if as_json:
        print_json(facts)
        return
    lines = [("policy", str(policy)), ("environment", loaded.spec.env), ("success", _score(found.facts()))]
    click.echo(rows(lines + ([("film", str(film))] if film else [])))


@click.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--episodes", type=int, default=20, show_default=True)
@click.option("--first-seed", type=click.IntRange(0), default=300_000_000, show_default=True,
              help="Reset seed of the first episode.")  # fmt: skip
@click.option("--codec", default="raw", show_default=True, help="raw, dzst, png, jpeg:Q, h264:CRF or av1:CRF.")
@click.option("--split", default="train", show_default=True)
@click.option("--name", default="", help="Name of the dataset.", show_default="from the environment")
@click.option("--license", default="unknown", show_default=True)
@json_option
@quiet_option
def rollout(policy: Path, dest: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Record episodes of a policy into the dataset DEST.

    Running it again goes on after an interruption. Example: vrl3data rollout runs/door/stage3 out/door-policy
    """
    from vrl3data import app
    from vrl3data.rl.policy import Policy
    from vrl3data.rl.rollout import RolloutOptions
    from vrl3data.rl.rollout import rollout as record

    found = record(Policy.from_pretrained(policy), dest, RolloutOptions(**options), console(as_json, quiet))
    app.write_card(dest)
    facts = {"path": str(dest), "samples": found.samples, "steps": found.steps, "fingerprint": found.fingerprint}
    if as_json:
        print_json({"event": "receipt", **facts})
    else:
        click.echo(rows([(name, str(value)) for name, value in facts.items()]))


def _score(score: dict[str, Any]) -> str:
    return (
        f"{score['success']:.2f} at the last step (95 %: {score['success_low']:.2f} to {score['success_high']:.2f}), "
        f"{score['success_any']:.2f} at any, {score['episodes']} episodes, return {score['return']:.2f}"
    )


def pairs(settings: tuple[str, ...]) -> dict[str, Any]:
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"expected KEY=VALUE, found {setting!r}")
        pairs[key] = value
    return pairs
