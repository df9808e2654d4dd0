"""The order of samples: a pure function of (number of samples, seed, epoch). numpy only.

A run reads the endless concatenation of epoch permutations. Step k's global batch of B samples is positions
[kB, (k+1)B) of it: the same on any number of ranks and workers, interrupted or not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.chance import mix_range


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


def steps_for(samples: int, epochs: int, global_batch: int) -> int:
    """Steps that read `epochs` epochs: ceil(epochs x samples / global batch); the last batch may reach further."""
    return -(-epochs * samples // global_batch)
