"""Decoding and resizing pictures on one core: ours against Pillow's whole picture and antialiased resize.

python benchmarks/decode.py FOLDER [--sizes 84 128] [--fit shorter] [--rounds 5]     FOLDER/**/<picture>.JPEG

Both sides get the bytes of the files in memory and give uint8 arrays. The sides take turns with each picture; the best
of the rounds counts for each, in CPU time of the process, so that other work on the machine does not. PSNR is ours
against Pillow's way, in dB, 99 where they are equal.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from converters.images.decode import REDUCE_FROM, Fit, fitted, place, reduction
from vrl3data.schema import Array

EQUAL = 99.0


def pillow(data: bytes, fit: str, size: int) -> Array:
    """The whole picture, then an antialiased resize: what ImageFolder and a script would do."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(fitted(image.convert("RGB"), fit, size))


def sides(fit: str, size: int) -> dict[str, Callable[[bytes], Array]]:
    ways: dict[str, Callable[[bytes], Array]] = {"Pillow, whole": lambda data: pillow(data, fit, size)}
    for decoder in ("pillow", "torchvision"):
        ways[f"ours, {decoder}"] = partial(_ours, Fit(fit, size, decoder))
    return ways


def _ours(chain: Fit, data: bytes) -> Array:
    return np.asarray(chain.pixels(data)[0][0])


def timed(ways: dict[str, Callable[[bytes], Array]], files: list[bytes], rounds: int) -> dict[str, Array]:
    """Seconds of each file."""
    best = {name: np.full(len(files), np.inf) for name in ways}
    for _ in range(rounds):
        for row, data in enumerate(files):
            for name, way in ways.items():
                started = time.process_time_ns()
                way(data)
                best[name][row] = min(best[name][row], (time.process_time_ns() - started) / 1e9)
    return best


def psnr(ours: Array, reference: Array) -> float:
    assert ours.shape == reference.shape
    error = float(((ours.astype(np.float64) - reference) ** 2).mean())
    return EQUAL if error == 0 else 10 * np.log10(255**2 / error)


def report(files: list[bytes], fit: str, size: int, rounds: int) -> None:
    ways = sides(fit, size)
    reference, *others = ways
    best = timed(ways, files, rounds)
    whole = best[reference].sum()
    print(f"{fit} {size}: {reference} {len(files) / whole:.0f} images/s")
    references = [ways[reference](data) for data in files]
    for name in others:
        close = np.array([psnr(ways[name](data), want) for data, want in zip(files, references, strict=True)])
        print(f"  {name}: {len(files) / best[name].sum():.0f} images/s, {whole / best[name].sum():.2f} x; PSNR mean "
              f"{close.mean():.1f}, 5th percentile {np.percentile(close, 5):.1f}, least {close.min():.1f}")  # fmt: skip


def report_reduction(files: list[bytes], fit: str, size: int) -> None:
    """What decoding at 1/2 or less would cost if it began at smaller factors than ours."""
    references = [pillow(data, fit, size) for data in files]
    for factor in (2, 3, 4, 6, 8):
        with mock.patch.dict(REDUCE_FROM, pillow=factor):
            chain, close = Fit(fit, size), []
            for data, want in zip(files, references, strict=True):
                with Image.open(io.BytesIO(data)) as image:
                    scale = reduction(*place(fit, size, *image.size), factor)
                if scale > 1:
                    close.append(psnr(_ours(chain, data), want))
        if close:
            print(f"  reduced from {factor} x on: {len(close)} of {len(files)}, PSNR mean {np.mean(close):.1f}, "
                  f"5th percentile {np.percentile(close, 5):.1f}, least {min(close):.1f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[84, 128])
    parser.add_argument("--fit", choices=["shorter", "crop", "pad", "squash"], default="shorter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=1000, help="at most so many, evenly spread")
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    paths = paths[:: max(1, len(paths) // arguments.files)][: arguments.files]
    files = [path.read_bytes() for path in paths]
    print(f"{len(files)} files, mean {np.mean([len(data) for data in files]) / 1e3:.0f} kB")
    for size in arguments.sizes:
        report(files, arguments.fit, size, arguments.rounds)
        report_reduction(files, arguments.fit, size)


if __name__ == "__main__":
    main()
