"""How healthy completions look, told from pictures alone: colour, seam, sharpness and grid of what fills the hole.

Each figure compares the composite with its photo at the same pixels, and is a mean over images of a per-image figure,
so that N ranks of batch B equal one of batch N·B. An image whose hole is too small for a figure, or leaves nothing
known beside it, counts as healthy. Sums run in float32 or wider, and nothing here waits for the device.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from inpaint_dist.batch import Image, Mask

SMALLEST = 16
"""Fewest pixels, or pairs of neighbours, of an image that a figure is taken from."""
FLOOR = 0.25 / 127.5
"""A quarter of one of 256 levels, in units of [-1, 1]: added above and below each ratio, for photos that are flat."""
PERIOD = 4
"""Pixels after which the grid looked for repeats; one of 2 pixels is part of it."""
RING = 32
"""The known ring around a hole is as wide as the picture divided by this."""


def picture_health(composite: Image, image: Image, mask: Mask) -> dict[str, Float[Tensor, ""]]:
    """Figures of composites against their photos, as scalars on their device.

    Returns:
        health/colour_gap: how much further the mean colour of the hole lies from that of the known ring around it than
            it does in the photo, where it does: mean over the channels, in units of [-1, 1]; 0: no further.
        health/border: mean step from a pixel of the hole to a known neighbour, over the photo's own step there; 1: no
            seam.
        health/sharpness: mean absolute Laplacian inside the hole, over the photo's own; 1: as sharp, near 0: blurred.
        health/checkerboard: strength of a grid of 2 or 4 pixels inside the hole, over the photo's own; 1, or less in a
            blurred hole: none (Odena et al., Deconvolution and Checkerboard Artifacts, 2016).
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        wide = torch.promote_types(image.dtype, torch.float32)
        pictures, hole = (composite.to(wide), image.to(wide)), mask.to(wide)
        inside, edges = _inside(hole), _edges(hole)
        bends = [_laplacian(picture) for picture in pictures]
        return {
            "health/colour_gap": _excess([_gap(picture, hole) for picture in pictures]),
            "health/border": _ratio([_step(picture, edges) for picture in pictures], _count(*edges)),
            "health/sharpness": _ratio([_mean(bend.abs(), inside) for bend in bends], _count(inside)),
            "health/checkerboard": _ratio([_grid(bend, inside) for bend in bends], _count(inside)),
        }


def _ratio(figures: list[Tensor], count: Tensor) -> Tensor:
    """Mean over images of the composite's figure (B,) over the photo's (B,); 1 where it was taken from too few."""
    mine, theirs = figures
    return torch.where(count >= SMALLEST, (mine + FLOOR) / (theirs + FLOOR), 1.0).mean()


def _excess(figures: list[Tensor]) -> Tensor:
    """Mean over images of what the composite's figure (B,) exceeds the photo's (B,) by."""
    mine, theirs = figures
    return (mine - theirs).clamp_min(0.0).mean()


def _count(*masks: Tensor) -> Tensor:
    """Pixels of masks (B, 1, ., .), all together: (B,)."""
    return torch.stack([mask.sum((1, 2, 3)) for mask in masks]).sum(0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, C, H, W) over the channels and the pixels of a mask (B, 1, H, W): (B,)."""
    return (values.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / _count(mask).clamp_min(1.0)


def _gap(picture: Image, hole: Mask) -> Tensor:
    """Distance of the hole's mean colour from that of the known ring around it: (B,); 0 where either is too small."""
    width = max(1, max(hole.shape[-2:]) // RING)
    ring = F.max_pool2d(hole, 2 * width + 1, stride=1, padding=width) - hole
    colours = [(picture * part).sum((2, 3)) / _count(part).clamp_min(1.0)[:, None] for part in (hole, ring)]
    enough = torch.minimum(_count(hole), _count(ring)) >= SMALLEST
    return torch.where(enough, (colours[0] - colours[1]).abs().mean(1), 0.0)


def _edges(hole: Mask) -> tuple[Tensor, Tensor]:
    """Where a pixel of the hole and a known one lie side by side (B, 1, H, W-1), and one above the other."""
    return (hole[..., 1:] - hole[..., :-1]).abs(), (hole[..., 1:, :] - hole[..., :-1, :]).abs()


def _step(picture: Image, edges: tuple[Tensor, Tensor]) -> Tensor:
    """Mean absolute difference of the pixels on either side of the hole's border: (B,)."""
    steps = (picture[..., 1:] - picture[..., :-1], picture[..., 1:, :] - picture[..., :-1, :])
    sums = [(step.abs().mean(1, keepdim=True) * edge).sum((1, 2, 3)) for step, edge in zip(steps, edges, strict=True)]
    return torch.stack(sums).sum(0) / _count(*edges).clamp_min(1.0)


def _inside(hole: Mask) -> Tensor:
    """The hole's pixels whose four neighbours lie in it too, without the outermost of the picture: (B, 1, H-2, W-2)."""
    return (
        hole[..., 1:-1, 1:-1] * hole[..., :-2, 1:-1] * hole[..., 2:, 1:-1] * hole[..., 1:-1, :-2] * hole[..., 1:-1, 2:]
    )


def _laplacian(picture: Image) -> Tensor:
    """How far each pixel lies from the mean of its four neighbours: (B, 3, H-2, W-2)."""
    around = picture[..., :-2, 1:-1] + picture[..., 2:, 1:-1] + picture[..., 1:-1, :-2] + picture[..., 1:-1, 2:]
    return picture[..., 1:-1, 1:-1] - 0.25 * around


def _grid(bend: Tensor, inside: Tensor) -> Tensor:
    """Strength of what repeats in Laplacians (B, 3, h, w) every PERIOD pixels, over the pixels inside: (B,).

    The Laplacian is averaged over the pixels of each of the 4 x 4 places that a pixel can have in the grid; the
    strength is the root mean square of these 16 averages. By Parseval's theorem its square is the power of the
    Laplacian at the spectrum's multiples of 1/4 cycle a pixel, in either direction and both: the peaks that a grid of 2
    or 4 pixels makes. It needs no FFT, no rectangular hole, and averages away what does not keep in step with the grid.
    """
    height, width = inside.shape[-2:]
    margin = (0, -width % PERIOD, 0, -height % PERIOD)
    here, there = (F.pixel_unshuffle(F.pad(x, margin), PERIOD) for x in (inside, bend * inside))
    count = here.sum((2, 3))[:, None].clamp_min(1.0)
    average = there.sum((2, 3)).unflatten(1, (-1, PERIOD**2)) / count
    return average.square().mean((1, 2)).sqrt()
