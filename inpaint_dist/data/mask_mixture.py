"""Where a draw's mask comes from, and how large its hole is: one source or several by weight, ranges too. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from inpaint_dist.data.mask_families import find_family
from inpaint_dist.data.masks import check_hole_ratio
from inpaint_dist.errors import UserError

STORED = ("paired", "pool")
"""Sources whose masks are stored in the shards; any other is a family."""

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_WEIGHTED = re.compile(rf"(?:{_NUMBER}\*)?(.+)")
_RANGE = re.compile(rf"(?:{_NUMBER}\*)?{_NUMBER}-{_NUMBER}")


@dataclass(frozen=True)
class MaskMixture:
    """Sources of masks, and how often each is drawn from."""

    names: tuple[str, ...]
    """paired, pool or families."""
    weights: tuple[int, ...]
    """Of each; their sum is 1,000,000."""

    @property
    def stored(self) -> bool:
        """Whether a draw may need a mask of the shards."""
        return any(name in STORED for name in self.names)

    def choose(self, bits: int) -> str:
        """The source for a random whole number of 64 bits."""
        return self.names[_place(self.weights, bits)]


@dataclass(frozen=True)
class HoleRatios:
    """Ranges of the hole's share of a picture, and how often each is drawn."""

    ranges: tuple[tuple[float, float], ...]
    """Least and largest share of each, 0 <= least < largest <= 1."""
    weights: tuple[int, ...]
    """Of each; their sum is 1,000,000."""

    def choose(self, bits: int) -> tuple[float, float]:
        """The range for a random whole number of 64 bits."""
        return self.ranges[_place(self.weights, bits)]

    def check(self, family: str, size: int) -> None:
        """Look whether a family has masks of all ranges.

        Raises:
            UserError: naming the range that it does not reach.
        """
        for limits in self.ranges:
            try:
                check_hole_ratio(family, size, size, limits)
            except UserError as error:
                raise UserError(f"--hole-ratios {limits[0]:g}-{limits[1]:g}: {error}") from None


def read_mixture(text: str) -> MaskMixture:
    """`paired`, a family, or stored masks among families by weight: `1*paired+3*lama-train`.

    A mixture of families alone is a family itself, and one source.

    Raises:
        UserError: saying what is wrong with it.
    """
    matches = [_WEIGHTED.fullmatch(part) for part in text.split("+")]
    parts = [(match[2], float(match[1] or 1)) for match in matches if match is not None]
    if not any(name in STORED for name, _ in parts):
        find_family(text)
        return MaskMixture((text,), (1_000_000,))
    if len(parts) < len(matches):
        raise UserError("a name is missing beside a +, as in 1*paired+3*lama-train.")
    names = tuple(name for name, _ in parts)
    for name in names:
        if name not in STORED:
            find_family(name)
    if len(set(names)) != len(names):
        raise UserError("a source is there twice.")
    return MaskMixture(names, _shares([weight for _, weight in parts]))


def read_hole_ratios(words: Sequence[str]) -> HoleRatios | None:
    """Ranges by weight, `0-0.1 0.1-0.2 3*0.2-0.4`; no words: None.

    Raises:
        UserError: saying what is wrong with them.
    """
    if not words:
        return None
    ranges: list[tuple[float, float]] = []
    weights: list[float] = []
    for word in words:
        match = _RANGE.fullmatch(word)
        limits = (float(match[2]), float(match[3])) if match else (0.0, 0.0)
        if match is None or not 0 <= limits[0] < limits[1] <= 1:
            raise UserError(f"{word} is no range of shares of the picture; give such as 0.1-0.2 or 3*0.2-0.4.")
        ranges.append(limits)
        weights.append(float(match[1] or 1))
    return HoleRatios(tuple(ranges), _shares(weights))


def _place(weights: Sequence[int], bits: int) -> int:
    """The number of the weight that a random whole number of 64 bits falls on."""
    place = bits % sum(weights)
    return next(number for number, end in enumerate(accumulate(weights)) if place < end)


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as whole numbers whose sum is 1,000,000."""
    ends = list(accumulate(weights))
    places = [round(1e6 * end / ends[-1]) if ends[-1] else 0 for end in ends]
    shares = tuple(end - before for before, end in zip([0, *places], places, strict=False))
    if not all(shares):
        raise UserError("a weight is 0, or less than a millionth of the others.")
    return shares
