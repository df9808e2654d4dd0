"""The order of samples: a pure function of (number of samples, seed, epoch). numpy only.

A run reads the endless concatenation of epoch permutations. Step k's global batch of B samples is positions
[kB, (k+1)B) of it: the same on any number of ranks and workers, interrupted or not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(*parts: int) -> int:
    """Hash integers to 64 well-mixed bits.

    The finaliser of SplitMix64 (Steele et al., Fast Splittable Pseudorandom Number Generators, 2014) over the parts in
    turn. Our own, since numpy's generators may change their streams between versions.
    """
    state = 0
    for part in parts:
        state = (state + part + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def mix_range(count: int, *parts: int, start: int = 0) -> NDArray[np.uint64]:
    """`mix(*parts, i)` for every i in [start, start + count), at numpy's speed."""
    state = np.arange(start, start + count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        state += np.uint64((mix(*parts) + _GOLDEN) & _MASK)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return state ^ (state >> np.uint64(31))


@lru_cache(maxsize=3)
def permutation(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch: every sample once. Ties of the 64-bit keys, if any, stay in place (stable sort)."""
    return np.argsort(mix_range(samples, seed, epoch), kind="stable")


@dataclass(frozen=True)
class Draw:
    """One sample as one epoch reads it."""

    epoch: int
    index: int


@dataclass(frozen=True)
class SampleOrder:
    """The endless sequence of draws over a set of samples."""

    samples: int
    seed: int

    def draws(self, start: int, stop: int) -> Iterator[Draw]:
        """The draws at positions [start, stop), which may straddle epochs."""
        for position in range(start, stop):
            epoch, place = divmod(position, self.samples)
            yield Draw(epoch, int(permutation(self.samples, self.seed, epoch)[place]))


def uniform(rows: int, columns: int, *parts: int, start: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), (rows, columns): a function of parts and of each row's place, the first at `start`."""
    bits = mix_range(rows * columns, *parts, start=start * columns) >> np.uint64(40)
    return (bits.astype(np.float32) / np.float32(2**24)).reshape(rows, columns)


def steps_for(samples: int, epochs: int, global_batch: int) -> int:
    """Steps that read `epochs` epochs: ceil(epochs x samples / global batch); the last batch may reach further."""
    return -(-epochs * samples // global_batch)
