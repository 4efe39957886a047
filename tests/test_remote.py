"""Datasets behind real servers on the loopback: the same data, few bytes, and our errors when servers misbehave."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from conftest import make_spec, run_cli, shard_bytes, write_dataset
from fake_hub import TOKEN, Repository
from fake_hub import serving as serving_hub
from point_reach import poor_demonstrations
from range_server import Served, read_in_child, serving

import vrl3data
from pretrain.train import PretrainConfig, SelfSupervisedConfig, pretrain_hilp, pretrain_supervised
from vrl3data import cache as caches
from vrl3data import cli, envs, index, manifest, remote, transport
from vrl3data.address import Address, parse
from vrl3data.cache import DiskCache, Segment, SegmentCache
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, DamagedError, MissingExtra, SourceError, Vrl3dataError
from vrl3data.images import load_images
from vrl3data.loader import load_episodes
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.members import Place
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.writer import Writer

BIG = 300_000
FORK = "ignore:This process .* is multi-threaded:DeprecationWarning"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets that are served; tests that change something take a copy."""
    root = tmp_path_factory.mktemp("home")
    write_dataset(root / "small", 12, make_spec(shard_size=30_000))
    write_cameras(root / "cameras")
    return root


def write_cameras(path: Path) -> Path:
    """Eight episodes of two cameras of 300 kB each: one camera is half of the set."""
    cameras = [Feature(f"obs.image.{name}", "uint8", (100, 100, 3), "state", color="rgb") for name in ("left", "right")]
    schema = Schema("episodes", (*cameras, Feature("action", "float32", (2,))), ())
    spec = DatasetSpec(schema, "cameras", Provenance("test", source_identity="cameras", shard_size=3_000_000))
    rng = np.random.default_rng(0)
    with Writer(path, spec) as writer:
        for number in range(8):
            values: dict[str, Any] = {f.name: rng.integers(0, 255, (10, *f.shape), dtype=np.uint8) for f in cameras}
            values["action"] = rng.normal(size=(10, 2)).astype(np.float32)
            writer.write(Episode(f"{number:03d}", values, length=10, final_observation=False))
        writer.finish()
    return path


@pytest.fixture
def web(home: Path) -> Iterator[Served]:
    with serving(home) as served:
        yield served


@pytest.fixture
def own(tmp_path: Path, home: Path) -> Iterator[Served]:
    """A server of a copy that may be changed."""
    shutil.copytree(home / "small", tmp_path / "web" / "small")
    with serving(tmp_path / "web") as served:
        yield served


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting, no cache and no credentials of this machine, and proxies that lead nowhere."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("VRL3DATA_CACHE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


@pytest.fixture(scope="module")
def bucket(home: Path) -> Iterator[str]:
    """The datasets in an S3 server on the loopback."""
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, config=Config(proxies={}), **keys)
    client.create_bucket(Bucket="sets")
    for file in home.rglob("*"):
        if file.is_file():
            client.put_object(Bucket="sets", Key=file.relative_to(home).as_posix(), Body=file.read_bytes())
    client.close()
    yield endpoint
    server.stop()


@pytest.fixture
def s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return "s3://sets"


@pytest.fixture
def memory(home: Path) -> Iterator[str]:
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(str(home / "small"), "/sets/small", recursive=True)
    files.put(str(home / "cameras"), "/sets/cameras", recursive=True)
    yield "memory://sets"
    files.rm("/sets", recursive=True)


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving_hub() as served:
        for name in ("small", "cameras"):
            folder = home / name
            files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}
            served.repos["dataset", f"sets/{name}"] = Repository(private=True, commits=[files])
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("no_proxy", "127.0.0.1")  # httpx, with which the hub is asked, has no exception for it
        yield "hf://datasets/sets"


@pytest.fixture(params=["web", "s3", "memory", "hub"])
def sets(request: pytest.FixtureRequest) -> str:
    """The URL of the folder of datasets, on each kind of server."""
    found = request.getfixturevalue(request.param)
    return found.url if isinstance(found, Served) else str(found)


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.name, one.length) == (other.name, other.length)
        assert one.meta == other.meta
        assert one.preview() == other.preview()
        for feature in one:
            assert one.row_count(feature) == other.row_count(feature)
            assert np.array_equal(one[feature], other[feature]), feature


# -- the same data, and no more of it than is asked for -----------------------------------------------------------


def test_a_remote_dataset_is_the_local_one(sets: str, home: Path) -> None:
    with vrl3data.open(f"{sets}/small") as found:
        assert found.remote
        assert_same(found, vrl3data.open(home / "small"))
        assert found.manifest.fingerprint == vrl3data.open(home / "small").manifest.fingerprint
        assert repr(found).startswith("<Dataset small")


