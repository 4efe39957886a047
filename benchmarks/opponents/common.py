"""The windows that every side hands out, and what a batch of them must contain. Needs nothing but NumPy.

Two layouts of images. frames: (B, 3, H, W, 3), stacks of frames as cameras and our shards have them. channels:
(B, 9, H, W), what a convolution takes; our replay transposes frames to it, most opponents store planes from the start.
Every opponent stores the layout that is asked for.
Legend: E episodes, B windows of a batch, K frames of a stack, N n-step length, H x W pixels, 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Batch = dict[str, Array]
Layout = Literal["frames", "channels"]
BATCH, FRAMES, STEPS, GAMMA = 256, 3, 3, 0.99
SPAN = FRAMES + STEPS
"""Frames of one window: FRAMES of `obs`, the last FRAMES of the same span are those of `next_obs`."""
IMAGES = ("obs", "next_obs")
COLUMNS = ("frames", "sensor", "action", "reward")


@dataclass(frozen=True)
class Windows:
    """Windows that start at step t_B of episode_B."""

    episode_B: Array
    t_B: Array

    def __len__(self) -> int:
        return len(self.t_B)

    def pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self.episode_B.tolist(), self.t_B.tolist(), strict=True)


@dataclass(frozen=True)
class Source:
    """Episodes in memory, for sides that write their own files from them.

    frames uint8 (T, H, W, 3), sensor float32 (T, S), action float32 (T, A), reward float32 (T,), each a list over
    episodes. `layout` is that of the batches to make.
    """

    frames: list[Array]
    sensor: list[Array]
    action: list[Array]
    reward: list[Array]
    layout: Layout = "frames"

    def save(self, path: Path) -> None:
        named = {f"{name}.{e}": value for name in COLUMNS for e, value in enumerate(getattr(self, name))}
        np.savez(path, layout=self.layout, **named)

    @classmethod
    def load(cls, path: Path) -> Source:
        with np.load(path) as archive:
            count = sum(name.startswith("frames.") for name in archive.files)
            layout: Layout = "channels" if archive["layout"] == "channels" else "frames"
            columns = {name: [archive[f"{name}.{e}"] for e in range(count)] for name in COLUMNS}
        return cls(**columns, layout=layout)

    @property
    def counts_E(self) -> Array:
        """(E,) windows of each episode: whole ones only, as DrQ-v2 takes them."""
        return np.array([max(0, len(frames) - STEPS) for frames in self.frames])

    @property
    def stored(self) -> list[Array]:
        """Frames as a side that chooses stores them, so that no batch is transposed: channels (T, 3, H, W)."""
        if self.layout == "frames":
            return self.frames
        return [np.ascontiguousarray(frames.transpose(0, 3, 1, 2)) for frames in self.frames]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one stored frame."""
        height, width, colours = self.frames[0].shape[1:]
        return (height, width, colours) if self.layout == "frames" else (colours, height, width)

    def small(self) -> Small:
        sensor, action, reward = (np.concatenate(values) for values in (self.sensor, self.action, self.reward))
        return Small(sensor, action, reward, self.starts_E)

    @property
    def starts_E(self) -> Array:
        lengths_E = np.array([len(frames) for frames in self.frames])
        return np.cumsum(lengths_E) - lengths_E


@dataclass(frozen=True)
class Small:
    """Everything but images, in memory: where the best setting of most sides has it."""

    sensor: Array
    action: Array
    reward: Array
    starts_E: Array

    def gather(self, windows: Windows) -> Batch:
        rows_B = self.starts_E[windows.episode_B] + windows.t_B
        return vectors(
            self.sensor[rows_B], self.sensor[rows_B + STEPS], self.action[rows_B],
            self.reward[rows_B[:, None] + np.arange(STEPS)],
        )  # fmt: skip


def vectors(sensor_BS: Array, next_sensor_BS: Array, action_BA: Array, reward_BN: Array) -> Batch:
    """The part of a batch that is not images. Every window is whole and none ends in a terminal state."""
    size = len(action_BA)
    return {
        "sensor": sensor_BS, "next_sensor": next_sensor_BS, "action": action_BA,
        "return": reward_BN @ (GAMMA ** np.arange(STEPS)).astype(np.float32),
        "discount": np.full(size, GAMMA**STEPS, np.float32), "mask": np.ones(size, np.float32),
    }  # fmt: skip


