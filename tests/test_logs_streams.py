"""What the messages of a topic mean: columns by name, rotations, pictures in every encoding, depth, events."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import numpy as np
import pytest
from conftest import jpeg
from make_logs import START, joints, store
from PIL import Image

from converters.logs.definitions import parse
from converters.logs.messages import Message, Topic
from converters.logs.pictures_raw import demosaic, pixels
from converters.logs.streams import Streams, StreamSpec, extract, find_streams, stamp_of, surprises
from converters.logs.wire import Wire
from vrl3data.errors import SourceError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def value_of(item: Any) -> Any:
    text = store(2).generate_msgdef(item.type, ros_version=2)[0]
    reader = Wire(parse(text, item.type, "ros2msg"), cdr=True).reader(item.type)
    return reader(memoryview(item.data)[4:], 0)[0]


def streams(kind: str, *values: Any, topic: str = "/x", encoding: str = "cdr") -> Streams:
    return find_streams(Topic(topic, kind, encoding), values)


def by_path(found: Streams) -> dict[str, StreamSpec]:
    return {spec.path: spec for spec in found.specs}


def image(data: bytes, encoding: str, height: int = 4, width: int = 6, **more: Any) -> dict[str, Any]:
    return {"height": height, "width": width, "encoding": encoding, "is_bigendian": 0, "step": 0,
            "data": np.frombuffer(data, np.uint8), **more}  # fmt: skip


def test_joints_go_by_name_and_not_by_place() -> None:
    first, second = value_of(joints(2, 1)), value_of(joints(2, 2, ("c", "a", "b")))
    found = streams("sensor_msgs/msg/JointState", first, second)
    spec = by_path(found)["position"]
    assert (spec.names, spec.role, spec.shape) == (("a", "b", "c"), "vector", (3,))
    assert np.allclose(extract(spec, first), [1.0, 1.1, 1.2])
    assert np.allclose(extract(spec, second), [2.0, 2.1, 2.2])
    assert not surprises(spec, second)
    few = value_of(joints(2, 3, ("b", "a")))
    assert np.allclose(extract(spec, few), [3.0, 3.1, np.nan], equal_nan=True)
    assert surprises(spec, few) == ("c is missing",)
    more = {**second, "name": ["d", "a", "b", "c"], "position": np.arange(4.0)}
    assert extract(spec, more).tolist() == [1, 2, 3]
    assert surprises(spec, more) == ("d is new, and left out",)
    assert dict(found.left) == {"velocity": "always empty", "effort": "always empty"}


def test_joints_that_only_some_messages_have() -> None:
    """An arm and a gripper that publish on the same topic: all names are columns."""
    arm, gripper = ({"name": names, "position": np.ones(len(names))} for names in (["a", "b"], ["grip"]))
    spec = by_path(streams("sensor_msgs/msg/JointState", arm, gripper))["position"]
    assert spec.names == ("a", "b", "grip")
    assert np.isnan(extract(spec, gripper)).tolist() == [True, True, False]


def test_poses_twists_wrenches() -> None:
    vector = {"x": 1.0, "y": 2.0, "z": 3.0}
    odometry = {
        "header": {"stamp": {"sec": 1, "nanosec": 0}, "frame_id": "odom"},
        "child_frame_id": "base",
        "pose": {"pose": {"position": vector, "orientation": {**vector, "w": 4.0}}, "covariance": np.zeros(36)},
        "twist": {"twist": {"linear": vector, "angular": vector}, "covariance": np.zeros(36)},
    }
    found = streams("nav_msgs/msg/Odometry", odometry)
    assert {path: (spec.role, spec.shape, spec.unit) for path, spec in by_path(found).items()} == {
        "pose.pose.position": ("vector", (3,), "m"),
        "pose.pose.orientation": ("quaternion", (4,), ""),
        "pose.covariance": ("vector", (36,), ""),
        "twist.twist.linear": ("vector", (3,), "m/s"),
        "twist.twist.angular": ("vector", (3,), "rad/s"),
        "twist.covariance": ("vector", (36,), ""),
    }
    rotation = by_path(found)["pose.pose.orientation"]
    assert rotation.order == "xyzw"
    assert extract(rotation, odometry).tolist() == [1, 2, 3, 4]
    assert found.frames == {"header.frame_id": "odom", "child_frame_id": "base"}
    wrench = streams("geometry_msgs/msg/WrenchStamped", {"wrench": {"force": vector, "torque": vector}})
    assert [(spec.path, spec.unit) for spec in wrench.specs] == [("wrench.force", "N"), ("wrench.torque", "N m")]
    accel = streams("geometry_msgs/msg/Accel", {"linear": vector})
    assert accel.specs[0].unit == "m/s^2"
    assert streams("my_msgs/msg/Move", {"linear": vector}).specs[0].unit == ""  # nobody said so
    json_rotation = {"w": 1, "x": 0, "y": 0, "z": 0}
    assert streams("Pose", json_rotation, encoding="json").specs[0].role == "quaternion"
    assert extract(streams("Pose", json_rotation, encoding="json").specs[0], json_rotation).tolist() == [0, 0, 0, 1]


def test_transforms_by_child_frame() -> None:
    def transform(child: str, x: float, sec: int) -> dict[str, Any]:
        return {
            "header": {"stamp": {"sec": sec, "nanosec": 0}, "frame_id": "world"},
            "child_frame_id": child,
            "transform": {"translation": {"x": x, "y": 0.0, "z": 0.0},
                          "rotation": {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0}},
        }  # fmt: skip

    both = {"transforms": [transform("hand", 1.0, 7), transform("base", 2.0, 5)]}
    one = {"transforms": [transform("base", 3.0, 6)]}
    found = streams("tf2_msgs/msg/TFMessage", one, both)
    specs = by_path(found)
    assert set(specs) == {"base.translation", "base.rotation", "hand.translation", "hand.rotation"}
    assert extract(specs["hand.translation"], both).tolist() == [1, 0, 0]
    assert extract(specs["base.translation"], both).tolist() == [2, 0, 0]
    assert extract(specs["hand.translation"], one) is None
    message = Message("/tf", START, START, 7_000_000_000, both)
    assert stamp_of(specs["base.rotation"], message) == 5_000_000_000
    assert stamp_of(StreamSpec("/tf", "", "event", "float64"), message) == 7_000_000_000
    assert found.frames == {"base": "world", "hand": "world"}
    flat = {"timestamp": {"sec": 1, "nsec": 2}, "parent_frame_id": "a", "child_frame_id": "b",
            "translation": {"x": 1, "y": 2, "z": 3}, "rotation": {"x": 0, "y": 0, "z": 0, "w": 1}}  # fmt: skip
    several = {"transforms": [flat, 5]}
    foxglove = by_path(streams("foxglove.FrameTransforms", several, encoding="json"))
    assert extract(foxglove["b.translation"], several).tolist() == [1, 2, 3]


def test_any_other_type_becomes_columns() -> None:
    value = {
        "stamp": {"sec": 1, "nanosec": 2},
        "voltage": 12.5,
        "status": 3,
        "on": True,
        "label": "x",
        "motor": {"current": 1.5, "temperature": 30.0},
        "cells": np.float32([1, 2, 3]),
        "flags": np.uint8([1, 0]),
        "blob": np.zeros(1000, np.uint8),
        "ranges": np.zeros(5000),
        "some": np.zeros(2),
        "texts": ["a", "b"],
        "items": [{"a": 1}],
        "after": {"sec": 2, "nanosec": 500_000_000},
    }
    found = streams("my_msgs/msg/Any", value, {**value, "some": np.zeros(3)})
    assert {spec.path: (spec.role, spec.shape, spec.names) for spec in found.specs} == {
        "": ("vector", (2,), ("voltage", "after")),
        "status": ("event", (1,), ("status",)),
        "on": ("event", (1,), ("on",)),
        "label": ("text", (), ()),
        "motor": ("vector", (2,), ("current", "temperature")),
        "cells": ("vector", (3,), ()),
        "flags": ("event", (2,), ()),
    }
    assert extract(by_path(found)[""], value).tolist() == [12.5, 2.5]
    assert extract(by_path(found)["label"], value) == "x"
    assert extract(by_path(found)["label"], {}) is None
    assert dict(found.left) == {
        "blob": "1,000 bytes of content",
        "ranges": "5,000 values are too many for columns",
        "some": "of varying length (2 to 3)",
        "texts": "a list of texts",
        "items": "a list of messages",
    }
    motor = by_path(found)["motor"]
    assert np.isnan(extract(motor, {"motor": {"current": 2.0}})).tolist() == [False, True]
    assert surprises(motor, {"motor": {"current": 2.0}}) == ("temperature is missing",)
    cells = by_path(found)["cells"]
    assert np.isnan(extract(cells, {"cells": np.zeros(2)})).all()
    assert surprises(cells, {"cells": np.zeros(2)}) == ("2 values instead of 3",)


def test_whole_numbers_of_json_are_no_events() -> None:
    """JSON writes 1.0 as 1; only true and false are flags there."""
    first, second = {"x": 1, "y": 2.5, "on": True, "many": [1, 2]}, {"x": 1.5, "y": 2, "on": False, "many": [3, 4]}
    found = streams("State", first, second, encoding="json")
    assert [(spec.path, spec.role) for spec in found.specs] == [("", "vector"), ("on", "event"), ("many", "vector")]
    huge = {"x": 10**400, "y": 0, "many": [10**400, 1]}
    assert extract(found.specs[0], huge).tolist() == [np.inf, 0]
    assert extract(found.specs[2], huge).tolist() == [np.inf, 1]


def test_a_message_without_content_is_an_event() -> None:
    found = streams("std_msgs/msg/Empty", {})
    assert [(spec.role, spec.names) for spec in found.specs] == [("event", ("received",))]
    assert extract(found.specs[0], {}).tolist() == [1.0]
    assert streams("std_msgs/msg/Empty").left == (("", "there are no messages to look at"),)


def shown(value: dict[str, Any], topic: str = "/camera") -> Any:
    found = streams("sensor_msgs/msg/Image", value, topic=topic)
    assert len(found.specs) == 1, found.left
    return extract(found.specs[0], value)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("encoding", ["rgb", "bgr", "rgba", "bgra", "mono"])
def test_raw_encodings(encoding: str, bits: int, big: int) -> None:
    order = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2, 0], "bgra": [2, 1, 0, 0], "mono": [0]}[encoding]
    stored = (RGB[..., order].astype(int) << (bits - 8)).astype((">" if big else "<") + f"u{bits // 8}")
    found = shown(image(stored.tobytes(), f"{encoding}{bits}", is_bigendian=big))
    assert np.array_equal(found, RGB[..., :1] if encoding == "mono" else RGB)
    assert found.dtype == np.uint8
    padded = np.zeros((4, 60), np.uint8)  # rows may be longer than their pixels
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(4, -1)
    padded[:, : rows.shape[1]] = rows
    value = image(padded.tobytes(), f"{encoding}{bits}", is_bigendian=big, step=60)
    assert np.array_equal(shown(value), found)
    value["data"] = value["data"][: 3 * 60 + rows.shape[1]]  # the last padding left out
    assert np.array_equal(shown(value), found)


def test_names_of_opencv() -> None:
    assert np.array_equal(shown(image(RGB[..., ::-1].tobytes(), "8UC3")), RGB)
    assert np.array_equal(shown(image(RGB[..., :1].tobytes(), "8UC1")), RGB[..., :1])
    assert np.array_equal(shown(image(RGB[..., :1].tobytes(), "8U")), RGB[..., :1])


def test_yuv() -> None:
    """Against Pillow's conversion of the same colours, which has the full range of 256 values."""
    flat = np.full((4, 6, 3), (200, 60, 40), np.uint8)
    y, u, v = (np.asarray(plane, float) for plane in Image.fromarray(flat).convert("YCbCr").split())
    y, u, v = (np.rint(part).astype(np.uint8) for part in (16 + y * 219 / 255, 128 + (u - 128) * 224 / 255,
                                                           128 + (v - 128) * 224 / 255))  # fmt: skip
    pair = np.stack([u[:, ::2], y[:, ::2], v[:, ::2], y[:, 1::2]], -1)
    other = np.stack([y[:, ::2], u[:, ::2], y[:, 1::2], v[:, ::2]], -1)
    half = np.stack([v[::2, ::2], u[::2, ::2]], -1)
    full = np.stack([u, v], -1)
    for encoding, data in (
        ("uyvy", pair.tobytes()),
        ("yuv422", pair.tobytes()),
        ("yuyv", other.tobytes()),
        ("yuv422_yuy2", other.tobytes()),
        ("nv21", y.tobytes() + half.tobytes()),
        ("nv24", y.tobytes() + full.tobytes()),
    ):
        assert np.abs(shown(image(data, encoding)).astype(int) - flat).max() <= 2, encoding


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern: str) -> None:
    """A smooth picture comes back nearly as it was; each measured colour stays exactly."""
    height, width = 16, 20
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([5 * rows + 40, 4 * columns + 60, 3 * rows + 2 * columns + 20], -1).astype(np.uint8)
    place = rows % 2 * 2 + columns % 2
    plane = np.choose(place, [smooth[..., "rgb".index(letter)] for letter in pattern])
    found = shown(image(plane.tobytes(), f"bayer_{pattern}8", height, width))
    assert np.abs(found[1:-1, 1:-1].astype(int) - smooth[1:-1, 1:-1]).max() <= 1
    for at, letter in enumerate(pattern):
        assert np.array_equal(found[..., "rgb".index(letter)][place == at], plane[place == at])
    wide = (plane.astype("<u2") << 8).tobytes()
    assert np.array_equal(shown(image(wide, f"bayer_{pattern}16", height, width)), found)
    assert demosaic(np.zeros((1, 1), np.uint8), pattern).shape == (1, 1, 3)


