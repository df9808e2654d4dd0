"""Score a set of photos with holes: every photo once, whatever the ranks; means, intervals and buckets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_dist.batch import Batch, Image, image_to_uint8
from inpaint_dist.data.pairs import Pairs
from inpaint_dist.data.progress import Progress
from inpaint_dist.evaluation import METRICS, score_result
from inpaint_dist.launch import Launch
from inpaint_dist.metrics.intervals import Scores, bootstrap_interval, buckets
from inpaint_dist.metrics.learned import FEATURES, LPIPS, Inception, LPIPSNetwork, frechet_distance, kernel_distance

LEARNED: dict[str, LPIPSNetwork] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
OVER_SETS = ("fid", "kid")
ALL_METRICS = (*METRICS, *LEARNED, *OVER_SETS)

Fill: TypeAlias = Callable[[Sequence[int], Batch], Image]
"""(numbers of the photos, the photos and their holes) → finished pictures, rounded to 8 bits."""

BATCH = 8


@dataclass(frozen=True)
class Measured:
    """What was measured, photo by photo, in the order of the set."""

    ratios: Scores
    """Share of hole, (photos,)."""
    scores: dict[str, Scores]
    """Metric → (photos,)."""
    photos: npt.NDArray[np.float64] | None
    """Inception features of the photos, (photos, 2048), where FID or KID is asked for."""
    completions: npt.NDArray[np.float64] | None
    """Those of the completions."""
    digest: str
    """sha256 of the photos' and masks' pixels as they were scored, in order."""


def measure(pairs: Pairs, fill: Fill, metrics: Sequence[str], launch: Launch) -> Measured:
    """Score what `fill` makes of every photo, in float32, over all ranks. Collective; each rank gets the whole.

    Raises:
        UserError: a photo, a mask or a metric's weights cannot be read.
    """
    device = launch.device
    learned = {name: LPIPS(network, device) for name, network in LEARNED.items() if name in metrics}
    inception = Inception(device) if set(OVER_SETS) & set(metrics) else None
    names = (*METRICS, *learned)
    table = torch.zeros(len(pairs), 1 + len(names), dtype=torch.float64, device=device)
    features = torch.zeros(2, len(pairs) if inception else 0, FEATURES, dtype=torch.float64, device=device)
    digests = torch.zeros(len(pairs), 32, dtype=torch.uint8, device=device)
    mine = range(launch.rank, len(pairs), launch.world)
    step = BATCH if pairs.size is not None else 1
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with Progress("evaluate", len(mine), "photo") as progress, torch.inference_mode(), exact:
        for start in range(0, len(mine), step):
            numbers = list(mine[start : start + step])
            batch = pairs.batch(numbers, device)
            result = fill(numbers, batch)
            columns = [batch.mask.double().mean((1, 2, 3))[:, None], score_result(result, batch.image, batch.mask)]
            columns += [network(result, batch.image)[:, None] for network in learned.values()]
            table[numbers] = torch.cat(columns, dim=1)
            digests[numbers] = _digests(batch).to(device)
            if inception is not None:
                features[0, numbers], features[1, numbers] = inception(batch.image), inception(result)
            progress.update(start + len(numbers))
    # Each photo's row is written by one rank alone; the others hold zeros, so that the sum is exact.
    ratios, *scores = launch.sum(table).cpu().numpy().T
    photos, completions = launch.sum(features).cpu().numpy() if inception else (None, None)
    whole = sha256(launch.sum(digests).cpu().numpy().tobytes()).hexdigest()
    return Measured(ratios, dict(zip(names, scores, strict=True)), photos, completions, whole)


def summarise(measured: Measured, metrics: Sequence[str]) -> dict[str, Any]:
    """Each metric over all photos and in each bucket of hole ratio: {"all": {"photos": …, "psnr": {"mean": …}}, …}."""
    return {name: _summary(_part(measured, chosen), metrics) for name, chosen in buckets(measured.ratios).items()}


def _part(measured: Measured, chosen: npt.NDArray[np.bool_]) -> Measured:
    return replace(
        measured,
        ratios=measured.ratios[chosen],
        scores={name: values[chosen] for name, values in measured.scores.items()},
        photos=None if measured.photos is None else measured.photos[chosen],
        completions=None if measured.completions is None else measured.completions[chosen],
    )


def _summary(part: Measured, metrics: Sequence[str]) -> dict[str, Any]:
    names = [name for name in part.scores if name in metrics]
    told: dict[str, Any] = {"photos": len(part.ratios), "mean hole ratio": _round(part.ratios.mean())}
    if names:
        scores = np.stack([part.scores[name] for name in names], axis=1)
        for name, mean, low, high in zip(names, scores.mean(0), *bootstrap_interval(scores), strict=True):
            told[name] = {"mean": _round(mean), "low": _round(low), "high": _round(high)}
    if part.photos is not None and part.completions is not None and len(part.photos) > 1:
        both = torch.from_numpy(part.photos), torch.from_numpy(part.completions)
        if "fid" in metrics:
            told["fid"] = {"value": _round(frechet_distance(*both)), "too few photos": len(part.photos) <= FEATURES}
        if "kid" in metrics:
            mean, deviation, size = kernel_distance(*both)
            told["kid"] = {"mean": _round(mean), "deviation": _round(deviation), "photos a subset": size}
    return told


def _round(value: float) -> float:
    return round(float(value), 5)


def _digests(batch: Batch) -> Tensor:
    """sha256 of each photo's and mask's pixels: (B, 32), uint8."""
    images, masks = image_to_uint8(batch.image).cpu().numpy(), (batch.mask[:, 0] > 0.5).cpu().numpy()
    rows = [sha256(image.tobytes() + mask.tobytes()).digest() for image, mask in zip(images, masks, strict=True)]
    return torch.from_numpy(np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), 32).copy())