def test_one_camera_is_half_of_the_bytes(sets: str, home: Path) -> None:
    local = vrl3data.open(home / "cameras")
    with vrl3data.open(f"{sets}/cameras") as found:
        table = load_episodes(found, ["obs.image.left", "action"])
        assert np.array_equal(
            table.array("obs.image.left"), load_episodes(local, ["obs.image.left"]).array("obs.image.left")
        )
        camera = 8 * 10 * 100 * 100 * 3
        assert camera < found.fetched.bytes < camera + 100_000 < local.manifest.bytes * 0.6
        # Manifest, index; then for each episode its commit record, its camera, its actions.
        assert found.fetched.requests <= 2 + 3 * 8


def test_what_is_counted_is_what_the_server_sent(web: Served) -> None:
    with vrl3data.open(f"{web.url}/cameras") as found:
        found[3]["obs.image.right"]
        assert found.fetched == (len(web.asked), web.sent)
        assert all(asked.startswith("bytes=") for _, asked in web.asked)
        assert web.sent < 2 * BIG
        sent = web.sent
        found[3]["obs.image.right"].sum()
        assert web.sent == sent


def test_a_split_of_images_is_read_without_the_others(tmp_path: Path) -> None:
    write_images(tmp_path / "set")
    with serving(tmp_path) as served, vrl3data.open(f"{served.url}/set") as found:
        table = load_images(found, 32, "val")
        assert len(table) == 4
        assert np.array_equal(table.images_NHWC, load_images(vrl3data.open(tmp_path / "set"), 32, "val").images_NHWC)
        assert found.fetched.bytes < 0.5 * found.manifest.bytes
        # Neighbours come together: manifest, index, and one range for all of the split.
        assert found.fetched.requests == 3


def write_images(path: Path) -> Path:
    rng = np.random.default_rng(0)
    picture = Feature("image", "uint8", (32, 32, 3), "episode", color="rgb")
    schema = Schema("images", (picture, Feature("cls", "int64", (), "episode", "text", names=("a", "b"))), ())
    with Writer(path, DatasetSpec(schema, "pictures", Provenance("test", source_identity="p"))) as writer:
        for split, count in (("train", 24), ("val", 4)):
            for number in range(count):
                image = rng.integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
                image[..., number % 2] = 255
                values = {"image": image, "cls": np.array([number % 2])}
                writer.write(Episode(f"{split}-{number}", values, split=split, label=number % 2))
        writer.finish()
    return path


def test_encoders_and_policies_train_from_a_url(sets: str, home: Path, tmp_path: Path) -> None:
    config = SelfSupervisedConfig(encoder="resnet6_32channel", camera="left", image_size=100, steps=2, batch_size=8)
    there, scores = pretrain_hilp(f"{sets}/cameras", tmp_path / "there", config)
    here, expected = pretrain_hilp(home / "cameras", tmp_path / "here", config)
    assert scores == expected
    assert there.spec.provenance["data"] == here.spec.provenance["data"]


def test_supervised_training_reads_the_pictures_once(tmp_path: Path) -> None:
    write_images(tmp_path / "set")
    config = PretrainConfig(image_size=32, epochs=1, batch_size=8)
    with serving(tmp_path) as served:
        _, scores = pretrain_supervised(f"{served.url}/set", tmp_path / "there", config, split="train")
        size = vrl3data.open(tmp_path / "set").manifest.bytes
        assert served.sent < 1.1 * size
    assert scores == pretrain_supervised(tmp_path / "set", tmp_path / "here", config, split="train")[1]


def test_a_policy_is_cloned_from_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_train import BRIEF, POINT, point_config

    from vrl3data.rl.train import train

    monkeypatch.setitem(envs.ENVS, "point-reach", "point_reach:PointReach")
    poor_demonstrations(tmp_path / "set")
    options = replace(BRIEF, stage="2", episodes=2)
    config = point_config(stage2__bc_updates=5, stage2__updates=2, stage3__frames=0)
    with serving(tmp_path) as served:
        secret = served.url.replace("//", "//me:s3cr3t@")
        there = train(f"{secret}/set", POINT, tmp_path / "there", config, options)
        assert not [file for file in (tmp_path / "there").rglob("*.json") if "s3cr3t" in file.read_text()]
    assert there.scores == train(tmp_path / "set", POINT, tmp_path / "here", config, options).scores


