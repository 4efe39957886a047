"""Recorder: a Gymnasium wrapper that writes every episode of an environment into a dataset."""

from __future__ import annotations

import hashlib
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from vrl3data import __version__, codecs, index, manifest, scan
from vrl3data.errors import ConfigError, DestinationError, SchemaError, locate
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.report import Reporter
from vrl3data.schema import PREVIEW, Array, Episode, Feature, Schema
from vrl3data.writer import Writer

WHOLE = ("image", "pixels", "rgb")
"""Keys of an observation that name no camera: they become the camera `main`."""
PACKAGES = ("gymnasium", "gymnasium-robotics", "mujoco", "pillow")


@dataclass(frozen=True)
class RecordOptions:
    """`session` tells recordings of one environment apart; left out, a new one is drawn, or that of a
    recording that is continued. `options` are facts about how the actions were made (policy, seed, ...)."""

    name: str = ""
    task: str = ""
    origin: str = "policy"
    codec: str = "raw"
    split: str = "train"
    license: str = "unknown"
    session: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    renderer: str = ""
    shard_size: int = SHARD_SIZE


class AlreadyRecorded(DestinationError):
    """The directory holds this very recording, finished."""


class Recorder(gymnasium.Wrapper):
    """`with Recorder(env, path) as env:` and use `env` as before.

    An episode is written and synced when it ends; one that is cut short by `reset` or `close` counts as
    truncated, one that an exception cuts short is dropped. Observations: uint8 pictures (height, width, 1 or 3)
    become `obs.image.<key>`, anything else `obs.<key>`; a bare array becomes `obs.image.main` or `obs.state`.
    An environment with a method `sim_state() -> {"sim.name": array}` has that recorded too. Recording into a
    directory with an unfinished recording of the same environment and session goes on with it.
    Raises ConfigError for spaces that are neither Box nor Discrete, DestinationError as Writer does.
    """

    def __init__(
        self, env: Any, path: Path | str, options: RecordOptions | None = None, reporter: Reporter | None = None
    ) -> None:
        super().__init__(env)
        self.options, self.path = options or RecordOptions(), Path(path)
        self._dt_ns = _step_ns(env)
        self._success = -1
        self._warned: set[str] = set()
        self._sim = getattr(env.unwrapped, "sim_state", None)
        self._names = _observation_names(env.observation_space)
        self._writer = Writer(self.path, self._spec(), reporter)
        if self._writer.complete:
            self._writer.close()
            with locate(path=self.path):
                raise AlreadyRecorded("the recording is already finished; choose another directory")
        self.episodes = len(self._writer.present)
        self._start(None, None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._cut_short()
        observation, info = self.env.reset(seed=seed, options=options)
        self._start(observation, seed)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self._running:
            raise ConfigError(
                "the episode has ended or not begun: call reset first; a wrapper that resets by itself goes around the "
                "Recorder, not into it"
            )
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._row("action", action)
        self._row("reward", reward)
        self._observe(observation)
        self._success = int(bool(info["is_success"])) if "is_success" in info else self._success
        self._success = int(bool(info["success"])) if "success" in info else self._success
        if terminated or truncated:
            self._write(terminated, truncated)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Write what is left and finish the dataset; then close the environment."""
        if not self._writer.complete:
            self._cut_short()
            if self._writer.present:
                self._writer.finish()
            self._writer.close()
        self.env.close()

    def __exit__(self, *args: Any) -> Literal[False]:
        if args and args[0] is not None:
            self._writer.close()
            self.env.close()
        else:
            self.close()
        return False

    # -- rows of the running episode ---------------------------------------------------------------------------

    def _start(self, observation: Any, seed: int | None) -> None:
        self._rows: dict[str, list[Any]] = {name: [] for name in self._writer.spec.schema.names}
        self._seed = seed
        self._success = -1
        self._running = observation is not None
        if self._running:
            self._observe(observation)

    def _observe(self, observation: Any) -> None:
        for key, name in self._names.items():
            if key and key not in observation:
                raise SchemaError(f"the observation has no {key!r}, which its space promises")
            self._row(name, observation[key] if key else observation)
        for name, value in (self._sim() if self._sim else {}).items():
            self._row(name, value)

    def _row(self, name: str, value: Any) -> None:
        """Keep one row; SchemaError, with feature and step, if it is not of the shape that the space promises."""
        feature, rows = self._writer.spec.schema[name], self._rows[name]
        with locate(feature=name, step=len(rows), episode=f"{self.episodes:06d}"):
            try:
                array = np.array(value, dtype=feature.dtype)
            except (TypeError, ValueError) as error:
                raise SchemaError(f"expected {feature.dtype} of shape {feature.shape}: {error}") from error
            if value is None or array.shape != feature.shape:
                raise SchemaError(f"expected shape {feature.shape}, found {None if value is None else array.shape}")
        if array.dtype.kind == "f" and name not in self._warned and not np.isfinite(array).all():
            self._warned.add(name)
            warnings.warn(f"{name} is NaN or infinite at step {len(rows)} of episode {self.episodes:06d}", stacklevel=4)
        rows.append(array)

    def _cut_short(self) -> None:
        if self._running and self._rows["reward"]:
            self._write(False, True)
        self._running = False

    def _write(self, terminated: bool, truncated: bool) -> None:
        length = len(self._rows["reward"])
        values: dict[str, Array] = {name: np.stack(rows) for name, rows in self._rows.items() if rows}
        if self._dt_ns:
            values["timestamp"] = np.arange(length + 1, dtype=np.int64) * self._dt_ns
        self._writer.write(
            Episode(
                name=f"{self.episodes:06d}",
                values=values,
                length=length,
                final_observation=True,
                terminated=int(terminated),
                truncated=int(truncated),
                success=self._success,
                task=self.options.task,
                origin=self.options.origin,
                split=self.options.split,
                source_meta={} if self._seed is None else {"seed": self._seed},
            )
        )
        self.episodes += 1
        self._running = False

    # -- what the dataset will hold ----------------------------------------------------------------------------

    def _spec(self) -> DatasetSpec:
        options, env_name = self.options, _env_name(self.env)
        session = options.session or _session_of(self.path) or uuid.uuid4().hex
        provenance = Provenance(
            converter="record",
            source_name=env_name,
            source_identity=hashlib.sha256(f"{env_name} {session}".encode()).hexdigest(),
            options={"env": env_name, "session": session, "split": options.split, **options.options},
            versions=_versions(),
            shard_size=options.shard_size,
        )
        return DatasetSpec(self._schema(), options.name or env_name.lower(), provenance, options.license)

    def _schema(self) -> Schema:
        observed = [self._observation(key, name) for key, name in self._names.items()]
        sim = []
        if self._sim:
            self.env.reset(seed=0)
            sim = [Feature(name, "float64", np.shape(value), "state") for name, value in self._sim().items()]
        clock = [Feature("timestamp", "int64", rows="state", unit="ns")] if self._dt_ns else []
        features = (*observed, _action(self.env.action_space), Feature("reward", "float64"),
                    *clock, *sim)  # fmt: skip
        cameras = any(feature.is_image for feature in features)
        return Schema("episodes", features, (PREVIEW,) if cameras else ())

    def _observation(self, key: str, name: str) -> Feature:
        space = self.env.observation_space
        part: Any = space[key] if isinstance(space, gymnasium.spaces.Dict) else space
        feature = Feature(name, part.dtype.name, part.shape, "state")
        if not feature.is_image:
            return feature
        feature = Feature(name, "uint8", part.shape, "state", color="rgb" if part.shape[-1] == 3 else "gray",
                          flip="none", renderer=self.options.renderer)  # fmt: skip
        return codecs.describe(feature, self.options.codec)


def _observation_names(space: Any) -> dict[str, str]:
    """Key of the observation -> name of the feature; the key of a bare array is empty."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _feature_name(key, part) for key, part in space.spaces.items()}
    return {"": _feature_name("", space)}


def _feature_name(key: str, space: Any) -> str:
    if not isinstance(space, (gymnasium.spaces.Box, gymnasium.spaces.Discrete)):
        raise ConfigError(f"observation {key!r}: expected a Box or Discrete space, found {type(space).__name__}")
    image = space.dtype == np.uint8 and len(space.shape or ()) == 3
    plain = key.lower().removeprefix("image.") if image else key.lower()
    word = "".join(c if c.isalnum() else "_" for c in plain)
    if image:
        return f"obs.image.{'main' if word in ('', *WHOLE) else word}"
    return f"obs.{word or 'state'}"


def _action(space: Any) -> Feature:
    if isinstance(space, gymnasium.spaces.Discrete):
        return Feature("action", "int64", bounds=(int(space.start), int(space.start + space.n - 1)))
    if not isinstance(space, gymnasium.spaces.Box):
        raise ConfigError(f"expected a Box or Discrete action space, found {type(space).__name__}")
    low, high = (tuple(float(v) for v in side.ravel()) for side in (space.low, space.high))
    bounds = (low, high) if np.isfinite([low, high]).all() else None
    return Feature("action", np.dtype(space.dtype).name, tuple(space.shape), bounds=bounds)


def _step_ns(env: Any) -> int:
    """Nanoseconds of one step; 0 where the environment knows no time."""
    own = env.get_wrapper_attr("dt") if env.has_wrapper_attr("dt") else None
    seconds = own or 1 / (env.unwrapped.metadata.get("render_fps") or np.inf)
    return round(float(seconds) * 1e9)


def _env_name(env: Any) -> str:
    return str(env.spec.id) if getattr(env, "spec", None) is not None else type(env.unwrapped).__name__


def _session_of(path: Path) -> str:
    """The session of an unfinished recording in `path`."""
    found = manifest.read(path) if path.is_dir() else None
    provenance = found.provenance if found else {}
    for part in index.shard_files(path) if path.is_dir() and found is None else []:
        provenance = scan.scan(part).head.get("provenance", {})
    return str(provenance.get("options", {}).get("session", ""))


def _versions() -> dict[str, str]:
    versions = {"vrl3data": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
