"""Writing: what goes in comes out, the same bytes whatever happens on the way, and nothing good is lost."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_episode, make_schema, make_spec, shard_bytes, write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vrl3data
from vrl3data import codecs, encode, index, manifest, scan, shard, stats
from vrl3data.errors import ConfigError, DamagedError, DestinationError, FormatError, SchemaError
from vrl3data.schema import DTYPES, Episode, Feature, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer


@st.composite
def datasets(draw: Any) -> tuple[Schema, list[Episode]]:
    """A random schema over all dtypes, rows and codecs, and episodes that fit it."""
    features = []
    for number in range(draw(st.integers(1, 4))):
        rows = draw(st.sampled_from(["step", "state", "episode"]))
        if draw(st.booleans()):
            shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
            features.append(Feature(f"f{number}.x", draw(st.sampled_from(DTYPES)), shape, rows))
        else:
            camera = Feature(f"obs.image.c{number}", "uint8", (4, 5, draw(st.sampled_from([1, 3]))), rows)
            features.append(codecs.describe(camera, draw(st.sampled_from(["raw", "png"]))))
    schema = Schema("episodes", tuple(features))
    episodes = []
    for number in range(draw(st.integers(1, 3))):
        episode = Episode(f"e{number}", {}, length=draw(st.integers(1, 4)), final_observation=draw(st.booleans()))
        values = {}
        for feature in features:
            shape = (episode.row_count(feature), *feature.shape)
            values[feature.name] = draw(hnp.arrays(feature.dtype, shape))
        episodes.append(replace(episode, values=values))
    return schema, episodes


@given(datasets(), st.integers(2000, 20_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, drawn: tuple[Schema, list[Episode]], shard_size: int) -> None:
    schema, episodes = drawn
    path = tmp_path / "set"
    shutil.rmtree(path, ignore_errors=True)
    with Writer(path, make_spec(schema, shard_size)) as writer:
        for episode in episodes:
            writer.write(episode)
    with vrl3data.open(path) as dataset:
        for episode, stored in zip(episodes, dataset, strict=True):
            loaded = stored.load()
            assert (loaded.length, loaded.final_observation) == (episode.length, episode.final_observation)
            for name, value in episode.values.items():
                assert stored[name].dtype == value.dtype
                assert stored[name].tobytes() == value.tobytes()
                assert loaded.values[name].shape == value.shape
    report = validate(path)
    assert all(finding.check == "nan" for finding in report.worse_than("error")), report.findings


def test_rows_are_read_in_part(tmp_path: Path) -> None:
    for codec in ("raw", "png"):
        path = write_dataset(tmp_path / codec, 1, make_spec(make_schema(codec)))
        with vrl3data.open(path) as dataset:
            whole = dataset[0]["obs.image.top"]
            assert np.array_equal(dataset[0].rows("obs.image.top", 1, 3), whole[1:3])
            assert np.array_equal(dataset[0].rows("obs.image.top", -1), whole[-1:])
            assert dataset[0].rows("obs.image.top", 9).shape == (0, 12, 12, 3)


def test_same_bytes_whatever_the_interruptions(tmp_path: Path) -> None:
    want = shard_bytes(write_dataset(tmp_path / "whole", 6, make_spec(shard_size=25_000)))
    assert len(want) > 1
    path = tmp_path / "again"
    for stop in (1, 2, 4, 5):
        writer = Writer(path, make_spec(shard_size=25_000))
        for number in range(stop):
            if not writer.has(f"episode-{number}"):
                writer.write(make_episode(number, length=4 + number % 3))
        writer.close()
        part = index.shard_files(path)[-1]
        part.write_bytes(part.read_bytes() + shard.member_header("000000099.action.npy", 4000) + b"torn")
        assert validate(path).ok
        assert len(vrl3data.open(path)) == stop
    with Writer(path, make_spec(shard_size=25_000)) as writer:
        for number in range(6):
            if not writer.has(f"episode-{number}"):
                writer.write(make_episode(number, length=4 + number % 3))
    assert shard_bytes(path) == want
    assert (path / "index.parquet").read_bytes() == (tmp_path / "whole" / "index.parquet").read_bytes()
    assert (path / "dataset.json").read_text() == (tmp_path / "whole" / "dataset.json").read_text()


def test_a_payload_that_never_reached_the_disk_is_written_again(tmp_path: Path) -> None:
    """After a power cut the commit record may be there and bytes before it not."""
    want = shard_bytes(write_dataset(tmp_path / "whole", 2))
    path = tmp_path / "again"
    writer = Writer(path, make_spec())
    writer.write(make_episode(0, length=4))
    writer.write(make_episode(1, length=5))
    writer.close()
    part = index.shard_files(path)[0]
    start, size = scan.scan(part).entries[1].members["obs.image.top.npy"]
    data = bytearray(part.read_bytes())
    data[start + 200 : start + size] = bytes(size - 200)
    part.write_bytes(data)
    with Writer(path, make_spec()) as writer:
        assert writer.has("episode-0")
        assert not writer.has("episode-1")
        writer.write(make_episode(1, length=5))
    assert shard_bytes(path) == want


def test_damage_before_the_last_sample_stops_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "set"
    writer = Writer(path, make_spec())
    for number in range(2):
        writer.write(make_episode(number))
    writer.close()
    part = index.shard_files(path)[0]
    start, _ = scan.scan(part).entries[0].members["action.npy"]
    data = bytearray(part.read_bytes())
    data[start + 130] ^= 1
    part.write_bytes(data)
    with pytest.raises(DamagedError, match=r"do not have the hash.*episode episode-0, feature action.npy"):
        Writer(path, make_spec())
    assert part.read_bytes() == bytes(data)


def test_iterators_are_written_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes from an iterator, and through spool files when a member is large."""
    want = shard_bytes(write_dataset(tmp_path / "whole", 1))
    whole = make_episode(0, length=4)
    values = dict(whole.values) | {"obs.image.top": iter([whole.values["obs.image.top"][:2],
                                                          whole.values["obs.image.top"][2:]])}  # fmt: skip
    monkeypatch.setattr(encode, "SPOOL_BYTES", 100)
    with Writer(tmp_path / "blocks", make_spec()) as writer:
        writer.write(replace(whole, values=values))
        assert writer.spool.is_dir()
    assert shard_bytes(tmp_path / "blocks") == want
    assert not writer.spool.exists()


