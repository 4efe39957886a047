"""robomimic files: what becomes of every array and attribute, what is assumed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import make_robomimic as make
import numpy as np
import pytest

import vrl3data
from converters.base import recognise
from converters.robomimic.converter import RobomimicConverter, RobomimicOptions
from converters.run import run
from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, MissingExtra, SourceError
from vrl3data.validation import validate

IMAGE = "obs.image.agentview"


def convert(source: Path, dest: Path, **options: Any) -> Dataset:
    vrl3data.convert("robomimic", source, dest, options)
    assert validate(dest).ok
    return vrl3data.open(dest)


def plan(source: Path, **options: Any) -> Any:
    return RobomimicConverter([source], RobomimicOptions(**options)).plan()


def notes(source: Path, **options: Any) -> str:
    return "\n".join(plan(source, **options).notes)


def problem(source: Path, **options: Any) -> str:
    """The one thing that is wrong, whether all of the file is or one demo."""
    try:
        (found,) = plan(source, **options).problems
    except SourceError as error:
        return str(error)
    return str(found[1])


def change(path: Path, demo: str, key: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        group = file["data"][demo]
        if key in group:
            del group[key]
        if value is not None:
            group[key] = value


# -- what becomes of what --------------------------------------------------------------------------------------


def test_every_array_arrives(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5")
    dataset = convert(source, tmp_path / "out")
    assert [item.name for item in dataset] == ["demo/demo_0", "demo/demo_1", "demo/demo_2", "demo/demo_10"]
    assert dataset.schema["action"].representation == "delta_ee"
    assert dataset.schema["obs.robot0_eef_quat"].quaternion == "xyzw"
    assert dataset.schema[IMAGE].color == "rgb"
    assert dataset.schema[IMAGE].intrinsics[0] == (9.0, 0.0, 8.0)
    assert dataset.schema[IMAGE].extrinsics[3] == (0.0, 0.0, 0.0, 1.0)
    with h5py.File(source) as file:
        for item in dataset:
            demo = file["data"][item.name.split("/")[1]]
            seen = {key: np.concatenate([demo["obs"][key], demo["next_obs"][key][-1:]]) for key in demo["obs"]}
            for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"):
                assert np.array_equal(item[f"obs.{key}"], seen[key])
                assert item[f"obs.{key}"].dtype == seen[key].dtype
            assert np.array_equal(item[IMAGE], seen["agentview_image"])
            metres = item["obs.depth.agentview"] * dataset.schema["obs.depth.agentview"].scale_m
            assert abs(metres - seen["agentview_depth"][..., 0]).max() < 0.000501
            joined = [seen[f"robot0_{key}"] for key in ("eef_pos", "eef_quat", "gripper_qpos")]
            assert np.array_equal(item["obs.proprio"], np.concatenate(joined, axis=1))
            for name, key in (("action", "actions"), ("action.gripper", "action_dict/gripper"), ("done", "dones"),
                              ("reward", "rewards"), ("sim.state", "states")):  # fmt: skip
                assert np.array_equal(item[name], demo[key])
            assert item["timestamp"].tolist() == [50_000_000 * row for row in range(len(demo["actions"]) + 1)]
            assert item.meta["final_observation"] == 1


def test_what_the_file_says_is_kept(tmp_path: Path) -> None:
    item = convert(make.write(tmp_path / "demo.hdf5"), tmp_path / "out")[2]
    assert item.meta["task"] == "lift the cube"
    said = item.source_meta
    assert said["env_args"] == make.ENV
    assert said["ep_meta"] == {"lang": "lift the cube", "layout_id": 3}
    assert said["camera_info"] == make.CAMERA
    assert said["model_file"] == '<mujoco><asset><mesh file="~/robosuite/a.stl"/></asset></mujoco>'  # whose home: not
    assert said["num_samples"] == 6
    assert said["assumed"]["final_observation"] == "the last row of next_obs"


def test_masks_become_subsets_that_overlap(tmp_path: Path) -> None:
    masks = {
        "train": ["demo_0", "demo_2"],
        "better": ["demo_2"],
        "20_percent,a": ["demo_10", "demo_7"],
        "none": ["demo_9"],
    }
    source = make.write(tmp_path / "demo.hdf5", masks=masks, images=False)
    said = notes(source)
    assert "mask '20_percent,a' names 1 demos that are not there: demo_7" in said
    assert "mask '20_percent,a' became the subset '20_percent_a'" in said
    assert "mask 'none' names no demo that is there" in said
    dataset = convert(source, tmp_path / "out")
    assert [item.meta["subsets"] for item in dataset] == ["train", "", "better,train", "20_percent_a"]
    assert dataset.manifest.subsets == {"20_percent_a": 1, "better": 1, "train": 2}


def test_wrong_counts_and_gaps_are_said(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", images=False)
    assert "the numbering of the demos has gaps: demo_3, demo_4, demo_5, demo_6, demo_7 and 2 more" in notes(source)
    with h5py.File(source, "r+") as file:
        file["data/demo_1"].attrs["num_samples"] = 99
        file["data"].attrs["total"] = 5
        file["data"].move("demo_0", "first")
    said = notes(source)
    assert "num_samples is wrong in 1 demos: demo_1 says 99, its actions are 3" in said
    assert "total says 5, the demos have 18 steps" in said
    assert "1 demos have no number: first" in said


def test_isaac_lab(tmp_path: Path) -> None:
    source = make.write_isaac(tmp_path / "isaac.hdf5")
    dataset = convert(source, tmp_path / "out")
    assert dataset.schema["action"].representation == "delta_ee"
    assert dataset.schema["sim.initial.articulation.robot.joint_position"].rows == "episode"
    with h5py.File(source) as file:
        for item in dataset:
            demo = file["data"][item.name.split("/")[1]]
            for name, key in (
                ("obs.datagen_info.eef_pose.franka", "obs/datagen_info/eef_pose/franka"),
                ("obs.datagen_info.subtask_term_signals.grasp", "obs/datagen_info/subtask_term_signals/grasp"),
                ("sim.articulation.robot.joint_position", "states/articulation/robot/joint_position"),
                ("sim.initial.articulation.robot.joint_position", "initial_state/articulation/robot/joint_position"),
            ):
                assert np.array_equal(item[name], demo[key])
                assert item[name].dtype == demo[key].dtype
    assert [item.meta["success"] for item in dataset] == [1, 0]
    assert [item.source_meta["seed"] for item in dataset] == [40, 41]
    assert dataset[0].meta["final_observation"] == 0
    assert dataset[0].meta["task"] == "Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0"


def test_raw_robosuite(tmp_path: Path) -> None:
    dataset = convert(make.write_raw(tmp_path / "raw.hdf5"), tmp_path / "out")
    assert dataset.schema.names == ("action", "sim.state")
    assert dataset.schema["action"].representation == "delta_ee"
    assert dataset.schema["action"].bounds is None
    assert abs(dataset[0]["action"]).max() > 1  # kept as recorded
    assert dataset[0].meta["task"] == "Lift"
    assert dataset[0].source_meta["env_info"]["robots"] == "Panda"


@pytest.mark.parametrize(
    ("controller", "representation"),
    [
        ({"type": "OSC_POSE", "control_delta": False}, "abs_ee"),
        ({"type": "JOINT_VELOCITY"}, "velocity"),
        ({"body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta"}}}, "delta_ee"),
        ({"body_parts": {"arms": {"right": {"type": "JOINT_POSITION", "input_type": "absolute"}}}}, "abs_joint"),
        ({"type": "OSC_POSE"}, ""),
        ("odd", ""),
    ],
)
def test_actions_mean_what_the_controller_says(tmp_path: Path, controller: Any, representation: str) -> None:
    env = {**make.ENV, "env_kwargs": {"controller_configs": controller}}
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 2}, env=env, images=False)
    assert plan(source).spec.schema["action"].representation == representation


def test_pictures_of_other_layouts(tmp_path: Path) -> None:
    """LIBERO: upside down, other names, the task in words; channels first; grey; four channels are no picture."""
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 2}, env=None, images=False, next_obs=False)
    rng = np.random.default_rng(0)
    arrays = {
        "wrist_rgb": (2, 3, 12, 16),
        "front_gray": (2, 12, 16),
        "rgba": (2, 12, 16, 4),
        "cams/top": (2, 12, 16, 3),
    }
    with h5py.File(source, "r+") as file:
        for key, shape in arrays.items():
            file[f"data/demo_0/obs/{key}"] = rng.integers(0, 256, shape, np.uint8)
        file["data/demo_0/obs/front_depth"] = rng.integers(0, 9, (2, 12, 16), np.uint16)
        file["data"].attrs["macros_image_convention"] = "opengl"
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        del file["data/demo_0"].attrs["ep_meta"]
        found = {key: file[f"data/demo_0/obs/{key}"][()] for key in arrays}
    dataset = convert(source, tmp_path / "out")
    item = dataset[0]
    assert np.array_equal(item["obs.image.wrist"], np.moveaxis(found["wrist_rgb"], 1, -1))
    assert np.array_equal(item["obs.image.front"][..., 0], found["front_gray"])
    assert np.array_equal(item["obs.image.cams_top"], found["cams/top"])
    assert np.array_equal(item["obs.rgba"], found["rgba"])
    assert dataset.schema["obs.image.front"].color == "gray"
    assert dataset.schema["obs.image.wrist"].flip == "vertical"
    assert dataset.schema["obs.depth.front"].scale_m == 0.0
    assert item.meta["task"] == "open the drawer"


def test_depth_of_unknown_unit_stays_as_it_is(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 2})
    assert "depth is taken to be in metres" in notes(source)
    dataset = convert(source, tmp_path / "kept", depth="keep")
    with h5py.File(source) as file:
        assert np.array_equal(dataset[0]["obs.agentview_depth"][:2], file["data/demo_0/obs/agentview_depth"])
    near_one = np.full((2, 12, 16, 1), 0.97, np.float32)  # a depth buffer of OpenGL
    change(source, "demo_0", "obs/agentview_depth", near_one)
    change(source, "demo_0", "next_obs/agentview_depth", near_one)
    assert "its unit is not known: obs/agentview_depth (--depth metres)" in notes(source)
    assert convert(source, tmp_path / "metres", depth="metres")[0]["obs.depth.agentview"][0, 0, 0] == 970
    with pytest.raises(SourceError, match=r"does not fit in uint16 counts of 1e-05 m.*demo_0"):
        convert(source, tmp_path / "small", depth="metres", depth_scale=0.00001)


def test_cameras_that_move_have_no_pose(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 2, "demo_1": 2})
    other = {"agentview": {**make.CAMERA["agentview"], "extrinsics": (2 * np.eye(4)).tolist()}}
    with h5py.File(source, "r+") as file:
        file["data/demo_1"].attrs["camera_info"] = json.dumps(other)
    feature = plan(source).spec.schema[IMAGE]
    assert (feature.extrinsics, feature.intrinsics[0]) == ((), (9.0, 0.0, 8.0))
    assert plan(source, image_size=8).spec.schema[IMAGE].intrinsics == ()


# -- next_obs --------------------------------------------------------------------------------------------------


def test_without_next_obs_there_is_no_final_observation(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4, "demo_1": 3})
    change(source, "demo_1", "next_obs", None)
    dataset = convert(source, tmp_path / "out")
    assert [item.meta["final_observation"] for item in dataset] == [1, 0]
    assert [len(item[IMAGE]) for item in dataset] == [5, 3]


def test_observations_with_one_row_more_than_actions(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4}, next_obs=False, images=False)
    rows = np.arange(5.0)[:, None]
    for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
        change(source, "demo_0", f"obs/{key}", None)
    change(source, "demo_0", "obs/object", rows)
    item = convert(source, tmp_path / "out")[0]
    assert item.meta["final_observation"] == 1
    assert np.array_equal(item["obs.object"], rows)


def test_next_obs_that_are_not_shifted_are_kept(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4, "demo_1": 3})
    with h5py.File(source, "r+") as file:
        for name in ("demo_0", "demo_1"):
            file["data"][name]["next_obs/object"][1] = 7
        wanted = file["data/demo_1/next_obs/object"][()]
        image = file["data/demo_1/next_obs/agentview_image"][()]
    assert "next_obs are not obs one step later (demo_0: object, step 1)" in notes(source)
    dataset = convert(source, tmp_path / "out")
    assert np.array_equal(dataset[1]["obs.next.object"], wanted)
    assert np.array_equal(dataset[1]["obs.image.next_agentview"], image)
    assert dataset[1].meta["final_observation"] == 0


def test_one_demo_whose_next_obs_are_not_shifted(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4, "demo_1": 3})
    with h5py.File(source, "r+") as file:
        file["data/demo_1/next_obs/object"][1] += 0.5
    wrong = r"next_obs is not the next row of obs \(they differ by up to 0.5\); --next-obs keep.*demo_1, step 1"
    with pytest.raises(SourceError, match=wrong):
        convert(source, tmp_path / "out")
    receipt = vrl3data.convert("robomimic", source, tmp_path / "skipped", {}, on_error="skip")
    assert (receipt.manifest.samples, len(receipt.skipped)) == (1, 1)
    assert "obs.next.object" in convert(source, tmp_path / "kept", next_obs="keep").schema


def test_nan_is_equal_to_itself_in_the_shift(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4}, images=False)
    with h5py.File(source, "r+") as file:
        file["data/demo_0/obs/object"][2, 1] = file["data/demo_0/next_obs/object"][1, 1] = np.nan
    vrl3data.convert("robomimic", source, tmp_path / "out")
    assert np.isnan(vrl3data.open(tmp_path / "out")[0]["obs.object"][2, 1])
    assert any(finding.check == "nan" for finding in validate(tmp_path / "out").findings)


def test_long_arrays_are_checked_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers when a block is two rows, in memory or not."""
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 7})
    whole = convert(source, tmp_path / "whole").manifest.fingerprint
    monkeypatch.setattr("converters.hdf5.BLOCK_BYTES", 2 * 12 * 16 * 3)
    monkeypatch.setattr("converters.robomimic.converter.SMALL_BYTES", 0)
    assert convert(source, tmp_path / "blocks").manifest.fingerprint == whole
    with h5py.File(source, "r+") as file:
        file["data/demo_0/next_obs/agentview_image"][4, 0, 0, 0] ^= 1
    with pytest.raises(SourceError, match=r"next row of obs.*step 4, feature /data/demo_0/next_obs/agentview_image"):
        convert(source, tmp_path / "wrong")


