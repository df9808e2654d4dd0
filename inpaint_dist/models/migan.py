"""MI-GAN's generator: depthwise separable convolutions, small enough for phones."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import EqualisedConv2d


@dataclass(frozen=True, kw_only=True)
class MIGANConfig:
    """U-Net of depthwise separable convolutions (Sargsyan et al., MI-GAN: A Simple Baseline for Image Inpainting on
    Mobile Devices, 2023, section 3), trained here without the teacher."""

    channels: tuple[int, ...] = (128, 256, 512, 512, 512, 512, 512)
    """Channels at full size and after each halving."""
    branches: int = 3
    """Depthwise kernels that are summed to one, which is brought to unit length (section 3.3, re-parametrisation).
    Their gradients are the same, so under Adam they act as a larger rate."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise UsageError(f"--generator.channels {self.channels}: give at least two numbers, each at least 1")
        if self.branches < 1:
            raise UsageError(f"--generator.branches {self.branches}: give at least 1")

    def build(self) -> "MIGANGenerator":
        """Make the network."""
        return MIGANGenerator(self)


class MIGANGenerator(nn.Module):
    """Photo without its hole + mask → whole picture, as a sum of pictures of all sizes."""

    def __init__(self, config: MIGANConfig) -> None:
        super().__init__()
        widths, branches = config.channels, config.branches
        self.size_multiple = 2 ** (len(widths) - 1)
        self.stem = nn.Sequential(EqualisedConv2d(4, widths[0], 1), _activation())
        pairs = list(zip(widths, (*widths[1:], widths[-1]), strict=True))
        self.encoder = nn.ModuleList(
            nn.Sequential(Separable(a, a, branches), Separable(a, b, branches, halve=level < len(widths) - 1))
            for level, (a, b) in enumerate(pairs)
        )
        self.deepest = Separable(widths[-1], widths[-1], branches)
        self.decoder = nn.ModuleList(
            nn.ModuleList([Separable(b, a, branches, double=True), Separable(a, a, branches)])
            for a, b in reversed(pairs[:-1])
        )
        self.to_rgb = nn.ModuleList(EqualisedConv2d(width, 3, 1, gain=1.0) for width in reversed(widths))

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W) from the masked photo (0 in the hole) and its mask (1 = hole).

        The range is [-1, 1] where training has come to it: nothing bounds a sum of pictures. Under a tanh, the first
        steps of the recipe's rate end in saturation, and no gradient leads out of it.
        """
        features: Tensor = self.stem(torch.cat([masked, mask], dim=1))
        skips: list[Tensor] = []
        for first, second in self.encoder:  # pyright: ignore[reportGeneralTypeIssues]
            skips.append(first(features))
            features = second(skips[-1])
        features = self.deepest(features + skips.pop())
        picture: Tensor = self.to_rgb[0](features)
        for (doubling, second), to_rgb in zip(self.decoder, self.to_rgb[1:], strict=True):  # pyright: ignore
            features = second(doubling(features) + skips.pop())
            picture = _twice(picture) + to_rgb(features)
        return picture


class Separable(nn.Module):
    """A depthwise 3x3 convolution, the unit-length sum of several kernels, then a 1x1 convolution; each with an
    activation."""

    def __init__(
        self, channels_in: int, channels_out: int, branches: int, *, halve: bool = False, double: bool = False
    ) -> None:
        super().__init__()
        bound = 1.0 / 3.0  # of a Conv2d with 9 inputs
        self.weight = nn.Parameter(torch.empty(branches, channels_in, 9).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(branches, channels_in).uniform_(-bound, bound))
        self.pointwise = EqualisedConv2d(channels_in, channels_out, 1)
        self.activation = _activation()
        self._halve, self._double = halve, double

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W), half or twice as large where asked for."""
        if self._double:
            features = _twice(features)
        weight, bias = F.normalize(self.weight.sum(0), dim=1).view(-1, 1, 3, 3), self.bias.sum(0)
        features = self.activation(F.conv2d(features, weight, bias, padding=1, groups=len(weight)))
        if self._halve:
            features = F.avg_pool2d(features, 2)
        return self.activation(self.pointwise(features))


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.2)


def _twice(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
