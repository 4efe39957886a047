"""What a peer saw of an export, against the dataset it was made from and against what the peer saw of the source.

Letters: T steps of an episode. Arrays are equal when their bytes are; a fit with loss is measured in dB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Seen = Mapping[str, Any]

MATTERS = {
    "lerobot": ("fps", "robot_type", "cameras", "episodes", "frames", "tasks"),
    "robomimic": ("env_args", "masks"),
    "minari": ("spaces", "env_spec", "episodes", "steps"),
}
"""peer -> what it says of a whole dataset that a round trip has to keep."""
FINAL = "final observation"  # declared as dropped by an export that leaves out the last row of all observations
ROUNDING = 0.01  # dB: statements have two digits
OF_EPISODES = {"lerobot": ("length",), "robomimic": ("length",), "minari": ("seed", "options", "total_steps")}
"""The same of each episode."""


@dataclass
class Verdict:
    """`lines`: one for each feature or array, for people. `problems` make the round trip fail."""

    equal: int = 0
    near: int = 0
    """Times in seconds and depth in metres: equal up to the rounding of our counts."""
    lossy: list[float] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pairs: dict[str, str] = field(default_factory=dict)  # array of the peer -> feature that it holds

    def psnr(self) -> float:
        """The worst of all pictures; infinite if all are equal."""
        return min(self.lossy, default=math.inf)


@dataclass(frozen=True)
class Fit:
    """How one array is found in another.

    `rank`: 0 bytes equal, 1 values equal, 2 without its last row, 3 in another unit, 4 pictures with loss.
    """

    rank: int
    how: str = ""
    psnr: float = math.inf


def same_bytes(one: Array, other: Array) -> bool:
    """Dtype, shape and every bit, NaN and the sign of zero included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def same_values(one: Array, other: Array) -> bool:
    """The same numbers in the same order, row by row, in whatever dtype and shape of a row."""
    if len(one) != len(other) or one.size != other.size or "U" in one.dtype.kind + other.dtype.kind:
        return len(one) == len(other) and one.shape == other.shape and bool((one == other).all())
    nan = one.dtype.kind == "f" and other.dtype.kind == "f"
    return np.array_equal(one.ravel(), other.ravel(), equal_nan=nan)


def psnr(one: Array, other: Array) -> float:
    """Of 8-bit pictures, over all rows; infinite for equal ones."""
    squared = [float(np.mean((a.astype(np.float32) - b) ** 2)) for a, b in zip(one, other, strict=True)]
    error = math.fsum(squared) / max(1, len(squared))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def are_pictures(one: Array, other: Array) -> bool:
    """Whether a difference between them can be measured as that of pictures."""
    return one.dtype == other.dtype == np.uint8 and one.shape == other.shape and one.ndim in (3, 4)


def fit(ours: Array, theirs: Array, lossy: bool) -> Fit | None:
    """How `theirs` holds `ours`; None if it does not. With `lossy`, pictures of the same shape are measured."""
    if same_bytes(ours, theirs):
        return Fit(0)
    if same_values(ours, theirs):
        changed = [] if ours.dtype == theirs.dtype else [f"{ours.dtype} as {theirs.dtype}"]
        changed += [] if ours.shape == theirs.shape else [f"rows {ours.shape[1:]} as {theirs.shape[1:]}"]
        return Fit(1, ", ".join(changed))
    if len(theirs) == len(ours) - 1 and (shorter := fit(ours[:-1], theirs, lossy)) and shorter.rank != 2:
        return Fit(max(2, shorter.rank), f"{shorter.how} without the last row".strip(), shorter.psnr)
    if len(ours) == 1 < len(theirs) and same_values(np.repeat(ours, len(theirs), 0), theirs):
        return Fit(1, "repeated in every step")
    if lossy and are_pictures(ours, theirs):
        return Fit(4, psnr=psnr(ours, theirs))
    return None


def in_unit(feature: Any, ours: Array, theirs: Array) -> Fit | None:
    """Our nanoseconds as seconds, our depth in counts as metres or millimetres: equal up to half a count or float32."""
    if 0 < len(theirs) == len(ours) - 1:
        shorter = in_unit(feature, ours[:-1], theirs)
        return Fit(3, f"{shorter.how} without the last row") if shorter else None
    units = {"s": 1e-9} if feature.name == "timestamp" else {"m": feature.scale_m, "mm": 1e3 * feature.scale_m}
    for unit, scale in units.items() if theirs.dtype.kind == "f" and ours.size == theirs.size else ():
        expected = ours.reshape(theirs.shape) * scale
        if scale and np.allclose(theirs, expected, rtol=1e-6, atol=scale / 2 if feature.scale_m else 1e-6):
            return Fit(3, f"in {unit}")
    return None


def shifted(ours: Array, theirs: Array) -> bool:
    """Whether pictures with loss fit better one row earlier or later: an error of time, not of coding."""
    if len(ours) < 3:
        return False
    here = psnr(ours[1:-1], theirs[1:-1])
    return max(psnr(ours[1:-1], theirs[:-2]), psnr(ours[1:-1], theirs[2:])) > here


