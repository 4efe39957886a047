"""Checks of cameras within one episode: blank, frozen, held and suddenly turned frames.

Letters: N frames, G cells, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from vrl3data.checks.finding import Finding
from vrl3data.checks.frames import Frames
from vrl3data.checks.observed import Observed
from vrl3data.schema import Array

BLANK_SPREAD = 1.0
"""Standard deviation over the cells of a thumbnail: a lens cap with noise has 0.5, the dullest frame of relocate 10."""
FLAT_DEPTH = 0.002
"""The same for depth, as a share of the depth: its unit is free."""
HELD_CHANGE = 0.02
"""A frame is held if it changes by less than this share of the usual change; a lossy codec does not keep 0."""
MOVING = 0.3
"""The body moves if it moves by more than this share of its fast steps (90th percentile) in the episode."""
HELD_SHARE = 0.1
"""Of the steps at which the body moves: the share that the issue of held frames is about."""
FROZEN_MOVES = 8
"""Held frames in a row while the body moves: the camera stands still rather than lags."""
CUT_TIMES = 4.0
"""A change between frames this many times the 90th percentile of an episode is a cut. Clean sets: 3.3 (relocate)."""
ABRUPT_TIMES = 8.0

TURNS: dict[str, Callable[[Array], Array]] = {
    "upside down": lambda thumbs: thumbs[..., ::-1, :, :],
    "mirrored": lambda thumbs: thumbs[..., :, ::-1, :],
    "rotated by 180 degrees": lambda thumbs: thumbs[..., ::-1, ::-1, :],
    "rotated by 90 degrees": lambda thumbs: np.rot90(thumbs, 1, axes=(-3, -2)),
    "rotated by 270 degrees": lambda thumbs: np.rot90(thumbs, 3, axes=(-3, -2)),
    "transposed": lambda thumbs: np.swapaxes(thumbs, -3, -2),
}
COLORS: dict[str, Callable[[Array], Array]] = {
    "with red and blue exchanged": lambda thumbs: thumbs[..., ::-1],
    "as a negative": lambda thumbs: 255 - thumbs,
}


def blank_frames(episode: Observed) -> Iterator[Finding]:
    """Frames without any picture: black, white, or of one colour."""
    for name, frames in episode.cameras.items():
        blank = without_picture(episode, name)
        if not blank.any():
            continue
        step = int(blank.argmax())
        level = float(frames.level_N[step])
        depth = episode.schema[name].dtype != "uint8"
        kind = "without a picture" if depth else "black" if level < 16 else "white" if level > 239 else "of one colour"
        message = f"{int(blank.sum())} of {len(blank)} frames are {kind}"
        yield Finding("blank_frames", message, episode.at(name, step), "warn")


def without_picture(episode: Observed, name: str) -> Array:
    """Which frames of a camera show nothing."""
    frames = episode.cameras[name]
    pixels = episode.schema[name].dtype == "uint8"
    blank: Array = frames.spread_N <= (BLANK_SPREAD if pixels else FLAT_DEPTH * np.abs(frames.level_N))
    return blank


def held(episode: Observed, frames: Frames) -> tuple[Array, Array, bool]:
    """(steps after which the frame is the same as before, steps at which the body moves, whether that is known)."""
    change = frames.change_N
    live = change[change > 0]
    still = change <= (HELD_CHANGE * float(np.median(live)) if len(live) else 0.0)
    motion = episode.motion()[: len(change)]
    if len(motion) < len(change) or not motion.any():
        return still, np.ones(len(still), bool), False
    return still, motion > MOVING * np.percentile(motion, 90), True


def frozen_camera(episode: Observed) -> Iterator[Finding]:
    """A camera that shows one and the same frame for long while the body moves."""
    for name, frames in episode.cameras.items():
        still, moving, known = held(episode, frames)
        blank = without_picture(episode, name)
        for start, stop in _stretches(still):
            enough = FROZEN_MOVES if known else max(FROZEN_MOVES, len(still) // 2)
            if moving[start:stop].sum() >= enough and not blank[start]:
                message = f"{stop - start + 1} frames in a row are the same" + (
                    " while the body moves" if known else ""
                )
                yield Finding("frozen_camera", message, episode.at(name, start), "warn")
                break


def held_frames(episode: Observed) -> Iterator[Finding]:
    """More than 10 % of frames repeat the one before although the body moves."""
    for name, frames in episode.cameras.items():
        still, moving, known = held(episode, frames)
        lone = still & moving & ~without_picture(episode, name)[1:]
        for start, stop in _stretches(still):
            if moving[start:stop].sum() >= FROZEN_MOVES:
                lone[start:stop] = False  # `frozen_camera` speaks of these
        share = lone.sum() / max(1, moving.sum())
        if lone.sum() >= 3 and share > (HELD_SHARE if known else 0.5):
            message = f"{100 * share:.0f} % of frames repeat the one before while the body moves"
            yield Finding("held_frames", message, episode.at(name, int(lone.argmax()) + 1), "warn")


def repeated_edge(episode: Observed, frames: Frames) -> str:
    """`first` or `last` if that frame, and no other, repeats its neighbour while the body moves; else nothing."""
    same = frames.change_N == 0
    motion = episode.motion()[: len(same)]
    if len(same) < 8 or len(motion) < len(same) or same[1:-1].any() or same.sum() != 1:
        return ""
    edge = int(same.argmax())
    return ("last" if edge else "first") if motion[edge] > 0.1 * np.percentile(motion, 90) else ""


def _stretches(mask_N: Array) -> list[tuple[int, int]]:
    """[start, stop) of each stretch of trues, the longest first."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask_N, False]))
    pairs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return sorted(pairs, key=lambda pair: pair[0] - pair[1])


