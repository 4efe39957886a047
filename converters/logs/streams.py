"""What the messages of a topic mean: numeric columns, rotations, pictures, depth, texts, events.

Found by the shape of the first messages rather than by a list of types, so that custom types, JSON and protobuf are
read as ROS' own: {x, y, z, w} is a rotation, a list of names beside arrays of that length orders them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from converters.logs.decode import stamp_ns, time_ns
from converters.logs.definitions import full_name
from converters.logs.leaves import Leaf, flatten, get, units
from converters.logs.messages import Message, Topic
from converters.logs.pictures_raw import JPEG, PNG, compressed_depth, depth_unit, octets, pixels
from converters.pictures import picture_size
from vrl3data.errors import SourceError
from vrl3data.schema import Array

Role = Literal["vector", "quaternion", "picture", "depth", "text", "event"]
NAMES = ("name", "names", "joint_names")
FRAMES = ("frame_id", "child_frame_id", "parent_frame_id")
QUATERNION = ("x", "y", "z", "w")
MAX_COLUMNS = 4096
MAX_FLOAT = float(np.finfo(np.float64).max)
MAX_BYTES = 64
"""Arrays of more bytes than this are contents of something (point clouds, maps), not columns."""


@dataclass(frozen=True)
class StreamSpec:
    """One stream of a topic. `path` is unique within it; `shape` is that of one row.

    vector, quaternion (`order` says how), event: float64 rows, NaN where a message has no value.
    picture: a JPEG or PNG file (`encoding`) or uint8 (H, W, 1 or 3).
    depth: uint16 or float32 (H, W), in counts of `scale_m` metres.
    """

    topic: str
    path: str
    role: Role
    dtype: str
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    unit: str = ""
    order: str = ""
    encoding: str = ""
    scale_m: float = 0.0
    at: tuple[str, ...] = ()
    """Where in the message it is."""
    leaves: tuple[tuple[str, ...], ...] = ()
    """Places of its columns, if they are not one array."""
    names_at: tuple[str, ...] = ()
    """Where the list of names is that orders the array in every message."""
    child: str = ""
    """The child frame, for one of many transforms."""

    @property
    def name(self) -> str:
        return f"{self.topic}:{self.path}" if self.path else self.topic


@dataclass(frozen=True)
class Streams:
    """What a topic becomes. `left`: what of it is no stream, and why. `frames`: the frames that it names."""

    specs: tuple[StreamSpec, ...]
    left: tuple[tuple[str, str], ...] = ()
    frames: Mapping[str, str] = field(default_factory=dict)


def find_streams(topic: Topic, values: Sequence[Any]) -> Streams:
    """The streams of a topic by its first messages: joints and transforms are those that occur in them."""
    values = [value for value in values if isinstance(value, dict)]
    if not values:
        return Streams((), (("", "there are no messages to look at"),))
    if _is_raw_picture(values[0]) or _is_compressed(topic, values[0]):
        return _pictures(topic, values[0])
    transforms = _transforms(topic, values)
    return transforms if transforms.specs else _Finder(topic, values).streams()


def extract(spec: StreamSpec, value: Any) -> Array | bytes | str | None:
    """The row of a stream in one message; None if the message has nothing of it. Missing numbers are NaN.

    SourceError for a picture that is broken or has another size.
    """
    value = _inside(spec, value)
    if value is None:
        return None
    if spec.role in ("picture", "depth"):
        return _picture_row(spec, value)
    if spec.role == "text":
        text = get(value, spec.at)
        return text if isinstance(text, str) else None
    if spec.leaves:
        return np.array([_number(get(value, leaf)) for leaf in spec.leaves], np.float64)
    if not spec.at:
        return np.ones(1)  # a message without content happened
    return _array_row(spec, value)


def stamp_of(spec: StreamSpec, message: Message) -> int | None:
    """The header's stamp of the stream in one message: each transform has its own."""
    return stamp_ns(_inside(spec, message.value)) if spec.child else message.header_ns


