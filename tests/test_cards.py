"""The dataset card and page: right, loadable, and safe from what sources call things."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_dataset

from cards.dataset_card import dataset_card, size_category, write_card
from cards.html.page import dataset_page, gallery, write_page
from cards.html.plot import HEIGHT, WIDTH, line_plot, ticks
from cards.text import LICENSES, plain
from vrl3data import codecs
from vrl3data.dataset import Dataset, open_dataset
from vrl3data.errors import DestinationError
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Episode, Feature, Schema
from vrl3data.stats import MAX_FRAMES
from vrl3data.writer import Writer

NASTY = "evil | `x`\n---\n# head\u2028 <script>alert(1)</script> ![p](http://e.vil/p.png) \"'{{ 7*7 }}\x07\ud800: &id"
CAMERA = codecs.describe(Feature("obs.image.top", "uint8", (12, 16, 3), "state"), "jpeg:90")
RICH = Schema(
    "episodes",
    (
        CAMERA,
        Feature("obs.image.raw", "uint8", (12, 16, 3), "state"),
        Feature("action", "float64", (3,), "step", names=("x", "y", "grip"), unit="m|s", description="a | `b`"),
        Feature("reward", "float32"),
        Feature("timestamp", "int64", (), "state", unit="ns"),
        Feature("contact", "bool", (2,), "state"),
        Feature("half", "float16", (2, 2), "step"),
        Feature("sim.mass", "float64", (4,), "episode"),
    ),
    ("preview.jpg",),
)


def spec(schema: Schema, name: str = "a set", **more: Any) -> DatasetSpec:
    provenance = Provenance("test", source_name=more.pop("source", "demos.h5"), source_identity="x", source_files=2)
    return DatasetSpec(schema, name, provenance, **more)


def rich_episode(number: int, length: int, **more: Any) -> Episode:
    rng = np.random.default_rng(number)
    shapes = {"state": length + 1, "step": length, "episode": 1}
    values = {
        feature.name: rng.integers(0, 200, (shapes[feature.rows], *feature.shape)).astype(feature.dtype)
        for feature in RICH.features
    }
    values["action"] = rng.normal(size=(length, 3))
    name = more.pop("name", f"demo {number}")
    return Episode(name, values, length=length, final_observation=True, success=number % 2, origin="human", **more)


def rich(path: Path, **more: Any) -> Dataset:
    with Writer(path, spec(RICH, **more)) as writer:
        for number, (length, split) in enumerate([(6, "train"), (9, "train"), (4, "val")]):
            writer.write(rich_episode(number, length, split=split, task="open"))
        writer.skip("broken.h5", "no | frames")
    return open_dataset(path)


def pictures(path: Path, codec: str = "jpeg:90", classes: int = 3, count: int = 12, dtype: str = "uint8") -> Dataset:
    image = codecs.describe(Feature("image", dtype, (-1, -1, 3)[: 2 if dtype == "uint16" else 3], "episode"), codec)
    names = tuple(f"class {label}" for label in range(classes))
    label_feature = (Feature("cls", "int64", (), "episode", "text", names=names),) if classes else ()
    with Writer(path, spec(Schema("images", (image, *label_feature)))) as writer:
        for number in range(count):
            label = number % classes if classes else -1
            pixels = np.full((1, 20 + number % 50, 150, *image.shape[2:]), number % 50 * 5, dtype)
            values: dict[str, Any] = {"image": pixels} | ({"cls": np.array([label])} if classes else {})
            class_name = names[label] if classes else ""
            writer.write(Episode(f"{number}.jpg", values, label=label, class_name=class_name))
    return open_dataset(path)


def front(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def cells(card: str, start: str) -> list[str]:
    """The cells of the first table row that starts with `start`."""
    row = next(line for line in card.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


# -- front matter ----------------------------------------------------------------------------------------------


def test_the_front_matter_declares_every_member_in_order(tmp_path: Path) -> None:
    dataset = rich(tmp_path, license="CC BY 4.0")
    found = front(dataset_card(dataset))
    features = {item["name"]: item for item in found["dataset_info"]["features"]}
    members = dataset[0].meta["members"].split(",")
    assert list(features) == ["__key__", "__url__", *members, "meta.json"]
    assert features["obs.image.top.mjpg"]["dtype"] == "binary"
    assert features["obs.image.top.offsets.npy"]["list"] == "uint64"
    assert features["obs.image.raw.npy"]["dtype"] == {"array4_d": {"shape": [None, 12, 16, 3], "dtype": "uint8"}}
    assert features["reward.npy"]["list"] == "float32"
    assert features["preview.jpg"]["dtype"] == "image"
    assert found["license"] == "cc-by-4.0"
    assert found["pretty_name"] == "a set"
    assert found["size_categories"] == ["n<1K"]
    assert found["task_categories"] == ["robotics", "reinforcement-learning"]
    assert found["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.tar"},
        {"split": "val", "path": "data/val-*.tar"},
    ]


@pytest.mark.parametrize("kind", ["episodes", "images"])
def test_the_declared_commit_record_is_the_one_on_disk(tmp_path: Path, kind: str) -> None:
    dataset = rich(tmp_path) if kind == "episodes" else pictures(tmp_path)
    declared = front(dataset_card(dataset))["dataset_info"]["features"][-1]["struct"]
    types = {"string": str, "int64": int, "float64": float}
    assert [item["name"] for item in declared] == list(dataset[0].meta)
    assert all(type(dataset[0].meta[item["name"]]) is types[item["dtype"]] for item in declared)


def test_images_declare_pictures_and_class_names(tmp_path: Path) -> None:
    found = front(dataset_card(pictures(tmp_path)))
    features = {item["name"]: item for item in found["dataset_info"]["features"]}
    assert features["jpg"]["dtype"] == "image"
    assert features["cls"]["dtype"] == {"class_label": {"names": {"0": "class 0", "1": "class 1", "2": "class 2"}}}
    assert found["task_categories"] == ["image-classification"]
    assert found["license"] == "unknown"


def test_class_names_that_the_hub_would_refuse_stay_numbers(tmp_path: Path) -> None:
    image = codecs.describe(Feature("image", "uint8", (4, 4, 3), "episode"), "png")
    schema = Schema("images", (image, Feature("cls", "int64", (), "episode", "text", names=("crane", "crane"))))
    with Writer(tmp_path, spec(schema)) as writer:
        writer.write(Episode("a", {"image": np.zeros((1, 4, 4, 3), np.uint8), "cls": np.array([1])}, label=1))
    features = {item["name"]: item for item in front(dataset_card(open_dataset(tmp_path)))["dataset_info"]["features"]}
    assert features["cls"]["dtype"] == "int64"
    assert features["png"]["dtype"] == "image"


@pytest.mark.parametrize(
    ("count", "bucket"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (1_281_167, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(count: int, bucket: str) -> None:
    assert size_category(count) == bucket


def test_a_licence_that_the_hub_does_not_know_is_named(tmp_path: Path) -> None:
    found = front(dataset_card(rich(tmp_path, license="My Lab: ask first!")))
    assert (found["license"], found["license_name"]) == ("other", "my-lab-ask-first")
    assert LICENSES.fullmatch("apache-2.0")


# -- body ------------------------------------------------------------------------------------------------------


def test_the_body_tells_counts_statistics_and_provenance(tmp_path: Path) -> None:
    card = dataset_card(rich(tmp_path, license="mit", description="Doors."))
    assert "3 episodes with 19 steps in the splits train (2), val (1)." in card
    assert "obs.image.top 12 x 16, obs.image.raw 12 x 16" in card
    assert "\nDoors.\n" in card
    assert cells(card, "success") == ["success", "no: 2, yes: 1"]
    assert cells(card, "steps") == ["steps", "4 to 9, median 6"]
    assert cells(card, "`train`") == ["`train`", "2", "15", "1", cells(card, "`train`")[4]]
    assert cells(card, "`obs.image.top`")[4] == "jpeg:90 (lossy)"
    assert cells(card, "broken.h5") == ["broken.h5", r"no \| frames"]
    assert cells(card, "measured loss")[1].startswith("lowest PSNR ")
    assert str(MAX_FRAMES) in card
    assert "whoever made this dataset: mit" in card


def test_statistics_are_shortened_and_name_what_is_constant(tmp_path: Path) -> None:
    schema = Schema("episodes", (Feature("wide", "float32", (6,)), Feature("odd", "float32")))
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    wide[:, 5] = 3
    with Writer(tmp_path, spec(schema)) as writer:
        writer.write(Episode("a", {"wide": wide, "odd": np.array([1, np.nan], np.float32)}, length=2))
    lines = dataset_card(open_dataset(tmp_path)).split("## Statistics")[1]
    assert cells(lines, "`wide`")[1] == "3, 4, 5, 6, …"
    assert cells(lines, "`wide`")[5] == "2 rows, 6 entries, 1 constant"
    assert cells(lines, "`odd`")[5] == "2 rows, constant, 1 not finite, left out"


def test_an_unknown_licence_is_said_loudly(tmp_path: Path) -> None:
    assert "Unknown: find out before you publish" in dataset_card(rich(tmp_path))


@pytest.mark.parametrize("make", [rich, pictures])
def test_the_examples_run(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with make(tmp_path) as dataset:
        blocks = re.findall(r"```python\n(.*?)```", dataset_card(dataset), flags=re.DOTALL)
        feature = "action" if dataset.schema.kind == "episodes" else "image"
        expected = dataset[0][feature]
    monkeypatch.chdir(tmp_path)
    for block in (blocks[0], blocks[2]):
        scope: dict[str, Any] = {}
        exec(block, scope)
        if "shard" in scope:
            scope["shard"].close()
        else:
            np.testing.assert_array_equal(scope["array"], expected)
    said = capsys.readouterr().out
    assert "(6, 3)" in said if feature == "action" else "(150, 20)" in said


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    name = NASTY.replace("\ud800", "")  # the index takes no lone surrogates
    text = name + "\ud800"
    schema = Schema("episodes", (Feature("action", "float64", (1,), description=text, unit=text),))
    with Writer(tmp_path, spec(schema, name=text, license=text, description=text, source=text)) as writer:
        writer.write(Episode(name, {"action": np.ones((2, 1))}, length=2, task=name, source=name, source_sha256="`|`"))
        writer.skip(text, text)
    dataset = open_dataset(tmp_path)
    card = dataset_card(dataset)
    write_card(dataset)
    assert front(card)["pretty_name"] == plain(text)
    assert front(card)["configs"][0]["data_files"][0]["path"] == "data/train-*.tar"
    body = card.split("---\n", 2)[2]
    assert "<script" not in body
    assert "![p]" not in body
    assert "\x07" not in body
    assert "49" not in cells(body, "task")[1]
    assert not [line for line in body.splitlines() if line.startswith("---")]
    assert len(cells(body, "`action`")) == 7
    assert body.count("\n# ") == 1
    assert body.count("```") == 6
    page = dataset_page(dataset)
    assert "<script" not in page.lower()
    assert "49" not in re.findall(r"<h1>.*?</h1>", page)[0]
    Requests().feed(page)


def test_the_card_of_an_unfinished_dataset_says_so(tmp_path: Path) -> None:
    writer = Writer(tmp_path, spec(RICH))
    writer.write(rich_episode(0, 5))
    dataset = open_dataset(tmp_path)
    card, page = dataset_card(dataset), dataset_page(dataset)
    writer.close()
    assert "configs" not in front(card)
    assert "still being written" in card
    assert f"# {dataset.manifest.name}" in card
    assert "None yet" in card
    assert "still being written" in page


def test_a_dataset_without_samples_has_a_card_and_a_page(tmp_path: Path) -> None:
    with Writer(tmp_path, spec(Schema("episodes", (Feature("action", "float32", (2,)),)))):
        pass
    dataset = open_dataset(tmp_path)
    assert "0 episodes with 0 steps." in dataset_card(dataset)
    assert "complete" in dataset_page(dataset)


def test_the_card_is_written_into_the_dataset(tmp_path: Path) -> None:
    dataset = rich(tmp_path)
    path = write_card(dataset)
    assert path == tmp_path / "README.md"
    assert path.read_text("utf-8") == dataset_card(dataset)
    assert not list(tmp_path.glob(".*tmp"))


# -- datasets --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library `datasets`, offline: the variable alone is too late once something has imported it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_datasets_tells_two_datasets_of_one_name_apart(hub: Any, tmp_path: Path) -> None:
    """Its cache knows the name of the folder and the card, not the shards; also when one is made anew in place."""
    names = []
    for place, first in (("one", 0), ("two", 5), ("one", 9)):
        shutil.rmtree(tmp_path / place, ignore_errors=True)
        path = write_dataset(tmp_path / place / "set", 2, first=first)
        with open_dataset(path) as dataset:
            write_card(dataset)
        loaded = hub.load_dataset(str(path), cache_dir=str(tmp_path / "cache"))["train"]
        names.append(loaded[0]["meta.json"]["name"])
    assert names == ["episode-0", "episode-5", "episode-9"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_datasets_loads_episodes_through_the_card(hub: Any, tmp_path: Path) -> None:
    dataset = rich(tmp_path / "set")
    write_card(dataset)
    loaded = hub.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "val": 1}
    for split, rows in loaded.items():
        for row, position in zip(rows, dataset.split(split), strict=True):
            sample = dataset[position]
            assert row["meta.json"] == sample.meta
            for feature in RICH.features[1:]:
                stored = np.array(row[f"{feature.name}.npy"], feature.dtype)
                np.testing.assert_array_equal(stored, sample[feature.name], strict=True)
            start, stop = row["obs.image.top.offsets.npy"][1:3]
            frame = codecs.find("jpeg").decode(row["obs.image.top.mjpg"][start:stop], CAMERA, 1)
            np.testing.assert_array_equal(frame, sample.rows("obs.image.top", 1, 2))
            assert row["preview.jpg"].size == (16 * min(8, sample.length + 1), 24)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("codec", ["jpeg:90", "png", "raw"])
def test_datasets_loads_images_through_the_card(hub: Any, tmp_path: Path, codec: str) -> None:
    dataset = pictures(tmp_path / "set", codec)
    write_card(dataset)
    loaded = hub.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), split="train")
    member = {"jpeg:90": "jpg", "png": "png", "raw": "npy"}[codec]
    assert loaded.features["cls"].names == ["class 0", "class 1", "class 2"]
    for row, sample in zip(loaded, dataset, strict=True):
        stored = np.asarray(row[member], np.uint8).reshape(sample["image"].shape)
        np.testing.assert_array_equal(stored, sample["image"])
        assert row["cls"] == sample["cls"][0]
        assert row["meta.json"] == sample.meta


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 1, 2), (2, 1, 2, 3), (2, 1, 2, 1, 2)])
def test_datasets_loads_arrays_of_every_rank(hub: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    dtypes = ("bool", "uint8", "uint16", "uint64", "int8", "int64", "float16", "float32", "float64")
    schema = Schema("episodes", tuple(Feature(f"f.{dtype}", dtype, shape) for dtype in dtypes))
    numbers = np.arange(3 * np.prod(shape, dtype=int)).reshape(3, *shape)
    values = {f"f.{dtype}": numbers.astype(dtype) for dtype in dtypes}
    with Writer(tmp_path / "set", spec(schema)) as writer:
        writer.write(Episode("a", values, length=3))
    write_card(open_dataset(tmp_path / "set"))
    row = hub.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), split="train")[0]
    for name, value in values.items():
        np.testing.assert_array_equal(np.array(row[f"{name}.npy"], value.dtype), value, strict=True)


# -- page ------------------------------------------------------------------------------------------------------


class Requests(HTMLParser):
    """Fails on anything in a page that a browser would fetch or run, and counts elements."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        self.seen.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "data", "action", "srcset"):
                assert (value or "").startswith(("data:image/jpeg;base64,", "#")), value


