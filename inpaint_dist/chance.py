"""Random numbers that are functions of whole numbers: the same on every rank, on every machine, in every version.

numpy only, whose own generators may change their streams between versions.
"""

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(*parts: int, state: int = 0) -> int:
    """Hash integers to 64 well-mixed bits.

    The finaliser of SplitMix64 (Steele et al., Fast Splittable Pseudorandom Number Generators, 2014) over the parts in
    turn. `mix(a, b, c)` is `mix(c, state=mix(a, b))`.
    """
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


def uniform(rows: int, columns: int, *parts: int, start: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), (rows, columns): a function of parts and of each row's place, the first at `start`."""
    bits = mix_range(rows * columns, *parts, start=start * columns) >> np.uint64(40)
    return (bits.astype(np.float32) / np.float32(2**24)).reshape(rows, columns)
