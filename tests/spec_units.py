"""Units of the codecs, written from FORMAT.md alone with decoders of images, zstd and video."""
import io

import av
import numpy as np
import zstandard
from PIL import Image

TO_RGB = np.linalg.inv([[65.481, 128.553, 24.966], [-37.797, -74.203, 112], [112, -93.786, -18.214]]) * 255
CONTAINER = {"h264": "h264", "av1": "obu"}

def rows(unit: bytes, codec: str, dtype: str, shape: list[int]) -> np.ndarray:
    """The rows of one unit."""
    if codec == "dzst":
        return differences(unit, dtype, shape)
    if codec in CONTAINER:
        return video(unit, codec, shape)
    picture = Image.open(io.BytesIO(unit))
    mode = "I;16" if dtype == "uint16" else "L" if shape[-1] == 1 else "RGB"
    return np.array(picture.convert(mode)).reshape(1, *picture.size[::-1], *shape[2:])

def differences(unit: bytes, dtype: str, shape: list[int]) -> np.ndarray:
    """Rows of a zstd frame of differences modulo 256 or 65,536."""
    rows = np.frombuffer(zstandard.ZstdDecompressor().decompress(unit), np.dtype(dtype).newbyteorder("<"))
    return np.cumsum(rows.reshape(-1, *shape), axis=0, dtype=rows.dtype)

def video(unit: bytes, codec: str, shape: list[int]) -> np.ndarray:
    """Rows of a closed group of pictures: the planes of YCbCr at full size, cut to the row shape, to RGB."""
    with av.open(io.BytesIO(unit), format=CONTAINER[codec]) as stream:
        planes = np.stack([frame.to_ndarray(format="yuv444p") for frame in stream.decode(video=0)])
    ycc = np.moveaxis(planes, 1, -1)[:, : shape[0], : shape[1]] - np.array([16.0, 128.0, 128.0])
    rgb = np.clip(np.rint(ycc @ TO_RGB.T), 0, 255).astype(np.uint8)
    return rgb if shape[2] == 3 else rgb[..., 1:2]
