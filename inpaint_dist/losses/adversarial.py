"""The GAN game's two losses on maps of scores. Real is near 1, completed near 0."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inpaint_dist.batch import Scores


@dataclass(frozen=True, kw_only=True)
class LeastSquaresConfig:
    """Least squares: nn.MSELoss between a map of scores and its label (Mao et al., LSGAN, 2017, eq. 2, b = c = 1)."""

    def build(self) -> "LeastSquares":
        """Make the loss."""
        return LeastSquares()


class LeastSquares(nn.Module):
    """D pushes real scores to 1 and fake ones to 0; G pushes the fake ones to 1. All maps of a batch are of one size,
    so the mean over everything is the mean over images of each map's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mse = nn.MSELoss()

    def discriminator(self, real: Scores, fake: Scores) -> Float[Tensor, ""]:
        """D's loss on the given input plus D's loss on the full photo, in float32 or wider."""
        return self._to(fake, 0.0) + self._to(real, 1.0)

    def generator(self, fake: Scores) -> Float[Tensor, ""]:
        """G's loss: small where D takes the completion for a photo."""
        return self._to(fake, 1.0)

    def _to(self, scores: Scores, label: float) -> Float[Tensor, ""]:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return self.mse(scores, torch.full_like(scores, label))