def count(page: str, tag: str) -> int:
    parser = Requests()
    parser.feed(page)
    return parser.seen.count(tag)


def test_the_page_shows_every_episode_offline(tmp_path: Path) -> None:
    dataset = rich(tmp_path)
    page = dataset_page(dataset)
    assert (count(page, "article"), count(page, "img"), count(page, "svg")) == (3, 3, 6)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert dataset.manifest.fingerprint in page
    assert "demo 2" in page
    assert "<title>grip</title>" in page
    assert "more episode" not in page


@pytest.mark.parametrize(
    ("limit", "shown", "told"), [(1, 1, "2 more episodes are"), (2, 2, "1 more episode is"), (-1, 0, "3 more")]
)
def test_the_page_says_what_it_leaves_out(tmp_path: Path, limit: int, shown: int, told: str) -> None:
    page = dataset_page(rich(tmp_path), limit)
    assert count(page, "article") == shown
    assert told in page


def test_the_page_lives_without_reward_camera_and_numbers(tmp_path: Path) -> None:
    schema = Schema("episodes", (Feature("action", "float32", (2,)), Feature("obs.state", "float32", (1,), "state")))
    with Writer(tmp_path, spec(schema)) as writer:
        action = np.array([[1, np.nan], [np.inf, np.nan], [2, np.nan]], np.float32)
        writer.write(Episode("nan", {"action": action, "obs.state": np.ones((3, 1), np.float32)}, length=3))
        writer.write(Episode("absent", {"obs.state": np.ones((1, 1), np.float32)}, length=1))
    page = dataset_page(open_dataset(tmp_path))
    assert (count(page, "article"), count(page, "img"), count(page, "svg")) == (2, 0, 1)
    assert "NaN" not in page
    assert "<dt>absent</dt><dd>action</dd>" in page


