"""LaMa's generator: residual blocks of fast Fourier convolutions, which see the whole picture from the first one on.

Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier Convolutions, 2022 (section 2.1); Chi et al., Fast
Fourier Convolution, 2020 (section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Local and global features of one size: (B, L, H, W) and (B, G, H, W)."""


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
        if not (self.global_channels >= 2 and self.local_channels >= 1):
            raise UsageError(
                f"--generator.global-share {self.global_share}: of {self.channels[-1]} channels at least 2 have to be "
                "global and 1 local"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at full size and after each halving."""
        return tuple(self.base_channels * 2**level for level in range(self.halvings + 1))

    @property
    def global_channels(self) -> int:
        """The blocks' channels that are global."""
        return int(self.channels[-1] * self.global_share)

    @property
    def local_channels(self) -> int:
        """The blocks' channels that are local."""
        return self.channels[-1] - self.global_channels

    def build(self) -> "FFCResNet":
        """Make the network."""
        return FFCResNet(self)


class FFCResNet(nn.Module):
    """Photo without its hole + mask → whole picture."""

    def __init__(self, config: FFCResNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.size_multiple = 2 ** (config.halvings + 1)  # reflection needs 2 pixels at the deepest level
        widths = (config.local_channels, config.global_channels)
        self.stem = nn.Sequential(
            nn.Conv2d(4, channels[0], 7, padding=3, padding_mode="reflect", bias=False), *_norm_and_act(channels[0])
        )
        self.encoder = nn.Sequential(
            *(nn.Sequential(_conv3(a, b, stride=2), *_norm_and_act(b)) for a, b in pairwise(channels[:-1]))
        )
        self.to_local = nn.Sequential(_conv3(channels[-2], widths[0], stride=2), *_norm_and_act(widths[0]))
        self.to_global = nn.Sequential(_conv3(channels[-2], widths[1], stride=2), *_norm_and_act(widths[1]))
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


class FFCBlock(nn.Module):
    """Two fast Fourier convolutions and what came in."""

    def __init__(self, local: int, global_: int) -> None:
        super().__init__()
        self.first, self.second = FastFourierConv(local, global_), FastFourierConv(local, global_)

    def forward(self, pair: Sequence[Tensor]) -> Pair:
        """Add what two convolutions make of a pair to it."""
        local, global_ = self.second(self.first(pair))
        return pair[0] + local, pair[1] + global_


class FastFourierConv(nn.Module):
    """Each branch is made of both: by 3x3 convolutions, but for global → global, which goes through the spectrum."""

    def __init__(self, local: int, global_: int) -> None:
        super().__init__()
        self.local_to_local, self.local_to_global = _conv3(local, local), _conv3(local, global_)
        self.global_to_local, self.global_to_global = _conv3(global_, local), SpectralTransform(global_)
        self.act_local = nn.Sequential(*_norm_and_act(local))
        self.act_global = nn.Sequential(*_norm_and_act(global_))

    def forward(self, pair: Sequence[Tensor]) -> Pair:
        """Convolve a pair of (B, L, H, W) and (B, G, H, W); the sizes stay."""
        local, global_ = pair
        return (
            self.act_local(self.local_to_local(local) + self.global_to_local(global_)),
            self.act_global(self.local_to_global(local) + self.global_to_global(global_)),
        )


class SpectralTransform(nn.Module):
    """To half the channels, through the spectrum beside a path around it, and back: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), *_norm_and_act(half))
        self.spectrum = FourierUnit(half)
        self.expand = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Mix all places of the picture."""
        reduced = self.reduce(features)
        return self.expand(reduced + self.spectrum(reduced))


class FourierUnit(nn.Module):
    """A 1x1 convolution of the picture's spectrum, real and imaginary parts as channels of their own.

    The two transforms are an island of float32 (or wider): they take no bf16 at all, and fp16 only for sizes that are
    powers of two. `ortho` keeps the values' scale, so that fp16 holds the spectrum too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 1, bias=False), *_norm_and_act(2 * channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W) in the precision of what came in."""
        wide = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            spectrum = torch.fft.rfft2(features.to(wide), norm="ortho")
            parts = torch.cat([spectrum.real, spectrum.imag], dim=1)
        mixed = self.mix(parts)
        with torch.autocast(features.device.type, enabled=False):
            real, imaginary = mixed.to(wide).chunk(2, dim=1)
            spectrum = torch.complex(real.contiguous(), imaginary.contiguous())
            return torch.fft.irfft2(spectrum, s=features.shape[-2:], norm="ortho").to(features.dtype)


def _conv3(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, padding_mode="reflect", bias=False)


def _up3(channels_in: int, channels_out: int) -> nn.Sequential:
    """ConvTranspose2d (kernel 3, stride 2) + BatchNorm2d + ReLU: (B, C, H, W) → (B, C', 2H, 2W)."""
    convolution = nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(convolution, *_norm_and_act(channels_out))


def _norm_and_act(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU()
