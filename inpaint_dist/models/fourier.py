"""Residual blocks of fast Fourier convolutions: half of what a layer knows is of the whole picture.

Chi et al., Fast Fourier Convolution, 2020 (section 3), as Suvorov et al., Resolution-robust Large Mask Inpainting with
Fourier Convolutions, 2022 (section 2.1) use them.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from inpaint_dist.errors import UsageError

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Local and global features of one size: (B, L, H, W) and (B, G, H, W)."""


def branches(channels: int, global_share: float) -> tuple[int, int]:
    """Of a level's channels, how many are local and how many go through the spectrum.

    Raises:
        UsageError: a branch would be empty.
    """
    through_spectrum = int(channels * global_share)
    if not 2 <= through_spectrum < channels:
        raise UsageError(
            f"--generator.global-share {global_share}: of {channels} channels at least 2 have to be global and 1 local"
        )
    return channels - through_spectrum, through_spectrum


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
        self.local_to_local, self.local_to_global = conv3(local, local), conv3(local, global_)
        self.global_to_local, self.global_to_global = conv3(global_, local), SpectralTransform(global_)
        self.act_local = nn.Sequential(*norm_and_relu(local))
        self.act_global = nn.Sequential(*norm_and_relu(global_))

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
        self.reduce = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), *norm_and_relu(half))
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
        self.mix = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 1, bias=False), *norm_and_relu(2 * channels))

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


def conv3(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Conv2d:
    """Conv2d (kernel 3) on the picture mirrored at its borders: (B, C, H, W) → (B, C', H/stride, W/stride)."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, padding_mode="reflect", bias=False)


def norm_and_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    """BatchNorm2d + ReLU."""
    return nn.BatchNorm2d(channels), nn.ReLU()
