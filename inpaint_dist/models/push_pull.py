"""Push-pull: a hole filled with nothing learned, from averages of what is around it at every scale."""

import torch
import torch.nn.functional as F

from inpaint_dist.batch import Image, Mask


def push_pull(masked: Image, mask: Mask) -> Image:
    """Fill the hole smoothly from the known pixels (Gortler et al., The Lumigraph, 1996, section 3.4).

    Push: a pyramid of averages over known pixels alone. Pull: from the coarsest level down, what a level does not know
    is taken from the level above, bilinearly. The known pixels come back unchanged; a photo that is all hole becomes 0.
    Runs in float32 (or wider) whatever the autocast: (B, 3, H, W) in [-1, 1] → the same.
    """
    with torch.autocast(masked.device.type, enabled=False):
        known = 1.0 - mask.to(torch.promote_types(mask.dtype, torch.float32))
        return _fill(masked.to(known.dtype) * known, known)


def _fill(weighted: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Fill one level of the pyramid: weighted (B, 3, h, w) = colour x known, known (B, 1, h, w) in [0, 1]."""
    height, width = known.shape[-2:]
    if height == 1 and width == 1:
        return weighted / known.clamp_min(1e-8)
    window = (min(2, height), min(2, width))
    coarse_weighted = F.avg_pool2d(weighted, window, ceil_mode=True)
    coarse_known = F.avg_pool2d(known, window, ceil_mode=True)
    # What counts is whether a coarse pixel knows anything, not how much: a quarter known is as good a colour.
    share = (coarse_known * 4.0).clamp_max(1.0)
    coarse_weighted = coarse_weighted * (share / coarse_known.clamp_min(1e-8))
    coarse = _fill(coarse_weighted, share)
    above = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return weighted + above * (1.0 - known)
