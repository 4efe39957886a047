"""Which class each validation picture of ILSVRC is of: the devkit, Kaggle's table, Tiny-ImageNet's table."""

from __future__ import annotations

import csv
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from converters.base import read_bytes
from converters.images import matlab
from vrl3data.errors import SourceError, locate

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE = "LOC_val_solution.csv"
MAX_FILE, MAX_MEMBERS = 16 * 1024**2, 10_000
"""Of what the devkit holds."""
HINT = (
    f"the folder holds validation pictures without classes: give the devkit (ILSVRC2012_devkit_t12.tar.gz) or {KAGGLE} "
    "as one more source, or move them into class folders"
)


@dataclass(frozen=True)
class Labels:
    """File name without its ending -> class, and every class there is, also those of no picture here."""

    by_stem: dict[str, str] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()

    def of(self, path: str) -> str | None:
        return self.by_stem.get(path.rpartition("/")[2].rpartition(".")[0])


def is_labels(source: Path) -> bool:
    """Whether `source` is a table of classes and not of pictures."""
    return source.name.endswith((".csv", ".tar.gz", ".tgz")) or (source / "data" / META).is_file()


def read_labels(sources: list[Path]) -> Labels:
    """Of all tables that were given or found; empty if there are none."""
    by_stem: dict[str, str] = {}
    classes: set[str] = set()
    for source in sources:
        with locate(path=source.name):
            found = _kaggle(source) if source.name.endswith(".csv") else _devkit(source)
        by_stem |= found.by_stem
        classes |= found.classes
    return Labels(by_stem, frozenset(classes))


def _kaggle(table: Path) -> Labels:
    """Rows of `ImageId,PredictionString`, the second one a class and a box, perhaps several times."""
    text = read_bytes(table).decode("utf-8", "replace")
    by_stem = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        words = row[1].split() if len(row) == 2 else []
        if number == 1 and row and row[0] == "ImageId":
            continue
        if not words:
            raise SourceError(f"line {number}: expected ImageId,PredictionString, found {','.join(row)[:80]!r}")
        by_stem[row[0]] = words[0]
    return Labels(by_stem, frozenset(by_stem.values()))


def _devkit(source: Path) -> Labels:
    """Line n of the ground truth is the ILSVRC2012_ID of picture n; meta.mat says which class has that number.

    The numbers are not the order of the class names, and only leaves of the tree have pictures.
    """
    files = {name: read_bytes(source / "data" / name) for name in (GROUND_TRUTH, META)} if source.is_dir() else {}
    for name, data in ({} if files else _unpacked(source)).items():
        files[name] = data
    missing = {GROUND_TRUTH, META} - set(files)
    if missing:
        raise SourceError(f"the devkit has no {', '.join(sorted(missing))}; expected ILSVRC2012_devkit_t12.tar.gz")
    classes: dict[int, str] = {}
    for row in matlab.structs(files[META], "synsets"):
        number, wnid = row.get("ILSVRC2012_ID"), row.get("WNID")
        if not isinstance(number, (int, float)) or not isinstance(wnid, str):
            raise SourceError(f"{META}: expected ILSVRC2012_ID and WNID of every synset")
        if row.get("num_children") in (0, None):
            classes[int(number)] = wnid
    by_stem = {}
    for number, line in enumerate(files[GROUND_TRUTH].split(), 1):
        if not line.isdigit() or int(line) not in classes:
            raise SourceError(f"{GROUND_TRUTH}, line {number}: expected the number of a class, found {line[:20]!r}")
        by_stem[f"ILSVRC2012_val_{number:08d}"] = classes[int(line)]
    return Labels(by_stem, frozenset(classes.values()))


def _unpacked(archive: Path) -> dict[str, bytes]:
    """The two files, whatever folder they are in; nothing is written anywhere."""
    files = {}
    try:
        with tarfile.open(archive, "r|*") as members:
            for number, member in enumerate(members):
                name = member.name.rpartition("/")[2]
                if number > MAX_MEMBERS:
                    raise SourceError(f"the devkit has more than {MAX_MEMBERS} members; it is something else")
                if member.size > MAX_FILE:
                    raise SourceError(f"{name!r} in the devkit has {member.size} bytes; it is something else")
                if member.isreg() and name in (GROUND_TRUTH, META):
                    file = members.extractfile(member)
                    assert file is not None
                    files[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"the devkit cannot be read: {error}; get it anew") from error
    return files
