"""The first generator of the project: an encoder-decoder without skip connections."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import down, up


@dataclass(frozen=True, kw_only=True)
class SeedAutoencoderConfig:
    """Encoder of Conv2d + LeakyReLU, decoder of ConvTranspose2d + BatchNorm2d + ELU."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Channels after each halving of the picture; five halvings bring 256 pixels to 8."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--generator.channels {self.channels}: give at least one number, each at least 1")

    def build(self) -> "SeedAutoencoder":
        """Make the network."""
        return SeedAutoencoder(self)


class SeedAutoencoder(nn.Module):
    """Photo without its hole + mask → whole picture, in the manner of the context encoder (Pathak et al., 2016)."""

    def __init__(self, config: SeedAutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        self.size_multiple = 2 ** len(channels)
        self.encoder = nn.Sequential(*(down(a, b) for a, b in pairwise((4, *channels))))
        self.decoder = nn.Sequential(*(up(a, b) for a, b in pairwise(channels[::-1])))
        self.to_rgb = nn.ConvTranspose2d(channels[0], 3, 4, stride=2, padding=1)

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W) in [-1, 1] from the masked photo (0 in the hole) and its mask (1 = hole)."""
        features = self.encoder(torch.cat([masked, mask], dim=1))
        return torch.tanh(self.to_rgb(self.decoder(features)))
