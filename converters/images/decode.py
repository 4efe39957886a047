"""Picture files, whatever they are called -> RGB pixels that fit. Sizes are checked before anything is decoded.

H, W: height and width in pixels. Colours: grey is repeated, CMYK is converted (inverted where Adobe wrote it), 16 bits
lose the lower 8, alpha is dropped as torchvision's ImageFolder drops it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from vrl3data.codecs.jpeg import UNREADABLE
from vrl3data.errors import ConfigError, MissingExtra, SourceError
from vrl3data.schema import Array

READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
)
"""How a file begins -> what reads it. Other readers of Pillow start programs or are little used. They are called
by name since Image.open looks at a size after it has warned about it, and warnings belong to the whole process."""
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
FITS = ("shorter", "crop", "pad", "squash", "none")
DECODERS = ("auto", "pillow", "torchvision")
MAX_PIXELS = 89_478_485
"""Of one picture: a quarter of a GB as RGB. Pillow's own limit, above which it warns."""
MAX_BYTES = 256 * 1024**2
"""Of one file."""
REDUCE_FROM = {"pillow": 2, "torchvision": 4}
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only if what comes out is still so many times the size that is stored. Measured
on ImageNet at 84 pixels (benchmarks/decode.py) such pictures are 50 dB from the slow way in the mean from 2 times on,
45 dB at the 5th percentile, and 55 dB from 4 times on. It saves time from 2 on where Pillow decodes, else from 4 on."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what makes the picture upright."""
RGB_MODE = 3
"""Of torchvision's operator."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Fit:
    """How pictures get the size that is stored, and what decodes large JPEGs: `pillow` or `torchvision`."""

    name: str
    size: int
    decoder: str = "pillow"

    def pixels(self, data: bytes) -> tuple[Array, int]:
        """(1 x H x W x 3 uint8, EXIF orientation that was undone). SourceError if it is not a whole picture."""
        try:
            with opened(data) as image:
                small, turn = self._small(image, data), orientation(image)
        except UNREADABLE as error:
            raise SourceError(f"not a readable picture: {error}") from error
        upright = small.transpose(TURNS[turn]) if turn in TURNS else small
        return np.asarray(padded(upright, self.size) if self.name == "pad" else upright)[None], turn

    def _small(self, image: Image.Image, data: bytes) -> Image.Image:
        box, size = place(self.name, self.size, *image.size)
        if image.format == "JPEG":
            scale = reduction(box, size, REDUCE_FROM[self.decoder])
            if scale > 1:
                image.draft("RGB", (image.width // scale, image.height // scale))
            elif self.decoder == "torchvision" and image.mode in ("RGB", "L"):
                found = _by_torchvision(data, box, size)
                if found is not None:
                    return found
            box = (box[0] / scale, box[1] / scale, box[2] / scale, box[3] / scale)
        return resized(rgb(image), box, size)


def opened(data: bytes) -> ImageFile.ImageFile:
    """The header of a picture file. SourceError unless it is of a known kind and of a size that can be decoded."""
    reader = next((reader for magic, reader in READERS if data.startswith(magic)), None)
    if reader is None:
        begin = f"the file begins with {data[:12]!r}" if data else "the file is empty"
        raise SourceError(f"not a readable picture: {begin}")
    try:
        image = reader(io.BytesIO(data))
    except UNREADABLE as error:
        raise SourceError(f"not a readable picture: {error or 'its header is broken'}") from error
    if image.width * image.height > MAX_PIXELS:
        raise SourceError(
            f"the file promises {image.width} x {image.height} pixels, a decompression bomb; at most {MAX_PIXELS:,} "
            "are decoded: make it smaller, or leave it out"
        )
    return image


def decode(data: bytes) -> Image.Image:
    """The whole picture, RGB, as it is stored in the file."""
    try:
        with opened(data) as image:
            return rgb(image)
    except UNREADABLE as error:
        raise SourceError(f"not a readable picture: {error}") from error


def checked_jpeg(data: bytes) -> tuple[bytes, int]:
    """(`data` itself if it is a whole JPEG file, its EXIF orientation)."""
    with opened(data) as image:
        if image.format != "JPEG":
            raise SourceError("not a JPEG file; --fit none copies JPEG files, --fit shorter reads others too")
        turn = orientation(image)
    decode(data)
    return data, turn


def rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):  # with a transparent colour, Pillow warns on the short way
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF tag: 1 is upright, and so is what cannot be understood."""
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    first = struct.unpack_from(f"{order}I", tiff, 4)[0]
    if first + 2 > len(tiff):
        return 1
    count = struct.unpack_from(f"{order}H", tiff, first)[0]
    for start in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, start)
        if (tag, kind, values) == (0x0112, 3, 1):
            return int(value) if 1 <= value <= 8 else 1
    return 1


