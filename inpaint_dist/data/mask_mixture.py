"""Where a draw's mask comes from: one source, or several by weight. No torch."""

from dataclasses import dataclass
from itertools import accumulate

from inpaint_dist.data.masks import FAMILIES

SOURCES = ("paired", "pool", *FAMILIES)


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
        return not all(name in FAMILIES for name in self.names)

    def choose(self, bits: int) -> str:
        """The source for a random whole number of 64 bits."""
        place = bits % sum(self.weights)
        return next(name for name, end in zip(self.names, accumulate(self.weights), strict=True) if place < end)


def read_mixture(text: str) -> MaskMixture:
    """`lama-train`, or sources with weights: `paired:1,lama-train:3`.

    Raises:
        ValueError: saying what is wrong with it.
    """
    parts = [part.strip().partition(":") for part in text.split(",")]
    names = tuple(name.strip() for name, _, _ in parts)
    for name in names:
        if name not in SOURCES:
            raise ValueError(f"choose paired, pool or one of {', '.join(FAMILIES)}, not {name!r}")
    if len(set(names)) != len(names):
        raise ValueError("a source is there twice")
    try:
        weights = [float(weight) if colon else 1.0 for _, colon, weight in parts]
    except ValueError:
        raise ValueError("a weight is a number, as in paired:1,lama-train:3") from None
    if not all(0 < weight < 1e9 for weight in weights):
        raise ValueError("a weight is more than 0")
    ends = [round(1e6 * end / sum(weights)) for end in accumulate(weights)]
    shares = tuple(end - before for before, end in zip([0, *ends], ends, strict=False))
    if not all(shares):
        raise ValueError("a weight is less than a millionth of the others")
    return MaskMixture(names, shares)
