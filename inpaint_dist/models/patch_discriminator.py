"""A discriminator that scores patches: its output is a 2-D map of numbers."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import down


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """Conv2d + LeakyReLU, ending in a map of scores (PatchGAN: Isola et al., Image-to-Image Translation, 2017)."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels after each halving of the picture."""
    sigmoid: bool = True
    """Squash the scores to 0..1 (real near 1). Least squares takes it; hinge and non-saturating losses want it off."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--discriminator.channels {self.channels}: give at least one number, each at least 1")

    def build(self) -> "PatchDiscriminator":
        """Make the network."""
        return PatchDiscriminator(self)


class PatchDiscriminator(nn.Module):
    """Image → one score a patch. No batch statistics: a photo's scores do not depend on its neighbours in the batch."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.smallest_size = 2 ** len(config.channels)
        self.features = nn.Sequential(*(down(a, b) for a, b in pairwise((3, *config.channels))))
        self.to_score = nn.Conv2d(config.channels[-1], 1, 3, padding=1)
        self.sigmoid = config.sigmoid

    def forward(self, image: Image, mask: Mask) -> Judgement:  # noqa: ARG002 - it looks at the picture alone
        """Score (B, 3, H, W) in [-1, 1]: (B, 1, H/2^n, W/2^n), near 1 where a patch looks real."""
        features: list[Tensor] = []
        for layer in self.features:
            features.append(layer(features[-1] if features else image))
        scores = self.to_score(features[-1])
        return Judgement(torch.sigmoid(scores) if self.sigmoid else scores, tuple(features))