# -- dones -----------------------------------------------------------------------------------------------------

END, EARLY, OPEN, NEVER = [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("first", "second", "asked", "said", "known"),
    [
        (END, END, "auto", "1 at the last step of every demo and nowhere else", [(-1, -1), (-1, -1)]),
        (END, EARLY, "auto", "states of success or these and the end", [(-1, -1), (-1, -1)]),
        (END, NEVER, "auto", "the last step of 1 of 2 demos is not done", [(1, 1), (0, 0)]),
        (EARLY, OPEN, "auto", "dones mark states of success", [(1, 1), (0, -1)]),
        (NEVER, NEVER, "auto", "0 everywhere", [(-1, -1), (-1, -1)]),
        (END, END, "success", "taken as success, as asked for", [(1, 1), (1, 1)]),
        (END, END, "end", "taken as end", [(-1, -1), (-1, -1)]),
        (END, EARLY, "both", "taken as both", [(-1, -1), (-1, -1)]),
    ],
)
def test_meanings_of_dones(
    tmp_path: Path, first: list[int], second: list[int], asked: str, said: str, known: list[tuple[int, int]]
) -> None:
    dones = {"demo_0": first, "demo_1": second}
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4, "demo_1": 4}, dones=dones, images=False)
    assert said in notes(source, dones=asked)
    dataset = convert(source, tmp_path / "out", dones=asked)
    assert [(item.meta["terminated"], item.meta["success"]) for item in dataset] == known
    assert dataset[0].source_meta["assumed"]["dones"]
    assert dataset[1]["done"].tolist() == second