def surprises(spec: StreamSpec, value: Any) -> tuple[str, ...]:
    """What the stream lacks in this message, or has more of than in the first ones."""
    value = _inside(spec, value)
    if value is None or spec.role in ("picture", "depth", "text"):
        return ()
    if spec.leaves:
        return tuple(f"{name} is missing" for name, leaf in zip(spec.names, spec.leaves, strict=True)
                     if get(value, leaf) is None)  # fmt: skip
    if not spec.at:
        return ()
    found = _as_array(get(value, spec.at))
    if spec.names_at:
        given = get(value, spec.names_at)
        given = given if isinstance(given, list) else []
        if tuple(given) == spec.names and len(found) == len(given):
            return ()
        if not len(found):
            return ("no values",)
        missing = [f"{name} is missing" for name in spec.names if name not in given[: len(found)]]
        return (*missing, *(f"{name} is new, and left out" for name in given if name not in spec.names))
    return () if len(found) == spec.shape[0] else (f"{len(found)} values instead of {spec.shape[0]}",)


class _Finder:
    """Puts the leaves of a topic's first messages together to streams."""

    def __init__(self, topic: Topic, values: Sequence[Mapping[str, Any]]) -> None:
        self.topic = topic
        self.leaves = flatten(values)
        self.left = [(".".join(leaf.at), leaf.reason) for leaf in self.leaves if leaf.reason]
        self.units = units(full_name(topic.type))
        self.whole_floats = topic.encoding == "json"  # which writes 1.0 as 1

    def streams(self) -> Streams:
        specs: list[StreamSpec] = []
        frames = {}
        scalars: dict[tuple[str, ...], list[Leaf]] = {}
        names = {leaf.at[:-1]: leaf for leaf in self.leaves if leaf.kind == "texts" and leaf.at[-1] in NAMES}
        for leaf in self.leaves:
            if leaf.kind == "text" and leaf.at[-1] in FRAMES:
                frames[".".join(leaf.at)] = str(leaf.first)
            elif leaf.kind == "text":
                specs.append(StreamSpec(self.topic.name, ".".join(leaf.at), "text", "str", at=leaf.at))
            elif leaf.kind == "array":
                specs += self._array(leaf, names)
            elif leaf.kind == "texts" and leaf not in names.values():
                self.left.append((".".join(leaf.at), "a list of texts"))
            elif leaf.kind in ("float", "whole"):
                scalars.setdefault(leaf.at[:-1], []).append(leaf)
        for parent, leaves in scalars.items():
            specs += self._scalars(parent, leaves)
        if not specs and not self.leaves:
            specs = [StreamSpec(self.topic.name, "", "event", "float64", (1,), ("received",))]
        order = {leaf.at: number for number, leaf in enumerate(self.leaves)}
        specs.sort(key=lambda spec: order.get(spec.leaves[0] if spec.leaves else spec.at, 0))
        return Streams(tuple(specs), tuple(self.left), frames)

    def _scalars(self, parent: tuple[str, ...], leaves: list[Leaf]) -> list[StreamSpec]:
        """Floats of one parent are one vector, in their order; whole numbers and flags are events, each its own."""
        path = ".".join(parent)
        if tuple(sorted(leaf.at[-1] for leaf in leaves)) == tuple(sorted(QUATERNION)):
            at = tuple((*parent, letter) for letter in QUATERNION)
            return [StreamSpec(self.topic.name, path, "quaternion", "float64", (4,), QUATERNION, "", "xyzw", leaves=at)]
        floats = [leaf for leaf in leaves if leaf.kind == "float" or (self.whole_floats and not leaf.flag)]
        specs = [StreamSpec(self.topic.name, ".".join(leaf.at), "event", "float64", (1,), (leaf.at[-1],),
                            leaves=(leaf.at,)) for leaf in leaves if leaf not in floats]  # fmt: skip
        if floats:
            path = path if len(floats) > 1 else ".".join(floats[0].at)
            labels = tuple(leaf.at[-1] for leaf in floats)
            unit = self.units.get(parent[-1] if parent else "", "") if set(labels) <= set("xyz") else ""
            specs.append(StreamSpec(self.topic.name, path, "vector", "float64", (len(floats),), labels, unit,
                                    leaves=tuple(leaf.at for leaf in floats)))  # fmt: skip
        return specs

    def _array(self, leaf: Leaf, names: Mapping[tuple[str, ...], Leaf]) -> list[StreamSpec]:
        path = ".".join(leaf.at)
        ordering = self._ordering(leaf, names)
        role: Role = "event" if leaf.whole and not self.whole_floats else "vector"
        if ordering is not None:
            labels = ordering.labels
            return [StreamSpec(self.topic.name, path, "vector", "float64", (len(labels),), labels, at=leaf.at,
                               names_at=ordering.at)]  # fmt: skip
        lengths = leaf.lengths - {0}
        if len(leaf.lengths) != 1 or not lengths:
            reason = "always empty" if not lengths else f"of varying length ({min(leaf.lengths)} to {max(lengths)})"
        elif leaf.bytes_ and max(lengths) > MAX_BYTES:
            reason = f"{max(lengths):,} bytes of content"
        elif max(lengths) > MAX_COLUMNS:
            reason = f"{max(lengths):,} values are too many for columns"
        else:
            return [StreamSpec(self.topic.name, path, role, "float64", (max(lengths),), at=leaf.at)]
        self.left.append((path, reason))
        return []

    @staticmethod
    def _ordering(leaf: Leaf, names: Mapping[tuple[str, ...], Leaf]) -> Leaf | None:
        """The list of names, beside the array or above it, that is as long as the array in every message."""
        for depth in range(len(leaf.at) - 1, -1, -1):
            known = names.get(leaf.at[:depth])
            if known is not None and known.labels and leaf.lengths - {0} and leaf.lengths - {0} <= known.lengths:
                return known
        return None


