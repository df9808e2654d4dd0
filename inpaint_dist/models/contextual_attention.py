"""Contextual attention: a hole filled with patches of what is known, weighted by how alike they are."""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Features: TypeAlias = Float[Tensor, "batch channels rows columns"]
Alike: TypeAlias = Float[Tensor, "batch rows columns source_rows source_columns"]
"""How alike each place is to each source."""

_SHARPNESS = 10.0
"""The softmax's factor (Yu et al., 2018, section 4.1)."""

_AT_ONCE = 2**24
"""Similarities that are held at once, if that is at least a row of them: a large photo would have too many."""


def contextual_attention(features: Features, hole: Float[Tensor, "batch 1 rows columns"]) -> Features:
    """Rebuild every place of the features from the known patches that look like it.

    Yu et al., Generative Image Inpainting with Contextual Attention, 2018, section 4.1: how alike 3x3 patches are, at
    half the resolution to save memory, the sources' of unit length as in the authors' code (the cosine of eq. 1 but for
    the place's own length); propagated along rows and columns (eq. 2); softmax over the known sources; then their 4x4
    patches at full resolution are laid over one another by these weights. All of a batch at once, in float32 or wider
    whatever the autocast, a band of rows at a time.

    Args:
        features: rows and columns even.
        hole: of the features' size, 1 where a place knows nothing. A picture without any known patch is rebuilt from
            all of its patches alike.
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        small = wide[:, :, ::2, ::2]
        patches = F.unfold(small, 3, padding=1)  # (B, 9C, places)
        units = patches / patches.square().sum(1, keepdim=True).clamp_min(1e-8).sqrt()
        sources = F.unfold(wide, 4, stride=2, padding=1)  # (B, 16C, sources)
        usable = _usable(hole)
        rows, columns = small.shape[2:]
        band = max(1, _AT_ONCE // (len(small) * rows * columns * columns))
        laid = [
            _laid(patches, units, sources, usable, (rows, columns), range(start, min(start + band, rows)))
            for start in range(0, rows, band)
        ]
        rebuilt = F.fold(torch.cat(laid, dim=2), wide.shape[2:], 4, stride=2, padding=1) / 4.0
    return rebuilt.to(features.dtype)


def _usable(hole: Float[Tensor, "batch 1 rows columns"]) -> Bool[Tensor, "batch 1 sources"]:
    """Whether a source, in its 3x3 patch at half the size and in its 4x4 patch, is free of holes; else all are."""
    small = F.max_pool2d(hole[:, :, ::2, ::2], 3, stride=1, padding=1)
    full = F.max_pool2d(F.pad(hole, (1, 1, 1, 1)), 4, stride=2)
    known = (torch.maximum(small, full) < 0.5).flatten(1)[:, None]
    return known | ~known.any(2, keepdim=True)


def _laid(
    patches: Tensor, units: Tensor, sources: Tensor, usable: Tensor, sides: tuple[int, int], band: range
) -> Float[Tensor, "batch values places"]:
    """The patches that are laid at the places of a band of rows; a row more on both sides is what propagation needs."""
    rows, columns = sides
    first, last = max(0, band.start - 1), min(rows, band.stop + 1)
    alike = torch.einsum("bcq,bcs->bqs", patches[:, :, first * columns : last * columns], units)
    alike = _propagated(alike.view(len(alike), last - first, columns, rows, columns))[:, band.start - first :]
    alike = alike[:, : len(band)].flatten(3).flatten(1, 2)
    weights = torch.softmax((_SHARPNESS * alike).masked_fill(~usable, -torch.inf), dim=2)
    return torch.einsum("bqs,bcs->bcq", weights, sources)


def _propagated(alike: Alike) -> Alike:
    """Add what the neighbours to both sides say of the sources' neighbours to the same side; then above and below."""
    for place, source in ((2, 4), (1, 3)):
        alike = alike + _shifted(alike, place, source, 1) + _shifted(alike, place, source, -1)
    return alike


def _shifted(alike: Alike, place: int, source: int, by: int) -> Alike:
    """Both dimensions moved by one, 0 where nothing comes from."""
    moved = torch.zeros_like(alike)
    here, there = slice(max(by, 0), None if by > 0 else by), slice(max(-by, 0), None if by < 0 else -by)
    target, origin = [slice(None)] * 5, [slice(None)] * 5
    for dim in (place, source):
        target[dim], origin[dim] = here, there
    moved[tuple(target)] = alike[tuple(origin)]
    return moved
