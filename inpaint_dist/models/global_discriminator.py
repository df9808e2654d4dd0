"""One score for the whole picture: StyleGAN2's discriminator, which also sees how a batch varies."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import EqualisedConv2d, pooled


@dataclass(frozen=True, kw_only=True)
class GlobalDiscriminatorConfig:
    """Residual blocks, minibatch deviation, a mean over 4x4 cells, one score (Karras et al., Analyzing and Improving
    the Image Quality of StyleGAN, 2020, figure 7), rates equalised. Without its blur before a halving (means of four
    pixels here) and lazy R1's correction of Adam."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512, 512)
    """Channels at full size and after each halving."""
    group: int = 4
    """Pictures over which the deviation is taken; where they do not divide the batch, the nearest number that does."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise UsageError(f"--discriminator.channels {self.channels}: give at least two numbers, each at least 1")
        if self.group < 1:
            raise UsageError(f"--discriminator.group {self.group}: give at least 1")

    @property
    def sigmoid(self) -> bool:
        """Whether the scores are squashed to 0..1: never."""
        return False

    def build(self) -> "GlobalDiscriminator":
        """Make the network."""
        return GlobalDiscriminator(self)


class GlobalDiscriminator(nn.Module):
    """Image and mask → one raw score a picture."""

    def __init__(self, config: GlobalDiscriminatorConfig) -> None:
        super().__init__()
        widths = config.channels
        self.smallest_size = 2 ** (len(widths) - 1)
        self.stem = nn.Sequential(EqualisedConv2d(4, widths[0], 1), nn.LeakyReLU(0.2))
        self.blocks = nn.ModuleList(_Halving(a, b) for a, b in pairwise(widths))
        self.deviation = MinibatchDeviation(config.group)
        self.last = nn.Sequential(EqualisedConv2d(widths[-1] + 1, widths[-1], 3), nn.LeakyReLU(0.2))
        self.to_score = nn.Sequential(
            nn.Flatten(),
            nn.Unflatten(1, (16 * widths[-1], 1, 1)),
            EqualisedConv2d(16 * widths[-1], widths[-1], 1),
            nn.LeakyReLU(0.2),
            EqualisedConv2d(widths[-1], 1, 1, gain=1.0),
        )

    def forward(self, image: Image, mask: Mask) -> Judgement:
        """Score (B, 3, H, W) in [-1, 1]: a raw score (B, 1, 1, 1), high where the picture looks real."""
        features: list[Tensor] = [self.stem(torch.cat([image, mask.to(image.dtype)], dim=1))]
        for block in self.blocks:
            features.append(block(features[-1]))
        last = pooled(self.last(self.deviation(features[-1])), 4)
        return Judgement(self.to_score(last), tuple(features[1:]))


class MinibatchDeviation(nn.Module):
    """One more channel: how much the pictures of a group differ (Karras et al., Progressive Growing of GANs, 2018,
    section 3)."""

    has_batch_statistics = True  # what models.blocks looks for

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C + 1, h, w). Pictures B/G apart form a group of G."""
        count, _, height, width = features.shape
        divisors = [g for g in range(min(2, count), count + 1) if count % g == 0]
        group = min(divisors, key=lambda g: abs(g - self.group))
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        apart = wide.unflatten(0, (group, count // group)).var(dim=0, correction=0)
        told = (apart + 1e-8).sqrt().mean((1, 2, 3)).repeat(group).to(features.dtype)
        return torch.cat([features, told[:, None, None, None].expand(-1, 1, height, width)], dim=1)


class _Halving(nn.Module):
    """Two convolutions and a halving, beside a halved identity: (B, C, H, W) → (B, C', H/2, W/2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = EqualisedConv2d(channels_in, channels_in, 3)
        self.second = EqualisedConv2d(channels_in, channels_out, 3)
        self.identity = EqualisedConv2d(channels_in, channels_out, 1, bias=False, gain=1.0)

    def forward(self, features: Tensor) -> Tensor:
        changed = F.leaky_relu(self.first(features), 0.2)
        changed = F.leaky_relu(self.second(F.avg_pool2d(changed, 2)), 0.2)
        return (changed + self.identity(F.avg_pool2d(features, 2))) * 0.5**0.5
