"""What was tried for the recipe `mend`: each variant is the recipe with one thing changed."""

from dataclasses import replace

from inpaint_dist.config import TrainConfig
from inpaint_dist.losses.adversarial import HingeConfig, NonSaturatingConfig
from inpaint_dist.losses.perceptual import PerceptualConfig
from inpaint_dist.models import (
    DiscriminatorConfig,
    FeatureDiscriminatorConfig,
    PatchDiscriminatorConfig,
    ProjectedDiscriminatorConfig,
    UNetConfig,
)
from inpaint_dist.recipes import RECIPES

MEND = RECIPES["mend"]


def objective(discriminator: DiscriminatorConfig = MEND.discriminator, **changes: object) -> TrainConfig:
    """`mend` with other losses, and the discriminator that they need."""
    changed = replace(MEND.objective, **changes)  # pyright: ignore[reportArgumentType]
    return replace(MEND, objective=changed, discriminator=discriminator)


VARIANTS: dict[str, TrainConfig] = {
    "mend/unet": replace(MEND, generator=UNetConfig(channels=(32, 64, 128, 256, 256))),
    "mend/mixed": replace(MEND, generator=replace(MEND.generator, base="mixed")),
    "mend/push-pull": replace(MEND, generator=replace(MEND.generator, base="push-pull")),
    "mend/no-noise": replace(MEND, generator=replace(MEND.generator, noise=0)),
    "mend/transposed": replace(MEND, generator=replace(MEND.generator, upsampling="transposed")),
    "mend/whole-picture": objective(perceptual=PerceptualConfig()),
    "mend/no-perceptual": objective(perceptual_weight=0.0),
    "mend/perceptual-10": objective(perceptual_weight=10.0),
    "mend/three-layers": objective(
        perceptual=replace(MEND.objective.perceptual, layers=("relu1_2", "relu2_2", "relu3_3"))
    ),
    "mend/five-layers": objective(
        perceptual=replace(MEND.objective.perceptual, layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"))
    ),
    "mend/no-gan": objective(adversarial_weight=0.0),
    "mend/gan-3": objective(adversarial_weight=3.0),
    "mend/gan-10": objective(adversarial_weight=10.0),
    "mend/gan-3-fast": replace(objective(adversarial_weight=3.0), trainer=replace(MEND.trainer, lr_d=1e-3)),
    "mend/gan-3-augmented": objective(adversarial_weight=3.0, augment=("colour", "translation", "cutout")),
    "mend/matched": objective(
        FeatureDiscriminatorConfig(channels=(32, 64, 128)),
        adversarial=NonSaturatingConfig(mask_as_fake_target=True),
        adversarial_weight=0.3,
        feature_matching_weight=3.0,
        r1_weight=0.01,
        r1_every=16,
    ),
    "mend/hinge": objective(
        PatchDiscriminatorConfig(channels=(32, 64, 128, 256), sigmoid=False),
        adversarial=HingeConfig(),
        adversarial_weight=0.3,
        r1_weight=0.01,
        r1_every=16,
    ),
    "mend/projected": objective(
        ProjectedDiscriminatorConfig(),
        adversarial=HingeConfig(),
        adversarial_weight=0.1,
        discriminator_sees="composite",
    ),
    "mend/focal": objective(focal_frequency_weight=1.0),
    "mend/style": objective(style_weight=30.0),
    "mend/lr-3e-3": replace(MEND, trainer=replace(MEND.trainer, lr=3e-3)),
    "mend/prediction": objective(discriminator_sees="prediction"),
    "mend/masks-drawn": replace(MEND, data=replace(MEND.data, mask_source="lama-train")),
    "mend/batch-4": replace(MEND, data=replace(MEND.data, batch_size=4)),
}
ROWS: dict[str, TrainConfig] = {**RECIPES, **VARIANTS}