@pytest.mark.parametrize(("asked", "dones"), [("end", EARLY), ("end", NEVER), ("both", OPEN)])
def test_dones_that_contradict_what_was_asked_for(tmp_path: Path, asked: str, dones: list[int]) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4}, dones={"demo_0": dones}, images=False)
    with pytest.raises(ConfigError, match=r"dones: .*demo_0.*(before its last step|not done)"):
        plan(source, dones=asked)


def test_sparse_rewards_say_what_success_is(tmp_path: Path) -> None:
    env = {**make.ENV, "env_kwargs": {"reward_shaping": False}}
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4, "demo_1": 4}, env=env, images=False)
    change(source, "demo_1", "rewards", np.zeros(4))
    assert "success is taken from the last reward" in notes(source)
    assert [item.meta["success"] for item in convert(source, tmp_path / "out")] == [1, 0]


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", None, "the demo has no actions"),
        ("actions", np.zeros((0, 7)), "the demo has no steps"),
        ("actions", 3.0, "one row per step, found a group or a single value"),
        ("rewards", np.zeros(9), "expected 6 rows, one for each of the actions, found 9.*feature rewards"),
        ("obs/object", np.zeros((8, 5)), "expected 6 rows.*found 8.*feature obs/object"),
        ("next_obs/object", np.zeros((5, 5)), "expected 6 rows.*found 5.*feature next_obs/object"),
        ("next_obs/object", np.zeros((6, 4)), "expected float64 5, state as in obs, found float64 4"),
        ("obs/object", np.zeros(6, [("x", "f4")]), "expected rows of numbers, found .*feature obs/object"),
        ("obs/object", np.zeros((6, 4)), "as in the episodes before, found|as in obs"),
        ("obs", None, "the demo has no obs, which the other demos have"),
    ],
)
def test_a_broken_demo_is_named_and_the_rest_goes_on(tmp_path: Path, key: str, value: Any, message: str) -> None:
    source = make.write(tmp_path / "demo.hdf5", images=False)
    change(source, "demo_2", key, value)
    if key == "obs":
        change(source, "demo_2", "next_obs", None)
    with pytest.raises(SourceError, match=message) as raised:
        raise plan(source).problems[0][1]
    assert raised.value.source.episode == "demo_2"
    assert raised.value.source.path == "demo.hdf5"
    receipt = vrl3data.convert("robomimic", source, tmp_path / "out", {}, on_error="skip")
    assert [entry["source"] for entry in receipt.skipped] == ["demo/demo_2"]
    assert receipt.manifest.samples == 3
    assert validate(tmp_path / "out").ok


