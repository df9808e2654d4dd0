"""Photos of the val split that look like one of the train split: scores on them flatter.

A perceptual hash of 64 bits (pHash: the signs of the lowest frequencies) stays when a photo is encoded anew, resized or
made brighter, and changes when it is cropped by a few hundredths or mirrored: what is found is so, what is not may be.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.photos import decode_photo
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import PHOTO_EXTENSION, SPLITS, ShardIndex
from inpaint_dist.errors import UserError
from inpaint_dist.host import usable_cores

BITS = 64
MOST_BITS = 8
"""Bits that may differ. Of 700 photos the nearest two strangers differ in 12; 99 of 100 photos that were encoded at
quality 30 or halved differ in 2, made brighter by a fifth in 8, and cropped by 4 % at each side in 16 (half of them in
8)."""

_BLOCK = 1 << 16  # photos of train that are compared at once with some of val
_SOME = 256


class Alike(NamedTuple):
    """A photo of val and the photo of train that looks most like it."""

    val: str
    """Its key."""
    train: str
    """The other's key."""
    bits: int
    """How many of the 64 bits differ."""

    def __str__(self) -> str:
        return f"val {self.val} looks like train {self.train} ({self.bits} of {BITS} bits differ)"


def find_near_copies(folder: Path, on_samples: Callable[[int], None]) -> list[Alike]:
    """The photos of val that look like one of train.

    Args:
        folder: the shards.
        on_samples: told now and then how many photos are done.

    Raises:
        UserError: the shards cannot be read, or imagehash is not installed.
    """
    try:
        from imagehash import phash
    except ImportError:
        raise UserError("--near-duplicates: imagehash is missing; pip install 'inpaint-dist[duplicates]'") from None
    from PIL import Image  # imagehash brings it

    done = 0

    def hashes(index: ShardIndex) -> NDArray[np.int8]:
        """(N, 64), each bit as -1 or 1."""
        nonlocal done
        found = np.empty((len(index), BITS), np.int8)
        with ShardReader(index) as reader, ThreadPoolExecutor(min(8, usable_cores())) as pool:

            def look(i: int) -> NDArray[np.bool_]:
                photo = decode_photo(reader.read(i, PHOTO_EXTENSION), index.keys[i])
                return phash(Image.fromarray(photo)).hash.ravel()

            for first in range(0, len(index), _SOME):
                some = range(first, min(first + _SOME, len(index)))
                found[first : some.stop] = np.stack(list(pool.map(look, some))) * 2 - 1
                done += len(some)
                on_samples(done)
        return found

    train, val = (ShardIndex.load(folder, split) for split in SPLITS)
    if not (len(train) and len(val)):
        return []
    numbers, bits = _nearest(hashes(val), hashes(train))
    return [Alike(val.keys[i], train.keys[numbers[i]], bits.item(i)) for i in range(len(val)) if bits[i] <= MOST_BITS]


def _nearest(some: NDArray[np.int8], others: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of some hashes the number of the nearest other, and by how many bits they differ."""
    numbers, bits = np.zeros(len(some), np.int64), np.full(len(some), BITS + 1)
    for start in range(0, len(others), _BLOCK):
        block = others[start : start + _BLOCK].astype(np.float32).T
        for first in range(0, len(some), _SOME):
            part = slice(first, first + _SOME)
            apart = (BITS - some[part].astype(np.float32) @ block) / 2  # whole numbers, exact in float32
            nearest = apart.argmin(axis=1)
            least = apart[np.arange(len(nearest)), nearest].astype(np.int64)
            closer = least < bits[part]
            bits[part][closer], numbers[part][closer] = least[closer], start + nearest[closer]
    return numbers, bits
