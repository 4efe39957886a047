"""LeRobot sets written by lerobot itself (LeRobotDataset.create, add_frame, save_episode); runs inside its environment.

python lerobot_write.py DEST: writes DEST/{two_cameras,images,many_files,mixed,plain} and prints each; lerobot 0.6 and
later, which know depth, write DEST/depth as well.
"""

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

VERSION = tuple(int(part) for part in importlib.metadata.version("lerobot").split(".")[:2])
AXES = ["height", "width", "channels"]
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow", "wrist_flex", "wrist_roll", "gripper"]
RIG = {
    "observation.state": {"dtype": "float32", "shape": (6,), "names": JOINTS},
    "action": {"dtype": "float32", "shape": (6,), "names": JOINTS},
}
SIGNALS = {
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
}
TASKS = ["put the red cube into the box", "open the drawer, then wave", "Grüße: Würfel stapeln"]


@dataclass(frozen=True)
class Plan:
    """One set: what `create` takes, the episodes' lengths, and how noisy each camera's pictures are."""

    fps: int
    features: dict[str, dict[str, Any]]
    lengths: tuple[int, ...]
    codec: str = "libsvtav1"
    robot: str | None = "so101_follower"
    noise: dict[str, int] | None = None
    file_mb: int | None = None
    tasks_change: bool = False
    since: tuple[int, int] = (0, 4)


def camera(dtype: str, height: int, width: int) -> dict[str, Any]:
    """A camera feature as `create` takes it."""
    return {"dtype": dtype, "shape": (height, width, 3), "names": AXES}


TOP, WRIST = "observation.images.top", "observation.images.wrist"
PLANS = {
    "two_cameras": Plan(
        30,
        {**RIG, **SIGNALS, TOP: camera("video", 96, 128), WRIST: camera("video", 64, 64)},
        (12, 30, 7, 25, 18),
    ),
    "images": Plan(
        15,
        {**RIG, TOP: camera("image", 48, 64), WRIST: camera("image", 33, 47)},
        (9, 1, 4, 11),
        noise={TOP: 40, WRIST: 8},
    ),
    "many_files": Plan(
        10,
        {
            **RIG,
            **SIGNALS,
            "observation.tactile": {"dtype": "float32", "shape": (64, 64), "names": ["row", "column"]},
            TOP: camera("video", 192, 192),
            WRIST: camera("video", 96, 96),
        },
        (40, 56, 33, 61, 20, 48, 37, 50),
        codec="h264",
        noise={TOP: 120, WRIST: 2},
        file_mb=1,
    ),
    "mixed": Plan(
        50,
        {
            **RIG,
            "observation.environment_state": {"dtype": "float64", "shape": (3,), "names": None},
            "observation.matrix": {"dtype": "float32", "shape": (4, 4), "names": None},
            "observation.counts": {"dtype": "int64", "shape": (2,), "names": ["left", "right"]},
            "observation.small": {"dtype": "uint8", "shape": (5,), "names": None},
            "observation.cube": {"dtype": "float32", "shape": (2, 3, 4), "names": None},
            "note": {"dtype": "string", "shape": (1,), "names": None},
            TOP: camera("video", 64, 80),
            WRIST: camera("image", 40, 56),
        },
        (6, 21, 8, 14),
        codec="hevc",
        robot=None,
        tasks_change=True,
    ),
    "depth": Plan(
        20,
        {
            **RIG,
            TOP: camera("video", 64, 96),
            TOP + "_depth": {**camera("video", 64, 96), "shape": (64, 96, 1), "info": {"is_depth_map": True}},
        },
        (8, 15, 6),
        since=(0, 6),
    ),
    "plain": Plan(100, {**RIG, **SIGNALS}, (50, 1, 120), robot="koch"),
}


def picture(shape: tuple[int, ...], step: int, noise: int, rng: np.random.Generator) -> np.ndarray:
    """A gradient with a bright square that moves by two pixels a step, plus uniform noise of +-`noise`."""
    height, width, channels = shape
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 200 // height, columns * 200 // width, (rows + columns) % 64], axis=-1).astype(np.int16)
    left = (2 * step) % max(1, width - 12)
    if channels == 1:  # depth: millimetres, a plane that comes nearer, without a reading in one corner
        depth = 400 + 10 * image[..., :1].astype(np.uint16) + np.uint16(step)
        depth[:4, :4] = 0
        return depth
    image[height // 3 : height // 3 + 10, left : left + 10] = (250, 40, 200)
    if noise:
        image += rng.integers(-noise, noise + 1, size=image.shape, dtype=np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


def value(key: str, feature: dict[str, Any], step: int, length: int, rng: np.random.Generator) -> Any:
    """One frame's value of a feature that is no camera."""
    shape, dtype = tuple(feature["shape"]), feature["dtype"]
    if dtype == "string":
        return f"step {step} of {length}"
    if key in ("next.done", "next.success"):
        return np.array([step == length - 1])
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 200, size=shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def encoder(codec: str) -> dict[str, Any]:
    """The argument of `create` that names the codec: it changed with 0.6."""
    if VERSION < (0, 6):
        return {"vcodec": codec}
    from lerobot.configs.video import RGBEncoderConfig

    return {"rgb_encoder": RGBEncoderConfig(vcodec=codec)}


def write(root: Path, plan: Plan, seed: int) -> None:
    """Write one set under `root`; refuses, as lerobot does, when it exists."""
    rng = np.random.default_rng(seed)
    features = {key: dict(feature) for key, feature in plan.features.items()}
    dataset = LeRobotDataset.create(
        f"peers/{root.name}", plan.fps, features, root=root, robot_type=plan.robot, **encoder(plan.codec)
    )
    if plan.file_mb:
        dataset.meta.update_chunk_settings(data_files_size_in_mb=plan.file_mb, video_files_size_in_mb=plan.file_mb)
    for number, length in enumerate(plan.lengths):
        for step in range(length):
            frame: dict[str, Any] = {}
            for key, feature in plan.features.items():
                if feature["dtype"] in ("image", "video"):
                    frame[key] = picture(feature["shape"], step + 5 * number, (plan.noise or {}).get(key, 0), rng)
                else:
                    frame[key] = value(key, feature, step, length, rng)
            late = plan.tasks_change and step > length // 2
            frame["task"] = TASKS[(number + late) % len(TASKS)]
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()


def main() -> None:
    """Write every set that is not there yet."""
    destination = Path(sys.argv[1])
    for seed, (name, plan) in enumerate(PLANS.items()):
        if plan.since <= VERSION and not (destination / name).exists():
            write(destination / name, plan, seed)
            print(destination / name, f"{len(plan.lengths)} episodes, {sum(plan.lengths)} frames", flush=True)


if __name__ == "__main__":
    main()
