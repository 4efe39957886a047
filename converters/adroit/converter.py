"""Adroit DAPG pickles -> rendered episodes: every recorded step is set in the simulator and drawn, never replayed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters.adroit import pickles
from converters.adroit.pickles import Demonstration
from converters.base import Plan, Unit, check_file, check_shared, file_sha256, read_bytes, source_identity
from vrl3data import codecs
from vrl3data.envs import adroit, gl
from vrl3data.errors import ConfigError, SourceError, locate
from vrl3data.manifest import SHARD_SIZE, DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema

RECOGNISED_BYTES = 16 * 1024**2
"""How much of a file is looked at: more than one episode."""
STEP_NS = 10_000_000
"""100 Hz: five substeps of 2 ms."""
KNOWN_FILES = {
    "d6ec9a090261f901e5c9bf10082799e30c8d34c3f28aef4026e492a1aefc96c3": ("human", "apache-2.0"),
}
"""Published files by sha256: who acted in them, and their licence (hand_dapg, door-v0_demos.pickle)."""


@dataclass(frozen=True)
class AdroitOptions:
    """`camera`: empty for those VRL3 uses. `rewards`: which go into `reward`; the recorded ones are always kept."""

    task: Literal["auto", "door", "hammer", "pen", "relocate"] = "auto"
    camera: tuple[str, ...] = ()
    image_size: int = 84
    look: Literal["vrl3", "gymnasium"] = "vrl3"
    render: Literal["exact", "fast"] = "exact"
    rewards: Literal["recorded", "vrl3", "gymnasium"] = "recorded"
    origin: Literal["auto", "human", "policy"] = "auto"
    codec: str = "raw"
    split: str = "train"
    name: str = ""
    license: str = "auto"
    shard_size: int = SHARD_SIZE


class AdroitConverter:
    """DAPG pickles of the Adroit tasks door, hammer, pen and relocate, rendered as VRL3 saw them."""

    Options = AdroitOptions

    def __init__(self, sources: Sequence[Path], options: AdroitOptions) -> None:
        self.sources, self.options = tuple(Path(source) for source in sources), options
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"adroit: expected pickle files with different names, found {names}")
        check_shared(options.split, options.shard_size)
        if len(set(options.camera)) != len(options.camera):
            raise ConfigError(f"camera: each can be given once, found {', '.join(options.camera)}")
        if not 16 <= options.image_size <= 1024:
            raise ConfigError(f"image_size: expected 16 to 1024, found {options.image_size}")
        self.task = ""
        self._scene: adroit.AdroitScene | None = None

    @staticmethod
    def recognises(source: Path) -> bool:
        """A pickle of protocol 2 or later that speaks of an initial state."""
        if not source.is_file():
            return False
        with source.open("rb") as file:
            data = file.read(RECOGNISED_BYTES)
        return data[:1] == b"\x80" and b"init_state_dict" in data

    def plan(self) -> Plan:
        units, sizes, origins, licenses, problems = [], [], set(), set(), []
        for source in self.sources:
            check_file(source)
            try:
                with locate(path=source.name):
                    episodes = _load(source)
                    self._set_task(_first_whole(episodes))
            except SourceError as error:
                problems.append((source.name, error))
                continue
            sha256 = file_sha256(source)
            origin, license_ = KNOWN_FILES.get(sha256, ("unknown", "unknown"))
            origins.add(origin if self.options.origin == "auto" else self.options.origin)
            licenses.add(license_ if self.options.license == "auto" else self.options.license)
            sizes.append((source.name, source.stat().st_size))
            payload = (source, sha256, origin if self.options.origin == "auto" else self.options.origin)
            units += [Unit(f"{source.stem}/{n:04d}", (*payload, n)) for n in range(len(episodes))]
        if not units:
            raise problems[0][1]
        notes = ["origin unknown: say --origin human or --origin policy"] if "unknown" in origins else []
        license_ = licenses.pop() if len(licenses) == 1 else "unknown"
        spec = self._spec(sizes, license_, "-".join(sorted(origins)))
        files = {source.name: source for source in self.sources}
        return Plan(spec, units, len(units), notes=tuple(notes), find=files.__getitem__, problems=tuple(problems))

    def read(self, unit: Unit) -> Episode:
        source, sha256, origin, number = unit.payload
        with locate(path=source.name):
            demo = pickles.demonstration(_load(source)[number])
            self._set_task(demo)
            return self._episode(unit.name, demo, source.name, sha256, origin)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
            self._scene = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_scene": None}

    # -- what there is --------------------------------------------------------------------------------------

    def _set_task(self, demo: Demonstration) -> None:
        dims = (demo.obs_TD.shape[1], demo.action_TA.shape[1])
        found = adroit.detect_task(*dims, demo.init_state)
        wanted = self.options.task if self.options.task != "auto" else self.task or found
        if found is None or found != wanted:
            what = f"{dims[0]} observation and {dims[1]} action entries, init state {sorted(demo.init_state)}"
            raise SourceError(f"expected the task {wanted or 'door, hammer, pen or relocate'}, found {found or what}")
        self.task = found

    def _renderer(self) -> str:
        """Draw one picture to learn who draws, and that the cameras exist."""
        self._open_scene().render(np.zeros(adroit.TASKS[self.task].qpos_dim))
        name = f"mujoco {importlib.metadata.version('mujoco')}, {gl.renderer_name()}, {self.options.render}"
        self.close()
        return name

    def _open_scene(self) -> adroit.AdroitScene:
        if self._scene is None:
            options = self.options
            self._scene = adroit.AdroitScene(
                self.task,
                look=options.look,
                profile=options.render,
                cameras=self._cameras(),
                image_size=options.image_size,
            )
        return self._scene

    def _cameras(self) -> tuple[str, ...]:
        return self.options.camera or adroit.TASKS[self.task].cameras

    def _spec(self, sizes: list[tuple[str, int]], license_: str, origin: str) -> DatasetSpec:
        options = self.options
        content = ("camera", "image_size", "look", "render", "rewards", "split")
        chosen = asdict(options) | {"camera": list(self._cameras()), "task": self.task}
        provenance = Provenance(
            converter="adroit",
            source_name=", ".join(name for name, _ in sizes),
            source_identity=source_identity(sizes),
            source_files=len(sizes),
            source_bytes=sum(size for _, size in sizes),
            options={key: chosen[key] for key in (*content, "task")} | {"origin": origin},
            versions={name: importlib.metadata.version(name) for name in ("mujoco", "gymnasium-robotics", "pillow")},
            shard_size=options.shard_size,
        )
        name = options.name or f"adroit-{self.task}-{origin}"
        return DatasetSpec(self._schema(self._renderer()), name, provenance, license_)

    def _schema(self, renderer: str) -> Schema:
        task, size = adroit.TASKS[self.task], self.options.image_size
        joints = len(range(task.qpos_dim)[task.sensor])
        cameras = [
            codecs.describe(
                Feature(
                    f"obs.image.{camera}",
                    "uint8",
                    (size, size, 3),
                    "state",
                    color="rgb",
                    flip="none",
                    renderer=renderer,
                ),
                self.options.codec,
            )
            for camera in self._cameras()
        ]
        rewards = [Feature("reward", "float64", description=_REWARDS[self.options.rewards])]
        if self.options.rewards != "recorded":
            rewards.append(Feature("reward.recorded", "float64", description=_REWARDS["recorded"]))
        scene = [Feature(f"sim.{key}", "float64", (count,), "episode", unit="m" if count == 3 else "")
                 for key, count in task.scene]  # fmt: skip
        return Schema(
            "episodes",
            (
                *cameras,
                Feature("obs.proprio", "float32", (joints,), "state", unit="rad", description="angles of the hand"),
                Feature("obs.state", "float64", (task.observation_dim,), "state", description="as recorded"),
                Feature(
                    "action",
                    "float64",
                    (task.action_dim,),
                    bounds=(-1.0, 1.0),
                    representation="abs_joint",
                    description="as recorded; the environment clips to the bounds",
                ),
                *rewards,
                Feature("timestamp", "int64", (), "state", unit="ns"),
                Feature("sim.qpos", "float64", (task.qpos_dim,), "state", description="set from obs.state"),
                Feature("sim.qvel", "float64", (task.qpos_dim,), "state", description="finite differences"),
                *scene,
            ),
            ("preview.jpg",),
        )

    # -- one episode ----------------------------------------------------------------------------------------

    def _episode(self, name: str, demo: Demonstration, source: str, sha256: str, origin: str) -> Episode:
        scene, task = self._open_scene(), adroit.TASKS[self.task]
        scene.set_scene(demo.init_state)
        states = scene.reconstruct(demo.obs_TD)
        rewards, success = self._rewards(demo, states)
        values: dict[str, Array] = {
            **self._frames(scene, states.qpos_TQ),
            "obs.proprio": states.qpos_TQ[:, task.sensor].astype(np.float32),
            "obs.state": demo.obs_TD,
            "action": demo.action_TA,
            **rewards,
            "timestamp": np.arange(len(demo.obs_TD), dtype=np.int64) * STEP_NS,
            "sim.qpos": states.qpos_TQ,
            "sim.qvel": states.qvel_TQ,
            **{f"sim.{key}": demo.init_state[key][None] for key, _ in task.scene},
        }
        error = {"mean": round(float(states.error_T.mean()), 6), "max": round(float(states.error_T.max()), 6)}
        meta = {"reconstruction_error": error, "init_state_dict": dict(demo.init_state), **demo.extra}
        if demo.dropped:
            meta["dropped_entries"] = list(demo.dropped)
        return Episode(
            name=name,
            values=values,
            length=len(demo.action_TA),
            success=success,
            task=f"{self.task}-v0",
            origin=origin,
            source=source,
            source_sha256=sha256,
            split=self.options.split,
            source_meta=meta,
        )

    def _frames(self, scene: adroit.AdroitScene, qpos_TQ: Array) -> dict[str, Array]:
        size = self.options.image_size
        frames = {camera: np.empty((len(qpos_TQ), size, size, 3), np.uint8) for camera in scene.cameras}
        for step, qpos_Q in enumerate(qpos_TQ):
            for camera, frame_HWC in scene.render(qpos_Q).items():
                frames[camera][step] = frame_HWC
        return {f"obs.image.{camera}": frames_THWC for camera, frames_THWC in frames.items()}

    def _rewards(self, demo: Demonstration, states: adroit.States) -> tuple[dict[str, Array], int]:
        """The reward features, and success by the rule of the chosen environment (-1: the file does not say)."""
        variant = self.options.rewards
        if variant == "recorded":
            return {"reward": demo.reward_T}, -1
        reward_T, achieved_T = adroit.rewards(self.task, variant, demo.obs_TD, states)
        success = int(adroit.success(self.task, variant, achieved_T))
        return {"reward": reward_T, "reward.recorded": demo.reward_T}, success


_LAST = "; row t is judged at the observation of t+1, the last row at the last observation there is"
_REWARDS = {
    "recorded": "as recorded in the file",
    "vrl3": f"VRL3's sparse reward, computed from the recorded observations{_LAST}",
    "gymnasium": f"gymnasium-robotics' dense reward, computed from the recorded observations{_LAST}",
}


def _first_whole(episodes: list[Any]) -> Demonstration:
    """The first episode that can be read tells the task; a broken one is `read`'s business."""
    failure: SourceError | None = None
    for episode in episodes:
        try:
            return pickles.demonstration(episode)
        except SourceError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _load(source: Path) -> list[Any]:
    """One file at a time stays in memory: units come in the order of the files."""
    stat = source.stat()
    return _loaded(source, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _loaded(source: Path, mtime_ns: int, size: int) -> list[Any]:  # noqa: ARG001 - a changed file is read anew
    return pickles.load(read_bytes(source))
