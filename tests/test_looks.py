"""What is said of a source that no converter knows."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from conftest import make_pictures, run_cli
from kinds import SOURCES

import vrl3data
from converters.base import recognise
from vrl3data.errors import ConfigError, SourceError


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "it is an empty file"),
        (b"PK\x03\x04" + bytes(20), "it is a zip archive"),
        (pickle.dumps({"a": 1}), "a pickle, but not of DAPG demonstrations, .* could run code"),
        (b"<!doctype html><html>", "an HTML page: the download went wrong"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"a": 1}', "it is JSON"),
        (b"just a few words\nand more of them\n", "it is text"),
        (bytes(range(1, 250)), "it is a file that begins with"),
    ],
)
def test_the_message_says_what_it_looks_like(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "thing.bin").write_bytes(data)
    with pytest.raises(SourceError, match=match):
        recognise(tmp_path / "thing.bin")


def test_of_a_folder_it_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it is an empty folder"):
        recognise(tmp_path)
    (tmp_path / "a.xyz").touch()
    (tmp_path / "readme").touch()
    with pytest.raises(SourceError, match=r"a folder with \.xyz, readme"):
        recognise(tmp_path)


def test_a_folder_is_what_its_good_files_are(tmp_path: Path) -> None:
    """One empty or stray file must not change what the others become."""
    folder = SOURCES["robomimic"](tmp_path).parent
    (folder / "empty.hdf5").touch()
    (folder / "notes.h5").write_text("not HDF5")
    assert recognise(folder) == "robomimic"


def test_a_folder_of_everything_is_no_set_of_pictures(tmp_path: Path) -> None:
    make_pictures(tmp_path / "all" / "imagenet")
    assert recognise(tmp_path / "all") == "imagenet"
    (tmp_path / "all" / "logs").mkdir()
    (tmp_path / "all" / "logs" / "run.h5").write_bytes(b"x")
    with pytest.raises(SourceError, match="no converter recognises this"):
        recognise(tmp_path / "all")


def test_links_in_circles(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", 4)
    (pictures / "n00000000" / "loop").symlink_to(pictures)
    assert vrl3data.convert("imagenet", pictures, tmp_path / "out").manifest.samples == 4
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    result = run_cli("convert", "imagenet", pictures, tmp_path / "a" / "out")
    assert result.returncode == 2 and "cannot write" in result.stderr


def test_another_kind_than_was_said_is_named(tmp_path: Path) -> None:
    source = SOURCES["robomimic"](tmp_path)
    with pytest.raises(SourceError, match="it looks like the kind 'robomimic', not 'lerobot'"):
        vrl3data.convert("lerobot", source, tmp_path / "out")
    result = run_cli("convert", "robomimc", source, tmp_path / "out")
    assert result.returncode == 2 and "did you mean the kind 'robomimic'?" in result.stderr


def test_a_size_that_does_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size does nothing"):
        vrl3data.convert("imagenet", make_pictures(tmp_path / "p"), tmp_path / "o", {"fit": "none", "image_size": 64})


def test_loss_is_in_the_receipt(tmp_path: Path) -> None:
    receipt = vrl3data.convert("imagenet", make_pictures(tmp_path / "p"), tmp_path / "o")
    assert any("stored as jpeg:95, with loss" in note for note in receipt.notes)


def test_windows_take_an_rlds_set_as_it_comes(tmp_path: Path) -> None:
    vrl3data.convert("rlds", SOURCES["rlds"](tmp_path), tmp_path / "out")
    with vrl3data.open(tmp_path / "out") as dataset, dataset.windows(2, seed=0, epochs=1) as batches:
        assert "recorded.discount" in next(iter(batches))
