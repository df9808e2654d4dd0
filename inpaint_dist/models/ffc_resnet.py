"""LaMa's generator: residual blocks of fast Fourier convolutions, which see the whole picture from the first one on.

Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier Convolutions, 2022 (section 2.1); Chi et al., Fast
Fourier Convolution, 2020 (section 3).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.fourier import FFCBlock, branches, conv3, norm_and_relu


@dataclass(frozen=True, kw_only=True)
class FFCResNetConfig:
    """Three halvings, residual fast Fourier convolutions at 1/8 of the size, three doublings."""

    base_channels: int = 64
    """Channels at full size; each halving doubles them."""
    blocks: int = 9
    """Residual blocks, of two fast Fourier convolutions each."""
    halvings: int = 3
    """Halvings of the picture before the blocks."""
    global_share: float = 0.75
    """Share of the blocks' channels that go through the spectrum of the whole picture."""

    def __post_init__(self) -> None:
        for name, least in (("base_channels", 1), ("blocks", 1), ("halvings", 1)):
            if getattr(self, name) < least:
                flag = f"--generator.{name.replace('_', '-')}"
                raise UsageError(f"{flag} {getattr(self, name)}: give at least {least}")
        if self.halvings > 16:
            raise UsageError(f"--generator.halvings {self.halvings}: give at most 16")
        branches(self.channels[-1], self.global_share)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at full size and after each halving."""
        return tuple(self.base_channels * 2**level for level in range(self.halvings + 1))

    def build(self) -> "FFCResNet":
        """Make the network."""
        return FFCResNet(self)


class FFCResNet(nn.Module):
    """Photo without its hole + mask → whole picture."""

    def __init__(self, config: FFCResNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.size_multiple = 2 ** (config.halvings + 1)  # reflection needs 2 pixels at the deepest level
        widths = branches(channels[-1], config.global_share)
        self.stem = nn.Sequential(
            nn.Conv2d(4, channels[0], 7, padding=3, padding_mode="reflect", bias=False), *norm_and_relu(channels[0])
        )
        self.encoder = nn.Sequential(
            *(nn.Sequential(conv3(a, b, stride=2), *norm_and_relu(b)) for a, b in pairwise(channels[:-1]))
        )
        self.to_local = nn.Sequential(conv3(channels[-2], widths[0], stride=2), *norm_and_relu(widths[0]))
        self.to_global = nn.Sequential(conv3(channels[-2], widths[1], stride=2), *norm_and_relu(widths[1]))
        self.blocks = nn.ModuleList(FFCBlock(*widths) for _ in range(config.blocks))
        self.decoder = nn.Sequential(*(_up3(a, b) for a, b in pairwise(channels[::-1])))
        self.to_rgb = nn.Conv2d(channels[0], 3, 7, padding=3, padding_mode="reflect")

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W) in [-1, 1] from the masked photo (0 in the hole) and its mask (1 = hole)."""
        features = self.encoder(self.stem(torch.cat([masked, mask], dim=1)))
        pair = (self.to_local(features), self.to_global(features))
        for block in self.blocks:
            pair = block(pair)
        return torch.tanh(self.to_rgb(self.decoder(torch.cat(pair, dim=1))))


def _up3(channels_in: int, channels_out: int) -> nn.Sequential:
    """ConvTranspose2d (kernel 3, stride 2) + BatchNorm2d + ReLU: (B, C, H, W) → (B, C', 2H, 2W)."""
    convolution = nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(convolution, *norm_and_relu(channels_out))
