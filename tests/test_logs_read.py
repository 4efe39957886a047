"""Reading robot logs: every container and encoding gives the same messages as the libraries do."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_logs import (
    START,
    Item,
    Mcap,
    bare_db3,
    encode,
    joints,
    message,
    some,
    stamp,
    steps,
    store,
    unindexed,
    write_bag,
    write_db3,
    write_json,
    write_mcap,
)
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from converters.logs.messages import Message, is_log, open_log
from vrl3data.errors import ConfigError, SourceError

ARM = [joints(2, number) for number in range(20)]


def read(path: Path, **options: Any) -> tuple[list[Message], list[str]]:
    with open_log(path) as log:
        return list(log.messages(**options)), log.problems


def same(found: Any, wanted: Any) -> None:
    """Our nested dicts hold what the library's message objects hold."""
    if isinstance(found, dict):
        fields = {field.name for field in dataclasses.fields(wanted)} - {"__msgtype__"}
        assert set(found) == {name for name in fields if not name.isupper()}
        for name, value in found.items():
            same(value, getattr(wanted, name))
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            same(left, right)
    elif isinstance(found, np.ndarray):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)
    else:
        assert found == wanted


def check(found: list[Message], items: list[Item], ros: int) -> None:
    """Every message in the order of the file, with its times, as the rosbags library decodes it."""
    assert len(found) == len(items)
    for got, item in zip(found, items, strict=True):
        decode = store(1).deserialize_ros1 if ros == 1 else store(2).deserialize_cdr
        wanted = decode(item.data, item.type)
        assert (got.topic, got.log_ns) == (item.topic, item.log_ns)
        assert got.header_ns == wanted.header.stamp.sec * 10**9 + wanted.header.stamp.nanosec
        same(got.value, wanted)


@pytest.mark.parametrize(
    "how",
    [
        Mcap(),
        Mcap(CompressionType.LZ4),
        Mcap(CompressionType.NONE),
        Mcap(chunked=False),
        Mcap(summary=False),
        Mcap(summary=False, indexed=False),
        Mcap(chunked=False, summary=False, indexed=False),
    ],
)
def test_mcap(tmp_path: Path, how: Mcap) -> None:
    found, problems = read(write_mcap(tmp_path / "a.mcap", some(2), how))
    check(found, some(2), 2)
    assert not problems
    assert found[0].publish_ns == found[0].log_ns - 500_000
    with open_log(tmp_path / "a.mcap") as log:
        topics = log.topics()
        assert {name: (topic.type, topic.encoding, topic.count) for name, topic in topics.items()} == {
            "/joints": ("sensor_msgs/msg/JointState", "cdr", 20),
            "/steps": ("arm_msgs/msg/Step", "cdr", 20),
        }
        assert log.info()["profile"] == "ros2"
        if how.indexed or not how.summary:  # else nothing leads to them but a walk through the file
            assert log.info()["metadata"] == {"robot": {"name": "arm 7"}}
            assert log.info()["attachments"] == ["calibration.yaml"]
        compression = how.compression.name.lower() if how.chunked else None
        list(log.messages())
        assert log.info().get("compression") == compression


@pytest.mark.parametrize("compression", ["", "lz4", "bz2"])
@pytest.mark.parametrize("indexed", [True, False])
def test_ros1_bag(tmp_path: Path, compression: str, indexed: bool) -> None:
    path = write_bag(tmp_path / "a.bag", some(1), compression)
    if not indexed:
        unindexed(path)
    found, problems = read(path)
    check(found, some(1), 1)
    assert bool(problems) is not indexed
    assert indexed or "has no index" in problems[0]
    with open_log(path) as log:
        assert {name: topic.count for name, topic in log.topics().items()} == {"/joints": 20, "/steps": 20}


@pytest.mark.parametrize(("version", "zstd", "mcap"), [(8, False, False), (9, False, False), (9, True, False),
                                                       (9, True, True)])  # fmt: skip
def test_rosbag2_folder(tmp_path: Path, version: int, zstd: bool, mcap: bool) -> None:
    items = some(2) if version == 9 else ARM  # version 8 keeps no definitions
    folder = write_db3(tmp_path / "run", items, version, zstd, mcap)
    found, problems = read(folder)
    check(found, items, 2)
    assert not problems
    part = next(path for path in folder.iterdir() if path.suffix in (".db3", ".mcap"))
    alone = tmp_path / f"alone{part.suffix}"  # a part without its metadata
    shutil.move(part, alone)
    check(read(alone)[0], items, 2)


