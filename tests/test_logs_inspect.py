"""`inspect-log`: what people see of a log."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg
from make_logs import RATE_NS, START, Item, Mcap, encode, joints, some, stamp, write_bag, write_json, write_mcap
from mcap.writer import CompressionType
from PIL import Image

from converters.logs import survey as surveys
from converters.logs.messages import open_log
from converters.logs.survey import survey, thumbnails
from vrl3data.cli import run


class Command:
    """The command in this process: what it answers and prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Command:
        self.capsys.readouterr()
        self.returncode = run(["inspect-log", *map(str, arguments)])
        self.stdout, self.stderr = self.capsys.readouterr()
        return self


@pytest.fixture
def inspect_log(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def picture(number: int, kind: str, values: dict[str, object], topic: str) -> Item:
    log_ns = START + number * 100_000_000
    return Item(topic, kind, log_ns, encode(2, kind, {"header": stamp(log_ns - 40_000_000), **values}))


def camera(number: int) -> list[Item]:
    rgb = np.zeros((48, 640, 3), np.uint8)
    rgb[:, :, 0] = 255
    depth = (np.arange(48 * 64) + 500).astype(np.uint16)
    raw = {"height": 48, "width": 640, "encoding": "rgb8", "step": 1920, "data": rgb.reshape(-1)}
    deep = {"height": 48, "width": 64, "encoding": "16UC1", "step": 128, "data": depth.view(np.uint8)}
    coded = {"format": "jpeg", "data": np.frombuffer(jpeg(40, 30), np.uint8)}
    return [
        picture(number, "sensor_msgs/msg/Image", raw, "/camera/front"),
        picture(number, "sensor_msgs/msg/Image", deep, "/camera/depth"),
        picture(number, "sensor_msgs/msg/CompressedImage", coded, "/camera_front"),
    ]


def test_text(inspect_log: Command, tmp_path: Path) -> None:
    items = some(2) + camera(0) + camera(1)
    items[4] = items[4]._replace(data=items[4].data[:20])
    path = write_mcap(tmp_path / "run.mcap", items)
    done = inspect_log(path, "--thumbnails", tmp_path / "look")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run.mcap: mcap, zstd, ")
    assert "46 messages in 0.38 s from 2023-11-14 22:13:20 UTC" in lines[0]
    assert lines[1].startswith("problem: /joints: one message cannot be decoded") is False
    text = done.stdout
    assert "/joints  sensor_msgs/msg/JointState  cdr  20 messages" in text
    assert "clock log  50.00/s, largest gap 0.020 s" in text
    assert "clock header  50.00/s, largest gap 0.020 s, log time is 3.0 ms later" in text
    assert "vector  position  float64 3 (a, b, c)  first 0, 0.1, 0.2" in text
    assert "left  velocity: always empty" in text
    assert "picture  .  uint8 rgb8 48x640x3" in text
    assert "depth  .  uint16 16UC1 48x64" in text
    names = sorted(file.name for file in (tmp_path / "look").iterdir())
    assert names == ["run_camera_depth.png", "run_camera_front.png", "run_camera_front_2.png"]
    with Image.open(tmp_path / "look" / "run_camera_front.png") as image:
        assert image.size == (320, 24)
        assert image.getpixel((5, 5)) == (255, 0, 0)
    with Image.open(tmp_path / "look" / "run_camera_depth.png") as image:
        shades = np.asarray(image)
        assert (shades[0, 0], shades[-1, -1]) == (0, 255)


def test_json_and_several_files(inspect_log: Command, tmp_path: Path) -> None:
    good = write_bag(tmp_path / "a.bag", [joints(1, number) for number in (0, 1, 2, 8, 9)])
    (tmp_path / "bad.mcap").write_bytes(b"nothing")
    done = inspect_log(good, tmp_path / "bad.mcap", "--json")
    assert done.returncode == 3
    assert "error: expected an MCAP file, a ROS bag or a rosbag2 database" in done.stderr
    assert "(path bad.mcap)" in done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["file"], found["messages"], found["complete"]) == ("a.bag", 5, True)
    (topic,) = found["topics"]
    assert topic["count"] == 5
    clocks = {clock["name"]: clock for clock in topic["clocks"]}
    assert set(clocks) == {"log", "header"}
    assert clocks["log"]["largest_gap"] == 6 * RATE_NS / 1e9
    assert clocks["header"]["skew_ms"] == 3.0
    assert topic["streams"][0]["first"] == [0.0, 0.1, 0.2]
    assert str(tmp_path) not in done.stdout


def test_clocks_that_are_wrong(inspect_log: Command, tmp_path: Path) -> None:
    """Stamps that nobody set, and those that go back, are counted."""
    items = []
    for number in range(10):
        log_ns = START + number * RATE_NS
        given = 0 if number < 3 else log_ns - 10**9 if number == 6 else log_ns
        data = encode(2, "sensor_msgs/msg/JointState", {"header": stamp(given), "name": ["a"], "position": [1.0]})
        items.append(Item("/joints", "sensor_msgs/msg/JointState", log_ns, data))
    with open_log(write_mcap(tmp_path / "a.mcap", items)) as log:
        clocks = {clock.name: clock for clock in survey(log, 5).topics[0].clocks}
    assert (clocks["header"].zeros, clocks["header"].back) == (3, 1)
    assert clocks["publish"].skew_ms == 0.5
    text = inspect_log(tmp_path / "a.mcap").stdout
    assert "3 not set, 1 go back" in text


def test_time_is_bounded(inspect_log: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of which only the beginning was looked at says so, and how many messages its index counts."""
    path = write_mcap(tmp_path / "a.mcap", some(2, 600), Mcap(CompressionType.NONE, 10_000))
    ticks = iter(range(1000))
    monkeypatch.setattr(surveys.time, "monotonic", lambda: float(next(ticks)))
    with open_log(path) as log:
        found = survey(log, 2.5)
    assert not found.complete
    assert found.messages == 513
    assert {topic.name: (topic.count, topic.looked_at) for topic in found.topics} == {
        "/joints": (600, 257),
        "/steps": (600, 256),
    }
    monkeypatch.undo()
    began = time.monotonic()
    done = inspect_log(path, "--seconds", "0.000001")
    assert "note: looked at the first 1 of 1,200 messages; --seconds gives more time" in done.stdout
    assert time.monotonic() - began < 60


def test_wrong_use(inspect_log: Command, tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a.mcap", camera(0))
    assert inspect_log().returncode == 2
    assert inspect_log(path, "--seconds", "0").returncode == 2
    (tmp_path / "file").write_text("")
    done = inspect_log(path, "--thumbnails", tmp_path / "file" / "below")
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_cannot_write_to_the_terminal(inspect_log: Command, tmp_path: Path) -> None:
    name = "/x\x1b[31m\r\n../../evil"
    data = {"format": "jpeg", "data": ""}
    path = write_json(
        tmp_path / "a.mcap", {name: [{"text": "\x1b[2J"}], "/y": [data]}, {"/y": "foxglove.CompressedImage"}
    )
    done = inspect_log(path)
    assert "\x1b" not in done.stdout
    assert "/x?[31m?\n../../evil" in done.stdout
    with open_log(write_mcap(tmp_path / "b.mcap", [camera(0)[0]._replace(topic="/../../../a\0b")])) as log:
        written = thumbnails(survey(log, 5, pictures=True), tmp_path / "look")
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["look/b_a_b.png"]
