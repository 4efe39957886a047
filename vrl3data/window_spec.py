"""What a window over episodes holds and where its rows come from: the options of `windows`, and which fit a dataset.

Legend: B windows of a batch, K frames of a stack, L steps of a chunk or sequence, M ordered frames, H x W pixels,
C channels, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.loader import CACHE_BYTES, physical_memory, row_bytes
from vrl3data.order import OrderSpec
from vrl3data.schema import Schema

GOALS = ("geometric", "uniform", "random", "final")
KEYS = ("episode", "step", "return", "discount", "mask", "action_mask", "state_mask", "step_mask", "goal.episode",
        "goal.step", "goal.mask", "ordered.step", "ordered.mask", "valid", "dataset")  # fmt: skip
PREFIXES = ("next.", "goal.", "ordered.", "first.", "last.")
RAM_SHARE = 0.25
"""Storage `auto` decodes into memory what takes at most this share of it."""


@dataclass(frozen=True)
class WindowSpec(OrderSpec):
    """What a window at step t of an episode holds. Row shapes and dtypes of features are those of the schema.

    Always: `episode` (B,) int64, its position in the dataset, and `step` (B,) int64, t. Each of `cameras` (state
    features; None: all pictures) as `<camera>` (B, K, H, W, C): the `frame_stack` frames that end at t, `frame_stride`
    steps apart, oldest first, the episode's first repeated before it. Each of `features` (None: all others) as
    `<feature>` (B, ...). The sampling primitives, which may be joined:

    - one frame, also for two augmentations of it: nothing more.
    - a pair of consecutive frames, and the batch of reinforcement learning: `n_step` n gives `next.<camera>` and
      `next.<state feature>` of t + k, `return` and `discount` float32 (B,) and `mask` bool (B,), as
      `sampling.NStep` says: k = n or what is left, discount 0 after a terminal state.
    - goals: `goals` names a kind, or maps kinds to weights. `goal.<camera>`, `goal.<state feature>`, `goal.episode`,
      `goal.step`; geometric (of parameter 1 - `goal_discount`) or uniform over the states after t, random over all
      states of all episodes, final the last of the episode. `goal.mask` False: t is the last, nothing lies ahead.
    - ordered frames: `ordered` M gives `ordered.<camera>` (B, M, K, H, W, C), different states of the episode in the
      order of time, `ordered.step` (B, M) and `ordered.mask` (B,), False where it has fewer than M. `ends` gives
      `first.<camera>` and `last.<camera>`.
    - a subsequence: `sequence` L gives every feature an axis L after B, from t on; past the end the last row is
      repeated and `state_mask`, `step_mask` (B, L) are False.
    - an action chunk: `action_horizon` L gives the action as (B, L, A), with `action_mask` (B, L) in the same way.

    Windows start at every step that an n-step return can be learned from; without `n_step` at every step, and at every
    state if no step feature is asked for. `whole` leaves out those that the end of their episode cuts short. No window
    crosses it. The order is that of OrderSpec.
    """

    cameras: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    action: str = "action"
    reward: str = "reward"
    frame_stack: int = 1
    frame_stride: int = 1
    n_step: int | None = None
    discount: float = 0.99
    action_horizon: int | None = None
    sequence: int | None = None
    goals: str | Mapping[str, float] | None = None
    goal_discount: float = 0.99
    ordered: int = 0
    ends: bool = False
    whole: bool = False

    @property
    def goal_weights(self) -> dict[str, float]:
        """Kinds of goals with their shares."""
        found = {self.goals: 1.0} if isinstance(self.goals, str) else dict(self.goals or {})
        total = sum(found.values())
        return {kind: weight / total for kind, weight in sorted(found.items())} if total else {}

    @property
    def also(self) -> tuple[str, ...]:
        """What is read besides cameras and features."""
        reward, action = (self.reward,) if self.n_step else (), (self.action,) if self.action_horizon else ()
        return (*reward, *action)

    def check(self) -> None:
        """ConfigError for what cannot be."""
        super().check()
        counts = {"frame_stack": self.frame_stack, "frame_stride": self.frame_stride, "n_step": self.n_step,
                  "action_horizon": self.action_horizon, "sequence": self.sequence}  # fmt: skip
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, found {value}")
        if self.ordered < 0:
            raise ConfigError(f"ordered: expected at least 0, found {self.ordered}")
        for name, share in (("discount", self.discount), ("goal_discount", self.goal_discount)):
            if not 0 <= share <= 1 or (name == "goal_discount" and share == 1):
                raise ConfigError(f"{name}: expected 0 to {'below ' * (name != 'discount')}1, found {share}")
        if self.sequence is not None and (self.n_step is not None or self.action_horizon is not None):
            raise ConfigError("sequence gives every step of the window; leave n_step and action_horizon out")
        weights = {self.goals: 1.0} if isinstance(self.goals, str) else dict(self.goals or {})
        for kind, weight in weights.items():
            if kind not in GOALS:
                raise ConfigError(f"goals {kind!r}{did_you_mean(kind, GOALS)}")
            if not weight > 0:
                raise ConfigError(f"goals {kind}: expected a weight above 0, found {weight}")


@dataclass(frozen=True)
class StorageSpec:
    """Where rows are. Changes nothing in the batches, but that those of a device are torch tensors.

    `storage`: mmap, ram, stream, a device of torch, or auto: mmap for raw pictures, ram for coded ones that take at
    most a quarter of the memory, else stream. `stream` reads and decodes when a batch is made and keeps the last
    `cache_bytes` of decoded units; for sets larger than memory, or remote ones, give `shuffle_buffer` with it, so that
    neighbours are read together.
    """

    storage: str = "auto"
    split: str | None = None
    positions: tuple[int, ...] | None = None
    cache_bytes: int = CACHE_BYTES


def split_options(options: Mapping[str, Any], kinds: Sequence[type[Any]]) -> list[dict[str, Any]]:
    """`options` by the dataclass that has them; lists become tuples. ConfigError for a name that none has."""
    known = [{field.name for field in fields(kind)} for kind in kinds]
    for name in options:
        if not any(name in names for names in known):
            raise ConfigError(f"unknown option {name!r}{did_you_mean(name, set().union(*known))}")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return [{name: value for name, value in plain.items() if name in names} for names in known]


def resolved(spec: WindowSpec, schema: Schema) -> WindowSpec:
    """`spec` with the names of all its cameras and features. ConfigError for those that cannot be taken."""
    if schema.kind != "episodes":
        raise ConfigError("expected a dataset of episodes, found one of images; those have ds.images()")
    cameras = spec.cameras
    if cameras is None:
        cameras = tuple(f.name for f in schema.cameras if f.rows == "state")
    elsewhere = (*cameras, spec.action) if spec.action_horizon else cameras
    given = spec.features
    if given is None:
        given = tuple(f.name for f in schema.features if f.rows in ("step", "state") and not f.is_image)
    names = tuple(name for name in given if name not in elsewhere)
    needed = (
        *cameras,
        *names,
        *([spec.reward] if spec.n_step else []),
        *([spec.action] if spec.action_horizon else []),
    )
    for name in needed:
        if name not in schema:
            raise ConfigError(f"no feature {name!r}{did_you_mean(name, schema.names)}")
        if schema[name].rows not in ("step", "state"):
            raise ConfigError(f"{name} has rows {schema[name].rows!r}, not step or state")
        if name in KEYS or any(prefix + other == name for prefix in PREFIXES for other in needed):
            raise ConfigError(f"feature {name!r} has the name of another part of a batch; rename the feature")
    for name, rows in [*((name, "state") for name in cameras), *((spec.reward, "step") for _ in needed if spec.n_step)]:
        if schema[name].rows != rows:
            raise ConfigError(f"{name}: expected rows {rows!r}, found {schema[name].rows!r}")
    if not needed:
        raise ConfigError("no cameras and no features were chosen")
    return replace(spec, cameras=tuple(cameras), features=names)


def choose_storage(dataset: Dataset, spec: WindowSpec) -> str:
    """What `auto` means for this dataset."""
    if dataset.remote:
        return "stream"
    pictures = [dataset.schema[name] for name in spec.cameras or () if len(dataset.schema[name].shape) == 3]
    if all(feature.codec == "raw" for feature in pictures):
        return "mmap"
    states = dataset.manifest.steps + len(dataset)
    need = states * sum(row_bytes(feature) for feature in pictures)
    return "ram" if need <= RAM_SHARE * physical_memory() else "stream"
