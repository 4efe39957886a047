"""Sources of pictures in the layouts that the world keeps them in, made of small pictures."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import jpeg

WNIDS = ("n01440764", "n02084071", "n01443537")
"""In the order of their ILSVRC2012_ID, which is not that of their names."""


def tar_bytes(files: Mapping[str, bytes], **fields: Any) -> bytes:
    """An archive as GNU tar packs it; `fields` go into each header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fields.pop("format", tarfile.GNU_FORMAT)) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def train_pictures(per_class: int = 3) -> dict[str, dict[str, bytes]]:
    return {
        wnid: {f"{wnid}_{n}.JPEG": jpeg(40 + n, 50 + row, 10 * row + n) for n in range(per_class)}
        for row, wnid in enumerate(sorted(WNIDS))
    }


def write_train_tar(path: Path, pictures: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A tar of one tar for each class."""
    path.write_bytes(tar_bytes({f"{wnid}.tar": tar_bytes(files) for wnid, files in pictures.items()}))
    return path


def write_official(folder: Path, pictures: Mapping[str, Mapping[str, bytes]] | None = None) -> Path:
    """ILSVRC2012 as it is downloaded, small: validation picture n is of class n modulo 3 in the order of the IDs."""
    folder.mkdir(exist_ok=True)
    write_train_tar(folder / "ILSVRC2012_img_train.tar", pictures or train_pictures())
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(40, 44, 100 + n) for n in range(1, 5)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val))
    write_devkit(folder / "ILSVRC2012_devkit_t12.tar.gz", [1, 2, 3, 2])
    return folder


def write_devkit(path: Path, truth: Sequence[int], wnids: Sequence[str] = WNIDS) -> Path:
    """The real one has 1860 synsets, the inner nodes of the tree among them."""
    rows = [{"ILSVRC2012_ID": n, "WNID": wnid, "words": "a fish, an animal", "num_children": 0}
            for n, wnid in enumerate(wnids, 1)]  # fmt: skip
    rows.append({"ILSVRC2012_ID": len(wnids) + 1, "WNID": "n00001740", "words": "entity", "num_children": 3})
    files = {
        "ILSVRC2012_devkit_t12/readme.txt": b"not of interest",
        "ILSVRC2012_devkit_t12/data/meta.mat": mat_file("synsets", rows),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in truth).encode(),
    }
    path.write_bytes(gzip.compress(tar_bytes(files), mtime=0))
    return path


def mat_file(name: str, rows: Sequence[Mapping[str, str | int]], compress: bool = True) -> bytes:
    """An array of structs in MATLAB's format 5, numbers as doubles or as the small integers that MATLAB saves."""
    fields = list(rows[0])
    width = 32
    parts = [
        _element(6, struct.pack("<II", 2, 0)),
        _element(5, struct.pack("<ii", len(rows), 1)),
        _element(1, name.encode()),
        struct.pack("<HHi", 5, 4, width),
        _element(1, b"".join(field.encode().ljust(width, b"\0") for field in fields)),
        *(_cell(row[field]) for row in rows for field in fields),
    ]
    element = _element(14, b"".join(parts))
    if compress:
        packed = zlib.compress(element)
        element = struct.pack("<II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + b"\x00\x01IM" + element


def _cell(value: str | int) -> bytes:
    kind, data = (4, _element(4, value.encode("utf-16-le"))) if isinstance(value, str) else (6, _number(value))
    size = len(value) if isinstance(value, str) else 1
    shape = _element(5, struct.pack("<ii", 1, size))
    return _element(14, _element(6, struct.pack("<II", kind, 0)) + shape + _element(1, b"") + data)


def _number(value: int) -> bytes:
    """In its own tag where it is small, as MATLAB does it."""
    return struct.pack("<HHBxxx", 2, 1, value) if value % 2 else _element(9, struct.pack("<d", value))


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def write_kaggle(root: Path) -> Path:
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid, files in train_pictures(2).items():
        (data / "train" / wnid).mkdir(parents=True)
        for name, picture in files.items():
            (data / "train" / wnid / name).write_bytes(picture)
    for folder in ("val", "test"):
        (data / folder).mkdir()
    rows = ["ImageId,PredictionString"]
    for n, wnid in enumerate(WNIDS, 1):
        (data / "val" / f"ILSVRC2012_val_{n:08d}.JPEG").write_bytes(jpeg(30, 30, n))
        rows.append(f"ILSVRC2012_val_{n:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    (data / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(jpeg(30, 30))
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


def hugging_face_schema(names: Sequence[str] | None, label: pa.DataType | None = None) -> pa.Schema:
    columns = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", label or pa.int64()),
        ("caption", pa.string()),
        ("opaque", pa.binary()),
    ]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    if names:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    return pa.schema(columns, {b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def table_of(first: int, count: int, schema: pa.Schema, labels: Sequence[Any] | None = None) -> pa.Table:
    rows = range(first, first + count)
    return pa.table(
        {
            "image": [{"bytes": jpeg(40, 50 + n, n), "path": f"{n}.jpg"} for n in rows],
            "label": list(labels) if labels is not None else [n % 3 for n in rows],
            "caption": [f"picture {n}" for n in rows],
            "opaque": [b"\x80\x04cos\nsystem\n."] * count,
        },
        schema,
    )


def write_tables(root: Path, names: Sequence[str] | None = ("cat", "dog", "emu")) -> Path:
    """Two parquet files of train with several row groups, one arrow file of validation."""
    (root / "data").mkdir(parents=True)
    schema = hugging_face_schema(names)
    for n in range(2):
        pq.write_table(
            table_of(70 * n, 70, schema), root / "data" / f"train-0000{n}-of-00002.parquet", row_group_size=40
        )
    arrow = str(root / "data" / "validation-00000-of-00001.arrow")
    with pa.OSFile(arrow, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(table_of(500, 10, schema), max_chunksize=4)
    return root


def write_webdataset(root: Path, labels: Sequence[str] = ("0", "2", "1", "2"), count: int = 4) -> Path:
    """Two archives whose keys are the same."""
    root.mkdir(parents=True)
    for split in ("train", "val"):
        files: dict[str, bytes] = {}
        for n in range(count):
            files[f"{n:06d}.jpg"] = jpeg(40, 50 + n, n + 20 * (split == "val"))
            files[f"{n:06d}.cls"] = labels[n % len(labels)].encode()
            files[f"{n:06d}.json"] = json.dumps({"caption": f"picture {n}"}).encode()
        (root / f"{split}-000000.tar").write_bytes(tar_bytes(files))
    return root
