"""The tar files of a shard, byte by byte: plain ustar, nothing that depends on the clock, the user or the machine.

The reader is our own walk over the 512-byte headers: `tarfile` takes a damaged header for the end of the archive and
loses what follows without a word, and a negative size can make it loop for ever.
"""

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from inpaint_dist.errors import UserError

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two empty blocks end an archive."""

MAX_MEMBER = 1 << 32
"""A member of more bytes is damage, not a picture."""

MAX_NAME = 100

_MTIME = 946_684_800  # 2000-01-01: whole seconds need no PAX header, and GNU tar warns of times near zero
_OWNER = b"0000644\0" + b"0000000\0" + b"0000000\0"  # mode, uid, gid
_TIME = b"%011o\0" % _MTIME
_REST = (b"0" + bytes(100) + b"ustar\0" + b"00").ljust(BLOCK - 156, b"\0")  # a regular file, no link
_FIXED_SUM = sum(_OWNER + _TIME + b" " * 8 + _REST)  # the checksum is counted with blanks in its own place
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_OCTAL = re.compile(rb"\s*([0-7]+)[\s\0]*")


class ShardError(UserError):
    """A shard or its index is damaged, missing, or not as the index says; names the shard and the sample's key."""


class Entry(NamedTuple):
    """One member of a tar: its name, where its data begins and how long it is, in bytes."""

    name: str
    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """The 512 bytes that stand before a member.

    Raises:
        ValueError: a name that is too long or holds anything but letters, digits, `_`, `-` and dots between them.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or not 0 <= size < MAX_MEMBER:
        raise ValueError(f"{name!r} of {size} bytes cannot be a member of a shard")
    name_field, size_field = name.encode("ascii").ljust(MAX_NAME, b"\0"), b"%011o\0" % size
    # What stands between and behind is always the same, and so is its part of the checksum.
    checksum = _FIXED_SUM + sum(name_field) + sum(size_field)
    return b"".join((name_field, _OWNER, size_field, _TIME, b"%06o\0 " % checksum, _REST))


def padded(size: int) -> int:
    """Bytes that data of `size` bytes takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def parse_header(block: bytes) -> tuple[str, int]:
    """Name and size of the member whose header this is.

    Raises:
        ValueError: not the header of a regular file, or damaged; the message says what is wrong.
    """
    checked_sum(block)
    if block[156:157] not in (b"0", b"\0"):
        raise ValueError(f"the member is no regular file (type {block[156:157]!r})")
    name = block[:MAX_NAME].split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    if not _NAME.fullmatch(name) or block[345:500].strip(b"\0"):
        raise ValueError(f"the member's name {name!r} is not one of a shard")
    return name, checked_octal(block[124:136], "size")


def checked_sum(block: bytes) -> None:
    """Look whether a header is whole.

    Raises:
        ValueError: it is cut short, or its checksum does not fit.
    """
    if len(block) < BLOCK:
        raise ValueError(f"the file ends inside a header ({len(block)} of {BLOCK} bytes)")
    checksum = checked_octal(block[148:156], "checksum")
    if checksum != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise ValueError("the header's checksum does not fit")


def checked_octal(field: bytes, what: str) -> int:
    """A number of a header.

    Raises:
        ValueError: it is none, or negative.
    """
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ValueError(f"the header's {what} {field!r} is no number")
    return int(match[1], 8)


def walk(file: BinaryIO) -> Iterator[Entry]:
    """The members of an open tar from its first header to its end, without reading their data.

    Raises:
        ValueError: at the first header that is damaged, runs past the file's end, or where the archive stops without
            its end mark; the message says at which byte.
    """
    total = os.fstat(file.fileno()).st_size
    at = 0
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if block == END[:BLOCK]:
            rest = file.read()
            if len(rest) < BLOCK or rest.strip(b"\0"):
                raise ValueError(f"byte {at}: the archive's end mark is cut short or followed by data")
            return
        try:
            name, size = parse_header(block)
        except ValueError as error:
            raise ValueError(f"byte {at}: {error}") from None
        if at + BLOCK + padded(size) > total:
            raise ValueError(f"byte {at}: {name} of {size} bytes runs past the file's end at {total}")
        yield Entry(name, at + BLOCK, size)
        at += BLOCK + padded(size)
