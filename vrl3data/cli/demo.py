"""`demo`: the whole path on fetch-reach, with a table and a page at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vrl3data.cli.common import console, json_option, print_json, quiet_option, rows

if TYPE_CHECKING:
    from vrl3data.rl.demo import DemoOptions, DemoResult

CURVES = {
    "bc": "behaviour cloning (mean squared error)", "critic_loss": "critic (squared error of both heads)",
    "cql": "conservative penalty", "q": "Q of the data", "episode_success": "success of online episodes",
}  # fmt: skip


@click.command()
@click.argument("dest", type=click.Path(path_type=Path), default=Path("demo"))
@click.option(
    "--stage1", default="packaged", show_default=True, help="packaged, hilp, none, or an encoder's directory."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--demonstrations", type=click.IntRange(1), default=100, show_default=True, help="Episodes to record.")
@click.option("--goals", type=click.IntRange(1), default=100, show_default=True, help="Fixed goals of each evaluation.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of the preset `short`.")
@json_option
@quiet_option
def demo(dest: Path, settings: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Record demonstrations of fetch-reach into DEST and take an encoder through stages 2 and 3 to a policy.

    Prints success over fixed goals: a random policy, stage 2 from a random encoder, stage 2 from the stage-1 encoder
    with the same budget, and after stage 3. Leaves dataset, encoder, policy, film and a page. Running it again goes on.
    """
    from vrl3data.cli.train import pairs
    from vrl3data.rl.demo import DemoOptions
    from vrl3data.rl.demo import demo as run

    started = time.monotonic()
    chosen = DemoOptions(**options, settings=pairs(settings))
    result = run(dest, chosen, console(quiet=quiet))
    page = _page(result, chosen, dest / "demo.html")
    took = time.monotonic() - started
    if as_json:
        print_json(_facts(result, page, took))
        return
    click.echo(_table(result))
    kept = [("dataset", result.dataset), ("encoder", result.encoder or "none (random)"), ("policy", result.policy),
            ("film", result.film), ("page", page), ("took", f"{took:.0f} s")]  # fmt: skip
    click.echo("\n" + rows([(name, str(value)) for name, value in kept]))


def _table(result: DemoResult) -> str:
    lines = [f"{'':<28}  success at the last step  time"]
    for name, score, seconds in result.table:
        share = f"{score['success']:.2f} ({score['success_low']:.2f} to {score['success_high']:.2f})"
        lines.append(f"{name:<28}  {share:<24}  {seconds:.0f} s")
    lines.append(f"{'demonstrations':<28}  {'':<24}  {result.seconds['demonstrations']:.0f} s")
    return "\n".join(lines)


def _facts(result: DemoResult, page: Path, took: float) -> dict[str, Any]:
    return {
        "scores": {name: score for name, score, _ in result.table}, "seconds": dict(result.seconds), "took": took,
        "dataset": str(result.dataset), "encoder": str(result.encoder or ""), "policy": str(result.policy),
        "film": str(result.film), "page": str(page),
    }  # fmt: skip


def _page(result: DemoResult, options: DemoOptions, path: Path) -> Path:
    from cards.html.run_page import Bar, RunPage, curves, write_run_page
    from vrl3data.metrics import read_metrics

    bars = [Bar(name, s["success"], s["success_low"], s["success_high"]) for name, s, _ in result.table]
    page = RunPage(
        title="From demonstrations to a policy: fetch-reach",
        summary=f"A simulated Fetch arm learns to reach a red ball from {options.demonstrations} scripted "
        f"demonstrations of {options.steps} steps, from pictures of 84 x 84 pixels and the gripper's position. "
        f"Seed {options.seed}.",
        bars=bars,
        measure=f"Share of {options.goals} fixed goals within 5 cm at the last step, mean actions; the line is the "
        "95 % Wilson interval over goals. The last policy is scored, not the best one.",
        film=result.film.read_bytes(),
        film_text="The final policy on the first eight goals. A green frame marks success.",
        curves={name: curves(read_metrics(run), CURVES) for name, run in result.runs.items()},
        times=[(name, f"{seconds:.1f}") for name, seconds in result.seconds.items()],
        facts=[("dataset", str(result.dataset.name)), ("encoder", options.stage1), ("policy", result.policy.name)],
    )  # fmt: skip
    return write_run_page(page, path)
