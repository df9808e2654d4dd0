"""How good completions are over a set: the one ruler, of training and of `python -m inpaint_dist.evaluate`.

Every photo is measured once, whatever the ranks: means, FID, KID and IDS, and, for the verb, intervals and buckets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from inpaint_dist.batch import Batch, Image, Mask, composite, image_from_uint8, image_to_uint8, masked
from inpaint_dist.data.pairs import Pairs
from inpaint_dist.errors import UserError
from inpaint_dist.launch import Launch
from inpaint_dist.metrics.intervals import Scores, bootstrap_interval, buckets
from inpaint_dist.metrics.learned import (
    FEATURES,
    LPIPS,
    Inception,
    LPIPSNetwork,
    discriminative_scores,
    frechet_distance,
    kernel_distance,
    kernel_distance_error,
    need_discriminative_scores,
)

MetricName: TypeAlias = Literal[
    "psnr", "ssim", "l1", "hole_psnr", "hole_l1", "lpips_alex", "lpips_vgg", "fid", "kid", "p_ids", "u_ids"
]  # fmt: skip

METRICS: tuple[MetricName, ...] = ("psnr", "ssim", "l1", "hole_psnr", "hole_l1")
"""psnr (dB) and ssim of the composite, l1 of the composite; hole_psnr (dB) and hole_l1 over the hole's pixels alone.
l1 is in units of the [-1, 1] range, as the losses are. These need no network."""

LEARNED: dict[MetricName, LPIPSNetwork] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
"""A number a photo, by a network."""

OVER_SETS: tuple[MetricName, ...] = ("fid", "kid", "p_ids", "u_ids")
"""A number a set."""

ALL_METRICS: tuple[MetricName, ...] = (*METRICS, *LEARNED, *OVER_SETS)

LOWER_IS_BETTER: frozenset[MetricName] = frozenset({"l1", "hole_l1", *LEARNED, "fid", "kid"})

Completer: TypeAlias = Callable[[Image, Mask], Image]
"""(masked photo, mask) → prediction."""

Fill: TypeAlias = Callable[[Sequence[int], Batch], Image]
"""(numbers of the photos, the photos and their holes) → finished pictures, rounded to 8 bits."""

_FIGURE: dict[MetricName, str] = {"fid": "value", "kid": "mean", "p_ids": "value", "u_ids": "value"}

PSNR_LIMIT = 100.0
"""dB given to a picture without an error, where the ratio is infinite."""

TOGETHER = 8
"""Photos of one size that are measured at once."""

_SAID = 400
"""Bytes of an error that cross between ranks."""


class EvaluationFailed(UserError):
    """A rank could not score its images; all ranks raise it alike."""

    on_every_rank = True


class Ruler:
    """The metrics asked for, with the networks of those that have one on the device."""

    def __init__(self, metrics: Sequence[str], device: torch.device) -> None:
        """Load what they need, and nothing else.

        Raises:
            UserError: a package or a file of weights is missing.
        """
        self.metrics = tuple(name for name in ALL_METRICS if name in metrics)
        self.learned: dict[MetricName, LPIPS] = {
            name: LPIPS(network, device) for name, network in LEARNED.items() if name in metrics
        }
        if {"p_ids", "u_ids"} & set(self.metrics):
            need_discriminative_scores()
        self.inception = Inception(device) if set(OVER_SETS) & set(self.metrics) else None
        self.names: tuple[MetricName, ...] = (*METRICS, *self.learned)
        """Columns of `score`."""
        self._photos: tuple[Pairs, npt.NDArray[np.float64]] | None = None

    def remember(self, photos: Pairs, features: npt.NDArray[np.float64]) -> None:
        """Keep a set's own features: its completions change from one look to the next, its photos do not."""
        self._photos = photos, features

    def recall(self, photos: Pairs) -> npt.NDArray[np.float64] | None:
        """The features of this very set, where it was the last one."""
        return self._photos[1] if self._photos is not None and self._photos[0] is photos else None

    def score(self, result: Image, image: Image, mask: Mask) -> Float[Tensor, "batch columns"]:
        """Score each finished picture: columns as `names`, in float64."""
        learned = [network(result, image)[:, None] for network in self.learned.values()]
        return torch.cat([score_result(result, image, mask), *learned], dim=1)


