"""The seed's blocks with skip connections, working on a push-pull fill of the hole."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import down, up
from inpaint_dist.models.push_pull import push_pull


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """U-Net on a push-pull base: it predicts what the base lacks."""

    channels: tuple[int, ...] = (32, 64, 128, 256, 256)
    """Channels after each halving of the picture; five halvings bring 256 pixels to 8."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--generator.channels {self.channels}: give at least one number, each at least 1")

    def build(self) -> "UNet":
        """Make the network."""
        return UNet(self)


class UNet(nn.Module):
    """Push-pull fill + mask → residual, added to the fill (U-Net: Ronneberger et al., 2015).

    The last layer starts at zero, so that an untrained network gives the push-pull fill: training can only start from
    there. The output may leave [-1, 1] by a little; `composite` clamps it.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.size_multiple = 2 ** len(channels)
        self.encoder = nn.ModuleList(
            down(a, b, norm=level > 0) for level, (a, b) in enumerate(pairwise((4, *channels)))
        )
        # Each decoder level but the deepest sees the encoder's features of its own size beside those from below.
        # The last one, at full resolution, is half as wide as the first: there its channels cost the most.
        outputs = (*channels[-2::-1], max(1, channels[0] // 2))
        inputs = (channels[-1], *(2 * width for width in channels[-2::-1]))
        self.decoder = nn.ModuleList(up(a, b) for a, b in zip(inputs, outputs, strict=True))
        # A 3x3 convolution after the last transposed one smooths its grid, and sees the input at full resolution.
        self.to_residual = nn.Conv2d(outputs[-1] + 4, 3, 3, padding=1)
        nn.init.zeros_(self.to_residual.weight)
        nn.init.zeros_(self.to_residual.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W), about [-1, 1], from the masked photo (0 in the hole) and its mask (1 = hole)."""
        base = push_pull(masked, mask)
        entry = torch.cat([base, mask], dim=1)
        features, skips = entry, []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
        features = skips.pop()
        for level in self.decoder:
            features = level(features)
            if skips:
                features = torch.cat([features, skips.pop()], dim=1)
        return base + self.to_residual(torch.cat([features, entry], dim=1)).to(base.dtype)