def test_split_recording_is_joined_in_order(tmp_path: Path) -> None:
    items = [joints(2, number) for number in range(30)]
    for part in range(11):  # 2 comes before 10
        bare_db3(tmp_path / f"run_{part}.db3", items[part * 2 : part * 2 + 2])
    found, problems = read(tmp_path)
    check(found, items[:22], 2)
    assert "no metadata.yaml" in problems[0]
    bare_db3(tmp_path / "other_0.db3", items[:1])
    assert not is_log(tmp_path)  # two recordings are no single one
    with pytest.raises(SourceError, match="expected a recording of rosbag2"):
        open_log(tmp_path)


def test_early_databases(tmp_path: Path) -> None:
    """Type names without /msg/, no definitions, and a write-ahead log that nobody moved into the database."""
    check(read(bare_db3(tmp_path / "old.db3", ARM, old_names=True))[0], ARM, 2)
    path = bare_db3(tmp_path / "wal.db3", ARM, wal=True)
    with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as database, pytest.raises(sqlite3.Error):
        database.execute("SELECT * FROM messages")  # all of it is in the log beside it
    database.close()
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    tmp_path.chmod(0o555)
    try:
        check(read(path)[0], ARM, 2)
    finally:
        tmp_path.chmod(0o755)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before


def test_a_distribution_is_found_by_trying(tmp_path: Path) -> None:
    """Without definitions a type that changed between distributions is read by the one that takes all bytes."""
    from rosbags.typesys import Stores, get_typestore

    jazzy, kind = get_typestore(Stores.ROS2_JAZZY), "sensor_msgs/msg/Range"
    assert [name for name, _ in jazzy.fielddefs[kind][1]][-1] == "variance"  # which humble does not have
    assert "variance" not in dict(store(2).fielddefs[kind][1])
    header = jazzy.types["std_msgs/msg/Header"](jazzy.types["builtin_interfaces/msg/Time"](1, 2), "eye")
    made = jazzy.types[kind](header, 1, 0.5, 0.25, 4.0, 1.5, 0.125)
    new = [Item("/range", kind, START, bytes(jazzy.serialize_cdr(made, kind)))]
    found, problems = read(bare_db3(tmp_path / "new.db3", new))
    assert found[0].value["variance"] == 0.125
    assert not problems
    old = [Item("/range", kind, START, encode(2, kind, {"range": 2.5}))]
    found, problems = read(bare_db3(tmp_path / "old.db3", old))
    assert found[0].value["range"] == 2.5
    assert "variance" not in found[0].value
    assert not problems


def test_big_endian_and_zero_stamps(tmp_path: Path) -> None:
    values = {"header": stamp(0), "name": ["a"], "position": [1.5], "velocity": [2.5]}
    data = encode(2, "sensor_msgs/msg/JointState", values, big=True)
    found, _ = read(write_mcap(tmp_path / "a.mcap", [Item("/joints", "sensor_msgs/msg/JointState", START, data)]))
    assert found[0].header_ns == 0
    assert found[0].value["velocity"].tolist() == [2.5]
    assert found[0].value["velocity"].dtype == np.dtype("=f8")


def test_json(tmp_path: Path) -> None:
    pose = {"timestamp": {"sec": 5, "nsec": 7}, "frame_id": "map", "pose": {"position": {"x": 1, "y": 2.5, "z": 0}}}
    other = {"header": {"stamp": {"secs": 1, "nsecs": 2}}, "on": True}
    path = write_json(tmp_path / "a.mcap", {"/pose": [pose], "/other": [other], "/list": [[1, 2]], "/bad": [b"{"]}, {})
    found, problems = read(path)
    assert [message.header_ns for message in found] == [5_000_000_007, 1_000_000_002, None]
    assert found[0].value == pose
    assert found[2].value == {"value": [1, 2]}
    assert len(problems) == 1
    assert problems[0].startswith(f"/bad: one message cannot be decoded, the first at {START} ns: not JSON: Expecting")


def test_protobuf_without_its_code(tmp_path: Path) -> None:
    path = write_protobuf(tmp_path / "a.mcap")
    found, problems = read(path)
    assert not problems
    value = found[0].value
    assert found[0].header_ns == 3_000_000_004
    assert value["name"] == "arm"
    assert value["values"].tolist() == [1.0, 2.0]
    assert value["raw"].tolist() == [0, 255]
    assert value["inner"] == {"x": 2.5, "words": ["a", "b"]}
    assert value["table"] == {"k": 7}
    assert "absent" not in value


