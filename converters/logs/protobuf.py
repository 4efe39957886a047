"""Protobuf messages as nested dicts, by the descriptors in the log. No generated code is needed or imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converters.logs.libraries import library
from vrl3data.errors import SourceError

MAX_DESCRIPTORS, MAX_FILES = 2**24, 500
ARRAYS = {1: "float64", 2: "float32", 3: "int64", 4: "uint64", 5: "int32", 6: "uint64", 7: "uint32", 8: "bool",
          13: "uint32", 14: "int32", 15: "int32", 16: "int64", 17: "int32", 18: "int64"}  # fmt: skip
"""Numbers of protobuf's types that become arrays when they are repeated."""


def reader_of(schema: bytes, name: str, schema_encoding: str) -> Callable[[bytes], Mapping[str, Any]]:
    """What turns the bytes of the message type `name` into values. SourceError if the schema does not describe it."""
    if schema_encoding != "protobuf" or not schema:
        raise SourceError(f"protobuf messages need a schema of descriptors, found {schema_encoding or 'none'}")
    if len(schema) > MAX_DESCRIPTORS:
        raise SourceError(f"the descriptors of {name} have {len(schema):,} bytes; {MAX_DESCRIPTORS:,} are read")
    make = _message_class(schema, name)
    wrong = library("google.protobuf.message").DecodeError

    def read(data: bytes) -> Mapping[str, Any]:
        try:
            return _values(make.FromString(data))
        except wrong as error:
            raise SourceError(f"not a message of {name}: {error}") from error

    return read


def _message_class(schema: bytes, name: str) -> Any:
    pools, factory = library("google.protobuf.descriptor_pool"), library("google.protobuf.message_factory")
    wrong = library("google.protobuf.message").DecodeError
    try:
        files = library("google.protobuf.descriptor_pb2").FileDescriptorSet.FromString(schema)
        pool, waiting = pools.DescriptorPool(), list(files.file)
        if len(waiting) > MAX_FILES:
            raise SourceError(f"the descriptors of {name} are {len(waiting):,} files; {MAX_FILES:,} are read")
        while waiting:  # a file may stand before those it needs
            missing = {file.name for file in waiting}
            ready = [file for file in waiting if not missing.intersection(file.dependency)]
            if not ready:
                raise SourceError(f"the descriptors of {name} depend on one another in a circle")
            for file in ready:
                pool.Add(file)
            done = {file.name for file in ready}
            waiting = [file for file in waiting if file.name not in done]
        return factory.GetMessageClass(pool.FindMessageTypeByName(name))
    except (wrong, TypeError, KeyError, ValueError) as error:
        raise SourceError(f"the descriptors of {name} in the log are not usable: {error}") from error


def _values(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            found[field.name] = _several(field, value)
        elif field.message_type is None:
            found[field.name] = np.frombuffer(value, np.uint8) if field.type == 12 else value
        elif message.HasField(field.name):  # an absent message stays absent: it may be one that holds itself
            found[field.name] = _values(value)
    return found


def _several(field: Any, value: Any) -> Any:
    if field.type in ARRAYS:
        return np.array(value, ARRAYS[field.type])
    if field.message_type is None:
        return list(value)
    if field.message_type.GetOptions().map_entry:
        return {str(key): value[key] if field.message_type.fields_by_name["value"].message_type is None
                else _values(value[key]) for key in value}  # fmt: skip
    return [_values(item) for item in value]
