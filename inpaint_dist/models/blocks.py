"""The blocks that the networks share, and the one question that training asks of a network."""

from torch import nn


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


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether a sample's output depends on the other samples of its batch while training."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
