"""The recipes: name → TrainConfig. Each says what it is, what it reached, on what, in how long."""

from inpaint_dist.config import TrainConfig
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig
from inpaint_dist.models import PatchDiscriminatorConfig, SeedAutoencoderConfig, UNetConfig
from inpaint_dist.trainer import TrainerConfig

SEED = TrainConfig(
    recipe="seed",
    generator=SeedAutoencoderConfig(channels=(64, 128, 256, 512, 512)),
    discriminator=PatchDiscriminatorConfig(channels=(32, 64, 128, 256), sigmoid=True),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", reduction="sum"),
        reconstruction_weight=1.0,
        adversarial_weight=1.0,
        discriminator_sees="prediction",
    ),
    data=DataConfig(flip=False),
    trainer=TrainerConfig(lr=2e-4, betas=(0.5, 0.999), lr_schedule="constant"),
)
"""The project's first recipe, as it was given.

Exact: the generator's kinds of layers (Conv2d + LeakyReLU down, ConvTranspose2d + BatchNorm2d + ELU up), its input
(256x256 photo with the hole removed, and the mask), the discriminator's (Conv2d + LeakyReLU to a 2-D map in 0..1,
given the generator's output), L1 over the hole's pixels as a plain sum, nn.MSELoss for the adversarial terms, D's loss
as the loss on its given input plus the loss on the full photo, 30 epochs.

Left open by its source and chosen here: widths, depth, Adam and its rates, batch of 8, pixels in [-1, 1], weights 1
and 1, and the sum's mean over the images of a batch, so that it does not grow with the batch. A sum over some 40,000
values beside a mean in 0..1 is 10^4 to 10^5 times the adversarial term: history.jsonl and the log show both terms'
gradient norms at the generator's output. With these weights the discriminator learns but hardly speaks;
--objective.reconstruction.reduction mean --objective.adversarial-weight 0.01 lets it.
"""

UNET = TrainConfig(
    recipe="unet",
    generator=UNetConfig(channels=(32, 64, 128, 256, 256)),
    discriminator=PatchDiscriminatorConfig(channels=(32, 64, 128, 256), sigmoid=True),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", reduction="mean"),
        reconstruction_weight=1.0,
        adversarial_weight=0.01,
        discriminator_sees="prediction",
    ),
    data=DataConfig(flip=True),
    trainer=TrainerConfig(lr=1e-3, lr_d=2e-4, betas=(0.5, 0.999), lr_schedule="tail"),
)
"""The seed's blocks with skip connections on a push-pull fill of the hole, predicting what the fill lacks.

For first runs: it starts from the push-pull fill, which the seed needs far more steps to reach.
"""

RECIPES: dict[str, TrainConfig] = {config.recipe: config for config in (SEED, UNET)}
