"""Chunks of Zarr arrays, unpacked without giving them more memory than their array says they need."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zstandard

from vrl3data.errors import MissingExtra, SourceError
from vrl3data.schema import Array

REFUSED = ("pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes", "vlen-array", "categorize")
"""They hold objects: what stands for them could run code, or is no number."""
FILTERS = ("delta", "shuffle", "fixedscaleoffset", "bitround", "quantize", "astype", "packbits")
"""Of numcodecs; none makes more than eight bytes of one."""
PICTURES = ("imagecodecs_jpegxl",)
BLOSC_HEADER, LZ4_HEADER = struct.Struct("<BBBBIII"), struct.Struct("<I")
BROKEN = (zlib.error, OSError, EOFError, ValueError, RuntimeError)
"""What the codecs were seen to raise on damaged chunks, besides errors of their own."""
MAX_DICTIONARY = 128 * 1024**2
"""Of LZMA, whose header may ask for 4 GB."""
NEEDS = "{} needs the extra zarr: pip install 'vrl3data[zarr]'"


def check(name: str) -> None:
    """SourceError for a codec that is refused or not known."""
    if name in REFUSED:
        raise SourceError(f"an array of objects (codec {name}) could run code when it is opened; it is not read")
    if name not in DECODERS and name not in FILTERS and name not in PICTURES:
        raise SourceError(f"the codec {name!r} is not known; there are: {', '.join((*DECODERS, *FILTERS, *PICTURES))}")


def decode(name: str, config: Mapping[str, Any], data: bytes, limit: int) -> bytes:
    """One step back. SourceError if the data is damaged or would take more than `limit` bytes."""
    if name in FILTERS:
        return _filter(name, config, data)
    try:
        unpacked = DECODERS[name](data, limit)
    except (
        zlib.error,
        lzma.LZMAError,
        zstandard.ZstdError,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        struct.error,
    ) as error:
        raise SourceError(f"the chunk cannot be unpacked ({name}): {error}") from error
    if len(unpacked) > limit:
        raise SourceError(f"the chunk unpacks to more than the {limit:,} bytes that its array says")
    return unpacked


def picture(name: str, data: bytes, shape: tuple[int, ...], dtype: Any) -> Array:
    """A chunk of JPEG XL as an array of `shape`; that of the file is checked before it is decoded."""
    assert name in PICTURES
    try:
        import imagecodecs
    except ImportError as error:
        raise MissingExtra(
            "these pictures are JPEG XL files, as UMI stores them; pip install imagecodecs (and vrl3data[zarr])"
        ) from error
    out = np.empty(shape, dtype)
    inner = out.reshape([size for size in shape if size != 1] or [1])
    try:
        imagecodecs.jpegxl_decode(data, out=inner, numthreads=1)
    except (imagecodecs.JpegxlError, ValueError, RuntimeError, TypeError) as error:
        raise SourceError(f"the chunk is not a JPEG XL picture of {inner.shape}: {error}") from error
    return out


def _blosc(data: bytes, limit: int) -> bytes:
    _, _, _, _, size, _, stored = BLOSC_HEADER.unpack_from(data)
    if size > limit:
        return bytes(limit + 1)
    if stored != len(data):
        raise ValueError(f"expected {stored} bytes as its header says, found {len(data)}")
    return bytes(_numcodecs("blosc").blosc.decompress(data))


def _lz4(data: bytes, limit: int) -> bytes:
    (size,) = LZ4_HEADER.unpack_from(data)
    return bytes(limit + 1) if size > limit else bytes(_numcodecs("lz4").lz4.decompress(data))


def _zstd(data: bytes, limit: int) -> bytes:
    size = zstandard.frame_content_size(data)
    if size > limit:
        return bytes(limit + 1)
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        return reader.read(limit + 1)


def _zlib(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip, by its header
    unpacked = stream.decompress(data, limit + 1)
    if len(unpacked) <= limit and not stream.eof:
        raise ValueError("it is truncated")
    return unpacked


def _stdlib(make: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    def unpack(data: bytes, limit: int) -> bytes:
        stream = make()
        unpacked: bytes = stream.decompress(data, limit + 1)
        if len(unpacked) <= limit and not stream.eof:
            raise ValueError("it is truncated")
        return unpacked

    return unpack


def _checksum(data: bytes, _limit: int) -> bytes:
    if len(data) < 4:
        raise ValueError("it is shorter than its checksum")
    body, (want,) = data[:-4], struct.unpack("<I", data[-4:])
    if crc32c(body) != want:
        raise ValueError("its checksum is wrong")
    return body


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, as Zarr 3 has it behind the index of a shard."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _filter(name: str, config: Mapping[str, Any], data: bytes) -> bytes:
    codec = _numcodecs(name).get_codec({"id": name, **config})
    try:
        return np.ascontiguousarray(codec.decode(data)).tobytes()
    except (ValueError, TypeError, RuntimeError) as error:
        raise SourceError(f"the chunk cannot be unpacked ({name}): {error}") from error


def _numcodecs(name: str) -> Any:
    try:
        import numcodecs
    except ImportError as error:
        raise MissingExtra(NEEDS.format(f"the codec {name}")) from error
    return numcodecs


_TABLE = _table()
DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "zlib": _zlib,
    "gzip": _zlib,
    "bz2": _stdlib(bz2.BZ2Decompressor),
    "lzma": _stdlib(lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)),
    "crc32c": _checksum,
}
