"""Damaged and hostile logs: what is whole is read, what is not is named, time and memory stay bounded."""

from __future__ import annotations

import bz2
import random
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from conftest import ROOT
from make_logs import START, Item, Mcap, bare_db3, joints, some, unindexed, write_bag, write_db3, write_json, write_mcap
from mcap.writer import CompressionType

from converters.logs import unpack
from converters.logs.messages import is_log, open_log
from converters.logs.survey import survey
from vrl3data.errors import SourceError

ARM = [joints(2, number) for number in range(20)]


def look(path: Path) -> tuple[int, list[str]]:
    """(messages that were read, problems)."""
    with open_log(path) as log:
        return len(list(log.messages())), log.problems


def mcap_record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def mcap_chunk(compression: str, size: int, data: bytes, crc: int = 0) -> bytes:
    name = compression.encode()
    head = struct.pack("<QQQII", START, START, size, crc, len(name)) + name
    return mcap_record(6, head + struct.pack("<Q", len(data)) + data)


def mcap_of(*records: bytes) -> bytes:
    return b"\x89MCAP0\r\n" + mcap_record(1, struct.pack("<II", 0, 0)) + b"".join(records)


def bag_record(fields: dict[str, bytes], data: bytes) -> bytes:
    entries = [name.encode() + b"=" + value for name, value in fields.items()]
    head = b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    return struct.pack("<I", len(head)) + head + struct.pack("<I", len(data)) + data


def bag_of(*records: bytes, **more: bytes) -> bytes:
    fields = {"op": b"\3", "index_pos": bytes(8), "conn_count": bytes(4), "chunk_count": bytes(4), **more}
    return b"#ROSBAG V2.0\n" + bag_record(fields, b" " * 100) + b"".join(records)


def spoiled(path: Path, at: int, value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["mcap", "mcap-flat", "bag", "bag-unindexed"])
def test_a_file_cut_off_anywhere(tmp_path: Path, kind: str) -> None:
    """The messages before the cut are read, in order; a cut file always has a problem, or is refused."""
    if kind.startswith("mcap"):
        path = write_mcap(tmp_path / "a.mcap", some(2, 8), Mcap(chunked=kind == "mcap", summary=kind == "mcap"))
    else:
        path = write_bag(tmp_path / "a.bag", some(1, 8))
    if kind == "bag-unindexed":
        unindexed(path)
    data = path.read_bytes()
    most = refused = 0
    for end in range(0, len(data), 97):
        path.write_bytes(data[:end])
        try:
            count, problems = look(path)
        except SourceError:
            refused = end
            continue
        assert problems, end
        assert count >= most
        most = count
    assert refused < 4500
    assert most == 16


def test_a_chunk_in_the_middle(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a.mcap", some(2, 20), Mcap(CompressionType.NONE))
    whole, _ = look(path)
    data = path.read_bytes()
    spoiled(path, data.index(b"phase 7"), b"PHASE")
    count, problems = look(path)
    assert whole > count > whole / 2
    assert "is passed over: its records do not have their checksum (crc32)" in problems[0]
    path = write_bag(tmp_path / "a.bag", some(1, 20), "bz2")
    spoiled(path, path.read_bytes().index(b"BZh", 5000) + 20, b"\0\0\0\0\0\0")
    count, problems = look(path)
    assert whole > count > whole / 2
    assert "is passed over: bz2 data cannot be unpacked" in problems[0]


def test_counts_that_are_wrong(tmp_path: Path) -> None:
    """An index that leaves messages out, or counts more, is found out by reading."""
    path = write_bag(tmp_path / "a.bag", some(1), chunk=10**6)
    data = path.read_bytes()
    at = data.rindex(struct.pack("<II", 0, 20))
    count, problems = look(spoiled(path, at, struct.pack("<II", 0, 21)))
    assert count == 40
    assert problems == ["/joints: the file counts 21 messages, 20 were read"]


def test_a_summary_that_lies(tmp_path: Path) -> None:
    """Nothing is found by what the summary points at: one that is wrong only costs its counts."""
    path = write_mcap(tmp_path / "a.mcap", some(2))
    size = path.stat().st_size
    spoiled(path, size - 28, struct.pack("<Q", size - 37 - 100))
    assert look(path) == (40, ["the summary is not used: it does not have its checksum (crc32)"])
    spoiled(path, size - 28, struct.pack("<Q", 2**60))
    count, problems = look(path)
    assert count == 40
    assert problems == [f"the summary is not used: it claims to begin at byte {2**60:,}"]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.mcap", b"", "the file is empty"),
        ("a.mcap", b"hello, this is a text", "expected an MCAP file, a ROS bag or a rosbag2 database"),
        ("a.mcap", b"\x89MCAP9\r\n" + bytes(50), "expected an MCAP file \\(version 0\\)"),
        ("a.mcap", zstandard.compress(b"x"), "compressed as a whole by zstd: unpack it first"),
        ("a.bag", b"#ROSBAG V1.2\n" + bytes(50), "expected a bag of version 2.0, found '#ROSBAG V1.2'"),
        ("a.bag", b"#ROSBAG V2.0\n", "the bag is cut off, or damaged, in its first record"),
        ("a.bag", bag_of(encryptor=b"rosbag/AesCbcEncryptor"), "the bag is encrypted \\(rosbag/AesCbcEncryptor\\)"),
        ("a.bag", bag_of(index_pos=b"1"), "has no number 'index_pos'"),
        ("a.db3", b"SQLite format 3\0" + bytes(84), "the database cannot be read"),
        ("a.db3", b"SQLite format 3\0", "the database cannot be read|without the table"),
    ],
)
def test_refused(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError, match=expected) as caught:
        look(path)
    assert caught.value.source.path == name


