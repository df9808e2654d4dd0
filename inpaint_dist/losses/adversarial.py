"""The GAN game's losses of both networks on maps of scores, R1, and feature matching.

Each loss has `discriminator(real, fake, mask)`: D's loss on photos plus D's loss on completions, and `generator(fake)`:
small where D takes the completion for a photo. Every figure is a mean over images, in float32 or wider; all maps of a
batch are of one size, so that the mean over everything is the mean over images of each map's mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from inpaint_dist.batch import Image, Judgement, Mask, Scores


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

    def generator(self, fake: Scores) -> Float[Tensor, ""]:
        """G's loss on the scores of its completions."""
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

    def generator(self, fake: Scores) -> Float[Tensor, ""]:
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

    def generator(self, fake: Scores) -> Float[Tensor, ""]:
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

    def generator(self, fake: Scores) -> Float[Tensor, ""]:
        """G's loss: lower the higher its completions score."""
        return -_wide(fake).mean()


def accuracy(loss: AdversarialLoss, real: Scores, fake: Scores, mask: Mask) -> tuple[Tensor, Tensor]:
    """Shares of photos' patches that D calls real, and of completions' that it calls fake, in 0..1 and detached.

    Means over images of each one's share, so that N ranks equal one. With the mask as fake target only patches that the
    hole touches are to be called fake; a completion without one counts half, as a guess does.
    """
    real, fake = _wide(real.detach()), _wide(fake.detach())
    asked = touched(mask, fake).to(fake.dtype) if loss.mask_as_fake_target else torch.ones_like(fake)
    count = asked.sum((1, 2, 3))
    caught = ((fake < loss.threshold) * asked).sum((1, 2, 3)) / count.clamp_min(1.0)
    return (real > loss.threshold).to(real.dtype).mean(), torch.where(count > 0, caught, 0.5).mean()


def touched(mask: Mask, scores: Scores) -> Scores:
    """1 for each score whose cell of the picture, cut evenly into as many as there are scores, meets the hole."""
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


AdversarialConfig: TypeAlias = LeastSquaresConfig | NonSaturatingConfig | HingeConfig
"""The menu. `raw_scores`: the loss squashes scores itself, or bounds nothing; a discriminator must not squash them."""