def write_protobuf(path: Path) -> Path:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

    file = descriptor_pb2.FileDescriptorProto(
        name="arm.proto", package="arm", syntax="proto3", dependency=["google/protobuf/timestamp.proto"]
    )
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="x", number=1, type=1, label=1)
    inner.field.add(name="words", number=2, type=9, label=3)
    step = file.message_type.add(name="Step")
    entry = step.nested_type.add(name="TableEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=5, label=1)
    step.field.add(name="timestamp", number=1, type=11, label=1, type_name=".google.protobuf.Timestamp")
    step.field.add(name="name", number=2, type=9, label=1)
    step.field.add(name="values", number=3, type=2, label=3)
    step.field.add(name="raw", number=4, type=12, label=1)
    step.field.add(name="inner", number=5, type=11, label=1, type_name=".arm.Inner")
    step.field.add(name="absent", number=6, type=11, label=1, type_name=".arm.Inner")
    step.field.add(name="table", number=7, type=11, label=3, type_name=".arm.Step.TableEntry")
    time = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(time)
    files = descriptor_pb2.FileDescriptorSet(file=[file, time])  # in the wrong order
    pool = descriptor_pool.DescriptorPool()
    pool.Add(time)
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("arm.Step"))()
    made.timestamp.seconds, made.timestamp.nanos, made.name, made.raw = 3, 4, "arm", b"\0\xff"
    made.values.extend([1.0, 2.0])
    made.inner.x = 2.5
    made.inner.words.extend(["a", "b"])
    made.table["k"] = 7
    writer = McapWriter(str(path))
    writer.start()
    schema = writer.register_schema("arm.Step", "protobuf", files.SerializeToString())
    writer.add_message(writer.register_channel("/step", "protobuf", schema), START, made.SerializeToString(), START)
    writer.finish()
    return path


def test_idl_definitions(tmp_path: Path) -> None:
    """ROS 2 types may be described by IDL, which other readers of MCAP do not take."""
    rule = "=" * 80
    idl = f"""{rule}
IDL: arm_msgs/msg/Tip
#include "geometry_msgs/msg/Vector3.idl"
module arm_msgs {{ module msg {{
  struct Tip {{ geometry_msgs::msg::Vector3 at; sequence<float> forces; boolean closed; }};
}}; }};
{rule}
IDL: geometry_msgs/msg/Vector3
module geometry_msgs {{ module msg {{ struct Vector3 {{ double x; double y; double z; }}; }}; }};
"""
    data = b"\0\1\0\0" + np.array([1.0, 2.0, 3.0]).tobytes() + b"\2\0\0\0" + np.float32([4, 5]).tobytes() + b"\1"
    writer = McapWriter(str(tmp_path / "a.mcap"))
    writer.start("ros2")
    schema = writer.register_schema("arm_msgs/msg/Tip", "ros2idl", idl.encode())
    writer.add_message(writer.register_channel("/tip", "cdr", schema), START, data, START)
    writer.finish()
    found, problems = read(tmp_path / "a.mcap")
    assert not problems
    assert found[0].value["at"] == {"x": 1.0, "y": 2.0, "z": 3.0}
    assert found[0].value["forces"].tolist() == [4.0, 5.0]
    assert found[0].value["closed"] is True


def test_ros1_messages_in_mcap(tmp_path: Path) -> None:
    writer = McapWriter(str(tmp_path / "a.mcap"))
    writer.start("ros1")
    items = [steps(1, number) for number in range(3)]
    text = store(1).generate_msgdef("arm_msgs/msg/Step", ros_version=1)[0]
    channel = writer.register_channel(
        "/steps", "ros1", writer.register_schema("arm_msgs/Step", "ros1msg", text.encode())
    )
    for item in items:
        writer.add_message(channel, item.log_ns, item.data, item.log_ns)
    writer.finish()
    found, problems = read(tmp_path / "a.mcap")
    check(found, items, 1)
    assert not problems


