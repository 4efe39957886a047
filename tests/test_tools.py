"""Tools that make datasets from datasets: what they keep, what they refuse, and that nothing is edited in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_episode, make_schema, make_spec, run_cli, shard_bytes, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import vrl3data
from vrl3data import manifest
from vrl3data.app import write_card
from vrl3data.errors import ConfigError, DamagedError, DestinationError
from vrl3data.linked import expand, ranges
from vrl3data.tools import link
from vrl3data.tools.expression import evaluate
from vrl3data.tools.merge import compact, merge
from vrl3data.tools.rewrite import Output
from vrl3data.tools.split import select, split
from vrl3data.validation import validate
from vrl3data.writer import Writer


def tasks(path: Path, count: int = 12, shard_size: int = 20_000, source: str = "abc") -> Path:
    """Episodes of two tasks, a third of them successes, one of unknown outcome."""
    with Writer(path, make_spec(shard_size=shard_size, source=source, license="mit")) as writer:
        for number in range(count):
            success = -1 if number == 0 else int(number % 3 == 0)
            task = ("open the door", "close it")[number % 2]
            writer.write(make_episode(number, 4 + number % 3, success=success, task=task, source=f"log-{number // 4}"))
    return path


def digests(path: Path) -> dict[str, str]:
    with vrl3data.open(path) as dataset:
        return {item.meta["id"]: item.meta["digest"] for item in dataset}


def equal_content(path: Path, other: Path) -> bool:
    with vrl3data.open(path) as one, vrl3data.open(other) as two:
        by_id = {item.meta["id"]: item for item in two}
        return all(np.array_equal(item[name], by_id[item.meta["id"]][name]) for item in one for name in item)


def test_merge_keeps_samples_ids_licence_and_provenance(tmp_path: Path) -> None:
    one, two = tasks(tmp_path / "one", 5), tasks(tmp_path / "two", 4, source="other")
    before = shard_bytes(one), (one / "dataset.json").read_bytes()
    with vrl3data.open(one) as first, vrl3data.open(two) as second:
        found = merge([first, second], tmp_path / "both", Output(name="both"))
        assert [entry["fingerprint"] for entry in found.provenance["inputs"]] == [
            first.manifest.fingerprint, second.manifest.fingerprint
        ]  # fmt: skip
        assert found.provenance["inputs"][0]["provenance"] == first.manifest.provenance
    assert (found.samples, found.license, found.name) == (9, "mit", "both")
    assert digests(tmp_path / "both") == digests(one) | digests(two)
    assert validate(tmp_path / "both").ok
    assert before == (shard_bytes(one), (one / "dataset.json").read_bytes())
    # Content and not history makes the fingerprint.
    together = manifest.fingerprint([*digests(one).values(), *digests(two).values()])
    assert found.fingerprint == together


def test_merge_refuses_what_does_not_fit(tmp_path: Path) -> None:
    one = tasks(tmp_path / "one", 3)
    with Writer(tmp_path / "png", make_spec(make_schema("png"), source="png")) as writer:
        writer.write(make_episode(1))
    copy = write_dataset(tmp_path / "unknown", 1, make_spec(source="u"))
    with vrl3data.open(one) as first, vrl3data.open(tmp_path / "png") as png, vrl3data.open(copy) as unknown:
        with pytest.raises(ConfigError, match=r'obs.image.top.codec: "raw" there, "png" now.*vrl3data recode'):
            merge([first, png], tmp_path / "out")
        with pytest.raises(ConfigError, match="3 samples are in more than one"):
            merge([first, first], tmp_path / "out")
        with pytest.raises(ConfigError, match="at least two"):
            merge([first], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert merge([first, first], tmp_path / "once", skip_duplicates=True).samples == 3
        assert merge([first, unknown], tmp_path / "mixed").license == "unknown"


def test_an_interrupted_tool_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tasks(tmp_path / "set", 6)
    with vrl3data.open(source) as dataset:
        compact(dataset, tmp_path / "whole")
        append = Writer.append

        def fails(writer: Writer, sample: object) -> None:
            if len(writer.present) == 3:
                raise KeyboardInterrupt
            append(writer, sample)  # type: ignore[arg-type]

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Writer, "append", fails)
            compact(dataset, tmp_path / "halves")
        assert not (tmp_path / "halves" / "dataset.json").exists()
        compact(dataset, tmp_path / "halves")
    assert shard_bytes(tmp_path / "halves") == shard_bytes(tmp_path / "whole")
    assert len(shard_bytes(source)) > len(shard_bytes(tmp_path / "whole")) == 1


def test_a_damaged_sample_is_not_carried_on(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set", 3, 10**6)
    file = source / "data" / "train-000000.tar"
    with vrl3data.open(source) as dataset:
        offset = dataset.index["action.npy.offset"].to_pylist()[1]
    data = bytearray(file.read_bytes())
    data[offset + 130] ^= 1
    file.write_bytes(data)
    with vrl3data.open(source) as dataset, pytest.raises(DamagedError, match=r"000000001.*action\.npy"):
        compact(dataset, tmp_path / "out")


@pytest.mark.parametrize("virtual", [False, True])
def test_split_by_chance(tmp_path: Path, virtual: bool) -> None:
    source = tasks(tmp_path / "set")
    shares = {"train": 0.75, "val": 0.25}
    with vrl3data.open(source) as dataset:
        found = split(dataset, tmp_path / "a", shares, seed=1, virtual=virtual)
        again = split(dataset, tmp_path / "b", shares, seed=1, virtual=not virtual)
        other = split(dataset, tmp_path / "c", shares, seed=2)
    assert {name: info.samples for name, info in found.splits.items()} == {"train": 9, "val": 3}
    chosen = {}
    for name in ("a", "b", "c"):
        with vrl3data.open(tmp_path / name) as dataset:
            chosen[name] = [dataset[p].meta["id"] for p in dataset.split("val")]
    assert sorted(chosen["a"]) == sorted(chosen["b"]) != sorted(chosen["c"])
    assert found.fingerprint == again.fingerprint == other.fingerprint
    assert equal_content(tmp_path / "a", source)
    assert validate(tmp_path / "a").ok


def test_split_by_a_column_and_with_groups(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set")
    with vrl3data.open(source) as dataset:
        by_task = split(dataset, tmp_path / "task", by="task")
        by_success = split(dataset, tmp_path / "success", by="success")
        split(dataset, tmp_path / "groups", {"train": 0.6, "val": 0.4}, keep_together="source")
        with pytest.raises(ConfigError, match="no column 'sucess'; did you mean 'success'"):
            split(dataset, tmp_path / "x", by="sucess")
        with pytest.raises(ConfigError, match="either shares"):
            split(dataset, tmp_path / "x")
        with pytest.raises(ConfigError, match="share above 0 and at most 1"):
            split(dataset, tmp_path / "x", {"train": 1, "val": 0})
        with pytest.raises(ConfigError, match="4 splits need at least as many groups, found 3"):
            split(dataset, tmp_path / "x", dict.fromkeys("abcd", 0.25), keep_together="source")
    assert sorted(by_task.splits) == ["close_it", "open_the_door"]
    assert {name: info.samples for name, info in by_success.splits.items()} == {
        "success_no": 8, "success_unknown": 1, "success_yes": 3
    }  # fmt: skip
    with vrl3data.open(tmp_path / "groups") as dataset:
        homes = [{dataset[p].meta["source"] for p in dataset.split(name)} for name in ("train", "val")]
    assert homes[0] and homes[1] and not homes[0] & homes[1]


def test_linked_shards_take_no_space_and_follow_their_dataset(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set")
    with vrl3data.open(source) as dataset:
        found = select(dataset, tmp_path / "linked", "success", virtual=True)
        kept = [item.name for item in dataset if item.meta["success"] == 1]
    names = {info.name: info.linked for info in found.splits["train"].shards}
    assert all(linked and linked["dataset_id"] for linked in names.values())
    inodes = {file.stat().st_ino for file in (source / "data").iterdir()}
    assert {file.stat().st_ino for file in (tmp_path / "linked" / "data").iterdir()} <= inodes
    with vrl3data.open(tmp_path / "linked") as dataset:
        assert [item.name for item in dataset] == kept == ["episode-3", "episode-6", "episode-9"]
        again = select(dataset, tmp_path / "twice", "name != 'episode-3'", virtual=True)
        whole = compact(dataset, tmp_path / "whole")
        with pytest.raises(DestinationError, match="linked shards"):
            Writer(tmp_path / "linked", make_spec(source="more", license="mit"), append=True)
    assert again.samples < found.samples == whole.samples
    assert whole.fingerprint == found.fingerprint
    for path in ("linked", "twice", "whole"):
        assert validate(tmp_path / path).ok, path
    (tmp_path / "linked" / "index.parquet").unlink()
    with vrl3data.open(tmp_path / "linked") as dataset:  # the index can be made anew
        assert [item.name for item in dataset] == kept
    shard_file = next((tmp_path / "linked" / "data").iterdir())
    other = next(file for file in (source / "data").iterdir() if file.stat().st_ino != shard_file.stat().st_ino)
    shard_file.unlink()
    shard_file.write_bytes(other.read_bytes())
    assert not validate(tmp_path / "linked").ok


def test_linking_leaves_other_things_alone(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set", 3)
    unfinished = Writer(tmp_path / "unfinished", make_spec(source="other"))
    unfinished.write(make_episode(1))
    unfinished.close()
    with vrl3data.open(source) as dataset:
        with pytest.raises(DestinationError, match="unfinished dataset"):
            select(dataset, tmp_path / "unfinished", "length > 0", virtual=True)
        with pytest.raises(DestinationError, match="another dataset"):
            select(dataset, source, "length > 0", virtual=True)
        first = select(dataset, tmp_path / "out", "length > 0", virtual=True)
        assert select(dataset, tmp_path / "out", "length > 0", virtual=True).dataset_id == first.dataset_id


COLUMNS = {
    "length": np.array([10, 60, 70, 80]), "success": np.array([1, 0, 1, -1]), "psnr": np.array([1.5, -1, 30, 2]),
    "task": np.array(["open the door", "pen", "door", ""], object), "split": np.array(["train"] * 4, object),
}  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("success and length > 50", [2]), ("not success", [1, 3]), ("success == -1", [3]), ("success >= 0", [0, 1, 2]),
        ('"door" in task', [0, 2]), ('task in ("pen", "door")', [1, 2]), ('task not in ["pen"]', [0, 2, 3]),
        ("task", [0, 1, 2]), ("10 < length < 80", [1, 2]), ("length % 20 == 0", [1, 3]), ("-length < -65", [2, 3]),
        ("(length + 10) / 10 == 8 or psnr == 1.5", [0, 2]), ("length // 0 == 1", []), ("True", [0, 1, 2, 3]),
        ('split == "train" and not (task == "pen")', [0, 2, 3]), ("1 in [1, 2]", [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_expressions(expression: str, expected: list[int]) -> None:
    assert np.flatnonzero(evaluate(expression, COLUMNS, 4)).tolist() == expected


@pytest.mark.parametrize(
    ("expression", "match"),
    [
        ("sucess", "no column 'sucess'; did you mean 'success'"), ("length >", "not understood"),
        ("", "is empty"), ("task + 1 == 2", "arithmetic is for numbers"),
        ("__import__('os').system('true')", "not understood"), ("task.upper()", "not understood"),
        ("[x for x in task]", "not understood"), ("length is 3", "say =="),
        ("length < 'a'", "compares a text with a number"), ("3 in length", "`in` takes a list"),
        ("(" * 5000, "not understood"), ("1" * 20_000, "characters"), ("length ** 99999999", "not understood"),
        ("'a' * 10**9 == task", "not understood|arithmetic"), ("lambda: 1", "not understood"), ("\0", "not understood"),
    ],
)  # fmt: skip
def test_expressions_that_are_refused(expression: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        evaluate(expression, COLUMNS, 4)


@given(st.sets(st.integers(0, 10**9 - 1), min_size=1))
@settings(max_examples=50, deadline=None)
def test_key_ranges(keys: set[int]) -> None:
    assert expand(ranges(sorted(keys)), len(keys)) == sorted(keys)


@pytest.mark.parametrize(
    ("text", "samples"), [("3-1", 1), ("1,1", 2), ("", 0), ("0-999999999", 5), ("a", 1), (None, 1)]
)
def test_wrong_key_ranges(text: str, samples: int) -> None:
    with pytest.raises(DamagedError, match="keys"):
        expand(text, samples)


def test_filter_that_keeps_nothing(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set", 3)
    with (
        vrl3data.open(source) as dataset,
        pytest.raises(ConfigError, match="not one of 3 samples fulfils 'length > 99'"),
    ):
        select(dataset, tmp_path / "out", "length > 99")
    assert not (tmp_path / "out").exists()


def test_linked_sets_do_not_travel_and_name_no_files_for_others(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set")
    with vrl3data.open(source) as dataset:
        split(dataset, tmp_path / "linked", {"train": 0.5, "val": 0.5}, virtual=True)
    write_card(tmp_path / "linked")
    card = (tmp_path / "linked" / "README.md").read_text()
    assert "data_files" not in card
    with pytest.raises(ConfigError, match="vrl3data compact"):
        vrl3data.push(str(tmp_path / "linked"), str(tmp_path / "away"))


def test_a_link_that_was_killed_is_not_taken_for_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tasks(tmp_path / "set")
    real, calls = link._same_file, [0]

    def killed(old: Path, new: Path) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        real(old, new)

    with vrl3data.open(source) as dataset:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(link, "_same_file", killed)
            select(dataset, tmp_path / "out", "success", virtual=True)
        with pytest.raises(DamagedError, match="missing"):
            vrl3data.open(tmp_path / "out")
        assert select(dataset, tmp_path / "out", "success", virtual=True).samples == 3
    assert validate(tmp_path / "out").ok


def test_values_that_would_share_a_split_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec(license="mit")) as writer:
        for number, task in enumerate(["open-door", "open door", "推门", "开抽屉"]):
            writer.write(make_episode(number, task=task))
    with vrl3data.open(tmp_path / "set") as dataset:
        with pytest.raises(ConfigError, match="'open-door' and 'open door' would both be split 'open_door'"):
            split(dataset, tmp_path / "out", by="task")
        select(dataset, tmp_path / "two", "task not in ('open-door', 'open door')")
    with vrl3data.open(tmp_path / "two") as dataset:
        assert len(split(dataset, tmp_path / "out", by="task").splits) == 2


def test_an_index_of_linked_shards_can_be_rebuilt(tmp_path: Path) -> None:
    source = tasks(tmp_path / "set")
    with vrl3data.open(source) as dataset:
        select(dataset, tmp_path / "out", "success", virtual=True)
    before = (tmp_path / "out" / "index.parquet").read_bytes()
    (tmp_path / "out" / "index.parquet").unlink()
    rebuilt = run_cli("index", "rebuild", tmp_path / "out")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert (tmp_path / "out" / "index.parquet").read_bytes() == before
