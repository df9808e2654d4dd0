"""The members of tars that others wrote: ustar, PAX and GNU headers, as webdataset and tar itself write them.

A walk over the 512-byte headers, as in `tar`, for the same reasons. What is no regular file is passed over, never
followed, and nothing is ever written to disk.
"""

import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from inpaint_dist.data.tar import BLOCK, MAX_MEMBER, Entry, checked_octal, checked_sum, padded

MAX_EXTENSION = 1 << 20
"""Bytes of a PAX header or a long name; a larger one is damage, or worse."""
MAX_MEMBERS = 1 << 24
"""Members of one tar."""

_REGULAR, _EMPTY_KINDS = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_RECORD = re.compile(rb"(\d{1,10}) ([^=\n]+)=")


def is_compressed(start: bytes) -> bool:
    """Whether a file that starts so is one of gzip, bzip2, xz or zstandard."""
    return start.startswith(_COMPRESSED)


def walk_foreign(file: BinaryIO) -> Iterator[Entry]:
    """The regular files of an open tar, first to last, without reading their data.

    Raises:
        ValueError: at the first header that is damaged, runs past the file's end or is of an unknown kind, or where the
            archive stops without its end mark; the message says at which byte.
    """
    descriptor = file.fileno()
    total = os.fstat(descriptor).st_size
    at, found = 0, 0
    extended: dict[str, str] = {}
    while True:
        block = os.pread(descriptor, BLOCK, at)
        if block and not block.strip(b"\0"):
            _check_end(descriptor, at, total)
            return
        try:
            if not block:
                raise ValueError("the archive stops without its end mark: it was cut short")
            kind, name, size = _parse(block)
            data = at + BLOCK
            if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
                _check_room(name, data, size, total, MAX_EXTENSION)
                extended |= _extension(kind, os.pread(descriptor, size, data))
            elif kind in _EMPTY_KINDS:
                extended, size = {}, 0
            else:
                if kind not in _REGULAR:
                    raise ValueError(f"{name} is of the unknown kind {kind!r}")
                name, size = extended.get("path", name), _size(extended.get("size"), size)
                extended = {}
                _check_room(name, data, size, total, MAX_MEMBER)
                found += 1
                if found > MAX_MEMBERS:
                    raise ValueError(f"more than {MAX_MEMBERS} members")
                yield Entry(name, data, size)
        except ValueError as error:
            raise ValueError(f"byte {at}: {error}") from None
        at += BLOCK + padded(size)


def _parse(block: bytes) -> tuple[bytes, str, int]:
    """Kind, name and size as the header itself has them."""
    checked_sum(block)
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    field = block[124:136]
    if field[0] & 0x80:  # GNU's base 256 for what octal cannot hold; the next bit is the sign
        size = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            raise ValueError(f"the header's size {field!r} is negative")
    else:
        size = checked_octal(field, "size") if field.strip(b" \0") else 0
    return block[156:157], name, size


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the member that follows: its path and its size, where it says so."""
    if kind == _GNU_NAME:
        return {"path": _text(data)}
    if kind != _PAX:  # of all members, or the target of a link: neither is of interest
        return {}
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at:].strip(b"\0"):
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ValueError("the PAX header makes no sense")
        name = _text(match[2])
        if name.startswith("GNU.sparse."):
            raise ValueError("the member is a sparse file; write the tar anew without --sparse")
        if name in ("path", "size"):
            found[name] = _text(data[match.end() : end - 1])
        at = end
    return found


def _size(said: str | None, otherwise: int) -> int:
    if said is None:
        return otherwise
    if not said.isascii() or not said.isdecimal() or len(said) > 18:
        raise ValueError(f"the PAX header's size {said!r} is no number")
    return int(said)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _check_room(name: str, at: int, size: int, total: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{name} claims {size} bytes, more than {most}")
    if at + padded(size) > total:
        raise ValueError(f"{name} of {size} bytes runs past the file's end at {total}")


def _check_end(descriptor: int, at: int, total: int) -> None:
    """Nothing but zeros may follow: another archive hung on would be read by nobody."""
    start = at
    while start < total:
        piece = os.pread(descriptor, 1 << 16, start)
        if piece.strip(b"\0"):
            raise ValueError(f"byte {at}: the archive's end mark is followed by data")
        start += max(len(piece), 1)
    if total - at < 2 * BLOCK:
        raise ValueError(f"byte {at}: the archive's end mark is cut short")