def worst(fits: Iterable[Fit | None]) -> Fit | None:
    """Of one feature over all episodes; None if it is missing in one."""
    found = list(fits)
    known = [one for one in found if one is not None]
    if not found or len(known) < len(found):
        return None
    last = max(known, key=lambda one: one.rank)
    return Fit(last.rank, last.how, min(one.psnr for one in known))


def against_ours(dataset: Any, seen: Seen, dropped: Iterable[str], declared: Callable[[str], float]) -> Verdict:
    """Every feature of our dataset must be in what the peer saw, whatever its name there, or be declared as dropped.

    `declared`: feature -> the least PSNR that its pictures may have. A feature in `dropped` may also lack its last row
    alone. Pairs are found by content over all episodes.
    """
    verdict, gone = Verdict(), set(dropped)
    episodes = seen["episodes"]
    if len(episodes) != len(dataset):
        verdict.problems.append(f"{len(dataset)} episodes of ours, {len(episodes)} seen")
        return verdict
    used: set[str] = set()
    for feature in dataset.schema.features:
        holders = [number for number in range(len(dataset)) if feature.name not in dataset[number].absent]
        if feature.codec_name == "text" or not holders:
            verdict.lines.append(f"{feature.name}: text or in no episode; not compared")
            continue
        rows = [np.asarray(dataset[number][feature.name]) for number in holders]
        views = [episodes[number]["arrays"] for number in holders]
        key, found = _best(feature, rows, views)
        if found is None and feature.rows == "episode":
            said = [episodes[number]["about"].get(feature.name) for number in holders]
            key, found = "(metadata)", worst(map(_told, rows, said))
        _judge(verdict, feature.name, key, found, gone, declared(feature.name))
        if (
            found
            and found.rank == 4
            and any(shifted(r[: len(v[key])], v[key]) for r, v in zip(rows, views, strict=True))
        ):
            verdict.problems.append(f"{feature.name}: pictures of {key} fit better when shifted by a step")
        verdict.pairs |= {key: feature.name} if found else {}
        used |= {key, key.replace("obs/", "next_obs/", 1)} if found else set()
    keys = {key for episode in episodes for key in episode["arrays"]}
    if added := sorted(keys - used):
        verdict.lines.append(f"(of the export alone: {', '.join(added)})")
    return verdict


def _told(ours: Array, said: Any) -> Fit | None:
    """The one row of an episode in what the peer says of it: JSON, whose numbers keep every bit but not their dtype."""
    return Fit(1, "of the episode") if said is not None and np.array_equal(ours[0], np.asarray(said)) else None


def _best(feature: Any, rows: list[Array], views: list[Mapping[str, Array]]) -> tuple[str, Fit | None]:
    """The array of the peer that holds a feature best; equally good ones: the one whose name has most in common."""
    words = set(re.split(r"[._]", feature.name))
    best: tuple[tuple[int, float, int], str, Fit] | None = None
    for key in sorted(set.intersection(*(set(view) for view in views))):
        found = worst(_whole(feature, row, view, key) for row, view in zip(rows, views, strict=True))
        if found:
            order = (found.rank, -found.psnr, -len(words & set(re.split(r"[./_]", key))))
            best = min(best, (order, key, found), key=lambda one: one[0]) if best else (order, key, found)
    return (best[1], best[2]) if best else ("", None)


def _whole(feature: Any, ours: Array, view: Mapping[str, Array], key: str) -> Fit | None:
    """`fit`, with the last row of `next_obs/...` as the one that `obs/...` has not."""
    theirs, following = np.asarray(view[key]), view.get(key.replace("obs/", "next_obs/", 1))
    found = fit(ours, theirs, feature.is_image) or in_unit(feature, ours, theirs)
    if key.startswith("obs/") and following is not None and len(theirs) == len(ours) - 1:
        before, after = (
            fit(part, np.asarray(rows), feature.is_image) or in_unit(feature, part, np.asarray(rows))
            for part, rows in ((ours[:-1], theirs), (ours[1:], following))
        )
        if before and after:
            rank = max(before.rank, after.rank)
            return Fit(rank, f"{after.how} with next_obs".strip(), min(before.psnr, after.psnr))
    return found


def _judge(verdict: Verdict, name: str, key: str, found: Fit | None, gone: set[str], least: float) -> None:
    """Put one feature into the verdict."""
    if found is None:
        verdict.missing.append(name)
        verdict.lines.append(f"{name}: dropped, as declared" if name in gone else f"{name}: NOT FOUND")
        if name not in gone:
            verdict.problems.append(f"{name}: in no array of the peer, and not declared as dropped")
        return
    if found.rank == 4:
        verdict.lossy.append(found.psnr)
        if found.psnr < least - ROUNDING:
            verdict.problems.append(f"{name}: {found.psnr:.2f} dB in {key}, declared {least:.2f}")
    else:
        verdict.equal, verdict.near = verdict.equal + (found.rank < 3), verdict.near + (found.rank == 3)
    if "without the last row" in found.how and not gone & {name, FINAL}:
        verdict.problems.append(f"{name}: its final observation is not in {key}, and not declared as dropped")
    says = f"{found.psnr:.2f} dB" if found.rank == 4 else "rounded" if found.rank == 3 else "equal"
    verdict.lines.append(f"{name} = {key}: {says}{', ' + found.how if found.how else ''}")


