"""The GAN game's losses of both networks on maps of scores, R1, and feature matching.

Each loss has `discriminator(real, fake, mask)`: D's loss on photos plus D's loss on completions, and
`generator(fake, mask)`: small where D takes the completion for a photo. Every figure is a mean over images, in float32
or wider; all maps of a batch are of one size, so that the mean over everything is the mean over images of each map's
mean.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask, Scores
from inpaint_dist.errors import UsageError


@runtime_checkable
class AdversarialLoss(Protocol):
    """What the game asks of a loss."""

    threshold: float
    """Scores above it say real."""
    mask_as_fake_target: bool
    """Whether D is to call real what no hole touches in a completion."""

    def discriminator(self, real: Scores, fake: Scores, mask: Mask) -> Float[Tensor, ""]:
        """D's loss on photos plus D's loss on completions, whose holes `mask` tells."""
        ...

    def generator(self, fake: Scores, mask: Mask) -> Float[Tensor, ""]:
        """G's loss on the scores of its completions, whose holes `mask` tells."""
        ...


@dataclass(frozen=True, kw_only=True)
class LeastSquaresConfig:
    """Least squares: nn.MSELoss between a map of scores and its label (Mao et al., LSGAN, 2017, eq. 2, b = c = 1)."""

    raw_scores: ClassVar[bool] = False

    def build(self) -> "LeastSquares":
        """Make the loss."""
        return LeastSquares()


class LeastSquares:
    """D pushes real scores to 1 and fake ones to 0; G pushes the fake ones to 1."""

    threshold = 0.5
    mask_as_fake_target = False

    def __init__(self) -> None:
        self.mse = nn.MSELoss()

    def discriminator(self, real: Scores, fake: Scores, mask: Mask) -> Float[Tensor, ""]:  # noqa: ARG002
        """D's loss on the given input plus D's loss on the full photo."""
        return self._to(fake, 0.0) + self._to(real, 1.0)

    def generator(self, fake: Scores, mask: Mask) -> Float[Tensor, ""]:  # noqa: ARG002
        """G's loss: small where D takes the completion for a photo."""
        return self._to(fake, 1.0)

    def _to(self, scores: Scores, label: float) -> Float[Tensor, ""]:
        scores = _wide(scores)
        return self.mse(scores, torch.full_like(scores, label))


@dataclass(frozen=True, kw_only=True)
class NonSaturatingConfig:
    """Non-saturating: the logistic loss on raw scores (Goodfellow et al., Generative Adversarial Nets, 2014)."""

    raw_scores: ClassVar[bool] = True

    mask_as_fake_target: bool = True
    """Ask D to call real those patches of a completion that its hole does not touch (Suvorov et al., 2022, eq. 2 to 4);
    off: the whole completion is fake."""

    def build(self) -> "NonSaturating":
        """Make the loss."""
        return NonSaturating(self)


class NonSaturating:
    """D: -log s(real) - log(1 - s(fake)), G: -log s(fake), with s the logistic function of a score."""

    threshold = 0.0

    def __init__(self, config: NonSaturatingConfig) -> None:
        self.mask_as_fake_target = config.mask_as_fake_target

    def discriminator(self, real: Scores, fake: Scores, mask: Mask) -> Float[Tensor, ""]:
        """D's loss on photos plus D's loss on completions."""
        fake = _wide(fake)
        caught = F.softplus(fake)
        if self.mask_as_fake_target:
            caught = torch.where(touched(mask, fake) > 0.5, caught, F.softplus(-fake))
        return F.softplus(-_wide(real)).mean() + caught.mean()

    def generator(self, fake: Scores, mask: Mask) -> Float[Tensor, ""]:  # noqa: ARG002
        """G's loss over all patches."""
        return F.softplus(-_wide(fake)).mean()


@dataclass(frozen=True, kw_only=True)
class HingeConfig:
    """Hinge on raw scores (Lim and Ye, Geometric GAN, 2017, eq. 19; Miyato et al., Spectral Normalization, 2018)."""

    raw_scores: ClassVar[bool] = True

    def build(self) -> "Hinge":
        """Make the loss."""
        return Hinge()


class Hinge:
    """D: max(0, 1 - real) + max(0, 1 + fake), G: -fake."""

    threshold = 0.0
    mask_as_fake_target = False

    def discriminator(self, real: Scores, fake: Scores, mask: Mask) -> Float[Tensor, ""]:  # noqa: ARG002
        """D's loss on photos plus D's loss on completions: nothing to gain beyond scores of 1 and -1."""
        return F.relu(1.0 - _wide(real)).mean() + F.relu(1.0 + _wide(fake)).mean()

    def generator(self, fake: Scores, mask: Mask) -> Float[Tensor, ""]:  # noqa: ARG002
        """G's loss: lower the higher its completions score."""
        return -_wide(fake).mean()