@dataclass(frozen=True)
class Measured:
    """What was measured, photo by photo, in the order of the set."""

    ratios: Scores
    """Share of hole, (photos,)."""
    scores: dict[MetricName, Scores]
    """Metric → (photos,)."""
    photos: npt.NDArray[np.float64] | None
    """Inception features of the photos, (photos, 2048), where FID or KID is asked for."""
    completions: npt.NDArray[np.float64] | None
    """Those of the completions."""


def evaluate(complete: Completer, photos: Pairs, ruler: Ruler, launch: Launch) -> dict[str, float]:
    """Each of the ruler's metrics over a set: means over its photos, or FID and KID. Collective; all get the same.

    Raises:
        EvaluationFailed: on every rank, where one of them met an error.
    """
    measured = measure(photos, completions(complete, launch), ruler, launch)
    scores: dict[str, float] = {}
    met: Exception | None = None
    if launch.is_main:  # alone, for a best one that ranks disagree about would be saved by some of them
        try:
            sets = _over_sets(measured, ruler.metrics)
            scores = {**_means(measured, ruler.metrics), **{name: part[_FIGURE[name]] for name, part in sets.items()}}
        except (ValueError, RuntimeError) as error:
            met = error
    _fail_together(met, launch)
    return cast("dict[str, float]", launch.share(scores))


def completions(complete: Completer, launch: Launch) -> Fill:
    """What a generator makes of the holes, pasted into them, as a file would hold it."""

    def fill(_: Sequence[int], batch: Batch) -> Image:
        with launch.autocast():
            prediction = complete(masked(batch.image, batch.mask), batch.mask)
        if not torch.isfinite(prediction).all():  # as 8 bits it would look like any other
            raise RuntimeError("a prediction is not finite")
        return eight_bits(composite(prediction, batch.image, batch.mask))

    return fill


def measure(photos: Pairs, fill: Fill, ruler: Ruler, launch: Launch) -> Measured:
    """Measure what `fill` makes of every photo, in float32, over all ranks. Collective; each rank gets the whole.

    Raises:
        EvaluationFailed: on every rank, where one could not read a photo or a mask, or met another error.
    """
    device, inception, known = launch.device, ruler.inception, ruler.recall(photos)
    table = torch.zeros(len(photos), 1 + len(ruler.names), dtype=torch.float64, device=device)
    features = torch.zeros(2, len(photos) if inception else 0, FEATURES, dtype=torch.float64, device=device)
    mine = range(launch.rank, len(photos), launch.world)
    step = TOGETHER if photos.size is not None else 1
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    met: Exception | None = None
    try:
        with torch.inference_mode(), exact:
            for start in range(0, len(mine), step):
                numbers = list(mine[start : start + step])
                batch = photos.batch(numbers, device)
                result = fill(numbers, batch)
                table[numbers, 0] = batch.mask.double().mean((1, 2, 3))
                table[numbers, 1:] = ruler.score(result, batch.image, batch.mask)
                if inception is not None:
                    features[1, numbers] = inception(result)
                    if known is None:
                        features[0, numbers] = inception(batch.image)
    except (ValueError, OSError, RuntimeError) as error:  # the other ranks wait for this one in the sums
        met = error
    _fail_together(met, launch)
    # Each photo's row is written by one rank alone; the others hold zeros, so that the sum is exact.
    ratios, *scores = launch.sum(table).cpu().numpy().T
    of_photos, of_completions = launch.sum(features).cpu().numpy() if inception else (None, None)
    if known is not None:
        of_photos = known
    elif of_photos is not None:
        ruler.remember(photos, of_photos)
    return Measured(ratios, dict(zip(ruler.names, scores, strict=True)), of_photos, of_completions)


