"""Picture files as they come: colours, depths, rotations, endings that lie, bombs, cuts; and how they fit."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import jpeg
from PIL import Image, ImageOps

import vrl3data
from converters.images.decode import MAX_PIXELS, Fit, checked_jpeg, decode, fitted, opened, orientation, reduction
from vrl3data.errors import ConfigError, SourceError
from vrl3data.schema import Array
from vrl3data.validation import validate


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(width: int = 300, height: int = 200, seed: int = 0) -> Image.Image:
    """Smooth shapes with some grain, so that scaling matters as it does in photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def psnr(one: Array, other: Array) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((one.astype(float) - other) ** 2).mean())))


# -- kinds of files ------------------------------------------------------------------------------------------------


def test_colours_and_depths() -> None:
    """Each mode, in the kinds of file that can hold it, comes out as the RGB picture it shows."""
    shown = scene(60, 40)
    grey = np.asarray(shown.convert("L"))
    sixteen = saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    with opened(sixteen) as image:
        assert image.mode.startswith("I")
    for data, want, least in [
        (saved(shown, "PNG"), shown, 99),
        (saved(shown, "BMP"), shown, 99),
        (saved(shown, "WEBP", lossless=True), shown, 99),
        (saved(shown.convert("L"), "PNG"), shown.convert("L").convert("RGB"), 99),
        (saved(shown.convert("RGBA"), "PNG"), shown, 99),
        (saved(shown.convert("L").convert("LA"), "PNG"), shown.convert("L").convert("RGB"), 99),
        (sixteen, shown.convert("L").convert("RGB"), 99),
        (saved(shown.convert("P"), "PNG"), shown.convert("P").convert("RGB"), 99),
        (saved(shown.convert("P"), "PNG", transparency=bytes(range(256))), shown.convert("P").convert("RGB"), 99),
        (saved(shown.convert("1"), "PNG"), shown.convert("1").convert("RGB"), 99),
        (saved(shown, "JPEG", quality=95, subsampling=0), shown, 30),
        (saved(shown.convert("L"), "JPEG", quality=95), shown.convert("L").convert("RGB"), 30),
        (saved(shown.convert("CMYK"), "JPEG", quality=95), shown, 30),
        (saved(shown, "JPEG", quality=95, progressive=True), shown, 25),
    ]:
        found = decode(data)
        assert found.mode == "RGB"
        assert psnr(np.asarray(found), np.asarray(want)) > least


def test_adobes_cmyk_and_ycck_are_inverted() -> None:
    """Both decoders take the same way: torchvision's would not know of it."""
    shown = scene(64, 64)
    cmyk = saved(shown.convert("CMYK"), "JPEG", quality=95)
    luma = [channel.point(lambda value: 255 - value) for channel in ImageOps.invert(shown).convert("YCbCr").split()]
    ycck = bytearray(saved(Image.merge("CMYK", (*luma, Image.new("L", (64, 64)))), "JPEG", quality=95))
    mark = ycck.index(b"\xff\xee")
    assert ycck[mark + 4 : mark + 9] == b"Adobe"
    ycck[mark + 15] = 2  # Pillow writes 0: four channels that are not transformed
    for data in (cmyk, bytes(ycck)):
        assert psnr(np.asarray(decode(data)), np.asarray(shown)) > 30
        fast = Fit("shorter", 32, "torchvision")
        assert np.array_equal(fast.pixels(data)[0], Fit("shorter", 32).pixels(data)[0])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("fit", ["shorter", "crop", "pad", "squash"])
