"""Files of tensors as strangers hand them on: safetensors, looked at before anything is read, built or believed."""

import stat
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from inpaint_dist.errors import UserError

LARGEST_HEADER = 16 * 2**20
"""Bytes of a header that names tensors: some 100,000 of them. Parsing takes many times as much memory."""


def refuse_what_is_no_file(path: Path, largest: int | None = None) -> None:
    """Look at a path without opening it, which a pipe would never let go of.

    Raises:
        UserError: it is a link, a pipe, a folder …, or of more bytes than it may have.
        OSError: there is nothing.
    """
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path}: is no plain file")
    if largest is not None and about.st_size > largest:
        raise UserError(f"{path}: has {about.st_size:,} bytes, more than the {largest:,} that it may have")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata. A link to a file is followed.

    Raises:
        UserError: it cannot be read, or claims what it does not hold.
    """
    try:
        refuse_what_is_no_file(path.resolve())
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(path.stat().st_size, LARGEST_HEADER):
            raise UserError(f"{path}: cannot be read as safetensors (its header claims {header:,} bytes)")
        with safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata() or {}
        return load_file(path), about
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