def test_the_gallery_spreads_over_classes(tmp_path: Path) -> None:
    dataset = pictures(tmp_path, classes=3, count=12)
    groups = gallery(dataset)
    assert [(group.name, group.count, len(group.pictures)) for group in groups] == [
        ("class 0", 4, 4), ("class 1", 4, 4), ("class 2", 4, 4)
    ]  # fmt: skip
    page = dataset_page(dataset)
    assert count(page, "img") == 12
    assert "12 images of 3 classes" in page


@pytest.mark.parametrize(
    ("codec", "classes", "dtype"), [("raw", 0, "uint8"), ("raw", 200, "uint16"), ("png", 2, "uint8")]
)
def test_the_gallery_takes_any_codec_and_classes(tmp_path: Path, codec: str, classes: int, dtype: str) -> None:
    dataset = pictures(tmp_path, codec, classes, count=210, dtype=dtype)
    assert sum(len(group.pictures) for group in gallery(dataset)) == 100
    assert count(dataset_page(dataset), "img") == 100


def test_pages_and_cards_say_when_they_cannot_be_written(tmp_path: Path) -> None:
    dataset = rich(tmp_path / "set")
    assert write_page(dataset, tmp_path / "page.html").stat().st_size < 100_000
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot write"):
        write_page(dataset, tmp_path / "file" / "page.html")
    (tmp_path / "set" / ".README.md.tmp").mkdir()
    with pytest.raises(DestinationError, match="cannot write"):
        write_card(dataset)