def test_rotated_files_are_put_upright(turn: int, fit: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(scene(90, 51), "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        want = fitted(ImageOps.exif_transpose(image), fit, 24)
    found, undone = Fit(fit, 24).pixels(data)
    assert undone == turn
    assert found.shape == (1, want.height, want.width, 3)
    assert abs(found[0].astype(int) - np.asarray(want)).max() <= 2


def test_a_set_says_which_files_were_rotated(tmp_path: Path) -> None:
    """A copy cannot be turned: its bytes are those of the source, and what the source said stands beside it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "pictures" / "n01"
    folder.mkdir(parents=True)
    turned = saved(scene(90, 51), "JPEG", exif=exif)
    (folder / "a.JPEG").write_bytes(turned)
    (folder / "b.JPEG").write_bytes(jpeg(90, 51))
    for fit, size in (("crop", (24, 24)), ("shorter", (42, 24)), ("none", (51, 90))):
        options = {"fit": fit} if fit == "none" else {"fit": fit, "image_size": 24}
        vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / fit, options)
        with vrl3data.open(tmp_path / fit) as dataset:
            assert [item.source_meta for item in dataset] == [{"exif_orientation": 6}, {}]
            assert (dataset[0].meta["height"], dataset[0].meta["width"]) == size
            if fit == "none":
                assert bytes(dataset.member(0, "jpg")) == turned
        assert validate(tmp_path / fit).ok


def test_broken_exif_is_upright() -> None:
    image = Image.new("RGB", (2, 2))
    whole = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    image.info["exif"] = whole
    assert orientation(image) == 6
    wrong = [whole[:end] for end in range(26)]
    wrong += [
        whole.replace(b"\0\x06\0\0", b"\0\x63\0\0"),
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        whole.replace(b"MM", b"??"),
    ]
    for exif in (*wrong, None, 7):
        image.info["exif"] = exif
        assert orientation(image) == 1


def bomb_png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def bomb_jpeg(width: int, height: int) -> bytes:
    data = jpeg(20, 20)
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


@pytest.mark.parametrize("data", [bomb_png(20_000, 20_000), bomb_png(2**31 - 1, 3), bomb_jpeg(65_000, 65_000),
                                  bomb_png(9_460, 9_460)])  # fmt: skip
@pytest.mark.parametrize("fit", ["shorter", "none"])
def test_bombs_are_refused_before_they_are_unpacked(data: bytes, fit: str) -> None:
    """In threads, too: no filter of warnings, which belongs to the process, is touched, and none is given."""
    errors: list[str] = []

    def read() -> None:
        try:
            checked_jpeg(data) if fit == "none" else Fit(fit, 32).pixels(data)
        except SourceError as error:
            errors.append(error.message)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert all(
        "pixels, a decompression bomb; at most 89,478,485 are decoded: make it smaller" in text for text in errors
    )


def test_the_largest_picture_that_is_decoded_is_pillows_own() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    with opened(bomb_png(9_459, 9_459)) as image:
        assert image.width * image.height <= MAX_PIXELS


@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_files_cut_off_or_changed_anywhere_are_refused_or_read(decoder: str) -> None:
    """Never another error than ours, and never a picture of another size."""
    fit = Fit("crop", 16, decoder)
    rng = np.random.default_rng(0)
    for whole in (jpeg(40, 30), saved(scene(40, 30), "PNG"), saved(scene(40, 30), "BMP"),
                  saved(scene(40, 30), "JPEG", progressive=True), saved(scene(40, 30), "WEBP")):  # fmt: skip
        cut = [whole[:end] for end in (*range(min(len(whole), 60)), *range(60, len(whole), 97))]
        changed = []
        for _ in range(80):
            data = bytearray(whole)
            data[int(rng.integers(2, len(data)))] = int(rng.integers(256))
            changed.append(bytes(data))
        refused = others = 0
        for data in (*cut, *changed):
            try:
                assert fit.pixels(data)[0].shape == (1, 16, 16, 3)
            except SourceError as error:
                refused += "not a readable picture" in error.message or "bomb" in error.message
                others += "picture" not in error.message and "bomb" not in error.message
        assert refused >= len(cut) * 0.8
        assert not others


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"<!DOCTYPE html><html></html>", "the file begins with b'<!DOCTYPE ht'"),
        (b"GIF89a" + bytes(50), "the file begins with b'GIF89a"),
        (b"\xff\xd8\xff", "not a readable picture"),
        (b"BM", "not a readable picture"),
        (b"RIFF1234WEBPxxxx", "not a readable picture"),
        (b"\x89PNG\r\n\x1a\n", "not a readable picture"),
    ],
)
def test_files_that_only_look_like_pictures(data: bytes, match: str) -> None:
    for decoder in ("pillow", "torchvision"):
        with pytest.raises(SourceError, match=match):
            Fit("shorter", 32, decoder).pixels(data)


# -- fits ----------------------------------------------------------------------------------------------------------


def test_fits() -> None:
    wide = Image.new("RGB", (90, 30), (200, 10, 10))
    data = saved(wide, "PNG")
    assert Fit("shorter", 12).pixels(data)[0].shape == (1, 12, 36, 3)
    assert Fit("crop", 12).pixels(data)[0].shape == (1, 12, 12, 3)
    assert Fit("squash", 12).pixels(data)[0].shape == (1, 12, 12, 3)
    padded = Fit("pad", 12).pixels(data)[0][0]
    assert padded.shape == (12, 12, 3)
    assert (padded[:4] == 0).all() and (padded[8:] == 0).all() and (padded[4:8] == (200, 10, 10)).all()
    assert Fit("shorter", 400).pixels(data)[0].shape == (1, 30, 90, 3)
    assert Fit("squash", 100).pixels(data)[0].shape == (1, 100, 100, 3)


def test_square_is_crop(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "n01").mkdir(parents=True)
    (tmp_path / "pictures" / "n01" / "a.JPEG").write_bytes(jpeg(60, 40))
    vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "out", {"fit": "square", "image_size": 16})
    again = vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / "out", {"fit": "crop", "image_size": 16})
    assert again.already_complete
    assert again.manifest.schema["image"].fit == "crop"


def test_large_files_are_decoded_small() -> None:
    sides = (799, 800, 1600, 3200, 9000)
    assert [reduction((0, 0, side, side), (100, 100), 4) for side in sides] == [1, 2, 4, 8, 8]
    assert [reduction((0, 0, side, side), (100, 100), 2) for side in (399, 400, 800)] == [1, 2, 4]
    assert reduction((0, 0, 4000, 300), (100, 100), 4) == 1
    picture = scene(1601, 1203)
    data = saved(picture, "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as image:
        whole = image.convert("RGB")
    for fit in ("shorter", "crop", "pad", "squash"):
        want = np.asarray(fitted(whole, fit, 64))
        for decoder in ("pillow", "torchvision"):
            found = Fit(fit, 64, decoder).pixels(data)[0][0]
            assert found.shape == want.shape
            assert psnr(found, want) > 45
            assert not np.array_equal(found, want)  # else this does not test the short way


@pytest.mark.parametrize("fit", ["shorter", "crop", "pad", "squash"])
def test_torchvision_gives_nearly_the_same(fit: str) -> None:
    for number, (width, height) in enumerate([(240, 200), (241, 200), (200, 251), (40, 30), (128, 128)]):
        data = saved(scene(width, height, number), "JPEG", quality=90, subsampling=2 * (number % 2))
        slow, fast = (Fit(fit, 64, decoder).pixels(data)[0] for decoder in ("pillow", "torchvision"))
        assert slow.shape == fast.shape
        if fit == "crop":  # Pillow looks at what lies just outside of the part
            slow, fast = slow[:, 2:-2, 2:-2], fast[:, 2:-2, 2:-2]
        assert psnr(slow, fast) > 60
        assert abs(slow.astype(int) - fast).max() <= 2
    grey = saved(scene(200, 150).convert("L"), "JPEG")
    assert psnr(*(Fit(fit, 64, decoder).pixels(grey)[0] for decoder in ("pillow", "torchvision"))) > 60


def test_what_decoded_the_pictures_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "n01").mkdir(parents=True)
    (tmp_path / "pictures" / "n01" / "a.JPEG").write_bytes(jpeg(60, 40))
    for decoder in ("auto", "torchvision"):
        options = {"image_size": 16, "decoder": decoder}
        receipt = vrl3data.convert("imagenet", tmp_path / "pictures", tmp_path / decoder, options)
        made = receipt.manifest.provenance
        assert made["options"]["decoder"] == ("pillow" if decoder == "auto" else decoder)
        assert ("torchvision" in made["versions"]) == (decoder == "torchvision")


def test_a_torchvision_that_cannot_decode_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.images.decode.has_torchvision", lambda: False)
    (tmp_path / "n01").mkdir()
    with pytest.raises(ConfigError, match="needs torchvision below 0.30"):
        vrl3data.convert("imagenet", tmp_path, tmp_path.parent / "out", {"decoder": "torchvision"})