def test_depth() -> None:
    millimetres = RNG.integers(0, 5000, (4, 6), dtype=np.uint16)
    value = image(millimetres.tobytes(), "16UC1")
    spec = streams("sensor_msgs/msg/Image", value).specs[0]
    assert (spec.role, spec.dtype, spec.shape, spec.scale_m) == ("depth", "uint16", (4, 6), 0.001)
    assert np.array_equal(extract(spec, value), millimetres)
    metres = np.float32([[1.5, np.nan, np.inf, 0, 2, 3]] * 4)
    value = image(metres.astype(">f4").tobytes(), "32FC1", is_bigendian=1)
    spec = streams("sensor_msgs/msg/Image", value).specs[0]
    assert (spec.dtype, spec.scale_m) == ("float32", 1.0)
    assert np.array_equal(extract(spec, value), metres, equal_nan=True)
    grey = image(millimetres.tobytes(), "mono16")
    assert streams("sensor_msgs/msg/Image", grey).specs[0].role == "picture"
    assert streams("sensor_msgs/msg/Image", grey, topic="/depth/image").specs[0].role == "depth"


def png(array: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_compressed_depth() -> None:
    counts = RNG.integers(1, 5000, (4, 6), dtype=np.uint16)
    counts[0, 0] = 0
    head = struct.pack("<iff", 0, 100.0, -2.0)
    value = {"format": "16UC1; compressedDepth png", "data": np.frombuffer(head + png(counts), np.uint8)}
    spec = streams("sensor_msgs/msg/CompressedImage", value).specs[0]
    assert (spec.role, spec.dtype, spec.scale_m) == ("depth", "uint16", 0.001)
    assert np.array_equal(extract(spec, value), counts)
    value["format"] = "32FC1; compressedDepth"
    spec = streams("sensor_msgs/msg/CompressedImage", value).specs[0]
    wanted = np.where(counts > 0, 100.0 / (counts + 2.0), 0)
    assert np.allclose(extract(spec, value), wanted)
    for data in (head + b"RVL!", head):
        value["data"] = np.frombuffer(data, np.uint8)
        assert not streams("sensor_msgs/msg/CompressedImage", value).specs


def test_compressed_pictures_stay_files() -> None:
    file = jpeg(20, 10)
    value = {"format": "bgr8; jpeg compressed bgr8", "data": np.frombuffer(file, np.uint8),
             "header": {"stamp": {"sec": 1, "nanosec": 0}, "frame_id": "eye"}}  # fmt: skip
    found = streams("sensor_msgs/msg/CompressedImage", value)
    spec = found.specs[0]
    assert (spec.encoding, spec.shape, spec.dtype) == ("jpeg", (10, 20, 3), "uint8")
    assert extract(spec, value) == file
    assert found.frames == {"frame_id": "eye"}
    with pytest.raises(SourceError, match=r"expected a jpeg picture of \(10, 20, 3\), found jpeg of \(10, 22, 3\)"):
        extract(spec, {**value, "data": np.frombuffer(jpeg(22, 10), np.uint8)})
    with pytest.raises(SourceError, match="expected a JPEG or PNG file in each message, found 6e 6f"):
        extract(spec, {**value, "data": np.frombuffer(b"nothing", np.uint8)})
    json_value = {"format": "png", "data": base64.b64encode(png(RGB)).decode(), "timestamp": {"sec": 1, "nsec": 0}}
    spec = streams("foxglove.CompressedImage", json_value, encoding="json").specs[0]
    assert (spec.encoding, spec.shape) == ("png", (4, 6, 3))
    assert extract(spec, json_value) == png(RGB)
    with pytest.raises(SourceError, match="expected base64 text"):
        extract(spec, {**json_value, "data": "%%%"})
    video = {"format": "h264", "data": np.zeros(20, np.uint8)}
    assert "found 00 00 00 00 (h264)" in streams("foxglove.CompressedVideo", video).left[0][1]
    grey = {
        "format": "16UC1; png compressed ",
        "data": np.frombuffer(png(RNG.integers(0, 9, (4, 6), np.uint16)), np.uint8),
    }
    assert streams("sensor_msgs/msg/CompressedImage", grey).specs[0].role == "depth"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"encoding": "jpeg"}, "pictures encoded as 'jpeg' cannot be read"),
        ({"encoding": "8UC2"}, "pictures encoded as '8UC2' cannot be read"),
        ({"encoding": "8SC3"}, "values of 8SC3 are not colours"),
        ({"step": 17}, "rows of 18 bytes do not fit in a step of 17"),
        ({"height": 5}, "expected 90 bytes of pixels, found 72"),
        ({"height": 0}, "a picture of 0 x 6 pixels is none"),
        ({"height": 2**31, "width": 2**31}, "pixels is none"),
        ({"width": -1}, "expected a whole number 'width', found -1"),
        ({"encoding": "uyvy", "width": 5}, "uyvy needs an even width, found 5"),
        ({"encoding": "nv21", "height": 3}, "nv21 needs even sides, found 3 x 6"),
        ({"data": 5}, "expected the bytes of a picture, found int"),
    ],
)
def test_pictures_that_are_none(change: dict[str, Any], expected: str) -> None:
    value = {**image(RGB.tobytes(), "rgb8"), **change}
    with pytest.raises(SourceError, match=expected.replace("(", "\\(")):
        pixels(value, depth=False)
    assert expected in streams("sensor_msgs/msg/Image", value).left[0][1]


def test_a_camera_that_changes() -> None:
    value = image(RGB.tobytes(), "rgb8")
    spec = streams("sensor_msgs/msg/Image", value).specs[0]
    with pytest.raises(SourceError, match="expected pictures in rgb8 as the first, found bgr8"):
        extract(spec, {**value, "encoding": "bgr8"})
    with pytest.raises(SourceError, match=r"expected a picture of \(4, 6, 3\) as the first, found \(3, 8, 3\)"):
        extract(spec, {**value, "height": 3, "width": 8})
    with pytest.raises(SourceError, match="expected depth of one channel, found rgb8"):
        pixels(value, depth=True)
