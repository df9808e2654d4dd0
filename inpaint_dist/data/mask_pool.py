"""The stored masks of a set, chosen by the share of a picture that their holes take. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.chance import mix
from inpaint_dist.data.mask_mixture import HoleRatios
from inpaint_dist.errors import UserError

MEASURED = 4096
"""Masks that are looked at, at most: to read all of a set of millions would take hours."""


@dataclass(frozen=True)
class MaskPool:
    """Masks that are stored in shards, in the order of their holes."""

    masks: tuple[tuple[int, int], ...]
    """Sample and number of each."""
    shares: NDArray[np.float64]
    """Share of the picture that the hole of each takes, ascending: (masks)."""

    @classmethod
    def measure(cls, counts: NDArray[np.int32], seed: int, share_of: Callable[[int, int], float | None]) -> "MaskPool":
        """Look at the masks of a set: all of them, or MEASURED that a seed draws.

        Args:
            counts: how many masks each sample has, (samples).
            seed: of the draw.
            share_of: the share of the picture that the hole of a sample's mask takes; None: it is no part of the pool.

        Raises:
            UserError: a mask cannot be read. None is left out for that: a disk that fails once, on one machine of
                several, would give it another pool.
        """
        ends = np.cumsum(counts, dtype=np.int64)
        total = int(ends[-1])
        places = range(total) if total <= MEASURED else sorted({mix(seed, draw) % total for draw in range(MEASURED)})
        samples = np.searchsorted(ends, np.asarray(places), side="right").tolist()
        found: list[tuple[float, int, int]] = []
        for place, sample in zip(places, samples, strict=True):
            number = place - int(ends[sample] - counts[sample])
            if (share := share_of(sample, number)) is not None:
                found.append((share, sample, number))
        found.sort()
        return cls(tuple((sample, number) for _, sample, number in found), np.array([share for share, _, _ in found]))

    def check(self, ratios: HoleRatios) -> None:
        """Look whether there are masks of all ranges.

        Raises:
            UserError: naming the range of which there are none.
        """
        for limits in ratios.ranges:
            low, high = self._places(limits)
            if low == high:
                least, most = (f"{self.shares[at]:.3g}" for at in (0, -1)) if len(self.masks) else ("0", "0")
                raise UserError(
                    f"--hole-ratios {limits[0]:g}-{limits[1]:g}: of {len(self.masks)} stored masks that were looked at "
                    f"none hides such a share of the picture; they hide {least} to {most}. Give ranges that meet "
                    "these, or a family as --mask-source."
                )

    def choose(self, limits: tuple[float, float], bits: int) -> tuple[int, int]:
        """Sample and number of a mask within a range, for a random whole number of 64 bits."""
        low, high = self._places(limits)
        return self.masks[low + bits % (high - low)]

    def _places(self, limits: tuple[float, float]) -> tuple[int, int]:
        low, high = np.searchsorted(self.shares, limits[0], "left"), np.searchsorted(self.shares, limits[1], "right")
        return int(low), int(high)
