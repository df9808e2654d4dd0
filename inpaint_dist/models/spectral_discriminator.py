"""Patch discriminators whose layers are bounded by spectral normalisation: DeepFillv2's and AOT-GAN's."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import spectral_norm


@dataclass(frozen=True, kw_only=True)
class SpectralDiscriminatorConfig:
    """Conv2d + LeakyReLU, each weight divided by its largest singular value (Miyato et al., Spectral Normalization for
    Generative Adversarial Networks, 2018)."""

    channels: tuple[int, ...] = (64, 128, 256, 256, 256, 256)
    """Channels of the layers."""
    kernel: int = 5
    """Side of their kernels."""
    halvings: int = 6
    """How many of the layers, from the first, halve the picture; the others keep its size."""
    sees_mask: bool = True
    """Whether it is told where the hole is."""
    scores: int = 0
    """Maps of scores from one more layer, not normalised; 0: every channel of the last layer is a map of scores
    (SN-PatchGAN: Yu et al., Free-Form Image Inpainting with Gated Convolution, 2019, section 3.3)."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--discriminator.channels {self.channels}: give at least one number, each at least 1")
        if not 1 <= self.halvings <= len(self.channels):
            raise UsageError(f"--discriminator.halvings {self.halvings}: give 1 to {len(self.channels)}")
        if self.kernel < 2:
            raise UsageError(f"--discriminator.kernel {self.kernel}: give at least 2")
        if self.scores < 0:
            raise UsageError(f"--discriminator.scores {self.scores}: give 0 or more")

    @property
    def sigmoid(self) -> bool:
        """Whether the scores are squashed to 0..1: never."""
        return False

    def build(self) -> "SpectralDiscriminator":
        """Make the network."""
        return SpectralDiscriminator(self)


def _smallest_size(config: SpectralDiscriminatorConfig) -> int:
    """Pixels of a side of the smallest picture that leaves something at every layer."""
    strides = [2] * config.halvings + [1] * (len(config.channels) - config.halvings + bool(config.scores))
    slack = config.kernel - 2 * ((config.kernel - 1) // 2)  # what a layer takes of its input before its stride
    size = 1
    for stride in reversed(strides):
        size = (size - 1) * stride + slack
    return size


class SpectralDiscriminator(nn.Module):
    """Image, and mask if it is told → raw scores a patch. No batch statistics."""

    def __init__(self, config: SpectralDiscriminatorConfig) -> None:
        super().__init__()
        self.sees_mask = config.sees_mask
        self.smallest_size = _smallest_size(config)
        entry = 4 if config.sees_mask else 3
        padding = (config.kernel - 1) // 2
        convolutions = [
            nn.Conv2d(a, b, config.kernel, stride=2 if level < config.halvings else 1, padding=padding)
            for level, (a, b) in enumerate(pairwise((entry, *config.channels)))
        ]
        self.layers = nn.ModuleList(nn.Sequential(spectral_norm(c), nn.LeakyReLU(0.2)) for c in convolutions)
        self.to_score = (
            nn.Conv2d(config.channels[-1], config.scores, config.kernel, padding=padding) if config.scores else None
        )

    def forward(self, image: Image, mask: Mask) -> Judgement:
        """Score (B, 3, H, W) in [-1, 1]: raw scores (B, maps, about H/2^n, W/2^n), high where a patch looks real."""
        features: list[Tensor] = []
        entry = torch.cat([image, mask.to(image.dtype)], dim=1) if self.sees_mask else image
        for layer in self.layers:
            features.append(layer(features[-1] if features else entry))
        if self.to_score is None:
            return Judgement(features[-1], tuple(features[:-1]))
        return Judgement(self.to_score(features[-1]), tuple(features))
