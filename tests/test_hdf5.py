"""HDF5 files from outside: broken, hostile, absurd. One message each, with file, place and reason."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import make_robomimic as make
import numpy as np
import pytest

import vrl3data
from converters import hdf5
from converters.robomimic.converter import RobomimicConverter, RobomimicOptions
from vrl3data.errors import SourceError, Vrl3dataError


def source(path: Path) -> Path:
    return make.write(path / "demo.hdf5", {"demo_0": 4, "demo_1": 3, "demo_2": 3}, images=False)


def convert(path: Path, on_error: str = "stop") -> list[str]:
    """Names of the samples. The reasons of what was skipped come after them."""
    receipt = vrl3data.convert("robomimic", path, path.with_suffix(""), {}, on_error=on_error)  # type: ignore[arg-type]
    with vrl3data.open(receipt.path) as dataset:
        return [*(item.name for item in dataset), *(entry["reason"] for entry in receipt.skipped)]


# -- files that are not whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 something else", r"not an HDF5 file: it begins with b'PK"),
        (hdf5.MAGIC, r"cannot be opened: .*\(8 bytes are there\)"),
        (hdf5.MAGIC + bytes(3000), "cannot be opened"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.hdf5").write_bytes(content)
    with pytest.raises(SourceError, match=message) as raised:
        convert(tmp_path / "x.hdf5")
    assert raised.value.source.path == "x.hdf5"


def test_folders_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a directory or nothing"):
        hdf5.open_hdf5(tmp_path / "missing.hdf5")
    with pytest.raises(SourceError, match=r"no .hdf5 or .h5 files are in this folder"):
        RobomimicConverter([tmp_path], RobomimicOptions()).plan()


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.999])
def test_truncated_at_several_places(tmp_path: Path, part: float) -> None:
    path = source(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(SourceError, match=r"(it is truncated|cannot be opened).*bytes are there.*demo.hdf5"):
        convert(path)


def test_flipped_bytes_end_in_our_errors(tmp_path: Path) -> None:
    """Whatever h5py raises where the bytes are wrong, it is said in our terms."""
    whole, path = source(tmp_path).read_bytes(), tmp_path / "flipped.hdf5"
    rng, failed = random.Random(5), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 5, 20])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        converter = RobomimicConverter([path], RobomimicOptions())
        try:
            for unit in converter.plan().units:
                converter.read(unit)
        except Vrl3dataError:
            failed += 1
        finally:
            converter.close()
    assert failed > 5


def test_a_damaged_chunk_costs_one_demo(tmp_path: Path) -> None:
    path = source(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/object"], file["data/demo_1/next_obs"]
        packed = file.create_dataset("data/demo_1/obs/object", data=np.arange(15.0).reshape(3, 5), compression="gzip")
        place = packed.id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset + 4)
        raw.write(b"\xff" * 8)
    with pytest.raises(SourceError, match=r"the data cannot be read: .*demo_1.*feature /data/demo_1/obs/object"):
        convert(path)
    names = convert(path.rename(tmp_path / "again.hdf5"), "skip")
    assert names[:2] == ["again/demo_0", "again/demo_2"]
    assert "the data cannot be read" in names[2]


# -- files that mean harm --------------------------------------------------------------------------------------


def _external_link(file: h5py.File) -> None:
    file["data/demo_1/obs/x"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft_link(file: h5py.File) -> None:
    file["data/demo_1/obs/x"] = h5py.SoftLink("/data/demo_0/obs/object")


def _dangling_link(file: h5py.File) -> None:
    file["data/demo_1/obs/x"] = h5py.SoftLink("/nowhere")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("data/demo_1/obs/x", (3, 4), "u1", external=[("/etc/passwd", 0, 12)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 5), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 5))
    file.create_virtual_dataset("data/demo_1/obs/x", layout)


def _objects(file: h5py.File) -> None:
    file.create_dataset("data/demo_1/obs/x", (3,), h5py.ref_dtype)


def _ragged(file: h5py.File) -> None:
    file.create_dataset("data/demo_1/obs/x", (3,), h5py.vlen_dtype(np.uint8))


def _opaque(file: h5py.File) -> None:
    file["data/demo_1/obs/x"] = np.array([b"\x80\x04pickle"] * 3, "V8")


def _unallocated(file: h5py.File) -> None:
    file.create_dataset("data/demo_1/obs/x", (10**12, 84, 84, 3), "u1", chunks=(1, 84, 84, 3))


def _in_itself(file: h5py.File) -> None:
    file["data/demo_1/obs/again"] = file["data/demo_1"]


def _deep(file: h5py.File) -> None:
    file.create_group("data/demo_1/" + "/".join("abcdefghijklmnopqrstuvwxyz"))


def _bad_name(file: h5py.File) -> None:
    group = file["data/demo_1"].id
    group.links.create_hard(b"\xff\xfe", group, b"actions")


HARM: dict[Callable[[h5py.File], None], str] = {
    _external_link: "'x' is a link to another place, which is not followed",
    _soft_link: "'x' is a link to another place",
    _dangling_link: "'x' is a link to another place",
    _external_storage: "the data lies in another file, which is not followed",
    _virtual: "the data lies in another file",
    _objects: r"an array of objects \(object\) could run code when it is opened",
    _ragged: "expected rows of numbers, found object",
    _opaque: r"expected rows of numbers, found \|V8",
    _unallocated: r"claims 21,168,000,000,000,000 bytes \(shape \(1000000000000, 84, 84, 3\)\), but 0 are stored",
    _in_itself: "groups lie more than 16 deep, or in each other",
    _deep: "groups lie more than 16 deep",
    _bad_name: "cannot be written as UTF-8|cannot be read",
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_what_leads_out_of_the_file_or_runs_code(tmp_path: Path, harm: Callable[[h5py.File], None]) -> None:
    path = source(tmp_path)
    with h5py.File(path, "r+") as file:
        harm(file)
    tracemalloc.start()
    with pytest.raises(SourceError, match=HARM[harm]) as raised:
        convert(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert (raised.value.source.path, raised.value.source.episode) == ("demo.hdf5", "demo_1")
    names = convert(path.rename(tmp_path / "again.hdf5"), "skip")
    assert names[:2] == ["again/demo_0", "again/demo_2"]
    assert len(names) == 3


def test_absurd_attributes_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path)
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["noise"] = np.zeros(1000)
    monkeypatch.setattr(hdf5, "MAX_ATTRIBUTE", 7999)
    with pytest.raises(SourceError, match=r"the attribute 'noise' of /data/demo_1 claims 8,000 bytes.*demo_1"):
        convert(path)
    monkeypatch.setattr(hdf5, "MAX_ENTRIES", 2)
    with pytest.raises(SourceError, match="/data holds more than 2 entries"):
        convert(path.rename(tmp_path / "again.hdf5"))
    monkeypatch.setattr(hdf5, "MAX_ENTRIES", 3)
    with h5py.File(tmp_path / "many.hdf5", "w") as file:
        file["a/b/c"] = file["a/d/e"] = 1
        with pytest.raises(SourceError, match="more than 3 entries, or groups that lie in each other"):
            list(hdf5.datasets(file["/"]))


def test_large_honest_arrays_of_zeros_pass(tmp_path: Path) -> None:
    """gzip packs zeros a thousandfold: that is no attack."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        packed = file.create_dataset("x", (300, 1000, 1000), "u1", chunks=(1, 1000, 1000), compression="gzip")
        packed[:] = 0
    with hdf5.open_hdf5(tmp_path / "x.h5") as file:
        hdf5.check_dataset(file["x"])
        assert sum(len(rows) for rows in hdf5.blocks(file["x"])) == 300


