"""Reads a DAPG pickle without running anything that is in it."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrl3data.errors import SourceError, locate
from vrl3data.schema import Array

# What loading broken or hostile pickles was seen to raise, besides UnpicklingError.
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
           ImportError, MemoryError, OverflowError, RecursionError, struct.error)  # fmt: skip
NEEDED = ("observations", "actions", "rewards", "init_state_dict")
FOREIGN = {b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip file (or one of torch)"}
KEPT_VALUES = 64
"""Other entries up to this size are kept in the episode's metadata."""


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode. T steps, D observation entries, A action entries; all float64."""

    obs_TD: Array
    action_TA: Array
    reward_T: Array
    init_state: Mapping[str, Array]
    extra: Mapping[str, Any]
    dropped: tuple[str, ...]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Old pickles write bytes as `_codecs.encode(text, 'latin1')`; no other codec is run."""
    if encoding != "latin1":
        raise SourceError(f"refused: the pickle asks to encode text as {encoding!r}")
    return text.encode("latin1")


class _Restricted(pickle.Unpickler):
    """Knows NumPy arrays, numbers and dtypes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy._core", "numpy.core")
        if (place, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar")):
            return getattr(np._core.multiarray, name)  # type: ignore[attr-defined]
        if (place, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (place, name) == ("_codecs", "encode"):
            return _encode
        raise SourceError(
            f"refused: the pickle asks for {module}.{name}; demonstrations need only NumPy arrays, "
            "and a pickle that asks for more could run code"
        )


def load(data: bytes) -> list[Any]:
    """The list in a pickle. SourceError if it is broken, asks for foreign code, or is no list of episodes."""
    for magic, kind in FOREIGN.items():
        if data.startswith(magic):
            raise SourceError(f"this is {kind}, not a pickle of demonstrations")
    try:
        content = _Restricted(io.BytesIO(data), encoding="latin1").load()
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"not a whole pickle file: {reason}") from error
    if not isinstance(content, list) or not content:
        found: str = "an empty list" if isinstance(content, list) else type(content).__name__
        raise SourceError(f"expected a list of episodes, found {found}")
    for number, episode in enumerate(content):
        if not isinstance(episode, dict) or not set(NEEDED) <= set(episode):
            entries = sorted(map(str, episode)) if isinstance(episode, dict) else type(episode).__name__
            with locate(episode=str(number)):
                raise SourceError(f"expected a dict with {', '.join(NEEDED)}, found {entries}")
    return content


def demonstration(episode: Mapping[str, Any]) -> Demonstration:
    """One checked episode of `load`. SourceError names the entry that does not fit."""
    obs_TD = _floats(episode["observations"], "observations", 2)
    action_TA = _floats(episode["actions"], "actions", 2)
    reward_T = _floats(episode["rewards"], "rewards", None)
    reward_T = reward_T.reshape(len(reward_T)) if reward_T.shape == (len(obs_TD), 1) else reward_T
    if reward_T.ndim != 1:
        raise SourceError(f"rewards: expected one number per step, found an array of shape {reward_T.shape}")
    lengths = {"observations": len(obs_TD), "actions": len(action_TA), "rewards": len(reward_T)}
    if not len(obs_TD):
        raise SourceError("the episode has no steps")
    if len(set(lengths.values())) > 1:
        raise SourceError(f"expected as many observations as actions and rewards, found {lengths}")
    state = episode["init_state_dict"]
    if not isinstance(state, dict):
        raise SourceError(f"init_state_dict: expected a dict, found {type(state).__name__}")
    init_state = {str(key): _floats(value, f"init_state_dict.{key}", None) for key, value in state.items()}
    others = {str(key): value for key, value in episode.items() if key not in NEEDED}
    small = {key: value for key, value in others.items() if _size(value) <= KEPT_VALUES}
    return Demonstration(obs_TD, action_TA, reward_T, init_state, small, tuple(sorted(set(others) - set(small))))


def _size(value: Any) -> int:
    """How many values an entry holds; lists of different lengths count as too many to keep."""
    try:
        return int(np.size(value))
    except ValueError:
        return KEPT_VALUES + 1


def _floats(value: Any, name: str, dimensions: int | None) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SourceError(f"{name}: expected an array of numbers, found lists of different lengths") from error
    if array.dtype.kind not in "fiu" or (dimensions is not None and array.ndim != dimensions):
        wanted = "an array" if dimensions is None else f"an array of {dimensions} dimensions"
        raise SourceError(f"{name}: expected {wanted} of numbers, found {array.dtype} of shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else None
        with locate(step=step, feature=name):
            raise SourceError("a value is NaN or infinite")
    return array
