"""Files in robomimic's layout, as its documentation and scripts give it, since it has no writer of its own; the
train/valid masks are made by robomimic's script. Runs inside its environment.

python robomimic_write.py DEST: writes DEST/{image,low_dim,states_only}.hdf5 and prints each.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
from robomimic.scripts.split_train_val import split_train_val_from_hdf5

# Twelve demos: sorting names as text puts demo_10 before demo_2.
LENGTHS = (11, 4, 17, 9, 6, 13, 5, 8, 21, 7, 3, 10)
ENVIRONMENT = {
    "env_name": "Lift",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "camera_names": ["agentview", "robot0_eye_in_hand"]},
}
MODEL = '<mujoco model="lift"><worldbody/></mujoco>'


def observations(length: int, images: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """length+1 rows of each key, so that obs and next_obs are two views of them."""
    rows = {
        "object": rng.standard_normal((length + 1, 10)),
        "robot0_eef_pos": rng.standard_normal((length + 1, 3)),
        "robot0_eef_quat": rng.standard_normal((length + 1, 4)).astype(np.float32),
        "robot0_gripper_qpos": rng.standard_normal((length + 1, 2)),
    }
    if images:
        for camera, side in (("agentview", 84), ("robot0_eye_in_hand", 40)):
            rows[f"{camera}_image"] = rng.integers(0, 256, (length + 1, side, side, 3), np.uint8)
        rows["agentview_depth"] = rng.random((length + 1, 84, 84, 1), np.float32)
    return rows


def write_demo(demo: h5py.Group, length: int, images: bool, compression: str | None, rng: np.random.Generator) -> None:
    """One demo with everything the scripts of robomimic write."""
    demo.attrs["num_samples"] = length
    demo.attrs["model_file"] = MODEL
    demo["actions"] = np.clip(rng.standard_normal((length, 7)) / 2, -1, 1)
    demo["states"] = rng.standard_normal((length, 32))
    success = np.arange(length) == length - 1
    demo["rewards"] = success.astype(np.float64)
    demo["dones"] = success.astype(np.int64)
    for key, rows in observations(length, images, rng).items():
        demo.create_dataset(f"obs/{key}", data=rows[:-1], compression=compression)
        demo.create_dataset(f"next_obs/{key}", data=rows[1:], compression=compression)
    if images:
        demo["action_dict/gripper"] = np.asarray(demo["actions"])[:, 6:]


def write(path: Path, images: bool, compression: str | None, seed: int) -> None:
    """A post-processed file with observations, next observations and masks."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        data.attrs["env_args"] = json.dumps(ENVIRONMENT, indent=4)
        for number, length in enumerate(LENGTHS):
            write_demo(data.create_group(f"demo_{number}"), length, images, compression, rng)
        file["mask/better"] = np.array([b"demo_1", b"demo_10"])
    np.random.seed(seed)  # robomimic's script shuffles by the global state
    split_train_val_from_hdf5(str(path), val_ratio=0.25)


def write_states(path: Path, seed: int) -> None:
    """A raw file as robosuite's collection gives it: states and actions alone, demos from 1, gaps in the numbers."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"date": "2-3-2024", "env": "Lift", "env_info": json.dumps(ENVIRONMENT["env_kwargs"])})
        data.attrs["env_args"] = json.dumps(ENVIRONMENT)
        for number, length in ((1, 9), (2, 5), (11, 14)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["model_file"] = MODEL
            demo["states"] = rng.standard_normal((length, 32))
            demo["actions"] = 3 * rng.standard_normal((length, 7))


def main() -> None:
    """Write every file that is not there yet."""
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    for seed, (name, images, compression) in enumerate((("image", True, "gzip"), ("low_dim", False, None))):
        path = destination / f"{name}.hdf5"
        if not path.exists():
            write(path, images, compression, seed)
            print(path)
    path = destination / "states_only.hdf5"
    if not path.exists():
        write_states(path, 2)
        print(path)


if __name__ == "__main__":
    main()
