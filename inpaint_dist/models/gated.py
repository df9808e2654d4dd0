"""DeepFillv2's generator: gated convolutions, a coarse and a fine stage, contextual attention."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Drafted, Image, Mask
from inpaint_dist.errors import UsageError
from inpaint_dist.models.contextual_attention import contextual_attention


@dataclass(frozen=True, kw_only=True)
class GatedConfig:
    """Two stages of gated convolutions (Yu et al., Free-Form Image Inpainting with Gated Convolution, 2019, section 3,
    with the layers of Yu et al., Generative Image Inpainting with Contextual Attention, 2018)."""

    base_channels: int = 48
    """Outputs of a convolution at full size, half of which are gates; two halvings double them each."""
    dilations: tuple[int, ...] = (2, 4, 8, 16)
    """Dilations of the layers in the middle of each stage."""
    attention: bool = True
    """The fine stage's branch of contextual attention."""

    def __post_init__(self) -> None:
        if self.base_channels < 4 or self.base_channels % 4:
            raise UsageError(f"--generator.base-channels {self.base_channels}: give a multiple of 4")
        if any(dilation < 1 for dilation in self.dilations):
            raise UsageError(f"--generator.dilations {self.dilations}: give numbers of at least 1")

    def build(self) -> "GatedGenerator":
        """Make the network."""
        return GatedGenerator(self)


class GatedGenerator(nn.Module):
    """Photo without its hole + mask → whole picture; while it trains, with the coarse stage's draft."""

    size_multiple = 8  # features are at a quarter, and the attention halves them again

    def __init__(self, config: GatedConfig) -> None:
        super().__init__()
        width = config.base_channels
        self.coarse = nn.Sequential(*_coarse_encoder(width), *_dilated(width, config.dilations), *_decoder(width, 2))
        self.convolution = nn.Sequential(*_fine_encoder(width), *_dilated(width, config.dilations))
        self.before = nn.Sequential(*_fine_encoder(width, last=nn.ReLU())) if config.attention else None
        self.after = nn.Sequential(*(Gated(2 * width, 4 * width) for _ in range(2))) if config.attention else None
        self.decoder = nn.Sequential(*_decoder(width, 4 if config.attention else 2))

    def forward(self, masked: Image, mask: Mask) -> Image | Drafted:
        """Predict (B, 3, H, W) in [-1, 1] from the masked photo (0 in the hole) and its mask (1 = hole)."""
        about = (torch.ones_like(mask), mask)  # the ones tell zero padding from what is there
        coarse = torch.tanh(self.coarse(torch.cat([masked, *about], dim=1)))
        draft = torch.where(mask > 0.5, coarse, masked.to(coarse.dtype))
        entry = torch.cat([draft, *about], dim=1)
        features = self.convolution(entry)
        if self.before is not None and self.after is not None:
            hole = F.max_pool2d(mask, 4)
            features = torch.cat([features, self.after(contextual_attention(self.before(entry), hole))], dim=1)
        fine = torch.tanh(self.decoder(features))
        return Drafted(fine, (coarse,)) if self.training else fine


class Gated(nn.Module):
    """Gated convolution (Yu et al., 2019, eq. 3): activation(features) * sigmoid(gates), from one convolution."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        """Make `channels_out` outputs, half of which are gates."""
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.convolution = nn.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=padding, dilation=dilation
        )
        self.activation = activation or nn.ELU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels_in, H, W) → (B, channels_out / 2, H / stride, W / stride)."""
        values, gates = self.convolution(features).chunk(2, dim=1)
        return self.activation(values) * torch.sigmoid(gates)


class _Doubled(nn.Module):
    """Nearest-neighbour doubling, then a gated convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.gated = Gated(channels_in, channels_out)

    def forward(self, features: Tensor) -> Tensor:
        return self.gated(F.interpolate(features, scale_factor=2.0, mode="nearest"))


def _coarse_encoder(width: int) -> list[nn.Module]:
    """To a quarter of the size: (B, 5, H, W) → (B, 2 width, H/4, W/4)."""
    return [
        Gated(5, width, kernel=5),
        Gated(width // 2, 2 * width, stride=2),
        Gated(width, 2 * width),
        Gated(width, 4 * width, stride=2),
        Gated(2 * width, 4 * width),
        Gated(2 * width, 4 * width),
    ]


def _fine_encoder(width: int, last: nn.Module | None = None) -> list[nn.Module]:
    """The same with fewer channels at first; `last` is the activation at its end."""
    return [
        Gated(5, width, kernel=5),
        Gated(width // 2, width, stride=2),
        Gated(width // 2, 2 * width),
        Gated(width, 4 * width if last else 2 * width, stride=2),
        Gated(2 * width if last else width, 4 * width),
        Gated(2 * width, 4 * width, activation=last),
    ]


def _dilated(width: int, dilations: tuple[int, ...]) -> list[nn.Module]:
    return [Gated(2 * width, 4 * width, dilation=dilation) for dilation in dilations]


def _decoder(width: int, entry: int) -> list[nn.Module]:
    """Back to the whole size, from `entry` x width channels: (B, entry width, H/4, W/4) → (B, 3, H, W), unbounded."""
    return [
        Gated(entry * width, 4 * width),
        Gated(2 * width, 4 * width),
        _Doubled(2 * width, 2 * width),
        Gated(width, 2 * width),
        _Doubled(width, width),
        Gated(width // 2, width // 2),
        nn.Conv2d(width // 4, 3, 3, padding=1),
    ]
