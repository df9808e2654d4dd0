"""What a picture's own bytes say before anything is decoded: its size, its orientation, its metadata.

Everything here reads bytes that may be hostile: offsets are checked, nothing is allocated by a size that a file claims.
"""

import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

_TIFF_BYTE_ORDERS = {b"II*\x00": "<", b"MM\x00*": ">"}
_ORIENTATION, _IMAGE_WIDTH, _IMAGE_LENGTH = 274, 256, 257
_IFD_FORMATS = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG: the types in which sizes and the orientation come
_STAND_ALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length: TEM, RST0-7, SOI
_KEPT_SEGMENTS = {0xE0, 0xEE}  # JFIF, and Adobe's: without it a decoder may take the wrong colour space
# AVIF says by two boxes what EXIF says by one number: quarter turns to the left, then a mirror (0 up-down, 1 sideways).
_AVIF_ORIENTATIONS = {
    (0, None): 1, (0, 1): 2, (2, None): 3, (0, 0): 4, (1, 0): 5, (3, 1): 5,
    (3, None): 6, (3, 0): 7, (1, 1): 7, (1, None): 8, (2, 0): 2, (2, 1): 4,
}  # fmt: skip


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as a file's header claims them; None where the format is not one of those known here.

    Known: PNG, GIF, BMP, WebP, TIFF, AVIF, JPEG 2000. A JPEG's header is left to the JPEG library.
    """
    try:
        return _image_size(data)
    except (struct.error, IndexError):
        return None


def _image_size(data: bytes) -> tuple[int, int] | None:
    if data.startswith(PNG_SIGNATURE):
        return struct.unpack_from(">II", data, 16)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return struct.unpack_from("<HH", data, 6)
    if data.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", data, 18)
        return abs(width), abs(height)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    if data[:4] in _TIFF_BYTE_ORDERS:
        width, height = ifd_value(data, _IMAGE_WIDTH), ifd_value(data, _IMAGE_LENGTH)
        return None if width is None or height is None else (width, height)
    if data[4:8] == b"ftyp" and (at := data.find(b"ispe", 0, 4096)) > 0:
        return struct.unpack_from(">II", data, at + 8)
    if data[4:8] == b"jP  " and (at := data.find(b"ihdr", 0, 4096)) > 0:
        height, width = struct.unpack_from(">II", data, at + 4)
        return width, height
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation (1 to 8) that is still to be applied to a file's pixels as they are decoded here.

    This is the one place that decides it: JPEG, PNG, WebP and AVIF are decoded as stored. A TIFF gives 1, for its
    decoder turns the pixels itself. What is missing or makes no sense is 1.
    """
    try:
        value = _orientation(data)
    except (struct.error, IndexError):
        value = None
    return value if value is not None and 1 <= value <= 8 else 1


def _orientation(data: bytes) -> int | None:
    if data.startswith(JPEG_SIGNATURE):
        for marker, start, end in jpeg_segments(data):
            if marker == 0xE1 and data[start + 4 : start + 10] == b"Exif\x00\x00":
                return ifd_value(data[start + 10 : end], _ORIENTATION)
    elif data.startswith(PNG_SIGNATURE):
        return _chunk_orientation(data, len(PNG_SIGNATURE), b"eXIf", png=True)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _chunk_orientation(data, 12, b"EXIF", png=False)
    elif data[4:8] == b"ftyp":
        turn, mirror = _avif_property(data, b"irot"), _avif_property(data, b"imir")
        return _AVIF_ORIENTATIONS.get(((turn or 0) & 3, None if mirror is None else mirror & 1))
    return None


def _chunk_orientation(data: bytes, at: int, wanted: bytes, *, png: bool) -> int | None:
    """Find the EXIF chunk of a PNG (length, name, data, crc) or a WebP (name, length, data, padding to even)."""
    while at + 8 <= len(data):
        if png:
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        else:
            kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == wanted:
            return ifd_value(data[at + 8 : at + 8 + size].removeprefix(b"Exif\x00\x00"), _ORIENTATION)
        at += 8 + size + (4 if png else size % 2)
    return None


def _avif_property(data: bytes, kind: bytes) -> int | None:
    at = data.find(b"\x00\x00\x00\x09" + kind, 0, 4096)
    return None if at < 0 else data[at + 8]


def ifd_value(tiff: bytes, tag: int) -> int | None:
    """One whole number from the first directory of a TIFF file or of an EXIF block."""
    order = _TIFF_BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return None
    directory = struct.unpack_from(f"{order}I", tiff, 4)[0]
    entries = struct.unpack_from(f"{order}H", tiff, directory)[0]
    for index in range(entries):
        at = directory + 2 + 12 * index
        found, kind = struct.unpack_from(f"{order}HH", tiff, at)
        if found == tag:
            return struct.unpack_from(f"{order}{_IFD_FORMATS[kind]}", tiff, at + 8)[0] if kind in _IFD_FORMATS else None
    return None


def jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """The segments of a JPEG before its first scan: (marker, start of the marker, end of the segment), in bytes.

    Stops without a word where the segments stop making sense: the decoder then has its own.
    """
    segments: list[tuple[int, int, int]] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if marker in _STAND_ALONE:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or end < at + 4:
            break
        segments.append((marker, at, end))
        if marker == 0xDA:
            break
        at = end
    return segments


def jpeg_without_metadata(data: bytes) -> bytes:
    """The same JPEG less EXIF, thumbnails, colour profiles, comments and whatever follows its end; no pixel changes.

    Raises:
        ValueError: the bytes are no whole JPEG.
    """
    segments = jpeg_segments(data)
    if not segments or segments[-1][0] != 0xDA:
        raise ValueError("a JPEG without a scan")
    kept = [data[:2]]
    for marker, start, end in segments[:-1]:
        is_metadata = marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in _KEPT_SEGMENTS)
        if not is_metadata:
            kept.append(data[start:end])
    scan = segments[-1][1]
    kept.append(data[scan : _end_of_image(data, segments[-1][2])])
    return b"".join(kept)


def _end_of_image(data: bytes, at: int) -> int:
    """The byte after the end marker, from inside the first scan: what a camera hung on after it is not the picture."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0 or marker in _STAND_ALONE:  # a pixel's own 0xFF, or a restart within the scan
            at += 2
        else:  # tables and scans of a progressive JPEG
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("a JPEG without an end")
