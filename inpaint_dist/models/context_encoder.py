"""The context encoder: a bottleneck through which everything passes, of pictures of one fixed size."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import down


@dataclass(frozen=True, kw_only=True)
class ContextEncoderConfig:
    """Encoder, channel-wise fully connected layer, decoder (Pathak et al., Context Encoders, 2016, section 3.1)."""

    size: int = 256
    """Pixels of a side: the fully connected layer takes no other."""
    channels: tuple[int, ...] = (64, 64, 128, 256, 512)
    """Channels after each halving of the picture; the decoder has them in reverse."""
    bottleneck: int = 3750
    """Channels between encoder and decoder. The paper has 4,000 for its 128 pixels; the channel-wise layer of 256
    pixels is paid for by these."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--generator.channels {self.channels}: give at least one number, each at least 1")
        if self.bottleneck < 1:
            raise UsageError(f"--generator.bottleneck {self.bottleneck}: give at least 1")
        if self.size < 1 or self.size % 2 ** len(self.channels):
            raise UsageError(f"--generator.size {self.size}: give a multiple of {2 ** len(self.channels)}")

    def build(self) -> "ContextEncoder":
        """Make the network."""
        return ContextEncoder(self)


class ContextEncoder(nn.Module):
    """Photo without its hole + mask → whole picture.

    Pictures of other sizes are brought to its own and back, which is good enough for use; training refuses them.
    """

    size_multiple = 1

    def __init__(self, config: ContextEncoderConfig) -> None:
        super().__init__()
        widths = config.channels
        self.fixed_size, self.deepest = config.size, 2 ** len(widths)
        self.encoder = nn.Sequential(
            *(down(a, b, norm=level > 0) for level, (a, b) in enumerate(pairwise((4, *widths))))
        )
        places = (config.size // 2 ** len(widths)) ** 2
        self.within_channel = ChannelwiseLinear(widths[-1], places)
        self.across_channels = nn.Sequential(nn.Conv2d(widths[-1], config.bottleneck, 1), nn.ReLU())
        decoder = [_up(a, b) for a, b in pairwise((config.bottleneck, *widths[:0:-1]))]
        self.decoder = nn.Sequential(*decoder)
        self.to_rgb = nn.ConvTranspose2d(widths[1] if len(widths) > 1 else config.bottleneck, 3, 4, stride=2, padding=1)

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W) in [-1, 1] from the masked photo (0 in the hole) and its mask (1 = hole)."""
        entry, sides = torch.cat([masked, mask], dim=1), mask.shape[2:]
        own = (self.fixed_size, self.fixed_size)
        if sides != own:
            entry = F.interpolate(entry, own, mode="bilinear", align_corners=False, antialias=True)
        features = self.across_channels(self.within_channel(self.encoder(entry)))
        made = torch.tanh(self.to_rgb(self.decoder(features)))
        return made if sides == own else F.interpolate(made, sides, mode="bilinear", align_corners=False)


class ChannelwiseLinear(nn.Module):
    """A fully connected layer of each channel's own over its places, and nothing between channels."""

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, places, places))
        self.bias = nn.Parameter(torch.zeros(channels, places))
        bound = places**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) → the same, h x w being `places`."""
        flat = torch.einsum("bcp,cpq->bcq", features.flatten(2), self.weight) + self.bias
        return flat.unflatten(2, features.shape[2:])


def _up(channels_in: int, channels_out: int) -> nn.Sequential:
    """ConvTranspose2d (kernel 4, stride 2) + BatchNorm2d + ReLU: (B, C, H, W) → (B, C', 2H, 2W)."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
