"""What the lists of an Example mean: from the `features.json` that TFDS writes, or guessed from one record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from converters.pictures import picture_size
from converters.rlds.example import BYTES, FLOATS, INTS, Feature
from vrl3data.errors import SourceError, locate
from vrl3data.schema import DTYPES

STEPS = "steps/"
MARKS = ("is_first", "is_last", "is_terminal")
"""Of each step: they say where an episode ends and how, and become no field."""
MAX_JSON = 64 * 1024**2
RAGGED = "/ragged_flat_values"
PICTURES = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True)
class Spec:
    """One list of the Examples. `shape` is that of one row: of a step, or of the episode."""

    key: str
    """As in the Example."""
    form: Literal["numbers", "picture", "text"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    encoding: str = ""
    """numbers: empty, `bytes` or `zlib`; pictures: `jpeg`, `png` or empty if either."""
    description: str = ""

    @property
    def per_step(self) -> bool:
        return self.key.startswith(STEPS)

    @property
    def path(self) -> str:
        """The name of the field: without `steps/`."""
        return self.key.removeprefix(STEPS).removesuffix(RAGGED)

    @property
    def entries(self) -> int:
        """Of one row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All lists that can be read, and those that cannot, with the reason."""

    specs: tuple[Spec, ...]
    unread: tuple[str, ...] = ()
    guessed: bool = False

    def numbers(self) -> Iterator[Spec]:
        return (spec for spec in self.specs if spec.form == "numbers" and spec.path not in MARKS)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 64 MiB; SourceError if the file is anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise SourceError(f"expected a description of at most {MAX_JSON} bytes, found {path.stat().st_size}")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise SourceError(f"expected a JSON object, found {type(data).__name__}")
    return data


def read_features(path: Path) -> Layout:
    """The layout that `features.json` describes."""
    data = read_json(path)
    if "pythonClassName" not in data:
        raise SourceError("expected a FeaturesDict of tensorflow_datasets with the key pythonClassName, found none")
    specs: list[Spec] = []
    unread: list[str] = []
    try:
        _walk(data, (), _Levels(), specs, unread)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SourceError(f"a feature cannot be understood: {type(error).__name__} {error}") from error
    return Layout(tuple(specs), tuple(unread))


def guess_features(example: Mapping[str, Feature]) -> Layout:
    """From one record: as many rows as it has steps, pictures by how they begin."""
    count = step_count(example)
    specs: list[Spec] = []
    unread: list[str] = []
    for key, feature in sorted(example.items()):
        rows = count if key.startswith(STEPS) else 1
        with locate(feature=key):
            spec = _guess(key, feature, rows)
        if spec is None:
            unread.append(f"{key}: its length does not fit {rows} rows")
        else:
            specs.append(spec)
    return Layout(tuple(specs), tuple(unread), guessed=True)


def step_count(example: Mapping[str, Feature]) -> int:
    """How many steps a record has, by `is_first` and its like."""
    for mark in MARKS:
        if (feature := example.get(STEPS + mark)) is not None:
            with locate(feature=STEPS + mark):
                return len(feature.ints())
    some = ", ".join(sorted(example)[:4]) or "nothing"
    raise SourceError(f"not an RLDS episode: expected the lists {STEPS}is_first or {STEPS}is_last, found {some}")


@dataclass(frozen=True)
class _Levels:
    """What lies around a feature: sequences, of which TFDS stores the inner ones in another way."""

    depth: int = 0
    lengths: tuple[int, ...] = ()


def _walk(node: Mapping[str, Any], names: tuple[str, ...], levels: _Levels, specs: list[Spec],
          unread: list[str]) -> None:  # fmt: skip
    kind = str(node["pythonClassName"]).rpartition(".")[2]
    if kind == "FeaturesDict":
        for name, child in node["featuresDict"]["features"].items():
            _walk(child, (*names, str(name)), levels, specs, unread)
    elif kind in ("Dataset", "Sequence"):
        inner = node["sequence"]
        steps = kind == "Dataset" and names == ("steps",)
        lengths = levels.lengths if steps else (*levels.lengths, int(inner.get("length") or -1))
        _walk(inner["feature"], names, _Levels(levels.depth + 1, lengths), specs, unread)
    else:
        spec = _leaf(kind, node, "/".join(names))
        spec = _in_sequences(spec, levels) if isinstance(spec, Spec) else spec
        if isinstance(spec, Spec):
            specs.append(spec)
        else:
            unread.append(f"{'/'.join(names)}: {spec}")


def _leaf(kind: str, node: Mapping[str, Any], key: str) -> Spec | str:
    """A Spec, or why there is none."""
    about = str(node.get("description") or "")
    if kind == "Text":
        return Spec(key, "text", description=about)
    if kind == "ClassLabel":
        return Spec(key, "numbers", "int64", description=about)
    if kind == "BBoxFeature":
        return Spec(key, "numbers", "float32", (4,), description=about)
    if kind == "Image":
        image = node["image"]
        return _image(Spec(key, "picture", str(image.get("dtype") or "uint8"), _shape(image),
                           str(image.get("encodingFormat") or ""), about))  # fmt: skip
    if kind not in ("Tensor", "Scalar"):
        return f"features of the class {kind} are not read"
    tensor = node["tensor"]
    dtype, encoding = str(tensor["dtype"]), str(tensor.get("encoding") or "none").lower()
    if dtype in ("string", "object", "str"):
        return Spec(key, "text", shape=_shape(tensor), description=about)
    return _tensor(Spec(key, "numbers", dtype, _shape(tensor), encoding.replace("none", ""), about))


def _image(spec: Spec) -> Spec | str:
    if spec.dtype not in ("uint8", "uint16") or len(spec.shape) != 3 or spec.shape[2] not in (1, 3):
        return f"pictures of {spec.dtype} and shape {list(spec.shape)} are not read"
    if spec.dtype == "uint16" and spec.shape[2] != 1:
        return "pictures of uint16 with more than one channel are not read"
    return spec


def _tensor(spec: Spec) -> Spec | str:
    if spec.dtype not in DTYPES:
        return f"the dtype {spec.dtype} is not read"
    if min(spec.shape, default=1) < 1:
        return f"rows of the shape {list(spec.shape)} differ from step to step or are empty"
    if spec.encoding not in ("", "bytes", "zlib"):
        return f"the encoding {spec.encoding!r} is not read"
    return spec


def _in_sequences(spec: Spec, levels: _Levels) -> Spec | str:
    """Within `steps`, TFDS stores a further sequence as flat values and row lengths."""
    if not levels.lengths:
        return spec
    if min(levels.lengths) < 1 or spec.form == "picture":
        return "a sequence whose length may differ from step to step is not read"
    key = spec.key + RAGGED if levels.depth > 1 else spec.key
    return replace(spec, key=key, shape=(*levels.lengths, *spec.shape))


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in (node.get("shape") or {}).get("dimensions", ()))


def _guess(key: str, feature: Feature, rows: int) -> Spec | None:
    if feature.kind == BYTES:
        strings = feature.strings()
        if len(strings) != rows:
            return None
        first = next((item for item in strings if item), b"")
        if first.startswith(PICTURES):
            return Spec(key, "picture", "uint8", picture_size(first), "jpeg" if first[0] == 0xFF else "png")
        return Spec(key, "text")
    mark = key.rpartition("/")[2] in MARKS
    dtype = "float32" if feature.kind == FLOATS else "bool" if mark else "int64"
    count = len(feature.floats() if feature.kind == FLOATS else feature.ints()) if feature.kind in (FLOATS, INTS) else 0
    if not rows or not count or count % rows:
        return None
    return Spec(key, "numbers", dtype, (count // rows,) if count != rows else ())
