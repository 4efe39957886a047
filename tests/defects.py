"""Every defect that `validate` must find: one function each, and the check that has to name it.

A function of FILES spoils a finished dataset; a function of EPISODES spoils clean episodes before they are written.
Both kinds work on any dataset that has the features they name; the tests use the arm of `arm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from damage import TARGET, edit, edit_array, edit_index, edit_manifest, flip

from vrl3data import index, scan, shard
from vrl3data.schema import Array, Episode

Values = dict[str, Any]
Spoil = Callable[[list[Episode]], list[Episode]]


@dataclass(frozen=True)
class Defect:
    """`check` must report it; `where` is what its finding must say, as far as there is a place."""

    spoil: Callable[..., Any]
    check: str
    where: Mapping[str, Any]


# --- damage to files ---------------------------------------------------------------------------------------------


def bit_flip_in_image(path: Path) -> None:
    flip(path, "obs.image.front.npy", back=500)


def bit_flip_in_action(path: Path) -> None:
    flip(path, "action.npy", back=10)


def bit_flip_in_meta(path: Path) -> None:
    flip(path, "meta.json", back=300)


def truncated_tail(path: Path) -> None:
    file = index.shard_files(path)[0]
    file.write_bytes(file.read_bytes()[:-4000])


def lost_shard(path: Path) -> None:
    index.shard_files(path)[0].unlink()


def swapped_shards(path: Path) -> None:
    one, two = index.shard_files(path)[:2]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def interleaved_members(path: Path) -> None:
    file = index.shard_files(path)[0]
    data, entries = file.read_bytes(), scan.scan(file).entries
    (a, size_a), (b, size_b) = entries[1].members["action.npy"], entries[2].members["action.npy"]
    block = shard.BLOCK
    first, last = data[a - block : a + shard.padded(size_a)], data[b - block : b + shard.padded(size_b)]
    middle = data[a + shard.padded(size_a) : b - block]
    file.write_bytes(data[: a - block] + last + middle + first + data[b + shard.padded(size_b) :])


def missing_member(path: Path) -> None:
    edit(path, lambda members: [item for item in members if item[0] != "reward.npy"])


def wrong_dtype(path: Path) -> None:
    edit_array(lambda rows: rows.astype(np.float64), "action")(path)


def wrong_row_shape(path: Path) -> None:
    edit_array(lambda rows: np.ascontiguousarray(rows[:, :2]), "action")(path)


def step_rows_off_by_one(path: Path) -> None:
    edit_array(lambda rows: rows[:-1], "action")(path)


def state_rows_off_by_one(path: Path) -> None:
    edit_array(lambda rows: rows[:-1], "obs.proprio")(path)


def episode_rows_off_by_one(path: Path) -> None:
    edit_array(lambda rows: np.concatenate([rows, rows]), "sim.scene")(path)


# --- manifest and index that do not tell the truth ---------------------------------------------------------------


def stale_statistics(path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        mean = told["stats"]["features"]["action"]["mean"]
        mean[1] += 0.05

    edit_manifest(path, change)


def stale_fingerprint(path: Path) -> None:
    edit_manifest(path, lambda told: told.update(fingerprint="0" * 64))


def wrong_manifest_count(path: Path) -> None:
    edit_manifest(path, lambda told: told["splits"]["train"].update(samples=told["splits"]["train"]["samples"] + 1))


def missing_licence(path: Path) -> None:
    edit_manifest(path, lambda told: told.update(license="unknown"))


def future_minor_version(path: Path) -> None:
    edit_manifest(path, lambda told: told.update(format={"major": 1, "minor": 7}))


def wrong_index_offset(path: Path) -> None:
    def change(table: Any) -> Any:
        column = table.column_names.index("action.npy.offset")
        offsets = table["action.npy.offset"].to_numpy().copy()
        offsets[TARGET] += 512
        return table.set_column(column, table.schema.field(column), [offsets])

    edit_index(path, change)


def missing_index_row(path: Path) -> None:
    edit_index(path, lambda table: table.filter(np.arange(len(table)) != TARGET))


# --- content that is whole but wrong -----------------------------------------------------------------------------


def _one(change: Callable[[Values, Episode], Values], target: int = TARGET) -> Spoil:
    """Change the values of one episode; the arrays handed over are copies."""

    def spoil(episodes: list[Episode]) -> list[Episode]:
        episode = episodes[target]
        copies = {name: np.array(value) for name, value in episode.values.items()}
        spoilt = replace(episode, values={**copies, **change(copies, episode)})
        return [spoilt if number == target else other for number, other in enumerate(episodes)]

    return spoil


def _all(change: Callable[[Values], Values]) -> Spoil:
    return lambda episodes: [
        replace(e, values={**e.values, **change({n: np.array(v) for n, v in e.values.items()})}) for e in episodes
    ]


def _change(name: str, make: Callable[[Array], Array]) -> Spoil:
    return _one(lambda values, _: {name: make(values[name])})


def _set_item(name: str, where: Any, what: Any) -> Spoil:
    def change(values: Values, _: Episode) -> Values:
        values[name][where] = what
        return {}

    return _one(change)


def not_a_number(episodes: list[Episode]) -> list[Episode]:
    return _set_item("obs.proprio", (7, 2), np.nan)(episodes)


def infinity(episodes: list[Episode]) -> list[Episode]:
    return _set_item("reward", 7, -np.inf)(episodes)


def constant_dimension(episodes: list[Episode]) -> list[Episode]:
    def change(values: Values) -> Values:
        values["obs.proprio"][:, 2] = 0.25
        return values

    return _all(change)(episodes)


def stuck_joint(episodes: list[Episode]) -> list[Episode]:
    """From step 10 on, one joint reports the same position for ever."""
    return _one(lambda values, _: {"obs.proprio": _hold(values["obs.proprio"], 10, 1)})(episodes)


def _hold(rows: Array, start: int, column: int) -> Array:
    rows[start:, column] = rows[start, column]
    return rows


def action_out_of_bounds(episodes: list[Episode]) -> list[Episode]:
    return _set_item("action", (slice(5, 9), 1), 1.4)(episodes)


def action_shifted_by_one(episodes: list[Episode]) -> list[Episode]:
    """Row t holds what was done at t-1."""
    return _change("action", lambda rows: np.concatenate([rows[:1], rows[:-1]]))(episodes)


def all_actions_shifted_by_one(episodes: list[Episode]) -> list[Episode]:
    return _all(lambda values: {"action": np.concatenate([values["action"][:1], values["action"][:-1]])})(episodes)


def frames_shifted_by_one(episodes: list[Episode]) -> list[Episode]:
    return _change("obs.image.front", lambda rows: np.concatenate([rows[:1], rows[:-1]]))(episodes)


def all_frames_shifted_by_one(episodes: list[Episode]) -> list[Episode]:
    name = "obs.image.front"
    return _all(lambda values: {name: np.concatenate([values[name][:1], values[name][:-1]])})(episodes)


def frozen_camera(episodes: list[Episode]) -> list[Episode]:
    return _change("obs.image.front", lambda rows: np.repeat(rows[:1], len(rows), axis=0))(episodes)


def held_frames(episodes: list[Episode]) -> list[Episode]:
    """Every fifth frame is shown twice, as by a camera that is slower than the control loop."""

    def change(values: Values, _: Episode) -> Values:
        front = values["obs.image.front"]
        front[4::5] = front[3::5][: len(front[4::5])]
        return {}

    return _one(change)(episodes)


def held_frames_in_all(episodes: list[Episode]) -> list[Episode]:
    def change(values: Values) -> Values:
        front = values["obs.image.front"]
        front[4::5] = front[3::5][: len(front[4::5])]
        return values

    return _all(change)(episodes)


def black(episodes: list[Episode]) -> list[Episode]:
    return _change("obs.image.front", np.zeros_like)(episodes)


def white(episodes: list[Episode]) -> list[Episode]:
    """Six frames in the middle are blinded."""
    return _set_item("obs.image.front", slice(9, 15), 255)(episodes)


def cameras_swapped(episodes: list[Episode]) -> list[Episode]:
    front, side = "obs.image.front", "obs.image.side"
    return _one(lambda values, _: {front: values[side], side: values[front]})(episodes)


def bgr_for_rgb(episodes: list[Episode]) -> list[Episode]:
    return _change("obs.image.front", lambda rows: np.ascontiguousarray(rows[..., ::-1]))(episodes)


def half_upside_down(episodes: list[Episode]) -> list[Episode]:
    return _change("obs.image.front", lambda rows: np.concatenate([rows[:15], rows[15:, ::-1]]))(episodes)


def depth_unit(episodes: list[Episode]) -> list[Episode]:
    """Tenths of millimetres, where all others are in millimetres."""
    return _change("obs.depth.front", lambda rows: rows * np.uint16(10))(episodes)


def time_backwards(episodes: list[Episode]) -> list[Episode]:
    def change(values: Values, _: Episode) -> Values:
        values["timestamp"][15] = values["timestamp"][13] - 1_000_000
        return {}

    return _one(change)(episodes)


def time_gap(episodes: list[Episode]) -> list[Episode]:
    return _change("timestamp", lambda rows: rows + 700_000_000 * (np.arange(len(rows)) >= 13))(episodes)


def time_jitter(episodes: list[Episode]) -> list[Episode]:
    def change(values: Values, _: Episode) -> Values:
        stamps = values["timestamp"]
        stamps[1:-1] += np.random.default_rng(3).integers(-22_000_000, 22_000_000, len(stamps) - 2)
        return {}

    return _one(change)(episodes)


def duplicate_stamp(episodes: list[Episode]) -> list[Episode]:
    def change(values: Values, _: Episode) -> Values:
        values["timestamp"][9] = values["timestamp"][8]
        return {}

    return _one(change)(episodes)


def terminated_in_the_middle(episodes: list[Episode]) -> list[Episode]:
    return _set_item("terminated", 12, True)(episodes)


def reward_all_zero(episodes: list[Episode]) -> list[Episode]:
    return _change("reward", np.zeros_like)(episodes)


def success_against_reward(episodes: list[Episode]) -> list[Episode]:
    failed = next(number for number, episode in enumerate(episodes) if episode.success == 0)
    return [replace(e, success=1) if number == failed else e for number, e in enumerate(episodes)]


def _copy(episodes: list[Episode], split: str, change: Callable[[Values], Values] = dict) -> list[Episode]:
    source = episodes[TARGET]
    values = change({name: np.array(value) for name, value in source.values.items()})
    length = len(values["action"])
    twin = replace(source, name="arm-twin", split=split, values=values, length=length)
    return sorted([*episodes, twin], key=lambda episode: episode.split)


def _nearly(values: Values) -> Values:
    """The same run with the first step cut off and a little noise on every number."""
    rng = np.random.default_rng(8)
    cut = {name: value[1:] if len(value) > 1 else value for name, value in values.items()}
    cut["timestamp"] = cut["timestamp"] - cut["timestamp"][0]
    for name in ("obs.proprio", "action"):
        noisy = cut[name] + rng.normal(0, 1e-3 * cut[name].std(), cut[name].shape)
        cut[name] = (np.clip(noisy, -1, 1) if name == "action" else noisy).astype(cut[name].dtype)
    return cut


def two_identical_episodes(episodes: list[Episode]) -> list[Episode]:
    return _copy(episodes, "train")


def one_episode_in_train_and_val(episodes: list[Episode]) -> list[Episode]:
    return _copy(episodes, "val")


def near_duplicate(episodes: list[Episode]) -> list[Episode]:
    return _copy(episodes, "train", _nearly)


_ROWS = {"episode": f"arm-{TARGET}"}
_ACTION = {**_ROWS, "feature": "action"}
_FRONT = {**_ROWS, "feature": "obs.image.front"}
_PROPRIO = {**_ROWS, "feature": "obs.proprio"}
_STAMPS = {**_ROWS, "feature": "timestamp"}
_SHARD = {"shard": "train-000000.tar"}
_TWIN = {"episode": "arm-twin"}

FILES = {
    "bit flip in image": Defect(bit_flip_in_image, "checksum", {**_ROWS, "feature": "obs.image.front.npy"}),
    "bit flip in action": Defect(bit_flip_in_action, "checksum", {**_ROWS, "feature": "action.npy"}),
    "bit flip in meta": Defect(bit_flip_in_meta, "structure", _SHARD),
    "truncated tail": Defect(truncated_tail, "structure", _SHARD),
    "lost shard": Defect(lost_shard, "shards", _SHARD),
    "swapped shards": Defect(swapped_shards, "structure", _SHARD),
    "interleaved members": Defect(interleaved_members, "structure", _SHARD),
    "missing member": Defect(missing_member, "members", _ROWS),
    "wrong dtype": Defect(wrong_dtype, "rows", _ACTION),
    "wrong row shape": Defect(wrong_row_shape, "rows", _ACTION),
    "rows off by one: step": Defect(step_rows_off_by_one, "rows", _ACTION),
    "rows off by one: state": Defect(state_rows_off_by_one, "rows", _PROPRIO),
    "rows off by one: episode": Defect(episode_rows_off_by_one, "rows", {**_ROWS, "feature": "sim.scene"}),
    "stale statistics": Defect(stale_statistics, "stats", {"feature": "action"}),
    "stale fingerprint": Defect(stale_fingerprint, "manifest", {}),
    "wrong index offset": Defect(wrong_index_offset, "index", {}),
    "missing index row": Defect(missing_index_row, "index", {}),
    "wrong manifest count": Defect(wrong_manifest_count, "manifest", {}),
    "missing licence": Defect(missing_licence, "license", {}),
    "future minor version": Defect(future_minor_version, "version", {}),
}
"""Each `spoil` changes the directory it is given."""

EPISODES = {
    "NaN": Defect(not_a_number, "nan", {**_PROPRIO, "step": 7}),
    "infinity": Defect(infinity, "nan", {**_ROWS, "feature": "reward", "step": 7}),
    "constant dimension": Defect(constant_dimension, "constant", {"feature": "obs.proprio"}),
    "stuck joint": Defect(stuck_joint, "stuck", {**_PROPRIO, "step": 10}),
    "action out of bounds": Defect(action_out_of_bounds, "bounds", {**_ACTION, "step": 5}),
    "action shifted by one": Defect(action_shifted_by_one, "shifted_actions", _ROWS),
    "actions shifted by one in all": Defect(all_actions_shifted_by_one, "shifted_actions", {}),
    "frames shifted by one": Defect(frames_shifted_by_one, "shifted_frames", _FRONT),
    "frames shifted by one in all": Defect(all_frames_shifted_by_one, "shifted_frames", {}),
    "frozen camera": Defect(frozen_camera, "frozen_camera", _FRONT),
    "more than 10 % held frames": Defect(held_frames, "held_frames", _FRONT),
    "held frames in all": Defect(held_frames_in_all, "held_frames", _FRONT),
    "black": Defect(black, "blank_frames", {**_FRONT, "step": 0}),
    "white": Defect(white, "blank_frames", {**_FRONT, "step": 9}),
    "cameras swapped": Defect(cameras_swapped, "swapped_cameras", _ROWS),
    "BGR for RGB": Defect(bgr_for_rgb, "channel_order", _FRONT),
    "half the episode upside down": Defect(half_upside_down, "orientation", _FRONT),
    "depth unit": Defect(depth_unit, "depth_unit", {**_ROWS, "feature": "obs.depth.front"}),
    "time backwards": Defect(time_backwards, "timestamps", {**_STAMPS, "step": 15}),
    "gap": Defect(time_gap, "timestamps", {**_STAMPS, "step": 13}),
    "jitter": Defect(time_jitter, "timestamps", _STAMPS),
    "duplicate stamp": Defect(duplicate_stamp, "timestamps", {**_STAMPS, "step": 9}),
    "terminated in the middle": Defect(terminated_in_the_middle, "ends", _ROWS),
    "success against reward": Defect(success_against_reward, "success", {"episode": "arm-1"}),
    "reward all zero": Defect(reward_all_zero, "reward", _ROWS),
    "two identical episodes": Defect(two_identical_episodes, "copies", _TWIN),
    "one episode in train and val": Defect(one_episode_in_train_and_val, "leakage", _TWIN),
    "near duplicate": Defect(near_duplicate, "near_copies", _TWIN),
}
"""Each `spoil` takes clean episodes and returns those to write instead."""