def against_source(source: Seen, export: Seen, said: str, declared: Callable[[str], float]) -> Verdict:
    """What the same peer saw of the source and of the export, by name: all arrays, and what it says of the whole.

    `said`: all that conversion and export reported; what is missing must be named there.
    """
    verdict = Verdict()
    if len(source["episodes"]) != len(export["episodes"]):
        verdict.problems.append(f"{len(source['episodes'])} episodes in the source, {len(export['episodes'])} seen")
        return verdict
    pairs = list(zip(source["episodes"], export["episodes"], strict=True))
    names = sorted({key for one, other in pairs for key in (*one["arrays"], *other["arrays"])})
    for key in names:
        here = [key in one["arrays"] for one, _ in pairs]
        there = [key in other["arrays"] for _, other in pairs]
        if not any(there):
            if (other := _renamed(key, pairs)) and all(here):
                verdict.equal += 1
                verdict.lines.append(f"{key}: is {other} in the export, equal")
                continue
            verdict.missing.append(key)
            if key.rpartition("/")[2] not in said:
                verdict.problems.append(f"{key}: not in the export, and nobody said so")
        elif not any(here):
            verdict.lines.append(f"{key}: of the export alone")
        elif here != there:
            verdict.problems.append(f"{key}: is in other episodes than in the source")
        else:
            both = [(one["arrays"][key], other["arrays"][key]) for one, other in pairs if key in one["arrays"]]
            _pair(verdict, key, both, said, declared(key))
    facts = [(source["about"], export["about"], fact, fact) for fact in MATTERS.get(export["peer"], ())]
    for number, (one, other) in enumerate(pairs):
        keys = OF_EPISODES.get(export["peer"], ())
        facts += [(one["about"], other["about"], key, f"{key} of episode {number}") for key in keys]
    for before, after, fact, name in facts:
        if _comparable(fact, before.get(fact)) != _comparable(fact, after.get(fact)):
            into = verdict.lines if fact in said else verdict.problems
            into.append(f"{name}: {_differing(before.get(fact), after.get(fact))}")
    return verdict


def _renamed(key: str, pairs: list[tuple[Any, Any]]) -> str:
    """The array that the export alone has and that holds `key` bit by bit in every episode; empty if there is none."""
    candidates = sorted(set(pairs[0][1]["arrays"]) - set(pairs[0][0]["arrays"])) if pairs else []
    for name in candidates:
        both = [(one["arrays"].get(key), other["arrays"].get(name)) for one, other in pairs]
        if all(one is not None and other is not None and same_bytes(one, other) for one, other in both):
            return name
    return ""


def _comparable(fact: str, value: Any) -> Any:
    """Of spaces their leaves, sorted, since names may change; tasks in any order."""
    if fact == "spaces":
        return sorted(map(str, _leaves(value)))
    return sorted(value) if fact == "tasks" and value else value


def _leaves(space: Any) -> list[Any]:
    if isinstance(space, dict) and "type" in space:
        parts = space.get("subspaces")
        return [space] if parts is None else _leaves(parts)
    inner = space.values() if isinstance(space, dict) else space if isinstance(space, list) else ()
    return [leaf for part in inner for leaf in _leaves(part)]


def _pair(verdict: Verdict, key: str, both: list[tuple[Array, Array]], said: str, least: float) -> None:
    """One name over all episodes."""
    if all(same_bytes(one, other) for one, other in both):
        verdict.equal += 1
    elif all(are_pictures(one, other) for one, other in both):
        found = min(psnr(one, other) for one, other in both)
        verdict.lossy.append(found)
        verdict.lines.append(f"{key}: {found:.2f} dB against the source's")
        if found < least:
            verdict.problems.append(f"{key}: {found:.2f} dB against the source's, declared {least:.2f}")
        if any(shifted(one, other) for one, other in both):
            verdict.problems.append(f"{key}: pictures fit the source's better when shifted by a step")
    elif (
        "depth" in key
        and key.removeprefix("next_") in said
        and all(np.allclose(one, other, rtol=1e-6, atol=5.01e-4) for one, other in both)
    ):
        verdict.near += 1
        verdict.lines.append(f"{key}: within half a millimetre of the source's, as the conversion said")
    else:
        one, other = next((one, other) for one, other in both if not same_bytes(one, other))
        verdict.problems.append(
            f"{key}: {one.dtype} {one.shape} of the source is {other.dtype} {other.shape}"
            + (", equal in value" if same_values(one, other) else ", other values")
        )


def _differing(was: Any, became: Any) -> str:
    """Both, cut from a little before the place where their texts part."""
    one, other = str(was), str(became)
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, same - 30) if max(len(one), len(other)) > 60 else 0
    return f"{_short(one[start:])} became {_short(other[start:])}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
