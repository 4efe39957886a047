"""What ROS messages are made of: definitions found in a log, or those of the standard packages.

The rosbags library parses the text; no code is made of it (its deserializers are generated source, see wire.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from converters.logs.libraries import library
from vrl3data.errors import SourceError

Fields = list[tuple[str, Any]]
"""(name of the field, rosbags' description of its type)."""
Definitions = Mapping[str, Fields]
MAX_TEXT = 2**20
DISTROS = ("humble", "jazzy", "foxy", "iron", "galactic", "eloquent", "dashing")
"""Tried in this order for logs without definitions."""
TIME, DURATION = "builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration"
_I32, _U32 = (1, ("int32", 0)), (1, ("uint32", 0))
BUILTIN: Definitions = {TIME: [("sec", _I32), ("nanosec", _U32)], DURATION: [("sec", _I32), ("nanosec", _U32)]}
BUILTIN_1: Definitions = {TIME: [("sec", _U32), ("nanosec", _U32)], DURATION: [("sec", _I32), ("nanosec", _I32)]}
"""Times of ROS 2 and of ROS 1; definitions in a log do not always contain them."""


def full_name(type_name: str) -> str:
    """`std_msgs/String`, as ROS 1 and early ROS 2 say, is `std_msgs/msg/String`."""
    parts = type_name.replace("::", "/").split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else "/".join(part for part in parts if part != "dds_")


def parse(text: str, type_name: str, encoding: str) -> Definitions:
    """The definitions in a schema (`ros1msg`, `ros2msg`, `ros2idl`). SourceError if it cannot be parsed."""
    if len(text) > MAX_TEXT:
        raise SourceError(f"the definition of {type_name} has {len(text):,} characters; {MAX_TEXT:,} are read")
    text = text.replace("\r\n", "\n").replace("\t", " ").rstrip("\0")
    builtin = BUILTIN_1 if encoding == "ros1msg" else BUILTIN
    return {**builtin, **_parse(text, full_name(type_name), encoding)}


@cache
def _parse(text: str, name: str, encoding: str) -> Definitions:
    parser = library("rosbags.typesys.idl" if encoding == "ros2idl" else "rosbags.typesys.msg")
    wrong = (library("rosbags.typesys.base").TypesysError, ValueError, RecursionError, KeyError, IndexError)
    try:
        if encoding == "ros2idl":
            found = {}
            for part in _idl_parts(text):
                found.update(parser.get_types_from_idl(part))
        else:
            found = parser.get_types_from_msg(text, name)
    except wrong as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"the definition of {name} in the log cannot be parsed: {reason}") from error
    return {key: value[1] for key, value in found.items()}


def _idl_parts(text: str) -> list[str]:
    """The files of a ros2idl schema, without `IDL: package/msg/Name` and what is meant for a preprocessor."""
    parts = re.split(r"^=+\n", text, flags=re.MULTILINE)
    return [re.sub(r"^(IDL: |#)[^\n]*\n", "", part, flags=re.MULTILINE) for part in parts if part.strip()]


@cache
def standard(distro: str) -> Definitions:
    """The definitions of the standard packages in one distribution of ROS (`noetic` is ROS 1)."""
    stores = library("rosbags.typesys")
    kind = getattr(stores.Stores, f"ROS1_{distro.upper()}" if distro == "noetic" else f"ROS2_{distro.upper()}")
    known = {name: entry[1] for name, entry in stores.get_typestore(kind).fielddefs.items()}
    return {**known, **(BUILTIN_1 if distro == "noetic" else BUILTIN)}


def distros(hint: str) -> tuple[str, ...]:
    """Which distributions to try, the one the log names first."""
    known = (hint,) if hint in DISTROS else ()
    return known + tuple(name for name in DISTROS if name != hint)
