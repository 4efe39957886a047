"""RLDS sets as TFDS lays them out, made without TensorFlow and without our reader: another road to the same bytes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASS = "tensorflow_datasets.core.features."


def _table() -> list[int]:
    """crc32c byte by byte: Castagnoli's polynomial, reflected."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
        table.append(byte)
    return table


TABLE = _table()


def masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def feature(values: Any) -> bytes:
    """A Feature: bytes for a list of bytes, FloatList for floats, Int64List for integers and bools."""
    if isinstance(values, (list, tuple)):
        return field(1, b"".join(field(1, item) for item in values))
    flat = np.asarray(values).reshape(-1)
    if flat.dtype.kind == "f":
        return field(2, field(1, flat.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(item)) for item in flat)))


def example(lists: Mapping[str, Any]) -> bytes:
    """Values that are bytes are whole Feature messages already."""
    entries = (
        field(1, field(1, key.encode()) + field(2, value if isinstance(value, bytes) else feature(value)))
        for key, value in lists.items()
    )
    return field(1, b"".join(entries))


def write_records(path: Path, messages: Sequence[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(framed(message) for message in messages))
    return path


def picture(array: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(
        out, kind, **{"quality": 95} if kind == "JPEG" else {}
    )
    return out.getvalue()


def tensor(shape: Sequence[int], dtype: str = "float32", encoding: str = "none") -> dict[str, Any]:
    described = {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": CLASS + "tensor_feature.Tensor", "tensor": described}


def scalar(dtype: str = "bool") -> dict[str, Any]:
    return {"pythonClassName": CLASS + "scalar.Scalar", "tensor": {"shape": {}, "dtype": dtype, "encoding": "none"}}


def image(shape: Sequence[int], encoding: str = "png", dtype: str = "uint8") -> dict[str, Any]:
    described = {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": dtype, "encodingFormat": encoding}
    return {"pythonClassName": CLASS + "image_feature.Image", "description": "A  camera.", "image": described}


def text() -> dict[str, Any]:
    return {"pythonClassName": CLASS + "text_feature.Text", "text": {}}


def features(**inner: Any) -> dict[str, Any]:
    return {"pythonClassName": CLASS + "features_dict.FeaturesDict", "featuresDict": {"features": inner}}


def sequence(inner: Any, length: int | None = None, kind: str = "sequence_feature.Sequence") -> dict[str, Any]:
    return {"pythonClassName": CLASS + kind, "sequence": {"feature": inner, "length": str(length or -1)}}


def described(steps: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    """features.json of a set whose steps have these features."""
    more = {"episode_metadata": features(**metadata)} if metadata else {}
    return features(steps=sequence(features(**steps), kind="dataset_feature.Dataset"), **more)


STEPS = {
    "action": tensor([3]),
    "reward": scalar("float32"),
    "discount": scalar("float32"),
    **{name: scalar() for name in ("is_first", "is_last", "is_terminal")},
    "language_instruction": text(),
    "language_embedding": tensor([64]),
    "observation": features(image=image([16, 20, 3]), state=tensor([4], "float64"), gripper=tensor([1], "int32")),
}


def episode(number: int, count: int = 5, terminal: bool = True) -> dict[str, Any]:
    """The lists of an episode whose content depends on `number` alone: `count` rows, all of them with an action."""
    rng = np.random.default_rng(number)
    steps = np.arange(count)
    frames = rng.integers(0, 255, (count, 4, 5, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    return {
        "steps/action": rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        "steps/reward": np.where(steps == count - 1, 1, 0).astype(np.float32),
        "steps/discount": np.ones(count, np.float32),
        "steps/is_first": steps == 0,
        "steps/is_last": steps == count - 1,
        "steps/is_terminal": (steps == count - 1) & terminal,
        "steps/language_instruction": [b"pick up the cup"] * count,
        "steps/language_embedding": np.tile(rng.random(64, dtype=np.float32), (count, 1)),
        "steps/observation/image": [picture(frame) for frame in frames],
        "steps/observation/state": rng.random((count, 4), dtype=np.float32),
        "steps/observation/gripper": rng.integers(-200, 200, (count, 1)),
        "episode_metadata/file_path": [f"recorded/{number}.npy".encode()],
        "episode_metadata/rate": np.float32([10.5]),
    }


METADATA = {"file_path": text(), "rate": scalar("float32")}


def write_set(
    root: Path, episodes: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] | None = None,
    layout: Mapping[str, Any] | None = None, info: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A set `root/toy/1.0.0`. `episodes` are lists of shards, by split."""
    folder = root / "toy" / "1.0.0"
    episodes = episodes or {"train": [[episode(0), episode(1, 7, False)], [episode(2, 4)]], "val": [[episode(3)]]}
    for split, shards in episodes.items():
        for number, shard in enumerate(shards):
            name = f"toy-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            write_records(folder / name, [example(lists) for lists in shard])
    if layout != {}:
        (folder / "features.json").write_text(json.dumps(layout or described(STEPS, **METADATA)))
    splits = [
        {"name": split, "shardLengths": [str(len(shard)) for shard in shards]} for split, shards in episodes.items()
    ]
    told = {"name": "toy", "version": "1.0.0", "description": "Made up.", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps({**told, **(info or {})}))
    return root / "toy"


def decode(path: Path) -> Iterator[dict[str, Any]]:
    """What the records of a file hold, by the plainest way: one number after the other."""

    def number(data: bytes, at: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    def parts(data: bytes) -> list[bytes]:
        at, found = 0, []
        while at < len(data):
            size, begin = number(data, at + 1)
            found.append(data[at : at + 1] + data[begin : begin + size])
            at = begin + size
        return found

    def unpacked(data: bytes) -> list[int]:
        at, found = 0, []
        while at < len(data):
            value, at = number(data, at)
            found.append(value - 2**64 * (value >= 2**63))
        return found

    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        lists: dict[str, Any] = {}
        for entry in parts(parts(data[at + 12 : at + 12 + length])[0][1:]):
            name, value = parts(entry[1:])
            for kind in parts(value[1:]):
                items = [item[1:] for item in parts(kind[1:])]
                lists[name[1:].decode()] = (
                    items if kind[0] == 10 else np.frombuffer(b"".join(items), "<f4") if kind[0] == 18
                    else unpacked(b"".join(items))
                )  # fmt: skip
        yield lists
        at += 16 + length