def _transforms(topic: Topic, values: Sequence[Mapping[str, Any]]) -> Streams:
    """A translation and a rotation per child frame."""
    specs: dict[str, StreamSpec] = {}
    frames = {}
    for value in values:
        for transform in _transforms_of(value):
            child = transform["child_frame_id"]
            if f"{child}.translation" in specs:
                continue
            inner = ("transform",) if isinstance(transform.get("transform"), dict) else ()
            parent = transform.get("parent_frame_id") or get(transform, ("header", "frame_id")) or ""
            frames[child] = str(parent)
            for part, letters, role, unit, order in (
                ("translation", "xyz", "vector", "m", ""),
                ("rotation", "xyzw", "quaternion", "", "xyzw"),
            ):
                leaves = tuple((*inner, part, letter) for letter in letters)
                path = f"{child}.{part}"
                role_: Role = "vector" if role == "vector" else "quaternion"
                specs[path] = StreamSpec(topic.name, path, role_, "float64", (len(letters),), tuple(letters), unit,
                                         order, leaves=leaves, child=child)  # fmt: skip
    return Streams(tuple(specs.values()), (), frames)


def _transforms_of(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The transforms of a message that name their child frame."""
    items = value.get("transforms")
    items = items if isinstance(items, list) else []
    return [item for item in items if isinstance(item, dict) and isinstance(item.get("child_frame_id"), str)]


def _inside(spec: StreamSpec, value: Any) -> Any:
    """The part of a message that a stream is of: the message, or the last transform of a child frame."""
    if not isinstance(value, dict):
        return None
    if not spec.child:
        return value
    found = [item for item in _transforms_of(value) if item["child_frame_id"] == spec.child]
    return found[-1] if found else None


def _is_raw_picture(value: Mapping[str, Any]) -> bool:
    return {"height", "width", "encoding", "data"} <= set(value)


def _is_compressed(topic: Topic, value: Mapping[str, Any]) -> bool:
    return {"format", "data"} <= set(value) and topic.type.rpartition("/")[2].rpartition(".")[2].startswith(
        "Compressed"
    )


def _pictures(topic: Topic, value: Mapping[str, Any]) -> Streams:
    """The camera of a topic by its first picture; none, with the reason, if that cannot be read."""
    frame = value.get("frame_id") or get(value, ("header", "frame_id")) or ""
    try:
        spec = _raw_spec(topic, value) if _is_raw_picture(value) else _compressed_spec(topic, value)
    except SourceError as error:
        return Streams((), (("data", error.message),))
    return Streams((spec,), (), {"frame_id": str(frame)} if frame else {})


def _raw_spec(topic: Topic, value: Mapping[str, Any]) -> StreamSpec:
    encoding = str(value["encoding"])
    scale_m = depth_unit(encoding, topic.name)
    first = pixels(value, bool(scale_m))
    role: Role = "depth" if scale_m else "picture"
    return StreamSpec(topic.name, "", role, str(first.dtype), first.shape, encoding=encoding, scale_m=scale_m)


def _compressed_spec(topic: Topic, value: Mapping[str, Any]) -> StreamSpec:
    form, data = str(value["format"]), octets(value["data"])
    if "compressedDepth" in form:
        first = compressed_depth(data, form)
        scale_m = 0.001 if first.dtype == np.uint16 else 1.0
        return StreamSpec(topic.name, "", "depth", str(first.dtype), first.shape, encoding="compressedDepth",
                          scale_m=scale_m)  # fmt: skip
    encoding = _file_kind(data, form)
    shape = picture_size(bytes(data))
    if encoding == "png" and shape[2] == 1 and form.startswith(("16UC1", "mono16")):
        return StreamSpec(topic.name, "", "depth", "uint16", shape[:2], encoding="png", scale_m=0.001)
    return StreamSpec(topic.name, "", "picture", "uint8", shape, encoding=encoding)


def _file_kind(data: memoryview, form: str) -> str:
    """What the bytes are, whatever the format says."""
    for magic, kind in ((JPEG, "jpeg"), (PNG, "png")):
        if bytes(data[: len(magic)]) == magic:
            return kind
    raise SourceError(f"expected a JPEG or PNG file in each message, found {bytes(data[:4]).hex(' ')} ({form})")


def _picture_row(spec: StreamSpec, value: Mapping[str, Any]) -> Array | bytes:
    if _is_raw_picture(value):
        if value["encoding"] != spec.encoding:
            raise SourceError(f"expected pictures in {spec.encoding} as the first, found {value['encoding']}")
        row = pixels(value, spec.role == "depth")
    elif spec.encoding == "compressedDepth":
        row = compressed_depth(octets(value.get("data")), str(value.get("format")))
    else:
        file = bytes(octets(value.get("data")))
        kind, size = _file_kind(memoryview(file), str(value.get("format"))), picture_size(file)
        if (kind, size[: len(spec.shape)]) != (spec.encoding, spec.shape):
            raise SourceError(f"expected a {spec.encoding} picture of {spec.shape}, found {kind} of {size}")
        return file
    if row.shape != spec.shape:
        raise SourceError(f"expected a picture of {spec.shape} as the first, found {row.shape}")
    return row


def _array_row(spec: StreamSpec, value: Mapping[str, Any]) -> Array:
    found = _as_array(get(value, spec.at))
    if not spec.names_at:
        return found.astype(np.float64) if len(found) == spec.shape[0] else np.full(spec.shape, np.nan)
    names = get(value, spec.names_at)
    if names is not None and len(found) == len(names) and tuple(names) == spec.names:
        return found.astype(np.float64)
    given = dict(zip(names or (), found.tolist(), strict=False))
    return np.array([given.get(name, np.nan) for name in spec.names], np.float64)


def _as_array(value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    good = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    return np.array([_number(item) for item in value], np.float64) if good else np.empty(0)


def _number(value: Any) -> float:
    if isinstance(value, int | float):
        if value != value or abs(value) <= MAX_FLOAT:
            return float(value)
        return np.inf if value > 0 else -np.inf  # JSON's whole numbers have no end
    time = time_ns(value)
    return np.nan if time is None else time / 1e9
