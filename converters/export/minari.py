"""A dataset as a Minari dataset in HDF5.

Letters: T steps, N rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from converters.export.base import NEW, beside_rows
from converters.export.minari_jpeg import Loss, encoded
from converters.export.minari_spaces import nested, space_of, tree
from converters.export.minari_told import Told, each_row, listen
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.errors import ConfigError, locate
from vrl3data.report import Reporter
from vrl3data.schema import Array, Feature

ID = re.compile(r"([-_\w][-_\w/]*[-_\w]+/)?[-_\w]+?-v\d+")
"""Minari's rule for the id of a dataset: (namespace/)name-vN."""
FINALS = ("refuse", "drop-last")
VERSION = "0.5.4"
"""Of Minari, whose layout this is."""
BLOCK_BYTES = 16 * 1024**2
SMALL = 16 * 1024
"""Bytes of an array that an attribute of an HDF5 group can hold with ease."""
FACTS = (
    "name",
    "dtype",
    "rows",
    "names",
    "unit",
    "description",
    "bounds",
    "flip",
    "scale_m",
    "quaternion",
    "representation",
)
ENDS = ("terminated", "truncated", "success", "start_time_ns", "task", "origin", "split", "subsets")
KEPT = ("code_permalink", "author", "author_email", "algorithm_name", "env_spec", "eval_env_spec", "requirements",
        "ref_max_score", "ref_min_score", "num_episodes_average_score")  # fmt: skip
"""What a dataset that came from Minari says of itself, and says again."""


@dataclass(frozen=True)
class MinariExportOptions:
    """What Minari leaves to choose."""

    dataset_id: str = field(default="", metadata={"help": "(namespace/)name-vN.", "shown": "from the name of DEST"})
    final: Literal["refuse", "drop-last"] = field(default="refuse", metadata={
        "help": "What to do with episodes whose final observation was not recorded; drop-last leaves out their last "
                "action."})  # fmt: skip
    jpeg: bool = field(default=False, metadata={"help": "Pictures as JPEG files, with loss, as Minari's own default."})


