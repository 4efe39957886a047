"""Walks over the headers of a shard: which samples are whole, and where the first damage is (FORMAT.md 2, 6)."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vrl3data.errors import DamagedError, locate
from vrl3data.shard import (
    BLOCK,
    COMMIT_MEMBER,
    END,
    FILE_NAME,
    HEAD_MEMBER,
    KEY_DIGITS,
    PART,
    Entry,
    check_meta,
    check_shard_head,
    padded,
    parse_commit,
    parse_member_header,
    unsealed,
)

MAX_HEAD = 64 * 1024**2
ZEROS = 1024**2
"""Looked at at a time for the end of what was written."""


@dataclass
class Scan:
    """What a walk over the headers of one shard found. `end` is where the last whole sample ends."""

    head: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    end: int = 0
    torn_bytes: int = 0
    closed: bool = False


def map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DamagedError("the shard is empty") from error


def read_head(path: Path, linked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`__meta__` of a shard, the first member, and nothing else. DamagedError, FormatError."""
    with locate(shard=path.name), path.open("rb") as file:
        name, size = parse_member_header(file.read(BLOCK))
        if name != HEAD_MEMBER or size > MAX_HEAD:
            raise DamagedError(f"expected the member {HEAD_MEMBER} first, found {name!r} of {size} bytes")
        head = check_shard_head(unsealed(file.read(size), name))
        _check_place(path.name, linked, head)
        return head


def scan(path: Path, window: int = 0, linked: Mapping[str, Any] | None = None) -> Scan:
    """Walk a shard without looking at payloads other than commit records.

    A torn tail is accepted in a `.part` only; anything else that FORMAT.md does not allow is a DamagedError. With
    `window`, damage in a `.part` ends the walk like a torn tail if fewer than `window` whole samples follow it:
    after a power cut, blocks of samples that were not confirmed may be lost before later ones. `linked`: what
    dataset.json says of a shard of another dataset, which keeps its own name in its head.
    """
    part = path.name.endswith(PART)
    with locate(shard=path.name):
        if part and path.stat().st_size == 0:
            return Scan({})
        with map_file(path) as data:
            walk = _Walk(data, part)
            try:
                result = walk.run()
            except DamagedError:
                if not part or walk.result is None or walk.records_after(walk.result.end) >= window:
                    raise
                result = walk.torn()
        _check_place(path.name, linked, result.head)
        return result


def _check_place(name: str, linked: Mapping[str, Any] | None, head: Mapping[str, Any]) -> None:
    """The head of a shard says which one it is; so does its name, or dataset.json of a linked one."""
    for key in ("dataset_id", "split", "shard") if linked is not None else ():
        if linked is not None and head[key] != linked.get(key):
            raise DamagedError(f"dataset.json links a shard of {key} {linked.get(key)!r}, found one of {head[key]!r}")
    if linked is not None:
        return
    match = FILE_NAME.fullmatch(name)
    if head and (match is None or (match[1], int(match[2])) != (head["split"], head["shard"])):
        raise DamagedError(
            f"by its head the shard is number {head['shard']} of split {head['split']!r}, not by its name"
        )


