"""Pixels of cameras as ROS and foxglove send them, as RGB or grey pictures of 8 bits, or as depth.

Letters: H height, W width, C channels. Sixteen bits of colour or grey become their upper eight.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from converters.pictures import decode, picture_size
from vrl3data.errors import SourceError
from vrl3data.schema import Array

ORDERS = {"rgb": (0, 1, 2), "rgba": (0, 1, 2), "bgr": (2, 1, 0), "bgra": (2, 1, 0), "mono": (0,)}
GENERIC = re.compile(r"(8|16|32|64)([USF])C?([1-4]?)")
BAYER = re.compile(r"bayer_(rggb|bggr|gbrg|grbg)(8|16)")
YUV = {"uyvy": (0, 1, 2), "yuv422": (0, 1, 2), "yuyv": (1, 0, 3), "yuv422_yuy2": (1, 0, 3)}
"""Places of U, first Y and V in four bytes of two pixels."""
OPENCV = {1: (0,), 3: (2, 1, 0), 4: (2, 1, 0)}
"""8UC3 says nothing of its colours; OpenCV, whose name it is, keeps blue first."""
DEPTH_UNIT_M = {"16UC1": 0.001, "mono16": 0.001, "32FC1": 1.0, "64FC1": 1.0}
COMPRESSED_DEPTH = struct.Struct("<iff")
MAX_PIXELS = 2**27
JPEG, PNG = b"\xff\xd8", b"\x89PNG"


def depth_unit(encoding: str, topic: str) -> float:
    """Metres per count if pictures of this encoding are depth, else 0. `mono16` is depth where the topic says so."""
    if encoding == "mono16" and "depth" not in topic.lower():
        return 0.0
    return DEPTH_UNIT_M.get(encoding, 0.0)


def pixels(value: Mapping[str, Any], depth: bool) -> Array:
    """The picture of a raw image message: uint8 (H, W, 1 or 3), or depth (H, W), uint16 or float32.

    `step`, the bytes of a row, may be more than the pixels take. SourceError for what is no picture.
    """
    height, width, encoding = _whole(value, "height"), _whole(value, "width"), str(value.get("encoding", ""))
    data = octets(value.get("data"))
    step = _whole(value, "step") if value.get("step") else 0
    if not 0 < height * width <= MAX_PIXELS:
        raise SourceError(f"a picture of {height} x {width} pixels is none")
    if match := BAYER.fullmatch(encoding):
        plane = _rows(data, height, width, 1, _dtype("U", int(match[2]), value), step)[..., 0]
        return demosaic(_eight(plane), match[1])
    if encoding in YUV:
        return _yuv422(_rows(data, height, width, 2, np.dtype(np.uint8), step), encoding)
    if encoding in ("nv21", "nv24"):
        return _planar(data, height, width, step or width, encoding)
    channels, dtype, order = _layout(encoding, value)
    rows_HWC = _rows(data, height, width, channels, dtype, step)
    if depth:
        if channels != 1 or dtype.kind not in "uf":
            raise SourceError(f"expected depth of one channel, found {encoding}")
        return rows_HWC[..., 0].astype(np.uint16 if dtype.kind == "u" else np.float32)
    if dtype.kind != "u":
        raise SourceError(f"values of {encoding} are not colours")
    return np.ascontiguousarray(_eight(rows_HWC)[..., order])


def octets(data: Any) -> memoryview:
    """The bytes of a field: as they are, or from base64, which JSON uses."""
    if isinstance(data, str):
        try:
            return memoryview(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError) as error:
            raise SourceError(f"expected base64 text: {error}") from error
    if isinstance(data, np.ndarray) and data.dtype.itemsize == 1:
        return np.ascontiguousarray(data).view(np.uint8).data
    if isinstance(data, bytes | memoryview):
        return memoryview(data)
    raise SourceError(f"expected the bytes of a picture, found {type(data).__name__}")


def compressed_depth(data: memoryview, form: str) -> Array:
    """Depth of ROS' compressedDepth transport: twelve bytes of settings, then a PNG file of 16 bits.

    Distances in metres (32FC1) were stored as inverse depth, `a / (count - b)`; 0 stays 0, no return.
    """
    if len(data) <= COMPRESSED_DEPTH.size:
        raise SourceError(f"a compressedDepth picture of {len(data)} bytes has no content")
    _, a, b = COMPRESSED_DEPTH.unpack_from(data)
    file = bytes(data[COMPRESSED_DEPTH.size :])
    if not file.startswith(PNG):
        raise SourceError(f"compressedDepth: expected a PNG file, found {file[:4].hex(' ')} ({form}); rvl is not read")
    counts_HW = decode(file, picture_size(file)[:2])
    if not form.startswith("32FC1"):
        return counts_HW
    with np.errstate(divide="ignore"):
        return np.where(counts_HW > 0, a / (counts_HW.astype(np.float32) - b), 0).astype(np.float32)


def demosaic(plane_HW: Array, pattern: str) -> Array:
    """Bilinear: each missing colour is the mean of its two or four nearest neighbours."""
    height, width = plane_HW.shape
    out = np.empty((height, width, 3), np.uint8)
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]])
    square = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]])
    rows, columns = np.indices((height, width), sparse=True)
    place = rows % 2 * 2 + columns % 2
    for channel, color in enumerate("rgb"):
        mine = np.isin(place, [at for at, letter in enumerate(pattern) if letter == color])
        kernel = cross if color == "g" else square
        total, weight = _blur(np.where(mine, plane_HW, 0), kernel), _blur(mine, kernel)
        out[..., channel] = np.where(mine, plane_HW, (total + weight // 2) // np.maximum(weight, 1))
    return out


def _blur(plane_HW: Array, kernel: Array) -> Array:
    """Weighted sums of 3 x 3 neighbours; there is nothing beyond the border."""
    height, width = plane_HW.shape
    padded = np.pad(plane_HW.astype(np.int32), 1)
    total = np.zeros((height, width), np.int32)
    for row in range(3):
        for column in range(3):
            if kernel[row, column]:
                total += int(kernel[row, column]) * padded[row : row + height, column : column + width]
    return total


def _layout(encoding: str, value: Mapping[str, Any]) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """(channels, dtype, order of the channels as RGB or grey)."""
    if match := re.fullmatch(r"(rgba?|bgra?|mono)(8|16)", encoding):
        channels = {"mono": 1}.get(match[1], len(match[1]))
        return channels, _dtype("U", int(match[2]), value), ORDERS[match[1]]
    if match := GENERIC.fullmatch(encoding):
        channels = int(match[3] or 1)
        if channels in OPENCV and not (match[2] == "F" and match[1] in ("8", "16")):
            return channels, _dtype(match[2], int(match[1]), value), OPENCV[channels]
    raise SourceError(f"pictures encoded as {encoding!r} cannot be read")


def _dtype(kind: str, bits: int, value: Mapping[str, Any]) -> np.dtype[Any]:
    order = ">" if value.get("is_bigendian") else "<"
    return np.dtype(f"{order}{ {'U': 'u', 'S': 'i', 'F': 'f'}[kind] }{bits // 8}")


def _rows(data: memoryview, height: int, width: int, channels: int, dtype: np.dtype[Any], step: int) -> Array:
    """(H, W, C) of rows that are `step` bytes apart; 0 is none given."""
    used = width * channels * dtype.itemsize
    step = step or used
    if step < used:
        raise SourceError(f"rows of {used} bytes do not fit in a step of {step}")
    if len(data) < step * (height - 1) + used:
        raise SourceError(f"expected {step * height:,} bytes of pixels, found {len(data):,}")
    padded = np.frombuffer(data[: step * height], np.uint8)
    if len(padded) < step * height:  # some drivers leave the padding of the last row out
        padded = np.pad(padded, (0, step * height - len(padded)))
    rows = np.ascontiguousarray(padded.reshape(height, step)[:, :used])
    return rows.view(dtype).reshape(height, width, channels)


def _eight(values: Array) -> Array:
    return (values >> 8).astype(np.uint8) if values.dtype.itemsize == 2 else values.astype(np.uint8)


def _yuv422(pairs_HWC: Array, encoding: str) -> Array:
    height, width = pairs_HWC.shape[:2]
    if width % 2:
        raise SourceError(f"{encoding} needs an even width, found {width}")
    four = pairs_HWC.reshape(height, width // 2, 4)
    u, y, v = YUV[encoding]
    luma = np.stack([four[..., y], four[..., y + 2]], -1).reshape(height, width)
    return _rgb(luma, four[..., u].repeat(2, 1), four[..., v].repeat(2, 1))


def _planar(data: memoryview, height: int, width: int, step: int, encoding: str) -> Array:
    """nv21: V and U for four pixels each; nv24: U and V for every pixel; both behind all of Y."""
    half = encoding == "nv21"
    if half and (height % 2 or width % 2):
        raise SourceError(f"nv21 needs even sides, found {height} x {width}")
    luma = _rows(data, height, width, 1, np.dtype(np.uint8), step)[..., 0]
    rest = data[step * height :]
    if half:
        v, u = np.moveaxis(_rows(rest, height // 2, width // 2, 2, np.dtype(np.uint8), step), -1, 0)
        u, v = (plane.repeat(2, 0).repeat(2, 1) for plane in (u, v))
    else:
        u, v = np.moveaxis(_rows(rest, height, width, 2, np.dtype(np.uint8), 2 * step), -1, 0)
    return _rgb(luma, u, v)


def _rgb(y_HW: Array, u_HW: Array, v_HW: Array) -> Array:
    """BT.601 with 16 to 235, as OpenCV (and so cv_bridge) takes it."""
    y, u, v = 1.164 * (y_HW.astype(np.float32) - 16), u_HW.astype(np.float32) - 128, v_HW.astype(np.float32) - 128
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], -1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _whole(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    if not isinstance(number, int) or number < 0:
        raise SourceError(f"expected a whole number {name!r}, found {number!r}")
    return number
