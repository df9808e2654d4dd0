"""Means over photos with their uncertainty, and the buckets of hole ratio that the field reports by."""

import random
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
"""Edges of the hole ratio's buckets; each holds its upper edge."""

RESAMPLES = 2000


def buckets(ratios: Scores) -> dict[str, npt.NDArray[np.bool_]]:
    """Who is where: "all", and each bucket that has any: name → (photos,) of bool."""
    parts = {"all": np.ones(len(ratios), bool)}
    for low, high in pairwise(BUCKETS):
        parts[f"{low:.1f}-{high:.1f}"] = (ratios > low) & (ratios <= high)
    return {name: chosen for name, chosen in parts.items() if chosen.any()}


def bootstrap_interval(values: Scores, seed: int = 0) -> tuple[Scores, Scores]:
    """95 % percentile interval of the mean over photos: (photos, metrics) → two of (metrics,) (Efron, 1979)."""
    count, source = len(values), random.Random(seed)  # a stream that stays the same, unlike numpy's
    drawn = (np.frombuffer(source.randbytes(8 * count), np.uint64) % np.uint64(count) for _ in range(RESAMPLES))
    means = np.stack([values[chosen.astype(np.int64)].mean(0) for chosen in drawn])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low, high
