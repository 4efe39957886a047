"""Real logs: every message is what the rosbags, mcap and protobuf libraries, used directly, make of it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_cli
from mcap.reader import make_reader
from PIL import Image
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from converters.logs.messages import is_log, open_log
from converters.logs.streams import extract, find_streams
from converters.logs.survey import survey
from converters.pictures import decode

pytestmark = pytest.mark.realdata
ROSBAGS = [
    ("mcap/nissan_leaf_pose_imu_steering.mcap", 3513),
    ("mcap/rerun_all_sensor_msgs_ros2.mcap", 194),
    ("rosbag1/kuka_lwr_joint_states.bag", 4101),
    ("rosbag1/object_tracking_joint_states.bag", 988),
    ("rosbag1/ros_numpy_msgs_with_images.bag", 9),
    ("rosbag1/turtlesim_example-lz4.bag", 8647),
    ("rosbag1/turtlesim_example.bag", 8647),
    ("ros2_db3/plotjuggler_pose_imu_battery", 4695),
    ("ros2_db3/ur3_move", 1052),
    ("ros2_db3/split_multi_file/multiple_files_0.db3", 1324),
]


def same(found: Any, wanted: Any) -> None:
    if isinstance(found, dict):
        fields = {field.name for field in dataclasses.fields(wanted)}
        constants = {name for name in fields if name.isupper() or name.startswith(("__", "structure_needs"))}
        assert set(found) == fields - constants
        for name, value in found.items():
            same(value, getattr(wanted, name))
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            same(left, right)
    elif isinstance(found, np.ndarray):
        assert found.dtype.itemsize == wanted.dtype.itemsize
        assert np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f")
    else:
        assert found == wanted or (found != found and wanted != wanted)


@pytest.mark.parametrize(("name", "count"), ROSBAGS)
def test_against_rosbags(real_data: Path, name: str, count: int) -> None:
    path = real_data / name
    wanted = defaultdict(list)
    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_FOXY)) as reader:
        for connection, time_ns, data in reader.messages():
            wanted[connection.topic, time_ns].append(reader.deserialize(data, connection.msgtype))
    with open_log(path) as log:
        found = list(log.messages())
        assert not log.problems
        assert sum(topic.count for topic in log.topics().values()) == count == len(found)
    for message in found:
        same(message.value, wanted[message.topic, message.log_ns].pop(0))
    assert not any(wanted.values())


def test_json_and_protobuf_against_mcap(real_data: Path) -> None:
    for name in ("camera_imu_odom_protobuf_demo", "cartpole_sim_example_json"):
        path = real_data / f"mcap/{name}.mcap"
        with path.open("rb") as file:
            wanted = [(channel.topic, message.log_time, message.publish_time, message.data)
                      for _, channel, message in make_reader(file).iter_messages(log_time_order=False)]  # fmt: skip
        with open_log(path) as log:
            raw = [(message.topic, message.log_ns, message.publish_ns, bytes(message.value))
                   for message in log.messages(decode=False)]  # fmt: skip
            decoded = list(log.messages())
            topics = log.topics()
        assert sorted(raw) == sorted(wanted)
        for message, (_, _, _, data) in zip(decoded, raw, strict=True):
            if topics[message.topic].encoding == "json":
                assert message.value == json.loads(data)
            else:
                assert bytes(message.value["data"]) in data
                assert bytes(message.value["data"]).startswith(b"\x89PNG")


def test_files_that_other_readers_refuse(real_data: Path) -> None:
    with open_log(real_data / "mcap/truncated_fixture.mcap") as log:
        assert {name: topic.count for name, topic in log.topics().items()} == {"/diagnostics_agg": 4, "/rosout": 10}
        assert len(list(log.messages())) == 14
        assert log.problems == ["the file is cut off: a record at byte 1,475 claims 70 bytes, 49 are left"]
    with open_log(real_data / "rosbag1/unindexed_fixture.bag") as log:
        assert len(list(log.messages())) == 14
        assert "has no index" in log.problems[0]
    with open_log(real_data / "ros2_db3/split_multi_file") as log:
        assert len(list(log.messages())) == 1324 + 1324 + 529
        assert "has no metadata.yaml" in log.problems[0]


def test_pictures(real_data: Path) -> None:
    with open_log(real_data / "rosbag1/ros_numpy_msgs_with_images.bag") as log:
        topics = log.topics()
        values = {message.topic: message.value for message in log.messages()}
    (raw,) = find_streams(topics["/image"], [values["/image"]]).specs
    picture = extract(raw, values["/image"])
    assert (raw.encoding, picture.shape) == ("rgb8", (240, 360, 3))
    assert np.array_equal(picture.reshape(-1), values["/image"]["data"])
    (coded,) = find_streams(topics["/compressedimage"], [values["/compressedimage"]]).specs
    file = extract(coded, values["/compressedimage"])
    with Image.open(io.BytesIO(file)) as image:
        assert np.array_equal(decode(file, coded.shape), np.asarray(image.convert("RGB")))


def test_joints(real_data: Path) -> None:
    with open_log(real_data / "ros2_db3/ur3_move") as log:
        facts = survey(log, 30)
        (topic,) = facts.topics
    position = topic.streams[0]
    assert position.path == "position"
    assert set(position.names) >= {"shoulder_pan_joint", "elbow_joint", "wrist_3_joint"}
    clocks = {clock.name: clock for clock in topic.clocks}
    assert abs(clocks["log"].rate - 50) < 1
    assert clocks["header"].skew_ms > 10**9  # a simulated clock, which began with the simulation


def test_only_logs_are_logs(real_data: Path) -> None:
    logs = {path for kind in ("mcap", "rosbag1") for path in (real_data / kind).iterdir()}
    logs |= set((real_data / "ros2_db3").glob("*/*.db3")) | set((real_data / "ros2_db3").iterdir())
    others = [path for path in real_data.rglob("*") if path not in logs and "imagenet" not in path.parts]
    assert all(is_log(path) for path in logs)
    assert not [path for path in others if is_log(path)]


def test_inspect_log_on_all(real_data: Path, tmp_path: Path) -> None:
    files = [path for kind in ("mcap", "rosbag1", "ros2_db3") for path in sorted((real_data / kind).iterdir())]
    done = run_cli("inspect-log", *files, "--json", "--thumbnails", tmp_path / "look")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == len(files) == 14
    assert len(list((tmp_path / "look").iterdir())) == 5
