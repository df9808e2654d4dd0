"""A hole filled with the nearest known pixels: hard-edged where push-pull is soft, and as unlearned."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_dist.batch import Image, Mask

_FAR = 1e6
"""A coordinate that is farther than any pixel's."""


def nearest_fill(masked: Image, mask: Mask) -> Image:
    """Give each pixel of the hole the colour of the known pixel that is nearest to it.

    Nearest is found by jump flooding (Rong and Tan, Jump Flooding in GPU with Applications to Voronoi Diagram and
    Distance Transform, 2006), with one more pass of length 1: now and then a pixel gets its second nearest. Known
    pixels come back unchanged; a photo that is all hole becomes 0. (B, 3, H, W) in [-1, 1] → the same, in float32 or
    wider.
    """
    with torch.no_grad(), torch.autocast(masked.device.type, enabled=False):
        known = mask < 0.5
        height, width = mask.shape[-2:]
        wide = torch.promote_types(masked.dtype, torch.float32)
        grid = torch.meshgrid(
            *(torch.arange(side, device=mask.device, dtype=wide) for side in (height, width)), indexing="ij"
        )
        here = torch.stack(grid)[None]  # (1, 2, H, W): row and column
        source = torch.where(known, here, torch.full_like(here, _FAR))
        jump = 1 << max(0, max(height, width) - 1).bit_length() >> 1
        jumps = [jump >> halving for halving in range(jump.bit_length())]
        for length in [*jumps, 1]:
            source = _nearer(source, here, length)
        index = (source[:, :1] * width + source[:, 1:]).clamp_(0, height * width - 1).long()
        colours = (masked.to(wide) * known).flatten(2)
        return colours.gather(2, index.flatten(2).expand_as(colours)).view_as(masked)


def _nearer(source: Tensor, here: Tensor, length: int) -> Tensor:
    """Of a pixel's own source and those of its eight neighbours at a distance of `length`, the nearest."""
    best = (source - here).square().sum(1, keepdim=True)
    height, width = here.shape[-2:]
    around = F.pad(source, (length,) * 4, value=_FAR)
    sides = product((0, length, 2 * length), repeat=2)
    for down, right in (side for side in sides if side != (length, length)):
        other = around[:, :, down : down + height, right : right + width]
        distance = (other - here).square().sum(1, keepdim=True)
        nearer = distance < best
        source, best = torch.where(nearer, other, source), torch.where(nearer, distance, best)
    return source
