"""Where a draw's mask comes from: one source, or several by weight. No torch."""

import re
from dataclasses import dataclass
from itertools import accumulate

from inpaint_dist.data.mask_families import find_family
from inpaint_dist.errors import UserError

STORED = ("paired", "pool")
"""Sources whose masks are stored in the shards; any other is a family."""

_WEIGHTED = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)\*)?(.+)")


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
        place = bits % sum(self.weights)
        return next(name for name, end in zip(self.names, accumulate(self.weights), strict=True) if place < end)


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
    ends = list(accumulate(weight for _, weight in parts))
    places = [round(1e6 * end / ends[-1]) if ends[-1] else 0 for end in ends]
    shares = tuple(end - before for before, end in zip([0, *places], places, strict=False))
    if not all(shares):
        raise UserError("a weight is 0, or less than a millionth of the others.")
    return MaskMixture(names, shares)
