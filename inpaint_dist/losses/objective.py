"""What a recipe asks of its networks: weighted terms by name, and what the discriminator is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from inpaint_dist.errors import UsageError
from inpaint_dist.losses.adversarial import AdversarialConfig, LeastSquaresConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig

Terms: TypeAlias = Mapping[str, Tensor]
"""Unweighted scalar losses by name."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The generator's loss: each term times its weight. A term of weight 0 is not computed, but for the first two."""

    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """Distance to the photo."""
    reconstruction_weight: float = 1.0
    """Weight of the distance to the photo."""
    adversarial: AdversarialConfig = field(default_factory=LeastSquaresConfig)
    """The GAN loss of both networks."""
    adversarial_weight: float = 0.01
    """Weight of the GAN loss in the generator's."""
    feature_matching_weight: float = 0.0
    """Weight of the distance between D's features of completion and photo."""
    r1_weight: float = 0.0
    """Weight of the gradient penalty at photos in the discriminator's loss; 0: none."""
    r1_every: int = 1
    """Steps from one R1 penalty to the next; it counts that many times over (lazy: Karras et al., StyleGAN2, 2020)."""
    discriminator_sees: Literal["prediction", "composite"] = "prediction"
    """What is shown as fake: the generator's raw output, or that pasted into the photo."""

    def __post_init__(self) -> None:
        if self.r1_every < 1:
            raise UsageError(f"--objective.r1-every {self.r1_every}: give at least 1")
        for name in ("reconstruction_weight", "adversarial_weight", "feature_matching_weight", "r1_weight"):
            if not getattr(self, name) >= 0:
                flag = f"--objective.{name.replace('_', '-')}"
                raise UsageError(f"{flag} {getattr(self, name)}: a weight is 0 or more")

    def weigh(self, terms: Terms) -> dict[str, Tensor]:
        """Each of the generator's terms times its weight, by name; their sum is its loss."""
        return {name: terms[name] * getattr(self, f"{name}_weight") for name in terms}