def place(fit: str, size: int, width: int, height: int) -> tuple[Box, tuple[int, int]]:
    """(part of the picture: left, top, right, bottom; the width and height that it gets). `shorter` never enlarges."""
    whole = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), (size, size)
    if fit == "squash":
        return whole, (size, size)
    if fit == "pad":
        scale = size / max(width, height)
        return whole, (max(1, round(width * scale)), max(1, round(height * scale)))
    scale = size / min(width, height)
    if scale >= 1:
        return whole, (width, height)
    return whole, (max(size, round(width * scale)), max(size, round(height * scale)))


def reduction(box: Box, size: tuple[int, int], reduce_from: int) -> int:
    """1, 2, 4 or 8: how much smaller a JPEG may be decoded."""
    room = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    return next((scale for scale in (8, 4, 2) if room >= scale * reduce_from), 1)


def resized(picture: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """That part of the picture, antialiased."""
    if size == picture.size and box == (0, 0, *size):
        return picture
    right, bottom = min(box[2], picture.width), min(box[3], picture.height)
    return picture.resize(size, Image.Resampling.BILINEAR, box=(box[0], box[1], right, bottom))


def fitted(picture: Image.Image, fit: str, size: int) -> Image.Image:
    """A whole picture as `fit` wants it: what every faster way is measured against."""
    small = resized(picture, *place(fit, size, *picture.size))
    return padded(small, size) if fit == "pad" else small


def padded(picture: Image.Image, size: int) -> Image.Image:
    """Black around it."""
    out = Image.new("RGB", (size, size))
    out.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return out


def _by_torchvision(data: bytes, box: Box, size: tuple[int, int]) -> Image.Image | None:
    """The same in two thirds of the time, 0.1 levels away. None if it cannot be done so: half pixels, odd files.

    What comes out does not depend on the processor (tested with and without AVX).
    """
    operator = _operator()
    left, top, right, bottom = (int(side) for side in box)
    if (left, top, right, bottom) != box:
        return None
    import torch

    try:
        whole_CHW = operator(torch.frombuffer(bytearray(data), dtype=torch.uint8), RGB_MODE, False)
    except RuntimeError:  # the slow way says what is wrong, or reads it nevertheless
        return None
    part_BCHW = whole_CHW[None, :, top:bottom, left:right]
    if part_BCHW.shape[2:] != size[::-1]:
        part_BCHW = torch.nn.functional.interpolate(part_BCHW, size[::-1], mode="bilinear", antialias=True)
    return Image.fromarray(part_BCHW[0].permute(1, 2, 0).contiguous().numpy())


@cache
def _operator() -> Callable[..., Any]:
    """Of torchvision; its function in Python warns that it will go away."""
    try:
        import torch
        import torchvision.io  # noqa: F401 - registers the operator

        return cast(Callable[..., Any], torch.ops.image.decode_jpeg)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise MissingExtra("this torchvision does not decode JPEG files any more; take --decoder pillow") from error


def check_decoder(decoder: str) -> None:
    if decoder not in DECODERS:
        raise ConfigError(f"decoder: expected {', '.join(DECODERS)}, found {decoder!r}")
    if decoder == "torchvision" and not has_torchvision():
        raise MissingExtra("decoder torchvision needs torchvision below 0.30; --decoder pillow does not")


def has_torchvision() -> bool:
    """Whether it is there and, by its version, still decodes: 0.29 says that a later one will not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("torchvision").split(".")[:2]
    except PackageNotFoundError:
        return False
    return all(part.isdecimal() for part in found) and tuple(map(int, found)) < (0, 30)
