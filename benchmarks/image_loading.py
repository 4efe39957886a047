"""Training images a second: our loader against torchvision's ImageFolder, both with random resized crops and flips.

python benchmarks/image_loading.py FOLDER [--epochs 3]      FOLDER/<class>/<picture>.JPEG

Ours converts the folder (not timed), decodes it once into memory and crops whole batches. torchvision decodes every
picture in every epoch with two workers: from the originals, and from the very JPEGs that our dataset stores.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import vrl3data
from pretrain.augment import CropConfig, random_resized_crop
from pretrain.loop import Draw
from pretrain.objectives.supervised import VRL3_CONFIG, Supervised
from vrl3data.encoders.encoder import Encoder, EncoderSpec
from vrl3data.images import ImageTable, load_images, square

SIZE, STORED, BATCH, WORKERS, CHECKED = 84, 112, 256, 2, 48
TOLERANCE = 6.0
"""Mean difference in levels of 0..255 that JPEG at the stored size and resizing twice may make."""


def unpack(dataset: Path, target: Path) -> Path:
    """The stored JPEGs as ImageFolder wants them."""
    for shard in sorted((dataset / "data").glob("*.tar")):
        with tarfile.open(shard) as archive:
            found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            for name, file in found.items():
                if not name.endswith(".jpg") or file is None:
                    continue
                label = found[f"{name.removesuffix('.jpg')}.cls"]
                assert label is not None
                folder = target / label.read().decode().strip().zfill(4)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(file.read())
    return target


def torchvision_epochs(folder: Path, epochs: int) -> list[float]:
    """Images a second of each epoch. uint8 batches: less work than the usual ToTensor."""
    crop = transforms.RandomResizedCrop(SIZE)
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])
    loader = DataLoader(datasets.ImageFolder(str(folder), transform), BATCH, shuffle=True, num_workers=WORKERS,
                        persistent_workers=True, drop_last=True)  # fmt: skip
    speeds = []
    for _ in range(epochs):
        started, images = time.perf_counter(), 0
        for images_BCHW, _labels in loader:
            assert images_BCHW.shape[1:] == (3, SIZE, SIZE)
            images += len(images_BCHW)
        speeds.append(images / (time.perf_counter() - started))
    return speeds


def our_epochs(table: ImageTable, epochs: int) -> list[float]:
    """Images a second of each epoch, as `pretrain-encoder supervised --recipe vrl3` draws them."""
    objective = Supervised(Encoder(EncoderSpec("resnet6_32channel")), table, None, VRL3_CONFIG)
    per_epoch, speeds = len(table) // BATCH, []
    for epoch in range(epochs):
        started = time.perf_counter()
        for step in range(per_epoch):
            batch = objective.sample(Draw(0, epoch * per_epoch + step, epochs * per_epoch, BATCH))
            assert batch["images"].shape == (BATCH, 3, SIZE, SIZE)
        speeds.append(per_epoch * BATCH / (time.perf_counter() - started))
    return speeds


def check_same_pictures(folder: Path, table: ImageTable) -> float:
    """Whole pictures, not mirrored, through both chains: labels equal, pixels as near as JPEG and resizing allow."""
    reference = datasets.ImageFolder(str(folder))
    rows = np.linspace(0, len(table) - 1, CHECKED).astype(int)
    ours_BCHW = random_resized_crop(
        torch.from_numpy(table.images_NHWC[rows]).permute(0, 3, 1, 2), SIZE,
        CropConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False), torch.Generator().manual_seed(0),
    )  # fmt: skip
    theirs = []
    for row in rows:
        picture, label = reference[row]
        assert label == table.labels_N[row], "the two sides hold different pictures"
        whole_HWC = square(np.asarray(picture.convert("RGB")), min(picture.size))
        theirs.append(np.asarray(Image.fromarray(whole_HWC).resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    difference = (ours_BCHW - torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2)).abs().mean()
    assert difference < TOLERANCE, f"mean difference {difference:.1f} of 255"
    return float(difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        dataset, stored = Path(name) / "set", Path(name) / "stored"
        vrl3data.convert("imagenet", arguments.folder, dataset)
        started = time.perf_counter()
        with vrl3data.open(dataset) as opened:
            table = load_images(opened, STORED)
        decoding = len(table) / (time.perf_counter() - started)
        difference = check_same_pictures(arguments.folder, table)
        ours = our_epochs(table, arguments.epochs)
        originals = torchvision_epochs(arguments.folder, arguments.epochs)
        same_size = torchvision_epochs(unpack(dataset, stored), arguments.epochs)
    best = {name: max(speeds) for name, speeds in (("ours", ours), ("originals", originals), ("stored", same_size))}
    whole = arguments.epochs / (1 / decoding + sum(1 / speed for speed in ours))
    print(f"{len(table)} pictures, crops of {SIZE}, batch {BATCH}, {torch.get_num_threads()} threads; "
          f"whole pictures differ by {difference:.1f} of 255 on average")  # fmt: skip
    print(f"ours: {best['ours']:.0f} images/s from memory; decoding once {decoding:.0f}; "
          f"{arguments.epochs} epochs with it {whole:.0f}")  # fmt: skip
    for side, label in (("originals", "ImageFolder, originals"), ("stored", "ImageFolder, stored size")):
        print(f"{label}: {best[side]:.0f} images/s; ours is {best['ours'] / best[side]:.1f} x in steady state, "
              f"{whole / best[side]:.1f} x with decoding")  # fmt: skip


if __name__ == "__main__":
    main()
