"""From the bytes of a message to its values, by the encoding and the definition of its channel."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from converters.logs.definitions import Definitions, distros, full_name, parse, standard
from converters.logs.messages import Channel
from converters.logs.unpack import ZSTD, unpack_message
from converters.logs.wire import Order, Reader, Wire
from vrl3data.errors import SourceError

ROS = {"cdr": ("ros2msg", "ros2idl"), "ros1": ("ros1msg",)}
STAMPS = (("sec", "nanosec"), ("sec", "nsec"), ("seconds", "nanos"), ("secs", "nsecs"))
"""ROS 2, foxglove, protobuf, ROS 1 as JSON."""
ENCAPSULATIONS: dict[bytes, Order] = {b"\x00\x00": ">", b"\x00\x01": "<"}
TRIES = 20
"""Messages that may choose between distributions of ROS, where the log has no definitions."""


class Decoder:
    """Reads the messages of one channel. `error` says why it cannot; `trailing` counts messages that are too long."""

    def __init__(self, error: str = "") -> None:
        self.error, self.trailing = error, 0

    def read(self, data: bytes | memoryview, decode: bool) -> tuple[int | None, Any]:
        """(stamp of the header in nanoseconds, values); without `decode` the bytes instead of the values."""
        if decode and self.error:
            raise SourceError(self.error)
        if self.error:
            return None, data
        value = self.values(data)
        return stamp_ns(value), value if decode else data

    def values(self, data: bytes | memoryview) -> Any:
        raise NotImplementedError


class RosDecoder(Decoder):
    """ROS 1 and CDR. A header that comes first lies at a fixed place, so that its stamp needs no decoding."""

    def __init__(self, name: str, given: list[Definitions], *, cdr: bool) -> None:
        super().__init__()
        self.name, self.cdr = name, cdr
        orders: list[Order] = list(ENCAPSULATIONS.values()) if cdr else ["<"]
        self.given: list[dict[str, Reader]] = []
        problems = []
        for definitions in given:
            try:
                self.given.append({order: Wire(definitions, cdr=cdr, order=order).reader(name)
                                   for order in orders})  # fmt: skip
            except SourceError as error:
                problems.append(error.message)
        self.readers = self.given[0] if self.given else {}
        self.tries = TRIES if len(self.given) > 1 else 0
        self.error = "" if self.given else problems[0]
        fields = [definitions[name] for definitions in given if name in definitions]
        self.headed = bool(fields) and all(_begins_with_header(kind) for kind in fields)

    def read(self, data: bytes | memoryview, decode: bool) -> tuple[int | None, Any]:
        if not decode and self.headed and not self.error:
            body, order = self._body(data)
            try:
                sec, nsec = struct.unpack_from(order + ("iI" if self.cdr else "II"), body, 0 if self.cdr else 4)
            except struct.error as error:
                raise SourceError(f"a message of {len(data)} bytes has no room for its header") from error
            return sec * 1_000_000_000 + nsec, data
        return super().read(data, decode)

    def values(self, data: bytes | memoryview) -> Any:
        body, order = self._body(data)
        if self.tries:
            self.tries -= 1
            self._choose(body, order)
        value, end = self._parse(self.readers[order], body)
        self.trailing += len(body) - end > (3 if self.cdr else 0)
        return value

    def _body(self, data: bytes | memoryview) -> tuple[memoryview, str]:
        if not self.cdr:
            return memoryview(data), "<"
        if bytes(data[:4]) == ZSTD:
            data = unpack_message(data)
        order = ENCAPSULATIONS.get(bytes(data[:2]))
        if order is None or len(data) < 4:
            raise SourceError(f"expected CDR data (00 00 or 00 01), found {bytes(data[:4]).hex(' ') or 'nothing'}")
        return memoryview(data)[4:], order

    def _parse(self, reader: Reader, body: memoryview) -> tuple[Any, int]:
        try:
            value, end = reader(body, 0)
        except (struct.error, ValueError) as error:
            raise SourceError(f"{self.name} does not fit in {len(body)} bytes") from error
        if end > len(body):
            raise SourceError(f"{self.name} does not fit in {len(body)} bytes")
        return value, end

    def _choose(self, body: memoryview, order: str) -> None:
        """The first definition that takes all of the bytes; it stays for the messages after."""
        for readers in [self.readers, *self.given]:
            try:
                _, end = self._parse(readers[order], body)
            except SourceError:
                continue
            if len(body) - end <= 3:
                self.readers = readers
                return


class JsonDecoder(Decoder):
    def values(self, data: bytes | memoryview) -> Any:
        try:
            value = json.loads(bytes(data))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"not JSON: {error}") from error
        return value if isinstance(value, dict) else {"value": value}


class ProtobufDecoder(Decoder):
    def __init__(self, reader: Callable[[bytes], Mapping[str, Any]]) -> None:
        super().__init__()
        self.reader = reader

    def values(self, data: bytes | memoryview) -> Any:
        return self.reader(bytes(data))


def make_decoder(channel: Channel, hint: str = "") -> Decoder:
    """The decoder of a channel; one whose `error` is set if there can be none. `hint`: a distribution of ROS."""
    try:
        if channel.encoding in ROS:
            return _ros(channel, hint)
        if channel.encoding == "json":
            return JsonDecoder()
        if channel.encoding == "protobuf":
            from converters.logs.protobuf import reader_of

            return ProtobufDecoder(reader_of(channel.schema, channel.type, channel.schema_encoding))
    except SourceError as error:
        return Decoder(error.message)
    return Decoder(f"messages encoded as {channel.encoding!r} cannot be decoded; cdr, ros1, json and protobuf can")


def stamp_ns(value: Any) -> int | None:
    """The stamp in a message: its header's, its `timestamp` (foxglove), or that of its first transform."""
    if not isinstance(value, dict):
        return None
    header = value.get("header")
    if isinstance(header, dict):
        return time_ns(header.get("stamp"))
    for key in ("timestamp", "stamp"):
        if key in value:
            return time_ns(value[key])
    transforms = value.get("transforms")
    return stamp_ns(transforms[0]) if isinstance(transforms, list) and transforms else None


def time_ns(stamp: Any) -> int | None:
    """Nanoseconds of a time of seconds and nanoseconds, as ROS, foxglove, protobuf and JSON spell it."""
    if not isinstance(stamp, dict):
        return None
    for seconds, nanos in STAMPS:
        sec, nsec = stamp.get(seconds), stamp.get(nanos)
        if isinstance(sec, int) and isinstance(nsec, int) and len(stamp) == 2 and abs(sec) < 2**33:
            return sec * 1_000_000_000 + nsec
    return None


def _ros(channel: Channel, hint: str) -> Decoder:
    name, cdr = full_name(channel.type), channel.encoding == "cdr"
    if channel.schema.strip():
        if channel.schema_encoding not in ROS[channel.encoding]:
            raise SourceError(f"definitions in {channel.schema_encoding!r} cannot be read for {channel.encoding}")
        text = channel.schema.decode("utf-8", "replace")
        return RosDecoder(name, [parse(text, channel.type, channel.schema_encoding)], cdr=cdr)
    stores = [standard(distro) for distro in (distros(hint) if cdr else ("noetic",))]
    known = [store for store in stores if name in store]
    if not known:
        raise SourceError(f"the log has no definition of the type {channel.type}, which is not a standard one")
    return RosDecoder(name, known, cdr=cdr)


def _begins_with_header(fields: list[tuple[str, Any]]) -> bool:
    return bool(fields) and fields[0][0] == "header" and fields[0][1] == (2, "std_msgs/msg/Header")
