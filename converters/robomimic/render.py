"""States of robosuite, recorded without pictures, drawn again: the scene is the demo's own `model_file`.

Only robosuite's meshes and textures are used; none of its code runs. Letters: N rows, S columns of a state.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

from converters.fields import Field
from converters.hdf5 import blocks, child, some_attributes
from converters.robomimic.demos import Demo
from converters.robomimic.guess import RENDERED
from vrl3data.envs import gl
from vrl3data.errors import ConfigError, MissingExtra, SourceError, did_you_mean
from vrl3data.schema import Array

USUAL = ("agentview", "robot0_eye_in_hand")
SIZE = 84
BLOCK = 32
ASSET = re.compile(r".*(?:^|/)robosuite/(models/assets/.+)")
RENAMED = ("models/assets/mounts/", "models/assets/bases/")
"""robosuite 1.5 gave this folder another name."""
CODE = ("include", "plugin", "extension", "model", "attach")
"""Elements that bring in other files or libraries. A scene that was saved whole needs none."""
PLACES = ("meshdir", "texturedir", "assetdir")
MAX_PIXELS = 16384
COLLISION_GROUP = 0
"""Of the geometry that robosuite does not show."""


class Scenes:
    """Keeps the model and the renderer of the last demo, since making them takes half a second."""

    def __init__(self, cameras: tuple[str, ...], image_size: int, profile: str) -> None:
        self.cameras, self.size, self.profile = cameras, image_size or SIZE, profile
        self._xml = self.first = ""
        self._model: Any = None
        self._renderer: Any = None
        self._assets = _assets()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_xml": "", "_model": None, "_renderer": None}

    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in ("mujoco", "robosuite")}

    def renderer_name(self) -> str:
        """Of the scene of the first demo."""
        self._set(self.first)
        self._renderer.render()
        return f"mujoco {metadata.version('mujoco')}, {gl.renderer_name()}, {self.profile}"

    def fields(self, group: h5py.Group, demo: Demo) -> dict[str, Field]:
        """One for each camera. SourceError if this demo has no scene or no states."""
        xml = _scene_of(group)
        states = demo.fields.get("states")
        if states is None or len(states.shape) != 1:
            raise SourceError("rendering needs `states` with one row of numbers per step, which the demo does not have")
        self.first = self.first or xml
        there = re.findall(r"<camera\b[^>]*?\bname=\"([^\"]+)\"", xml)
        for camera in self.cameras:
            if camera not in there:
                raise ConfigError(f"camera: the scene has no {camera!r}{did_you_mean(camera, there)}")
        chosen = self.cameras or tuple(camera for camera in USUAL if camera in there) or tuple(there[:1])
        if not chosen:
            raise SourceError("rendering needs a camera, and the scene has none")
        rows = states.rows if demo.final else "state"
        return {f"{RENDERED}{camera}": Field(f"{RENDERED}{camera}", "uint8", (self.size, self.size, 3), rows)
                for camera in chosen}  # fmt: skip

    def draw(self, group: h5py.Group, fields: Mapping[str, Field]) -> dict[str, Any]:
        """For each camera its pictures, in blocks, as often as they are asked for."""
        states = child(group, "states")
        assert isinstance(states, h5py.Dataset)
        return {path: _Drawn(self, _scene_of(group), states, path.removeprefix(RENDERED)) for path in fields}

    def frames(self, xml: str, states: h5py.Dataset, camera: str) -> Iterator[Array]:
        mujoco = gl.load_mujoco()
        self._set(xml)
        model = self._model
        data = mujoco.MjData(model)
        widths = {1 + model.nq + model.nv, 1 + model.nq + model.nv + model.na}
        if states.shape[1] not in widths:
            raise SourceError(
                f"expected states of time, {model.nq} positions and {model.nv} velocities, "
                f"found {states.shape[1]} columns"
            )
        shown = mujoco.MjvOption()
        shown.geomgroup[COLLISION_GROUP] = 0
        shown.sitegroup[:] = 0
        rows = (row_S for block_NS in blocks(states) for row_S in block_NS)
        while chunk := list(islice(rows, BLOCK)):
            pictures = []
            for row_S in chunk:
                data.qpos[:], data.qvel[:] = row_S[1 : 1 + model.nq], row_S[1 + model.nq : 1 + model.nq + model.nv]
                mujoco.mj_forward(model, data)
                self._renderer.update_scene(data, camera, shown)
                pictures.append(self._renderer.render())
            yield np.stack(pictures)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._xml, self._model, self._renderer = "", None, None

    def _set(self, xml: str) -> None:
        if xml == self._xml and self._renderer is not None:
            return
        self.close()
        mujoco = gl.load_mujoco()
        try:
            self._model = mujoco.MjModel.from_xml_string(self._safe(xml))
        except ValueError as error:
            raise SourceError(f"MuJoCo cannot build the scene of model_file: {str(error).splitlines()[0]}") from error
        gl.apply_profile(self._model, self.profile)
        self._renderer = gl.make_renderer(self._model, self.size, self.size)
        self._xml = xml

    def _safe(self, xml: str) -> str:
        """The scene with robosuite's files of this machine, and no others. SourceError if it asks for more."""
        if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
            raise SourceError("model_file: an XML with declarations of its own is not read")
        try:
            root = ElementTree.fromstring(xml)
        except ElementTree.ParseError as error:
            raise SourceError(f"model_file is not XML: {error}") from error
        for element in root.iter():
            if element.tag in CODE:
                raise SourceError(f"model_file: <{element.tag}> brings in other files or libraries; it is not followed")
            for key in [key for key in element.attrib if key in PLACES]:
                del element.attrib[key]
            for key in [key for key in element.attrib if key.startswith("file")]:
                element.set(key, self._asset(element.attrib[key]))
            for key in ("width", "height", "nrow", "ncol"):
                if element.get(key, "0").isdigit() and int(element.get(key, "0")) > MAX_PIXELS:
                    raise SourceError(f"model_file: a <{element.tag}> with {key} {element.get(key)} is not read")
        return ElementTree.tostring(root, encoding="unicode")

    def _asset(self, told: str) -> str:
        found = ASSET.fullmatch(told.replace("\\", "/"))
        if found is None:
            raise SourceError(f"model_file asks for {Path(told).name!r}, which is not one of robosuite's files")
        for inside in (found[1], found[1].replace(*RENAMED)):
            path = (self._assets / inside).resolve()
            if path.is_relative_to(self._assets.resolve()) and path.is_file():
                return str(path)
        raise SourceError(
            f"model_file asks for {found[1]!r}, which robosuite {metadata.version('robosuite')} does not have"
        )


class _Drawn:
    """Pictures of one camera, in blocks."""

    def __init__(self, scenes: Scenes, xml: str, states: h5py.Dataset, camera: str) -> None:
        self.scenes, self.xml, self.states, self.camera = scenes, xml, states, camera

    def __iter__(self) -> Iterator[Array]:
        return self.scenes.frames(self.xml, self.states, self.camera)


def _assets() -> Path:
    found = importlib.util.find_spec("robosuite")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            "drawing recorded states needs the extra robosuite (its meshes): pip install 'vrl3data[robosuite]'"
        )
    return Path(found.submodule_search_locations[0])


def _scene_of(group: h5py.Group) -> str:
    xml = some_attributes(group, ("model_file",)).get("model_file")
    if not isinstance(xml, str) or not xml:
        raise SourceError("rendering needs the scene in the attribute `model_file`, which the demo does not have")
    return xml
