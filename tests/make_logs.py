"""Small robot logs: MCAP files, ROS 1 bags and rosbag2 databases, by the libraries' writers or by hand."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.interfaces import Nodetype
from rosbags.rosbag1 import Writer as BagWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Bag2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

START = 1_700_000_000_000_000_000
RATE_NS = 20_000_000
STEP = """std_msgs/Header header
float64[3] tip
float32[] forces
arm_msgs/Tool[] tools
bool closed
string<=20 phase
uint16 NOT_A_FIELD=5
duration waited
"""
TOOL = """string name
int8[2] slots
geometry_msgs/Vector3 offset
"""
NUMBERS = {"float64": np.float64, "float32": np.float32, "bool": np.bool_, "byte": np.uint8, "char": np.uint8}


class Item(NamedTuple):
    """A message on its way into a log."""

    topic: str
    type: str
    log_ns: int
    data: bytes


@cache
def store(ros: int) -> Any:
    """The standard types of ROS 1 or 2, and two of our own: arm_msgs/Step and arm_msgs/Tool."""
    types = get_typestore(Stores.ROS1_NOETIC if ros == 1 else Stores.ROS2_HUMBLE)
    step = STEP if ros == 1 else STEP.replace("duration ", "builtin_interfaces/Duration ")
    types.register({**get_types_from_msg(TOOL, "arm_msgs/msg/Tool"), **get_types_from_msg(step, "arm_msgs/msg/Step")})
    return types


def message(ros: int, kind: str, values: Mapping[str, Any]) -> Any:
    """A message object of the rosbags library: what `values` does not name is zero or empty."""
    types = store(ros)
    given = {}
    for name, field in types.fielddefs[kind][1]:
        given[name] = _value(ros, field, values.get(name)) if name in values else _zero(ros, field)
    known = {field.name for field in dataclasses.fields(types.types[kind])}
    return types.types[kind](**{name: value for name, value in given.items() if name in known})


def _value(ros: int, field: Any, value: Any) -> Any:
    node, inner = field
    if node == Nodetype.NAME:
        return message(ros, inner, value)
    if node == Nodetype.BASE:
        return value
    (kind, name), _ = inner
    if kind == Nodetype.NAME:
        return [message(ros, name, item) for item in value]
    if name[0] == "string":
        return list(value)
    return np.asarray(value, NUMBERS.get(name[0], name[0]))


def _zero(ros: int, field: Any) -> Any:
    node, inner = field
    if node == Nodetype.NAME:
        return message(ros, inner, {})
    if node == Nodetype.BASE:
        return "" if inner[0] == "string" else False if inner[0] == "bool" else 0
    (kind, name), size = inner
    count = size if node == Nodetype.ARRAY else 0
    if kind == Nodetype.NAME:
        return [message(ros, name, {}) for _ in range(count)]
    return [""] * count if name[0] == "string" else np.zeros(count, NUMBERS.get(name[0], name[0]))


def encode(ros: int, kind: str, values: Mapping[str, Any], big: bool = False) -> bytes:
    """The bytes of a message: ROS 1, or CDR (`big`: big-endian)."""
    made = message(ros, kind, values)
    if ros == 1:
        return bytes(store(1).serialize_ros1(made, kind))
    return bytes(store(2).serialize_cdr(made, kind, little_endian=not big))


def stamp(time_ns: int) -> dict[str, Any]:
    return {"stamp": {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9}, "frame_id": "base"}


def joints(ros: int, number: int, names: Sequence[str] = ("a", "b", "c"), skew_ns: int = 3_000_000) -> Item:
    log_ns = START + number * RATE_NS
    positions = [number + 0.1 * "abc".index(name) for name in names]
    values = {"header": stamp(log_ns - skew_ns), "name": list(names), "position": positions}
    return Item("/joints", "sensor_msgs/msg/JointState", log_ns, encode(ros, "sensor_msgs/msg/JointState", values))


def steps(ros: int, number: int) -> Item:
    log_ns = START + number * RATE_NS + 1_000_000
    values = {
        "header": stamp(log_ns - 5_000_000),
        "tip": [number, 2.0, 3.0],
        "forces": [0.5] * (number % 3),
        "tools": [{"name": "grip", "slots": [1, -2], "offset": {"x": 1.0}}] * (number % 2),
        "closed": number % 2 == 1,
        "phase": f"phase {number}",
        "waited": {"sec": 2, "nanosec": 5},
    }
    return Item("/steps", "arm_msgs/msg/Step", log_ns, encode(ros, "arm_msgs/msg/Step", values))


def some(ros: int, count: int = 20) -> list[Item]:
    """Joint states at 50 Hz and messages of a type that only the log describes."""
    return [item for number in range(count) for item in (joints(ros, number), steps(ros, number))]


def definition(ros: int, kind: str) -> str:
    text: str = store(ros).generate_msgdef(kind, ros_version=ros)[0]
    return text


class Mcap(NamedTuple):
    """How an MCAP file is written."""

    compression: CompressionType = CompressionType.ZSTD
    chunk_size: int = 1000
    chunked: bool = True
    summary: bool = True
    indexed: bool = True


def write_mcap(path: Path, items: Sequence[Item], how: Mcap = Mcap()) -> Path:  # noqa: B008
    writer = McapWriter(
        str(path),
        chunk_size=how.chunk_size,
        compression=how.compression,
        index_types=IndexType.ALL if how.indexed else IndexType.NONE,
        repeat_channels=how.summary,
        repeat_schemas=how.summary,
        use_chunking=how.chunked,
        use_statistics=how.summary,
        use_summary_offsets=how.summary,
    )
    writer.start("ros2", "made by hand")
    channels: dict[str, int] = {}
    for number, item in enumerate(items):
        if item.topic not in channels:
            text = definition(2, item.type).encode()
            schema = writer.register_schema(item.type, "ros2msg", text)
            channels[item.topic] = writer.register_channel(item.topic, "cdr", schema)
        writer.add_message(channels[item.topic], item.log_ns, item.data, item.log_ns - 500_000, number)
    writer.add_metadata("robot", {"name": "arm 7"})
    writer.add_attachment(START, START, "calibration.yaml", "text/yaml", b"a: 1")
    writer.finish()
    return path


def write_json(path: Path, messages: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> Path:
    """An MCAP file of JSON messages, 10 ms apart. What is bytes goes in as it is."""
    writer = McapWriter(str(path), compression=CompressionType.NONE)
    writer.start()
    for topic, values in messages.items():
        schema = writer.register_schema(kinds.get(topic, topic), "jsonschema", b"{}")
        channel = writer.register_channel(topic, "json", schema)
        for number, value in enumerate(values):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            writer.add_message(channel, START + number * 10_000_000, data, START + number * 10_000_000, number)
    writer.finish()
    return path


def write_bag(path: Path, items: Sequence[Item], compression: str = "", chunk: int = 1000) -> Path:
    writer = BagWriter(path)
    if compression:
        writer.set_compression(getattr(BagWriter.CompressionFormat, compression.upper()))
    writer.chunk_threshold = chunk
    with writer:
        connections = {}
        for item in items:
            if item.topic not in connections:
                connections[item.topic] = writer.add_connection(item.topic, item.type, typestore=store(1))
            writer.write(connections[item.topic], item.log_ns, item.data)
    return path


def unindexed(path: Path) -> Path:
    """A bag as a recorder leaves it that was killed: no index, `index_pos` is 0."""
    data = bytearray(path.read_bytes())
    place = data.index(b"index_pos=") + len(b"index_pos=")
    (end,) = struct.unpack_from("<Q", data, place)
    data[place : place + 8] = bytes(8)
    path.write_bytes(data[:end])
    return path


def write_db3(
    folder: Path, items: Sequence[Item], version: int = 8, message_zstd: bool = False, mcap: bool = False
) -> Path:
    """A folder as rosbag2 makes it; version 8 has no definitions of types in the database."""
    writer = Bag2Writer(folder, version=version, storage_plugin=StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3)  # type: ignore[arg-type]
    if message_zstd:
        writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for item in items:
            if item.topic not in connections:
                connections[item.topic] = writer.add_connection(item.topic, item.type, typestore=store(2))
            writer.write(connections[item.topic], item.log_ns, item.data)
    return folder


def bare_db3(path: Path, items: Sequence[Item], old_names: bool = False, wal: bool = False) -> Path:
    """A database of an early rosbag2, by hand. `old_names`: types without `/msg/`; `wal`: not yet in the file."""
    database = sqlite3.connect(path)
    if wal:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA wal_autocheckpoint=0")
    database.execute("CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
                     "serialization_format TEXT NOT NULL)")  # fmt: skip
    database.execute("CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, "
                     "timestamp INTEGER NOT NULL, data BLOB NOT NULL)")  # fmt: skip
    topics: dict[str, int] = {}
    for item in items:
        if item.topic not in topics:
            kind = item.type.replace("/msg/", "/") if old_names else item.type
            topics[item.topic] = len(topics) + 1
            database.execute("INSERT INTO topics VALUES (?, ?, ?, 'cdr')", (topics[item.topic], item.topic, kind))
        row = (topics[item.topic], item.log_ns, item.data)
        database.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", row)
    database.commit()
    if wal:  # closing would move it into the file
        import shutil

        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{path}{suffix}.kept")
        database.close()
        for suffix in ("", "-wal"):
            Path(f"{path}{suffix}.kept").replace(f"{path}{suffix}")
        Path(f"{path}-shm").unlink(missing_ok=True)
    database.close()
    return path