def _fail_together(met: Exception | None, launch: Launch) -> None:
    """Raise on every rank where one has met an error, and say which. Collective."""
    said = torch.zeros(launch.world, _SAID, dtype=torch.uint8, device=launch.device)
    if met is not None:
        text = (str(met) or type(met).__name__).encode()[:_SAID]
        said[launch.rank, : len(text)] = torch.tensor(list(text), dtype=torch.uint8, device=launch.device)
    rows = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in launch.sum(said).cpu().numpy()]
    if failures := [row for row in rows if row]:
        where = f"on {len(failures)} of {launch.world} ranks: " if launch.world > 1 else ""
        raise EvaluationFailed(f"the evaluation failed: {where}{failures[0]}") from met


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
    means = _means(part, metrics)
    told: dict[str, Any] = {"photos": len(part.ratios), "mean hole ratio": _round(part.ratios.mean())}
    if means:
        intervals = bootstrap_interval(np.stack([part.scores[name] for name in means], axis=1))
        for (name, mean), low, high in zip(means.items(), *intervals, strict=True):
            told[name] = {"mean": _round(mean), "low": _round(low), "high": _round(high)}
    sets = _over_sets(part, metrics)
    if "kid" in sets and part.photos is not None and part.completions is not None:
        error = 1.96 * kernel_distance_error(torch.from_numpy(part.photos), torch.from_numpy(part.completions))
        sets["kid"] |= {"low": sets["kid"]["mean"] - error, "high": sets["kid"]["mean"] + error}
    for name, about in sets.items():
        told[name] = {key: _round(value) if isinstance(value, float) else value for key, value in about.items()}
    return told


def _means(part: Measured, metrics: Sequence[str]) -> dict[MetricName, float]:
    return {name: float(values.mean()) for name, values in part.scores.items() if name in metrics}


def _over_sets(part: Measured, metrics: Sequence[str]) -> dict[MetricName, dict[str, Any]]:
    """FID, KID and IDS where they are asked for and there are photos enough: name → value and what belongs to it."""
    told: dict[MetricName, dict[str, Any]] = {}
    if part.photos is None or part.completions is None or len(part.photos) < 2:
        return told
    both = torch.from_numpy(part.photos), torch.from_numpy(part.completions)
    if "fid" in metrics:
        told["fid"] = {"value": frechet_distance(*both), "too few photos": len(part.photos) <= FEATURES}
    if "kid" in metrics:
        mean, deviation, size = kernel_distance(*both)
        told["kid"] = {"mean": mean, "deviation": deviation, "photos a subset": size}
    if {"p_ids", "u_ids"} & set(metrics):
        scores = dict(zip(("p_ids", "u_ids"), discriminative_scores(*both), strict=True))
        few = 2 * len(part.photos) <= FEATURES
        told |= {name: {"value": value, "too few photos": few} for name, value in scores.items() if name in metrics}
    return told


def _round(value: float) -> float:
    return round(float(value), 5)


def eight_bits(image: Image) -> Image:
    """An image as a file would hold it: rounded to 8 bits."""
    return image_from_uint8(image_to_uint8(image))


def score_result(result: Image, image: Image, mask: Mask) -> Float[Tensor, "batch 5"]:
    """Score each finished picture of a batch: columns as METRICS, in float64.

    SSIM is torchmetrics' (Gaussian window of 11, sigma 1.5; Wang et al., Image Quality Assessment, 2004). An image
    without a hole gets hole_l1 0.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    error = (result - image).double()
    pixels = 3.0 * mask.double().sum((1, 2, 3)).clamp_min(1.0)
    whole = float(error[0].numel())
    squared, absolute = error.square().sum((1, 2, 3)), error.abs().sum((1, 2, 3))
    hole = error * mask.double()
    ssim = structural_similarity_index_measure(result, image, data_range=2.0, reduction="none")
    columns = (
        _psnr(squared / whole),
        torch.as_tensor(ssim).double().reshape(-1),
        absolute / whole,
        _psnr(hole.square().sum((1, 2, 3)) / pixels),
        hole.abs().sum((1, 2, 3)) / pixels,
    )
    return torch.stack(columns, dim=1)


def _psnr(mean_squared: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, for a range of 2."""
    return (10.0 * torch.log10(4.0 / mean_squared)).clamp_max(PSNR_LIMIT)