def cuts(episode: Observed, name: str) -> list[int]:
    """Frames that differ from the one before far more than is usual in this episode."""
    change = episode.cameras[name].change_N
    if len(change) < 8:
        return []
    usual = max(float(np.percentile(change, 90)), 0.5)
    return [int(step) + 1 for step in np.flatnonzero(change > CUT_TIMES * usual)]


def turned(episode: Observed) -> Iterator[Finding]:
    """A camera that turns, mirrors, changes colours or place, or shows something else, from one frame to the next."""
    for name, frames in episode.cameras.items():
        thumbs, blank = frames.thumbs_NGGC, without_picture(episode, name)
        for step in cuts(episode, name)[:20]:
            apart = _rms(thumbs[step] - thumbs[step - 1])
            found = _best_turn(episode, name, step)
            back = step + 1 < len(thumbs) and _rms(thumbs[step + 1] - thumbs[step - 1]) < 0.5 * apart
            if blank[step - 1 : step + 1].any():
                continue  # `blank_frames` speaks of it
            if found and found[1] < 0.4 * apart:
                message = f"from this frame on the picture is {found[0][1]}"
                yield Finding(found[0][0], message, episode.at(name, step), "warn")
            elif back:
                message = "this frame is unlike both of its neighbours, which are alike"
                yield Finding("appearance", message, episode.at(name, step), "warn")
            elif frames.change_N[step - 1] > ABRUPT_TIMES * max(float(np.percentile(frames.change_N, 90)), 0.5):
                message = "from one frame to the next the picture becomes another one"
                yield Finding("appearance", message, episode.at(name, step), "warn")
            else:
                continue
            break


def _best_turn(episode: Observed, name: str, step: int) -> tuple[tuple[str, str], float] | None:
    """The change that best makes the frame like the one before, and how far it is from that then."""
    thumbs = episode.cameras[name].thumbs_NGGC
    before, after = thumbs[step - 1], thumbs[step]
    tried = {("orientation", what): turn(after) for what, turn in TURNS.items()}
    if after.shape[-1] == 3:
        tried |= {("channel_order", what): change(after) for what, change in COLORS.items()}
    for other, frames in episode.cameras.items():
        seen = frames.thumbs_NGGC
        if other != name and seen.shape[-1] == after.shape[-1] and len(seen) > step:
            tried["swapped_cameras", f"that of {other}"] = seen[step]
    distances = {key: _rms(changed - before) for key, changed in tried.items()}
    if not distances:
        return None
    best = min(distances, key=lambda key: distances[key])
    return best, distances[best]


def _rms(difference: Array) -> float:
    return float(np.sqrt((difference.astype(np.float64) ** 2).mean()))
