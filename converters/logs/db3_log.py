"""rosbag2 databases (SQLite), opened so that nothing is ever written, with the write-ahead log beside them."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from converters.logs.messages import Channel, LogFile, Raw
from converters.logs.reading import OpenFile
from converters.logs.unpack import MAX_MESSAGE
from vrl3data.errors import SourceError

TABLES = {"topics": {"id", "name", "type", "serialization_format"}, "messages": {"id", "topic_id", "timestamp", "data"}}
MAX_TOPICS = 100_000
UNLOCKED = "win32-none" if os.name == "nt" else "unix-none"
"""A way of SQLite to open files that never locks or makes any."""


class Db3Log(LogFile):
    kind = "db3"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        wal, journal = path.with_name(path.name + "-wal"), path.with_name(path.name + "-journal")
        try:
            self._wal = wal.is_file() and wal.stat().st_size > 0
            if journal.is_file() and journal.stat().st_size:
                self.note("journal", "the recording was stopped inside a write: its journal is not applied")
            self._size = path.stat().st_size
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror or error}") from error
        self._cut = not self._wal and self._is_cut_off()
        self._database = self._open()
        try:
            with reading():
                self._check_tables()
                self._channels = dict(self._read_channels())
                self.hint = self._distro()
        except SourceError:
            self._database.close()
            raise
        self._counted = False

    def channels(self) -> Mapping[int, Channel]:
        if not self._counted:
            self._counted = True
            self._count()
        return self._channels

    def info(self) -> dict[str, Any]:
        return {"container": "db3", "bytes": self._size, "write_ahead_log": self._wal, "ros_distro": self.hint}

    def close(self) -> None:
        self._database.close()

    def raw(self, wanted: Collection[int] | None) -> Iterator[Raw]:
        last = -(2**63)
        cursor = self._database.cursor()
        columns = "id, topic_id, typeof(timestamp), timestamp, typeof(data), data"
        try:
            with reading():
                for row, number, time_type, time, data_type, data in cursor.execute(
                    f"SELECT {columns} FROM messages NOT INDEXED ORDER BY id"
                ):
                    if row <= last:  # a damaged tree may lead in a circle
                        raise SourceError(f"row {row} comes after row {last}")
                    last = row
                    if number not in self._channels:
                        self.note(f"topic {number}", f"messages of topic {number} are passed over: it has no name")
                    elif time_type != "integer" or data_type != "blob":
                        self.note("row", f"rows are passed over that hold no time and bytes, as row {row}")
                    elif wanted is None or number in wanted:
                        yield Raw(number, time, time, data)
        except SourceError as error:
            self.note("end", f"nothing is read behind row {last}: {error}")
        finally:
            cursor.close()

    def _open(self) -> sqlite3.Connection:
        """Read-only and immutable; with a write-ahead log the same by a way that makes no files either."""
        name = quote(str(self.path.absolute()))
        way = f"vfs={UNLOCKED}" if self._wal else "immutable=1"
        with reading():
            database = sqlite3.connect(f"file:{name}?mode=ro&{way}", uri=True, check_same_thread=False)
            for setting in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "query_only=ON"):
                database.execute(f"PRAGMA {setting}")
            if self._cut:
                database.execute("PRAGMA writable_schema=ON")  # else a file that is too short is not read at all
            if self._wal:
                database.execute("PRAGMA locking_mode=EXCLUSIVE")  # the log's index stays in memory, none is made
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_MESSAGE)
            database.text_factory = lambda data: data.decode("utf-8", "replace")
        return database

    def _check_tables(self) -> None:
        """Real tables with the columns of rosbag2, no views: a view can be an endless query."""
        for table, columns in TABLES.items():
            query = "SELECT type, sql FROM sqlite_master WHERE name = ? AND type IN ('table', 'view')"
            found = self._database.execute(query, (table,)).fetchone()
            if found is None:
                raise SourceError(f"a database without the table {table!r} of rosbag2")
            if found[0] != "table" or "VIRTUAL" in str(found[1]).upper().split("(")[0]:
                raise SourceError(f"{table!r} is not a plain table")
            there = {row[1]: row[6] for row in self._database.execute(f"PRAGMA table_xinfo({table})")}
            if not columns <= set(there) or any(there.values()):
                raise SourceError(f"table {table!r}: expected the columns {', '.join(sorted(columns))} of rosbag2, "
                                  f"found {', '.join(map(str, there))[:200]}")  # fmt: skip

    def _is_cut_off(self) -> bool:
        """Whether there are fewer pages than the head of the file counts."""
        file = OpenFile(self.path)
        head = file.read(0, 32)
        file.close()
        if len(head) < 32:
            return False
        size, pages = struct.unpack(">H10xI", head[16:])
        size = 2**16 if size == 1 else size
        there = self._size // size if size else 0
        if there < pages:
            self.note("cut", f"the file is cut off: {there:,} of {pages:,} pages are there")
        return there < pages

    def _read_channels(self) -> Iterator[tuple[int, Channel]]:
        definitions = self._definitions()
        query = f"SELECT id, name, type, serialization_format FROM topics LIMIT {MAX_TOPICS}"
        for number, name, kind, encoding in self._database.execute(query):
            if not (isinstance(number, int) and all(isinstance(text, str) for text in (name, kind, encoding))):
                raise SourceError("the table 'topics' holds something else than numbers and names")
            form, text = definitions.get(kind, ("", ""))
            yield number, Channel(name, kind, encoding, form, text.encode())

    def _definitions(self) -> dict[str, tuple[str, str]]:
        """Type -> (encoding, text) of recordings since ROS 2 iron."""
        columns = {row[1] for row in self._database.execute("PRAGMA table_xinfo(message_definitions)")}
        if not {"topic_type", "encoding", "encoded_message_definition"} <= columns:
            return {}
        query = f"SELECT topic_type, encoding, encoded_message_definition FROM message_definitions LIMIT {MAX_TOPICS}"
        return {kind: (form, text) for kind, form, text in self._database.execute(query) if isinstance(text, str)
                and form not in ("", "unknown")}  # fmt: skip

    def _distro(self) -> str:
        """The distribution that recorded it, which recordings since ROS 2 iron name."""
        columns = {row[1] for row in self._database.execute("PRAGMA table_xinfo(schema)")}
        found = self._database.execute("SELECT ros_distro FROM schema").fetchone() if "ros_distro" in columns else None
        return found[0] if found and isinstance(found[0], str) else ""

    def _count(self) -> None:
        try:
            with reading():
                found = self._database.execute("SELECT topic_id, count(*) FROM messages NOT INDEXED GROUP BY topic_id")
                self._counts = dict.fromkeys(self._channels, 0) | dict(found.fetchall())
        except SourceError as error:
            self.note("count", f"the messages cannot be counted: {error}")


@contextmanager
def reading() -> Iterator[None]:
    """SQLite's complaints as ours."""
    try:
        yield
    except (sqlite3.DatabaseError, sqlite3.InterfaceError, OverflowError, UnicodeDecodeError) as error:
        raise SourceError(f"the database cannot be read: {error}") from error
