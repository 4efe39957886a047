"""Exports: what every kind promises, targets that are whole or not there, splits, URLs, the command."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import make_episode, make_spec, run_cli
from range_server import serving
from things import tree

import vrl3data
from converters import KINDS
from converters.export import EXPORTS, base
from converters.export.base import NEW, export, find, selected
from vrl3data import cli, codecs
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, DestinationError
from vrl3data.report import Reporter, Silent
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer

BACK = {"lerobot": "lerobot", "robomimic": "robomimic", "minari": "minari"}
"""Exports that a converter of ours reads."""
NAME = "made-up-v0"
"""Of a target: Minari takes no other names."""
SHOWN = {"frames": {"obs.image.top"}}
"""Features that an export holds in a way that no converter of ours gives back as the same feature."""


@dataclass(frozen=True)
class ToyOptions:
    word: str = field(default="hello", metadata={"help": "To be written."})
    often: int = 1
    factor: float = 0.5
    loud: bool = False
    mood: Literal["glad", "sad"] = "glad"
    part: tuple[str, ...] = field(default=(), metadata={"shown": "none"})
    fails: str = ""


class ToyExporter:
    """A file with the names of the episodes."""

    Options = ToyOptions

    def __init__(self, dataset: Dataset, options: ToyOptions) -> None:
        if dataset.schema.kind != "episodes":
            raise ConfigError("toy: expected episodes, found images")
        self.dataset, self.options = dataset, options

    def dropped(self) -> tuple[str, ...]:
        return tuple(f"{name}: not in a toy" for name in self.dataset.schema.names)

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        dest.mkdir()
        (dest / "names.json").write_text(json.dumps([item.name for item in self.dataset]))
        (dest / "first.npy").write_bytes(self.dataset[0]["action"].tobytes())
        if self.options.fails == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.options.fails == "stopped":
            raise KeyboardInterrupt
        if self.options.fails == "overtaken":
            dest.with_name(dest.name.removesuffix(NEW)).write_text("somebody else's")
        return (f"{self.options.word} {self.options.part}",)


class LargeExporter(ToyExporter):
    """One that knows that it is too large."""

    def estimate(self) -> int:
        return 2**62


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORTS, "toy", "test_export:ToyExporter")
    monkeypatch.setitem(EXPORTS, "large", "test_export:LargeExporter")


REAL = sorted(EXPORTS)


def rich(path: Path) -> Path:
    """A dataset with two splits, success, tasks and what most layouts have no place for."""
    with Writer(path, make_spec()) as writer:
        for number in range(5):
            split = "train" if number < 3 else "val"
            facts = {"task": f"task {number % 2}", "success": number % 2, "terminated": 1, "truncated": 0}
            writer.write(make_episode(number, 4 + number % 3, split=split, source_meta={"who": "me"}, **facts))
    return path


def images(path: Path) -> Path:
    feature = codecs.describe(Feature("image", "uint8", (-1, -1, 3), "episode", color="rgb"), "jpeg:95")
    label = Feature("cls", "int64", (), "episode", codec="text", names=("a", "b"))
    with Writer(path, make_spec(Schema("images", (feature, label)))) as writer:
        for number in range(3):
            pixels_HWC = np.full((10 + number, 12, 3), 40 * number, np.uint8)
            values: dict[str, Any] = {"image": pixels_HWC[None], "cls": np.array([number % 2])}
            writer.write(Episode(f"p{number}", values, label=number % 2, class_name="ab"[number % 2]))
    return path


def beside(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


# -- every kind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REAL)
def test_the_same_dataset_makes_the_same_bytes_and_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    before = tree(source)
    one, two = tmp_path / "one" / NAME, tmp_path / "two" / NAME
    for dest in (one, two):
        receipt = vrl3data.export(kind, source, dest)
        assert (receipt.path, receipt.kind, receipt.samples) == (dest, kind, 5)
        assert receipt.bytes == sum(len(data) for data in contents(dest).values())
        assert beside(dest) == [NAME]
    assert contents(one) == contents(two)
    assert tree(source) == before


def contents(path: Path) -> dict[str, bytes]:
    return tree(path) if path.is_dir() else {"": path.read_bytes()}


@pytest.mark.parametrize("kind", REAL)
def test_what_is_not_exported_is_listed(kind: str, tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    receipt = vrl3data.export(kind, source, tmp_path / NAME)
    listed = {line.partition(":")[0] for line in receipt.dropped}
    with vrl3data.open(source) as dataset:
        missing = set(dataset.schema.names) - listed - SHOWN.get(kind, set())
        if kind in BACK:
            assert BACK[kind] in KINDS
            vrl3data.convert(BACK[kind], tmp_path / NAME, tmp_path / "back")
            with vrl3data.open(tmp_path / "back") as back:
                missing -= {name for name in missing if _holds(back[0], dataset[0][name])}
        assert not missing, f"neither exported nor listed: {sorted(missing)}"


def _holds(item: Any, rows: np.ndarray) -> bool:
    """Whether some feature has these rows, or their first T, as far as float32 and lossy pictures go."""
    for name in item.keys():  # noqa: SIM118 - iterating a sample gives names, but it is no dict
        there = np.asarray(item[name], np.float64)
        count = min(len(there), len(rows))
        wanted = np.asarray(rows[:count], np.float64)
        if abs(len(there) - len(rows)) > 1 or there[:count].size != wanted.size:
            continue
        far = abs(there[:count].reshape(wanted.shape) - wanted)
        if far.max(initial=0) <= 1e-5 * max(1, abs(wanted).max(initial=0)):
            return True
        if wanted.ndim == 4 and (far**2).mean() < 65:  # 30 dB
            return True
    return False


@pytest.mark.parametrize("kind", REAL)
def test_a_target_that_is_there_is_left_alone(kind: str, tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(DestinationError, match="there is something already"):
        vrl3data.export(kind, source, tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine": b"mine"}
    assert beside(source) == ["out", "set"]


@pytest.mark.parametrize("kind", REAL)
def test_images_are_exported_or_refused(kind: str, tmp_path: Path) -> None:
    source = images(tmp_path / "set")
    if kind == "frames":
        assert vrl3data.export(kind, source, tmp_path / "out").samples == 3
        return
    with pytest.raises(ConfigError, match="image"):
        vrl3data.export(kind, source, tmp_path / "out")
    assert beside(source) == ["set"]


@pytest.mark.parametrize("kind", REAL)
def test_one_split_alone(kind: str, tmp_path: Path) -> None:
    receipt = vrl3data.export(kind, rich(tmp_path / "set"), tmp_path / NAME, splits=["val"])
    assert (receipt.samples, receipt.steps) == (2, 9)


def test_every_kind_says_what_it_writes() -> None:
    for kind in REAL:
        exporter = find(kind)
        for option in fields(exporter.Options):
            assert option.metadata.get("help", "").endswith("."), f"{kind}: {option.name} has no help"
        assert (exporter.__doc__ or "").strip().partition("\n")[0].endswith("."), kind
        assert hash(exporter.Options()) == hash(exporter.Options()), "Options is a frozen dataclass"


# -- the target ------------------------------------------------------------------------------------------------


def toy(source: Path, dest: Path, **options: Any) -> Any:
    return vrl3data.export("toy", source, dest, options)


@pytest.mark.parametrize(("fails", "error"), [("full", DestinationError), ("stopped", KeyboardInterrupt)])
def test_what_fails_leaves_nothing(fails: str, error: type[BaseException], tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with pytest.raises(error):
        toy(source, tmp_path / "out", fails=fails)
    assert beside(source) == ["set"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"cannot write: the disk is full \(path .*out\)"):
        toy(rich(tmp_path / "set"), tmp_path / "out", fails="full")


def test_what_a_killed_export_left_is_replaced(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    left = tmp_path / f"out{NEW}"
    left.mkdir()
    (left / "half").write_text("half")
    toy(source, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["first.npy", "names.json"]
    (tmp_path / f"file{NEW}").write_text("half")
    toy(source, tmp_path / "file")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("mine")
    (tmp_path / f"link{NEW}").symlink_to(tmp_path / "kept")
    toy(source, tmp_path / "link")
    assert contents(tmp_path / "kept") == {"mine": b"mine"}


def test_another_process_may_be_faster(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with pytest.raises(DestinationError, match="another process wrote it meanwhile"):
        toy(source, tmp_path / "out", fails="overtaken")
    assert (tmp_path / "out").read_text() == "somebody else's"
    assert beside(source) == ["out", "set"]


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with pytest.raises(DestinationError, match="would lie inside the dataset"):
        toy(source, source / "data" / "out")
    with pytest.raises(DestinationError, match="there is something already"):
        toy(source, source)
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DestinationError, match="there is something already"):
        toy(source, tmp_path / "dead")
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot write: a part of the path is not a directory|a file is in the"):
        toy(source, tmp_path / "file" / "out")
    toy(source, tmp_path / "deep" / "er" / "out")
    assert (tmp_path / "deep" / "er" / "out").is_dir()


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = rich(tmp_path / "set")
    with pytest.raises(DestinationError, match=rf"the export takes about {2**62} bytes, and \d+ are free"):
        vrl3data.export("large", source, tmp_path / "out")
    assert beside(source) == ["set"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(base.shutil, "disk_usage", lambda _: usage._replace(free=10))
    heard = Listener()
    vrl3data.export("toy", source, tmp_path / "out", reporter=heard)
    assert "10 are free where the export goes" in heard.warnings[0]


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_what_is_dropped_is_said_before_it_is_written(tmp_path: Path) -> None:
    heard = Listener()
    receipt = vrl3data.export("toy", rich(tmp_path / "set"), tmp_path / "out", {"word": "bye"}, reporter=heard)
    assert heard.notes[0] == "not in the export: obs.image.top: not in a toy"
    assert receipt.notes == ("bye ()",)


# -- what is exported --------------------------------------------------------------------------------------------


def test_splits_of_a_dataset(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with vrl3data.open(source) as dataset:
        assert selected(dataset, ()) is dataset
        with selected(dataset, ["val"]) as chosen:
            assert [item.name for item in chosen] == ["episode-3", "episode-4"]
            assert (len(chosen), chosen.manifest.steps, chosen.split("val")) == (2, 9, [0, 1])
            for item, whole in zip(chosen, [dataset[3], dataset[4]], strict=True):
                assert all(np.array_equal(item[name], whole[name]) for name in item)
            assert chosen[0].meta == dataset[3].meta
        with pytest.raises(ConfigError, match=r"no split 'test'; did you mean 'train'\?|no split 'test'; there are"):
            selected(dataset, ["test"])


def test_a_dataset_behind_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    source = rich(tmp_path / "web" / "set")
    with serving(tmp_path / "web") as served:
        vrl3data.export("frames", f"{served.url}/set", tmp_path / "far")
        vrl3data.export("frames", f"{served.url}/set", tmp_path / "some", splits=["val"])
    vrl3data.export("frames", source, tmp_path / "near")
    vrl3data.export("frames", source, tmp_path / "few", splits=["val"])
    assert tree(tmp_path / "far") == tree(tmp_path / "near")
    assert tree(tmp_path / "some") == tree(tmp_path / "few")


def test_an_open_dataset_stays_open(tmp_path: Path) -> None:
    with vrl3data.open(rich(tmp_path / "set")) as dataset:
        vrl3data.export("toy", dataset, tmp_path / "out")
        assert len(dataset[0]["action"]) == 4
        assert export("toy", dataset, tmp_path / "again").samples == 5


def test_wrong_calls(tmp_path: Path) -> None:
    source = rich(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"unknown kind of export 'toi'; did you mean 'toy'\?"):
        vrl3data.export("toi", source, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"unknown key 'wort'; did you mean 'word'\?"):
        toy(source, tmp_path / "out", wort="x")
    with pytest.raises(ConfigError, match="often: expected int, found 'x'"):
        toy(source, tmp_path / "out", often="x")
    with pytest.raises(ConfigError, match="there is no such directory"):
        toy(tmp_path / "gone", tmp_path / "out")
    with vrl3data.open(source) as dataset:
        none = Dataset(source, dataset.manifest, dataset.index.table().slice(0, 0))
        with pytest.raises(ConfigError, match="no samples, so there is nothing to export"):
            vrl3data.export("toy", none, tmp_path / "out")


# -- the command -------------------------------------------------------------------------------------------------


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = rich(tmp_path / "set")
    more: Sequence[str] = ("--word", "bye", "--part", "x", "--part", "y", "--loud", "--mood", "sad", "--split", "val")
    assert run("export", "toy", source, tmp_path / "out", *more) == 0
    said = capsys.readouterr()
    assert f"{tmp_path / 'out'} (toy), written in" in said.out
    assert "bye ('x', 'y')" in said.out and "not in it  obs.image.top: not in a toy" in said.out
    assert json.loads((tmp_path / "out" / "names.json").read_text()) == ["episode-3", "episode-4"]
    assert run("export", "toy", source, tmp_path / "quiet", "-q", "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["event"], found["kind"], found["samples"], len(found["dropped"])) == ("receipt", "toy", 5, 6)
    assert not said.err


def test_the_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "toy", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A file with the names of the episodes." in said
    assert "--word TEXT To be written. [default: hello]" in said
    assert "--mood [glad|sad]" in said and "--loud / --no-loud" in said and "[default: (none)]" in said
    assert run("export", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(kind in said for kind in REAL)


def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = rich(tmp_path / "set")
    assert run("export", "toy", source, source) == 2
    assert "there is something already" in capsys.readouterr().err
    assert run("export", "toi", source, tmp_path / "out") == 2
    assert "No such command 'toi'" in capsys.readouterr().err
    assert run("export", "toy", source, tmp_path / "out", "--mood", "odd") == 2
    assert run("export", "toy", source, tmp_path / "out", "--fails", "stopped") == 130
    assert beside(source) == ["set"]


def test_the_command_as_a_program(tmp_path: Path) -> None:
    result = run_cli("export", "frames", rich(tmp_path / "set"), tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "split train: 18 pictures in 1 tar file" in result.stdout
    assert "exporting" in result.stderr
