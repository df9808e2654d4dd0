"""EfficientNet-lite0 up to its last block: the frozen features that projected discriminators look at."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_dist.batch import Image

CHANNELS = (24, 40, 112, 320)
"""Channels of the features at 1/4, 1/8, 1/16 and 1/32 of the picture's size."""

_EPSILON = 1e-3


@dataclass(frozen=True)
class _Block:
    """An inverted residual block (Sandler et al., MobileNetV2, 2018), without squeeze and excitation."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    expansion: int
    ends: bool = False
    """Whether its output is one of the features."""


def _blocks() -> Iterator[_Block]:
    """The sixteen blocks (Tan and Le, EfficientNet, 2019, table 1)."""
    stages = (
        (1, 16, 3, 1, 1, False),
        (2, 24, 3, 2, 6, True),
        (2, 40, 5, 2, 6, True),
        (3, 80, 3, 2, 6, False),
        (3, 112, 5, 1, 6, True),
        (4, 192, 5, 2, 6, False),
        (1, 320, 3, 1, 6, True),
    )
    channels = 32
    for repeats, width, kernel, stride, expansion, ends in stages:
        for number in range(repeats):
            last = number == repeats - 1
            yield _Block(channels, width, kernel, 1 if number else stride, expansion, ends and last)
            channels = width


class EfficientNetLite0(nn.Module):
    """Image → features at four sizes. All of it is frozen: its weights are buffers, which no optimiser sees."""

    def __init__(self, weights: Mapping[str, Tensor] | None) -> None:
        """Take the weights, or with None draw them at random.

        Raises:
            KeyError, ValueError: the weights are of another network.
        """
        super().__init__()
        self.stem = _Frozen(3, 32, 3, weights, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList(
            _InvertedResidual(block, weights, f"_blocks.{number}.") for number, block in enumerate(_blocks())
        )

    def forward(self, image: Image) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] → (B, CHANNELS[i], H / 2^(i + 2), …), largest first."""
        features = F.relu6(self.stem(image))
        found: list[Tensor] = []
        for block, about in zip(self.blocks, _blocks(), strict=True):
            features = block(features)
            if about.ends:
                found.append(features)
        return found


class _InvertedResidual(nn.Module):
    def __init__(self, block: _Block, weights: Mapping[str, Tensor] | None, prefix: str) -> None:
        super().__init__()
        width = block.channels_in * block.expansion
        expand = (block.channels_in, width, 1, weights, f"{prefix}_expand_conv", f"{prefix}_bn0")
        self.expand = _Frozen(*expand) if block.expansion > 1 else None
        self.depthwise = _Frozen(
            *(width, width, block.kernel, weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1"),
            stride=block.stride,
            groups=width,
        )
        self.project = _Frozen(width, block.channels_out, 1, weights, f"{prefix}_project_conv", f"{prefix}_bn2")
        self._skips = block.stride == 1 and block.channels_in == block.channels_out

    def forward(self, features: Tensor) -> Tensor:
        inner = features if self.expand is None else F.relu6(self.expand(features))
        made = self.project(F.relu6(self.depthwise(inner)))
        return features + made if self._skips else made


class _Frozen(nn.Module):
    """A convolution and the batch norm after it, folded into one."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        weights: Mapping[str, Tensor] | None,
        convolution: str,
        norm: str,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        shape = (channels_out, channels_in // groups, kernel, kernel)
        if weights is None:
            weight = torch.empty(shape)
            nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
            bias = torch.zeros(channels_out)
        else:
            raw = weights[f"{convolution}.weight"].float()
            if raw.shape != shape:
                raise ValueError(f"{convolution}.weight is {tuple(raw.shape)}, not {shape}")
            scale, shift, mean, variance = (
                weights[f"{norm}.{name}"].float() for name in ("weight", "bias", "running_mean", "running_var")
            )
            factor = scale * torch.rsqrt(variance + _EPSILON)
            weight, bias = raw * factor[:, None, None, None], shift - mean * factor
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self._kernel, self._stride, self._groups = kernel, stride, groups

    def forward(self, features: Tensor) -> Tensor:
        padded = F.pad(features, (*self._padding(features.shape[3]), *self._padding(features.shape[2])))
        return F.conv2d(padded, self.weight, self.bias, stride=self._stride, groups=self._groups)

    def _padding(self, size: int) -> tuple[int, int]:
        """Before and after, as TensorFlow pads: so that ceil(size / stride) come out, the odd pixel after."""
        outputs = -(-size // self._stride)
        total = max(0, (outputs - 1) * self._stride + self._kernel - size)
        return total // 2, total - total // 2
