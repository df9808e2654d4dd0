"""Everything on the menu, cooked."""

from typing import get_args

import pytest
import torch
from torch import nn

from inpaint_dist import models
from inpaint_dist.batch import Batch, masked
from inpaint_dist.errors import UsageError
from inpaint_dist.gan import InpaintingGAN
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.models.blocks import has_batch_statistics
from inpaint_dist.models.fourier import FourierUnit
from inpaint_dist.models.push_pull import push_pull
from inpaint_dist.recipes import RECIPES

SMALL = {
    models.SeedAutoencoderConfig: {"channels": (8, 16, 16)},
    models.UNetConfig: {"channels": (8, 16, 16)},
    models.FFCUNetConfig: {"channels": (8, 16), "blocks": 2},
    models.FFCResNetConfig: {"base_channels": 4, "blocks": 2},
}
GENERATORS = get_args(models.GeneratorConfig)
assert len(GENERATORS) >= 4
assert set(GENERATORS) == SMALL.keys()
DISCRIMINATORS = get_args(models.DiscriminatorConfig)
assert len(DISCRIMINATORS) >= 2
assert len(RECIPES) >= 2

every_generator = pytest.mark.parametrize("kind", GENERATORS)


def small(kind: type) -> nn.Module:
    torch.manual_seed(0)
    network = kind(**SMALL[kind]).build()
    for parameter in network.parameters():  # also those that start at zero must be able to leak
        nn.init.normal_(parameter, std=0.1)
    return network


def a_batch(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(2, 3, size, size) * 2 - 1, (torch.rand(2, 1, size, size) > 0.6).float()


@every_generator
def test_a_generator_gives_a_whole_picture_for_any_multiple_of_its_size(kind: type):
    network = small(kind)
    for size in (network.size_multiple * 2, network.size_multiple * 3):
        image, mask = a_batch(size)
        assert network(masked(image, mask), mask).shape == image.shape


@every_generator
@pytest.mark.parametrize("training", [True, False])
def test_what_a_hole_hides_does_not_change_a_generators_output(kind: type, training: bool):
    game = InpaintingGAN(small(kind).train(training), models.PatchDiscriminatorConfig().build(), ObjectiveConfig())
    image, mask = a_batch()
    found = game.complete(Batch(image, mask)).prediction
    other = torch.where(mask > 0.5, torch.rand_like(image), image)
    assert torch.equal(found, game.complete(Batch(other, mask)).prediction)
    seen = torch.where(mask > 0.5, image, torch.rand_like(image))
    assert not torch.equal(found, game.complete(Batch(seen, mask)).prediction)


@every_generator
def test_a_generator_runs_in_bf16_and_gives_gradients_to_every_parameter(kind: type):
    network = small(kind)
    image, mask = a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(masked(image, mask), mask)
    output.float().square().mean().backward()
    assert torch.isfinite(output).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", ["seed", "unet"])
def test_the_discriminators_output_is_a_map_of_numbers_in_0_to_1_that_ignores_its_batch(name: str):
    network = RECIPES[name].discriminator.build()
    images = torch.randn(2, 3, 64, 64)
    scores = network(images).scores
    assert scores.ndim == 4 and scores.shape[:2] == (2, 1) and scores.shape[2] == scores.shape[3] > 1
    assert scores.amin() >= 0 and scores.amax() <= 1
    assert not has_batch_statistics(network)
    assert torch.allclose(network(images[:1]).scores, scores[:1], atol=1e-6)


def test_the_seed_is_made_of_the_layers_it_was_given_with():
    network = RECIPES["seed"].generator.build()
    encoder, decoder = ({type(m) for m in part.modules()} for part in (network.encoder, network.decoder))
    assert encoder >= {nn.Conv2d, nn.LeakyReLU} and nn.ConvTranspose2d not in encoder
    assert decoder >= {nn.ConvTranspose2d, nn.BatchNorm2d, nn.ELU} and nn.Conv2d not in decoder
    critic = {type(m) for m in RECIPES["seed"].discriminator.build().modules()}
    assert critic >= {nn.Conv2d, nn.LeakyReLU}


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [("seed", 13_904_195, 692_449), ("unet", 4_182_943, 692_449), ("mend", 958_899, 692_449)],
)
def test_parameter_counts_are_those_of_the_documentation(name: str, generator: int, discriminator: int):
    built = (RECIPES[name].generator.build(), RECIPES[name].discriminator.build())
    assert [sum(p.numel() for p in net.parameters()) for net in built] == [generator, discriminator]


