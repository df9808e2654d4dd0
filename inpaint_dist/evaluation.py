"""How good completions are over a set: PSNR, SSIM and L1, each image counted once on any number of ranks."""

from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from inpaint_dist.batch import Batch, Image, Mask, composite, image_from_uint8, image_to_uint8, masked
from inpaint_dist.errors import UserError
from inpaint_dist.launch import Launch

MetricName: TypeAlias = Literal["psnr", "ssim", "l1", "hole_psnr", "hole_l1"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
"""psnr (dB) and ssim of the composite, l1 of the composite; hole_psnr (dB) and hole_l1 over the hole's pixels alone.
l1 is in units of the [-1, 1] range, as the losses are."""

LOWER_IS_BETTER: frozenset[MetricName] = frozenset({"l1", "hole_l1"})

Completer: TypeAlias = Callable[[Image, Mask], Image]
"""(masked photo, mask) → prediction."""

PSNR_LIMIT = 100.0
"""dB given to a composite without an error, where the ratio is infinite."""


def score(prediction: Image, image: Image, mask: Mask) -> Float[Tensor, "batch 5"]:
    """Score each image of a batch by its composite: columns as METRICS, in float64."""
    return score_result(eight_bits(composite(prediction, image, mask)), image, mask)


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


class EvaluationFailed(UserError):
    """A rank could not score its images; all ranks raise it alike."""

    on_every_rank = True


def evaluate(complete: Completer, batches: Iterable[Batch], launch: Launch) -> dict[str, float]:
    """Mean of each metric over the images of all ranks. Collective; `batches` are this rank's own.

    Returns:
        {"psnr": …, …} as METRICS, or an empty dict where no rank had an image.

    Raises:
        EvaluationFailed: on every rank, where one of them met an error.
    """
    sums = torch.zeros(len(METRICS) + 2, dtype=torch.float64, device=launch.device)
    met: Exception | None = None
    finite = torch.ones((), dtype=torch.bool, device=launch.device)
    try:
        with torch.inference_mode():
            for batch in batches:
                with launch.autocast():
                    prediction = complete(masked(batch.image, batch.mask), batch.mask)
                finite &= torch.isfinite(prediction).all()  # as 8 bits it would look like any other
                sums[:-2] += score(prediction, batch.image, batch.mask).sum(0)
                sums[-2] += len(batch)
        if not finite:
            raise RuntimeError("a prediction is not finite")
    except (UserError, OSError, RuntimeError) as error:  # the other ranks wait for this one in the sum
        met = error
        sums[-1] = 1.0
    *totals, images, failed = launch.sum(sums).tolist()
    if failed:
        where = f"on {failed:.0f} of {launch.world} ranks: " if launch.world > 1 else ""
        raise EvaluationFailed(f"the evaluation failed: {where}{met or 'not on this one'}") from met
    return {name: total / images for name, total in zip(METRICS, totals, strict=True)} if images else {}


def _psnr(mean_squared: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, for a range of 2."""
    return (10.0 * torch.log10(4.0 / mean_squared)).clamp_max(PSNR_LIMIT)