@dataclass(frozen=True, kw_only=True)
class SoftMaskConfig:
    """Least squares in which a completion is fake where its hole is, softly (Zeng et al., AOT-GAN, 2021, eq. 4, 5)."""

    raw_scores: ClassVar[bool] = False

    sigma: float = 1.0
    """Deviation, in patches, of the Gaussian by which the hole's edge is softened for D."""

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UsageError(f"--objective.adversarial.sigma {self.sigma}: give more than 0")

    def build(self) -> "SoftMask":
        """Make the loss."""
        return SoftMask(self)


class SoftMask:
    """D pushes photos to 1, and completions to 1 less the softened hole; G pushes its holes' patches to 1.

    A perfect hole has the lowest loss of G. (The labels of AOT-GAN's released code are the other way round for G.)
    """

    threshold = 0.5
    mask_as_fake_target = True

    def __init__(self, config: SoftMaskConfig) -> None:
        reach = math.ceil(3.0 * config.sigma)
        weights = [math.exp(-0.5 * (place / config.sigma) ** 2) for place in range(-reach, reach + 1)]
        self._weights = [weight / sum(weights) for weight in weights]

    def discriminator(self, real: Scores, fake: Scores, mask: Mask) -> Float[Tensor, ""]:
        """D's loss on photos plus D's loss on completions."""
        real, fake = _wide(real), _wide(fake)
        label = 1.0 - self._softened(touched(mask, fake).to(fake.dtype))
        return (fake - label).square().mean() + (real - 1.0).square().mean()

    def generator(self, fake: Scores, mask: Mask) -> Float[Tensor, ""]:
        """G's loss over the patches that its hole touches, as a mean over all patches."""
        fake = _wide(fake)
        return ((fake - 1.0).square() * touched(mask, fake)).mean()

    def _softened(self, hole: Scores) -> Scores:
        """The hole blurred along rows and columns; the picture goes on beyond its edges as at them."""
        reach = len(self._weights) // 2
        kernel = torch.stack([torch.full((), w, device=hole.device, dtype=hole.dtype) for w in self._weights])
        kernel = kernel.view(1, 1, -1, 1)  # made on the device: a copy to it would be waited for
        across = F.conv2d(F.pad(hole, (0, 0, reach, reach), mode="replicate"), kernel)
        return F.conv2d(F.pad(across, (reach, reach, 0, 0), mode="replicate"), kernel.transpose(2, 3))


def accuracy(loss: AdversarialLoss, real: Scores, fake: Scores, mask: Mask) -> tuple[Tensor, Tensor]:
    """Shares of photos' patches that D calls real, and of completions' that it calls fake, in 0..1 and detached.

    Means over images of each one's share, so that N ranks equal one. With the mask as fake target only patches that the
    hole touches are to be called fake; a completion without one counts half, as a guess does.
    """
    real, fake = _wide(real.detach()), _wide(fake.detach())
    asked = touched(mask, fake).to(fake.dtype).expand_as(fake) if loss.mask_as_fake_target else torch.ones_like(fake)
    count = asked.sum((1, 2, 3))
    caught = ((fake < loss.threshold) * asked).sum((1, 2, 3)) / count.clamp_min(1.0)
    return (real > loss.threshold).to(real.dtype).mean(), torch.where(count > 0, caught, 0.5).mean()


def touched(mask: Mask, scores: Scores) -> Float[Tensor, "batch 1 rows columns"]:
    """1 for each patch whose cell of the picture, cut evenly into as many as there are scores, meets the hole."""
    return F.adaptive_max_pool2d(mask.float(), scores.shape[-2:])


def r1_penalty(judge: Callable[[Image], Judgement], image: Image) -> Float[Tensor, ""]:
    """Half the squared norm of the gradient of D's scores at photos.

    Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018, eq. 9, for weight 1.

    The gradient is that of the sum of an image's map of scores, as in LaMa's code. In float32, without autocast: the
    squares of small gradients underflow in half precision.
    """
    wide = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False), torch.enable_grad():
        image = image.detach().to(wide).requires_grad_()
        (gradient,) = torch.autograd.grad(judge(image).scores.sum(), image, create_graph=True)
        return 0.5 * gradient.square().sum((1, 2, 3)).mean()


def feature_distance(fake: Judgement, real: Judgement) -> Float[Tensor, ""]:
    """Mean over D's layers of the mean squared difference between its features of completions and of photos.

    Feature matching (Wang et al., pix2pixHD, 2018, eq. 4) in LaMa's squared form (Suvorov et al., 2022, section 2.4).
    """
    pairs = zip(fake.features, real.features, strict=True)
    return torch.stack([F.mse_loss(_wide(mine), _wide(theirs.detach())) for mine, theirs in pairs]).mean()


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


AdversarialConfig: TypeAlias = LeastSquaresConfig | NonSaturatingConfig | HingeConfig | SoftMaskConfig
"""The menu. `raw_scores`: the loss squashes scores itself, or bounds nothing; a discriminator must not squash them."""
