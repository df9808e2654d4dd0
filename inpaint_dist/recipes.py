"""The recipes: name → TrainConfig. Each says what it is, what it reached, on what, in how long."""

from dataclasses import replace

from inpaint_dist.config import TrainConfig
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.losses.adversarial import HingeConfig, NonSaturatingConfig, SoftMaskConfig
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.perceptual import PerceptualConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig
from inpaint_dist.models import (
    AOTConfig,
    ContextEncoderConfig,
    FeatureDiscriminatorConfig,
    FFCResNetConfig,
    FFCUNetConfig,
    GatedConfig,
    GlobalDiscriminatorConfig,
    MIGANConfig,
    PatchDiscriminatorConfig,
    SeedAutoencoderConfig,
    SpectralDiscriminatorConfig,
    UNetConfig,
)
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

It starts from the push-pull fill, which the seed needs far more steps to reach. In ten minutes of two CPU cores at 128
pixels (2,262 steps) it gains 0.74 dB on that fill: 25.61 dB, where the seed has 23.08.
"""

MEND = TrainConfig(
    recipe="mend",
    generator=FFCUNetConfig(channels=(32, 64, 128), blocks=4),
    discriminator=PatchDiscriminatorConfig(channels=(32, 64, 128, 256), sigmoid=True),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", reduction="mean"),
        reconstruction_weight=1.0,
        adversarial_weight=0.01,
        perceptual=PerceptualConfig(window=0.5),
        perceptual_weight=3.0,
        discriminator_sees="composite",
    ),
    data=DataConfig(flip=True),
    trainer=TrainerConfig(lr=1e-3, lr_d=2e-4, betas=(0.5, 0.999), lr_schedule="cosine-tail"),
)
"""Ours: a slim U-Net that sees two unlearned fills, push-pull and the nearest known pixels, and weighs them; fast
Fourier convolutions at 1/8 of the size, noise to make texture of, and a perceptual loss that looks through a window.

What was tried and what it gave: docs/mend.md. Reached, at 128 pixels on 2,066 photos in ten minutes of two CPU cores
(867 steps): LPIPS 0.137, KID 0.0096, PSNR 25.06, beside `unet`'s 0.150, 0.0121, 25.61 and `lama-small`'s 0.198, 0.0265,
22.88. Its base, untrained, has 0.132, 0.0112, 24.98. At 64 pixels, in five minutes of one core with fast bf16 (1,675
steps): 0.098, 0.0066, 24.79, its base 0.102, 0.0137, 24.59.
"""

MEND_LIGHT = replace(MEND, recipe="mend-light", objective=replace(MEND.objective, perceptual_weight=0.0))
"""`mend` without its perceptual loss: it needs no weights of another network, and a step costs two thirds.

For first runs. In five minutes of one CPU core with fast bf16 at 64 pixels (2,617 steps): LPIPS 0.102, KID 0.0094, PSNR
25.38, where `unet` has 0.112, 0.0109, 25.18 and `mend` 0.098, 0.0066, 24.79.
"""

LAMA = TrainConfig(
    recipe="lama",
    generator=FFCResNetConfig(base_channels=64, blocks=9),
    discriminator=FeatureDiscriminatorConfig(channels=(64, 128, 256, 512)),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", where="known", reduction="picture"),
        reconstruction_weight=5.0,
        adversarial=NonSaturatingConfig(mask_as_fake_target=True),
        adversarial_weight=10.0,
        feature_matching_weight=100.0,
        perceptual_weight=30.0,
        r1_weight=0.008,
        r1_every=1,
        discriminator_sees="prediction",
    ),
    data=DataConfig(flip=True, batch_size=10, mask_source="lama-train"),
    trainer=TrainerConfig(lr=1e-3, lr_d=1e-4, betas=(0.9, 0.999), lr_schedule="constant", clip_grad=1.0),
)
"""LaMa-Fourier (Suvorov et al., 2022), the yardstick: L1 on the known pixels, a non-saturating GAN in which untouched
patches count as real, R1, feature matching, a perceptual loss.

As published: networks and their sizes, losses and their weights, optimisers, batch of 10 a GPU, masks drawn anew for
each sample. What differs: the perceptual term compares unit-length features of a VGG16 trained on ImageNet, where the
paper has an ADE20K dilated ResNet50; pictures are in [-1, 1] instead of [0, 1], for which the weights of L1 (10 there)
and R1 (0.001 times the squared norm there) are converted; the generator's average is what is evaluated and used; bf16.
It is made for about a million steps: a short run of it is no measure of it.
"""

LAMA_SMALL = replace(LAMA, recipe="lama-small", generator=FFCResNetConfig(base_channels=32, blocks=6))
"""LaMa's recipe on a generator of 4.8 million parameters instead of 27, a fifth of its multiplications.

In ten minutes of two CPU cores at 128 pixels, 162 steps: LPIPS 0.198, 22.88 dB.
"""

BIG_LAMA = replace(LAMA, recipe="big-lama", generator=FFCResNetConfig(base_channels=64, blocks=18))
"""LaMa's recipe on its larger generator, of 51 million parameters: 1.7 times the multiplications."""

