"""Robot logs -> datasets: alignment with known truth, cuts, clocks, own rates, mappings, broken logs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_cli, shard_bytes
from make_logs import START, Item, Mcap, encode, stamp, write_bag, write_json, write_mcap
from PIL import Image

import vrl3data
from converters import base
from converters.logs.converter import LogConverter, LogOptions
from converters.run import RunOptions, run
from vrl3data.errors import ConfigError, SourceError
from vrl3data.validation import validate

FRAME_NS, JOINT_NS, COMMAND_NS = 33_333_333, 10_000_000, 100_000_000
SKEW_NS = 80_000_000
"""The camera's pictures reach the log this much after their stamps."""


def jpeg(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), value, np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def item(topic: str, kind: str, log_ns: int, values: dict[str, Any], ros: int = 2) -> Item:
    return Item(topic, kind, log_ns, encode(ros, kind, values))


def at(time_ns: int) -> float:
    """What the joints and the pictures show at a time: seconds since the start."""
    return (time_ns - START) / 1e9


def pictures(count: int, skew_ns: int = SKEW_NS, raw: bool = False) -> list[Item]:
    items = []
    for number in range(count):
        time = START + number * FRAME_NS
        values: dict[str, Any] = {
            "header": stamp(time),
            "format": "jpeg",
            "data": np.frombuffer(jpeg(number), np.uint8),
        }
        kind = "sensor_msgs/msg/CompressedImage"
        if raw:
            pixels = np.full((24, 32, 3), number, np.uint8)
            values = {"header": stamp(time), "height": 24, "width": 32, "encoding": "rgb8", "step": 96,
                      "data": pixels.reshape(-1)}  # fmt: skip
            kind = "sensor_msgs/msg/Image"
        items.append(item("/camera/front/image_raw", kind, time + skew_ns, values))
    return items


def joints(count: int, names: Sequence[str] = ("a", "b"), start: int = START) -> list[Item]:
    items = []
    for number in range(count):
        time = start + number * JOINT_NS
        position = [at(time) + "ab".index(name) for name in names]
        values = {"header": stamp(time), "name": list(names), "position": position}
        items.append(item("/joint_states", "sensor_msgs/msg/JointState", time + 2_000_000, values))
    return items


def commands(count: int) -> list[Item]:
    return [
        item("/cmd_vel", "geometry_msgs/msg/Twist", START + number * COMMAND_NS, {"linear": {"x": float(number)}})
        for number in range(count)
    ]


