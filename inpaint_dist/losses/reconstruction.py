"""How far a prediction is from the photo. Every loss is the mean over images of a per-image quantity."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Distance between prediction and photo."""

    kind: Literal["l1", "l2"] = "l1"
    """l1: absolute difference; l2: squared difference."""
    where: Literal["hole", "known", "both"] = "hole"
    """The pixels that count."""
    reduction: Literal["sum", "mean", "picture"] = "mean"
    """Over the pixels of one image that count: their mean (a large hole weighs as much as a small one), the plain sum
    over pixels and channels, or that sum over the numbers of the whole picture (both weigh by area)."""
    scales: int = 1
    """Sizes of the pictures that are compared, each half of the one before: the distance is the mean over them."""

    def __post_init__(self) -> None:
        if self.scales < 1:
            raise UsageError(f"--objective.reconstruction.scales {self.scales}: give at least 1")


def reconstruction_distance(
    prediction: Image, image: Image, mask: Mask, config: ReconstructionConfig
) -> Float[Tensor, ""]:
    """Mean over images of the distance inside the hole, outside it, or both; other pixels count for nothing.

    With `mean`, an image's distance is divided by its number of pixels that count times 3 channels (by 1 where there
    are none), so its range is [0, 2] for l1 and [0, 4] for l2. Sums run in float32 or wider. The denominator is the
    image's own, never the batch's: the loss of N ranks is then exactly that of one rank with all their images.
    """
    wide = torch.promote_types(image.dtype, torch.float32)
    difference = prediction.to(wide) - image.to(wide)
    counted = {"hole": mask.to(wide), "known": 1.0 - mask.to(wide), "both": torch.ones_like(mask, dtype=wide)}[
        config.where
    ]
    difference = difference * counted
    distances = [_distance(difference, counted, config)]
    for _ in range(1, config.scales):
        # Means over four pixels, of those that count.
        weight = F.avg_pool2d(counted, 2)
        difference = F.avg_pool2d(difference, 2) / weight.clamp_min(0.25)
        counted = (weight > 0).to(wide)
        distances.append(_distance(difference, counted, config))
    return torch.stack(distances).mean()


def _distance(difference: Tensor, counted: Tensor, config: ReconstructionConfig) -> Float[Tensor, ""]:
    """Of a difference that is 0 where nothing counts: (B, 3, h, w), (B, 1, h, w)."""
    distance = difference.abs() if config.kind == "l1" else difference.square()
    per_image = distance.sum(dim=(1, 2, 3))
    if config.reduction == "mean":
        per_image = per_image / (3.0 * counted.sum(dim=(1, 2, 3))).clamp_min(1.0)
    elif config.reduction == "picture":
        per_image = per_image / difference[0].numel()
    return per_image.mean()
