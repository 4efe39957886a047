"""What is said of a source that no converter knows."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from converters.base import recognise
from vrl3data.errors import SourceError


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "it is an empty file"),
        (b"\x89MCAP0\r\n" + bytes(20), "it is an MCAP log"),
        (b"#ROSBAG V2.0\n", "it is a ROS 1 bag"),
        (b"SQLite format 3\x00" + bytes(20), "perhaps a ROS 2 bag"),
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
