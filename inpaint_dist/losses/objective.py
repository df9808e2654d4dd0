"""What a recipe asks of its networks: weighted terms by name, and what the discriminator is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

from torch import Tensor

from inpaint_dist.errors import UsageError
from inpaint_dist.losses.adversarial import AdversarialConfig, LeastSquaresConfig
from inpaint_dist.losses.augmentation import Change
from inpaint_dist.losses.perceptual import PerceptualConfig
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
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """The features of the next two terms."""
    perceptual_weight: float = 0.0
    """Weight of the distance between VGG16's features of completion and photo."""
    style_weight: float = 0.0
    """Weight of the distance between the Gram matrices of those features."""
    focal_frequency_weight: float = 0.0
    """Weight of the distance between the spectra of completion and photo, the worst frequencies first."""
    total_variation_weight: float = 0.0
    """Weight of the differences between neighbours in the hole and at its edge."""
    r1_weight: float = 0.0
    """Weight of the gradient penalty at photos in the discriminator's loss; 0: none."""
    r1_every: int = 1
    """Steps from one R1 penalty to the next; it counts that many times over (lazy: Karras et al., StyleGAN2, 2020)."""
    discriminator_sees: Literal["prediction", "composite"] = "prediction"
    """What is shown as fake, and to VGG16: the generator's raw output, or that pasted into the photo."""
    augment: tuple[Change, ...] = ()
    """What is changed at random, alike in photo, completion and mask, before D sees them (DiffAugment)."""

    def __post_init__(self) -> None:
        if self.r1_every < 1:
            raise UsageError(f"--objective.r1-every {self.r1_every}: give at least 1")
        for name in (f.name for f in fields(self) if f.name.endswith("_weight")):
            if not getattr(self, name) >= 0:
                flag = f"--objective.{name.replace('_', '-')}"
                raise UsageError(f"{flag} {getattr(self, name)}: a weight is 0 or more")

    @property
    def looks_at_features(self) -> bool:
        """Whether a term needs VGG16."""
        return self.perceptual_weight > 0 or self.style_weight > 0

    @property
    def needs_luck(self) -> bool:
        """Whether something is chosen at random in a step."""
        return bool(self.augment) or (self.looks_at_features and self.perceptual.window < 1)

    def weigh(self, terms: Terms) -> dict[str, Tensor]:
        """Each of the generator's terms times its weight, by name; their sum is its loss."""
        return {name: terms[name] * getattr(self, f"{name}_weight") for name in terms}
