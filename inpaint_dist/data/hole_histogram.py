"""How large the holes of an existing set of masks are, so that another set can be drawn like it. No torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from inpaint_dist.chance import mix
from inpaint_dist.data.photo_sources import PhotoReader, find_photos
from inpaint_dist.data.photos import PhotoError, decode_mask
from inpaint_dist.errors import UserError

BINS = 20
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples fall as evenly between 0 and 2^64 as any can, however many there are."""


@dataclass(frozen=True)
class HoleHistogram:
    """Masks by the share of the picture that their holes take."""

    counts: tuple[int, ...]
    """Masks of each twentieth: [0, 0.05), [0.05, 0.1) … [0.95, 1]."""

    @classmethod
    def of(cls, ratios: Iterable[float]) -> "HoleHistogram":
        """Count hole ratios, each in 0..1."""
        places = np.minimum((np.fromiter(ratios, np.float64) * BINS).astype(np.int64), BINS - 1)
        return cls(tuple(np.bincount(places, minlength=BINS).tolist()))

    @classmethod
    def read(cls, place: str) -> "HoleHistogram":
        """Count the masks of a folder, a glob or a .zip, white = hole; those without a hole, or of nothing else, not.

        Raises:
            UserError: there are none.
        """
        ratios: list[float] = []
        reason = "they have no hole, or are all hole"
        with PhotoReader() as reader:
            for source in find_photos([place], "--like").sources:
                try:
                    mask = decode_mask(reader.read(source), source.name)
                except PhotoError as error:
                    reason = str(error)
                else:
                    ratios.append(np.count_nonzero(mask) / mask.size)
        usable = [ratio for ratio in ratios if 0 < ratio < 1]
        if not usable:
            raise UserError(f"--like {place}: no mask there can be used: {reason}")
        return cls.of(usable)

    def __len__(self) -> int:
        """How many masks were counted."""
        return sum(self.counts)

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """The twentieths that are not empty."""
        return [self.limits(place) for place, count in enumerate(self.counts) if count]

    def without(self, ranges: Iterable[tuple[float, float]]) -> "HoleHistogram":
        """The same, without the masks of some twentieths."""
        left_out = {*ranges}
        return HoleHistogram(
            tuple(0 if self.limits(place) in left_out else count for place, count in enumerate(self.counts))
        )

    @staticmethod
    def limits(place: int) -> tuple[float, float]:
        """Least and largest hole ratio of a twentieth, whose upper end is the next one's."""
        upper = (place + 1) / BINS
        return place / BINS, upper if place == BINS - 1 else math.nextafter(upper, 0)

    def choose(self, index: int, seed: int) -> tuple[float, float]:
        """The twentieth for the mask of a number: of the first so many, each twentieth has its share but for a few."""
        place = (index * _GOLDEN + mix(seed)) % 2**64 * len(self) >> 64
        return self.limits(next(number for number, end in enumerate(accumulate(self.counts)) if place < end))

    def distance(self, other: "HoleHistogram") -> float:
        """The share of masks, in 0..1, that would have to lie in another twentieth for the two to be alike."""
        pairs = zip(self.counts, other.counts, strict=True)
        return sum(abs(a / len(self) - b / len(other)) for a, b in pairs) / 2