def ordered(*parts: list[Item]) -> list[Item]:
    return sorted((one for part in parts for one in part), key=lambda one: one.log_ns)


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds: a camera at 30 Hz, joints at 100 Hz, commands at 10 Hz."""
    path = tmp_path_factory.mktemp("logs") / "pick.mcap"
    return write_mcap(path, ordered(pictures(120), joints(400), commands(40)))


def converted(source: Path | list[Path], dest: Path, jobs: int = 1, **options: Any) -> vrl3data.Dataset:
    sources = source if isinstance(source, list) else [source]
    run(LogConverter(sources, LogOptions(**options)), dest, RunOptions(jobs=jobs))
    report = validate(dest)
    assert report.ok, report.findings
    return vrl3data.open(dest)


def frame_times(episode: Any) -> np.ndarray[Any, Any]:
    """The true time of each picture, in seconds, by what it shows."""
    numbers = np.rint(episode["obs.image.camera_front"][:, 12, 16, 0].astype(float))
    return np.asarray(numbers * FRAME_NS / 1e9)


@pytest.mark.parametrize(("align", "error"), [("hold", 0.0101), ("nearest", 0.0051), ("linear", 1e-6)])
def test_a_skewed_camera_is_put_in_step(pick: Path, tmp_path: Path, align: str, error: float) -> None:
    with converted(pick, tmp_path / "out", align=align) as dataset:
        episode = dataset[0]
        truth = frame_times(episode)
        assert len(truth) > 110 and np.abs(episode["obs.proprio"][:, 0] - truth).max() <= error
        assert dataset.schema["obs.proprio"].names == ("a", "b")
        assert episode.meta["start_time_ns"] == START + round(truth[0] * 1e9)
        assert np.allclose(episode["timestamp"] / 1e9, truth - truth[0], atol=1e-6)
    with converted(pick, tmp_path / "log", align=align, clock="log") as dataset:
        wrong = np.abs(dataset[0]["obs.proprio"][:, 0] - frame_times(dataset[0])).min()
        assert wrong > FRAME_NS / 2e9  # what the log time alone would give


def test_ages_and_actions_are_what_was_in_force(pick: Path, tmp_path: Path) -> None:
    with converted(pick, tmp_path / "out", align="linear") as dataset:
        episode = dataset[0]
        time_us = frame_times(episode) * 1e6
        assert {"age.obs.proprio", "age.action"} <= set(dataset.schema.names)
        assert "age.obs.image.camera_front" not in dataset.schema  # the control's own
        assert dataset.schema["action"].rows == "step" and dataset.schema["action"].names[0] == "linear.x"
        number = episode["action"][:, 0]
        sent_us = number * COMMAND_NS / 1e3 - 500  # the type has no header: the publish time counts
        assert (number == np.floor((time_us + 501) * 1e3 / COMMAND_NS)).all()
        assert np.abs(episode["age.action"] - (time_us - sent_us)).max() <= 1
        assert (episode["age.action"] >= 0).all()
        sync = episode.source_meta["sync"]
        assert sync["control"] == "/camera/front/image_raw" and sync["steps"] == len(number)
        camera = next(topic for topic in sync["topics"] if topic["topic"] == sync["control"])
        assert camera["clock"] == "header" and abs(camera["skew_median_ns"] - SKEW_NS) < 1e6


def test_a_rate_makes_the_steps(pick: Path, tmp_path: Path) -> None:
    with converted(pick, tmp_path / "out", control="20", align="linear") as dataset:
        episode = dataset[0]
        assert (np.diff(episode["timestamp"]) == 50_000_000).all() and 70 <= episode.length <= 80
        true = at(episode.meta["start_time_ns"]) + episode["timestamp"] / 1e9
        assert np.abs(episode["obs.proprio"][:, 1] - 1 - true).max() < 1e-6
        assert (true - frame_times(episode) < 0.034).all() and (true - frame_times(episode) >= -1e-6).all()


def test_every_stream_may_keep_its_rate(pick: Path, tmp_path: Path) -> None:
    with converted(pick, tmp_path / "out", own_rate=True) as dataset:
        episode = dataset[0]
        assert dataset.schema["obs.proprio"].rows == "stream:joint_states"
        assert dataset.schema["obs.image.camera_front"].rows == "state"
        stamps = episode["timestamp.joint_states"]
        assert len(stamps) > 3 * episode.length and (np.diff(stamps) == JOINT_NS).all()
        true = at(episode.meta["start_time_ns"]) + stamps / 1e9
        assert np.abs(episode["obs.proprio"][:, 0] - true).max() < 1e-6
        assert episode["action"].shape[0] == episode.length


def test_raw_pictures_are_spooled(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "raw.mcap", ordered(pictures(40, raw=True), joints(130)))
    with converted(path, tmp_path / "out") as dataset:
        images = dataset[0]["obs.image.camera_front"]
        assert images.shape[1:] == (24, 32, 3) and (images == images[:, :1, :1, :1]).all()
        assert (np.diff(images[:, 0, 0, 0].astype(int)) == 1).all()


def test_cuts(pick: Path, tmp_path: Path) -> None:
    with converted(pick, tmp_path / "time", cut="time:1.5") as dataset:
        assert [round(item.length / 30, 1) for item in dataset] == pytest.approx([1.5, 1.5, 1], abs=0.15)
        assert [item.meta["name"] for item in dataset] == ["pick/0000", "pick/0001", "pick/0002"]
        starts = [item.meta["start_time_ns"] for item in dataset]
        assert np.allclose(np.diff(starts) / 1e9, 1.5, atol=0.04)
    late = [Item(one.topic, one.type, one.log_ns, one.data) for one in joints(200, start=START + 6 * 10**9)]
    gap = write_mcap(tmp_path / "gap.mcap", [*joints(300), *late])
    with converted(gap, tmp_path / "gap", cut="gap:2.5") as dataset:
        assert [item.length for item in dataset] == [300, 200]
    marks = [item("/recording", "std_msgs/msg/Bool", START + second * 10**9, {"data": on})
             for second, on in ((0, False), (1, True), (2, False), (3, True))]  # fmt: skip
    marked = write_mcap(tmp_path / "marked.mcap", ordered(joints(400), marks))
    with converted(marked, tmp_path / "marked", cut="topic:/recording") as dataset:
        starts = [round(at(item.meta["start_time_ns"]), 2) for item in dataset]
        assert starts == [1, 3] and [item.length for item in dataset] == [100, 100]


def test_episodes_without_a_topic_are_named(tmp_path: Path) -> None:
    late = [one for one in commands(40) if one.log_ns >= START + 2 * 10**9]
    path = write_mcap(tmp_path / "late.mcap", ordered(joints(400), late))
    with pytest.raises(SourceError, match="are all topics there: /cmd_vel.* has not begun; .*--on-error skip"):
        converted(path, tmp_path / "stopped", cut="time:1", control="/joint_states")
    options = LogOptions(cut="time:1", control="/joint_states")
    receipt = run(LogConverter([path], options), tmp_path / "out", RunOptions(on_error="skip"))
    assert [entry["source"] for entry in receipt.skipped] == ["late/0000", "late/0001"]
    assert receipt.manifest.samples == 2
    with converted(path, tmp_path / "whole", control="/joint_states") as dataset:
        (cut,) = dataset[0].source_meta["steps_cut_off"].items()
        assert cut == ("before /cmd_vel:linear begins", 200)
    parts = [Item("/other", one.type, one.log_ns, one.data) for one in joints(60, start=START + 5 * 10**9)]
    apart = write_mcap(tmp_path / "apart.mcap", [*joints(60), *parts])
    with pytest.raises(SourceError, match="/other:position has not begun"):
        converted(apart, tmp_path / "apart", control="/joint_states")


def test_joints_come_by_name(tmp_path: Path) -> None:
    items = joints(100)
    items[10:20] = joints(20, ("b", "a"))[10:]
    items[30] = joints(31, ("b",))[30]
    path = write_mcap(tmp_path / "swapped.mcap", items)
    with converted(path, tmp_path / "out") as dataset:
        expected = np.arange(100) * JOINT_NS / 1e9
        assert np.allclose(dataset[0]["obs.proprio"][:, 1] - 1, expected)
        expected[30] = expected[29]  # a missing joint keeps its last value
        assert np.allclose(dataset[0]["obs.proprio"][:, 0], expected)


def test_texts_task_reward_and_success(tmp_path: Path) -> None:
    states = [{"data": number} for number in range(50)]
    kinds = {"/reward": "std_msgs/msg/Float64"}
    done = [{"data": False}] * 49 + [{"data": True}]
    path = write_json(
        tmp_path / "run.mcap",
        {
            "/state": [{"x": number * 1.0, "y": 2.5} for number in range(50)],
            "/reward": [{"data": value["data"] / 10} for value in states],
            "/success": done,
            "/instruction": [{"data": "pick the cube"}] * 50,
            "/rosout": [{"msg": "secret"}] * 50,
        },
        kinds,
    )
    with converted(path, tmp_path / "out") as dataset:
        episode = dataset[0]
        assert episode.meta["task"] == "pick the cube" and episode.meta["success"] == 1
        assert np.allclose(episode["reward"], np.arange(50) / 10) and dataset.schema["reward"].rows == "step"
        assert episode.source_meta["texts"] == {"/instruction:data": [[0, "pick the cube"]]}
        assert "secret" not in str(episode.source_meta)


def test_the_sync_report_may_refuse(pick: Path, tmp_path: Path) -> None:
    with converted(pick, tmp_path / "out", tolerance=0.001) as dataset:
        found = dataset[0].source_meta["sync"]["findings"]
        assert ("invalid", "error", "/joint_states") in [(one["name"], one["severity"], one["topic"]) for one in found]
    with pytest.raises(SourceError, match="sync: invalid: .* no message within the tolerance") as caught:
        converted(pick, tmp_path / "refused", tolerance=0.001, on_sync="refuse")
    assert caught.value.source.feature == "/cmd_vel"  # the first of them
    converted(pick, tmp_path / "fine", tolerance=0.5, on_sync="refuse").close()


def test_a_mapping_is_written_edited_and_used(pick: Path, tmp_path: Path) -> None:
    result = run_cli("convert", "log", pick, "--write-mapping", tmp_path / "map.toml")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "map.toml").read_text()
    with (
        converted(pick, tmp_path / "same", mapping=str(tmp_path / "map.toml")) as same,
        converted(pick, tmp_path / "guessed") as guessed,
    ):
        assert same.schema == guessed.schema
    (tmp_path / "map.toml").write_text(text.replace('"action"', '"action.base"'))
    with converted(pick, tmp_path / "out", mapping=str(tmp_path / "map.toml"), control="/joint_states") as dataset:
        assert "action.base" in dataset.schema and dataset[0].length > 350
    with pytest.raises(ConfigError, match="no feature is made of the topic '/joints'; did you mean '/joint_states'"):
        converted(pick, tmp_path / "x", control="/joints")


@pytest.mark.usefixtures("pick")
def test_workers_make_the_same_bytes(tmp_path: Path) -> None:
    other = write_bag(tmp_path / "other.bag", [
        item("/joint_states", "sensor_msgs/msg/JointState", START + number * JOINT_NS,
             {"header": {"stamp": {"sec": 5, "nanosec": number}}, "name": ["b", "a"], "position": [1.0, number]}, ros=1)
        for number in range(60)
    ])  # fmt: skip
    logs = [write_mcap(tmp_path / "one.mcap", joints(200)), other]
    for jobs in (1, 2):
        converted(logs, tmp_path / f"out{jobs}", jobs=jobs, cut="time:0.5").close()
    assert shard_bytes(tmp_path / "out1") == shard_bytes(tmp_path / "out2")


@pytest.mark.usefixtures("pick")
def test_broken_logs_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    torn = tmp_path / "torn.mcap"
    write_mcap(torn, joints(200), Mcap(summary=False))
    torn.write_bytes(torn.read_bytes()[:-4000])
    nothing = write_json(tmp_path / "words.mcap", {"/chatter": [{"data": "hello"}] * 5}, {})
    values = {"name": ["c", "d"], "position": [1.0, 2.0]}
    kind = "sensor_msgs/msg/JointState"
    other = write_mcap(tmp_path / "other.mcap", [item("/joint_states", kind, START + n, values) for n in range(3)])
    (tmp_path / "empty.mcap").write_bytes(b"")
    with pytest.raises(SourceError, match="no topic holds numbers or pictures: /chatter"):
        converted(nothing, tmp_path / "a")
    with pytest.raises(SourceError, match="the file is empty"):
        converted(tmp_path / "empty.mcap", tmp_path / "a")
    with pytest.raises(SourceError, match="expected a, b as in the logs before, found c, d"):
        converted([torn, other], tmp_path / "a")
    receipt = run(LogConverter([torn, other, nothing], LogOptions()), tmp_path / "out", RunOptions(on_error="skip"))
    assert len(receipt.skipped) == 2 and receipt.manifest.samples == 1
    assert any("torn.mcap" in note and "cut off" in note for note in receipt.notes)
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(SourceError, match="no messages can be read; .*cut off"):
        converted(torn, tmp_path / "a")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert 100 < dataset[0].length < 200 and "cut off" in str(dataset[0].source_meta["problems"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cut": "often"}, "cut: expected time:SECONDS"),
        ({"cut": "time:-1"}, "cut: expected seconds after time:"),
        ({"control": "0"}, "control: expected a topic or a rate"),
        ({"align": "spline"}, "align 'spline'"),
        ({"tolerance": -1.0}, "tolerance: expected seconds"),
        ({"cut": "topic:/record"}, "cut: no topic of numbers or texts is called '/record'"),
    ],
)
def test_wrong_options(pick: Path, tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises((ConfigError, SourceError), match=match):
        converted(pick, tmp_path / "out", **options)


def test_it_is_recognised(pick: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    write_mcap(tmp_path / "runs" / "a.mcap", joints(30))
    assert base.recognise(pick) == base.recognise(tmp_path / "runs") == "log"
    (tmp_path / "empty").mkdir()
    assert not LogConverter.recognises(tmp_path / "empty")


@pytest.mark.realdata
def test_real_logs_convert_or_are_refused_by_name(real_data: Path, tmp_path: Path) -> None:
    refused = {}
    for path in sorted([*(real_data / "mcap").iterdir(), *(real_data / "rosbag1").iterdir(),
                        *(real_data / "ros2_db3").iterdir()]):  # fmt: skip
        try:
            converted(path, tmp_path / path.name).close()
        except SourceError as error:
            refused[path.name] = error.message
    assert {name: text.split(":")[0] for name, text in refused.items()} == {
        "rerun_all_sensor_msgs_ros2.mcap": "at no control step (/illuminance) are all topics there",
        "cartpole_sim_example_json.mcap": "the publish time was set back once, so that messages of one time were made "
        "at two; the log seems to hold several runs",
        "truncated_fixture.mcap": "no topic holds numbers or pictures",
        "unindexed_fixture.bag": "no topic holds numbers or pictures",
        "split_multi_file": "no topic holds numbers or pictures",
    }


@pytest.mark.realdata
def test_real_values_are_those_of_the_messages(real_data: Path, tmp_path: Path) -> None:
    """Each aligned value is that of the last message at or before the step, by the rosbags library itself."""
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    path = real_data / "ros2_db3" / "plotjuggler_pose_imu_battery"
    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        poses = []
        for connection, _, data in reader.messages():
            if connection.topic == "/pose":
                message: Any = reader.deserialize(data, connection.msgtype)
                time = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                point = message.pose.position
                poses.append((time, point.x, point.y, point.z))
    with converted(path, tmp_path / "out", control="/imu") as dataset:
        episode = dataset[0]
        times_M = np.array([pose[0] for pose in poses])
        steps_N = episode.meta["start_time_ns"] + episode["timestamp"]
        taken_N = np.searchsorted(times_M, steps_N, "right") - 1
        assert (taken_N >= 0).all() and episode.length > 1000
        assert np.array_equal(episode["obs.pose.pose.position"], np.array([pose[1:] for pose in poses])[taken_N])
        assert np.abs(episode["age.obs.pose.pose.position"] * 1000 - (steps_N - times_M[taken_N])).max() <= 500


@pytest.mark.realdata
def test_real_values_of_mcap_are_those_of_the_messages(real_data: Path, tmp_path: Path) -> None:
    """By the mcap library itself: the odometry (JSON) in force at each picture (protobuf)."""
    import json

    from mcap.reader import make_reader

    path = real_data / "mcap" / "camera_imu_odom_protobuf_demo.mcap"
    found: dict[str, list[tuple[int, bytes]]] = {}
    with path.open("rb") as file:
        for _, channel, message in make_reader(file).iter_messages():
            found.setdefault(channel.topic, []).append((message.log_time, message.data))
    odom, camera = found["/odom"], found["/camera/front/image"]
    with converted(path, tmp_path / "out") as dataset:
        episode = dataset[0]
        steps_N = episode.meta["start_time_ns"] + episode["timestamp"]
        assert steps_N.tolist() == [time for time, _ in camera]
        for step, time in enumerate(steps_N.tolist()):
            point = json.loads([data for stamp, data in odom if stamp <= time][-1])["pose"]["position"]
            assert episode["obs.odom.pose.position"][step].tolist() == [point["x"], point["y"], point["z"]]
            picture = camera[step][1]
            start = picture.index(b"\x89PNG")
            pixels = np.asarray(Image.open(io.BytesIO(picture[start:])).convert("RGB"))
            assert np.array_equal(episode["obs.image.camera_front"][step], pixels)


def test_messages_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    def swapped(items: list[Item]) -> list[Item]:
        return [one for pair in zip(items[1::2], items[::2], strict=True) for one in pair]

    path = write_mcap(tmp_path / "mixed.mcap", [*swapped(pictures(60, raw=True)), *swapped(joints(200))])
    with converted(path, tmp_path / "out", align="linear") as dataset:
        episode = dataset[0]
        shown = episode["obs.image.camera_front"][:, 0, 0, 0].astype(int)
        assert (np.diff(shown) == 1).all() and len(shown) == 60
        assert np.abs(episode["obs.proprio"][:, 0] - frame_times(episode)).max() < 1e-6
        found = [one["name"] for one in episode.source_meta["sync"]["findings"]]
        assert found.count("reordered") == 2


def test_the_receipt_tells_of_damage_further_on(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "dented.mcap", joints(600))
    data = bytearray(path.read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 60] = bytes(60)
    path.write_bytes(data)
    receipt = run(LogConverter([path], LogOptions()), tmp_path / "out", RunOptions(on_error="skip"))
    assert any(note.startswith("dented.mcap: ") and "chunk" in note for note in receipt.notes), receipt.notes
    assert 400 < receipt.manifest.steps < 600
