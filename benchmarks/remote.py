"""What it costs to train from a URL: the same batches from a folder, an HTTP server and an S3 server on the loopback.

python benchmarks/remote.py [DATASET] [--images 2000] [--batch 64] [--batches 30]

Batches of random images are decoded from a set made here (JPEG, 64 x 64); each batch is fetched ahead in one call and
checked equal to that of the folder. Then, if DATASET is given, all episodes of its first camera are loaded into memory.
Both servers are written in Python and share the cores with the reader, so the figures are a lower bound; what the
reader decides are the numbers of requests and bytes.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from vrl3data.dataset import Dataset, open_dataset
from vrl3data.loader import load_episodes
from vrl3data.manifest import DatasetSpec, Provenance
from vrl3data.schema import Array, Episode, Feature, Schema
from vrl3data.writer import Writer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from range_server import serving

SHARD_SIZE = 4 * 1024**2
Open = Callable[[], Dataset]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "web" / "images", given.images)
        if given.dataset is not None:
            (root / "web" / "episodes").symlink_to(given.dataset.resolve(), target_is_directory=True)
        with serving(root / "web") as web, bucket(root / "web") as s3:
            cached = {"cache_dir": root / "cache"}
            places: dict[str, Callable[[str], Open]] = {
                "folder": lambda name: lambda: open_dataset(root / "web" / name),
                "http": lambda name: lambda: open_dataset(f"{web.url}/{name}"),
                "http, cache on disk": lambda name: lambda: open_dataset(f"{web.url}/{name}", **cached),
                "the same, again": lambda name: lambda: open_dataset(f"{web.url}/{name}", **cached),
                "s3": lambda name: lambda: open_dataset(f"{s3}/{name}"),
            }
            rng = np.random.default_rng(0)
            chosen = rng.integers(given.images, size=(given.batches, given.batch)).tolist()
            print(f"{given.batches} batches of {given.batch} random images out of {given.images:,}")
            compare({name: place("images") for name, place in places.items()}, lambda found: batches(found, chosen))
            if given.dataset is not None:
                print("episodes of one camera, loaded into memory; one batch is all of it")
                compare({name: place("episodes") for name, place in places.items()}, lambda found: [camera(found)])


def compare(places: dict[str, Open], read: Callable[[Dataset], Sequence[Array]]) -> None:
    """Read from each place; the same values are expected, and the speed is given against that of the first."""
    expected: Sequence[Array] | None = None
    first = 0.0
    print(f"{'from':<22}{'open':>8}{'batches/s':>12}{'ratio':>8}{'requests':>10}{'MB':>9}{'of the set':>12}")
    for name, opening in places.items():
        started = time.perf_counter()
        with opening() as found:
            opened = time.perf_counter()
            values = read(found)
            spent = time.perf_counter() - opened
            fetched, size = found.fetched, found.manifest.bytes
        expected = expected or values
        assert all(np.array_equal(one, other) for one, other in zip(values, expected, strict=True)), name
        speed = len(values) / spent
        first = first or speed
        share = f"{fetched.bytes / size:.0%}" if fetched.requests else "-"
        print(
            f"{name:<22}{opened - started:>6.2f} s{speed:>12.2f}{speed / first:>8.2f}{fetched.requests:>10,}"
            f"{fetched.bytes / 1e6:>9.1f}{share:>12}"
        )


def batches(found: Dataset, chosen: Sequence[Sequence[int]]) -> list[Array]:
    return [np.concatenate([item["image"] for item in found.ahead(batch, ("image",))]) for batch in chosen]


def camera(found: Dataset) -> Array:
    name = found.schema.cameras[0].name
    array: Array = load_episodes(found, [name], storage="ram").array(name)
    return array


def write_images(path: Path, count: int) -> None:
    """Noise on slopes as JPEG files of some kilobytes."""
    rng, size = np.random.default_rng(0), 64
    picture = Feature("image", "uint8", (-1, -1, 3), "episode", "jpeg", False, unit_rows=1, encoder="as they came")
    label = Feature("cls", "int64", (), "episode", "text", names=("a", "b"))
    provenance = Provenance("benchmark", source_identity=str(count), shard_size=SHARD_SIZE)
    with Writer(path, DatasetSpec(Schema("images", (picture, label)), "pictures", provenance)) as writer:
        for number in range(count):
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8) // 2 + np.uint8(number % 128)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "JPEG", quality=95)
            writer.write(
                Episode(f"{number:06d}", {"image": out.getvalue(), "cls": np.array([number % 2])}, label=number % 2)
            )
        writer.finish()


@contextmanager
def bucket(root: Path) -> Iterator[str]:
    """`root` in an S3 server on the loopback."""
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                   "AWS_ENDPOINT_URL": endpoint}  # fmt: skip
    client = boto3.client("s3", config=Config(proxies={}))
    client.create_bucket(Bucket="sets")
    for folder in root.iterdir():
        for file in folder.resolve().rglob("*"):
            if file.is_file():
                key = f"{folder.name}/{file.relative_to(folder.resolve()).as_posix()}"
                client.upload_file(str(file), "sets", key)
    try:
        yield "s3://sets"
    finally:
        server.stop()


if __name__ == "__main__":
    main()
