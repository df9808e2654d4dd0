"""A discriminator that looks at pictures through a network that knows photos already."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.models.blocks import pooled, spectral_norm
from inpaint_dist.models.efficientnet_lite import CHANNELS, EfficientNetLite0
from inpaint_dist.pretrained import EFFICIENTNET_LITE0, find_pretrained, read_pretrained

_SIDE = 4
"""Rows and columns of each map of scores."""


@dataclass(frozen=True, kw_only=True)
class ProjectedDiscriminatorConfig:
    """Frozen EfficientNet-lite0 features, mixed at random over channels and scales, a small discriminator for each of
    four scales (Sauer et al., Projected GANs Converge Faster, 2021, section 3)."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of the mixed features, from 1/4 to 1/32 of the picture's size."""
    features: Literal["pretrained", "random"] = "pretrained"
    """pretrained: on ImageNet; random: weights drawn from the run's seed, for comparison."""
    weights: Path | None = None
    """EfficientNet-lite0's file of weights; None: torch.hub's cache, or the package that brings it."""

    def __post_init__(self) -> None:
        if len(self.channels) != len(CHANNELS) or min(self.channels) < 1:
            raise UsageError(f"--discriminator.channels {self.channels}: give four numbers, each at least 1")

    @property
    def sigmoid(self) -> bool:
        """Whether the scores are squashed to 0..1: never."""
        return False

    def build(self) -> "ProjectedDiscriminator":
        """Make the network.

        Raises:
            UserError: the weights are nowhere, or of another network.
        """
        if self.features == "random":
            return ProjectedDiscriminator(self, EfficientNetLite0(None))
        flag = "--discriminator.weights"
        path = find_pretrained(EFFICIENTNET_LITE0, self.weights, flag)
        try:
            return ProjectedDiscriminator(self, EfficientNetLite0(read_pretrained(path)))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: not {EFFICIENTNET_LITE0.name} ({error}); name its file by {flag}") from error


class ProjectedDiscriminator(nn.Module):
    """Image → one map of 4x4 raw scores for each of four scales. What is frozen is in buffers."""

    smallest_size = 32

    def __init__(self, config: ProjectedDiscriminatorConfig, trunk: EfficientNetLite0) -> None:
        super().__init__()
        self.trunk = trunk
        self.mixing = _Mixing(config.channels)
        self.judges = nn.ModuleList(_Judge(config.channels[scale:]) for scale in range(len(CHANNELS)))

    def forward(self, image: Image, mask: Mask) -> Judgement:  # noqa: ARG002 - it looks at the picture alone
        """Score (B, 3, H, W) in [-1, 1]: raw scores (B, 4, 4, 4), high where the picture looks real."""
        mixed = self.mixing(self.trunk(image))
        scores = [judge(features) for judge, features in zip(self.judges, mixed, strict=True)]
        return Judgement(torch.cat(scores, dim=1), tuple(mixed))


class _Mixing(nn.Module):
    """Random 1x1 convolutions over channels, then from the smallest scale up a random 3x3 one and a doubling, added."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self._count = len(channels)
        for scale, (found, wanted) in enumerate(zip(CHANNELS, channels, strict=True)):
            self.register_buffer(f"across_{scale}", _random(wanted, found, 1))
            if scale:
                self.register_buffer(f"up_{scale}", _random(channels[scale - 1], wanted, 3))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Largest first, in and out."""
        mixed = [F.conv2d(part, getattr(self, f"across_{scale}")) for scale, part in enumerate(features)]
        for scale in range(self._count - 1, 0, -1):
            risen = F.conv2d(mixed[scale], getattr(self, f"up_{scale}"), padding=1)
            sides = mixed[scale - 1].shape[2:]
            mixed[scale - 1] = mixed[scale - 1] + F.interpolate(risen, sides, mode="bilinear", align_corners=False)
        return mixed


def _random(channels_out: int, channels_in: int, kernel: int) -> Tensor:
    weight = torch.empty(channels_out, channels_in, kernel, kernel)
    return nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="linear")


class _Judge(nn.Module):
    """Spectrally normalised convolutions, which halve, to a map of 4x4 scores."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels_out in pairwise(channels):
            convolution = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)
            layers += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.to_score = spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) → (B, 1, 4, 4)."""
        return pooled(self.to_score(self.layers(features)), _SIDE)
