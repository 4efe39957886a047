"""Memory stays bounded: long episodes pass through in blocks, an index of many rows is held compressed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from vrl3data import codecs, index, shard
from vrl3data.errors import DamagedError
from vrl3data.schema import Feature, Schema

MB = 10**6
LONG = 280 * MB

PEAK = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
import vrl3data
from vrl3data import sample, stats
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.validation import validate
from vrl3data.writer import Writer

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def blocks(size):
    for start in range(0, size, 2**20):
        seen.append(anonymous())
        yield np.full((min(2**20, size - start) // 64, 64), start % 251, np.uint8)

schema = Schema("episodes", (Feature("obs.state", "uint8", (64,)),))
spec = DatasetSpec(schema, "long", Provenance("test", source_identity="0", shard_size=10**8))
seen = []
with Writer({path!r}, spec) as writer:
    seen.append(anonymous())
    before = seen[0]
    for number, size in enumerate([2**20, {size}]):
        writer.write(Episode(str(number), {{"obs.state": blocks(size)}}, length=size // 64))
        seen.append(anonymous())
seen.append(anonymous())
with vrl3data.open({path!r}) as dataset:
    assert int(dataset[1].rows("obs.state", -1)[0, 0]) == ({size} - 1) // 2**20 * 2**20 % 251
    seen.append(anonymous())
assert validate({path!r}).ok
seen.append(anonymous())
print(max(seen) - before)
"""


@pytest.mark.slow
def test_a_long_episode_passes_through_little_memory(tmp_path: Path) -> None:
    """280 MB written, opened and validated; benchmarks/big.py does it with 4 GB of 10."""
    size = LONG // 64 * 64
    code = PEAK.format(root=str(ROOT), tests=str(Path(__file__).parent), path=str(tmp_path / "set"), size=size)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 150 * MB


def picture_schema() -> Schema:
    image = codecs.describe(Feature("image", "uint8", (-1, -1, 3), "episode"), "jpeg")
    return Schema("images", (image, Feature("cls", "int64", (), "episode", codec="text", names=("a", "b"))))


def entry(number: int, key: int, split: str) -> shard.Entry:
    text, name = hashlib.sha256(str(number).encode()).hexdigest(), f"{split}/{number:07d}.JPEG"
    meta = {"id": text[:32], "name": name, "split": split, "source": name,
            "source_sha256": text, "task": "", "subsets": "", "absent": "", "origin": "web", "label": number % 2,
            "class_name": "ab"[number % 2], "height": 128, "width": 171, "psnr": -1.0, "max_error": -1.0,
            "source_meta": "{}", "digest": text[::-1]}  # fmt: skip
    start = 2048 + 20_000 * key
    return shard.Entry(
        key, {"jpg": (start, 15_000), "cls": (start + 15_872, 1), "meta.json": (start + 16_896, 900)}, meta
    )


def built(numbers: range, held_rows: int, monkeypatch: pytest.MonkeyPatch) -> index.IndexBuilder:
    """Every third picture is of split val."""
    monkeypatch.setattr(index, "HELD_ROWS", held_rows)
    builder, keys = index.IndexBuilder(picture_schema()), {"train": 0, "val": 0}
    for number in numbers:
        split = "train" if number % 3 else "val"
        builder.add(f"{split}-000000.tar", entry(number, keys[split], split))
        keys[split] += 1
    return builder


@pytest.mark.parametrize("count", [0, 1, 9, 10, 100, 101])
def test_an_index_does_not_depend_on_how_it_was_held(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of splits that came by turns are written in order, in the same bytes as from one table."""
    monkeypatch.setattr(index, "ROW_GROUP", 10)
    facts, files = [], set()
    for held in (1, 7, 10_000):
        builder = built(range(count), held, monkeypatch)
        facts.append(index.write(tmp_path, builder))
        files.add((tmp_path / index.INDEX).read_bytes())
        table = builder.table()
        facts.append(index.write(tmp_path, table.sort_by([("split", "ascending"), ("key", "ascending")])))
        files.add((tmp_path / index.INDEX).read_bytes())
        assert pq.read_table(tmp_path / index.INDEX).replace_schema_metadata(None).equals(table)
    assert len(files) == 1 and all(fact == facts[0] for fact in facts)
    assert pq.ParquetFile(tmp_path / index.INDEX).num_row_groups == max(1, -(-count // 10))
    assert table["split"].to_pylist() == sorted(table["split"].to_pylist())


def test_an_index_is_sorted_whatever_the_order(tmp_path: Path) -> None:
    builder = index.IndexBuilder(picture_schema())
    for key in (2, 0, 1):
        builder.add("train-000000.tar", entry(key, key, "train"))
    assert builder.table()["key"].to_pylist() == [0, 1, 2]
    index.write(tmp_path, builder)
    assert pq.read_table(tmp_path / index.INDEX)["key"].to_pylist() == [0, 1, 2]
    broken = entry(3, 3, "train")
    broken.members.pop("cls")
    with pytest.raises(DamagedError, match="the members of the sample are not those of the schema: cls"):
        builder.add("train-000000.tar", broken)


@pytest.mark.slow
def test_an_index_of_many_rows_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under 220 bytes of Arrow's memory for a row while it grows; 450 as a table."""
    before, count = pa.total_allocated_bytes(), 40_000
    builder = built(range(count), 4096, monkeypatch)
    assert pa.total_allocated_bytes() - before < 220 * count
    assert sum(len(rows) for rows in builder._rows.values()) < 2 * 4096
    assert builder.table().nbytes > 300 * count
