"""A million pictures: the official train archive of ILSVRC, imitated; time and memory of its index and conversion.

python benchmarks/many_images.py FOLDER [--pictures 1281167] [--convert 100000] [--jobs 2]

FOLDER/<class>/<picture>.JPEG are small real pictures (Tiny-ImageNet), which are repeated. The archive is written beside
the results, in a temporary folder: 3.3 GB for a million of 2 KB. Memory is what /proc says, once a second.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from converters.images.imagenet import ImagenetConverter
from converters.images.pictures import PictureOptions
from vrl3data.validation import validate

CLASSES = 1000
MB = 1024**2


def write_archive(path: Path, pictures: list[bytes], count: int) -> None:
    """One archive for each class in an archive, names as the real ones."""
    supply = itertools.cycle(pictures)
    with path.open("wb") as file:
        for row in range(CLASSES):
            wnid, number = f"n{row:08d}", count // CLASSES + (row < count % CLASSES)
            start = file.tell()
            file.write(bytes(512))
            for picture in range(number):
                data = next(supply)
                file.write(_header(f"{wnid}_{picture}.JPEG", len(data)))
                file.write(data + bytes(-len(data) % 512))
            file.write(bytes(1024))
            end = file.tell()
            file.seek(start)
            file.write(_header(f"{wnid}.tar", end - start - 512))
            file.seek(end)
        file.write(bytes(1024))


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def index(path: Path) -> None:
    before = peak_mb()
    started = time.perf_counter()
    plan = ImagenetConverter([path], PictureOptions()).plan()
    seconds = time.perf_counter() - started
    taken = peak_mb() - before
    started = time.perf_counter()
    assert sum(1 for _ in plan.units) == plan.count
    print(f"index of {plan.count:,} pictures: {seconds:.1f} s, {taken:.0f} MB more than before ({before:.0f} MB); "
          f"going through the units {time.perf_counter() - started:.1f} s")  # fmt: skip


def memory_mb(pid: int) -> float:
    """Of a process, what is its own: pages of files that others map as well do not count."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) / 1024
    except (OSError, KeyError):
        return 0.0


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def convert(source: Path, dest: Path, jobs: int, count: int) -> None:
    command = [sys.executable, "-m", "vrl3data", "convert", "imagenet", source, dest, "--jobs", str(jobs), "--quiet"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen: list[tuple[float, float]] = []
    while process.poll() is None:
        workers = [memory_mb(child) for child in children(process.pid)]
        seen.append((memory_mb(process.pid), max(workers, default=0.0)))
        time.sleep(1)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    quarter = len(seen) // 4
    print(f"conversion of {count:,} pictures with {jobs} processes: {seconds:.0f} s, {count / seconds:.0f} images/s")
    for name, column in (("parent", 0), ("largest worker", 1)):
        values = [row[column] for row in seen]
        print(f"  {name}: after a quarter {values[quarter]:.0f} MB, half {values[2 * quarter]:.0f}, three quarters "
              f"{values[3 * quarter]:.0f}, greatest {max(values):.0f}")  # fmt: skip
    assert validate(dest).ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1_281_167)
    parser.add_argument("--convert", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    pictures = [path.read_bytes() for path in files]
    with tempfile.TemporaryDirectory() as name:
        archive = Path(name) / "ILSVRC2012_img_train.tar"
        for count, use in ((arguments.pictures, index), (arguments.convert, None)):
            if not count:
                continue
            write_archive(archive, pictures, count)
            print(f"{archive.name}: {os.path.getsize(archive) / MB:.0f} MB", flush=True)
            if use is not None:
                use(archive)
            else:
                convert(archive, Path(name) / "set", arguments.jobs, count)


if __name__ == "__main__":
    main()
