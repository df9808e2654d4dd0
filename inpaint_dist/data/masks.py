"""Drawing masks: any family's law (mask_families.py), within limits of the hole.

`draw_mask("lama-train", 256, 256, mask_rng(seed, epoch, sample))` is a pure function of its arguments: the same hole on
every machine, Python and worker. A mask is uint8 (H, W), 255 = hole, 0 = known.

Pixel numbers are those published for 256x256 and grow with the shorter side (x2 at 512), so that a family covers the
same share of the picture at every size. LaMa's own 512 sets double theirs roughly; MAT keeps its 12-48 px brush at 512
and draws more marks instead, which covers as much (0.42 against 0.42 of the picture).

numpy and OpenCV only, for worker processes start with this module.
"""

import functools
import hashlib
import json
import math
import random
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from inpaint_dist.data.marks import MaskArray
from inpaint_dist.data.mask_families import BASE_SIDE, FAMILIES, MaskFamily, find_family
from inpaint_dist.data.opencv import cv2
from inpaint_dist.errors import UserError

__all__ = [
    "FAMILIES",
    "LARGEST_SIDE",
    "REACH_DRAWS",
    "SMALLEST_SIDE",
    "TRIES",
    "Drawn",
    "MaskFamily",
    "check_hole_ratio",
    "draw_mask",
    "draw_within",
    "find_family",
    "mask_rng",
]

SMALLEST_SIDE, LARGEST_SIDE = 8, 16384
"""Sides that can be drawn: below, a law has no room for its marks; above, OpenCV's line coordinates end."""

TRIES = 64
"""Redraws of a mask that misses its limits, before the nearest of them is grown or shrunk to fit."""

REACH_DRAWS = 500
"""Masks of a family that are drawn to learn which hole ratios it can be asked for."""


class Drawn(NamedTuple):
    """A mask with what a list of masks says about it."""

    mask: MaskArray
    """uint8 (H, W), 255 = hole."""
    hole_ratio: float
    """Share of the picture that is hole."""
    adjusted: bool
    """True where no draw met the limits, so that the nearest one's hole was grown or shrunk at its edge."""


def mask_rng(*key: int | str) -> random.Random:
    """A generator that depends on the key's parts alone, on every platform and Python version.

    The parts' types count (1 is not "1"). Only `.random()` and `.getrandbits()` of the result are frozen by Python.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def draw_mask(
    family: str,
    height: int,
    width: int,
    rng: random.Random,
    *,
    hole_ratio: tuple[float, float] | None = None,
) -> MaskArray:
    """Draw one mask of a family: uint8 (height, width), 255 = hole, never empty and never everything.

    Args:
        family: a name of FAMILIES, one with parameters, or a mixture (`find_family`).
        height: rows, 8 to 16384.
        width: columns, 8 to 16384.
        rng: where the randomness comes from; `mask_rng` makes one.
        hole_ratio: smallest and largest share of the picture that may be hole. A mask outside is drawn anew, at most
            TRIES times; then the nearest of them is grown or shrunk at its edge until it fits, so that the limits
            always hold and the time is bounded (`draw_within` says when it came to that).

    Raises:
        UserError: no such family, a size or limits that cannot be, or limits that the family never meets.
    """
    return draw_within(family, height, width, rng, hole_ratio=hole_ratio).mask


def draw_within(
    family: str,
    height: int,
    width: int,
    rng: random.Random,
    *,
    hole_ratio: tuple[float, float] | None = None,
) -> Drawn:
    """`draw_mask`, saying also how large the hole is and whether it had to be adjusted to the limits."""
    law = find_family(family)
    pixels = height * width
    least, most = _pixel_limits(family, height, width, hole_ratio)

    def attempt() -> tuple[int, int, MaskArray]:
        mask = law.draw(height, width, rng)
        hole = cv2.countNonZero(mask)
        return max(least - hole, hole - most, 0), hole, mask

    best = attempt()
    for _ in range(TRIES - 1):
        if best[0] == 0:
            break
        best = min(best, attempt(), key=itemgetter(0))
    miss, hole, mask = best
    if miss == 0:
        return Drawn(mask, hole / pixels, adjusted=False)
    target = least if hole < least else most
    return Drawn(_resize_hole(mask, target), target / pixels, adjusted=True)


def check_hole_ratio(family: str, height: int, width: int, hole_ratio: tuple[float, float] | None) -> None:
    """Refuse limits that are no range, or that the family does not meet at this size.

    Raises:
        UserError: with the holes that the family does draw.
    """
    _pixel_limits(family, height, width, hole_ratio)


@functools.lru_cache(maxsize=64)
def _pixel_limits(family: str, height: int, width: int, hole_ratio: tuple[float, float] | None) -> tuple[int, int]:
    """Fewest and most hole pixels of a mask, once it is clear that they can be met."""
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in (height, width)):
        raise UserError(f"A mask of {width}x{height} cannot be drawn: sides are {SMALLEST_SIDE} to {LARGEST_SIDE}.")
    pixels = height * width
    most = min(pixels - 1, math.floor(find_family(family).largest * pixels))
    if hole_ratio is None:
        return 1, most
    low, high = hole_ratio
    if not 0 <= low < high <= 1:
        raise UserError(f"--hole-ratio {low:g} {high:g} is no range: give two numbers with 0 <= low < high <= 1.")
    smallest, largest = _reach(family, height, width)
    least, most = max(1, math.ceil(low * pixels)), min(most, math.floor(high * pixels))
    if low > largest or high < smallest or least > most:
        raise UserError(
            f"--hole-ratio {low:g} {high:g} is out of reach: {REACH_DRAWS} masks of {family} had holes of "
            f"{smallest:.3g} to {largest:.3g} of the picture. Give a range that meets these, or another --family."
        )
    return least, most


def _reach(family: str, height: int, width: int) -> tuple[float, float]:
    """Smallest and largest share of the picture among some masks of the family: what it can be asked for."""
    shrink = min(1.0, BASE_SIDE / min(height, width))  # laws grow with the picture, so a small one tells as much
    height, width = max(round(height * shrink), 1), max(round(width * shrink), 1)
    rng = mask_rng("reach", family, height, width)
    ratios = [draw_within(family, height, width, rng).hole_ratio for _ in range(REACH_DRAWS)]
    return min(ratios), max(ratios)


def _resize_hole(mask: MaskArray, target: int) -> MaskArray:
    """The mask with its hole grown or shrunk at its edge, evenly all around, to exactly `target` pixels."""
    mask = mask.copy()
    if not mask.any():  # distances want a pixel to start from
        mask[mask.shape[0] // 2, mask.shape[1] // 2] = 255
    elif mask.all():
        mask[0, 0] = 0
    hole = cv2.countNonZero(mask)
    giving = mask if hole > target else 255 - mask  # the side of the edge that gives pixels to the other
    distance = cv2.distanceTransform(giving, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    candidates = np.flatnonzero(giving)
    # Squared distances are whole numbers: rounding them takes the last bit's noise out of the order.
    nearest_first = candidates[np.argsort(np.rint(distance.ravel()[candidates] ** 2), kind="stable")]
    mask.ravel()[nearest_first[: abs(hole - target)]] = 0 if hole > target else 255
    return mask
