"""HDF5 files of no known layout."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import vrl3data
from converters.generic_hdf5 import Hdf5Converter, Hdf5Options
from converters.run import RunOptions, run
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate


def fill(group: h5py.Group, seed: int, steps: int, final: bool = False) -> None:
    rng = np.random.default_rng(seed)
    group["actions"] = rng.normal(size=(steps, 2))
    group["obs/camera"] = rng.integers(0, 255, (steps + final, 8, 10, 3), np.uint8)
    group["obs/qpos"] = rng.normal(size=(steps + final, 3)).astype(np.float32)
    group["reward"] = rng.normal(size=steps)
    group["mass"] = 2.5
    group["log"] = rng.normal(size=7)
    group["note"] = "by hand"
    group["odd"] = rng.normal(size=3 + 2 * seed)
    group.attrs["operator"] = "anna"


def converted(source: Path, dest: Path, **options: object) -> vrl3data.Dataset:
    run(Hdf5Converter([source], Hdf5Options(**options)), dest)
    report = validate(dest)
    assert report.ok, report.findings
    return vrl3data.open(dest)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("place", ["demo_{}", "data/traj{}"])
def test_a_group_for_each_episode(tmp_path: Path, place: str, final: bool) -> None:
    source = tmp_path / "runs.h5"
    with h5py.File(source, "w") as file:
        for number in range(12):
            fill(file.create_group(place.format(number)), number, 4 + number, final)
    with converted(source, tmp_path / "out", rate=10) as dataset, h5py.File(source) as file:
        assert [item.length for item in dataset] == [4 + number for number in range(12)]  # demo_10 after demo_9
        item, group = dataset[10], file[place.format(10)]
        assert np.array_equal(item["action"], group["actions"]) and np.array_equal(item["reward"], group["reward"])
        assert np.array_equal(item["obs.image.camera"], group["obs/camera"])
        assert np.array_equal(item["obs.proprio"], group["obs/qpos"])
        assert item["obs.mass"].tolist() == [2.5] and np.array_equal(item["obs.log"], group["log"][()][None])
        assert item["timestamp"][1] == 100_000_000 and item.meta["final_observation"] == final
        assert item.source_meta == {"attributes": {"operator": "anna"}, "note": "by hand"}


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "runs.h5", "w") as file:
        fill(file.create_group("ep_0"), 0, 5)
        fill(file.create_group("ep_1"), 1, 6)
        file["calibration"] = np.eye(3)
    receipt = run(Hdf5Converter([tmp_path / "runs.h5"], Hdf5Options()), tmp_path / "out")
    assert receipt.notes == (
        "left out, in no episode: calibration",
        "fields with another number of rows than the actions were left out: odd",
    )


def test_numbered_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        for number in range(11):
            file[f"actions_{number}"] = rng.normal(size=(3 + number, 2))
            file[f"states_{number}"] = rng.normal(size=(3 + number, 4))
    with converted(tmp_path / "flat.hdf5", tmp_path / "out") as dataset:
        assert [item.name for item in dataset][-2:] == ["flat/9", "flat/10"]
        assert dataset.schema.names == ("action", "obs.state")


def test_a_file_for_each_episode(tmp_path: Path) -> None:
    for number in range(3):
        with h5py.File(tmp_path / f"episode {number}.h5", "w") as file:
            fill(file, number, 5 + number)
    with converted(tmp_path, tmp_path.parent / f"{tmp_path.name}-out") as dataset:
        assert [item.meta["source"] for item in dataset] == [f"episode {number}.h5" for number in range(3)]
        assert dataset[2].source_meta == {"file_attributes": {"operator": "anna"}, "note": "by hand"}


def test_broken_episodes_and_files_are_passed_over(tmp_path: Path) -> None:
    for number in range(3):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            fill(file.create_group("ep_0"), number, 5)
            fill(file.create_group("ep_1"), 10 + number, 5)
    with h5py.File(tmp_path / "1.h5", "a") as file:
        del file["ep_0/actions"]
        file["ep_0/actions"] = h5py.ExternalLink("/etc/passwd", "x")
    (tmp_path / "2.h5").write_bytes((tmp_path / "2.h5").read_bytes()[:3000])
    plan = Hdf5Converter([tmp_path], Hdf5Options()).plan()
    names = [name for name, _ in plan.problems]
    assert names == ["1.h5", "2.h5"], plan.problems
    receipt = run(Hdf5Converter([tmp_path], Hdf5Options()), tmp_path / "out", RunOptions(on_error="skip"))
    assert receipt.manifest.samples == 2
    assert "is a link to another place" in receipt.skipped[0]["reason"]
    assert "truncated" in receipt.skipped[1]["reason"]


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda file: file.create_group("a"), "holds no arrays"),
        (lambda file: file.create_dataset("a", data="text"), "no arrays of numbers with rows"),
        (lambda file: file.create_dataset("a", (0, 3), "f4"), "the arrays have no rows"),
    ],
)
def test_nothing_to_convert(tmp_path: Path, write: object, match: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file)
    with pytest.raises(SourceError, match=match):
        Hdf5Converter([tmp_path / "a.h5"], Hdf5Options()).plan()


def test_a_rate_is_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rate: expected steps per second"):
        Hdf5Converter([tmp_path], Hdf5Options(rate=-1))


@pytest.mark.realdata
def test_real_files(real_data: Path, tmp_path: Path) -> None:
    cart = real_data / "hdf5_generic" / "bc_cart_pendulum_demo.hdf5"
    with converted(cart, tmp_path / "cart") as dataset, h5py.File(cart) as file:
        assert (len(dataset), dataset.manifest.steps) == (100, 30_000)
        for number in (0, 9, 10, 99):
            assert np.array_equal(dataset[number]["action"], file[f"demo_{number}/action"])
            assert np.array_equal(dataset[number]["obs.state"], file[f"demo_{number}/observation"])
    arm = real_data / "hdf5_generic" / "panda7dof_demos.hdf5"
    with converted(arm, tmp_path / "arm") as dataset, h5py.File(arm) as file:
        assert len(dataset) == 5
        assert np.array_equal(dataset[4]["obs.state"], file["states_4"])
