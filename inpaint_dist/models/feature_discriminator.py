"""A patch discriminator whose layers are worth matching: pix2pixHD's, at one scale."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask
from inpaint_dist.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FeatureDiscriminatorConfig:
    """Conv2d (kernel 4) + BatchNorm2d + LeakyReLU (Wang et al., High-Resolution Image Synthesis with Conditional GANs,
    2018, section 3.2), ending in a map of raw scores."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels after each halving of the picture; one more layer of the last width and the scores follow."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise UsageError(f"--discriminator.channels {self.channels}: give at least one number, each at least 1")

    @property
    def sigmoid(self) -> bool:
        """Whether the scores are squashed to 0..1: never."""
        return False

    def build(self) -> "FeatureDiscriminator":
        """Make the network."""
        return FeatureDiscriminator(self)


class FeatureDiscriminator(nn.Module):
    """Image → one raw score a patch, and the features of every layer below."""

    def __init__(self, config: FeatureDiscriminatorConfig) -> None:
        super().__init__()
        widths = config.channels
        self.smallest_size = 2 ** len(widths)
        first = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=2, padding=2), nn.LeakyReLU(0.2))
        halving = [_layer(a, b, stride=2) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList([first, *halving, _layer(widths[-1], widths[-1], stride=1)])
        self.to_score = nn.Conv2d(widths[-1], 1, 4, padding=2)

    def forward(self, image: Image, mask: Mask) -> Judgement:  # noqa: ARG002 - it looks at the picture alone
        """Score (B, 3, H, W) in [-1, 1]: raw scores (B, 1, about H/2^n, W/2^n), high where a patch looks real."""
        features: list[Tensor] = []
        for layer in self.layers:
            features.append(layer(features[-1] if features else image))
        return Judgement(self.to_score(features[-1]), tuple(features))


def _layer(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 4, stride=stride, padding=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2))
