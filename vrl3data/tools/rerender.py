"""rerender: the pictures of a dataset drawn anew from its simulator states, by other cameras or in another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from vrl3data import codecs
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.manifest import Manifest
from vrl3data.report import Reporter
from vrl3data.schema import PREVIEW, Array, Episode, Feature, Schema
from vrl3data.tools.recode import rewrite
from vrl3data.tools.rewrite import Output, spec

BLOCK_ROWS = 64


@dataclass(frozen=True)
class View:
    """How to draw. Empty cameras and a size of 0: those that the dataset has. `look`: vrl3 or gymnasium (Adroit)."""

    cameras: tuple[str, ...] = ()
    image_size: int = 0
    look: str = ""
    profile: str = "exact"
    codec: str = "raw"


class Painter(Protocol):
    """Draws states of one simulator."""

    cameras: tuple[str, ...]
    renderer: str

    def begin(self, scene: Mapping[str, Array]) -> None:
        """Set up an episode from its first row of `sim.*`."""

    def draw(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        """One row of `sim.*` -> uint8 (size, size, 3) of each camera."""

    def close(self) -> None: ...


def rerender(
    dataset: Dataset, dest: Path | str, view: View, output: Output | None = None, reporter: Reporter | None = None
) -> Manifest:
    """Replace all cameras of `dataset` by those of `view`; everything else is passed on as it is.

    ConfigError if the dataset holds no simulator states, or is not of a simulator that is known here.
    """
    schema = dataset.schema
    if "sim.qpos" not in schema:
        raise ConfigError("the dataset holds no simulator states (sim.qpos), so nothing can be drawn from it")
    size = view.image_size or max((camera.shape[0] for camera in schema.cameras), default=0)
    if not 16 <= size <= 1024:
        raise ConfigError(f"image_size: expected 16 to 1024, found {size}")
    cameras = view.cameras or tuple(camera.name.removeprefix("obs.image.") for camera in schema.cameras)
    if len(set(cameras)) != len(cameras):
        raise ConfigError(f"camera: each can be given once, found {', '.join(cameras)}")
    painter = find_painter(dataset, replace(view, cameras=cameras, image_size=size))
    try:
        new = _schema(schema, painter, size, view.codec)
        options = {
            "cameras": list(painter.cameras), "image_size": size, "look": view.look, "profile": view.profile,
            "codec": view.codec, "mujoco": version("mujoco"),
        }  # fmt: skip
        described = spec("rerender", [dataset], new, options, output or Output())
        return rewrite(dataset, dest, described, lambda stored: _load(stored, painter), reporter)
    finally:
        painter.close()


def _schema(schema: Schema, painter: Painter, size: int, codec: str) -> Schema:
    """The old cameras go, the new ones come first."""
    cameras = [
        codecs.describe(
            Feature(f"obs.image.{name}", "uint8", (size, size, 3), "state", color="rgb", flip="none",
                    renderer=painter.renderer), codec)
        for name in painter.cameras
    ]  # fmt: skip
    rest = [feature for feature in schema.features if not feature.is_image]
    extras = schema.extras if PREVIEW in schema.extras else (*schema.extras, PREVIEW)
    return Schema(schema.kind, (*cameras, *rest), extras)


def _load(stored: StoredSample, painter: Painter) -> Episode:
    episode, schema = stored.load(coded=True), stored.dataset.schema
    sim = [feature for feature in schema.features if feature.name.startswith("sim.")]
    painter.begin({feature.name: stored[feature.name][0] for feature in sim})
    states = {feature.name: stored[feature.name] for feature in sim if feature.rows == "state"}
    cameras = {camera.name for camera in schema.cameras}
    kept = {name: value for name, value in episode.values.items() if name not in cameras}
    return replace(episode, values={**kept, **_frames(painter, states)})


def _frames(painter: Painter, states: Mapping[str, Array]) -> dict[str, Any]:
    """All cameras of an episode. They are drawn together, so they lie in memory together."""
    count = len(states["sim.qpos"])
    drawn = [painter.draw({name: rows[row] for name, rows in states.items()}) for row in range(count)]
    return {f"obs.image.{name}": np.stack([frame[name] for frame in drawn]) for name in painter.cameras}


# -- simulators ------------------------------------------------------------------------------------------------------


def find_painter(dataset: Dataset, view: View) -> Painter:
    """The painter of the simulator that the dataset came from, as its provenance tells."""
    found = {_simulator(made) for made in origins(dataset.manifest.provenances)}
    if len(found) != 1:
        raise ConfigError(f"the dataset comes from more than one simulator: {', '.join(sorted(map(str, found)))}")
    name, look = found.pop()
    if name == "fetch-reach":
        return _FetchPainter(view)
    return _AdroitPainter(name, replace(view, look=view.look or look))


def origins(provenances: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The provenances at the root: of what was not made from other datasets."""
    for made in provenances:
        inputs = made.get("inputs", ())
        if not inputs:
            yield made
        for entry in inputs:
            yield from origins([entry["provenance"], *entry.get("appended", ())])


def _simulator(made: Mapping[str, Any]) -> tuple[str, str]:
    """(Adroit task or fetch-reach, look)."""
    options = made.get("options", {})
    if made.get("converter") == "adroit":
        return str(options.get("task")), str(options.get("look", "vrl3"))
    env = str(options.get("env", ""))
    if made.get("converter") == "record" and env in RECORDED:
        return RECORDED[env]
    raise ConfigError(f"no simulator is known for data of {made.get('converter')!r} {env}{did_you_mean(env, RECORDED)}")


RECORDED = {
    "FetchReach": ("fetch-reach", ""),
    **{task.capitalize(): (task, "vrl3") for task in ("door", "hammer", "pen", "relocate")},
}
"""Environments that the recorder names in `options.env`."""


class _AdroitPainter:
    def __init__(self, task: str, view: View) -> None:
        from vrl3data.envs import adroit, gl

        look = cast(adroit.Look, view.look)
        self.cameras = view.cameras
        self.scene = adroit.AdroitScene(
            task, look=look, profile=view.profile, cameras=view.cameras, image_size=view.image_size
        )
        self.scene.render(np.zeros(adroit.TASKS[task].qpos_dim))
        self.renderer = f"mujoco {version('mujoco')}, {gl.renderer_name()}, {view.profile}"

    def begin(self, scene: Mapping[str, Array]) -> None:
        self.scene.set_scene({name.removeprefix("sim."): value for name, value in scene.items()})

    def draw(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        return self.scene.render(state["sim.qpos"])

    def close(self) -> None:
        self.scene.close()


class _FetchPainter:
    def __init__(self, view: View) -> None:
        from vrl3data.envs.fetch import FetchReach

        if view.cameras not in ((), ("main",)):
            raise ConfigError(f"fetch-reach has the camera 'main' only, found {', '.join(view.cameras)}")
        if view.look or view.profile != "exact":
            raise ConfigError("fetch-reach has no looks and no render profiles")
        self.cameras: tuple[str, ...] = ("main",)
        self.env = FetchReach(image_size=view.image_size)
        self.env.reset(seed=0)
        self.renderer = self.env.renderer

    def begin(self, scene: Mapping[str, Array]) -> None:
        """A state says all."""

    def draw(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        self.env.set_sim_state(state)
        return {"main": self.env.render()}

    def close(self) -> None:
        self.env.close()