def split_span(span_BK: Array, layout: Layout) -> Batch:
    """Spans of stored frames (B, SPAN, ...) -> obs and next_obs: views."""
    found = {"obs": span_BK[:, :FRAMES], "next_obs": span_BK[:, -FRAMES:]}
    if layout == "frames":
        return found
    size, _, colours, height, width = span_BK.shape
    return {name: stack.reshape(size, FRAMES * colours, height, width) for name, stack in found.items()}


def place(counts_E: Array, number_B: Array) -> Windows:
    """Windows numbered through all episodes."""
    ends_E = np.cumsum(counts_E)
    episode_B = np.searchsorted(ends_E, number_B, side="right")
    return Windows(episode_B, number_B - (ends_E - counts_E)[episode_B])


def draw(counts_E: Array, rng: np.random.Generator) -> Windows:
    """A batch of windows, every one alike, with replacement."""
    return place(counts_E, rng.integers(0, int(counts_E.sum()), BATCH))


class Side:
    """One side: makes its files in `folder`, then hands out batches of the windows it is given."""

    lossless = True
    versions: tuple[str, ...] = ()
    """Packages whose versions count."""

    def __init__(self, source: Source, folder: Path, setting: str) -> None:
        self.counts_E, self.layout, self.row_shape = source.counts_E, source.layout, source.row_shape

    def batch(self, windows: Windows) -> Batch:
        raise NotImplementedError

    def empty_spans(self) -> Array:
        """Of a batch, to be filled with stored frames."""
        return np.empty((BATCH, SPAN, *self.row_shape), np.uint8)

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Windows, Batch]]:
        """Endless; a side with an order of its own overrides this and says which windows it took."""
        while True:
            windows = draw(self.counts_E, rng)
            yield windows, self.batch(windows)


def expected(source: Source, windows: Windows) -> Batch:
    """The batch, one window after the other, from the definition."""
    rows: list[Batch] = []
    for episode, t in windows.pairs():
        frames, reward = source.frames[episode], source.reward[episode]
        row: Batch = {}
        for name, end in (("obs", t), ("next_obs", t + STEPS)):
            stack = [frames[max(0, end - back)] for back in range(FRAMES - 1, -1, -1)]
            planes = [frame.transpose(2, 0, 1) for frame in stack]
            row[name] = np.stack(stack) if source.layout == "frames" else np.concatenate(planes)
        row["sensor"], row["next_sensor"] = source.sensor[episode][t], source.sensor[episode][t + STEPS]
        row["action"] = source.action[episode][t]
        returns = sum(GAMMA**step * float(reward[t + step]) for step in range(STEPS))
        for name, number in (("return", returns), ("discount", GAMMA**STEPS), ("mask", 1)):
            row[name] = np.asarray(number, np.float32)
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def psnr(one: Array, other: Array) -> float:
    """Of uint8 images, in dB."""
    error = np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def check(side: Side, source: Source, windows: Windows, batch: Batch) -> str:
    """Compare a batch with the definition: "equal", or the PSNR of a lossy side. AssertionError if it is another."""
    wanted = expected(source, windows)
    assert set(batch) == set(wanted), f"found {sorted(batch)}"
    for name, value in wanted.items():
        assert batch[name].dtype == value.dtype and batch[name].shape == value.shape, (
            f"{name} is {batch[name].dtype} {batch[name].shape}, expected {value.dtype} {value.shape}"
        )
        if name in ("return", "discount"):
            assert np.allclose(batch[name], value, rtol=1e-5, atol=1e-6), f"{name} differs"
        elif name not in IMAGES or side.lossless:
            assert np.array_equal(batch[name], value), f"{name} differs"
    if side.lossless:
        return "equal"
    return f"PSNR {aligned_psnr(source, windows, batch['next_obs'], wanted['next_obs']):.1f} dB"


def aligned_psnr(source: Source, windows: Windows, found: Array, wanted: Array) -> float:
    """PSNR of the images; AssertionError if the frames before or after resemble them more."""
    value = psnr(found, wanted)
    for shift in (-1, 1):
        inside = (windows.t_B + shift >= 0) & (windows.t_B + shift < source.counts_E[windows.episode_B])
        moved = expected(source, Windows(windows.episode_B[inside], windows.t_B[inside] + shift))["next_obs"]
        assert psnr(found[inside], moved) < value, f"frames are shifted by {shift}"
    assert value > 25, f"PSNR {value:.1f} dB"
    return value
