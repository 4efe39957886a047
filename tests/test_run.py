"""What the conversion loop does for every kind: selections, broken files, pools of workers, dry runs."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import make_demonstrations, make_pictures, run_cli, shard_bytes

import vrl3data
import vrl3data.app
from converters import KINDS, pool
from converters.base import Plan, Unit, source_identity
from converters.forecast import forecast
from converters.run import RunOptions, run
from converters.select import Selection, select
from converters.worker import WorkerError, WorkerFault
from vrl3data.errors import ConfigError, DestinationError, SourceError
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.report import Console
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.validation import validate

SMALL = {"image_size": 16, "render": "fast"}


@dataclass(frozen=True)
class NumbersOptions:
    shard_size: int = SHARD_SIZE


class Numbers:
    """A file with a number of episodes, and what happens at which: `12 3=die`."""

    Options = NumbersOptions

    def __init__(self, sources: Sequence[Path], options: NumbersOptions) -> None:
        self.source, self.options = sources[0], options

    @staticmethod
    def recognises(source: Path) -> bool:
        return source.suffix == ".numbers"

    def plan(self) -> Plan:
        words = self.source.read_text().split()
        told = {int(at): what for at, _, what in (word.partition("=") for word in words[1:])}
        features = (Feature("obs.state", "float64", (3,), "state"), Feature("action", "float32", (2,)))
        made = Provenance("numbers", source_identity=source_identity([("numbers", 1)]), shard_size=20_000)
        names = [f"demo_{number}" for number in range(int(words[0]))]
        units = (Unit(name, (number, told.get(number))) for number, name in enumerate(names))
        return Plan(DatasetSpec(Schema("episodes", features), "numbers", made), units, len(names), batch=2)

    def read(self, unit: Unit) -> Episode:
        number, event = unit.payload
        if event == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "fault":
            raise TypeError("a mistake of the converter")
        if event == "memory":
            raise MemoryError
        if event == "refuse":
            raise ConfigError("this cannot be")
        if event == "fail":
            raise SourceError("the episode is broken")
        if event == "wait":
            time.sleep(60)
        rng = np.random.default_rng(number)
        values = {"obs.state": rng.normal(size=(9, 3)), "action": rng.normal(size=(8, 2)).astype(np.float32)}
        return Episode(unit.name, values, length=8, final_observation=True)

    def close(self) -> None:
        """Nothing is held open."""


def numbers(folder: Path, text: str) -> Numbers:
    source = folder / "a.numbers"
    source.write_text(text)
    return Numbers([source], NumbersOptions())


def names(path: Path) -> list[str]:
    with vrl3data.open(path) as dataset:
        return [item.name for item in dataset]


# -- selections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("episodes", "limit", "want"),
    [
        ("0:2", None, [0, 1]),
        ("2:", None, [2, 3, 4, 5]),
        (":1, 4", None, [0, 4]),
        ("demo_3,1", None, [1, 3]),
        ("5,0:3,1:4", None, [0, 1, 2, 3, 5]),
        ("4:99", None, [4, 5]),
        ("", 2, [0, 1]),
        ("", 99, [0, 1, 2, 3, 4, 5]),
        ("1,3,5", 2, [1, 3]),
        (":", None, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_is_selected(tmp_path: Path, episodes: str, limit: int | None, want: list[int]) -> None:
    plan = select(numbers(tmp_path, "6").plan(), Selection(episodes, limit))
    assert [unit.name for unit in plan.units] == [f"demo_{number}" for number in want]
    assert plan.count == len(want)
    assert plan.notes == (f"{len(want)} of 6 episodes of the source were selected",)


def test_the_same_selection_is_written_in_one_way(tmp_path: Path) -> None:
    for text in ("0:3,4", "4,demo_0,1,2", "0:2,2:3,4:5"):
        plan = select(numbers(tmp_path, "6").plan(), Selection(text))
        assert plan.spec.provenance.options == {"episodes": "0:3,4"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("demo_33", "'demo_33' selects nothing, did you mean 'demo_3'.*there are 6, 0 to 5: 'demo_0' to 'demo_5'"),
        ("6", "'6' selects nothing; there are 6, 0 to 5"),
        ("3:3", "'3:3' selects nothing"),
        ("-1", "'-1' selects nothing"),
        ("1,,2", "'' selects nothing"),
        ("9" * 5000, "selects nothing"),
    ],
)
def test_a_selection_of_nothing_names_what_there_is(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        select(numbers(tmp_path, "6").plan(), Selection(text))


def test_other_wrong_selections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit: expected at least 1, found 0"):
        Selection(limit=0)
    plan = numbers(tmp_path, "0").plan()
    with pytest.raises(ConfigError, match="'0:1' selects nothing; there are none"):
        select(plan, Selection("0:1"))
    shifted = Plan(plan.spec, [Unit("1"), Unit("2")], 2)
    assert [unit.name for unit in select(shifted, Selection("2")).units] == ["2"]
    with pytest.raises(ConfigError, match="'1' is an index and the name of the unit with index 0; say 1:2 or 0:1"):
        select(shifted, Selection("1"))


def test_the_rest_of_a_source_is_appended_later(tmp_path: Path) -> None:
    """Ids do not depend on the selection, so what is there is known again."""
    root = make_pictures(tmp_path / "pictures", count=9, classes=3)
    vrl3data.convert("imagenet", root, tmp_path / "whole")
    whole = {item.name: item.meta["id"] for item in vrl3data.open(tmp_path / "whole")}
    first = vrl3data.convert("imagenet", root, tmp_path / "out", episodes="2:5")
    assert first.manifest.samples == 3
    assert first.manifest.provenance["options"]["episodes"] == "2:5"
    assert vrl3data.convert("imagenet", root, tmp_path / "out", episodes="2,3,4").already_complete
    for other in ({"episodes": "2:6"}, {"limit": 3}, {}):
        with pytest.raises(DestinationError, match=r"options\.(episodes|limit)"):
            vrl3data.convert("imagenet", root, tmp_path / "out", **other)
    again = vrl3data.convert("imagenet", root, tmp_path / "out", limit=3, append=True)
    assert (again.written, again.manifest.samples) == (2, 5)
    rest = vrl3data.convert("imagenet", root, tmp_path / "out", append=True)
    assert rest.written == 4
    with vrl3data.open(tmp_path / "out") as dataset:
        assert {item.name: item.meta["id"] for item in dataset} == whole
        assert dataset.manifest.fingerprint == vrl3data.open(tmp_path / "whole").manifest.fingerprint
    assert validate(tmp_path / "out").ok
    with pytest.raises(SourceError, match="every sample of the source is in the dataset already"):
        vrl3data.convert("imagenet", root, tmp_path / "out", episodes="1:3", append=True)


def test_selections_on_the_command_line(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "door.pickle", count=4)
    words = ("convert", source, tmp_path / "out", "--image-size", 16, "--jobs", 1, "--quiet")
    wrong = run_cli(*words, "--episodes", "door/7")
    assert wrong.returncode == 2
    assert "'door/7' selects nothing" in wrong.stderr
    assert not (tmp_path / "out").exists()
    done = run_cli(*words, "--episodes", "3,door/0001", "--json")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out") == ["door/0001", "door/0003"]
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == 2
    assert run_cli(*words, "--limit", 0).returncode == 2


# -- files that cannot be read at all ------------------------------------------------------------------------------


def broken_among_good(folder: Path) -> list[Path]:
    sources = [make_demonstrations(folder / f"{name}.pickle", count=2) for name in ("a", "b", "c")]
    sources[1].write_bytes(sources[1].read_bytes()[:-100])
    return sources


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_broken_file_among_good_ones(tmp_path: Path, position: int) -> None:
    sources = [make_demonstrations(tmp_path / f"{name}.pickle", count=2) for name in ("a", "b", "c")]
    sources[position].write_bytes(sources[position].read_bytes()[:-100])
    bad = sources[position].name
    with pytest.raises(SourceError, match=f"not a whole pickle file.*{bad}"):
        vrl3data.convert("adroit", sources, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    receipt = vrl3data.convert("adroit", sources, tmp_path / "out", SMALL, on_error="skip")
    assert [entry["source"] for entry in receipt.skipped] == [bad]
    good = [source for source in sources if source.name != bad]
    assert names(tmp_path / "out") == [f"{source.stem}/{number:04d}" for source in good for number in range(2)]
    assert receipt.manifest.provenance["source"]["files"] == 2
    assert validate(tmp_path / "out").ok
    only = vrl3data.convert("adroit", good, tmp_path / "good", SMALL)
    assert only.manifest.fingerprint == receipt.manifest.fingerprint


def test_broken_files_on_the_command_line(tmp_path: Path) -> None:
    sources = broken_among_good(tmp_path)
    words = ("convert", "adroit", *sources, tmp_path / "out", "--image-size", 16, "--jobs", 2)
    stopped = run_cli(*words)
    assert stopped.returncode == 3
    assert "b.pickle" in stopped.stderr
    skipped = run_cli(*words, "--on-error", "skip")
    assert skipped.returncode == 5
    assert "warning: skipped: not a whole pickle file" in skipped.stderr
    assert "b.pickle: not a whole pickle file" in skipped.stdout
    for source in sources:
        source.write_bytes(b"\x80\x03garbage")
    nothing = run_cli("convert", "adroit", *sources, tmp_path / "none", "--on-error", "skip")
    assert nothing.returncode == 3
    assert "not a whole pickle file" in nothing.stderr
    assert not (tmp_path / "none").exists()


# -- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "error", "match"),
    [
        ("die", WorkerError, "a worker process died, perhaps for want of memory"),
        ("memory", WorkerError, "a worker process has no memory left; run again with fewer jobs"),
        ("fault", WorkerFault, "TypeError: a mistake of the converter"),
        ("refuse", ConfigError, r"this cannot be \(episode demo_4\)"),
        ("fail", SourceError, r"the episode is broken \(episode demo_4\)"),
    ],
)
def test_what_ends_a_worker_is_told_at_once(tmp_path: Path, event: str, error: type[Exception], match: str) -> None:
    """While another one works for a minute; what came before is confirmed, and the next run finishes."""
    started = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        run(numbers(tmp_path, f"12 4={event} 7=wait"), tmp_path / "out", RunOptions(2))
    assert time.monotonic() - started < 50
    assert not multiprocessing.active_children()
    assert names(tmp_path / "out") == [f"demo_{number}" for number in range(4)]
    if event == "fault":
        assert "in read" in str(caught.value.__cause__)
    run(numbers(tmp_path, "12"), tmp_path / "out", RunOptions(2))
    run(numbers(tmp_path, "12"), tmp_path / "whole", RunOptions(1))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


def test_few_units_start_few_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    worker = pool._Worker.__init__
    monkeypatch.setattr(pool._Worker, "__init__", lambda self, setup: (started.append(self), worker(self, setup))[1])
    run(numbers(tmp_path, "3"), tmp_path / "out", RunOptions(8))
    assert len(started) == 2  # batches of two


def test_wrong_ways_to_run(tmp_path: Path) -> None:
    source = numbers(tmp_path, "3")
    for wrong, match in [
        ({"jobs": 0}, "jobs: expected at least 1, found 0"),
        ({"executor": "rya"}, "unknown executor 'rya'; did you mean 'ray'"),
        ({"ray_address": "auto"}, "a ray address goes with the executor 'ray', not with 'local'"),
        ({"append": True, "overwrite": True}, "append and overwrite exclude each other"),
    ]:
        with pytest.raises(ConfigError, match=match):
            run(source, tmp_path / "out", RunOptions(**wrong))


# -- trying without writing ----------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["adroit", "imagenet"])
def test_a_dry_run_of_everything_says_exactly_what_is_written(tmp_path: Path, kind: str) -> None:
    source = make_pictures(tmp_path / "in", 12, 3) if kind == "imagenet" else make_demonstrations(tmp_path / "d.pickle")
    options = {"image_size": 16, "shard_size": 20_000, "codec": "png"}
    before = everything(tmp_path)
    found = vrl3data.app.forecast(kind, source, tmp_path / "out", options)
    assert everything(tmp_path) == before
    made = vrl3data.convert(kind, source, tmp_path / "out", options).manifest
    assert found.exact
    assert (found.units, found.steps, found.bytes) == (made.samples, made.steps, made.bytes)
    assert found.shards == sum(len(split.shards) for split in made.splits.values()) > 1
    assert found.spec.schema == made.schema
    assert found.free > 0
    assert found.problems == ()


def test_a_dry_run_of_a_part_estimates_the_rest(tmp_path: Path) -> None:
    converter = numbers(tmp_path, "200 40=fail")
    found = forecast(converter, tmp_path / "out")
    assert (found.tried, found.units, found.exact) == (16, 200, False)
    made = run(converter, tmp_path / "out", RunOptions(on_error="skip")).manifest
    assert found.steps == 1600
    assert abs(found.bytes / made.bytes - 1) < 0.05
    assert found.problems == ()
    assert [name for name, _ in forecast(numbers(tmp_path, "200 100=fail"), tmp_path / "new").problems] == ["demo_100"]
    selected = forecast(numbers(tmp_path, "200"), tmp_path / "new", RunOptions(selection=Selection("5:9")))
    assert (selected.units, selected.steps, selected.exact) == (4, 32, True)


def test_a_dry_run_of_slow_units_tries_few_of_them_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.forecast.BUDGET_S", 0.0)
    found = forecast(numbers(tmp_path, "200 187=fail"), tmp_path / "out")
    assert found.tried == 2
    assert [name for name, _ in found.problems] == ["demo_187"]
    monkeypatch.undo()
    assert forecast(numbers(tmp_path, "200"), tmp_path / "out").tried == 16


def test_a_dry_run_is_refused_where_the_conversion_would_be(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pictures")
    vrl3data.convert("imagenet", root, tmp_path / "out", {"image_size": 32})
    assert vrl3data.app.forecast("imagenet", root, tmp_path / "out", {"image_size": 32}).there == 6
    with pytest.raises(DestinationError, match=r"options\.image_size: 32 there, 48 now"):
        vrl3data.app.forecast("imagenet", root, tmp_path / "out", {"image_size": 48})
    assert vrl3data.app.forecast("imagenet", root, tmp_path / "out", {"image_size": 48}, overwrite=True).there == 0
    with pytest.raises(DestinationError, match="does not fit the dataset"):
        vrl3data.app.forecast("imagenet", root, tmp_path / "out", {"codec": "png"}, append=True)
    with pytest.raises(DestinationError, match="no finished dataset to append to"):
        vrl3data.app.forecast("imagenet", root, pictures_folder(tmp_path), append=True)
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(DestinationError, match=r"options\.image_size: 32 there, 48 now"):
        vrl3data.app.forecast("imagenet", root, tmp_path / "out", {"image_size": 48})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("work")
    with pytest.raises(DestinationError, match="not a vrl3data dataset"):
        vrl3data.app.forecast("imagenet", root, tmp_path / "thesis")


def pictures_folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_dry_runs_on_the_command_line(tmp_path: Path) -> None:
    sources = broken_among_good(tmp_path)
    before = everything(tmp_path)
    words = ("convert", "adroit", *sources, tmp_path / "new" / "out", "--image-size", 16, "--dry-run", "--quiet")
    stopped = run_cli(*words)
    assert stopped.returncode == 3
    assert "nothing is written; tried 4 of 4 episodes" in stopped.stdout
    assert "b.pickle: not a whole pickle file" in stopped.stdout
    assert "obs.image.top" in stopped.stdout
    assert "uint8[16, 16, 3]" in stopped.stdout
    skipped = run_cli(*words, "--on-error", "skip", "--json")
    assert skipped.returncode == 5
    told = json.loads(skipped.stdout)
    assert (told["samples"], told["steps"], told["tried"], told["exact"]) == (4, 18, 4, True)
    assert told["problems"][0]["source"] == "b.pickle"
    assert run_cli("convert", sources[0], tmp_path / "new", "--dry-run", "--quiet").returncode == 0
    assert run_cli("convert", tmp_path / "b.pickle", tmp_path / "new", "--dry-run").returncode == 3
    assert everything(tmp_path) == before


# -- mappings of fields --------------------------------------------------------------------------------------------


class _Map:
    def to_toml(self, known: Mapping[str, str]) -> str:
        return f"# {', '.join(known)}\n"

    def text(self) -> str:
        return "actions -> action"


class MappedNumbers(Numbers):
    """With a mapping of fields."""

    def mapping(self) -> _Map:
        return _Map()

    def known(self) -> Mapping[str, str]:
        return {"actions": "float32[2]"}


def test_a_mapping_is_said_and_written_for_editing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers(tmp_path, "3")
    source = tmp_path / "a.numbers"
    monkeypatch.setitem(KINDS, "mapped", "test_run:MappedNumbers")
    monkeypatch.setitem(KINDS, "numbers", "test_run:Numbers")
    said = io.StringIO()
    vrl3data.convert("mapped", source, tmp_path / "out", reporter=Console(stream=said))
    assert "actions -> action" in said.getvalue()
    file = vrl3data.app.write_mapping("mapped", [source], tmp_path / "maps" / "m.toml")
    assert file.read_text() == "# actions\n"
    with pytest.raises(DestinationError, match=r"there is a file of that name already.*m\.toml"):
        vrl3data.app.write_mapping("mapped", [source], file)
    with pytest.raises(ConfigError, match="the kind 'numbers' has no mapping of fields"):
        vrl3data.app.write_mapping("numbers", [source], tmp_path / "n.toml")
    with pytest.raises(DestinationError, match="a file is in the way|not a directory"):
        vrl3data.app.write_mapping("mapped", [source], source / "m.toml")