class _Walk:
    """The state of one scan."""

    def __init__(self, data: mmap.mmap, part: bool) -> None:
        self.data, self.part, self.size = data, part, len(data)
        self.result: Scan | None = None
        self.members: dict[str, tuple[int, int]] = {}
        self.key = -1

    def run(self) -> Scan:
        offset = 0
        while offset < self.size:
            block = self.data[offset : offset + BLOCK]
            if not any(block):
                return self._finish(offset)
            if len(block) < BLOCK:
                return self.torn()
            if self._unwritten(offset + BLOCK):
                return self.torn()
            with locate(offset=offset):
                name, size = parse_member_header(block)
                start = offset + BLOCK
                if start + padded(size) > self.size:
                    return self.torn()
                if name.endswith((COMMIT_MEMBER, HEAD_MEMBER)) and self._unwritten(start + size - 1):
                    return self.torn()
                self._member(name, start, size)
            offset = start + padded(size)
        return self.torn()

    def _unwritten(self, offset: int) -> bool:
        """Whether a crash left a `.part` with nothing but zeros from here on. Whole members never end so."""
        return self.part and offset >= self._written

    @cached_property
    def _written(self) -> int:
        """Where the zeros begin that the file ends with."""
        end = self.size
        while end > 0:
            start = max(0, end - ZEROS)
            rest = self.data[start:end].rstrip(b"\0")
            if rest:
                return start + len(rest)
            end = start
        return 0

    def _member(self, name: str, start: int, size: int) -> None:
        if self.result is None:
            if name != HEAD_MEMBER:
                raise DamagedError(f"expected the member {HEAD_MEMBER} first, found {name!r}")
            head = check_shard_head(unsealed(self.data[start : start + size], name))
            self.result = Scan(head, end=start + padded(size))
            return
        key, dot, member = name.partition(".")
        if not (dot and key.isdigit() and len(key) == KEY_DIGITS):
            raise DamagedError(f"member {name!r} belongs to no sample")
        if self.members and int(key) != self.key:
            raise DamagedError(f"sample {self.key:09d} has no {COMMIT_MEMBER} before {name!r}")
        if member in self.members:
            raise DamagedError(f"member {name!r} occurs twice")
        self.key = int(key)
        self.members[member] = (start, size)
        if member == COMMIT_MEMBER:
            self._commit(start, size)

    def _commit(self, start: int, size: int) -> None:
        assert self.result is not None
        meta = parse_commit(self.data[start : start + size])
        check_meta(meta, self.result.head["kind"])
        if meta["split"] != self.result.head["split"]:
            raise DamagedError(f"sample {self.key:09d} is of split {meta['split']!r}, not of the shard's")
        before = {name: place for name, place in self.members.items() if name != COMMIT_MEMBER}
        sizes = [str(place[1]) for place in before.values()]
        if meta["members"].split(",") != list(before) or meta["sizes"].split(",") != sizes:
            raise DamagedError(f"sample {self.key:09d}: the members are not those of its commit record")
        last = self.result.entries[-1].key if self.result.entries else None
        if last is not None and self.key != last + 1:
            raise DamagedError(f"expected sample {last + 1:09d}, found {self.key:09d}")
        self.result.entries.append(Entry(self.key, self.members, meta))
        self.result.end = start + padded(size)
        self.members = {}

    def _finish(self, offset: int) -> Scan:
        """Zeros: the end of a shard, or blocks that a crash left unwritten in a `.part`."""
        rest = self.data[offset:]
        if self.result is None and not any(rest):
            return self.torn()
        if self.result is not None and rest == END and not self.members:
            self.result.closed = True
            return self.result
        if self.part and not any(rest):
            return self.torn()
        raise DamagedError("expected two zero blocks at the end of the shard")

    def records_after(self, offset: int) -> int:
        """How many whole commit records of further samples lie behind `offset`, wherever they are.

        That of the damaged sample itself may have reached the disk without the rest of it.
        """
        assert self.result is not None
        own = self.result.entries[-1].key + 1 if self.result.entries else self.key
        count, place = 0, self.data.find(b"ustar\x0000", offset)
        while place >= 0:
            count += self._is_record(place - 257, own)
            place = self.data.find(b"ustar\x0000", place + 1)
        return count

    def _is_record(self, start: int, own: int) -> bool:
        try:
            name, size = parse_member_header(self.data[start : start + BLOCK])
            parse_commit(self.data[start + BLOCK : start + BLOCK + size])
        except DamagedError:
            return False
        key, _, member = name.partition(".")
        return member == COMMIT_MEMBER and key != f"{own:0{KEY_DIGITS}d}"

    def torn(self) -> Scan:
        if self.part:
            result = self.result or Scan({})
            result.torn_bytes = self.size - result.end
            return result
        raise DamagedError("the shard is cut off: it has no end mark")
