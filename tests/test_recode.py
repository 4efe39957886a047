"""recode, rename-feature, rerender: what changes, what must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_demonstrations, make_episode, make_pictures, make_schema, make_spec, write_dataset

import vrl3data
from vrl3data.errors import ConfigError
from vrl3data.report import Silent
from vrl3data.schema import Feature, Schema
from vrl3data.tools.recode import recode, rename
from vrl3data.tools.rerender import View, rerender
from vrl3data.validation import validate
from vrl3data.writer import Writer


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def fingerprint(path: Path) -> str:
    with vrl3data.open(path) as dataset:
        return dataset.manifest.fingerprint


def metas(path: Path, key: str) -> list[object]:
    with vrl3data.open(path) as dataset:
        return [item.meta[key] for item in dataset]


def test_lossless_codecs_keep_the_fingerprint(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "raw", 3)
    before = source
    for codec in ("dzst", "png", "raw"):
        with vrl3data.open(before) as dataset:
            found = recode(dataset, tmp_path / f"to-{codec}", codec)
        assert found.fingerprint == fingerprint(source)
        assert found.schema["obs.image.top"].codec == codec
        assert found.provenance["inputs"][0]["fingerprint"] == fingerprint(source)
        assert validate(tmp_path / f"to-{codec}").findings == ()
        before = tmp_path / f"to-{codec}"
    assert metas(before, "id") == metas(source, "id")
    assert metas(before, "digest") == metas(source, "digest")


def test_loss_is_measured_and_losing_twice_is_said(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "raw", 2)
    said = Warnings()
    with vrl3data.open(source) as dataset:
        once = recode(dataset, tmp_path / "jpeg", "jpeg:90", reporter=said)
    assert once.fingerprint != fingerprint(source) and once.lossy is not None and said.said == []
    with vrl3data.open(tmp_path / "jpeg") as dataset:
        recode(dataset, tmp_path / "worse", "jpeg:50", reporter=said)
    assert said.said == ["obs.image.top: stored with loss, and encoded with loss again"]
    with vrl3data.open(tmp_path / "jpeg") as dataset, pytest.raises(ConfigError, match="already stored as jpeg:90"):
        recode(dataset, tmp_path / "x", "jpeg:90")


def test_what_is_not_recoded_passes_through_unchanged(tmp_path: Path) -> None:
    camera = Feature("obs.image.side", "uint8", (12, 12, 3), "state", color="rgb")
    from vrl3data import codecs

    schema = make_schema()
    both = Schema("episodes", (codecs.describe(camera, "jpeg:80"), *schema.features), schema.extras)
    with Writer(tmp_path / "set", make_spec(both)) as writer:
        for number in range(2):
            episode = make_episode(number)
            values = {**episode.values, "obs.image.side": make_episode(number + 50).values["obs.image.top"]}
            writer.write(type(episode)(**{**episode.__dict__, "values": values}))
    with vrl3data.open(tmp_path / "set") as dataset:
        found = recode(dataset, tmp_path / "out", "png", ["obs.image.top"])
        old = [bytes(dataset.member(p, "obs.image.side.mjpg")) for p in range(2)]
        psnr = [item.meta["psnr"] for item in dataset]
    with vrl3data.open(tmp_path / "out") as dataset:
        assert [bytes(dataset.member(p, "obs.image.side.mjpg")) for p in range(2)] == old
        assert [item.meta["psnr"] for item in dataset] == psnr
    assert found.fingerprint == fingerprint(tmp_path / "set")


def test_pictures_of_kind_images(tmp_path: Path) -> None:
    vrl3data.convert("imagenet", make_pictures(tmp_path / "pictures"), tmp_path / "set", {"image_size": 24})
    with vrl3data.open(tmp_path / "set") as dataset:
        first = dataset[0]["image"].copy()
        recode(dataset, tmp_path / "png", "png")
        with pytest.raises(ConfigError, match="fixed name in kind images"):
            rename(dataset, tmp_path / "x", {"image": "picture"})
    with vrl3data.open(tmp_path / "png") as dataset:
        assert np.array_equal(dataset[0]["image"], first)
        assert dataset.manifest.schema["image"].codec == "png"
    assert validate(tmp_path / "png").findings == ()


def test_other_names(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", 2)
    with vrl3data.open(source) as dataset:
        found = rename(dataset, tmp_path / "out", {"obs.image.top": "obs.image.front", "obs.state": "obs.proprio"})
        with vrl3data.open(tmp_path / "out") as renamed:
            assert np.array_equal(renamed[1]["obs.image.front"], dataset[1]["obs.image.top"])
            assert np.array_equal(renamed[1]["obs.proprio"], dataset[1]["obs.state"])
            back = rename(renamed, tmp_path / "back", {"obs.image.front": "obs.image.top", "obs.proprio": "obs.state"})
        with pytest.raises(ConfigError, match="no feature 'obs.sate'; did you mean 'obs.state'"):
            rename(dataset, tmp_path / "x", {"obs.sate": "a"})
        with pytest.raises(ConfigError, match="two features 'action'"):
            rename(dataset, tmp_path / "x", {"reward": "action"})
        with pytest.raises(ConfigError, match="another name"):
            rename(dataset, tmp_path / "x", {"action": "action"})
    assert metas(tmp_path / "out", "id") == metas(source, "id")
    assert found.fingerprint != fingerprint(source) == back.fingerprint
    assert validate(tmp_path / "out").findings == ()


def test_wrong_recodes(tmp_path: Path) -> None:
    with vrl3data.open(write_dataset(tmp_path / "set", 1)) as dataset:
        with pytest.raises(ConfigError, match="unknown codec 'pgn'; did you mean 'png'"):
            recode(dataset, tmp_path / "x", "pgn")
        with pytest.raises(ConfigError, match="no feature 'obs.image.tpo'"):
            recode(dataset, tmp_path / "x", "png", ["obs.image.tpo"])
        with pytest.raises(ConfigError, match="already stored as raw"):
            recode(dataset, tmp_path / "x", "raw")
        with pytest.raises(ConfigError, match="holds no simulator states"):
            rerender(dataset, tmp_path / "x", View())
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_pictures_are_drawn_anew_from_the_states(tmp_path: Path) -> None:
    source = make_demonstrations(tmp_path / "relocate.pickle", "relocate", 2, 3)
    options = {"image_size": 24, "render": "fast", "camera": ("cam2",), "license": "apache-2.0"}
    vrl3data.convert("adroit", source, tmp_path / "set", options)
    vrl3data.convert("adroit", source, tmp_path / "large", {**options, "image_size": 32, "camera": ("cam1", "cam3")})
    with vrl3data.open(tmp_path / "set") as dataset:
        same = rerender(dataset, tmp_path / "same", View(profile="fast"))
        other = rerender(dataset, tmp_path / "other", View(("cam1", "cam3"), 32, profile="fast", codec="png"))
        with pytest.raises(ConfigError, match="has no camera 'cam9'"):
            rerender(dataset, tmp_path / "x", View(("cam9",)))
    assert same.fingerprint == fingerprint(tmp_path / "set")
    assert other.schema.names[:2] == ("obs.image.cam1", "obs.image.cam3") and "obs.image.cam2" not in other.schema
    assert validate(tmp_path / "other").ok
    with vrl3data.open(tmp_path / "other") as drawn, vrl3data.open(tmp_path / "large") as converted:
        for name in ("obs.image.cam1", "obs.image.cam3", "action", "sim.qpos"):
            assert np.array_equal(drawn[1][name], converted[1][name]), name


@pytest.mark.slow
def test_recorded_environments_are_drawn_anew(tmp_path: Path) -> None:
    with vrl3data.open("sample:fetch-reach") as dataset:
        found = rerender(dataset, tmp_path / "out", View(image_size=84))
        with vrl3data.open(tmp_path / "out") as drawn:
            difference = np.abs(drawn[1]["obs.image.main"].astype(int) - dataset[1]["obs.image.main"]).mean()
    assert found.license == "apache-2.0"
    assert difference < 0.5  # the mocap lines of the first frame and another machine's renderer
