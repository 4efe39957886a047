"""Image streams: every image once, the same pictures as a table in memory, and training that cannot tell them apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, jpeg, make_pictures, write_dataset

import vrl3data
from pretrain.train import PretrainConfig, SelfSupervisedConfig, pretrain_mae, pretrain_supervised
from vrl3data import report, stream
from vrl3data.errors import ConfigError, DamagedError
from vrl3data.images import ImageTable, load_images
from vrl3data.stream import ImageStream, open_images

COUNT, SIZE = 50, 16


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stream")
    make_pictures(root / "pictures", COUNT, classes=3)
    vrl3data.convert("imagenet", root / "pictures", root / "set", {"shard_size": 60_000})
    return root / "set"


@pytest.fixture(scope="module")
def dataset(path: Path) -> vrl3data.Dataset:
    return vrl3data.open(path)


@pytest.mark.parametrize(("workers", "kind"), [(0, "thread"), (3, "thread"), (2, "fork"), (2, "spawn")])
def test_every_image_once_with_its_label(dataset, workers, kind):
    assert len({dataset.place(i)[1] for i in range(COUNT)}) > 1
    table = load_images(dataset, SIZE)
    options = {"epochs": 2, "shuffle_buffer": 16, "shuffle_run": 4}
    with dataset.images(8, SIZE, workers=workers, worker_kind=kind, **options) as batches:
        found = list(batches)
    assert len(found) == len(batches) == 14
    for epoch in (found[:7], found[7:]):
        assert sorted(np.concatenate([batch["index"] for batch in epoch]).tolist()) == list(range(COUNT))
    for batch in found:
        assert batch["image"].dtype == np.uint8 and batch["image"].shape[1:] == (SIZE, SIZE, 3)
        assert np.array_equal(batch["image"], table.images_NHWC[batch["index"]])
        assert np.array_equal(batch["label"], table.labels_N[batch["index"]])
    alone = list(dataset.images(8, SIZE, **options))
    assert all(np.array_equal(one["index"], two["index"]) for one, two in zip(found, alone, strict=True))


def test_two_ranks_with_two_workers_see_every_image_once(dataset):
    seen = [
        batch["index"][batch["valid"]].tolist()
        for rank in (0, 1)
        for batch in dataset.images(4, SIZE, rank=rank, world=2, workers=2, pad_last=True)
    ]
    assert sorted(number for batch in seen for number in batch) == list(range(COUNT))


def test_images_go_on_where_they_were(dataset):
    first = dataset.images(8, SIZE, workers=2, epochs=2, seed=4)
    for _ in range(3):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = dataset.images(8, SIZE, epochs=2, seed=4)
    second.load_state_dict(state)
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one["index"], two["index"])
    with pytest.raises(ConfigError, match="size 16, not 20"):
        dataset.images(8, 20, seed=4).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 0}, "size: expected at least 1"), ({"shufle": True}, "unknown option 'shufle'; did you mean 'shuffle'"),
     ({"by": "episode", "replacement": True}, "images belong to no episode"),
     ({"positions": []}, "no images were chosen"), ({"positions": [99]}, "positions: expected 0 to 49"),
     ({"split": "tset"}, "no split 'tset'")],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(dataset, options: dict[str, Any], message):
    with pytest.raises(ConfigError, match=message):
        dataset.images(**{"batch_size": 4, "size": SIZE, **options})


def test_episodes_are_refused(tmp_path):
    with (
        vrl3data.open(write_dataset(tmp_path / "set")) as episodes,
        pytest.raises(ConfigError, match=r"those have ds\.windows"),
    ):
        episodes.images(4, SIZE)


def test_a_stream_takes_what_a_table_holds(dataset, monkeypatch):
    table, lazy = load_images(dataset, SIZE), ImageStream(dataset, SIZE, workers=2)
    assert (len(lazy), lazy.classes) == (COUNT, table.classes)
    assert np.array_equal(lazy.labels_N, table.labels_N)
    rows = np.random.default_rng(0).integers(0, COUNT, 40)
    decoded: list[int] = []
    real = stream.decode
    monkeypatch.setattr(stream, "decode", lambda d, p, size: decoded.append(len(p)) or real(d, p, size))
    for times in (1, 2):
        lazy.prefetch(rows)
        lazy.prefetch(rows)
        assert np.array_equal(lazy.take(rows), table.images_NHWC[rows])
        assert sum(decoded) == times * len(rows)  # what was announced is decoded once, and forgotten when taken
    assert not lazy._ahead
    lazy.close()


def test_what_does_not_fit_is_streamed(dataset, monkeypatch):
    assert isinstance(open_images(dataset, SIZE), ImageTable)
    assert isinstance(open_images(dataset, SIZE, stream=True), ImageStream)
    monkeypatch.setattr(stream, "physical_memory", lambda: COUNT * SIZE * SIZE * 3)
    assert isinstance(open_images(dataset, SIZE), ImageStream)
    assert isinstance(open_images(dataset, SIZE, stream=False), ImageTable)


def test_images_without_labels_are_refused(tmp_path):
    (tmp_path / "tiny" / "train" / "n01").mkdir(parents=True)
    (tmp_path / "tiny" / "train" / "n01" / "a.JPEG").write_bytes(jpeg(20, 20))
    (tmp_path / "tiny" / "test" / "images").mkdir(parents=True)
    (tmp_path / "tiny" / "test" / "images" / "b.JPEG").write_bytes(jpeg(20, 20, 1))
    vrl3data.convert("imagenet", tmp_path / "tiny", tmp_path / "set")
    with vrl3data.open(tmp_path / "set") as dataset:
        with pytest.raises(ConfigError, match="1 images have no label"):
            ImageStream(dataset, SIZE, "test")
        assert next(dataset.images(1, SIZE, split="test"))["label"].tolist() == [-1]


def test_a_damaged_image_is_an_error_with_its_place(tmp_path):
    vrl3data.convert("imagenet", make_pictures(tmp_path / "pictures", 6), tmp_path / "set")
    with vrl3data.open(tmp_path / "set") as dataset:
        shard, offset = dataset.place(3)[1], int(dataset.index["jpg.offset"].to_numpy()[3])
    data = bytearray((tmp_path / "set" / "data" / shard).read_bytes())
    data[offset + 300] ^= 255
    (tmp_path / "set" / "data" / shard).write_bytes(bytes(data))
    with vrl3data.open(tmp_path / "set") as dataset:
        with pytest.raises(DamagedError, match=r"do not have the hash.*episode"):
            list(dataset.images(2, SIZE, workers=2))
        with pytest.raises(DamagedError, match="do not have the hash"):
            ImageStream(dataset, SIZE).take(np.arange(6))


def test_training_from_a_stream_gives_the_same_encoder(path, tmp_path):
    config = PretrainConfig(epochs=2, image_size=28, batch_size=16, precision="fp32")
    notes: list[str] = []

    class Noted(report.Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    pretrain_supervised(path, tmp_path / "memory", config, val=path, stream=False)
    pretrain_supervised(path, tmp_path / "stream", config, val=path, stream=True, reporter=Noted())
    weights = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("memory", "stream")]
    assert weights[0] == weights[1]
    assert any("decoded as they are needed" in note for note in notes)


def test_masked_autoencoders_train_from_a_stream_too(path, tmp_path, monkeypatch):
    config = SelfSupervisedConfig(steps=3, image_size=24, batch_size=8, precision="fp32")
    weights = []
    for name, memory in (("memory", 10**12), ("stream", 1000)):
        monkeypatch.setattr(stream, "physical_memory", lambda memory=memory: memory)
        pretrain_mae(path, tmp_path / name, config, val=path)
        weights.append((tmp_path / name / "encoder.safetensors").read_bytes())
    assert weights[0] == weights[1]


FLAT = """
import sys, tracemalloc
import vrl3data
with vrl3data.open(sys.argv[1]).images(8, 64, epochs=10, workers=2, shuffle_buffer=16, shuffle_run=4) as batches:
    tracemalloc.start()
    peaks = []
    for _ in range(10):
        tracemalloc.reset_peak()
        for _ in range(batches.steps_per_epoch):
            next(batches)
        peaks.append(tracemalloc.get_traced_memory()[1])
print(max(peaks[1:5]), max(peaks[5:]))  # how far threads are ahead differs from epoch to epoch
assert "torch" not in sys.modules
"""


def test_memory_stays_flat_over_ten_epochs(path):
    """Batches of 98 kB; the whole set would take 614 kB."""
    command = [sys.executable, "-c", FLAT, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
    early, late = map(int, found.stdout.split())
    assert late < 1.1 * early + 50_000
