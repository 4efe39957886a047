"""What a log holds, whatever its container: topics, and their messages in the order of the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vrl3data.errors import ConfigError, SourceError, did_you_mean, locate

CONTAINERS = {
    "mcap": "converters.logs.mcap_log:McapLog",
    "bag": "converters.logs.bag1_log:BagLog",
    "db3": "converters.logs.db3_log:Db3Log",
    "rosbag2": "converters.logs.folder_log:FolderLog",
}
MAGIC = {b"\x89MCAP": "mcap", b"#ROSBAG V": "bag", b"#ROSRECORD V": "bag", b"SQLite format 3\0": "db3"}
ZSTD = b"\x28\xb5\x2f\xfd"
MAX_NS = 2**63 - 1


@dataclass(frozen=True)
class Topic:
    """`count` is -1 where it is not known without reading; `error` says why its messages cannot be decoded."""

    name: str
    type: str
    encoding: str
    count: int = -1
    error: str = ""


class Message(NamedTuple):
    """Times are nanoseconds. `header_ns` is None where the type has no stamp, 0 where nobody set it.

    `value` is a nested dict of plain values and arrays; with `decode=False` the message's bytes.
    """

    topic: str
    log_ns: int
    publish_ns: int
    header_ns: int | None
    value: Any


class Raw(NamedTuple):
    """A message as it lies in the file. `channel` is the container's own number of a topic and a type."""

    channel: int
    log_ns: int
    publish_ns: int
    data: bytes | memoryview


@dataclass(frozen=True)
class Channel:
    """What a container says of one of its channels. `schema_encoding` is that of the definition, empty if none."""

    topic: str
    type: str
    encoding: str
    schema_encoding: str = ""
    schema: bytes = b""


