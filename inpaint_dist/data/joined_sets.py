"""Several sets of shards read as one, each as often as its weight says. No torch."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from math import gcd, lcm
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.chance import mix_range
from inpaint_dist.data.order import Draw, SampleOrder, WindowedOrder
from inpaint_dist.data.shards import Columns, ShardIndex, absent
from inpaint_dist.errors import UserError

LONGEST_BLOCK = 1_000_000
"""Turns after which several sets must have had their exact shares."""

_MIXED = 3  # names the draws of a block; 1 and 2 are of the sets' own orders
_WEIGHTED = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\*(.+)")
_NEXT = re.compile(r"\+(?=(?:\d+(?:\.\d*)?|\.\d+)\*)")


@dataclass(frozen=True)
class SetMixture:
    """Folders of shards, and how often a photo comes from each."""

    places: tuple[str, ...]
    """The folders, as they were given."""
    weights: tuple[int, ...]
    """Of each, in lowest terms: of so many photos as their sum, this many are from it."""

    def __str__(self) -> str:
        """With their shares, as 0.7 of shards/a and 0.3 of shards/b."""
        whole = sum(self.weights)
        parts = [f"{weight / whole:.3g} of {place}" for weight, place in zip(self.weights, self.places, strict=True)]
        return f"{', '.join(parts[:-1])} and {parts[-1]}"

    def fingerprint(self, indexes: Sequence[ShardIndex]) -> str:
        """Equal exactly where the samples of all sets and the weights are."""
        parts = (f"{weight} {index.fingerprint}\n" for weight, index in zip(self.weights, indexes, strict=True))
        return sha256("".join(parts).encode()).hexdigest()


def read_sets(text: str) -> SetMixture | None:
    """`7*shards/places+3*shards/mine` as a mixture; None for any other text, which names one set.

    Raises:
        UserError: saying what is wrong with it.
    """
    matches = [_WEIGHTED.fullmatch(part) for part in _NEXT.split(text)]
    found = [(match[2], Fraction(match[1])) for match in matches if match is not None]
    if len(found) < len(matches) or len(found) < 2:
        return None
    places = tuple(place for place, _ in found)
    if len({*places}) < len(places):
        raise UserError("a set is there twice.")
    shares = [weight for _, weight in found]
    if not all(shares):
        raise UserError("a weight is 0.")
    common = lcm(*(share.denominator for share in shares))
    whole = [int(share * common) for share in shares]
    weights = tuple(number // gcd(*whole) for number in whole)
    if sum(weights) > LONGEST_BLOCK:
        raise UserError(f"the weights come out even after {sum(weights):,} photos alone; give rounder ones.")
    return SetMixture(places, weights)


class JoinedOrder:
    """The endless sequence of draws over several sets: each in its own order, taking turns by weight.

    Turns are cut into blocks that hold each set in its exact share, and are shuffled within one: after any whole blocks
    each set was read exactly as often as its weight says. A set begins its next epoch when its own samples are read,
    whatever the others do.

    Args:
        orders: of each set's own samples.
        weights: turns of each set in a block.
        seed: of the shuffle.
    """

    def __init__(self, orders: Sequence[SampleOrder | WindowedOrder], weights: Sequence[int], seed: int) -> None:
        self.orders, self.seed = orders, seed
        self.turns = [*weights]
        self.starts = np.cumsum([0, *(order.samples for order in orders)]).tolist()
        self.samples = self.starts[-1]
        self._blocks = lru_cache(maxsize=2)(self._block)

    def draws(self, start: int, stop: int) -> Iterator[Draw]:
        """The draws at positions [start, stop), their indices those of all sets one after the other."""
        blocks = list(self._between(start, stop))
        whose = np.concatenate([part for part, _ in blocks]) if blocks else np.empty(0, np.int8)
        counts = np.bincount(whose, minlength=len(self.orders)).tolist()
        # Set by set, while an epoch's permutation is at hand, and then in their turns.
        read = blocks[0][1] if blocks else [0] * len(self.orders)
        own = [
            iter(list(order.draws(first, first + count)))
            for order, first, count in zip(self.orders, read, counts, strict=True)
        ]
        for number in whose.tolist():
            draw = next(own[number])
            yield Draw(draw.epoch, self.starts[number] + draw.index)

    def _between(self, start: int, stop: int) -> Iterator[tuple[NDArray[np.int8], list[int]]]:
        """Whose turn it is at positions [start, stop), block by block, and how often each set was read before."""
        length, position = sum(self.turns), start
        while position < stop:
            block, place = divmod(position, length)
            whose, before = self._blocks(block)
            read = [block * turns + int(count) for turns, count in zip(self.turns, before[place], strict=True)]
            part = whose[place : place + stop - position]
            yield part, read
            position += len(part)

    def _block(self, number: int) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
        """Whose turn it is within a block, and how often each set had its turn in it before: (L), (L, sets)."""
        sets = np.arange(len(self.turns), dtype=np.int8)
        whose = np.repeat(sets, self.turns)
        whose = whose[np.argsort(mix_range(len(whose), self.seed, number, _MIXED), kind="stable")]
        turns = (whose[:, None] == sets).astype(np.int32)
        return whose, np.cumsum(turns, axis=0, dtype=np.int32) - turns


def join(indexes: Sequence[ShardIndex]) -> ShardIndex:
    """Sets of shards of this machine as one, their samples one after the other.

    Raises:
        UserError: their pictures differ in size.
    """
    first = indexes[0]
    if other := next((index for index in indexes if index.size != first.size), None):
        raise UserError(
            f"{first.folder} holds pictures of {first.size} pixels, {other.folder} of {other.size}: make shards of one "
            "--size"
        )
    shards_before = np.cumsum([0, *(len(index.shards) for index in indexes)])
    columns: dict[str, Columns] = {}
    for extension in dict.fromkeys(name for index in indexes for name in index.columns):
        parts = [index.columns.get(extension) or absent(len(index)) for index in indexes]
        columns[extension] = Columns(*map(np.concatenate, zip(*parts, strict=True)))
    return ShardIndex(
        folder=Path(),
        split=first.split,
        size=first.size,
        shards=tuple(
            replace(shard, name=str(index.folder / shard.name)) for index in indexes for shard in index.shards
        ),
        keys=[key for index in indexes for key in index.keys],
        shard_of=np.concatenate(
            [index.shard_of + np.int32(before) for index, before in zip(indexes, shards_before, strict=False)]
        ),
        columns=columns,
        settings={"allow_large_holes": any(index.settings.get("allow_large_holes") for index in indexes)},
        sets=tuple(len(index.shards) for index in indexes),
    )