def test_only_the_topics_asked_for(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a.mcap", some(2))
    found, _ = read(path, names=["/steps"])
    assert Counter(message.topic for message in found) == {"/steps": 20}
    with open_log(path) as log, pytest.raises(ConfigError, match="no topic '/stepz'; did you mean '/steps'"):
        next(log.messages(["/stepz"]))


def test_stamps_without_decoding(tmp_path: Path) -> None:
    for path, ros in ((write_mcap(tmp_path / "a.mcap", some(2)), 2), (write_bag(tmp_path / "a.bag", some(1)), 1)):
        decoded, _ = read(path)
        raw, _ = read(path, decode=False)
        assert [message.header_ns for message in raw] == [message.header_ns for message in decoded]
        assert bytes(raw[1].value) == some(ros)[1].data
        with open_log(path) as log:
            assert log.decode("/steps", raw[1].value)["phase"] == "phase 0"


def test_trailing_bytes_are_named(tmp_path: Path) -> None:
    items = [joints(1, 0), joints(1, 1)._replace(data=joints(1, 1).data + b"more")]
    found, problems = read(write_bag(tmp_path / "a.bag", items))
    assert len(found) == 2
    assert problems == ["/joints: 1 messages are longer than their type says; the rest is ignored"]


def test_unsorted_messages_come_in_file_order(tmp_path: Path) -> None:
    items = [joints(1, number) for number in (5, 1, 3, 0, 9, 2)]
    assert [message.log_ns for message in read(write_bag(tmp_path / "a.bag", items, chunk=200))[0]] == [
        item.log_ns for item in items
    ]


def test_one_topic_of_two_types(tmp_path: Path) -> None:
    writer = McapWriter(str(tmp_path / "a.mcap"))
    writer.start()
    for kind in ("A", "B"):
        channel = writer.register_channel("/x", "json", writer.register_schema(kind, "jsonschema", b""))
        writer.add_message(channel, START, b'{"a": 1}', START)
    writer.finish()
    found, problems = read(tmp_path / "a.mcap")
    assert len(found) == 1
    assert problems == ["/x: messages of type B are passed over, it is a topic of A"]


@pytest.mark.parametrize(
    ("encoding", "schema_encoding", "schema", "expected"),
    [
        ("cbor", "", b"", "messages encoded as 'cbor' cannot be decoded"),
        ("cdr", "", b"", "no definition of the type arm_msgs/Odd, which is not a standard one"),
        ("cdr", "omgidl", b"struct Odd { long a; };", "definitions in 'omgidl' cannot be read for cdr"),
        ("cdr", "ros2msg", b"float64 a\nfloat64", "the definition of arm_msgs/msg/Odd in the log cannot be parsed"),
        ("cdr", "ros2msg", b"Missing a", "the log has no definition of the type arm_msgs/msg/Missing"),
        ("cdr", "ros2msg", b"Odd a", "nested more than 40 deep, or in itself"),
        ("cdr", "ros2msg", b"#" * (2**20 + 1), "has 1,048,577 characters"),
        ("protobuf", "protobuf", b"\xff\xff", "the descriptors of arm_msgs/Odd in the log are not usable"),
        ("protobuf", "", b"", "protobuf messages need a schema of descriptors, found none"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_named(
    tmp_path: Path, encoding: str, schema_encoding: str, schema: bytes, expected: str
) -> None:
    writer = McapWriter(str(tmp_path / "a.mcap"))
    writer.start()
    number = writer.register_schema("arm_msgs/Odd", schema_encoding, schema) if schema_encoding else (
        writer.register_schema("arm_msgs/Odd", "", b""))  # fmt: skip
    writer.add_message(writer.register_channel("/odd", encoding, number), START, b"\0\1\0\0data", START)
    writer.finish()
    with open_log(tmp_path / "a.mcap") as log:
        assert expected in log.topics()["/odd"].error
        assert not list(log.messages())
        assert expected in log.problems[0]
        assert [bytes(message.value) for message in log.messages(decode=False)] == [b"\0\1\0\0data"]
        with pytest.raises(SourceError, match=r"\(path a.mcap, feature /odd\)"):
            next(log.messages(["/odd"]))


def test_messages_made_here_are_what_they_seem() -> None:
    """The tests' own helper, against a message that the library builds by itself."""
    item = steps(2, 3)
    made = store(2).deserialize_cdr(item.data, item.type)
    assert made.phase == "phase 3"
    assert made.tools[0].slots.tolist() == [1, -2]
    assert message(2, "std_msgs/msg/String", {"data": "x"}).data == "x"