def test_files_without_demos(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = 1
    assert "expected a group `data` with demos, found x" in problem(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file.create_group("data")
    assert "the group `data` holds no demos" in problem(tmp_path / "b.hdf5")
    source = make.write(tmp_path / "c.hdf5", {"demo_0": 2}, images=False)
    with h5py.File(source, "r+") as file:
        file["data/odd"] = 1
    assert "expected a group with the arrays of a demo, found an array" in problem(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dones": "maybe"}, "dones: 'maybe'"),
        ({"next_obs": "kept"}, "next_obs: 'kept'; did you mean 'keep'"),
        ({"depth": "inches"}, "depth: 'inches'"),
        ({"render": "slow"}, "render: 'slow'"),
        ({"depth_scale": 0.0}, "depth_scale: expected metres per count"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **options)


def test_a_mask_that_is_none(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 2}, images=False)
    with h5py.File(source, "r+") as file:
        file["mask/odd"] = np.arange(3)
    assert "expected a list of names of demos, found int64" in problem(source)


def test_what_is_no_array_goes_into_source_meta(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", {"demo_0": 4}, images=False)
    with h5py.File(source, "r+") as file:
        demo = file["data/demo_0"]
        demo["subtasks"], demo["pose"], demo["huge"] = [b"reach", b"lift"], np.eye(3), np.zeros((70, 70))
        demo["obs/object"].attrs["unit"] = "m"
    assert "left out, as they are neither rows of numbers nor small: huge" in notes(source)
    said = convert(source, tmp_path / "out")[0].source_meta
    assert said["arrays"] == {"subtasks": ["reach", "lift"], "pose": np.eye(3).tolist()}
    assert said["attributes"] == {"obs/object": {"unit": "m"}}


def test_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = make.write(tmp_path / "in/demo.hdf5")
    assert recognise(source) == recognise(source.parent) == "robomimic"
    source.write_bytes(source.read_bytes()[:-5000])
    assert recognise(source) == "robomimic"  # so that the message says what is wrong with it
    with h5py.File(tmp_path / "in/other.hdf5", "w") as file:
        file["data"] = 1
    assert RobomimicConverter.recognises(tmp_path / "in")  # the other one is named when it is read
    assert not RobomimicConverter.recognises(tmp_path / "in/other.hdf5")


def test_workers_change_no_byte(tmp_path: Path) -> None:
    source = make.write(tmp_path / "demo.hdf5", masks={"train": ["demo_0"]})
    for jobs in (1, 2):
        vrl3data.convert("robomimic", source, tmp_path / f"out{jobs}", {}, jobs=jobs)
    shards = [tmp_path / f"out{jobs}/data/train-000000.tar" for jobs in (1, 2)]
    assert shards[0].read_bytes() == shards[1].read_bytes()


# -- recorded states -------------------------------------------------------------------------------------------

SCENE = """<mujoco><asset><texture name="t" type="2d" file="/home/x/robosuite/models/assets/textures/t.png"/>
<material name="m" texture="t"/></asset><worldbody><light pos="0 0 3"/><camera name="agentview" pos="0 0 2"/>
<body><joint type="slide" axis="1 0 0"/><geom type="box" size=".2 .2 .2" material="m" group="1"/>
<geom type="box" size=".3 .3 .3" rgba="0 0 1 1"/></body></worldbody>
</mujoco>"""


@pytest.fixture
def meshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of robosuite's name with one texture."""
    from PIL import Image

    inside = tmp_path / "packages/robosuite/models/assets"
    (inside / "textures").mkdir(parents=True)
    (tmp_path / "packages/robosuite/__init__.py").write_text("raise SystemExit('its code must not run')")
    (tmp_path / "packages/robosuite-9.dist-info").mkdir()
    (tmp_path / "packages/robosuite-9.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: robosuite\nVersion: 9\n"
    )
    Image.new("RGB", (8, 8), (250, 10, 10)).save(inside / "textures/t.png")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return inside


@pytest.mark.usefixtures("meshes")
def test_states_are_drawn(tmp_path: Path) -> None:
    source = make.write_raw(tmp_path / "raw.hdf5", SCENE)
    dataset = convert(source, tmp_path / "out", render="fast", image_size=48)
    frames = dataset[0][IMAGE]
    assert frames.shape == (5, 48, 48, 3)
    # the blue box around it is for collisions, which robosuite does not show
    red = (frames[..., 0].astype(int) - frames[..., 1] > 60).any(axis=1)  # columns with a part of the box
    middle = [np.flatnonzero(row).mean() for row in red]
    assert np.all(np.diff(middle) > 0.3)  # it slides to the right, as the states say
    assert "mujoco" in dataset.schema[IMAGE].renderer
    assert dataset.manifest.provenances[0]["versions"]["robosuite"] == "9"


@pytest.mark.usefixtures("meshes")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<asset>", '<asset><mesh name="a" file="/etc/passwd"/>', "asks for 'passwd', which is not one of robosuite's"),
        ("textures/t.png", "../../../../secret", "which robosuite 9 does not have"),
        ("<asset>", '<include file="x.xml"/><asset>', "<include> brings in other files"),
        ("<asset>", '<asset><texture name="u" type="2d" builtin="flat" width="99999" height="9"/>', "width 99999"),
        ("<mujoco>", '<!DOCTYPE a [<!ENTITY b "c">]><mujoco>', "declarations of its own"),
        ("</mujoco>", "", "model_file is not XML"),
        ('type="slide"', 'type="odd"', "MuJoCo cannot build the scene"),
        ('type="slide" axis="1 0 0"', 'type="free"', "expected states of time, 7 positions and 6 velocities, found 3"),
        (SCENE, "", "rendering needs the scene in the attribute `model_file`"),
    ],
)
def test_scenes_that_are_not_drawn(tmp_path: Path, old: str, new: str, message: str) -> None:
    source = make.write_raw(tmp_path / "raw.hdf5", SCENE.replace(old, new))
    with pytest.raises(SourceError, match=message):
        convert(source, tmp_path / "out", render="fast", image_size=24)


@pytest.mark.usefixtures("meshes")
def test_a_camera_that_the_scene_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="camera: the scene has no 'agentveiw'; did you mean 'agentview'"):
        plan(make.write_raw(tmp_path / "raw.hdf5", SCENE), render="fast", camera=("agentveiw",))


