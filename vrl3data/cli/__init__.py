"""The command line. The only place where errors become exit codes; commands are imported when they are called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from vrl3data import __version__
from vrl3data.errors import EXIT_INTERRUPTED, Vrl3dataError

COMMANDS = {
    "convert": ("vrl3data.cli.kinds:convert", "Turn demonstrations or images into a dataset."),
    "export": ("vrl3data.cli.export:export", "Write a dataset in the layout of another tool."),
    "inspect-log": ("vrl3data.cli.inspect_log:inspect_log", "Say what is in robot logs (MCAP, ROS bags)."),
    "sources": ("vrl3data.cli.sources:sources", "List the kinds of sources that convert reads."),
    "check-converter": ("vrl3data.cli.check:check_converter", "Check a converter of your own on a small source."),
    "record": ("vrl3data.cli.record:record", "Record episodes of a live environment into a dataset."),
    "demo": ("vrl3data.cli.demo:demo", "The whole path on a small task: demonstrations, encoder, policy."),
    "pretrain-encoder": ("vrl3data.cli.pretrain:pretrain_encoder", "Train an encoder on a dataset (stage 1)."),
    "inflate": ("vrl3data.cli.pretrain:inflate", "Make an encoder of stacked frames from one of single images."),
    "train": ("vrl3data.cli.train:train", "Train a policy on demonstrations and online (stages 2 and 3)."),
    "evaluate": ("vrl3data.cli.train:evaluate", "Success of a policy over fixed episodes, with a film."),
    "rollout": ("vrl3data.cli.train:rollout", "Record episodes of a policy into a dataset."),
    "push": ("vrl3data.cli.publish:push", "Bring a dataset, encoder or policy to a folder or the Hugging Face Hub."),
    "pull": ("vrl3data.cli.publish:pull", "Fetch a dataset, encoder or policy, checked, into a folder."),
    "probe": ("vrl3data.cli.probe:probe", "What an encoder knows: classes, time, actions, states."),
    "info": ("vrl3data.cli.inspect:info", "Say what is in a dataset."),
    "validate": ("vrl3data.cli.validate:validate", "Check a dataset: every byte, and its content."),
    "view": ("vrl3data.cli.inspect:view", "Make an offline HTML page of a dataset."),
    "card": ("vrl3data.cli.inspect:card", "Write README.md, the card of a dataset."),
    "stats": ("vrl3data.cli.tools:stats", "Compute the statistics of a dataset from its data."),
    "merge": ("vrl3data.cli.tools:merge", "Make one dataset of several."),
    "split": ("vrl3data.cli.tools:split", "Put samples into splits, by chance or by a column."),
    "filter": ("vrl3data.cli.tools:select", "Keep the samples that fulfil an expression."),
    "recode": ("vrl3data.cli.tools:recode", "Store pictures with another codec."),
    "rename-feature": ("vrl3data.cli.tools:rename", "Give features other names."),
    "rerender": ("vrl3data.cli.tools:rerender", "Draw pictures anew from stored simulator states."),
    "compact": ("vrl3data.cli.tools:compact", "Write samples into full shards."),
    "repair": ("vrl3data.cli.tools:repair", "Save the whole samples of a damaged dataset."),
    "index": ("vrl3data.cli.inspect:index", "Rebuild the index of a dataset."),
}
EXIT_INTERNAL = 70
EPILOG = (
    "Exit codes: 0 done, 1 findings, 2 wrong use, 3 broken source, 4 damaged dataset, 5 done with skips, "
    "70 our own mistake, 130 interrupted (Ctrl-C or SIGTERM)."
)


class LazyGroup(click.Group):
    """Lists commands from a table without importing them."""

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, attribute = self.table[name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in self.table.items()])


@click.group(cls=LazyGroup, table=COMMANDS, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vrl3data")
def cli() -> None:
    """Datasets for visual reinforcement learning: one sharded, checksummed episode format."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code (README.md)."""
    import signal
    import threading

    from vrl3data.guard import check_neighbours

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a person's Ctrl-C
    try:
        check_neighbours()
        code = cli.main(arguments, prog_name="vrl3data", standalone_mode=False)
    except Vrl3dataError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was confirmed is safe, run the same command again to go on", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone, and Python would complain at exit
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person gets a sentence, not a traceback
        return _internal(error)
    return int(code or 0)


def _internal(error: Exception) -> int:
    import os
    import traceback

    if os.environ.get("VRL3DATA_DEBUG"):
        traceback.print_exc()
    click.echo(
        f"internal error: {type(error).__name__}: {error}; this is our mistake, please report it "
        "(VRL3DATA_DEBUG=1 shows the traceback)",
        err=True,
    )
    return EXIT_INTERNAL
