"""Real files: human demonstrations, expert rollouts, ImageNet pictures; and the other libraries on our shards."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from make_images import tar_bytes, write_devkit, write_official
from PIL import Image

import vrl3data
from converters.adroit import pickles
from converters.images.decode import Fit, fitted
from converters.images.folders import list_files
from vrl3data.validation import validate

pytestmark = pytest.mark.realdata
ROLLOUTS = "adroit/expert_rollouts/{}-v0_expert_rollouts.pickle"


def first_episodes(source: Path, target: Path, count: int = 2, steps: int = 40) -> list[dict[str, np.ndarray]]:
    """The beginning of a real pickle, short enough to render in a test."""
    episodes = [
        {**episode, **{key: episode[key][:steps] for key in ("observations", "actions", "rewards")}}
        for episode in pickles.load(source.read_bytes())[:count]
    ]
    target.write_bytes(pickle.dumps(episodes, protocol=3))
    return episodes


def test_human_door_demonstrations(real_data: Path, tmp_path: Path) -> None:
    episodes = pickles.load((real_data / "adroit/door-v0_demos.pickle").read_bytes())
    assert (len(episodes), sum(len(episode["actions"]) for episode in episodes)) == (25, 6729)
    few = first_episodes(real_data / "adroit/door-v0_demos.pickle", tmp_path / "door.pickle", steps=250)
    vrl3data.convert(None, tmp_path / "door.pickle", tmp_path / "out", {"render": "fast", "image_size": 32})
    with vrl3data.open(tmp_path / "out") as dataset:
        for item, episode in zip(dataset, few, strict=True):
            assert np.array_equal(item["action"], episode["actions"])
            assert np.array_equal(item["reward"], episode["rewards"])
            assert abs(item["sim.qpos"][:, 28] - episode["observations"][:, 28]).max() <= 1e-4
            assert item.source_meta["reconstruction_error"]["max"] < 0.01
            # the door opens in the recording, and so it does in the frames
            frames = item["obs.image.top"].astype(int)
            assert abs(frames[-1] - frames[0]).mean() > 5
    assert validate(tmp_path / "out").ok


@pytest.mark.parametrize(("task", "cameras"), [("hammer", 1), ("pen", 1), ("relocate", 3)])
def test_expert_rollouts(real_data: Path, tmp_path: Path, task: str, cameras: int) -> None:
    few = first_episodes(real_data / ROLLOUTS.format(task), tmp_path / "expert.pickle", steps=100)
    options = {"render": "fast", "image_size": 24, "origin": "policy", "rewards": "gymnasium"}
    receipt = vrl3data.convert("adroit", tmp_path / "expert.pickle", tmp_path / "out", options)
    assert receipt.manifest.name == f"adroit-{task}-policy"
    with vrl3data.open(tmp_path / "out") as dataset:
        assert len(dataset.schema.cameras) == cameras
        for item, episode in zip(dataset, few, strict=True):
            assert np.array_equal(item["reward.recorded"], episode["rewards"])
            # computed from observations, and yet what the simulator said; thresholds may fall one step later
            close = abs(item["reward"] - item["reward.recorded"])[:-1] < 0.1
            assert close.mean() > 0.95
            assert item.meta["origin"] == "policy"


def test_the_policies_of_dapg_are_refused(real_data: Path) -> None:
    for file in sorted((real_data / "adroit/policies").glob("*.pickle")):
        with pytest.raises(vrl3data.errors.SourceError, match="refused: the pickle asks for mjrl"):
            pickles.load(file.read_bytes())


@pytest.mark.parametrize(
    ("name", "count"), [("imagenette224/train", 2600), ("tiny-imagenet-200_sub", 10_000), ("sample1000", 198)]
)
def test_imagenet_folders_lose_no_file(real_data: Path, name: str, count: int) -> None:
    root = real_data / "imagenet" / name
    files, _ = list_files(root, "train")
    assert len(files) == count == sum(path.suffix == ".JPEG" for path in root.rglob("*"))


def test_real_pictures(real_data: Path, tmp_path: Path) -> None:
    """What is stored is near the slow way: the whole picture, then an antialiased resize."""
    root = real_data / "imagenet" / "sample1000"
    receipt = vrl3data.convert(None, root, tmp_path / "out")
    assert receipt.manifest.samples == 198
    with vrl3data.open(tmp_path / "out") as dataset:
        for item in list(dataset)[::20]:
            stored = Image.fromarray(item["image"][0])
            source = Image.open(root / item.name).convert("RGB")
            assert min(stored.size) == min(128, *source.size)
            again = np.asarray(source.resize(stored.size, Image.Resampling.BILINEAR)).astype(int)
            if min(source.size) < 256:
                assert abs(again - np.asarray(stored)).max() == item.meta["max_error"]
            assert _psnr(again, np.asarray(stored)) > item.meta["psnr"] - 3
    assert validate(tmp_path / "out").ok


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((one - other) ** 2).mean())))


@pytest.mark.parametrize(("size", "decoder"), [(84, "pillow"), (84, "torchvision"), (128, "torchvision")])
def test_the_fast_ways_are_as_good(real_data: Path, size: int, decoder: str) -> None:
    files = [path.read_bytes() for path in sorted((real_data / "imagenet" / "sample1000").rglob("*.JPEG"))]
    close = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            want = np.asarray(fitted(image.convert("RGB"), "shorter", size)).astype(int)
        close.append(min(99.0, _psnr(Fit("shorter", size, decoder).pixels(data)[0][0], want)))
    assert np.mean(close) >= 60
    assert np.percentile(close, 5) >= 45


def test_the_official_archives_with_real_pictures(real_data: Path, tmp_path: Path) -> None:
    """ILSVRC2012 as it is downloaded, of 40 real pictures in four classes, against the same in class folders."""
    root = real_data / "imagenet" / "imagenette224"
    classes = sorted(path.name for path in (root / "train").iterdir())[:4]
    train = {
        name: {path.name: path.read_bytes() for path in sorted((root / "train" / name).iterdir())[:10]}
        for name in classes
    }
    write_official(tmp_path / "official", train)
    val = [(name, path) for name in classes for path in sorted((root / "val" / name).iterdir())[:5]]
    pictures = {f"ILSVRC2012_val_{n:08d}.JPEG": path.read_bytes() for n, (_, path) in enumerate(val, 1)}
    (tmp_path / "official" / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(pictures))
    ids = list(reversed(classes))
    truth = [ids.index(name) + 1 for name, _ in val]
    write_devkit(tmp_path / "official" / "ILSVRC2012_devkit_t12.tar.gz", truth, ids)
    receipt = vrl3data.convert(None, tmp_path / "official", tmp_path / "out", {"fit": "none"})
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 40, "val": 20}
    with vrl3data.open(tmp_path / "out") as dataset:
        for item in dataset:
            split, _, name = item.name.partition("/")
            want = train[item.meta["class_name"]][name.rpartition("/")[2]] if split == "train" else pictures[name]
            assert bytes(dataset.member(item.position, "jpg")) == want
            if split == "val":
                assert item.meta["class_name"] == val[int(name[-13:-5]) - 1][0]
    assert validate(tmp_path / "out").ok


LOAD = """
import json, resource, sys, numpy as np
import datasets
rows = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])["train"]
row = rows[0]
print(json.dumps([len(rows), np.shape(row["obs.image.top.npy"]), row["meta.json"]["name"],
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.slow
def test_other_libraries_read_the_shards(real_data: Path, tmp_path: Path) -> None:
    few = first_episodes(real_data / "adroit/door-v0_demos.pickle", tmp_path / "door.pickle", count=3)
    vrl3data.convert("adroit", tmp_path / "door.pickle", tmp_path / "out", {"render": "fast", "image_size": 84})
    shard = tmp_path / "out" / "data" / "train-000000.tar"
    with tarfile.open(shard) as archive:
        actions = [np.load(io.BytesIO(archive.extractfile(member).read())) for member in archive
                   if member.name.endswith(".action.npy")]  # fmt: skip
    assert all(np.array_equal(a, b["actions"]) for a, b in zip(actions, few, strict=True))
    code = "import webdataset, sys; print(sum(1 for _ in webdataset.WebDataset(sys.argv[1], shardshuffle=False)))"
    counted = subprocess.run([sys.executable, "-c", code, shard], capture_output=True, text=True, check=True)
    assert counted.stdout.strip() == "3"
    loaded = subprocess.run([sys.executable, "-c", LOAD, tmp_path / "out", tmp_path / "cache"], capture_output=True,
                            text=True, check=True, env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)})  # fmt: skip
    assert '[3, [40, 84, 84, 3], "door/0000"' in loaded.stdout
