"""The menu of networks: adding a model is one file and one line here."""

from typing import TypeAlias

from inpaint_dist.models.aot import AOTConfig
from inpaint_dist.models.context_encoder import ContextEncoderConfig
from inpaint_dist.models.feature_discriminator import FeatureDiscriminatorConfig
from inpaint_dist.models.ffc_resnet import FFCResNetConfig
from inpaint_dist.models.ffc_unet import FFCUNetConfig
from inpaint_dist.models.gated import GatedConfig
from inpaint_dist.models.global_discriminator import GlobalDiscriminatorConfig
from inpaint_dist.models.migan import MIGANConfig
from inpaint_dist.models.patch_discriminator import PatchDiscriminatorConfig
from inpaint_dist.models.projected_discriminator import ProjectedDiscriminatorConfig
from inpaint_dist.models.seed_autoencoder import SeedAutoencoderConfig
from inpaint_dist.models.spectral_discriminator import SpectralDiscriminatorConfig
from inpaint_dist.models.unet import UNetConfig

GeneratorConfig: TypeAlias = (
    SeedAutoencoderConfig
    | UNetConfig
    | FFCUNetConfig
    | FFCResNetConfig
    | ContextEncoderConfig
    | GatedConfig
    | AOTConfig
    | MIGANConfig
)
"""Every generator: `config.build()` gives a module of (masked, mask) → prediction for pictures whose sides are
multiples of its int `size_multiple`; one that has an int `fixed_size` trains on pictures of that size alone. An int
`deepest` says how often smaller its deepest level is, where that is not `size_multiple`."""

DiscriminatorConfig: TypeAlias = (
    PatchDiscriminatorConfig
    | FeatureDiscriminatorConfig
    | SpectralDiscriminatorConfig
    | GlobalDiscriminatorConfig
    | ProjectedDiscriminatorConfig
)
"""Every discriminator: `config.build()` gives a module of (image, mask) → Judgement with an int `smallest_size`."""
