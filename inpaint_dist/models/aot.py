"""AOT-GAN's generator: blocks that look at several distances at once, and decide place by place what to change."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AOTConfig:
    """Aggregated contextual transformations (Zeng et al., Aggregated Contextual Transformations for High-Resolution
    Image Inpainting, 2021, section 3.1)."""

    base_channels: int = 64
    """Channels at full size; two halvings double them each."""
    blocks: int = 8
    """Blocks at a quarter of the size."""
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    """Dilation of each branch of a block; the channels are shared out among them."""

    def __post_init__(self) -> None:
        for name in ("base_channels", "blocks"):
            if getattr(self, name) < 1:
                raise UsageError(f"--generator.{name.replace('_', '-')} {getattr(self, name)}: give at least 1")
        if not self.dilations or min(self.dilations) < 1:
            raise UsageError(f"--generator.dilations {self.dilations}: give at least one number, each at least 1")
        if 4 * self.base_channels % len(self.dilations):
            raise UsageError(
                f"--generator.dilations {self.dilations}: their number has to divide {4 * self.base_channels} channels"
            )

    def build(self) -> "AOTGenerator":
        """Make the network."""
        return AOTGenerator(self)


class AOTGenerator(nn.Module):
    """Photo without its hole + mask → whole picture. No normalisation but that of the gates."""

    size_multiple = 4

    def __init__(self, config: AOTConfig) -> None:
        super().__init__()
        width = config.base_channels
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(4, width, 7),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(AOTBlock(4 * width, config.dilations) for _ in range(config.blocks)))
        self.decoder = nn.Sequential(
            *_doubled(4 * width, 2 * width), *_doubled(2 * width, width), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W) in [-1, 1] from the masked photo (0 in the hole) and its mask (1 = hole)."""
        features = self.blocks(self.encoder(torch.cat([masked, mask], dim=1)))
        return torch.tanh(self.decoder(features))


class AOTBlock(nn.Module):
    """Split, transform at each dilation, aggregate, and mix with the identity by a gate for each place and channel.

    The paper's equation 1, x1 * g + x2 * (1 - g). As in its authors' code the gate is spread over the places of each
    channel before its sigmoid, to mean -5 and deviation 10, so that most places keep what they have.
    """

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        part = channels // len(dilations)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, part, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.aggregate = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) → the same."""
        changed = self.aggregate(torch.cat([F.relu(branch(features)) for branch in self.branches], dim=1))
        share = torch.sigmoid(_spread(self.gate(features))).to(features.dtype)
        return features + share * (changed.to(features.dtype) - features)


def _spread(values: Tensor) -> Tensor:
    """Mean 0 and deviation 10, less 5, over the places of each channel: in float32 or wider."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    deviation, mean = torch.std_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    return 10.0 * (wide - mean) / (deviation + 1e-9) - 5.0


def _doubled(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Bilinear doubling, Conv2d (kernel 3), ReLU."""
    doubling = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return [doubling, nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU()]