def test_an_episode_larger_than_a_shard_gets_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with Writer(path, make_spec(shard_size=20_000)) as writer:
        for number, length in enumerate([3, 90, 3]):
            writer.write(make_episode(number, length=length))
    found = manifest.read(path)
    assert [item.samples for item in found.splits["train"].shards] == [1, 1, 1]
    assert found.splits["train"].shards[1].bytes > 20_000


def test_splits_subsets_and_absent_features(tmp_path: Path) -> None:
    path = tmp_path / "set"
    without = make_episode(1)
    values = {name: value for name, value in without.values.items() if name != "obs.state"}
    with Writer(path, make_spec()) as writer:
        writer.write(make_episode(0, split="val", subsets=("b", "a")))
        writer.write(replace(without, values=values))
        writer.write(make_episode(2))
    with vrl3data.open(path) as dataset:
        assert [item.name for item in dataset] == ["episode-1", "episode-2", "episode-0"]
        assert dataset.split("val") == [2]
        assert dataset[0].absent == ("obs.state",)
        assert dataset[0]["obs.state"].tolist() == [[0, 0, 0]]
        assert dataset.manifest.subsets == {"a": 1, "b": 1}
        with pytest.raises(ConfigError, match="no split 'vall'; did you mean 'val'"):
            dataset.split("vall")
    assert validate(path).ok


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg:90"])
def test_any_value_of_any_feature_changes_the_fingerprint(tmp_path: Path, codec: str) -> None:
    spec, whole = make_spec(make_schema(codec)), make_episode(0)
    prints = set()
    for name in (None, *spec.schema.names):
        values = {key: value.copy() for key, value in whole.values.items()}
        if name is not None:
            flat = values[name].reshape(-1)
            flat[-1] = 255 - flat[-1] if values[name].dtype == np.uint8 else flat[-1] + 1
        with Writer(tmp_path / str(name), spec) as writer:
            writer.write(replace(whole, values=values))
        prints.add(manifest.read(tmp_path / str(name)).fingerprint)
    for number, change in enumerate([{"task": "other"}, {"success": 1}, {"source_meta": {"a": 1}}]):
        with Writer(tmp_path / f"meta{number}", spec) as writer:
            writer.write(replace(whole, **change))
        prints.add(manifest.read(tmp_path / f"meta{number}").fingerprint)
    assert len(prints) == 1 + len(spec.schema.names) + 3