def test_refused_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        open_log(tmp_path / "none.mcap")
    with pytest.raises(SourceError, match="expected a recording of rosbag2"):
        open_log(tmp_path)
    assert not is_log(tmp_path / "none.mcap")
    assert not is_log(tmp_path)


def test_no_endless_loops(tmp_path: Path) -> None:
    """Records without length, zeros to the end of a preallocated file, a bag whose index is its beginning."""
    began = time.monotonic()
    (tmp_path / "a.mcap").write_bytes(mcap_of(mcap_record(0x90, b"") * 100_000))
    assert look(tmp_path / "a.mcap")[0] == 0
    (tmp_path / "b.mcap").write_bytes(mcap_of(bytes(10**7)))
    assert "it is no record (opcode 0)" in look(tmp_path / "b.mcap")[1][-1]
    (tmp_path / "a.bag").write_bytes(bag_of(bytes(10**7)))
    assert "a record claims a header of 0 bytes" in look(tmp_path / "a.bag")[1][-1]
    (tmp_path / "b.bag").write_bytes(bag_of(index_pos=struct.pack("<Q", 13)))
    assert "the index is not used: it has a record of kind 3" in look(tmp_path / "b.bag")[1][-1]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("compression", ["zstd", "lz4", "bz2"])
def test_bombs_are_not_unpacked(tmp_path: Path, compression: str) -> None:
    """A chunk is unpacked to no more than it claims, and a claim has a limit."""
    zeros = bytes(2**26)
    pack = {"zstd": zstandard.compress, "lz4": lz4.frame.compress, "bz2": bz2.compress}[compression]
    bomb = pack(zeros)
    with pytest.raises(SourceError, match="a chunk claims 1,000 bytes and holds more"):
        unpack.unpack(bomb, compression, 1000)
    with pytest.raises(SourceError, match="a chunk claims 67,108,865 bytes and holds 67,108,864"):
        unpack.unpack(bomb, compression, len(zeros) + 1)
    with pytest.raises(SourceError, match="claims 1,099,511,627,776 bytes, more than the 536,870,912"):
        unpack.unpack(bomb, compression, 2**40)
    with pytest.raises(SourceError, match=f"{compression} data cannot be unpacked|and holds 0"):
        unpack.unpack(b"nothing like it", compression, 1000)
    if compression != "bz2":
        (tmp_path / "a.mcap").write_bytes(mcap_of(mcap_chunk(compression, 2**50, bomb), mcap_chunk("", 9, bomb)))
        count, problems = look(tmp_path / "a.mcap")
        assert count == 0
        assert "claims 1,125,899,906,842,624 bytes" in " ".join(problems)


def test_bomb_in_a_message(tmp_path: Path) -> None:
    frame = zstandard.compress(bytes(2**26))
    claims = frame[:4] + b"\xe0" + struct.pack("<Q", 2**40) + frame[9:]
    items = [Item("/joints", "sensor_msgs/msg/JointState", START + n, d) for n, d in enumerate((frame, claims, b""))]
    count, problems = look(bare_db3(tmp_path / "a.db3", items))
    assert count == 1  # 64 MB of zeros are a message: big-endian, and longer than its type
    assert "2 messages cannot be decoded" in problems[0]
    with pytest.raises(SourceError, match="a compressed message claims 1,099,511,627,776 bytes"):
        unpack.unpack_message(claims)