class LogFile(ABC):
    """One log. A container says what channels it has and gives their raw messages; the rest comes from here."""

    kind: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hint = ""
        """The distribution of ROS that recorded it, where that is known."""
        self._notes: dict[str, str] = {}
        self._decoders: dict[int, Any] = {}
        self._counts: dict[int, int] = {}

    # -- what a container says -----------------------------------------------------------------------------

    @abstractmethod
    def channels(self) -> Mapping[int, Channel]:
        """The channels by the container's numbers. What is found later is added to the same mapping."""

    @abstractmethod
    def raw(self, wanted: Collection[int] | None) -> Iterator[Raw]:
        """The messages in file order; those of channels that are not wanted may be left out."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Facts for `source_meta`: plain values, no paths."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    # -- what they share -----------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        """What was wrong and passed over, so far."""
        return list(self._notes.values())

    def note(self, key: str, text: str) -> None:
        """A problem; a later one with the same key replaces it."""
        self._notes[key] = text

    def topics(self) -> dict[str, Topic]:
        """All topics, in the order of their names."""
        found: dict[str, Topic] = {}
        for number, channel in sorted(self.channels().items(), key=lambda item: (item[1].topic, item[0])):
            count = self._counts.get(number, -1)
            before = found.get(channel.topic)
            if before is None:
                error = self._decoder(number).error
                found[channel.topic] = Topic(channel.topic, channel.type, channel.encoding, count, error)
            elif self._fits(channel, before):
                together = -1 if -1 in (before.count, count) else before.count + count
                found[channel.topic] = Topic(before.name, before.type, before.encoding, together, before.error)
            else:
                self.note(
                    f"type {channel.topic} {channel.type}",
                    f"{channel.topic}: messages of type {channel.type} are passed over, it is a topic of {before.type}",
                )
        return found

    def messages(self, names: Collection[str] | None = None, decode: bool = True) -> Iterator[Message]:
        """One pass in file order. Messages that cannot be decoded are passed over and counted in `problems`.

        SourceError if a topic asked for by name cannot be decoded at all.
        """
        topics = self.topics()
        if names is not None:
            self._check(names, topics)
        chosen = {name for name, topic in topics.items() if names is None or name in names}
        channels = self.channels()
        fitting = {number for number, channel in channels.items()
                   if channel.topic in chosen and self._fits(channel, topics[channel.topic])}  # fmt: skip
        broken: dict[str, list[Any]] = {}
        read = dict.fromkeys(fitting, 0)
        try:
            for number, log_ns, publish_ns, data in self.raw(None if names is None else fitting):
                if number not in fitting:
                    if names is not None or not self._is_new(number, topics):
                        continue
                    fitting.add(number)
                read[number] = read.get(number, 0) + 1
                name, decoder = channels[number].topic, self._decoder(number)
                try:
                    header_ns, value = decoder.read(data, decode)
                except SourceError as error:
                    broken.setdefault(name, [0, log_ns, error])[0] += 1
                    continue
                yield Message(name, log_ns, publish_ns, header_ns, value)
            self._compare(read)
        finally:
            self._note_broken(broken)

    def decode(self, name: str, data: bytes | memoryview) -> Any:
        """The values of a message of a topic that was read without `decode`. SourceError if it cannot be decoded."""
        for number, channel in self.channels().items():
            if channel.topic == name:
                return self._decoder(number).read(data, True)[1]
        raise ConfigError(f"the log has no topic {name!r}")

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def _check(self, names: Collection[str], topics: Mapping[str, Topic]) -> None:
        for name in names:
            if name not in topics:
                raise ConfigError(f"the log has no topic {name!r}{did_you_mean(name, topics)}")
            if topics[name].error:
                with locate(path=self.path.name, feature=name):
                    raise SourceError(topics[name].error)

    def _is_new(self, number: int, topics: dict[str, Topic]) -> bool:
        """Whether a channel that showed up while reading is one that `topics` did not know."""
        channel = self.channels().get(number)
        if channel is None or channel.topic in topics:
            return channel is not None and self._fits(channel, topics[channel.topic])
        topics[channel.topic] = Topic(channel.topic, channel.type, channel.encoding, -1, self._decoder(number).error)
        return True

    @staticmethod
    def _fits(channel: Channel, topic: Topic) -> bool:
        return (channel.type, channel.encoding) == (topic.type, topic.encoding)

    def _decoder(self, number: int) -> Any:
        if number not in self._decoders:
            from converters.logs.decode import make_decoder

            self._decoders[number] = make_decoder(self.channels()[number], self.hint)
        return self._decoders[number]

    def _compare(self, read: Mapping[int, int]) -> None:
        """Name the channels of which an index counts other than what was there."""
        for number, count in read.items():
            counted = self._counts.get(number, count)
            if counted != count:
                name = self.channels()[number].topic
                self.note(f"count {number}", f"{name}: the file counts {counted:,} messages, {count:,} were read")

    def _note_broken(self, broken: Mapping[str, list[Any]]) -> None:
        for name, (count, log_ns, error) in broken.items():
            what = f"{count:,} messages" if count > 1 else "one message"
            self.note(f"broken {name}", f"{name}: {what} cannot be decoded, the first at {log_ns} ns: {error}")
        channels = self.channels()
        for number, decoder in self._decoders.items():
            if decoder.trailing:
                name = channels[number].topic
                text = f"{name}: {decoder.trailing:,} messages are longer than their type says; the rest is ignored"
                self.note(f"trailing {name}", text)


def is_log(path: Path) -> bool:
    """Whether a file or folder is a log of a kind that is read, by its content. Damaged ones are logs as well."""
    return _container(Path(path)) != ""


def open_log(path: Path) -> LogFile:
    """Open a log. SourceError if it is none, or one that cannot be read at all."""
    path = Path(path)
    with locate(path=path.name):
        container = _container(path)
        if not container:
            raise SourceError(_why_not(path))
        module, name = CONTAINERS[container].split(":")
        log: LogFile = getattr(import_module(module), name)(path)
        return log


def _container(path: Path) -> str:
    if path.is_dir():
        from converters.logs.folder_log import is_recording

        return "rosbag2" if is_recording(path) else ""
    head = _head(path)
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _why_not(path: Path) -> str:
    expected = "expected an MCAP file, a ROS bag or a rosbag2 database (.db3)"
    if not path.exists():
        return "no such file or folder"
    if path.is_dir():
        return "expected a recording of rosbag2: metadata.yaml, or .mcap or .db3 files of one recording"
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        return f"cannot read: {error.strerror or error}"
    if not head:
        return "the file is empty"
    if head.startswith(ZSTD):
        return "compressed as a whole by zstd: unpack it first (zstd -d)"
    return f"{expected}, found a file that begins with {head[:8]!r}"
