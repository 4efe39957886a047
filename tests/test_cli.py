"""The command line: codes, messages, help; and the README, whose commands are run here."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import xxhash
from conftest import ROOT, jpeg, make_demonstrations, make_pictures, make_spec, run_cli, write_dataset

import vrl3data
from converters.base import find
from vrl3data import cli, config
from vrl3data.cli.common import Size, human_bytes
from vrl3data.cli.kinds import convert
from vrl3data.errors import ConfigError, Source, SourceError, did_you_mean, locate
from vrl3data.report import Console


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_what_the_readme_shows_runs(tmp_path: Path) -> None:
    """Its shell blocks, then its Python blocks, in one folder that holds the files they name."""
    make_demonstrations(tmp_path / "door-v0_demos.pickle", count=4)
    make_demonstrations(tmp_path / "more_demos.pickle", count=2)
    make_pictures(tmp_path / "imagenet" / "train")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -e\n" + "\n".join(blocks(ROOT / "README.md", "sh"))
    shell = subprocess.run(["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True,
                           text=True, timeout=290, check=False)  # fmt: skip
    assert shell.returncode == 0, shell.stderr
    assert blocks(ROOT / "README.md", "")[1].strip() in shell.stdout
    assert (tmp_path / "page.html").stat().st_size > 10_000
    python, printed = blocks(ROOT / "README.md", "python"), ""
    assert len(python) == 6
    for code in python:
        ran = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                             timeout=120, check=False)  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        printed += ran.stdout
    assert "000000003.action.npy (7, 28)" in printed
    assert "torch.Size([2, 256])" in printed
    assert "(256, 9, 84, 84) (256,) 0.99" in printed
    assert "(32, 3, 84, 84, 3) float32 True" in printed
    assert len(vrl3data.open(tmp_path / "out" / "mine")) > 1


def test_the_contributors_converter_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    import converters

    (code,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    (tmp_path / "gridmodule.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(converters.KINDS, "grid", "gridmodule:GridConverter")
    (tmp_path / "grids").mkdir()
    for number in range(3):
        np.save(tmp_path / "grids" / f"{number}.npy", np.full((4, 3), float(number)))
    (tmp_path / "grids" / "broken.npy").write_bytes(b"no")
    receipt = vrl3data.convert("grid", tmp_path / "grids", tmp_path / "out", on_error="skip")
    assert [entry["source"] for entry in receipt.skipped] == ["broken.npy"]
    assert vrl3data.open(tmp_path / "out")[2]["obs.state"][0].tolist() == [2, 2, 2]


def test_the_reference_is_that_of_the_commands() -> None:
    module = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert module is not None
    assert module.loader is not None
    made = importlib.util.module_from_spec(module)
    module.loader.exec_module(made)
    assert (ROOT / "docs" / "cli.md").read_text() == made.text(), "run `make docs`"


@pytest.mark.parametrize("kind", ["adroit", "imagenet"])
def test_every_option_of_a_kind_is_on_its_command(kind: str) -> None:
    """And the defaults that help shows are those of the dataclass."""
    parameters = {parameter.name: parameter for parameter in convert.commands[kind].params}
    for field in dataclasses.fields(find(kind).Options):
        shown = parameters[field.name]
        assert isinstance(shown, click.Option)
        if (
            isinstance(field.default, (int, str))
            and field.default not in ("", "auto")
            and field.name not in ("shard_size", "codec")
        ):
            assert str(shown.show_default) == str(field.default), field.name
    assert Size().convert("256MiB", None, None) == find(kind).Options().shard_size


def test_exit_codes_and_messages(tmp_path: Path) -> None:
    demos = make_demonstrations(tmp_path / "door.pickle")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("work")
    cases: list[tuple[list[Any], int, str]] = [
        (["info", tmp_path / "nothing"], 2, "there is no such directory"),
        (["info", demos], 2, "expected the directory of a dataset, found a file"),
        (["info", "sample:fetch"], 2, "no packaged sample 'fetch'; did you mean 'fetch-reach'"),
        (["validate", tmp_path], 2, "neither dataset.json nor data/*.tar"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["convert", demos], 2, "expected at least one SOURCE and a DEST"),
        (["convert", tmp_path / "nowhere", tmp_path / "o"], 3, "there is no such file or directory"),
        (["convert", "adroit", demos, tmp_path / "o", "--camera", "tpo"], 2, "no camera 'tpo'"),
        (["convert", "adroit", demos, tmp_path / "o", "--task", "pen"], 3, "expected the task pen, found door"),
        (["convert", "adroit", demos, tmp_path / "o", "--set", "rnder=fast"], 2, "unknown key 'rnder'; did you mean"),
        (["convert", "adroit", demos, tmp_path / "o", "--set", "fast"], 2, "expected key=value, found 'fast'"),
        (["convert", "adroit", demos, tmp_path / "o", "--config", tmp_path / "no.toml"], 2, "cannot be read"),
        (["convert", "adroit", demos, tmp_path / "o", "--shard-size", "big"], 2, "expected a size such as 256MiB"),
        (["convert", "adroit", demos, tmp_path / "thesis", "--image-size", 16], 2, "not a vrl3data dataset"),
        (["convert", "adroit", demos, "/proc/nope/out", "--image-size", 16], 2, "cannot write"),
        (["view", "sample:fetch-reach", "--html", tmp_path / "no" / "page.html"], 2, "cannot write"),
        (["view", "sample:fetch-reach", "--html", tmp_path / "thesis" / "chapter.tex"], 2, "no page of vrl3data"),
        (["card", "sample:fetch-reach"], 2, "belongs to the package"),
        (["index", "rebuild", "sample:fetch-reach"], 2, "belongs to the package"),
    ]
    for arguments, code, message in cases:
        result = run_cli(*arguments)
        assert (result.returncode, "Traceback" in result.stderr) == (code, False), (arguments, result.stderr)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""
    assert not (tmp_path / "o").exists()
    assert [item.name for item in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_damaged_dataset_is_exit_code_4(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    shutil.copytree(path, tmp_path / "lost")
    (tmp_path / "lost" / "data" / "train-000000.tar").unlink()
    result = run_cli("info", tmp_path / "lost")
    assert result.returncode == 4
    assert "the shard is missing" in result.stderr
    head = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps({**head, "requires": ["codec:av9"]}))
    result = run_cli("info", path)
    assert result.returncode == 4
    assert "requires 'codec:av9'" in result.stderr


def test_what_must_not_be_overwritten_or_rebuilt(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2)
    shard = path / "data" / "train-000000.tar"
    whole = shard.read_bytes()
    result = run_cli("view", path, "--html", shard)
    assert (result.returncode, "inside the dataset" in result.stderr) == (2, True)
    assert shard.read_bytes() == whole
    for _ in range(2):  # a page of ours may be made again
        assert run_cli("view", path, "--html", tmp_path / "page.html").returncode == 0
    other = write_dataset(tmp_path / "other", 2, make_spec(source="else"))
    shard.write_bytes((other / "data" / "train-000000.tar").read_bytes())
    index = (path / "index.parquet").read_bytes()
    result = run_cli("index", "rebuild", path)
    assert result.returncode == 4
    shard.unlink()
    result = run_cli("index", "rebuild", path)
    assert (result.returncode, "the shard is missing" in result.stderr) == (4, True)
    assert (path / "index.parquet").read_bytes() == index


def test_samples_say_what_they_hold(tmp_path: Path) -> None:
    with vrl3data.open(write_dataset(tmp_path / "set", 2)) as dataset:
        item = dataset[1]
        assert "action" in item
        assert "actions" not in item
        assert list(item) == list(item.keys()) == list(dataset.schema.names)
        assert repr(item).startswith("<sample 'episode-1' of set: obs.image.top, ")
        with pytest.raises(TypeError, match="expected a whole number below 2, found 'action'"):
            dataset["action"]
        with pytest.raises(IndexError, match="sample 2 of 2"):
            dataset[2]


def test_sigterm_is_an_interruption(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=40, length=20)
    command = [sys.executable, "-m", "vrl3data", "convert", "adroit", str(source), str(tmp_path / "out"),
               "--image-size", "64", "--jobs", "1", "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.terminate()
        process.stdout.read()
        assert "run the same command again to go on" in process.stderr.read()
    assert process.returncode == 130


def test_an_index_that_names_a_foreign_file_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write_dataset(tmp_path / "set", 2)
    table = pq.read_table(path / "index.parquet")
    column = table.column_names.index("shard")
    hostile = table.set_column(column, "shard", pa.array(["../../../etc/passwd"] * 2))
    pq.write_table(hostile, path / "index.parquet")
    assert run_cli("info", path).returncode == 0  # it does not have the manifest's hash, so the shards are asked
    told = json.loads((path / "dataset.json").read_text())
    told["index"]["xxh3_128"] = xxhash.xxh3_128_hexdigest((path / "index.parquet").read_bytes())
    (path / "dataset.json").write_text(json.dumps(told))
    result = run_cli("info", path)
    assert result.returncode == 4
    assert "which is no shard of this dataset" in result.stderr


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    (tmp_path / "run.toml").write_text('image-size = 24\nfit = "square"\nname = "from-file"\n')
    result = run_cli("convert", "--config", tmp_path / "run.toml", root, tmp_path / "out", "--set",
                     "license=cc0-1.0", "--image-size", 20, "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset[0]["image"].shape == (1, 20, 20, 3)
        assert (dataset.manifest.name, dataset.manifest.license) == ("from-file", "cc0-1.0")
    (tmp_path / "run.toml").write_text("image_size = 'a'\nimage_size = 2")
    with pytest.raises(ConfigError, match="cannot read this as TOML"):
        config.read_toml(tmp_path / "run.toml")


def test_the_receipt(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    (root / "n00000000" / "broken.JPEG").write_bytes(jpeg(30, 30)[:100])
    result = run_cli("convert", root, tmp_path / "out", "--on-error", "skip", "-j", 1)
    assert result.returncode == 5
    assert "recognised as imagenet" in result.stderr
    assert "converting 0/7 images" in result.stderr
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines() if not line.startswith(" "))
    assert {"dataset", "images", "bytes", "features", "skipped", "licence", "fingerprint", "next"} <= set(lines)
    assert lines["skipped"].strip() == "1"
    assert "n00000000/broken.JPEG: not a readable picture" in result.stdout
    shown = run_cli(*lines["next"].strip().removeprefix("vrl3data ").split(), cwd=tmp_path)
    assert shown.returncode == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "broken.JPEG" in card
    quiet = run_cli("convert", root, tmp_path / "out", "--on-error", "skip", "-j", 1, "--quiet")
    assert "was already whole" in quiet.stdout


def test_our_own_mistakes_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("vrl3data.dataset.open_dataset", lambda *_: 1 / 0)
    assert cli.run(["info", "x"]) == 70
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("VRL3DATA_DEBUG", "1")
    assert cli.run(["info", "x"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_error_places_and_suggestions() -> None:
    def fail() -> None:
        with locate(path="a", episode="outer"), locate(episode="inner", step=3):
            raise SourceError("expected x, found y")

    with pytest.raises(SourceError, match=r"expected x, found y \(path a, episode inner, step 3\)") as caught:
        fail()
    assert caught.value.source == Source(path="a", episode="inner", step=3)
    assert did_you_mean("tpo", ["top", "left"]) == "; did you mean 'top'?"
    assert did_you_mean("zzz", ["top", "left"]) == "; there are: left, top"
    assert did_you_mean("zzz", []) == ""


def test_progress_and_sizes(capsys: Any) -> None:
    console = Console(events=sys.stdout)
    with console.progress("working", 3, "things") as advance:
        advance(3)
    console.event("confirmed", samples=[1])
    console.warn("careful")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"event": "confirmed", "samples": [1]}
    assert "working 0/3 things" in err
    assert "working 3/3 things" in err
    assert "warning: careful" in err
    quiet = Console(quiet=True)
    with quiet.progress("working", 3, "things") as advance:
        advance(3)
    quiet.note("nothing")
    assert capsys.readouterr().err == ""
    assert [human_bytes(n) for n in (999, 1500, 2.5e9, 3e12)] == ["999 B", "1.5 kB", "2.5 GB", "3.0 TB"]
    assert [Size().convert(text, None, None) for text in ("1kB", "2MiB", "10")] == [1000, 2 * 1024**2, 10]
