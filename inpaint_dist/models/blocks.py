"""The blocks that the networks share, and what training asks of their norms."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList


class EqualisedConv2d(nn.Conv2d):
    """A convolution whose weights are of unit variance, and scaled by He's constant at each use.

    So a step of Adam is as large a part of each layer's weights, whatever their number: a rate of 1e-3 moves those of
    512 channels, as they are used, by 2e-5 (Karras et al., Progressive Growing of GANs, 2018, section 4.1).
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True, gain: float = 2.0**0.5
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.scale = gain / self.weight[0].numel() ** 0.5

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return self._conv_forward(input, self.weight * self.scale, self.bias)


def down(channels_in: int, channels_out: int, *, norm: bool = False, slope: float = 0.2) -> nn.Sequential:
    """Conv2d (kernel 4, stride 2) [+ BatchNorm2d] + LeakyReLU: (B, C, H, W) → (B, C', H/2, W/2)."""
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(channels_out))
    return nn.Sequential(*layers, nn.LeakyReLU(slope))


def up(channels_in: int, channels_out: int) -> nn.Sequential:
    """ConvTranspose2d (kernel 4, stride 2) + BatchNorm2d + ELU: (B, C, H, W) → (B, C', 2H, 2W).

    The kernel is a multiple of the stride, so that every output pixel is covered by equally many weights
    (Odena et al., Deconvolution and Checkerboard Artifacts, 2016).
    """
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ELU(),
    )


def resize_up(channels_in: int, channels_out: int) -> nn.Sequential:
    """Bilinear doubling + Conv2d (kernel 3) + BatchNorm2d + ELU: (B, C, H, W) → (B, C', 2H, 2W).

    Without the grid that transposed convolutions learn to draw where a loss asks for texture (Odena et al., 2016).
    """
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ELU(),
    )


def pooled(features: Tensor, side: int) -> Tensor:
    """Means over an even grid: (B, C, H, W) → (B, C, side, side).

    Where the grid fits, by windows, whose gradient a GPU repeats bit for bit, as it does not that of adaptive pooling.
    """
    height, width = features.shape[-2:]
    if height % side or width % side:
        return F.adaptive_avg_pool2d(features, side)
    return F.avg_pool2d(features, (height // side, width // side))


class _SpectralNormInFloat32(_SpectralNorm):
    """Torch's, with its power iteration out of the autocast's reach: its products would run in half precision."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast("cuda" if weight.is_cuda else "cpu", enabled=False):
            return super().forward(weight)


def spectral_norm(convolution: nn.Conv2d) -> nn.Conv2d:
    """Divide a convolution's weight by its largest singular value at each use (Miyato et al., 2018, algorithm 1)."""
    parametrize.register_parametrization(convolution, "weight", _SpectralNormInFloat32(convolution.weight))
    return convolution


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether a sample's output depends on the other samples of its batch while training."""
    return any(isinstance(m, _BatchNorm) or getattr(m, "has_batch_statistics", False) for m in network.modules())


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Every layer of batch norm, synchronised ones too."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def move_spectral_norms(network: nn.Module) -> None:
    """Bring every spectral norm's estimate one power iteration nearer, and leave it there in the forwards that follow.

    Left to themselves they move with each forward: a step in parts would not be the step of the whole batch.
    """
    for module in network.modules():
        if isinstance(module, ParametrizationList) and any(hasattr(part, "_u") for part in module):
            module.train()
            with torch.no_grad():
                module()
            module.eval()


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are: a batch completed twice must be counted once."""
    norms = [norm for norm in batch_norms(network) if norm.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
