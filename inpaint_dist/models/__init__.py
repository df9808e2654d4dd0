"""The menu of networks: adding a model is one file and one line here."""

from typing import TypeAlias

from inpaint_dist.models.patch_discriminator import PatchDiscriminatorConfig
from inpaint_dist.models.seed_autoencoder import SeedAutoencoderConfig
from inpaint_dist.models.unet import UNetConfig

GeneratorConfig: TypeAlias = SeedAutoencoderConfig | UNetConfig
"""Every generator: `config.build()` gives a module of (masked, mask) → prediction with an int `size_multiple`."""

DiscriminatorConfig: TypeAlias = PatchDiscriminatorConfig
"""Every discriminator: `config.build()` gives a module of image → scores with an int `smallest_size`."""