CONTEXT_ENCODER = TrainConfig(
    recipe="context-encoder",
    generator=ContextEncoderConfig(),
    discriminator=FeatureDiscriminatorConfig(channels=(64, 128, 256)),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l2", where="hole", reduction="mean"),
        reconstruction_weight=0.999,
        adversarial=NonSaturatingConfig(mask_as_fake_target=False),
        adversarial_weight=0.001,
        discriminator_sees="composite",
    ),
    data=DataConfig(flip=True, mask_source="center"),
    trainer=TrainerConfig(lr=2e-3, lr_d=2e-4, betas=(0.5, 0.999), lr_schedule="constant"),
)
"""The context encoder (Pathak et al., 2016), where inpainting GANs begin: a central hole, L2 and a GAN through a narrow
bottleneck.

As published: losses and their weights, optimiser and rates, the hole. What differs: 256 pixels instead of 128, and the
mask in; a patch discriminator with batch norm on the whole composite, where the paper has one score of the hole's
block; no tenfold weight on a ring of overlap; a bottleneck of 3,750 channels; batch of 8 instead of 64. It takes
pictures of one size alone (--generator.size).
"""

DEEPFILL = TrainConfig(
    recipe="deepfillv2",
    generator=GatedConfig(),
    discriminator=SpectralDiscriminatorConfig(),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", where="both", reduction="mean"),
        reconstruction_weight=1.0,
        adversarial=HingeConfig(),
        adversarial_weight=1.0,
        discriminator_sees="composite",
    ),
    data=DataConfig(flip=True, mask_source="deepfill"),
    trainer=TrainerConfig(lr=1e-4, betas=(0.5, 0.999), lr_schedule="constant"),
)
"""DeepFillv2 (Yu et al., Free-Form Image Inpainting with Gated Convolution, 2019): two stages of gated convolutions
with contextual attention, L1 on both stages' outputs, a hinge GAN on every channel of a spectrally normalised
discriminator.

As published: networks, losses and weights, optimiser, masks. What differs: batch of 8 a process instead of 16, and a
hole's mask drawn for each sample; the fine stage is told the mask, as the paper draws it and the released code does
not. No user-guided channel.
"""

AOT = TrainConfig(
    recipe="aot-gan",
    generator=AOTConfig(),
    discriminator=SpectralDiscriminatorConfig(
        channels=(64, 128, 256, 512), kernel=4, halvings=3, sees_mask=False, scores=1
    ),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", where="both", reduction="mean"),
        reconstruction_weight=1.0,
        adversarial=SoftMaskConfig(),
        adversarial_weight=0.01,
        perceptual_weight=0.1,
        style_weight=250.0,
        discriminator_sees="composite",
    ),
    data=DataConfig(flip=True),
    trainer=TrainerConfig(lr=1e-4, betas=(0.5, 0.999), lr_schedule="constant"),
)
"""AOT-GAN (Zeng et al., 2021): eight blocks that look at four distances at once, L1, perceptual and style losses, and a
GAN whose discriminator is taught where the hole is.

As published: the networks' sizes, weights, optimiser, batch of 8. What differs: VGG16 where the paper has VGG19, four
of its layers, and features of unit length in the perceptual term; these terms look at the composite, where the paper's
look at the prediction; the softened hole is blurred by a patch of the scores, not by 10 pixels; convolutions pad with
zeros, not by reflection; masks are those stored with the photos, where the paper has NVIDIA's. The generator is
rewarded for holes that look real (its released code has that label the other way round).
"""

MIGAN = TrainConfig(
    recipe="mi-gan",
    generator=MIGANConfig(),
    discriminator=GlobalDiscriminatorConfig(),
    objective=ObjectiveConfig(
        reconstruction=ReconstructionConfig(kind="l1", where="hole", reduction="picture"),
        reconstruction_weight=2.0,
        adversarial=NonSaturatingConfig(mask_as_fake_target=False),
        adversarial_weight=1.0,
        r1_weight=10.0,
        r1_every=16,
        discriminator_sees="composite",
    ),
    data=DataConfig(flip=True, mask_source="mat-large"),
    trainer=TrainerConfig(lr=1e-3, betas=(0.0, 0.99), lr_schedule="constant"),
)
"""MI-GAN (Sargsyan et al., 2023) without its teacher: depthwise separable convolutions for phones, a StyleGAN2-like
discriminator on composite and mask, lazy R1.

As published: the generator's kind and size, the GAN loss, R1, optimiser, free-form masks. What differs, and it
matters: the paper distils a CoModGAN trained on millions of photos; its L1, over the hole and at several sizes, is the
distance to that teacher's output, here to the photo at one size. The generator has no noise; it resamples by means and
bilinearly. The discriminator is a patch of 4x4 shorter at 256 pixels; batch of 8 instead of 32.
"""

_ALL = (SEED, UNET, MEND, MEND_LIGHT, LAMA_SMALL, LAMA, BIG_LAMA, MIGAN, AOT, DEEPFILL, CONTEXT_ENCODER)
RECIPES: dict[str, TrainConfig] = {config.recipe: config for config in _ALL}
