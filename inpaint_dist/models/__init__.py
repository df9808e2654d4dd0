"""The menu of networks: adding a model is one file and one line here."""

from typing import TypeAlias

from inpaint_dist.models.feature_discriminator import FeatureDiscriminatorConfig
from inpaint_dist.models.ffc_resnet import FFCResNetConfig
from inpaint_dist.models.ffc_unet import FFCUNetConfig
from inpaint_dist.models.patch_discriminator import PatchDiscriminatorConfig
from inpaint_dist.models.seed_autoencoder import SeedAutoencoderConfig
from inpaint_dist.models.unet import UNetConfig

GeneratorConfig: TypeAlias = SeedAutoencoderConfig | UNetConfig | FFCUNetConfig | FFCResNetConfig
"""Every generator: `config.build()` gives a module of (masked, mask) → prediction for pictures whose sides are
multiples of its int `size_multiple`."""

DiscriminatorConfig: TypeAlias = PatchDiscriminatorConfig | FeatureDiscriminatorConfig
"""Every discriminator: `config.build()` gives a module of image → Judgement with an int `smallest_size`."""