def test_unknown_compression(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(mcap_of(mcap_chunk("brotli", 3, b"abc")))
    assert (
        "chunks compressed by 'brotli' cannot be read; zstd, lz4, bz2 and none can" in look(tmp_path / "a.mcap")[1][-1]
    )


def test_counts_in_messages_are_checked(tmp_path: Path) -> None:
    """A list that claims 4 billion values takes no memory; nothing is decoded beyond the message."""
    good = ARM[0].data
    place = good.index(b"a\0") - 8
    claims = good[:place] + b"\xff\xff\xff\xff" + good[place + 4 :]
    items = [
        Item("/joints", "sensor_msgs/msg/JointState", START + n, d) for n, d in enumerate((claims, good[:30], good))
    ]
    count, problems = look(write_mcap(tmp_path / "a.mcap", items))
    assert count == 1
    assert "/joints: 2 messages cannot be decoded" in problems[0]
    assert "a list claims 4,294,967,295 values" in problems[0]


def test_definitions_cannot_explode(tmp_path: Path) -> None:
    """Types nested in types, arrays of any length: what takes no bytes is not repeated."""
    deep = "\n".join(f"{'=' * 80}\nMSG: p/T{level}\nT{level + 1} a\nT{level + 1} b" for level in range(1, 30))
    text = f"T1[1000000000] many\nfloat64[1000000000] x\n{deep}\n{'=' * 80}\nMSG: p/T30\n"
    record = {"op": b"\7", "conn": bytes(4), "topic": b"/x"}
    fields = {"topic": b"/x", "type": b"p/T0", "message_definition": text.encode(), "md5sum": b"*"}
    entries = b"".join(struct.pack("<I", len(k) + 1 + len(v)) + k.encode() + b"=" + v for k, v in fields.items())
    message = bag_record({"op": b"\2", "conn": bytes(4), "time": bytes(8)}, b"some data")
    (tmp_path / "a.bag").write_bytes(bag_of(bag_record(record, entries), message))
    began = time.monotonic()
    count, problems = look(tmp_path / "a.bag")
    assert count == 0
    assert "a list of messages that take no bytes cannot be read" in problems[-1]
    assert time.monotonic() - began < 5


def test_hostile_metadata(tmp_path: Path) -> None:
    """metadata.yaml names files: those outside of the folder, and links, are not opened."""
    folder = write_db3(tmp_path / "run", ARM)
    secret = bare_db3(tmp_path / "secret.db3", ARM)
    (folder / "link.db3").symlink_to(secret)
    names = ["../secret.db3", str(secret), "link.db3", "run/run.db3", "gone.db3"]
    (folder / "metadata.yaml").write_text(
        "rosbag2_bagfile_information:\n  relative_file_paths:\n" + "".join(f"    - {name}\n" for name in names)
    )
    count, problems = look(folder)
    assert count == 20
    assert sum("is not a file in this folder" in problem for problem in problems) == 4
    for text, expected in (
        ("rosbag2_bagfile_information: [", "metadata.yaml is not used"),
        ("rosbag2_bagfile_information: !!python/object/apply:os.system ['true']", "metadata.yaml is not used"),
        ("rosbag2_bagfile_information: 3", "does not hold rosbag2_bagfile_information"),
    ):
        (folder / "metadata.yaml").write_text(text)
        (folder / "link.db3").unlink(missing_ok=True)
        count, problems = look(folder)
        assert count == 20
        assert expected in problems[0]


def test_parts_that_are_missing_or_broken(tmp_path: Path) -> None:
    for part in range(3):
        bare_db3(tmp_path / f"run_{part}.db3", ARM[part * 5 : part * 5 + 5])
    (tmp_path / "run_1.db3").write_bytes(b"")
    count, problems = look(tmp_path)
    assert count == 10
    assert "run_1.db3 is passed over: the file is empty" in problems
    for part in range(3):
        (tmp_path / f"run_{part}.db3").write_bytes(b"")
    with pytest.raises(SourceError, match="run_0.db3 is passed over"):
        open_log(tmp_path)


def test_databases_that_are_none_of_rosbag2(tmp_path: Path) -> None:
    """A view in place of a table can be a query without end."""
    path = tmp_path / "a.db3"
    for script, expected in (
        ("CREATE TABLE other(a)", "without the table 'topics'"),
        ("CREATE TABLE topics(id, name)", "table 'topics': expected the columns id, name, serialization_format, type"),
        ("CREATE VIEW topics AS WITH RECURSIVE t(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM t) SELECT * FROM t",
         "'topics' is not a plain table"),
        ("CREATE VIRTUAL TABLE topics USING fts5(id, name, type, serialization_format)", "is not a plain table"),
    ):  # fmt: skip
        path.unlink(missing_ok=True)
        database = sqlite3.connect(path)
        database.executescript(script)
        database.close()
        with pytest.raises(SourceError, match=expected):
            open_log(path)


def test_rows_of_a_database_that_are_wrong(tmp_path: Path) -> None:
    path = bare_db3(tmp_path / "a.db3", ARM)
    database = sqlite3.connect(path)
    database.execute("UPDATE messages SET topic_id = 9 WHERE id = 1")
    database.execute("UPDATE messages SET data = 'text' WHERE id = 2")
    database.execute("UPDATE messages SET timestamp = 'noon' WHERE id = 3")
    database.commit()
    database.close()
    count, problems = look(path)
    assert count == 17
    assert problems[:2] == [
        "messages of topic 9 are passed over: it has no name",
        "rows are passed over that hold no time and bytes, as row 3",
    ]
    (tmp_path / "a.db3-journal").write_bytes(b"x")
    assert "its journal is not applied" in look(path)[1][0]


def test_a_database_that_is_cut_off(tmp_path: Path) -> None:
    """The rows up to the first page that is missing are read."""
    path = bare_db3(tmp_path / "a.db3", [joints(2, number) for number in range(400)])
    data = path.read_bytes()
    most = 0
    for end in range(4096, len(data), 3 * 4096 + 1000):
        path.write_bytes(data[:end])
        try:
            count, problems = look(path)
        except SourceError as error:
            refused = str(error)
            continue
        assert count >= most
        assert "the file is cut off" in problems[0]
        assert any("nothing is read behind row" in problem for problem in problems)
        most = count
    assert most > 200
    assert "the database cannot be read" in refused or "without the table" in refused


def test_a_database_that_leads_in_a_circle(tmp_path: Path) -> None:
    """A page of the tree that names the same leaf again and again: no row is read twice."""
    path = bare_db3(tmp_path / "a.db3", [joints(2, number) for number in range(400)])
    database = sqlite3.connect(path)
    (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    page = (root - 1) * 4096
    assert data[page] == 5  # an inner page: its cells begin with the number of a page
    (cells,) = struct.unpack_from(">H", data, page + 3)
    places = [page + place for place in struct.unpack_from(f">{cells}H", data, page + 12)]
    for place in places:
        data[place : place + 4] = data[places[0] : places[0] + 4]
    path.write_bytes(data)
    count, problems = look(path)
    assert 0 < count < 100
    assert f"nothing is read behind row {count}: row 1 comes after row {count}" in problems


def test_json_that_is_hostile(tmp_path: Path) -> None:
    values = {
        "/x": [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": NaN, "b": 1e999}', b'{"a": "\xff"}', b"\xff"]
    }
    path = write_json(tmp_path / "a.mcap", values, {})
    count, problems = look(path)
    assert count == 1
    assert "4 messages cannot be decoded" in problems[0]
    with open_log(path) as log:
        assert survey(log, 5).topics[0].streams[0].first == [None, None]


@pytest.mark.parametrize("seed", range(3))
def test_bytes_changed_at_random(tmp_path: Path, seed: int) -> None:
    """Whatever is changed: messages, problems, or a SourceError; never anything else, never long."""
    rng = random.Random(seed)
    made = [
        write_mcap(tmp_path / "a.mcap", some(2)),
        write_mcap(tmp_path / "b.mcap", some(2), Mcap(chunked=False, summary=False)),
        write_bag(tmp_path / "a.bag", some(1), "lz4"),
        unindexed(write_bag(tmp_path / "b.bag", some(1))),
        bare_db3(tmp_path / "a.db3", ARM),
    ]
    refused = 0
    for path in made:
        whole = path.read_bytes()
        for _ in range(15):
            data = bytearray(whole)
            for _ in range(rng.choice((1, 5, 30))):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(5)] = rng.randbytes(rng.randrange(5))
            path.write_bytes(data)
            began = time.monotonic()
            try:
                with open_log(path) as log:
                    survey(log, 5, pictures=True)
                look(path)
            except SourceError:
                refused += 1
            assert time.monotonic() - began < 10
    assert refused < 75


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """120 MB of pictures in 1 MB chunks, without a summary, in less than 60 MB more than nothing."""
    picture = bytes(2**18)
    data = b"\0\1\0\0" + bytes(8) + struct.pack("<I", len(picture)) + picture
    items = [Item("/x", "std_msgs/msg/UInt8MultiArray", START + number, data) for number in range(480)]
    path = write_mcap(tmp_path / "a.mcap", items, Mcap(CompressionType.NONE, 2**20, summary=False))
    assert path.stat().st_size > 120e6
    code = f"""
import resource
from pathlib import Path
from converters.logs.messages import open_log
for wanted in ({str(tmp_path / "b.mcap")!r}, {str(path)!r}):
    with open_log(Path(wanted)) as log:
        print(sum(1 for _ in log.messages()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    write_mcap(tmp_path / "b.mcap", items[:4])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (few, before), (count, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, count) == (4, 480)
    assert (after - before) * (1 if sys.platform == "darwin" else 1024) < 60e6
