"""Small files in the layout of robomimic, of Isaac Lab and of robosuite's raw demonstrations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ENV = {
    "env_name": "Lift",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {"type": "OSC_POSE", "control_delta": True},
        "camera_names": ["agentview"],
    },
}
LENGTHS = {"demo_0": 4, "demo_1": 3, "demo_2": 6, "demo_10": 5}
CAMERA = {"agentview": {"intrinsics": [[9, 0, 8], [0, 9, 6], [0, 0, 1]], "extrinsics": np.eye(4).tolist()}}


def observations(rng: np.random.Generator, rows: int, images: bool = True) -> dict[str, np.ndarray]:
    found = {
        "robot0_eef_pos": rng.normal(size=(rows, 3)),
        "robot0_eef_quat": np.tile(np.float32([0, 0, 0, 1]), (rows, 1)),
        "robot0_gripper_qpos": rng.normal(size=(rows, 2)),
        "object": rng.normal(size=(rows, 5)),
    }
    if images:
        found["agentview_image"] = rng.integers(0, 256, (rows, 12, 16, 3), np.uint8)
        found["agentview_depth"] = rng.uniform(0.2, 3, (rows, 12, 16, 1)).astype(np.float32)
    return found


def write(
    path: Path,
    lengths: Mapping[str, int] = LENGTHS,
    dones: Mapping[str, Sequence[int]] | None = None,
    masks: Mapping[str, Sequence[str]] | None = None,
    env: Mapping[str, Any] | None = ENV,
    next_obs: bool = True,
    images: bool = True,
) -> Path:
    """As robomimic's dataset_states_to_obs.py writes it. `dones` without an entry: 1 at the last step."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, length in lengths.items():
            demo = data.create_group(name)
            seen = observations(rng, length + 1, images)
            for key, rows in seen.items():
                demo[f"obs/{key}"] = rows[:-1]
                if next_obs:
                    demo[f"next_obs/{key}"] = rows[1:]
            demo["actions"] = rng.uniform(-1, 1, (length, 7))
            demo["action_dict/gripper"] = rng.uniform(-1, 1, (length, 1))
            demo["states"] = rng.normal(size=(length, 9))
            done = np.zeros(length, np.int64)
            done[-1] = 1
            demo["dones"] = np.array(dones[name]) if dones and name in dones else done
            demo["rewards"] = done.astype(np.float64)
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = '<mujoco><asset><mesh file="/home/somebody/robosuite/a.stl"/></asset></mujoco>'
            demo.attrs["ep_meta"] = json.dumps({"lang": "lift the cube", "layout_id": 3})
            if images:
                demo.attrs["camera_info"] = json.dumps(CAMERA)
        data.attrs["total"] = sum(lengths.values())
        if env is not None:
            data.attrs["env_args"] = json.dumps(env, indent=4)
        for key, demos in (masks or {}).items():
            file[f"mask/{key}"] = np.array([demo.encode() for demo in demos])
    return path


def write_isaac(path: Path, lengths: Sequence[int] = (5, 1)) -> Path:
    """As Isaac Lab's HDF5 handler writes it: groups in obs and states, initial_state with one row, no dones."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.normal(size=(length, 7)).astype(np.float32)
            demo["obs/eef_pos"] = rng.normal(size=(length, 3)).astype(np.float32)
            demo["obs/datagen_info/eef_pose/franka"] = rng.normal(size=(length, 4, 4)).astype(np.float32)
            demo["obs/datagen_info/subtask_term_signals/grasp"] = rng.random(length) > 0.5
            demo["states/articulation/robot/joint_position"] = rng.normal(size=(length, 9)).astype(np.float32)
            demo["initial_state/articulation/robot/joint_position"] = rng.normal(size=(1, 9)).astype(np.float32)
            demo.attrs["num_samples"] = length
            demo.attrs["success"] = number == 0
            demo.attrs["seed"] = 40 + number
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0", "type": 2})
    return path


def write_raw(path: Path, scene: str = "<mujoco/>", lengths: Sequence[int] = (5, 3)) -> Path:
    """As robosuite's collect_human_demonstrations.py writes it: states and actions from demo_1 on, no obs."""
    rng = np.random.default_rng(2)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in enumerate(lengths, 1):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.normal(scale=2, size=(length, 7))
            demo["states"] = np.stack(
                [np.arange(length) / 20, np.linspace(-0.3, 0.3, length), np.zeros(length)], axis=1
            )
            demo.attrs["model_file"] = scene
        data.attrs["env"] = "Lift"
        data.attrs["env_info"] = json.dumps(
            {"env_name": "Lift", "robots": "Panda"} | {key: ENV["env_kwargs"][key] for key in ("controller_configs",)}
        )  # type: ignore[index]
        data.attrs["repository_version"] = "1.4.1"
    return path