def test_drawing_needs_robosuite(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'vrl3data\[robosuite\]'"):
        plan(make.write_raw(tmp_path / "raw.hdf5", SCENE), render="fast")


# -- real files ------------------------------------------------------------------------------------------------

REAL = {
    "isaaclab_franka_stack/annotated_dataset.hdf5": (10, 2163),
    "isaaclab_franka_stack/generated_dataset_small.hdf5": (10, 2328),
    "isaaclab_indy7_reach/generated_dataset_small.hdf5": (8, 281),
    "robosuite_raw/lift_panda_3demos.hdf5": (3, 1384),
    "robosuite_raw/adit_demonstrations__1729277108_0358148__demo.hdf5": (4, 427),
    "robosuite_raw/adit_demonstrations__1729279957_9895139__demo.hdf5": (6, 2903),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_files(real_data: Path, tmp_path: Path, name: str) -> None:
    """Every array of numbers of every demo, against h5py."""
    source = real_data / "robomimic" / name
    assert recognise(source) == "robomimic"
    dataset = convert(source, tmp_path / "out")
    assert (len(dataset), dataset.manifest.steps) == REAL[name]
    places = {rule.source[0]: rule.name for rule in RobomimicConverter([source], RobomimicOptions()).mapping().rules
              if len(rule.source) == 1}  # fmt: skip
    with h5py.File(source) as file:
        for item in dataset:
            demo = file["data"][item.name.rpartition("/")[2]]
            found: list[str] = []
            demo.visititems(lambda key, node, to=found: to.append(key) if isinstance(node, h5py.Dataset) else None)
            assert set(found) <= set(places)
            for key in found:
                assert np.array_equal(item[places[key]], demo[key])
                assert item[places[key]].dtype == demo[key].dtype
            assert "/home/" not in item.meta["source_meta"]
            assert "/Users/" not in item.meta["source_meta"]


def test_a_file_with_a_clock_of_its_own_keeps_it(tmp_path: Path) -> None:
    source = make.write(tmp_path / "a.hdf5", {"demo_0": 5})
    with h5py.File(source, "a") as file:
        file["data/demo_0/timestamp"] = np.arange(5) / 20
    run(RobomimicConverter([source], RobomimicOptions()), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset:
        assert "timestamp" not in dataset.schema.names
        assert dataset[0]["recorded.timestamp"].tolist() == [0.0, 0.05, 0.1, 0.15, 0.2]
