"""Defects of two episodes at once, which must not hide one another: each on its own kind of clean set.

Every function takes clean episodes of the arm and the numbers of those to spoil. Where a check needs what the arm does
not have, `SETS` tells how to make such a clean set of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from arm import PERIOD_NS, arm_episode, arm_schema, arm_spec

from vrl3data.manifest import DatasetSpec
from vrl3data.schema import Array, Episode, Feature, Schema

Values = dict[str, Any]
Change = Callable[[Values], Values]
TARGETS = (4, 7)
FRONT = "obs.image.front"


@dataclass(frozen=True)
class Pair:
    """`check` must name both episodes, at `feature` if it has one, with these words."""

    change: Change
    check: str
    feature: str | None
    says: str
    base: str = "arm"


def spoil(episodes: Sequence[Episode], change: Change, targets: Sequence[int] = TARGETS) -> list[Episode]:
    result = list(episodes)
    for number in targets:
        values = change({name: np.array(value) for name, value in episodes[number].values.items()})
        result[number] = replace(episodes[number], values=values, length=len(values["action"]))
    return result


# --- clean sets --------------------------------------------------------------------------------------------------

STEPS = 20


def of_one_length(episodes: Sequence[Episode]) -> list[Episode]:
    """As recorded with a limit of 20 steps."""
    return [replace(_cut(episode, STEPS), terminated=0, truncated=1, success=0) for episode in episodes]


def _cut(episode: Episode, steps: int) -> Episode:
    values = {name: value[: steps + (len(value) > episode.length)] if len(value) > 1 else value
              for name, value in episode.values.items()}  # fmt: skip
    values["terminated"] = np.zeros(steps, bool)
    return replace(episode, values=values, length=steps)


def with_joints(episodes: Sequence[Episode]) -> list[Episode]:
    """Beside the noisy sensors, what a simulator knows."""
    made = []
    for episode in episodes:
        joints = episode.values["obs.proprio"][:, :3].astype(np.float64)
        velocity = np.gradient(joints, axis=0) / (PERIOD_NS * 1e-9)
        made.append(replace(episode, values={**episode.values, "sim.qpos": joints, "sim.qvel": velocity}))
    return made


def joints_spec() -> DatasetSpec:
    more = tuple(Feature(name, "float64", (3,), "state") for name in ("sim.qpos", "sim.qvel"))
    schema = arm_schema()
    return replace(arm_spec(), schema=Schema(schema.kind, (*schema.features, *more), schema.extras))


def from_home(episodes: Sequence[Episode]) -> list[Episode]:
    """Recordings that all begin alike."""
    return [arm_episode(number, home=True) for number in range(len(episodes))]


def same(episodes: Sequence[Episode]) -> list[Episode]:
    return list(episodes)


SETS: dict[str, tuple[Callable[[Sequence[Episode]], list[Episode]], Callable[[], DatasetSpec]]] = {
    "arm": (same, arm_spec),
    "length": (of_one_length, arm_spec),
    "joints": (with_joints, joints_spec),
    "home": (from_home, arm_spec),
}

# --- defects -----------------------------------------------------------------------------------------------------


def _set(name: str, make: Callable[[Array], Array]) -> Change:
    return lambda values: {**values, name: np.ascontiguousarray(make(values[name])).astype(values[name].dtype)}


def _columns(rows: Array, columns: Sequence[int]) -> Array:
    return rows[:, columns]


def one_joint_in_degrees(rows: Array) -> Array:
    rows[:, 1] = np.rad2deg(rows[:, 1])
    return rows


def spike(rows: Array) -> Array:
    """One row of garbage: far enough for a jump, not for another unit."""
    rows[9, 4] = 1.1
    return rows


def one_sign(rows: Array) -> Array:
    rows[:, 1] *= -1
    return rows


def torn(rows: Array) -> Array:
    """A decoder that fills what is missing of a file with grey."""
    rows[[6, 7, 15], 20:] = 128
    return rows


def darker(rows: Array) -> Array:
    return rows * np.linspace(1, 0.6, len(rows))[:, None, None, None]


def pushed(rows: Array) -> Array:
    return np.concatenate([rows[:12], np.roll(rows[12:], 2, axis=2)])


def first_half(values: Values) -> Values:
    half = STEPS // 2
    return {name: rows[: half + (len(rows) > STEPS)] if len(rows) > 1 else rows for name, rows in values.items()}


def half_rate(values: Values) -> Values:
    """Every second row; the stamps are counted anew, so that only what moved tells."""
    steps = len(values["action"]) // 2
    thin = {name: rows[::2][: steps + (len(rows) > len(values["action"]))] if len(rows) > 1 else rows
            for name, rows in values.items()}  # fmt: skip
    thin["timestamp"] = values["timestamp"][: steps + 1]
    return thin


def stuck(rows: Array) -> Array:
    rows[10:, 1] = rows[10, 1]
    return rows


def noise(rows: Array) -> Array:
    """A cable that is loose."""
    return np.random.default_rng(3).integers(0, 256, rows.shape)


def blurred(rows: Array) -> Array:
    """Each pixel the mean of 3 x 3."""
    wide = np.pad(rows.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    size = rows.shape[1]
    return sum(wide[:, y : y + size, x : x + size] for y in range(3) for x in range(3)) / 9


def zoomed(rows: Array) -> Array:
    """The middle half, drawn between its pixels."""
    size = rows.shape[1]
    place = (np.arange(size) + 0.5) / 2 + size / 4 - 0.5
    low, part = place.astype(int), place % 1
    tall = rows[:, low] * (1 - part)[:, None, None] + rows[:, low + 1] * part[:, None, None]
    wide: Array = tall[:, :, low] * (1 - part)[:, None] + tall[:, :, low + 1] * part[:, None]
    return wide


def of_nine_levels(rows: Array) -> Array:
    least, span = rows.min(axis=0), np.ptp(rows, axis=0)
    rounded: Array = np.round((rows - least) / np.maximum(span, 1e-9) * 8) / 8 * span + least
    return rounded


def cut_off(rows: Array) -> Array:
    """Entry 0 reads no more than half of its range."""
    rows[:, 0] = np.minimum(rows[:, 0], (rows[:, 0].min() + rows[:, 0].max()) / 2)
    return rows


def filled_in(rows: Array) -> Array:
    """Eight rows that were lost, on the line between their neighbours."""
    rows[11:19] = rows[10] + (rows[19] - rows[10]) * (np.arange(1, 9) / 9)[:, None]
    return rows


def noise_for_actions(rows: Array) -> Array:
    return np.random.default_rng(2).uniform(-1, 1, rows.shape)


PAIRS = {
    "a joint in degrees": Pair(_set("obs.proprio", one_joint_in_degrees), "scale", "obs.proprio", "entry 1"),
    "a spike": Pair(_set("obs.proprio", spike), "jumps", "obs.proprio", "entry 4"),
    "entries exchanged": Pair(
        _set("action", lambda rows: _columns(rows, [2, 1, 0])), "action_entries", "action",
        "entry 0 and entry 2 of the action are exchanged"),
    "one entry reversed": Pair(_set("action", one_sign), "action_entries", "action", "entry 1 of the action has"),
    "actions ten times smaller": Pair(
        _set("action", lambda rows: rows / 10), "action_entries", "action", "times as far per action"),
    "reward reversed": Pair(_set("reward", lambda rows: -rows), "reward", "reward", "with the other sign"),
    "reward of another level": Pair(_set("reward", lambda rows: rows - 15), "reward", "reward", "the level of the"),
    "torn frames": Pair(_set(FRONT, torn), "torn_frames", FRONT, "the lowest 12 of 32 rows are of one colour, in 3 of"),
    "darker and darker": Pair(_set(FRONT, darker), "brightness", FRONT, "0.6"),
    "a pushed camera": Pair(_set(FRONT, pushed), "camera_moved", FRONT, "the camera was moved"),
    "cut in two": Pair(first_half, "lengths", None, "10 steps, where 12 of 14 episodes have 20", "length"),
    "half the rate": Pair(half_rate, "velocity", "sim.qvel", "times as far as in the others", "joints"),
    "velocity per millisecond": Pair(
        _set("sim.qvel", lambda rows: rows / 1000), "velocity", "sim.qvel", "times as far as in the others", "joints"),
    "a stuck joint": Pair(_set("obs.proprio", stuck), "stuck", "obs.proprio", "entry 1 does not change for"),
    "noise": Pair(_set(FRONT, noise), "appearance", FRONT, "frames change by"),
    "blurred": Pair(_set(FRONT, blurred), "sharpness", FRONT, "out of focus"),
    "zoomed": Pair(_set(FRONT, zoomed), "sharpness", FRONT, "zoomed"),
    "nine levels": Pair(_set("obs.proprio", of_nine_levels), "quantised", "obs.proprio", "different values"),
    "actions of nine levels": Pair(_set("action", of_nine_levels), "quantised", "action", "different values"),
    "cut off": Pair(_set("obs.proprio", cut_off), "saturated", "obs.proprio", "entry 0 is exactly its"),
    "filled in": Pair(_set("obs.proprio", filled_in), "interpolated", "obs.proprio", "for 8 rows all entries"),
    "played backwards": Pair(_set(FRONT, lambda rows: rows[::-1]), "reversed_frames", FRONT, "nearer", "home"),
    "actions of nobody": Pair(
        _set("action", noise_for_actions), "shifted_actions", "action", "the actions do not"),
}  # fmt: skip
