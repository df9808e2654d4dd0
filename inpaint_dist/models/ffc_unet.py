"""A slim U-Net on an unlearned fill, whose deepest level sees the whole picture through its spectrum."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.chance import uniform
from inpaint_dist.errors import UsageError
from inpaint_dist.models.blocks import down, resize_up, up
from inpaint_dist.models.fourier import FFCBlock, branches
from inpaint_dist.models.nearest_fill import nearest_fill
from inpaint_dist.models.push_pull import push_pull


@dataclass(frozen=True, kw_only=True)
class FFCUNetConfig:
    """U-Net on an unlearned base, with fast Fourier convolutions at its deepest level."""

    channels: tuple[int, ...] = (32, 64, 128)
    """Channels after each halving of the picture; three halvings bring the blocks to 1/8 of its size."""
    blocks: int = 4
    """Residual blocks at the deepest level, of two fast Fourier convolutions each."""
    global_share: float = 0.75
    """Share of the blocks' channels that go through the spectrum of the whole picture."""
    base: Literal["blended", "mixed", "push-pull"] = "blended"
    """The fill that the network starts from: push-pull; mixed: its mean with the nearest known pixels; blended: the
    network sees both and says for each pixel how much of which, at first half of each."""
    noise: int = 2
    """Channels of noise, the same in every picture, that the network may make texture of: a fill is smooth, and so is
    what bilinear doubling makes of it. 0: none."""
    upsampling: Literal["resize", "transposed"] = "resize"
    """How the decoder doubles: bilinear, then a 3x3 convolution; or a transposed convolution of kernel 4."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--generator.channels {self.channels}: give at least one number, each at least 1")
        if self.blocks < 1:
            raise UsageError(f"--generator.blocks {self.blocks}: give at least 1")
        if self.noise < 0:
            raise UsageError(f"--generator.noise {self.noise}: give 0 or more")
        branches(self.channels[-1], self.global_share)

    def build(self) -> "FFCUNet":
        """Make the network."""
        return FFCUNet(self)


_TILE = 256


def _base(fills: tuple[Image, ...], share: Tensor) -> Image:
    """The fill that the residual is added to; of two, `share` (B, 1, H, W) says how far from half and half."""
    if len(fills) == 1:
        return fills[0]
    smooth, nearest = fills
    return torch.lerp(smooth, nearest, torch.sigmoid(share))


def mixed_fill(masked: Image, mask: Mask) -> Image:
    """The mean of push-pull and the nearest known pixels: (B, 3, H, W) in [-1, 1] → the same, in float32 or wider."""
    return (push_pull(masked, mask) + nearest_fill(masked, mask)) / 2.0


class FFCUNet(nn.Module):
    """Unlearned fill + mask → residual, added to the fill.

    What it is made of: the encoder's and, if asked for, the decoder's layers are the seed's; the blocks are LaMa's; the
    base and the last layer, which starts at zero so that an untrained network gives the fill, are `UNet`'s.
    The output may leave [-1, 1] by a little; `composite` clamps it.
    """

    noise: Tensor

    def __init__(self, config: FFCUNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.size_multiple = 2 ** (len(channels) + 1)  # reflection needs 2 pixels at the deepest level
        self._blends = config.base == "blended"
        entry = (7 if self._blends else 4) + config.noise
        self.register_buffer("noise", _noise(config.noise), persistent=False)
        self._of = config.base
        self._split = branches(channels[-1], config.global_share)
        self.encoder = nn.ModuleList(
            down(a, b, norm=level > 0) for level, (a, b) in enumerate(pairwise((entry, *channels)))
        )
        self.blocks = nn.ModuleList(FFCBlock(*self._split) for _ in range(config.blocks))
        double = resize_up if config.upsampling == "resize" else up
        outputs = (*channels[-2::-1], max(1, channels[0] // 2))
        inputs = (channels[-1], *(2 * width for width in channels[-2::-1]))
        self.decoder = nn.ModuleList(double(a, b) for a, b in zip(inputs, outputs, strict=True))
        width = outputs[-1]
        self.texture = nn.Sequential(
            nn.Conv2d(width + entry, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ELU()
        )
        self.to_residual = nn.Conv2d(width, 4 if self._blends else 3, 3, padding=1)
        nn.init.zeros_(self.to_residual.weight)
        nn.init.zeros_(self.to_residual.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, masked: Image, mask: Mask) -> Image:
        """Predict (B, 3, H, W), about [-1, 1], from the masked photo (0 in the hole) and its mask (1 = hole)."""
        fills = self._fills(masked, mask)
        entry = torch.cat([*fills, mask, self._noise_in(mask)], dim=1)
        features: Tensor = entry
        skips: list[Tensor] = []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
        pair = skips.pop().split(self._split, dim=1)
        for block in self.blocks:
            pair = block(pair)
        features = torch.cat(pair, dim=1)
        for level in self.decoder:
            features = level(features)
            if skips:
                features = torch.cat([features, skips.pop()], dim=1)
        told = self.to_residual(self.texture(torch.cat([features, entry], dim=1))).to(fills[0].dtype)
        return _base(fills, told[:, 3:]) + told[:, :3]

    def _fills(self, masked: Image, mask: Mask) -> tuple[Image, ...]:
        """The unlearned fills that the network sees: (B, 3, H, W) each, in float32 or wider."""
        if self._blends:
            return push_pull(masked, mask), nearest_fill(masked, mask)
        return (push_pull(masked, mask) if self._of == "push-pull" else mixed_fill(masked, mask),)

    def _noise_in(self, mask: Mask) -> Tensor:
        """The noise in the holes, 0 elsewhere: (B, noise, H, W). Pictures larger than it see it again and again."""
        height, width = mask.shape[-2:]
        repeats = (1, -(-height // _TILE), -(-width // _TILE))
        return self.noise.repeat(repeats)[:, :height, :width].to(mask.dtype) * mask


def _noise(channels: int) -> Tensor:
    """Uniform in [-1, 1): (channels, 256, 256), the same on every machine and in every version."""
    return torch.from_numpy(uniform(channels, _TILE * _TILE, 0, start=0)).view(channels, _TILE, _TILE) * 2 - 1
