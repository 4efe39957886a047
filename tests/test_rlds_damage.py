"""RLDS sets that are broken: files, records, messages and descriptions; what is said, and what goes on."""

from __future__ import annotations

import gzip
import json
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_rlds as make
import numpy as np
import pytest
from test_rlds import FIRST, convert

from converters.base import Unit
from converters.fields import Recording
from converters.rlds import tfrecord
from converters.rlds.converter import RldsConverter, RldsOptions
from converters.rlds.example import parse
from vrl3data.errors import MissingExtra, SourceError


def spoil(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return apply


def sizes() -> list[int]:
    return [len(make.example(make.episode(number))) + 16 for number in range(3)]


def cut(at: Callable[[], int]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: at()])


DAMAGE: list[tuple[Callable[[Path], Any], str, int]] = [
    (cut(lambda: sum(sizes()) - 2), r"a record claims \d+ bytes and a checksum, \d+ are left.*; 2 records before", 2),
    (cut(lambda: sum(sizes()[:2]) + 100), r"a record claims \d+ bytes and a checksum, 88 are left in the file", 2),
    (cut(lambda: sum(sizes()[:2]) + 5), r"ends inside the header of a record, 5 bytes after its begin", 2),
    (cut(lambda: 7), "not a TFRecord file: its first 12 bytes", 0),
    (cut(lambda: 0), "the source holds no episodes", 0),
    (spoil(lambda data: data.__setitem__(1, data[1] ^ 8)), "not a TFRecord file: its first 12 bytes", 0),
    (spoil(lambda data: data.__setitem__(sizes()[0] + 1, 77)), r"the length of a record .* 1 records before", 1),
    (spoil(lambda data: data.__setitem__(sizes()[0] + 500, 0)), "the data of the record does not have its", 2),
    (spoil(lambda data: data.__setitem__(sizes()[0] - 1, 0)), "the data of the record does not have its", 2),
    (spoil(lambda data: data.__setitem__(slice(0, 12), make.framed(b"")[:12])), r"does not have its checksum", 0),
    (lambda path: path.write_bytes(struct.pack("<QI", 2**60, make.masked_crc(struct.pack("<Q", 2**60)))),
     f"a record claims {2**60} bytes", 0),
    (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "compressed with gzip.*gunzip", 0),
    (lambda path: path.write_text("{}"), "not a TFRecord file", 0),
    (lambda path: make.write_records(path, [b"\x0a\x05ab"]), "a part of the message claims 5 bytes, 2 are left", 0),
    (lambda path: make.write_records(path, [b"hello, this is text"]), "not a tf.train.Example", 0),
    (lambda path: make.write_records(path, [make.field(2, b"")]), "SequenceExample", 0),
    (lambda path: make.write_records(path, [make.example({"image/encoded": [b"x"], "label": np.arange(1)})]),
     "not an RLDS episode: expected the lists steps/is_first or steps/is_last, found image/encoded, label", 0),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message", "left"), DAMAGE)
def test_a_damaged_file_says_what_and_where(
    tmp_path: Path, damage: Callable[[Path], None], message: str, left: int
) -> None:
    shard = [make.episode(number) for number in range(3)]
    source = make.write_set(tmp_path, {"train": [shard]})
    damage(source / "1.0.0" / FIRST)
    converter = RldsConverter([source], RldsOptions())
    found: list[SourceError] = []
    try:
        plan = converter.plan()
    except SourceError as error:
        found.append(error)
    else:
        found += [error for _, error in plan.problems]
        assert left
        for unit in plan.units:
            try:
                converter.read(unit)
            except SourceError as error:
                found.append(error)
            else:
                left -= 1
        assert left == 0
    (error,) = found
    with pytest.raises(SourceError, match=message):
        raise error
    if "holds no episodes" not in message:
        assert str(error.source.path).startswith("toy") and str(error.source.path).endswith(FIRST)
        assert error.source.offset is not None


def replaced(**more: Any) -> dict[str, Any]:
    return make.episode(0) | {f"steps/{key}".replace("__", "/"): value for key, value in more.items()}


ODD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (replaced(action=np.zeros(7, np.float32)), {}, "expected 5 x 3 numbers, found 7"),
    (replaced(action=[b"x"] * 5), {}, "expected a list of floats, found one of bytes"),
    (replaced(action=make.field(2, make.field(1, b"abcde"))), {}, "a list that ends inside one"),
    (replaced(observation__image=[b"x"]), {}, "expected 5 strings, found 1"),
    (replaced(observation__image=[b"x"] * 5), {}, "not a readable picture"),
    (replaced(observation__gripper=make.field(3, make.field(1, b"\xff" * 5))), {}, "ends inside a number"),
    (replaced(observation__gripper=make.field(3, make.field(1, b"\xff" * 20 + b"\0" * 4))), {}, "more than 10 bytes"),
    (replaced(observation__gripper=np.array([0, 2**40, 0, 0, 0])), {}, "expected integers that fit int32"),
    (replaced(is_last=np.array([0, 0, 0, 0, 2])), {}, "expected integers that fit bool, found 0 to 2"),
    (replaced(is_last=np.zeros(3, bool)), {}, "expected 5 steps, found 3"),
    (replaced(is_first=np.zeros(0, bool), is_last=np.zeros(0, bool)), {}, "the record has no steps"),
    (make.episode(0, 1), {}, "the record has one step only"),
    (replaced(action=make.field(4, b"")), {}, "expected bytes, floats or integers, found field 4"),
    (replaced(z=[zlib.compress(bytes(10**8))] * 5), {"z": make.tensor([9], encoding="zlib")}, "of 36 bytes, found 37"),
    (replaced(z=[b"no"] * 5), {"z": make.tensor([9], encoding="zlib")}, "not a tensor compressed with zlib"),
    (replaced(z=[b"no"]), {"z": make.tensor([9], encoding="bytes")}, "expected 5 tensors, found 1"),
]


