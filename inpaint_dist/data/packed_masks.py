"""Masks as shards hold them: 1-bit PNG whose rows use filter 0, which any reader opens and which unpacks in no time.

One zlib call and a slice give the packed bits, a tenth of what decoding an 8-bit PNG costs; the device unpacks them.
"""

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from inpaint_dist.data.headers import PNG_SIGNATURE

_IDAT = 33  # after the signature (8) and IHDR (4 + 4 + 13 + 4)
_HEAD = struct.Struct(">16sIIBBBBB4xI4s")  # signature and IHDR's name, its fields, its checksum, the next chunk
_START = PNG_SIGNATURE + b"\x00\x00\x00\x0dIHDR"
_LARGEST_SIDE = 1 << 15
_LEVEL = 7  # 9 takes 3 to 7 times as long for at most 7 % fewer bytes


def encode_mask(mask: npt.NDArray[np.uint8]) -> bytes:
    """A mask uint8 (H, W), hole where it is not 0, as a 1-bit grey PNG with filter 0 in every row (1 = hole)."""
    height, width = mask.shape
    rows = np.zeros((height, 1 + (width + 7) // 8), np.uint8)  # a filter byte of 0, then the bits, first pixel highest
    rows[:, 1:] = np.packbits(mask != 0, axis=1)
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join(
        (
            PNG_SIGNATURE,
            _chunk(b"IHDR", size),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def decode_packed_mask(data: bytes, name: str) -> tuple[npt.NDArray[np.uint8], int]:
    """The packed bits of a mask and its width in pixels.

    Args:
        data: a PNG; one of our own takes the fast path, any other is decoded, binarised at 127 and packed.
        name: what errors call it.

    Returns:
        uint8 (H, ceil(W / 8)) in the bit order of `np.packbits`, 1 = hole, perhaps a read-only view; and W.

    Raises:
        PhotoError: not a mask that can be decoded.
    """
    found = _unpack_own(data)
    if found is not None:
        return found
    from inpaint_dist.data.photos import decode_mask  # late: OpenCV loads only for masks of others

    mask = decode_mask(data, name)
    return np.packbits(mask != 0, axis=1), mask.shape[1]


def unpack_masks(files: Sequence[bytes | memoryview], out: npt.NDArray[np.uint8]) -> bool:
    """Bring the packed bits of masks into `out` (masks, size, ceil(size / 8)), all of them together.

    Returns:
        Whether all are of our own layout and of that size; where not, nothing is said of what `out` holds.
    """
    count, size, stride = len(files), out.shape[1], out.shape[2] + 1
    head, expected, raws = _head(size), size * stride, list[bytes]()
    for file in files:
        data = bytes(file)
        length = int.from_bytes(data[_IDAT : _IDAT + 4])
        if data[:_IDAT] != head or data[_IDAT + 4 : _IDAT + 8] != b"IDAT" or len(data) != _IDAT + 12 + length + 12:
            return False
        raw = _inflated(data[_IDAT + 8 : _IDAT + 8 + length], expected)
        if raw is None:
            return False
        raws.append(raw)
    rows = np.frombuffer(b"".join(raws), np.uint8).reshape(count, size, stride)
    if rows[:, :, 0].any():  # the rows' filters
        return False
    out[:] = rows[:, :, 1:]
    return True


@lru_cache(maxsize=4)
def _head(size: int) -> bytes:
    """What a square mask's file begins with, up to its data's chunk."""
    return PNG_SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0))


def _inflated(data: bytes, expected: int) -> bytes | None:
    """What zlib packed, if that is so many bytes."""
    inflater = zlib_ng.decompressobj()
    try:
        raw = inflater.decompress(data, expected + 1)
    except zlib_ng.error:  # pyright: ignore[reportGeneralTypeIssues]
        return None
    return raw if len(raw) == expected and inflater.eof else None


def is_own_mask(data: bytes, height: int, width: int) -> bool:
    """Whether bytes are a mask of these sides just as `encode_mask` lays it out, each chunk's checksum included."""
    found = _unpack_own(data)
    if found is None or (found[0].shape[0], found[1]) != (height, width):
        return False
    head = PNG_SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    stored = data[_IDAT + 8 : -16]
    return data == head + _chunk(b"IDAT", stored) + _chunk(b"IEND", b"")


def _unpack_own(data: bytes) -> tuple[npt.NDArray[np.uint8], int] | None:
    """The fast path; None where the PNG is not laid out as ours are, or is damaged."""
    if len(data) < _IDAT + 12:
        return None
    start, width, height, depth, colours, _, _, interlaced, size, kind = _HEAD.unpack_from(data)
    is_ours = (start, depth, colours, interlaced, kind) == (_START, 1, 0, 0, b"IDAT")
    is_ours = is_ours and len(data) == _IDAT + 12 + size + 12
    if not is_ours or not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        return None
    stride = 1 + (width + 7) // 8
    raw = _inflated(data[_IDAT + 8 : _IDAT + 8 + size], height * stride)
    if raw is None:
        return None
    if raw[::stride] != bytes(height):  # the rows' filters
        return None
    return np.frombuffer(raw, np.uint8).reshape(height, stride)[:, 1:], width


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
