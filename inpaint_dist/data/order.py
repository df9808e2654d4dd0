"""The order of samples: a pure function of (the samples, seed, epoch). numpy only.

A run reads the endless concatenation of epoch permutations. Step k's global batch of B samples is positions
[kB, (k+1)B) of it: the same on any number of ranks and workers, interrupted or not.

A set of some millions is shuffled whole. A larger one is shuffled by windows: its shards in a new order each epoch, cut
into windows of K shards, and the samples of a window among each other. That reads K shards at a time from the disk and
never holds more than the order of a few windows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.chance import mix_range

SHUFFLED_WHOLE = 1 << 22
"""Samples up to which a set is shuffled whole, where nobody says otherwise: 4 million, 34 MB an epoch's order."""
WINDOW = 64
"""Shards of a window, where the set is larger and nobody says otherwise."""

_SHARDS, _WITHIN = 1, 2  # names of the draws of a windowed order


def permutation(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch: every sample once. Ties of the 64-bit keys, if any, stay in place (stable sort)."""
    return np.argsort(mix_range(samples, seed, epoch), kind="stable")


class Draw(NamedTuple):
    """One sample as one epoch reads it."""

    epoch: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True)
class SampleOrder:
    """The endless sequence of draws over a set of samples, each epoch shuffled whole."""

    samples: int
    seed: int
    _order: Callable[[int], NDArray[np.int64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep the orders of an epoch's end and the next one's beginning, which are read together."""
        object.__setattr__(self, "_order", lru_cache(maxsize=2)(partial(permutation, self.samples, self.seed)))

    def draws(self, start: int, stop: int) -> Iterator[Draw]:
        """The draws at positions [start, stop), which may straddle epochs."""
        while start < stop:
            epoch, place = divmod(start, self.samples)
            for index in self._order(epoch)[place : place + stop - start].tolist():
                yield Draw(epoch, index)
            start += min(stop - start, self.samples - place)


class WindowedOrder:
    """The endless sequence of draws over shards, shuffled by windows of so many shards.

    Args:
        sizes: samples of each shard; the set is their concatenation.
        seed: of the shuffle.
        window: shards of a window.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        self.seed, self.window = seed, window
        self._starts = np.cumsum(np.array([0, *sizes], np.int64))
        self.samples = int(self._starts[-1])
        # An epoch's end and the next one's beginning are read together, and so are those of two windows.
        self._shards_of = lru_cache(maxsize=2)(self._shuffled_shards)
        self._samples_of = lru_cache(maxsize=2)(self._shuffled_window)

    def draws(self, start: int, stop: int) -> Iterator[Draw]:
        """The draws at positions [start, stop), which may straddle windows and epochs."""
        position = start
        while position < stop:
            epoch, place = divmod(position, self.samples)
            _, ends = self._shards_of(epoch)
            number = int(np.searchsorted(ends, place, side="right"))
            inside = place - int(ends[number - 1]) if number else place
            indices = self._samples_of(epoch, number)[inside : inside + stop - position].tolist()
            for index in indices:
                yield Draw(epoch, index)
            position += len(indices)

    def _shuffled_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in the order of an epoch, and after how many samples each of its windows ends."""
        count = len(self._starts) - 1
        shards = np.argsort(mix_range(count, self.seed, epoch, _SHARDS), kind="stable")
        read = np.cumsum(np.diff(self._starts)[shards])
        return shards, read[np.minimum(np.arange(0, count, self.window) + self.window, count) - 1]

    def _shuffled_window(self, epoch: int, number: int) -> NDArray[np.int64]:
        """The samples of one window in the order in which they are read."""
        shards = self._shards_of(epoch)[0][number * self.window : (number + 1) * self.window]
        ends = ((self._starts.item(shard), self._starts.item(shard + 1)) for shard in shards.tolist())
        samples = np.concatenate([np.arange(*shard) for shard in ends])
        return samples[np.argsort(mix_range(len(samples), self.seed, epoch, _WITHIN, number), kind="stable")]


def order_of(sizes: Sequence[int], seed: int, window: int | None) -> SampleOrder | WindowedOrder:
    """The order over shards of so many samples each.

    Args:
        sizes: samples of each shard.
        seed: of the shuffle.
        window: shards of a window; None: the whole set where it has at most `SHUFFLED_WHOLE` samples, else `WINDOW`.
    """
    filled, samples = [size for size in sizes if size], sum(sizes)
    if window is None:
        window = len(filled) if samples <= SHUFFLED_WHOLE else WINDOW
    return SampleOrder(samples, seed) if window >= len(filled) else WindowedOrder(filled, seed, window)


def steps_for(samples: int, epochs: int, global_batch: int) -> int:
    """Steps that read `epochs` epochs: ceil(epochs x samples / global batch); the last batch may reach further."""
    return -(-epochs * samples // global_batch)