# -- plain values ----------------------------------------------------------------------------------------------


def test_attributes_become_plain_values(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["text"], file.attrs["bytes"], file.attrs["many"] = "ä", np.bytes_(b"b"), np.array([[1, 2], [3, 4]])
        file.attrs["empty"], file.attrs["true"] = h5py.Empty("f4"), np.True_
        file.attrs["opaque"], file.attrs["complex"] = np.void(b"\x01\x02"), 1 + 2j
        file.attrs["place"] = file.ref
        file.create_dataset("empty", dtype="f4", shape=None)
        found = hdf5.attributes(file)
        hdf5.check_dataset(file["empty"])
    assert found.pop("place").startswith("<HDF5")
    assert found == {"text": "ä", "bytes": "b", "many": [[1, 2], [3, 4]], "empty": "", "true": True,
                     "opaque": str(np.void(b"\x01\x02")), "complex": "(1+2j)"}  # fmt: skip


def test_big_endian_rows_come_in_native_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(6, dtype=">f8").reshape(3, 2)
        assert hdf5.field_of(file["x"], "x").dtype == "float64"
        (rows,) = hdf5.blocks(file["x"])
    assert rows.dtype.isnative
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_chunk_is_unpacked_whole_so_it_may_not_be_huge(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("x", (4, 64), "f8", chunks=(2_000_000, 64), maxshape=(None, 64), compression="gzip")
        with pytest.raises(SourceError, match="chunks of 1,024,000,000 bytes"):
            hdf5.check_dataset(file["x"])


def test_single_values_become_plain() -> None:
    assert hdf5.plain(np.array(2.5)) == 2.5
    assert hdf5.plain(np.array(b"text", object)) == "text"
