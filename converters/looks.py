"""What a file that no converter knows looks like, for the message that says so."""

from __future__ import annotations

import csv
from pathlib import Path

HEAD_BYTES = 4096
MAGICS = (
    (b"PK\x03\x04", "a zip archive (or a file of torch or NumPy)"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"(\xb5/\xfd", "a zstd file: unpack it first"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an arrow file"),
    (b"\xff\xd8\xff", "a JPEG picture: give the folder of class folders"),
    (b"\x89PNG", "a PNG picture: give the folder of class folders"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page: the download went wrong"),
    (b"<html", "an HTML page: the download went wrong"),
)


def looks_like(path: Path) -> str:
    """In a few words; by the first bytes of a file, by the kinds of files in a folder."""
    if path.is_dir():
        if (path / "dataset.json").is_file():
            return "a dataset of vrl3data already"
        suffixes = sorted(
            {item.suffix.lower() or item.name for item in path.iterdir() if not item.name.startswith(".")}
        )
        return f"a folder with {', '.join(suffixes[:6])}" if suffixes else "an empty folder"
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return "an empty file"
    for magic, words in MAGICS:
        if head.lower().startswith(magic.lower()):
            return words
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, but not of DAPG demonstrations, and no other pickle is opened: it could run code"
    if head[257:262] == b"ustar":
        return "a tar file"
    if head[4:8] == b"ftyp":
        return "a video"
    return _text(head) or f"a file that begins with {head[:12]!r}"


def _text(head: bytes) -> str:
    """What kind of text it is; empty if it is none."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if "\x00" in text:
        return ""
    if text.lstrip()[:1] in ("{", "["):
        return "JSON"
    try:
        found = csv.Sniffer().sniff(text, delimiters=",;\t").delimiter
    except csv.Error:
        return "text"
    return f"a table with {found!r} between the columns" if len(text.splitlines()[0].split(found)) > 1 else "text"