def test_info_says_what_was_fetched(web: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_cli("info", f"{web.url}/small")
    assert result.returncode == 0, result.stderr
    assert "12 (train 12)" in result.stdout
    assert re.search(r"fetched \d+\.\d kB in 2 requests", result.stderr)
    assert cli.run(["info", "--json", f"{web.url.replace('//', '//me:s3cr3t@')}/small"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == f"{web.url}/small"
    for command in (["validate"], ["card"], ["index", "rebuild"]):
        assert cli.run([*command, f"{web.url}/small"]) == 2
        assert "found a URL; download the dataset first" in capsys.readouterr().err
    assert cli.run(["view", f"{web.url}/small", "--html", str(tmp_path / "page.html")]) == 0


# -- servers that misbehave ---------------------------------------------------------------------------------------


def test_a_server_without_ranges_is_left_before_it_sends_everything(web: Served) -> None:
    web.ranges = False
    with pytest.raises(SourceError, match="ignores Range and sends whole files; download the dataset"):
        vrl3data.open(f"{web.url}/cameras")
    web.ranges = True
    found = vrl3data.open(f"{web.url}/cameras")
    web.ranges, web.sent = False, 0
    with pytest.raises(SourceError, match=r"ignores Range.*shard train-000000.tar"):
        found[0]["action"]
    assert found.fetched.bytes < BIG


def test_what_fails_twice_is_tried_again(web: Served, home: Path) -> None:
    found = vrl3data.open(f"{web.url}/small")
    web.failures = [503, 429]
    assert np.array_equal(found[0]["action"], vrl3data.open(home / "small")[0]["action"])
    assert found.fetched.requests == len(web.asked)


def test_what_fails_for_good_is_said_with_the_place(web: Served) -> None:
    found = vrl3data.open(f"{web.url}/small")
    web.failures = [503] * 100
    with pytest.raises(SourceError, match=r"HTTP 503, 5 times in a row \(path http://.*/small, shard train-0.*offset"):
        found[0]["action"]
    web.failures = [401]
    with pytest.raises(SourceError, match=r"access is refused \(HTTP 401\)"):
        found[0]["action"]
    web.failures = [400]
    with pytest.raises(SourceError, match="the server answered HTTP 400"):
        found[0]["action"]
    web.failures = []
    assert found[0]["action"].shape == (4, 2)


def test_waiting_grows_and_the_server_may_ask_for_more(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    found, waits = vrl3data.open(f"{web.url}/small"), list[float]()
    monkeypatch.setattr(remote, "FIRST_WAIT", 1.0)
    monkeypatch.setattr("vrl3data.remote.time.sleep", waits.append)
    web.failures = [503, 503, 503]
    found[0]["action"]
    assert [wait for wait in waits if wait] == [1.0, 2.0, 4.0]  # the server sleeps too
    waits.clear()
    web.failures, web.retry_after = [429, 503], "7"
    found[5]["action"]
    assert [wait for wait in waits if wait] == [7.0, 7.0]
    assert transport._seconds("1000") == 60.0
    assert transport._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_a_broken_connection_is_tried_again(web: Served, home: Path) -> None:
    found = vrl3data.open(f"{web.url}/small")
    web.truncate = 1
    assert np.array_equal(found[0]["action"], vrl3data.open(home / "small")[0]["action"])
    web.truncate = 1000
    with pytest.raises(SourceError, match=r"bytes came, 5 times|connection failed.*5 times"):
        found[5]["action"]


def test_wrong_bytes_are_fetched_again_once_and_then_damage(web: Served, home: Path) -> None:
    found = vrl3data.open(f"{web.url}/small")
    web.flip = 1
    assert np.array_equal(found[0]["action"], vrl3data.open(home / "small")[0]["action"])
    web.flip = 10_000
    with pytest.raises(DamagedError, match=r"hash.*shard train-000000.tar, episode 000000001"):
        found[1]["obs.image.top"]
    with pytest.raises(DamagedError, match="hash"):
        vrl3data.open(f"{web.url}/small", verify="always")[2]["action"]


def test_silence_ends_in_an_error(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "READ_SECONDS", 0.1)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    found = vrl3data.open(f"{web.url}/small")
    web.delay = 0.5
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"(connection failed|in time).*2 times in a row"):
        found[0]["action"]
    assert time.monotonic() - started < 3


def test_a_dripping_server_ends_in_an_error(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vrl3data.open(f"{web.url}/small")
    monkeypatch.setattr(transport, "READ_SECONDS", 0.1)  # of the whole; the connection has its own, longer limit
    monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.0)
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    web.delay = 1.0
    with pytest.raises(SourceError, match="did not answer in time"):
        found[0]["action"]


def test_nobody_there() -> None:
    with pytest.raises(SourceError, match=r"the connection failed \(ClientConnectorError\), 5 times.*127.0.0.1:9"):
        vrl3data.open("http://127.0.0.1:9/set")


def test_a_shard_that_changes_is_damage(own: Served, tmp_path: Path) -> None:
    found = vrl3data.open(f"{own.url}/small")
    found[0]["action"]
    own.etag = "changed"
    with pytest.raises(DamagedError, match=r"changed at its home since it was opened.*shard train-000000"):
        found[1]["action"]
    with (tmp_path / "web" / "small" / "data" / "train-000001.tar").open("ab") as file:
        file.write(bytes(512))
    far = len(found) - 1
    while found.place(far)[1] != "train-000001.tar":
        far -= 1
    with pytest.raises(DamagedError, match=r"the shard has \d+ bytes, the manifest promises"):
        found[far]["action"]
    (tmp_path / "web" / "small" / "data" / "train-000002.tar").unlink()
    while found.place(far)[1] != "train-000002.tar":
        far += 1
    with pytest.raises(DamagedError, match=r"the file is missing \(HTTP 404\).*shard train-000002.tar"):
        found[far]["action"]


def test_a_shard_that_was_cut_off(own: Served, tmp_path: Path) -> None:
    found = vrl3data.open(f"{own.url}/small")
    path = tmp_path / "web" / "small" / "data" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DamagedError, match="the file ends before byte"):
        found[0]["reward"]


def test_without_manifest_or_index_it_is_said_what_to_do(own: Served, tmp_path: Path) -> None:
    folder = tmp_path / "web" / "small"
    good = (folder / "index.parquet").read_bytes()
    (folder / "index.parquet").write_bytes(good[:-1] + b"x")
    with pytest.raises(DamagedError, match=r"the index is not the one .*'vrl3data index rebuild' at the home"):
        vrl3data.open(f"{own.url}/small")
    (folder / "index.parquet").unlink()
    with pytest.raises(DamagedError, match=r"missing.*'vrl3data index rebuild' at the home.*index.parquet"):
        vrl3data.open(f"{own.url}/small")
    (folder / "dataset.json").write_bytes(b"<html>")
    with pytest.raises(DamagedError, match="not a manifest"):
        vrl3data.open(f"{own.url}/small")
    (folder / "dataset.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no dataset.json here; .* download the dataset"):
        vrl3data.open(f"{own.url}/small")


def test_files_that_are_too_large_are_not_fetched(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MANIFEST_BYTES", 1000)
    with pytest.raises(DamagedError, match="expected at most 1000 bytes"):
        vrl3data.open(f"{web.url}/small")
    assert web.sent <= 1000


def test_a_manifest_that_names_other_files_is_refused(own: Served, tmp_path: Path) -> None:
    path = tmp_path / "web" / "small" / "dataset.json"
    good = path.read_text()
    for name in ("../../secret.tar", "train-000000.tar?x=1", "http://elsewhere/x.tar", "/etc/passwd"):
        path.write_text(good.replace("train-000001.tar", name))
        with pytest.raises(DamagedError, match="this is not a manifest"):
            vrl3data.open(f"{own.url}/small")
        with pytest.raises(DamagedError, match="this is not a manifest"):
            vrl3data.open(path.parent)
    path.write_text(re.sub(r'"bytes": \d+', '"bytes": -1', good))
    with pytest.raises(DamagedError, match="has .* samples, -1 bytes"):
        vrl3data.open(f"{own.url}/small")
    assert not own.count("passwd")


def test_an_index_that_points_outside_is_refused(own: Served, tmp_path: Path) -> None:
    folder = tmp_path / "web" / "small"
    for column, values, message in (("action.npy.size", 10**12, "lies outside"), ("action.npy.offset", -5, "outside")):
        table = pq.read_table(folder / "index.parquet")
        place = table.column_names.index(column)
        wrong = table.set_column(place, column, pa.array([values] * len(table), pa.int64()))
        text = json.loads((folder / "dataset.json").read_text())
        text["index"] = index.write(folder, wrong)
        (folder / "dataset.json").write_text(json.dumps(text))
        with pytest.raises(DamagedError, match=message):
            vrl3data.open(f"{own.url}/small")[0]["action"]
    assert own.sent < 100_000


@pytest.mark.parametrize("how", ["null", "short", "garbage", "foreign"])
def test_an_index_that_is_none_is_refused(own: Served, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "web" / "small"
    table = pq.read_table(folder / "index.parquet")
    text, null = json.loads((folder / "dataset.json").read_text()), pa.nulls(len(table), pa.int64())
    if how == "garbage":
        (folder / "index.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
        text["index"] = {"xxh3_128": xxhash.xxh3_128_hexdigest((folder / "index.parquet").read_bytes())}
    else:
        names = pa.array(["train-999999.tar"] * len(table))
        wrong = {
            "null": table.set_column(0, "key", null),
            "short": table.slice(1),
            "foreign": table.set_column(1, "shard", names),
        }
        text["index"] = index.write(folder, wrong[how])
    (folder / "dataset.json").write_text(json.dumps(text))
    expected = {"null": "no 'key' for some", "short": "the index has 11 samples, the manifest 12",
                "garbage": "the index cannot be read", "foreign": "no shard of this dataset"}  # fmt: skip
    with pytest.raises(DamagedError, match=expected[how]):
        vrl3data.open(f"{own.url}/small")


def test_ctrl_c_ends_a_wait(web: Served) -> None:
    code = (
        f"import vrl3data\nfound = vrl3data.open('{web.url}/small')\nprint('open', flush=True)\n"
        "input()\ntry:\n    found[0]['action']\nexcept KeyboardInterrupt:\n    print('interrupted')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "open\n"
        web.delay = 20.0
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        process.wait(10)


# -- S3 ------------------------------------------------------------------------------------------------------------


def test_s3_errors_are_ours(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"there is no dataset.json here.*path s3://sets/none"):
        vrl3data.open(f"{s3}/none")
    with pytest.raises(ConfigError, match=r"there is no dataset.json here.*path s3://nobody/none"):
        vrl3data.open("s3://nobody/none")
    with pytest.raises(ConfigError, match="these options do not fit s3"):
        vrl3data.open(f"{s3}/small", storage_options={"key": "k", "username": "u"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"the connection failed \(.*5 times in a row"):
        vrl3data.open(f"{s3}/small")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(SourceError, match="there are no credentials"):
        vrl3data.open(f"{s3}/small")


def test_a_changed_object_is_damage(s3: str, bucket: str, home: Path) -> None:
    import fsspec

    def put(data: bytes) -> None:
        files = fsspec.filesystem("s3", endpoint_url=bucket, config_kwargs={"proxies": {}}, skip_instance_cache=True)
        files.pipe_file("sets/small/data/train-000000.tar", data)

    good = (home / "small" / "data" / "train-000000.tar").read_bytes()
    found = vrl3data.open(f"{s3}/small")
    found[0]["action"]
    put(good[:-1] + b"x")
    try:
        with pytest.raises(DamagedError, match="changed at its home"):
            found[1]["action"]
    finally:
        put(good)


@pytest.mark.parametrize(
    ("package", "url", "extra"), [("s3fs", "s3://sets/x", "vrl3data[s3]"), ("aiohttp", "http://h/x", "fsspec[http]")]
)
def test_what_is_not_installed_is_named(package: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=re.escape(f"needs {package}: pip install '{extra}'")):
        vrl3data.open(url)


def test_the_hub_is_read_at_one_commit(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vrl3data.open(f"{hub}/small@main")
    assert str(found.path) == f"{hub}/small@main"
    assert "/resolve/0000" in found._place.target.base  # type: ignore[union-attr]
    with pytest.raises(SourceError, match="the hub has no such dataset or revision"):
        vrl3data.open(f"{hub}/none")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="the hub cannot be asked"):
        vrl3data.open(f"{hub}/small")


# -- secrets -------------------------------------------------------------------------------------------------------


def test_secrets_in_an_address_are_used_and_never_shown(web: Served) -> None:
    web.password, web.query = "me:s3cr3t", "sig=s3cr3t"
    url = web.url.replace("//", "//me:s3cr3t@") + "/small"
    found = vrl3data.open(f"{url}?sig=s3cr3t")
    assert found[0]["action"].shape == (4, 2)
    shown = [repr(found), str(found.path), repr(found.path), repr(found._place), str(found.fetched)]
    for failures in ([503] * 100, [403], [404], []):
        web.failures, web.truncate = failures, 0 if failures else 1000
        with pytest.raises(Vrl3dataError) as caught:
            found[5]["action"]
        shown += [str(caught.value), "".join(traceback.format_exception(caught.value))]
    web.truncate = 0
    for wrong in (url, f"{url}x?sig=s3cr3t", url.replace("127.0.0.1", "localhost:1:1") + "?s3cr3t", f"xx://{url}"):
        with pytest.raises(Vrl3dataError) as caught:
            vrl3data.open(wrong)
        shown.append("".join(traceback.format_exception(caught.value)).replace('vrl3data.open(f"{url}', ""))
    assert not [text for text in shown if "s3cr3t" in text]


def test_addresses() -> None:
    assert str(parse("https://me:pw@host:8/a/b/?sig=x#y")) == "https://host:8/a/b"
    assert parse("https://me:pw@host:8/a/b/?sig=x#y").of("data/x") == "https://me:pw@host:8/a/b/data/x?sig=x"  # type: ignore[union-attr]
    assert str(parse("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert parse("hf://datasets/me/set@v1") == Address("hf", "me/set", revision="v1")
    assert parse("file:///a/b%20c") == Path("/a/b c")
    for wrong, message in (
        ("gopher://x/y", "no way to read from gopher://; there are: file, hf, http, https, memory, s3"),
        ("htp://x/y", "did you mean 'http'"),
        ("file://host/x", "expected file:///absolute/path"),
        ("hf://me/set", "expected hf://datasets/USER/NAME"),
        ("s3://bucket", "expected s3://HOST-OR-BUCKET/FOLDER"),
        ("https://", "does not name a dataset"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            vrl3data.open(wrong)
    with pytest.raises(ConfigError, match="a URL is text, not a Path"):
        vrl3data.open(Path("https://host/set"))


def test_a_file_url_is_a_folder(home: Path) -> None:
    found = vrl3data.open((home / "small").as_uri())
    assert (found.path, found.remote) == (home / "small", False)


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("kind", ["web", "s3"])
def test_children_read_for_themselves(method: str, kind: str, home: Path, request: pytest.FixtureRequest) -> None:
    served = request.getfixturevalue(kind)
    found = vrl3data.open(f"{served.url if kind == 'web' else served}/small")
    found[0]["action"]
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    children = [context.Process(target=read_in_child, args=(found, position, answers)) for position in (1, 2)]
    for process in children:
        process.start()
    got = sorted(answers.get(timeout=60) for _ in children)
    for process in children:
        process.join(30)
        assert process.exitcode == 0
    local = vrl3data.open(home / "small")
    assert [value for _, value, _ in got] == [float(local[position]["action"].sum()) for position in (1, 2)]
    assert all(requests == 1 + (method == "fork") * 3 for _, _, requests in got)
    assert np.array_equal(found[3]["action"], local[3]["action"])


def test_a_copy_asks_for_nothing_twice(web: Served) -> None:
    found = vrl3data.open(f"{web.url}/small")
    asked = len(web.asked)
    other = pickle.loads(pickle.dumps(found))
    assert len(web.asked) == asked
    assert np.array_equal(other[1]["action"], found[1]["action"])
    asked, twin = len(web.asked), copy.copy(found)
    assert np.array_equal(twin[1]["action"], found[1]["action"])
    assert len(web.asked) == asked
    assert copy.copy(vrl3data.open("sample:fetch-reach")).path == vrl3data.open("sample:fetch-reach").path


def test_threads_share_what_was_fetched(web: Served, home: Path) -> None:
    found, local = vrl3data.open(f"{web.url}/cameras", cache_bytes=2 * BIG), vrl3data.open(home / "cameras")
    expected = [int(item["obs.image.left"].sum(dtype=np.int64)) for item in local]

    def read(seed: int) -> bool:
        own, order = copy.copy(found), np.random.default_rng(seed).permutation(8)
        return all(int(own[at]["obs.image.left"].sum(dtype=np.int64)) == expected[at] for at in order)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(12)))
    assert found.fetched.bytes == web.sent


def test_what_cannot_be_mapped_is_said(web: Served) -> None:
    found = vrl3data.open(f"{web.url}/small")
    with pytest.raises(ConfigError, match="cannot be mapped; use storage 'ram' or 'stream'"):
        load_episodes(found, ["obs.image.top"], storage="mmap")


# -- the cache -----------------------------------------------------------------------------------------------------


def test_memory_is_bounded(web: Served) -> None:
    limit = 3 * BIG
    with vrl3data.open(f"{web.url}/cameras", cache_bytes=limit) as found:
        for item in found.ahead(range(len(found)), ("obs.image.left", "obs.image.right")):
            assert item["obs.image.left"].shape == item["obs.image.right"].shape
            assert found.members.cache.bytes <= limit  # type: ignore[attr-defined]
        requests = found.fetched.requests
        found[7]["obs.image.right"]
        assert found.fetched.requests == requests
        found[0]["obs.image.right"]
        assert found.fetched.requests > requests
    with pytest.raises(ConfigError, match="cache_bytes: expected a number of bytes, found -1"):
        vrl3data.open(f"{web.url}/cameras", cache_bytes=-1)


def test_a_member_larger_than_the_cache_is_held_while_it_is_read(web: Served) -> None:
    with vrl3data.open(f"{web.url}/cameras", cache_bytes=1000) as found:
        for row in range(10):
            assert found[2].rows("obs.image.left", row, row + 1).shape == (1, 100, 100, 3)
        assert found.fetched.requests <= 2 + 3


def test_bytes_that_were_fetched_again_are_checked_again(web: Served) -> None:
    """Otherwise a first touch that was right would vouch for whatever comes later."""
    with vrl3data.open(f"{web.url}/cameras", cache_bytes=BIG + 20_000) as found:
        found[0]["obs.image.left"]
        found[1]["obs.image.left"]
        assert found.fetched.requests == 6
        web.flip = 10_000
        with pytest.raises(DamagedError, match="the bytes do not have the hash of the commit record"):
            found.member(0, "obs.image.left.npy")


def test_a_folder_keeps_what_was_fetched(web: Served, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert_same(vrl3data.open(f"{web.url}/small", cache_dir=folder), vrl3data.open(home / "small"))
    web.asked.clear()
    found = vrl3data.open(f"{web.url}/small", cache_dir=str(folder))
    assert_same(found, vrl3data.open(home / "small"))
    assert [path for path, _ in web.asked] == ["/small/dataset.json"]
    assert folder.stat().st_mode & 0o077 == 0 or next(folder.iterdir()).stat().st_mode & 0o077 == 0


def test_the_folder_may_come_from_the_environment(web: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRL3DATA_CACHE", str(tmp_path / "cache"))
    vrl3data.open(f"{web.url}/small")[0]["action"]
    assert list((tmp_path / "cache").rglob("train-000000.tar.*"))
    assert list((tmp_path / "cache").rglob("index.parquet.*"))


@pytest.mark.parametrize("how", ["flip", "shorten", "empty"])
def test_a_spoilt_cache_is_fetched_again(web: Served, home: Path, tmp_path: Path, how: str) -> None:
    vrl3data.open(f"{web.url}/small", cache_dir=tmp_path)[0]["action"]
    for file in tmp_path.rglob("*.*-*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= how == "flip"
        file.write_bytes({"flip": bytes(data), "shorten": data[:-7], "empty": b""}[how])
    asked = len(web.asked)
    found = vrl3data.open(f"{web.url}/small", cache_dir=tmp_path)
    assert np.array_equal(found[0]["action"], vrl3data.open(home / "small")[0]["action"])
    assert len(web.asked) > asked + 1
    asked = len(web.asked)
    vrl3data.open(f"{web.url}/small", cache_dir=tmp_path)[0]["action"]
    assert len(web.asked) == asked + 1


def test_a_dataset_that_changed_finds_nothing_of_its_old_self(own: Served, tmp_path: Path) -> None:
    folder = tmp_path / "web" / "small"
    first = vrl3data.open(f"{own.url}/small", cache_dir=tmp_path / "cache")[0]["action"]
    shutil.rmtree(folder)
    write_dataset(folder, 12, make_spec(shard_size=30_000), first=3)
    own.etag = "other"
    second = vrl3data.open(f"{own.url}/small", cache_dir=tmp_path / "cache")[0]["action"]
    assert np.array_equal(second, vrl3data.open(folder)[0]["action"])
    assert not np.array_equal(first, second)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_folder_is_bounded_and_only_our_files_go(tmp_path: Path) -> None:
    old, foreign = tmp_path / f"vrl3data-{'0' * 32}", tmp_path / "notes" / "train-000000.tar.0-10"
    for file in (foreign, old / "notes.txt", old / "train-000000.tar.0-10", old / ".tmp-x", old / ".tmp-new"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(500))
    os.utime(old / ".tmp-x", (1, 1))
    os.utime(old / "train-000000.tar.0-10", (1, 1))
    disk = DiskCache(tmp_path, "1" * 32, 2000)
    rng = np.random.default_rng(0)
    for number in range(40):
        disk.write(Segment("train-000000.tar", 300 * number, 300 * number + 300, rng.bytes(300)))
        time.sleep(0.002)
        assert disk.read("train-000000.tar", 0, 10) is not None or number > 30  # in use: stays while others go
    sizes = [file.stat().st_size for file in tmp_path.rglob("*.tar.*-*") if file != foreign]
    assert sum(sizes) <= 2000 * (1 + 1 / caches.SWEEP_SHARE) + 316
    assert disk.read("train-000000.tar", 300 * 39, 300 * 40) is not None
    assert disk.read("train-000000.tar", 300, 600) is None
    assert not (old / "train-000000.tar.0-10").exists()
    assert not (old / ".tmp-x").exists()
    assert foreign.exists()
    assert (old / "notes.txt").exists()
    assert (old / ".tmp-new").exists()
    disk.write(Segment("train-000001.tar", 0, 5000, bytes(5000)))
    assert disk.read("train-000001.tar", 0, 5000) is None


def test_processes_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "LOOK_AGAIN_SECONDS", 0.0)
    one, other = DiskCache(tmp_path, "1" * 32, 10**6), DiskCache(tmp_path, "1" * 32, 10**6)
    assert other.read("train-000000.tar", 0, 10) is None
    one.write(Segment("train-000000.tar", 0, 100, bytes(100)))
    time.sleep(0.01)
    found = other.read("train-000000.tar", 20, 30)
    assert found is not None and (found.start, found.stop) == (0, 100)
    one.remove(found)
    assert other.read("train-000000.tar", 20, 30) is None
    assert other.read("train-000000.tar", 20, 30) is None


def test_a_disk_that_fails_costs_the_cache_and_nothing_else(
    web: Served, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vrl3data.open(f"{web.url}/small", cache_dir=tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vrl3data.cache.os.replace", full)
    with pytest.warns(UserWarning, match="is not written to any more: No space left"):
        values = found[0]["action"]
    assert np.array_equal(values, vrl3data.open(home / "small")[0]["action"])
    assert np.array_equal(found[1]["action"], vrl3data.open(home / "small")[1]["action"])
    assert not list(tmp_path.rglob(".tmp-*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another folder for the cache"):
        vrl3data.open(f"{web.url}/small", cache_dir=tmp_path / "file")


def test_segments_that_overlap() -> None:
    cache = SegmentCache(1000)
    cache.add([Segment("a", 0, 500, bytes(500)), Segment("a", 100, 200, bytes(100))])
    found = cache.find("a", 150, 400)
    assert found is not None and found.start == 0
    assert cache.find("a", 150, 501) is None
    assert cache.find("b", 0, 1) is None
    cache.add([Segment("a", 0, 2000, bytes(2000))])
    assert cache.bytes == 2000
    assert cache.find("a", 150, 160) is not None


def test_neighbours_are_merged_and_large_members_cut() -> None:
    places = [Place(0, "x", "s", 0, 100), Place(0, "y", "s", 612, 100), Place(1, "x", "s", 10**6, 5),
              Place(2, "x", "t", 0, 5), Place(3, "x", "s", 10**6 + remote.MERGED - 2, 5)]  # fmt: skip
    found = [(item.name, item.start, item.stop) for item in remote.merged(places[::-1])]
    assert found == [("s", 0, 712), ("s", 10**6, 10**6 + 5), ("s", 10**6 + remote.MERGED - 2,
                     10**6 + remote.MERGED + 3), ("t", 0, 5)]  # fmt: skip
    far = remote.merged([Place(0, "x", "s", 0, 100), Place(0, "y", "s", 100 + remote.GAP + 1, 100)])
    assert len(far) == 2
    cut = remote.pieces("s", 10, 10 + 2 * remote.MERGED + 1)
    assert [part.stop - part.start for part in cut] == [remote.MERGED, remote.MERGED, 1]


def test_what_lies_side_by_side_comes_together(web: Served) -> None:
    found = vrl3data.open(f"{web.url}/small")
    members = ["obs.image.top.npy", "obs.state.npy", "action.npy"]
    found.prefetch(range(12), members)
    assert found.fetched.requests == 2 + len({found.place(position)[1] for position in range(12)})
    web.failures = [500] * 1000
    for item in found:
        assert item["action"].shape[1] == 2
        assert item["obs.image.top"].shape[3] == 3


def test_a_dataset_is_made_from_one_behind_a_url(web: Served, home: Path, tmp_path: Path) -> None:
    assert cli.run(["filter", f"{web.url}/small", str(tmp_path / "few"), "length > 4", "--quiet"]) == 0
    assert cli.run(["filter", str(home / "small"), str(tmp_path / "same"), "length > 4", "--quiet"]) == 0
    assert shard_bytes(tmp_path / "few") == shard_bytes(tmp_path / "same")
    assert "127.0.0.1" not in (tmp_path / "few" / "dataset.json").read_text()
    assert len(web.asked) <= 2 + 12
    found = vrl3data.open(f"{web.url}/cameras")
    assert found[0].load().values["obs.image.left"].shape == (10, 100, 100, 3)
    assert found.fetched.requests == 3


def test_a_large_member_comes_in_pieces(web: Served, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MERGED", 50_000)
    found = vrl3data.open(f"{web.url}/cameras")
    before = len(web.asked)
    web.failures = [503]
    assert np.array_equal(found[0]["obs.image.left"], vrl3data.open(home / "cameras")[0]["obs.image.left"])
    assert before + 8 <= len(web.asked) <= before + 10


# -- what opening costs --------------------------------------------------------------------------------------------


def test_reading_by_url_needs_no_torch(web: Served) -> None:
    code = f"import sys, vrl3data; vrl3data.open('{web.url}/small')[0]['action']; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_the_index_of_a_remote_dataset_is_hashed(own: Served, tmp_path: Path) -> None:
    """One changed value in an otherwise valid index is not believed."""
    folder = tmp_path / "web" / "small"
    table = pq.read_table(folder / "index.parquet")
    index.write(folder, table.set_column(0, "key", pa.array([*range(len(table) - 1), 0], pa.int64())))
    assert xxhash.xxh3_128_hexdigest((folder / "index.parquet").read_bytes())
    with pytest.raises(DamagedError, match="the index is not the one"):
        vrl3data.open(f"{own.url}/small")
    assert manifest.read(folder) is not None