@pytest.mark.parametrize(
    ("config", "millions"),  # of Suvorov et al.'s own code
    [
        (models.FFCResNetConfig(base_channels=32, blocks=6), 4.8),
        (models.FFCResNetConfig(base_channels=64, blocks=9), 27.05),
        (models.FFCResNetConfig(base_channels=64, blocks=18), 50.98),
        (models.FeatureDiscriminatorConfig(), 6.96),
    ],
)
def test_networks_of_lama_have_its_number_of_parameters(config: models.FFCResNetConfig, millions: float):
    with torch.device("meta"):
        network = config.build()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_fourier_convolution_sees_the_whole_picture_from_the_first_block_on():
    network = models.FFCResNetConfig(base_channels=4, blocks=1).build().eval()
    image, mask = a_batch(128)
    other = image.clone()
    other[..., 0, 0] += 0.5
    mask[..., 0, 0] = 0
    changed = (network(masked(other, mask), mask) - network(masked(image, mask), mask)).abs()
    assert changed[..., -8:, -8:].amax() > 0


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 7)])
def test_the_spectrum_is_computed_in_float32_and_comes_back_in_the_size_and_precision_of_what_came_in(
    size: tuple[int, int],
):
    unit = FourierUnit(4)
    features = torch.randn(2, 4, *size)
    exact = unit(features)
    with torch.autocast("cpu", torch.bfloat16):
        half = unit(features.bfloat16())
    assert exact.shape == half.shape == features.shape
    assert (exact.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(half.float(), exact, atol=0.1)


def test_a_global_share_that_leaves_a_branch_empty_is_refused():
    for config in (models.FFCResNetConfig, models.FFCUNetConfig):
        with pytest.raises(UsageError, match=r"--generator\.global-share 1\.0"):
            config(global_share=1.0)
    with pytest.raises(UsageError, match=r"--generator\.blocks 0"):
        models.FFCUNetConfig(blocks=0)


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_gives_a_map_of_scores_and_the_features_of_every_layer_below(kind: type):
    judgement = kind(channels=(4, 8, 8)).build()(torch.randn(2, 3, 32, 32))
    assert judgement.scores.shape[:2] == (2, 1) and judgement.scores.shape[-1] > 1
    assert len(judgement.features) >= 3
    assert all(features.shape[0] == 2 and features.requires_grad for features in judgement.features)


SQUASHED_AND_RAW = (
    models.PatchDiscriminatorConfig(channels=(4, 8, 8), sigmoid=True),
    models.PatchDiscriminatorConfig(channels=(4, 8, 8), sigmoid=False),
    models.FeatureDiscriminatorConfig(channels=(4, 8, 8)),
)
assert {type(config) for config in SQUASHED_AND_RAW} == set(DISCRIMINATORS)


@pytest.mark.parametrize("config", SQUASHED_AND_RAW, ids=repr)
def test_scores_lie_between_0_and_1_where_the_config_says_so_and_only_there(config: models.DiscriminatorConfig):
    torch.manual_seed(0)
    network = config.build()
    for parameter in network.parameters():  # scores that are all near 0 would tell nothing
        nn.init.normal_(parameter, std=0.5)
    scores = network(torch.randn(2, 3, 32, 32)).scores
    assert bool((scores.min() >= 0) & (scores.max() <= 1)) == config.sigmoid


@pytest.mark.parametrize(
    "config",
    [
        models.UNetConfig(channels=(8, 16)),
        models.FFCUNetConfig(channels=(8, 16)),
        models.FFCUNetConfig(channels=(8, 16), upsampling="transposed"),
    ],
)
def test_an_untrained_network_on_a_base_is_its_push_pull_base(config: models.GeneratorConfig):
    image, mask = a_batch()
    network = config.build()
    assert torch.equal(network(masked(image, mask), mask), push_pull(masked(image, mask), mask))


@pytest.mark.parametrize("size", [(16, 16), (7, 12), (1, 5)])
def test_push_pull_leaves_known_pixels_and_fills_a_flat_photo_flat(size: tuple[int, int]):
    mask = (torch.rand(1, 1, *size) > 0.5).float()
    mask[..., 0, 0] = 0
    photo = torch.rand(1, 3, *size) * 2 - 1
    filled = push_pull(masked(photo, mask), mask)
    assert torch.equal(filled.masked_fill(mask > 0.5, 0), masked(photo, mask))
    flat = torch.full((1, 3, *size), 0.25)
    assert torch.allclose(push_pull(masked(flat, mask), mask), flat, atol=1e-6)


def test_push_pull_of_nothing_known_is_mid_grey_and_of_bf16_is_float32():
    ones = torch.ones(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        filled = push_pull(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16), ones)
    assert filled.dtype == torch.float32
    assert torch.equal(filled, torch.zeros(1, 3, 8, 8))


def test_push_pull_fills_between_the_extremes_of_what_is_known():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    photo = torch.rand(1, 3, 32, 32) * 2 - 1
    known = masked(photo, mask)
    filled = push_pull(known, mask)
    assert filled.amin() >= known.amin() - 1e-6 and filled.amax() <= known.amax() + 1e-6