class MinariExporter:
    """A Minari dataset (HDF5): observations with a final one, actions, rewards, ends, infos; pictures bit by bit."""

    Options = MinariExportOptions

    def __init__(self, dataset: Dataset, options: MinariExportOptions) -> None:
        self.dataset, self.options = dataset, options
        if dataset.schema.kind != "episodes":
            raise ConfigError("Minari holds episodes; this dataset holds images")
        if options.final not in FINALS:
            raise ConfigError(f"final: expected {' or '.join(FINALS)}, found {options.final!r}")
        if options.dataset_id and not ID.fullmatch(options.dataset_id):
            raise ConfigError(f"dataset_id: expected (namespace/)name-vN, found {options.dataset_id!r}")
        for what, places in (("observations", self._observations), ("actions", self._actions)):
            if not places:
                raise ConfigError(f"Minari needs {what}; this dataset has none in every episode")
        if self._unfinished and options.final == "refuse":
            raise ConfigError(
                f"{len(self._unfinished)} of {len(dataset)} episodes have no final observation, which Minari needs: "
                "--final drop-last leaves out their last action, so that the last observation becomes the final one"
            )
        if len(self._unfinished) == len(dataset) and not any(item.length > 1 for item in dataset):
            raise ConfigError("no episode has more than one observation")

    def dropped(self) -> tuple[str, ...]:
        """What Minari has no place for."""
        spaces = [(name, count) for name, count in self._absent.items() if self._is_space(self.dataset.schema[name])]
        lines = [f"{name}: absent in {count} episodes, and Minari wants it in all" for name, count in sorted(spaces)]
        for feature in self.dataset.schema.features:
            if feature.rows == "episode" and feature.row_bytes > SMALL:
                lines.append(f"{feature.name}: Minari has no place for {feature.row_bytes:,} bytes per episode")
        for feature in self.dataset.schema.features:
            if feature.clock:
                lines.append(f"{feature.name}: a stream with its own clock ({feature.clock}), Minari has steps")
        lines += beside_rows(self.dataset, FACTS)
        if self._unfinished:
            lines.append(f"the last action of {len(self._unfinished)} episodes without a final observation")
        return tuple(lines)

    def write(self, dest: Path, reporter: Reporter) -> tuple[str, ...]:
        """In blocks of rows."""
        name = self._id(dest)
        data = dest / "data"
        data.mkdir(parents=True)
        self._counts: Counter[str] = Counter()
        self._loss = Loss()
        written = 0
        with (
            h5py.File(data / "main_data.hdf5", "w", track_order=True) as file,
            reporter.progress("exporting", len(self.dataset), "episodes") as advance,
        ):
            for item in self.dataset:
                with locate(episode=item.name):
                    if item.length > 1 or item.meta["final_observation"]:
                        self._episode(file, written, item)
                        written += 1
                    else:
                        self._counts["left out: one step and no final observation"] += 1
                advance(1)
        size = round((data / "main_data.hdf5").stat().st_size / 1e6, 1)
        (data / "metadata.json").write_text(json.dumps(self._metadata(name, written, size)), "utf-8")
        return (*self._notes(), _how_to_read(name, dest.with_name(dest.name.removesuffix(NEW))))

    # -- where things go -----------------------------------------------------------------------------------

    @cached_property
    def _absent(self) -> Counter[str]:
        return Counter(name for item in self.dataset for name in item.absent)

    @cached_property
    def _told(self) -> Told:
        return listen(self.dataset)

    @cached_property
    def _unfinished(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.dataset if not item.meta["final_observation"])

    def _is_space(self, feature: Feature) -> bool:
        observed = feature.name.startswith("obs.") and feature.rows == "state"
        return observed or (feature.name.partition(".")[0] == "action" and feature.rows == "step")

    @cached_property
    def _observations(self) -> dict[str, str]:
        """Feature -> path in an episode. One observation alone is the whole observation."""
        kept = [feature.name for feature in self.dataset.schema.features if feature.name.startswith("obs.")
                and self._is_space(feature) and not self._absent[feature.name]]  # fmt: skip
        texts = any(path.startswith("observations") for path in self._told.texts)
        if len(kept) == 1 and not texts and kept[0] in ("obs.state", "obs.image.camera"):
            return {kept[0]: "observations"}
        return tree("observations", {name: name.removeprefix("obs.") for name in kept})

    @cached_property
    def _actions(self) -> dict[str, str]:
        """`action` alone if there is one, else all parts of it."""
        kept = [feature.name for feature in self.dataset.schema.features if feature.name.partition(".")[0] == "action"
                and self._is_space(feature) and not self._absent[feature.name]]  # fmt: skip
        if "action" in kept:
            return {"action": "actions"}
        return tree("actions", {name: name.removeprefix("action.") for name in kept})

    @cached_property
    def _infos(self) -> dict[str, str]:
        """All else that has rows."""
        schema = self.dataset.schema
        taken = {*self._observations, *self._actions, *(["reward"] if self._has_reward else [])}
        rest = [feature.name for feature in schema.features if feature.name not in taken and feature.stepwise
                and not (self._is_space(feature) and self._absent[feature.name])]  # fmt: skip
        return tree("infos", {name: name.removeprefix("info.") for name in rest})

    @cached_property
    def _attributes(self) -> tuple[str, ...]:
        features = self.dataset.schema.features
        return tuple(feature.name for feature in features if feature.rows == "episode" and feature.row_bytes <= SMALL)

    @property
    def _has_reward(self) -> bool:
        schema = self.dataset.schema
        return "reward" in schema and schema["reward"].rows == "step" and schema["reward"].shape == ()

    # -- writing -------------------------------------------------------------------------------------------

    def _episode(self, file: h5py.File, number: int, item: StoredSample) -> None:
        final = bool(item.meta["final_observation"])
        length = item.length if final else item.length - 1
        group = file.create_group(f"episode_{number}")
        for name, path in {**self._observations, **self._actions, **self._infos}.items():
            if name not in item.absent:
                feature = self.dataset.schema[name]
                rows = length + 1 if feature.rows == "state" else length
                self._array(group, path, item, feature, rows)
        group.require_group("infos")
        said = item.source_meta
        for path in self._told.texts:
            words = each_row(said[path], length + path.startswith("observations"))
            group.create_dataset(path, data=words, dtype=h5py.string_dtype())
        if self._has_reward and "reward" not in item.absent:
            group["rewards"] = item.rows("reward", 0, length)
        else:
            group["rewards"] = np.full(length, np.nan)
            self._counts["rewards: not known, NaN stands for them"] += 1
        terminated, truncated = self._ends(item, final)
        for name, flag in (("terminations", terminated), ("truncations", truncated)):
            flags = np.zeros(length, bool)
            flags[-1] = flag
            group[name] = flags
        group.attrs.update({"id": number, "total_steps": length})
        if isinstance(said.get("seed"), int):
            group.attrs["seed"] = said["seed"]
        if isinstance(said.get("options"), dict):
            group.attrs.update(_flat("options", said["options"]))
        for name in self._attributes:
            if name not in item.absent:
                group.attrs[name] = item[name][0]
        ours = {key: item.meta[key] for key in ENDS} | {"name": item.name, "steps": item.length, "source_meta": said,
                                                         "absent": list(item.absent)}  # fmt: skip
        group.attrs["vrl3data"] = json.dumps(ours)

    def _ends(self, item: StoredSample, final: bool) -> tuple[bool, bool]:
        """(terminated, truncated) of the last step that is written. Minari does not know `not known`."""
        terminated, truncated = item.meta["terminated"], item.meta["truncated"]
        if not final:
            return False, True  # the step that may have ended it is not there any more
        if terminated == -1:
            self._counts["terminated: not known, written as false"] += 1
        if truncated == -1:
            self._counts["truncated: not known, written as true where the episode did not terminate"] += 1
        return terminated == 1, truncated == 1 or (truncated == -1 and terminated != 1)

    def _array(self, group: h5py.Group, path: str, item: StoredSample, feature: Feature, rows: int) -> None:
        if self._is_jpeg(feature) and path.startswith("observations"):
            self._jpeg(group, path, item, feature, rows)
            return
        dtype = "int8" if _as_flags(feature) and not path.startswith("infos") else feature.dtype
        chunks = (1, *feature.shape) if feature.is_image else None
        target = group.create_dataset(path, (rows, *feature.shape), dtype, chunks=chunks)
        for start, block_N in _blocks(item, feature, rows):
            target[start : start + len(block_N)] = block_N

    def _jpeg(self, group: h5py.Group, path: str, item: StoredSample, feature: Feature, rows: int) -> None:
        target = group.create_dataset(path, (rows,), h5py.vlen_dtype(np.uint8))
        for start, block_NHWC in _blocks(item, feature, rows):
            for row, frame_HWC in enumerate(block_NHWC, start):
                target[row] = np.frombuffer(encoded(frame_HWC, self._loss), np.uint8)

    def _is_jpeg(self, feature: Feature) -> bool:
        return self.options.jpeg and feature.is_image and min(feature.shape[:2]) >= 32

    def _id(self, dest: Path) -> str:
        """As asked for, or the name of DEST as one that Minari takes."""
        name = dest.name.removesuffix(NEW)
        clean = re.sub(r"[^-\w]+", "-", name).strip("-") or "set"
        return self.options.dataset_id or (name if ID.fullmatch(name) else f"{clean}-v0")

    def _metadata(self, name: str, episodes: int, size: float) -> dict[str, Any]:
        schema, manifest = self.dataset.schema, self.dataset.manifest
        steps = sum(item.length - (not item.meta["final_observation"]) for item in self.dataset)
        reward = {"reward": "rewards"} if self._has_reward else {}
        attributes = {name: f"@{name}" for name in self._attributes}
        places = {**self._observations, **self._actions, **self._infos, **reward, **attributes}
        facts = {path: {key: value for key, value in schema[feature].to_json().items() if key in FACTS}
                 for feature, path in places.items()}  # fmt: skip
        first = self.dataset[0].source_meta.get("minari", {})
        said = {key: first[key] for key in KEPT if isinstance(first, dict) and key in first}
        return {
            "total_episodes": episodes,
            "total_steps": steps,
            "data_format": "hdf5",
            "jpeg_encoding": any(self._is_jpeg(schema[name]) for name in self._observations),
            "observation_space": self._spaces("observations", self._observations),
            "action_space": self._spaces("actions", self._actions),
            "dataset_id": name,
            "minari_version": VERSION,
            "dataset_size": size,
            "description": manifest.description or f"{manifest.name}, licence {manifest.license}",
            **said,
            "vrl3data": {"features": facts, "name": manifest.name, "license": manifest.license,
                         "fingerprint": manifest.fingerprint},
        }  # fmt: skip

    def _spaces(self, top: str, places: dict[str, str]) -> str:
        texts = {path: path for path in self._told.texts if path.startswith(f"{top}/")}

        def space(name: str) -> dict[str, Any]:
            if name in texts:
                return self._told.spaces[name]
            feature = self.dataset.schema[name]
            told = self._told.space(places[name], feature)
            return told or space_of(feature, flags=_as_flags(feature), flat=self._is_jpeg(feature))

        return json.dumps(nested(top, {**places, **texts}, space))

    def _notes(self) -> Iterator[str]:
        for text, count in self._counts.items():
            yield f"{text} ({count} of {len(self.dataset)} episodes)"
        if self._loss.count:
            yield f"pictures as JPEG files: {self._loss.psnr:.2f} dB, greatest error {self._loss.max_error:.0f}"
        elif any(self.dataset.schema[name].is_image for name in self._observations):
            yield f"pictures are stored bit by bit (jpeg_encoding false), which Minari reads from {VERSION} on"


def _flat(prefix: str, options: dict[str, Any]) -> dict[str, Any]:
    """Numbers and texts of nested options as Minari's attributes, `options/level`; the rest stays in source_meta."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= _flat(f"{prefix}/{key}", value)
        elif isinstance(value, (bool, int, float, str)):
            found[f"{prefix}/{key}"] = value
    return found


def _how_to_read(name: str, dest: Path) -> str:
    if dest.as_posix().endswith(f"/{name}"):
        return f"minari.load_dataset({name!r}) reads it, with MINARI_DATASETS_PATH set to the folder that holds {name}"
    return f"minari.load_dataset({name!r}) finds it once it lies in {name} below MINARI_DATASETS_PATH"


def _as_flags(feature: Feature) -> bool:
    """Rows of true and false, which Minari knows as MultiBinary of int8."""
    return feature.dtype == "bool" and feature.shape != ()


def _blocks(item: StoredSample, feature: Feature, rows: int) -> Iterator[tuple[int, Array]]:
    step = max(1, BLOCK_BYTES // max(1, feature.row_bytes))
    for start in range(0, rows, step):
        yield start, item.rows(feature.name, start, min(rows, start + step))