# -- plots -----------------------------------------------------------------------------------------------------


def points(path: str) -> list[tuple[int, int]]:
    """The absolute points of a path of ours."""
    found: list[tuple[int, int]] = []
    for command, x, y in re.findall(r"([Ml])([+-]?\d+)[ ]?([+-]?\d+)", path):
        start = (0, 0) if command == "M" else found[-1]
        found.append((start[0] + int(x), start[1] + int(y)))
    return found


def test_a_plot_runs_from_edge_to_edge() -> None:
    drawn = points(line_plot("action", np.array([0.0, 5.0, 10.0])).lines[0].path)
    assert [x for x, _ in drawn] == [0, WIDTH // 2, WIDTH]
    assert drawn[0][1] > drawn[1][1] > drawn[2][1]
    assert all(0 <= y <= HEIGHT for _, y in drawn)


def test_gaps_break_the_line() -> None:
    path = line_plot("action", np.array([0.0, np.nan, 1.0, 2.0, np.inf, 3.0])).lines[0].path
    assert path.count("M") == 3


def test_peaks_survive_the_thinning() -> None:
    values = np.zeros(100_000)
    values[77_777] = 1.0
    drawn = points(line_plot("reward", values).lines[0].path)
    assert len(drawn) < 400
    assert min(y for _, y in drawn) < HEIGHT * 0.1


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.full((4, 2), np.nan),
        np.zeros(1),
        np.full(3, 1e308),
        np.array([-1e308, 1e308]),
        np.array([5e-324, 0]),
        np.full(3, 1e9 + 0.1),
        np.array([True, False]),
    ],
)
def test_plots_take_any_values(values: Any) -> None:
    plot = line_plot("x", values)
    assert 2 <= len(plot.y_ticks) <= 8
    assert all(-0.1 <= tick.at <= 100.1 for tick in (*plot.x_ticks, *plot.y_ticks))
    assert all(0 <= y <= HEIGHT for line in plot.lines for _, y in points(line.path))


def test_too_many_lines_are_counted() -> None:
    plot = line_plot("x", np.zeros((5, 100)))
    assert (len(plot.lines), plot.omitted) == (64, 36)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0, 299), (1e-9, 2e-9), (-1e300, 1e300)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 6
    assert all(low <= tick <= high for tick in found)
    assert all(len(json.dumps(float(f"{tick:.6g}")).replace("0", "")) <= 8 for tick in found)
