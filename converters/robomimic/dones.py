"""What `dones` means in a file: robomimic writes it in three ways and does not say in which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vrl3data.errors import ConfigError
from vrl3data.schema import Array

MEANINGS = ("success", "end", "both")
"""robomimic's --done_mode 0: states of success; 1: the last step of each demo; 2: both."""


@dataclass(frozen=True)
class Dones:
    """Of one demo: whether its last step is done, and whether one before it is."""

    last: bool
    before: bool


@dataclass(frozen=True)
class Ends:
    """What is known of how demos of a file end, and from what."""

    meaning: str
    reason: str
    rewards: bool = False
    """The last reward says whether the last state is one of success."""


def look(dones_T: Array) -> Dones:
    """Of an array of any dtype, one entry per step."""
    done_T: Array = np.any(dones_T.reshape(len(dones_T), -1), axis=1)
    return Dones(bool(done_T[-1]), bool(done_T[:-1].any()))


def infer(found: Mapping[str, Dones], asked: str) -> tuple[str, str]:
    """(one of MEANINGS or empty, why). ConfigError if what was `asked` for contradicts the data."""
    if not found:
        return "", ""
    if asked != "auto":
        _check(found, asked)
        return asked, f"dones are taken as {asked}, as asked for"
    if not any(demo.last or demo.before for demo in found.values()):
        return "", "dones are 0 everywhere: they say nothing of success"
    early = sum(demo.before for demo in found.values())
    open_ = sum(not demo.last for demo in found.values())
    if open_:
        return "success", f"dones mark states of success: the last step of {open_} of {len(found)} demos is not done"
    if early:
        return "", (
            f"the last step of every demo is done, and {early} of {len(found)} are done before: dones mark states of "
            "success or these and the end; --dones says which"
        )
    return "", (
        "dones are 1 at the last step of every demo and nowhere else: the end, success or both; --dones says which"
    )


def _check(found: Mapping[str, Dones], asked: str) -> None:
    for name, demo in found.items():
        if asked == "end" and demo.before:
            raise ConfigError(f"dones: {name} is done before its last step, so they do not mark the end alone")
        if asked != "success" and not demo.last:
            raise ConfigError(f"dones: the last step of {name} is not done, so they do not mark the end")


def outcome(ends: Ends, dones: Dones | None, said: object, reward: float | None) -> tuple[int, int]:
    """(terminated, success) of a demo, -1 where it is not known. `said` is its attribute `success`."""
    terminated = success = -1
    if ends.meaning == "success" and dones is not None:
        terminated = int(dones.last)
        success = 1 if dones.last else -1 if dones.before else 0
    if ends.rewards and reward is not None and np.isfinite(reward):
        success = int(reward > 0)
    if isinstance(said, (bool, int)) and said in (0, 1):
        success = int(said)
    return terminated, success