@pytest.mark.parametrize(("lists", "steps", "message"), ODD)
def test_a_record_that_is_not_as_described(
    tmp_path: Path, lists: dict[str, Any], steps: dict[str, Any], message: str
) -> None:
    shard = [*map(make.episode, range(1, 9)), lists, make.episode(9)]
    for other in shard:
        if "z" in steps and other is not lists:
            other["steps/z"] = [zlib.compress(bytes(36)) if "zlib" in str(steps) else bytes(36)] * 5
    layout = make.described({**make.STEPS, **steps}, **make.METADATA)
    source = make.write_set(tmp_path, {"train": [shard]}, layout)
    last = "observation" if "one step" in message else "auto"
    receipt = convert(source, tmp_path / "out", on_error="skip", last_step=last)
    assert receipt.manifest.samples == 9
    (skipped,) = receipt.skipped
    assert skipped["source"].endswith("000008")
    with pytest.raises(SourceError, match=rf"{message}.*path toy.*offset"):
        convert(source, tmp_path / "stop", last_step=last)


JSON: list[tuple[str, str]] = [
    ("{", "not JSON"), ("[]", "expected a JSON object, found list"), ("{}", "expected a FeaturesDict .* found none"),
    ('{"pythonClassName": "x.FeaturesDict"}', "a feature cannot be understood: KeyError 'featuresDict'"),
    (json.dumps(make.features(image=make.image([4, 4, 3]))), "the records have no steps"),
    ('{"a":' * 50_000, "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), JSON)
def test_descriptions_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    source = make.write_set(tmp_path)
    (source / "1.0.0" / "features.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        RldsConverter([source], RldsOptions()).plan()


def test_folders_that_are_not_one_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"expected TFRecord files .*, found none"):
        RldsConverter([tmp_path / "empty"], RldsOptions()).plan()
    (tmp_path / "empty" / "a-train.array_record-00000-of-00001").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"expected TFRecord files, found a-train.array_record-00000"):
        RldsConverter([tmp_path / "empty"], RldsOptions()).plan()
    make.write_set(tmp_path / "a")
    make.write_set(tmp_path / "b")
    with pytest.raises(SourceError, match=r"in 2 folders: a/toy/1.0.0, b/toy/1.0.0; name one"):
        RldsConverter([tmp_path], RldsOptions()).plan()


def test_a_broken_shard_leaves_the_others(tmp_path: Path) -> None:
    source = make.write_set(tmp_path)
    (source / "1.0.0" / "toy-train.tfrecord-00000-of-00002").write_bytes(b"damaged, and long enough for a header")
    plan = RldsConverter([source], RldsOptions()).plan()
    assert plan.count == 2
    assert [name for name, _ in plan.problems] == ["toy/1.0.0/toy-train.tfrecord-00000-of-00002"]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = make.write_set(tmp_path, {"train": [[make.episode(0)]]})
    converter = RldsConverter([source], RldsOptions())
    (unit,) = converter.plan().units
    cut(lambda: 100)(source / "1.0.0" / FIRST)
    with pytest.raises(SourceError, match=r"expected a record of \d+ bytes, found 88; the file was changed"):
        converter.read(unit)
    (source / "1.0.0" / FIRST).unlink()
    with pytest.raises(SourceError, match="cannot read: No such file"):
        converter.read(unit)
    assert "cannot read" in str(tfrecord.scan(source / "gone")[1])
    with pytest.raises(SourceError, match="larger than a message can be"):
        tfrecord.read(source, tfrecord.Record(12, 2**31, 0))


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make.write_set(tmp_path)
    tfrecord._crc32c.cache_clear()
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vrl3data\[rlds\]'"):
        RldsConverter([source], RldsOptions()).plan()


def test_a_large_message_takes_its_own_size() -> None:
    count = 300
    message = make.example({
        "steps/image": [bytes(50_000)] * count, "steps/action": np.ones((count, 10_000), np.float32),
        "steps/codes": make.field(3, make.field(1, b"\xff\x01" * 10_000_000)),
    })  # fmt: skip
    tracemalloc.start()
    lists = parse(message)
    assert len(lists["steps/image"].strings()) == count
    assert lists["steps/action"].floats().sum() == count * 10_000
    read = tracemalloc.get_traced_memory()[1]
    assert int(lists["steps/codes"].ints("uint8")[::1000].min()) == 255
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read < 1_000_000 < 40_000_000 < len(message) and peak < 100_000_000, (read, peak)


def test_lists_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.rlds.example.MAX_ITEMS", 100)
    with pytest.raises(SourceError, match=r"a list of more than 100 single entries \(feature many"):
        parse(make.example({"many": [b""] * 101}))


def test_garbage_ends_in_our_errors(tmp_path: Path) -> None:
    """Messages with flipped bytes and a right checksum: nothing but SourceError comes out."""
    rng = np.random.default_rng(0)
    good = make.example(make.episode(0))
    source = make.write_set(tmp_path, {"train": [[make.episode(0)] * 9]})
    converter = RldsConverter([source], RldsOptions())
    *_, unit = converter.plan().units
    recording, sha256 = unit.payload
    (name, record), refused = recording.payload, 0
    for _ in range(300):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 3):
            bad[place] = rng.integers(256)
        data = make.framed(bytes(bad))
        (source / "1.0.0" / FIRST).write_bytes(data)
        record = tfrecord.Record(12, len(bad), int.from_bytes(data[-4:], "little"))
        try:
            read = converter.read(Unit("x", (Recording("x", 0, recording.files, {}, (name, record)), sha256)))
            for value in read.values.values():
                list(value)  # type: ignore[arg-type]
        except SourceError:
            refused += 1
    assert refused > 20
