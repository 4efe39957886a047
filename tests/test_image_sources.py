"""Pictures from archives, tables and Kaggle's folders: what is found, what is refused, where, and what goes on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg, make_pictures, run_cli, shard_bytes, write_dataset
from make_images import (
    WNIDS,
    hugging_face_schema,
    mat_file,
    table_of,
    tar_bytes,
    train_pictures,
    write_devkit,
    write_kaggle,
    write_official,
    write_tables,
    write_train_tar,
    write_webdataset,
)
from PIL import Image

import vrl3data
from converters.base import recognise
from converters.images.imagenet import ImagenetConverter
from converters.images.matlab import structs
from converters.images.pictures import PictureOptions
from converters.images.tars import Blocks, members
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate

NONE = {"fit": "none"}


def labels_of(path: Path) -> dict[str, tuple[int, str]]:
    with vrl3data.open(path) as dataset:
        return {item.name: (item.meta["label"], item.meta["class_name"]) for item in dataset}


# -- ILSVRC as it is downloaded ------------------------------------------------------------------------------------


def test_the_official_archives_give_what_the_unpacked_folders_give(tmp_path: Path) -> None:
    """Names, labels and bytes, and the validation pictures by the devkit, whose numbers are not the order of names."""
    source = write_official(tmp_path / "official")
    unpacked = tmp_path / "unpacked"
    for wnid, files in train_pictures().items():
        (unpacked / "train" / wnid).mkdir(parents=True)
        for name, data in files.items():
            (unpacked / "train" / wnid / name).write_bytes(data)
    assert recognise(source) == "imagenet"
    vrl3data.convert(None, source, tmp_path / "out", NONE)
    vrl3data.convert("imagenet", unpacked, tmp_path / "plain", NONE)
    found = labels_of(tmp_path / "out")
    val = {name: label for name, label in found.items() if name.startswith("val/")}
    assert {name: label for name, label in found.items() if name.startswith("train/")} == labels_of(tmp_path / "plain")
    order = sorted(WNIDS)
    want = [WNIDS[0], WNIDS[1], WNIDS[2], WNIDS[1]]
    assert val == {f"val/ILSVRC2012_val_{n:08d}.JPEG": (order.index(w), w) for n, w in enumerate(want, 1)}
    with vrl3data.open(tmp_path / "out") as dataset:
        for item in dataset:
            if item.name.startswith("train/"):
                data = (unpacked / item.name).read_bytes()
                assert bytes(dataset.member(item.position, "jpg")) == data
                assert item.meta["source_sha256"] == hashlib.sha256(data).hexdigest()
                assert item.meta["source"] == f"ILSVRC2012_img_train.tar/{item.name.removeprefix('train/')}"
        made = dataset.manifest.provenance["source"]
        assert (made["files"], made["bytes"]) == (2, sum(path.stat().st_size for path in source.glob("*.tar")))
    assert validate(tmp_path / "out").ok


def test_the_archives_can_be_given_one_by_one_in_any_order(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official")
    train, val, devkit = (source / f"ILSVRC2012_{name}" for name in
                          ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz"))  # fmt: skip
    vrl3data.convert("imagenet", source, tmp_path / "all", {"image_size": 16, "name": "x"})
    vrl3data.convert("imagenet", [val, devkit, train], tmp_path / "given", {"image_size": 16, "name": "x"})
    with vrl3data.open(tmp_path / "all") as one, vrl3data.open(tmp_path / "given") as other:
        assert [item.name for item in one] == [item.name for item in other]
        assert one.manifest.content == other.manifest.content
    vrl3data.convert("imagenet", [val, devkit], tmp_path / "val", {"image_size": 16})
    assert {label for label, _ in labels_of(tmp_path / "val").values()} == {0, 1, 2}  # as with train, not as found
    with pytest.raises(SourceError, match="give the devkit .*ILSVRC2012_devkit_t12.tar.gz.* as one more source"):
        vrl3data.convert("imagenet", val, tmp_path / "refused")
    with pytest.raises(ConfigError, match="found only tables of classes"):
        vrl3data.convert("imagenet", devkit, tmp_path / "refused")


def test_pictures_of_no_known_class_are_not_given_the_name_of_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "ILSVRC2012_img_val.tar"
    path.write_bytes(tar_bytes({"ILSVRC2012_img_val/ILSVRC2012_val_00000001.JPEG": jpeg(20, 20)}))
    with pytest.raises(SourceError, match="no classes in their own archive"):
        vrl3data.convert("imagenet", path, tmp_path / "out")


def test_kaggles_layout(tmp_path: Path) -> None:
    vrl3data.convert(None, write_kaggle(tmp_path / "kaggle"), tmp_path / "out", {"image_size": 16})
    found = labels_of(tmp_path / "out")
    order = sorted(WNIDS)
    for number, wnid in enumerate(WNIDS, 1):
        assert found[f"val/ILSVRC2012_val_{number:08d}.JPEG"] == (order.index(wnid), wnid)
    assert found["test/ILSVRC2012_test_00000001.JPEG"] == (-1, "")
    table = tmp_path / "kaggle" / "LOC_val_solution.csv"
    table.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,\n")
    with pytest.raises(SourceError, match="line 2: expected ImageId,PredictionString.*LOC_val_solution.csv"):
        vrl3data.convert("imagenet", tmp_path / "kaggle", tmp_path / "other")
    table.unlink()
    with pytest.raises(SourceError, match="lies in no class folder.*give the devkit"):
        vrl3data.convert("imagenet", tmp_path / "kaggle", tmp_path / "other")
    devkit = write_devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", [1, 2, 3])
    vrl3data.convert("imagenet", [tmp_path / "kaggle", devkit], tmp_path / "devkit", {"image_size": 16})
    assert labels_of(tmp_path / "devkit") == found


def test_a_broken_devkit_is_named(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official")
    devkit = source / "ILSVRC2012_devkit_t12.tar.gz"
    whole = devkit.read_bytes()
    for data, match in [
        (whole[: len(whole) // 2], "the devkit cannot be read"),
        (b"<html>not found</html>", "the devkit cannot be read"),
        (tar_bytes({"readme.txt": b""}), "the devkit has no ILSVRC2012_validation_ground_truth.txt, meta.mat"),
    ]:
        devkit.write_bytes(data)
        with pytest.raises(SourceError, match=f"{match}.*ILSVRC2012_devkit_t12.tar.gz"):
            vrl3data.convert("imagenet", source, tmp_path / "out")
    write_devkit(devkit, [1, 4, 1, 1])
    with pytest.raises(SourceError, match="line 2: expected the number of a class, found b'4'"):
        vrl3data.convert("imagenet", source, tmp_path / "out")


def test_matlab_files() -> None:
    rows: list[dict[str, str | int]] = [{"ID": 1, "name": "a"}, {"ID": 300, "name": "bcd"}]
    for compress in (True, False):
        data = mat_file("synsets", rows, compress)
        assert structs(data, "synsets") == rows
        with pytest.raises(SourceError, match="no array of structs called 'others'"):
            structs(data, "others")
        broken = 0
        for end in range(128, len(data)):
            try:
                structs(data[:end], "synsets")
            except SourceError:
                broken += 1
        assert broken == len(data) - 128
    with pytest.raises(SourceError, match="expected a MATLAB file of version 5"):
        structs(b"MATLAB 7.3", "synsets")


# -- hostile and broken archives -----------------------------------------------------------------------------------


def archive_members(data: bytes, path: Path) -> list[Any]:
    path.write_bytes(data)
    file = os.open(path, os.O_RDONLY)
    try:
        return list(members(Blocks(file, 0, len(data))))
    finally:
        os.close(file)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path: Path, kind: int) -> None:
    long = "d" * 90 + "/" + "x" * 80 + ".JPEG" if kind == tarfile.USTAR_FORMAT else "é" * 150 + ".JPEG"
    files = {"./a.JPEG": b"1" * 700, long: b"2" * 512, "empty": b"", "b/c.JPEG": b"3" * 5000}
    data = tar_bytes(files, format=kind)
    found = archive_members(data, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(m.name, m.offset, m.size) for m in found] == [
            (m.name.removeprefix("./"), m.offset_data, m.size) for m in archive
        ]
    assert not any(member.problem for member in found)


def member(name: str, data: bytes = b"", **fields: Any) -> bytes:
    """One header and content, without an end mark."""
    return tar_bytes({name: data}, **fields)[: 512 + -(-len(data) // 512) * 512]


def with_size(header: bytes, size: bytes) -> bytes:
    """A header that states another size, with the right sum."""
    changed = header[:124] + size + header[136:148] + b" " * 8 + header[156:512]
    return changed[:148] + b"%06o\0 " % sum(changed) + changed[156:512] + header[512:]


GOOD = member("n01440764/good_1.JPEG", jpeg(30, 30, 1))
END = bytes(1024)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (member("/etc/passwd.JPEG", b"x"), "'/etc/passwd.JPEG' leads out of the archive"),
        (member("n01440764/../../x.JPEG", b"x"), "leads out of the archive; rename"),
        (member("n01440764/a\nb.JPEG", b"x"), "characters that no picture's name needs"),
        (member("n01440764/link.JPEG", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link, which is not followed"),
        (member("n01440764/link.JPEG", type=tarfile.LNKTYPE, linkname="x"), "a link, which is not followed"),
        (member("n01440764/pipe.JPEG", type=tarfile.FIFOTYPE), "not a regular file"),
        (
            with_size(member("n01440764/a.JPEG", b"x"), b"\x80" + b"\0" * 3 + b"\x7f" * 8),
            "cut off in 'n01440764/a.JPEG'",
        ),
        (with_size(member("n01440764/a.JPEG", b"x"), b"\xff" * 12), "a size below 0"),
        (with_size(member("n01440764/a.JPEG", b"x"), b"-0000000001\0"), "a size below 0"),
        (with_size(member("n01440764/a.JPEG", b"x"), b"hello world\0"), "expected a number in a tar header"),
        (with_size(member("x" * 99, type=b"L"), b"77777777777\0"), "an extended header of 8589934591 bytes"),
        (member("pax", b"9999 path=x\n", type=b"x"), "an extended header of the archive is broken"),
        (member("pax", b"11 size=-1\n", type=b"x"), "a size of b'-1' bytes in an extended header"),
        (member("pax", b"25 GNU.sparse.realsize=9\n", type=b"x"), "a sparse file in an archive is not read"),
        (b"\x1f\x8b" + bytes(510), "expected a tar header after 'n01440764/good_1.JPEG'"),
        (GOOD, "n01440764/good_1.JPEG is there more than once"),
    ],
)
def test_hostile_members_stop_or_are_skipped(tmp_path: Path, bad: bytes, match: str) -> None:
    """One message with file and place, nothing outside touched, and the pictures before (and after) it are kept."""
    after = member("n01440764/good_2.JPEG", jpeg(30, 30, 2))
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(GOOD + bad + after + END)
    with pytest.raises(SourceError, match=match) as caught:
        vrl3data.convert("imagenet", path, tmp_path / "out", {"image_size": 16})
    assert "ILSVRC2012_img_train.tar" in str(caught.value) or "more than once" in match
    receipt = vrl3data.convert("imagenet", path, tmp_path / "out", {"image_size": 16}, on_error="skip")
    assert len(receipt.skipped) == 1
    assert receipt.manifest.samples in (1, 2)
    assert receipt.manifest.samples == 2 or "of the archive" in match or "cut off" in match or "size" in match or (
        "header" in match or "sparse" in match
    )  # fmt: skip
    assert sorted(item.name for item in tmp_path.iterdir()) == ["ILSVRC2012_img_train.tar", "out"]


def test_an_archive_that_ends_with_the_bytes_of_a_picture(tmp_path: Path) -> None:
    """Without the zeros that fill its last block. Whether that last sample was whole is not known."""
    files = {f"{key}.{end}": data for key in "01" for end, data in (("cls", b"1"), ("jpg", jpeg(40, 50)))}
    whole, source = tar_bytes(files), tmp_path / "train.tar"
    last = whole.rindex(files["1.jpg"]) + len(files["1.jpg"])
    assert last % 512
    source.write_bytes(whole[:last])
    receipt = vrl3data.convert("webdataset", source, tmp_path / "out", on_error="skip")
    assert receipt.manifest.samples == 1
    assert "the archive ends after '1.jpg' without its end mark" in receipt.skipped[0]["reason"]


def test_archives_cut_off_anywhere(tmp_path: Path) -> None:
    """The pictures before the cut are kept, the cut is reported: inside pictures, headers, between archives."""
    whole = write_train_tar(tmp_path / "whole.tar", train_pictures(2)).read_bytes()
    path = tmp_path / "ILSVRC2012_img_train.tar"
    counts = []
    for end in range(1024, len(whole) - 9000, 499):
        path.write_bytes(whole[:end])
        converter = ImagenetConverter([path], PictureOptions())
        try:
            plan = converter.plan()
        except SourceError as error:
            assert "cut off" in str(error)  # noqa: PT017 - some cuts leave no picture
            continue
        finally:
            converter.close()
        assert len(plan.problems) >= 1
        assert "ILSVRC2012_img_train.tar" in str(plan.problems[0][1])
        for unit in plan.units:
            place = unit.payload[0]
            assert place.offset + place.size <= end
        counts.append(plan.count)
    assert counts == sorted(counts)
    assert counts[-1] == 4  # the last inner archive is as good as lost if it is not whole


def test_archives_in_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    data = tar_bytes({"n01440764_1.JPEG": jpeg(20, 20)})
    for _ in range(50):
        data = tar_bytes({"n01440764.tar": data})
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="no pictures found; expected .jpeg"):
        vrl3data.convert("imagenet", path, tmp_path / "out")


def test_a_picture_of_a_great_stated_size_is_not_read(tmp_path: Path) -> None:
    """A sparse archive: a header that promises a terabyte, and has it, as holes."""
    path = tmp_path / "ILSVRC2012_img_train.tar"
    size = 2**40
    with path.open("wb") as file:
        file.write(GOOD + with_size(member("n01440764/huge.JPEG"), b"\x80" + size.to_bytes(11, "big")))
        file.seek(size, os.SEEK_CUR)
        file.write(END)
    with pytest.raises(SourceError, match="a picture file of 1099511627776 bytes.*huge.JPEG"):
        vrl3data.convert("imagenet", path, tmp_path / "out", {"image_size": 16})
    receipt = vrl3data.convert("imagenet", path, tmp_path / "out", {"image_size": 16}, on_error="skip")
    assert (receipt.manifest.samples, len(receipt.skipped)) == (1, 1)


INDEX = """
import resource, sys, time
from pathlib import Path
from converters.images.imagenet import ImagenetConverter
from converters.images.pictures import PictureOptions
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = ImagenetConverter([Path(sys.argv[1])], PictureOptions()).plan()
assert sum(1 for _ in plan.units) == plan.count == int(sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / plan.count)
"""


def test_the_index_of_many_pictures_is_small(tmp_path: Path) -> None:
    """At most 200 bytes each, whatever the pictures have: a million of them is not a matter of memory."""
    count, data = 60_000, bytes(700)
    block = member("n00000000_0.JPEG", data, format=tarfile.USTAR_FORMAT)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    with path.open("wb") as file:
        for wnid in range(10):
            content = b"".join(renamed(block, f"n0000000{wnid}_{n}.JPEG") for n in range(count // 10)) + END
            file.write(member(f"n0000000{wnid}.tar", content))
        file.write(END)
    found = subprocess.run([sys.executable, "-c", INDEX, path, str(count)], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 200


def renamed(block: bytes, name: str) -> bytes:
    head = name.encode().ljust(100, b"\0") + block[100:148] + b" " * 8 + block[156:512]
    return head[:148] + b"%06o\0 " % sum(head) + head[156:] + block[512:]


# -- webdatasets ---------------------------------------------------------------------------------------------------


def test_webdatasets(tmp_path: Path) -> None:
    source = write_webdataset(tmp_path / "wds")
    assert recognise(source) == recognise(source / "train-000000.tar") == "webdataset"
    receipt = vrl3data.convert(None, source, tmp_path / "out", {"image_size": 16})
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 4, "val": 4}
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["label"] for item in dataset] == [0, 2, 1, 2] * 2
        assert dataset.schema["cls"].names == ("0", "1", "2")
        assert dataset[5].source_meta == {"caption": "picture 1"}
        assert (dataset[5].name, dataset[5].meta["source"]) == ("val-000000/000001", "val-000000.tar/000001")
    assert validate(tmp_path / "out").ok
    named = write_webdataset(tmp_path / "named", ("dog", "cat", "-1", "dog"))
    vrl3data.convert(None, named, tmp_path / "names", {"image_size": 16})
    with vrl3data.open(tmp_path / "names") as dataset:
        assert dataset.schema["cls"].names == ("cat", "dog")
        assert [item.meta["label"] for item in dataset][:4] == [1, 0, -1, 1]


def test_webdatasets_with_other_members_and_with_labels_in_json(tmp_path: Path) -> None:
    (tmp_path / "wds").mkdir()
    files = {
        "a/0.png": _png("L"), "a/0.json": b'{"label": 3}', "a/0.pyd": b"\x80\x04cos\nsystem\n.",
        "b/0.seg.png": _png("RGB"), "b/0.json": b'{"label": "x", "n": [1, 2]}', "notes.txt": b"hello",
    }  # fmt: skip
    (tmp_path / "wds" / "part.tar").write_bytes(tar_bytes(files))
    receipt = vrl3data.convert("webdataset", tmp_path / "wds", tmp_path / "out", {"split": "test"})
    assert receipt.notes[:2] == ("1 members .pyd were left out", "1 members .txt were left out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [item.meta["class_name"] for item in dataset] == ["3", "x"]
        assert dataset[1].source_meta == {"label": "x", "n": [1, 2]}
        assert dataset[0].meta["split"] == "test"


def test_webdatasets_that_are_refused(tmp_path: Path) -> None:
    ours = write_dataset(tmp_path / "ours")
    with pytest.raises(SourceError, match="dataset of ours already: vrl3data merge joins datasets"):
        vrl3data.convert("webdataset", ours, tmp_path / "out")
    with pytest.raises(SourceError, match="dataset of ours already.*train-000000.tar"):
        vrl3data.convert("webdataset", ours / "data" / "train-000000.tar", tmp_path / "out")
    with pytest.raises(SourceError, match="no converter recognises this"):
        recognise(ours / "data" / "train-000000.tar")
    source = tmp_path / "wds"
    source.mkdir()
    with pytest.raises(SourceError, match=r"no .tar files found; unpack .tar.gz with gunzip"):
        vrl3data.convert("webdataset", source, tmp_path / "out")
    for files, match in [
        ({"0.jpg": jpeg(20, 20), "0.cls": b"x" * 300}, "expected a label, a number or a name"),
        ({"0.jpg": jpeg(20, 20), "0.cls": bytes(2**21)}, "has 2097152 bytes; at most 1048576 are read"),
        ({"0.jpg": jpeg(20, 20), "0.json": b"{"}, "the .json of this sample is broken"),
        ({"0.jpg": jpeg(20, 20), "0.cls": b"1", "0.json": b"[" * 100_000}, "the .json of this sample is broken"),
        ({"0.txt": b"hello"}, "no pictures found; expected members KEY.jpeg"),
    ]:
        (source / "a.tar").write_bytes(tar_bytes(files))
        with pytest.raises(SourceError, match=f"{match}"):
            vrl3data.convert("webdataset", source, tmp_path / "out")
    parts = [
        ("0.jpg", jpeg(20, 20)),
        ("0.cls", b"1"),
        ("1.jpg", jpeg(20, 20)),
        ("1.cls", b"x" * 300),
        ("0.jpg", jpeg(9, 9)),
    ]
    (source / "a.tar").write_bytes(b"".join(member(name, data) for name, data in parts) + END)
    receipt = vrl3data.convert("webdataset", source, tmp_path / "out", on_error="skip")
    assert (receipt.manifest.samples, [entry["source"] for entry in receipt.skipped]) == (1, ["a/1", "a/0"])


# -- tables --------------------------------------------------------------------------------------------------------


def test_tables(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables")
    assert recognise(source) == "image-table"
    receipt = vrl3data.convert(None, source, tmp_path / "out", NONE)
    assert {name: split.samples for name, split in receipt.manifest.splits.items()} == {"train": 140, "validation": 10}
    assert receipt.notes == ("the column 'opaque' is left out",)
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset.schema["cls"].names == ("cat", "dog", "emu")
        for position, number in [(0, 0), (69, 69), (70, 70), (115, 115), (139, 139), (140, 500), (149, 509)]:
            item = dataset[position]
            assert bytes(dataset.member(position, "jpg")) == jpeg(40, 50 + number, number)
            assert item.meta["label"] == number % 3
            assert item.source_meta == {"caption": f"picture {number}", "path": f"{number}.jpg"}
    assert validate(tmp_path / "out").ok


def _table(**columns: Any) -> pa.Table:
    return pa.table(columns)


PICTURES = [jpeg(20, 20, n) for n in range(3)]


@pytest.mark.parametrize(
    ("table", "names", "labels"),
    [
        (_table(image=PICTURES, label=["b", "a", None]), ("a", "b"), [1, 0, -1]),
        (_table(png=PICTURES, cls=[2, 0, -1]), ("0", "1", "2"), [2, 0, -1]),
        (_table(img=PICTURES), (), [-1, -1, -1]),
    ],
)
def test_tables_without_the_words_of_datasets(tmp_path: Path, table: pa.Table, names: Any, labels: Any) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    receipt = vrl3data.convert(None, tmp_path / "a.parquet", tmp_path / "out", {"split": "val"})
    with vrl3data.open(tmp_path / "out") as dataset:
        assert dataset.schema["cls"].names == names
        assert [item.meta["label"] for item in dataset] == labels
    assert ("no column of labels was found" in " ".join(receipt.notes)) == (names == ())


def test_tables_that_are_refused(tmp_path: Path) -> None:
    source, schema = tmp_path / "a.parquet", hugging_face_schema(["x", "y"])

    def refused(table: pa.Table, match: str, options: dict[str, Any] | None = None) -> None:
        pq.write_table(table, source)
        with pytest.raises((SourceError, ConfigError), match=match):
            vrl3data.convert("image-table", source, tmp_path / "out", options or {})

    refused(table_of(0, 2, schema, [0, 7]), "expected labels of 0 to 1 in 'label', found 7.*a.parquet")
    refused(_table(x=[1]), "expected one column of pictures.*, found x")
    refused(_table(a=[{"bytes": b"x"}], b=[{"bytes": b"x"}]), "found a, b; name the column with --image-column")
    refused(_table(image=PICTURES, label=[1.5] * 3), "expected numbers or names in column 'label', found double")
    refused(_table(image=PICTURES), "no column 'imaeg'; did you mean 'image'", {"image_column": "imaeg"})
    refused(_table(image=PICTURES, n=[1] * 3), "column 'n' holds int64, no pictures", {"image_column": "n"})
    refused(_table(image=[b"\x80\x04cos\nsystem\n."]), r"the file begins with b'\\x80\\x04cos.*a.parquet/000000")
    refused(_table(image=[{"bytes": None, "path": "/etc/passwd"}]), "no picture in it, but perhaps a path")
    refused(_table(image=pa.array([], pa.binary())), "the tables have no rows")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no .parquet or .arrow files found"):
        vrl3data.convert("image-table", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(SourceError, match="dataset of ours already"):
        vrl3data.convert("image-table", write_dataset(tmp_path / "ours"), tmp_path / "out")


@pytest.mark.parametrize("name", ["train-00001-of-00002.parquet", "validation-00000-of-00001.arrow"])
def test_broken_tables_stop_or_are_skipped(tmp_path: Path, name: str) -> None:
    source = write_tables(tmp_path / "tables")
    broken = source / "data" / name
    whole = broken.read_bytes()
    for end in (0, 3, len(whole) // 2, len(whole) - 5):
        broken.write_bytes(whole[:end])
        with pytest.raises(SourceError, match=f"not a whole .(parquet|arrow) file.*{name}"):
            vrl3data.convert("image-table", source, tmp_path / "out", {"image_size": 16})
        receipt = vrl3data.convert(
            "image-table", source, tmp_path / "out", {"image_size": 16}, on_error="skip", overwrite=True
        )
        assert [entry["source"] for entry in receipt.skipped] == [f"data/{name}"]
        assert receipt.manifest.samples in (80, 140, 144, 148, 150)


def test_a_path_of_a_table_is_not_stored_whole(tmp_path: Path) -> None:
    for number, (path, want) in enumerate(
        [("/home/me/a.jpg", "a.jpg"), ("C:\\me\\b.jpg", "b.jpg"), ("d/c.jpg", "d/c.jpg")]
    ):
        pq.write_table(_table(image=[{"bytes": jpeg(9, 9), "path": path}]), tmp_path / f"{number}.parquet")
        vrl3data.convert("image-table", tmp_path / f"{number}.parquet", tmp_path / f"out{number}")
        with vrl3data.open(tmp_path / f"out{number}") as dataset:
            assert dataset[0].source_meta["path"] == want


# -- all kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "write"),
    [("imagenet", write_official), ("webdataset", write_webdataset), ("image-table", write_tables)],
)
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, kind: str, write: Callable[[Path], Path]) -> None:
    source = write(tmp_path / "source")
    for jobs in (1, 2):
        result = run_cli("convert", source, tmp_path / f"out{jobs}", "--jobs", jobs, "--image-size", 24,
                         "--shard-size", "20kB")  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert f"recognised as {kind}" in result.stderr
    assert shard_bytes(tmp_path / "out1") == shard_bytes(tmp_path / "out2")
    again = run_cli("convert", source, tmp_path / "out2", "--image-size", 24, "--shard-size", "20kB", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["written_now"] == 0


def test_a_broken_picture_in_an_archive_is_named(tmp_path: Path) -> None:
    pictures = train_pictures()
    pictures["n01443537"]["n01443537_1.JPEG"] = b"<!DOCTYPE html>"
    source = write_official(tmp_path / "official", pictures)
    with pytest.raises(SourceError, match="begins with b'<!DOCTYPE ht'.*img_train.tar/n01443537/n01443537_1.JPEG"):
        vrl3data.convert("imagenet", source, tmp_path / "out", {"image_size": 16})
    receipt = vrl3data.convert("imagenet", source, tmp_path / "out", {"image_size": 16}, on_error="skip")
    assert [entry["source"] for entry in receipt.skipped] == ["train/n01443537/n01443537_1.JPEG"]
    assert receipt.manifest.samples == 12


def test_an_archive_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    source = write_official(tmp_path / "official") / "ILSVRC2012_img_train.tar"
    converter = ImagenetConverter([source], PictureOptions(image_size=16))
    units = list(converter.plan().units)
    os.truncate(source, 5000)
    with pytest.raises(SourceError, match="the file was cut off meanwhile"):
        converter.read(units[-1])
    converter.close()


@pytest.mark.parametrize("kind", ["imagenet", "webdataset", "image-table"])
def test_what_every_kind_of_pictures_refuses(tmp_path: Path, kind: str) -> None:
    source = make_pictures(tmp_path / "pictures")
    with pytest.raises(ConfigError, match="fit: expected"):
        vrl3data.convert(kind, source, tmp_path / "out", {"fit": "stretch"})
    with pytest.raises(ConfigError, match="decoder: expected"):
        vrl3data.convert(kind, source, tmp_path / "out", {"decoder": "opencv"})
    with pytest.raises(SourceError, match="there is no such file or directory"):
        vrl3data.convert(kind, tmp_path / "nowhere", tmp_path / "out")


def _png(mode: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).convert(mode).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(("kind", "write"), [("image-table", write_tables), ("webdataset", write_webdataset)])
def test_files_of_one_name_in_two_sources_are_all_converted(
    tmp_path: Path, kind: str, write: Callable[[Path], Path]
) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    small = {"image_size": 16, "fit": "crop"}
    alone = vrl3data.convert(kind, one, tmp_path / "alone", small)
    both = vrl3data.convert(kind, [one, two], tmp_path / "both", small)
    assert both.manifest.samples == 2 * alone.manifest.samples
    with vrl3data.open(tmp_path / "alone") as dataset:
        names = sorted(dataset.index["name"].to_pylist())
    with vrl3data.open(tmp_path / "both") as dataset:
        found = sorted(dataset.index["name"].to_pylist())
    assert found == sorted(f"{source}/{name}" for source in ("one", "two") for name in names)
    assert {name: split.samples for name, split in both.manifest.splits.items()} == {
        name: 2 * split.samples for name, split in alone.manifest.splits.items()
    }
