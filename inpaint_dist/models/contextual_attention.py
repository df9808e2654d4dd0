"""Contextual attention: a hole filled with patches of what is known, weighted by how alike they are."""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Features: TypeAlias = Float[Tensor, "batch channels rows columns"]
Alike: TypeAlias = Float[Tensor, "batch rows columns source_rows source_columns"]
"""How alike each place is to each source."""

_SHARPNESS = 10.0
"""The softmax's factor (Yu et al., 2018, section 4.1)."""


def contextual_attention(features: Features, hole: Float[Tensor, "batch 1 rows columns"]) -> Features:
    """Rebuild every place of the features from the known patches that look like it.

    Yu et al., Generative Image Inpainting with Contextual Attention, 2018, section 4.1: cosine similarity of 3x3
    patches (eq. 1) at half the resolution, to save memory; propagated along rows and columns (eq. 2); softmax over the
    known patches; then patches of 4x4 at full resolution are laid over one another by these weights. All of a batch at
    once.

    Args:
        features: rows and columns even.
        hole: of the features' size, 1 where a place knows nothing. A picture without any known patch is rebuilt from
            all of its patches alike.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    small, small_hole = wide[:, :, ::2, ::2], hole[:, :, ::2, ::2]
    rows, columns = small.shape[2:]
    patches = F.unfold(small, 3, padding=1)  # (B, 9C, places)
    units = patches / patches.square().sum(1, keepdim=True).clamp_min(1e-8).sqrt()
    alike = torch.einsum("bcq,bcs->bqs", patches, units)  # of each place to each source
    alike = _propagated(alike.view(len(alike), rows, columns, rows, columns))
    known = F.max_pool2d(small_hole, 3, stride=1, padding=1).flatten(1)[:, None] < 0.5  # (B, 1, sources)
    usable = known | ~known.any(2, keepdim=True)
    weights = torch.softmax((_SHARPNESS * alike.flatten(3).flatten(1, 2)).masked_fill(~usable, -torch.inf), dim=2)
    sources = F.unfold(wide, 4, stride=2, padding=1)  # (B, 16C, sources)
    laid = torch.einsum("bqs,bcs->bcq", weights, sources)
    return (F.fold(laid, wide.shape[2:], 4, stride=2, padding=1) / 4.0).to(features.dtype)


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
