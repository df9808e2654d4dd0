"""What a recipe asks of its networks: weighted terms by name, and what the discriminator is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from inpaint_dist.errors import UsageError
from inpaint_dist.losses.adversarial import LeastSquaresConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig

Terms: TypeAlias = Mapping[str, Tensor]
"""Unweighted scalar losses by name."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The generator's loss = reconstruction_weight x reconstruction + adversarial_weight x adversarial."""

    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """Distance to the photo."""
    reconstruction_weight: float = 1.0
    """Weight of the distance to the photo."""
    adversarial: LeastSquaresConfig = field(default_factory=LeastSquaresConfig)
    """The GAN loss of both networks."""
    adversarial_weight: float = 0.01
    """Weight of the GAN loss in the generator's."""
    discriminator_sees: Literal["prediction", "composite"] = "prediction"
    """What is shown as fake: the generator's raw output, or that pasted into the photo."""

    def __post_init__(self) -> None:
        for name in ("reconstruction_weight", "adversarial_weight"):
            if not getattr(self, name) >= 0:
                flag = f"--objective.{name.replace('_', '-')}"
                raise UsageError(f"{flag} {getattr(self, name)}: a weight is 0 or more")

    def weigh(self, terms: Terms) -> dict[str, Tensor]:
        """Each of the generator's terms times its weight, by name; their sum is its loss."""
        return {name: terms[name] * getattr(self, f"{name}_weight") for name in terms}
