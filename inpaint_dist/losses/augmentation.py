"""Differentiable augmentation of what a discriminator sees, so that a small set of photos is not learned by heart.

Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, 2020 (section 3.2). The photo, the completion
and the mask of a sample are changed alike, so that what tells them apart is the completion alone.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from inpaint_dist.batch import Image, Luck, Mask

Change: TypeAlias = Literal["colour", "translation", "cutout"]

SHIFT, CUT = 1 / 8, 1 / 2
"""Of a side: how far a picture moves at most, and the side of the square that is cut out."""
_COLOUR, _SHIFT, _CUT = slice(0, 3), slice(3, 5), slice(5, 7)  # each change's columns of luck


def augment_image(image: Image, luck: Luck, changes: Sequence[Change]) -> Image:
    """Change each image as its row of luck says; what moves in, and what is cut out, is mid-grey."""
    if "colour" in changes:
        image = _recoloured(image, luck[:, _COLOUR])
    return _moved(image, luck, changes)


def augment_mask(mask: Mask, luck: Luck, changes: Sequence[Change]) -> Mask:
    """Move each mask as `augment_image` moves its image; what moves in, and what is cut out, is no hole."""
    return _moved(mask, luck, changes)


def _moved(picture: Tensor, luck: Luck, changes: Sequence[Change]) -> Tensor:
    if "translation" in changes:
        picture = _shifted(picture, luck[:, _SHIFT])
    return _cut(picture, luck[:, _CUT]) if "cutout" in changes else picture


def _recoloured(image: Image, luck: Float[Tensor, "batch 3"]) -> Image:
    """Brightness by -0.5 to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = (luck[:, i, None, None, None].to(image.dtype) for i in range(3))
    image = image + (brightness - 0.5)
    grey = image.mean(dim=1, keepdim=True)
    image = (image - grey) * (2.0 * saturation) + grey
    middle = image.mean(dim=(1, 2, 3), keepdim=True)
    return (image - middle) * (contrast + 0.5) + middle


def _shifted(picture: Tensor, luck: Float[Tensor, "batch 2"]) -> Tensor:
    """Move by up to an eighth of each side."""
    for dim, draw in ((2, luck[:, 0]), (3, luck[:, 1])):
        side = picture.shape[dim]
        reach = int(side * SHIFT + 0.5)
        by = (draw * (2 * reach + 1)).long() - reach
        places = torch.arange(side, device=picture.device) + by[:, None]
        shape = [len(picture), 1, 1, 1]
        shape[dim] = side
        inside = ((places >= 0) & (places < side)).view(shape)
        index = places.clamp(0, side - 1).view(shape).expand_as(picture)
        picture = torch.where(
            inside, picture.gather(dim, index), torch.zeros((), dtype=picture.dtype, device=picture.device)
        )
    return picture


def _cut(picture: Tensor, luck: Float[Tensor, "batch 2"]) -> Tensor:
    """Blank a square, whose middle lies anywhere in the picture."""
    kept = torch.zeros((), device=picture.device, dtype=torch.bool)
    for dim, draw in ((2, luck[:, 0]), (3, luck[:, 1])):
        side = picture.shape[dim]
        shape = [len(picture), 1, 1, 1]
        shape[dim] = side
        places = torch.arange(side, device=picture.device) + 0.5
        kept = kept | ((places - (draw * side)[:, None]).abs() > side * CUT / 2).view(shape)
    return torch.where(kept, picture, torch.zeros((), dtype=picture.dtype, device=picture.device))