def test_the_fingerprint_does_not_depend_on_layout(tmp_path: Path) -> None:
    def fingerprint(name: str, codec: str, shard_size: int, order: list[int]) -> str:
        with Writer(tmp_path / name, make_spec(make_schema(codec), shard_size)) as writer:
            for number in order:
                writer.write(make_episode(number))
        return manifest.read(tmp_path / name).fingerprint

    want = fingerprint("a", "raw", 10**6, [0, 1, 2])
    assert fingerprint("b", "png", 20_000, [2, 0, 1]) == want


def test_lossy_codecs_say_what_they_lose(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 2, make_spec(make_schema("jpeg:30")))
    with vrl3data.open(path) as dataset:
        item = dataset[0]
        given = make_episode(0, length=4).values["obs.image.top"].astype(int)
        error = given - item["obs.image.top"]
        assert item.meta["max_error"] == abs(error).max()
        assert item.meta["psnr"] == pytest.approx(10 * np.log10(255**2 / (error**2).mean()), abs=0.01)
        assert dataset.manifest.lossy["psnr_min"] == min(sample.meta["psnr"] for sample in dataset)
        assert dataset.schema["obs.image.top"].lossless is False


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"action": np.zeros((5, 2), np.float32)}, "expected dtype float64, found float32.*feature action"),
        ({"action": np.zeros((5, 3))}, r"expected rows of shape \(2,\), found an array of shape \(5, 3\)"),
        ({"action": np.zeros((4, 2))}, r"expected 5 rows \(rows: step, length 5\), found 4"),
        ({"reward": np.zeros(6)}, r"expected 5 rows .*, found more"),
        ({"rewards": np.zeros(5)}, "feature 'rewards' is not in the schema"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    episode = make_episode(1)
    with pytest.raises(SchemaError, match=match), Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(make_episode(0))
        writer.write(replace(episode, values={**episode.values, **change}))
    assert len(vrl3data.open(tmp_path / "set")) == 1
    assert validate(tmp_path / "set").ok


def test_other_refusals(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec()) as writer:
        writer.write(make_episode(0))
        with pytest.raises(DestinationError, match=r"already in the dataset \(episode episode-0\)"):
            writer.write(make_episode(0))
        with pytest.raises(SchemaError, match="at least one step"):
            writer.write(make_episode(1, length=0))
        with pytest.raises(SchemaError, match="split 'a b'"):
            writer.write(make_episode(1, split="a b"))
        with pytest.raises(SchemaError, match="hold a comma"):
            writer.write(make_episode(1, subsets=("a,b",)))
        with pytest.raises(DestinationError, match="another process is writing"):
            Writer(tmp_path / "set", make_spec())
    with pytest.raises(ConfigError, match="expected jpeg:Q"):
        codecs.describe(Feature("x", "uint8", (4, 4, 3)), "jpeg:0")
    with pytest.raises(ConfigError, match="needs uint8 images"):
        codecs.describe(Feature("x", "float32", (4,)), "jpeg:90")
    with pytest.raises(ConfigError, match="needs uint8 images or uint16 depth"):
        codecs.describe(Feature("x", "float32", (4,)), "png")
    with pytest.raises(ConfigError, match="unknown codec 'pgn'; did you mean 'png'"):
        codecs.describe(Feature("x", "uint8", (4, 4, 3)), "pgn")
    with pytest.raises(FormatError, match="codec 'vp9' is not known"):
        codecs.find("vp9")
    with pytest.raises(FormatError, match="rows 'frames:imu' is not known"):
        Feature("x", "uint8", rows="frames:imu")
    with pytest.raises(SchemaError, match="must be lower-case words"):
        Feature("Obs", "uint8")
    with pytest.raises(SchemaError, match="taken by the format"):
        Feature("a.offsets", "uint64")
    with pytest.raises(SchemaError, match="dtype 'float'; did you mean 'float"):
        Feature("x", "float")
    with pytest.raises(SchemaError, match="not unique"):
        Schema("episodes", (Feature("x", "uint8"), Feature("x", "uint8")))


def test_a_url_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DestinationError, match="not to a URL.*vrl3data push"):
        Writer("s3://bucket/set", make_spec())
    assert not list(tmp_path.iterdir())


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter1.tex").write_text("years of work")
    with pytest.raises(DestinationError, match="not empty and not a vrl3data dataset.*'chapter1.tex'"):
        Writer(target, make_spec())
    assert [item.name for item in target.iterdir()] == ["chapter1.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(DestinationError, match="the target is a file"):
        Writer(tmp_path / "file", make_spec())
    other = write_dataset(tmp_path / "other", 1)
    with pytest.raises(DestinationError, match=r"holds another dataset: source.identity: \"abc\" there, \"xyz\" now"):
        Writer(other, make_spec(source="xyz"))
    with Writer(other, make_spec()) as writer:
        assert writer.complete


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from conftest import make_episode, make_spec
from vrl3data.errors import DestinationError
from vrl3data.writer import Writer
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    with Writer({path!r}, make_spec(shard_size=10**7)) as writer:
        for number in range(100):
            writer.write(make_episode(number))
except DestinationError as error:
    print(len(writer.present), error)
"""


def test_a_disk_that_refuses_more_loses_nothing(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: both fail in the middle of a write."""
    path = tmp_path / "set"
    code = FULL.format(tests=str(Path(__file__).parent), path=str(path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    count, message = result.stdout.split(" ", 1)
    assert "cannot write: the file would be larger than is allowed here; what was confirmed is safe" in message
    assert int(count) > 3
    assert len(vrl3data.open(path)) == int(count)
    assert validate(path).ok
    with Writer(path, make_spec(shard_size=10**7)) as writer:
        assert len(writer.present) == int(count)


def _name_of(dataset: vrl3data.Dataset) -> str:
    return dataset[1].name


def test_datasets_travel_to_other_processes(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 3)
    with vrl3data.open(path) as dataset:
        assert dataset[1].name == "episode-1"
        assert pickle.loads(pickle.dumps(dataset))[2].name == "episode-2"
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.apply(_name_of, (dataset,)) == "episode-1"


def test_a_reader_sees_what_is_confirmed_while_writing(tmp_path: Path) -> None:
    with Writer(tmp_path / "set", make_spec()) as writer:
        with pytest.raises(ConfigError, match="not a vrl3data dataset"):
            vrl3data.open(tmp_path / "set")
        for number in range(3):
            writer.write(make_episode(number))
            dataset = vrl3data.open(tmp_path / "set")
            assert (len(dataset), dataset.manifest.complete) == (number + 1, False)
    assert dataset[0].name == "episode-0"  # the shard was renamed meanwhile
    assert vrl3data.open(tmp_path / "set").manifest.complete


def test_verification(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 1)
    file = path / "data" / "train-000000.tar"
    start, _ = scan.scan(file).entries[0].members["action.npy"]
    data = bytearray(file.read_bytes())
    data[start + 128] ^= 1
    file.write_bytes(data)
    place = "shard train-000000.tar, episode 000000000, feature action.npy"
    with pytest.raises(DamagedError, match=f"do not have the hash.*{place}"):
        vrl3data.open(path)[0]["action"]
    assert vrl3data.open(path)[0]["reward"].shape == (4,)
    assert vrl3data.open(path, verify="off")[0]["action"].shape == (4, 2)
    with pytest.raises(ConfigError, match="verify 'never'"):
        vrl3data.open(path, verify="never")


def test_opening_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        vrl3data.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="neither dataset.json nor"):
        vrl3data.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="found a file"):
        vrl3data.open(tmp_path / "file")
    with pytest.raises(ConfigError, match="no packaged sample 'x'"):
        vrl3data.open("sample:x")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(FormatError, match="'format' is missing"):
        vrl3data.open(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DamagedError, match="not a manifest of a dataset"):
        vrl3data.open(tmp_path)


def test_the_mean_loss_does_not_depend_on_order_or_chunks() -> None:
    """The exact mean is a tie of rounding, 30.135: a sum in another order rounds to the other side."""
    values = [21.83, 29.03, 33.08, 34.01, 37.89, 22.1, 40.98, 22.16]
    rng, means = np.random.default_rng(0), set()
    for cut in range(30):
        order = rng.permutation(values).tolist()
        column = pa.chunked_array([order[: cut % 8], order[cut % 8 :]], pa.float64())
        found = stats.lossy(pa.table({"psnr": column, "max_error": column}))
        assert found is not None
        means.add(found["psnr_mean"])
    assert len(means) == 1
