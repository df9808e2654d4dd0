"""Everything on the menu, cooked."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from inpaint_dist import models
from inpaint_dist.batch import Batch, Drafted, masked
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.gan import InpaintingGAN
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig, reconstruction_distance
from inpaint_dist.models import contextual_attention as module
from inpaint_dist.models.blocks import EqualisedConv2d, has_batch_statistics
from inpaint_dist.models.contextual_attention import contextual_attention
from inpaint_dist.models.efficientnet_lite import EfficientNetLite0
from inpaint_dist.models.fourier import FourierUnit
from inpaint_dist.models.global_discriminator import MinibatchDeviation
from inpaint_dist.models.nearest_fill import nearest_fill
from inpaint_dist.models.push_pull import push_pull
from inpaint_dist.pretrained import read_pretrained
from inpaint_dist.recipes import RECIPES

SMALL = {
    models.SeedAutoencoderConfig: {"channels": (8, 16, 16)},
    models.UNetConfig: {"channels": (8, 16, 16)},
    models.FFCUNetConfig: {"channels": (8, 16), "blocks": 2},
    models.FFCResNetConfig: {"base_channels": 4, "blocks": 2},
    models.ContextEncoderConfig: {"size": 16, "channels": (8, 16), "bottleneck": 24},
    models.GatedConfig: {"base_channels": 8, "dilations": (2,)},
    models.AOTConfig: {"base_channels": 8, "blocks": 1, "dilations": (1, 2)},
    models.MIGANConfig: {"channels": (8, 16, 16)},
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
        assert network.eval()(masked(image, mask), mask).shape == image.shape


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


HALVES = pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
SCALE = 1024.0
"""Of the losses below: small gradients vanish in fp16 otherwise, as they would without the trainer's scaler."""


@every_generator
@HALVES
def test_a_generator_runs_in_half_precision_and_gives_gradients_to_every_parameter(kind: type, precision: torch.dtype):
    torch.manual_seed(0)
    network = small(kind).to(memory_format=torch.channels_last)
    image, mask = (tensor.contiguous(memory_format=torch.channels_last) for tensor in a_batch())
    exact = network(masked(image, mask), mask)
    with torch.autocast("cpu", precision):
        made = network(masked(image, mask), mask)
    outputs, wanted = ((m.prediction, *m.drafts) if isinstance(m, Drafted) else (m,) for m in (made, exact))
    for output, want in zip(outputs, wanted, strict=True):
        assert (output.float() - want).abs().mean() <= 0.05 * want.abs().mean()
    (SCALE * torch.stack([output.float().square().mean() for output in outputs]).sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["seed", "unet"])
def test_the_discriminators_output_is_a_map_of_numbers_in_0_to_1_that_ignores_its_batch(name: str):
    network = RECIPES[name].discriminator.build()
    images = torch.randn(2, 3, 64, 64)
    holes = torch.ones(2, 1, 64, 64)
    scores = network(images, holes).scores
    assert scores.ndim == 4 and scores.shape[:2] == (2, 1) and scores.shape[2] == scores.shape[3] > 1
    assert scores.amin() >= 0 and scores.amax() <= 1
    assert not has_batch_statistics(network)
    assert torch.allclose(network(images[:1], holes[:1]).scores, scores[:1], atol=1e-6)


def test_the_seed_is_made_of_the_layers_it_was_given_with():
    network = RECIPES["seed"].generator.build()
    encoder, decoder = ({type(m) for m in part.modules()} for part in (network.encoder, network.decoder))
    assert encoder >= {nn.Conv2d, nn.LeakyReLU} and nn.ConvTranspose2d not in encoder
    assert decoder >= {nn.ConvTranspose2d, nn.BatchNorm2d, nn.ELU} and nn.Conv2d not in decoder
    critic = {type(m) for m in RECIPES["seed"].discriminator.build().modules()}
    assert critic >= {nn.Conv2d, nn.LeakyReLU}


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("seed", 13_904_195, 692_449),
        ("unet", 4_182_943, 692_449),
        ("mend", 961_012, 692_449),
        ("mend-light", 961_012, 692_449),
    ],
)
def test_parameter_counts_are_those_of_the_documentation(name: str, generator: int, discriminator: int):
    built = (RECIPES[name].generator.build(), RECIPES[name].discriminator.build())
    assert [sum(p.numel() for p in net.parameters()) for net in built] == [generator, discriminator]


@pytest.mark.parametrize(
    ("config", "millions"),  # of their authors' own code; the context encoder's of a widely used one
    [
        (models.FFCResNetConfig(base_channels=32, blocks=6), 4.8),
        (models.FFCResNetConfig(base_channels=64, blocks=9), 27.05),
        (models.FFCResNetConfig(base_channels=64, blocks=18), 50.98),
        (models.FeatureDiscriminatorConfig(), 6.96),
        (models.ContextEncoderConfig(), 40.4),
        (models.GatedConfig(), 4.05),
        (models.SpectralDiscriminatorConfig(), 5.95),
        (models.AOTConfig(), 15.2),
        (RECIPES["aot-gan"].discriminator, 2.76),
        (models.MIGANConfig(), 5.9),
    ],
    ids=repr,
)
def test_networks_of_others_have_their_number_of_parameters(config: models.GeneratorConfig, millions: float):
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


SMALL_JUDGES = {
    models.PatchDiscriminatorConfig: {},
    models.FeatureDiscriminatorConfig: {},
    models.SpectralDiscriminatorConfig: {"halvings": 2},
    models.GlobalDiscriminatorConfig: {"channels": (4, 8, 8, 8)},
    models.ProjectedDiscriminatorConfig: {"channels": (4, 4, 8, 8), "features": "random"},
}
assert SMALL_JUDGES.keys() == set(DISCRIMINATORS)
every_discriminator = pytest.mark.parametrize("kind", DISCRIMINATORS)


def small_judge(kind: type) -> nn.Module:
    torch.manual_seed(0)
    return kind(**({"channels": (4, 8, 8)} | SMALL_JUDGES[kind])).build()


@every_discriminator
def test_a_discriminator_gives_scores_and_the_features_of_the_layers_below(kind: type):
    judge = small_judge(kind)
    image, mask = a_batch(32)
    judgement = judge(image.requires_grad_(), mask)
    assert judgement.scores.ndim == 4 and len(judgement.scores) == 2
    assert len(judgement.features) >= 2
    assert all(features.shape[0] == 2 and features.requires_grad for features in judgement.features)
    smallest = judge.smallest_size
    judge(*(part[..., :smallest, :smallest] for part in a_batch(32)))


@pytest.mark.parametrize(
    "config",
    [
        models.SpectralDiscriminatorConfig(channels=(4, 4, 4, 4), kernel=4, halvings=3, sees_mask=False, scores=1),
        models.SpectralDiscriminatorConfig(channels=(4, 4, 4), kernel=4, halvings=2),
        models.SpectralDiscriminatorConfig(channels=(4, 4, 4), kernel=2, halvings=3),
    ],
    ids=repr,
)
def test_a_spectral_discriminators_smallest_size_is_the_smallest_that_it_takes(
    config: models.SpectralDiscriminatorConfig,
):
    judge = config.build()
    assert judge(*a_batch(judge.smallest_size)).scores.shape[-1] >= 1
    with pytest.raises(RuntimeError):
        judge(*a_batch(judge.smallest_size - 1))


@every_discriminator
@HALVES
def test_a_discriminator_runs_in_half_precision_and_gives_gradients_to_every_parameter(
    kind: type, precision: torch.dtype
):
    judge = small_judge(kind)
    with torch.autocast("cpu", precision):
        scores = judge(*a_batch(32)).scores
    (SCALE * scores.float().square().mean()).backward()
    assert torch.isfinite(scores).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in judge.parameters())


@every_discriminator
def test_what_a_discriminator_says_of_a_picture_depends_on_the_others_where_it_says_so_and_only_there(kind: type):
    judge = small_judge(kind)
    image, mask = a_batch(32)
    for _ in range(40):  # until a spectral norm's estimate stands still
        judge(image, mask)
    alone, together = judge(image[:1], mask[:1]).scores, judge(image, mask).scores[:1]
    assert torch.allclose(alone, together, atol=1e-6) != has_batch_statistics(judge)


@pytest.mark.parametrize("kind", [models.SpectralDiscriminatorConfig, models.GlobalDiscriminatorConfig])
def test_discriminators_that_are_told_the_hole_look_at_it(kind: type):
    judge = small_judge(kind).eval()
    image, mask = a_batch(32)
    assert not torch.equal(judge(image, mask).scores, judge(image, 1 - mask).scores)


def test_a_projected_discriminator_trains_its_judges_alone_and_lets_gradients_reach_the_picture():
    judge = small_judge(models.ProjectedDiscriminatorConfig)
    assert {name.split(".")[0] for name, _ in judge.named_parameters()} == {"judges"}
    assert not any(name.startswith("trunk") for name in judge.state_dict())  # it is loaded, not saved
    assert {name.split(".")[0] for name in judge.state_dict()} == {"mixing", "judges"}
    image, mask = a_batch(64)
    scores = judge(image.requires_grad_(), mask).scores
    assert scores.shape == (2, 4, 4, 4)
    scores.sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


LITE0 = Path(__file__).parents[3] / "shared/weights/efficientnet-lite0-57934424.fp16.pth"


@pytest.mark.skipif(not LITE0.exists(), reason="EfficientNet-lite0's weights are not beside the checkout")
def test_the_features_of_efficientnet_lite0_are_those_that_its_own_layers_give():
    """A trunk of torch's own layers, batch norm and all, run on the same weights."""
    raw = read_pretrained(LITE0)
    trunk = EfficientNetLite0(raw)
    image = a_batch(64)[0]
    features = trunk(image)
    assert [tuple(f.shape[1:]) for f in features] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (
            raw[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return nn.functional.batch_norm(values, mean, variance, weight, bias, eps=1e-3)

    stem = nn.functional.pad(image, (0, 1, 0, 1))  # an even size at stride 2: TensorFlow's odd pixel comes after
    values = nn.functional.relu6(norm(nn.functional.conv2d(stem, raw["_conv_stem.weight"], stride=2), "_bn0"))
    first = nn.functional.conv2d(values, raw["_blocks.0._depthwise_conv.weight"], padding=1, groups=32)
    first = nn.functional.relu6(norm(first, "_blocks.0._bn1"))
    first = norm(nn.functional.conv2d(first, raw["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    ours = trunk.blocks[0](nn.functional.relu6(trunk.stem(image)))
    assert torch.allclose(ours, first, atol=1e-4)
    assert [f.isfinite().all().item() and f.std().item() > 0.05 for f in features] == [True] * 4
    with pytest.raises(UserError, match=r"not EfficientNet-lite0.*--discriminator\.weights"):
        models.ProjectedDiscriminatorConfig(weights=LITE0.with_name("lpips_alex_trunk_and_lins.fp16.pth")).build()


def test_a_spectral_discriminators_layers_stretch_nothing():
    judge = models.SpectralDiscriminatorConfig(channels=(8, 16), halvings=2).build()
    for _ in range(60):  # each forward brings the estimate nearer
        judge(*a_batch(16))
    for convolution, _ in judge.layers:
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1.0, abs=0.02)


def test_the_minibatch_deviation_is_that_of_each_group():
    features = torch.tensor([0.0, 1.0, 2.0, 5.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    told = MinibatchDeviation(2)(features)[:, 2, 0, 0]  # groups of pictures 0 and 2, 1 and 3
    assert told.tolist() == pytest.approx([1.0, 2.0, 1.0, 2.0], abs=1e-3)
    three = MinibatchDeviation(4)(features[:3])  # 4 do not divide 3 pictures: one group of 3
    assert three[:, 2, 0, 0].tolist() == pytest.approx([(2 / 3) ** 0.5] * 3, abs=1e-3)


def test_a_coarse_draft_is_told_while_training_and_asked_to_be_near_the_photo():
    config = models.GatedConfig(**SMALL[models.GatedConfig])
    game = InpaintingGAN(config.build(), models.PatchDiscriminatorConfig(channels=(4,)).build(), ObjectiveConfig())
    batch = Batch(*a_batch())
    completion = game.complete(batch)
    assert len(completion.drafts) == 1 and completion.drafts[0].shape == batch.image.shape
    term = game.generator_loss(batch, completion).terms["reconstruction"]
    parts = [
        reconstruction_distance(x, batch.image, batch.mask, ReconstructionConfig())
        for x in (completion.prediction, *completion.drafts)
    ]
    assert term.item() == pytest.approx(sum(part.item() for part in parts))
    game.generator.eval()
    assert game.complete(batch).drafts == ()


def test_attention_rebuilds_a_hole_in_a_repeated_pattern_from_the_pattern():
    torch.manual_seed(0)
    pattern = torch.randn(2, 8, 8, 8).repeat(1, 1, 4, 4)
    hole = torch.zeros(2, 1, 32, 32)
    hole[:, :, 8:16, 8:16] = 1
    broken = torch.where(hole > 0.5, pattern + 0.3 * torch.randn_like(pattern), pattern)
    rebuilt = contextual_attention(broken, hole)
    inside = (slice(None), slice(None), slice(10, 14), slice(10, 14))
    assert (rebuilt - pattern)[inside].abs().mean() < 0.3 * (broken - pattern)[inside].abs().mean()


def test_attention_takes_nothing_from_holes_and_each_picture_of_a_batch_for_itself():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 16, 16)
    hole = torch.zeros(2, 1, 16, 16)
    hole[:, :, :8] = 1
    constant = torch.where(hole > 0.5, 7.0, torch.ones(()).expand_as(features))
    assert contextual_attention(constant, hole)[:, :, 2:-2, 2:-2].amax() < 4  # sevens are in the hole alone
    whole = contextual_attention(features, hole)
    assert torch.allclose(whole[1:], contextual_attention(features[1:], hole[1:]), atol=1e-5)
    assert torch.isfinite(contextual_attention(features, torch.ones_like(hole))).all()


def test_attention_in_half_precision_is_that_of_float32():
    torch.manual_seed(0)
    features, hole = torch.randn(1, 32, 16, 16).bfloat16(), torch.zeros(1, 1, 16, 16)
    hole[:, :, 5:9, 5:9] = 1
    with torch.autocast("cpu", torch.bfloat16):
        half = contextual_attention(features, hole)
    exact = contextual_attention(features.float(), hole)
    assert (half.float() - exact).abs().mean() < 0.004 * exact.abs().mean()


def test_attention_a_band_at_a_time_is_that_of_all_at_once(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    features, hole = torch.randn(2, 4, 20, 12), (torch.rand(2, 1, 20, 12) > 0.9).float()
    whole = contextual_attention(features, hole)
    for at_once in (1, 2 * 10 * 6 * 6 * 3):
        monkeypatch.setattr(module, "_AT_ONCE", at_once)
        assert torch.allclose(contextual_attention(features, hole), whole, atol=1e-5)


def test_attention_takes_nothing_from_a_hole_one_place_wide():
    features, hole = torch.ones(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    hole[:, :, 7] = 1  # an odd row, which the halved mask does not see
    features[:, :, 7] = 7.0
    assert contextual_attention(features, hole).amax() < 1.01


def test_a_context_encoder_takes_other_sizes_by_bringing_them_to_its_own():
    network = small(models.ContextEncoderConfig).eval()
    image, mask = a_batch(24)
    assert network(masked(image, mask), mask).shape == (2, 3, 24, 24)
    with pytest.raises(UsageError, match=r"--generator\.size 20"):
        models.ContextEncoderConfig(size=20, channels=(4, 8, 8))


SQUASHED_AND_RAW = (
    models.PatchDiscriminatorConfig(channels=(4, 8, 8), sigmoid=True),
    models.PatchDiscriminatorConfig(channels=(4, 8, 8), sigmoid=False),
    models.FeatureDiscriminatorConfig(channels=(4, 8, 8)),
    models.SpectralDiscriminatorConfig(channels=(4, 8, 8), halvings=2),
    models.GlobalDiscriminatorConfig(channels=(4, 8, 8, 8)),
    models.ProjectedDiscriminatorConfig(channels=(4, 4, 8, 8), features="random"),
)
assert {type(config) for config in SQUASHED_AND_RAW} == set(DISCRIMINATORS)


@pytest.mark.parametrize("config", SQUASHED_AND_RAW, ids=repr)
def test_scores_lie_between_0_and_1_where_the_config_says_so_and_only_there(config: models.DiscriminatorConfig):
    torch.manual_seed(0)
    network = config.build()
    for parameter in network.parameters():  # scores that are all near 0 would tell nothing
        nn.init.normal_(parameter, std=3.0)
    scores = network(torch.randn(2, 3, 32, 32), torch.ones(2, 1, 32, 32)).scores
    assert bool((scores.min() >= 0) & (scores.max() <= 1)) == config.sigmoid


@pytest.mark.parametrize(
    "config",
    [
        models.UNetConfig(channels=(8, 16)),
        models.FFCUNetConfig(channels=(8, 16), base="push-pull"),
        models.FFCUNetConfig(channels=(8, 16), base="push-pull", upsampling="transposed"),
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


def test_an_untrained_ffc_unet_is_the_mean_of_the_smooth_and_the_nearest_fill():
    image, mask = a_batch()
    hidden = masked(image, mask)
    filled = models.FFCUNetConfig(channels=(8, 16)).build()(hidden, mask)
    assert torch.allclose(filled, (push_pull(hidden, mask) + nearest_fill(hidden, mask)) / 2, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 9)])
def test_the_nearest_fill_gives_known_pixels_back_and_holes_the_colour_of_the_nearest(size: tuple[int, int]):
    torch.manual_seed(0)
    mask = (torch.nn.functional.avg_pool2d(torch.rand(1, 1, *size), 5, 1, 2) > 0.45).float()
    mask[..., 0, 0], mask[..., -1, -1] = 0, 1
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    places = torch.stack([rows, columns, rows * 0])[None] / 100  # colours that say where they come from
    filled = nearest_fill(masked(places, mask), mask)
    assert torch.equal(filled.masked_fill(mask > 0.5, 0), masked(places, mask))
    source = (filled * 100)[0, :2].flatten(1).T
    here = torch.stack([rows, columns]).flatten(1).T
    known = here[mask.flatten() == 0]
    found, least = (source - here).norm(dim=1), torch.cdist(here, known).amin(1)
    assert (found <= least + 1).all() and (found <= least + 1e-3).float().mean() > 0.98


def test_the_nearest_fill_of_nothing_known_is_mid_grey_and_never_looks_into_the_hole():
    ones = torch.ones(1, 1, 8, 8)
    assert torch.equal(nearest_fill(torch.zeros(1, 3, 8, 8), ones), torch.zeros(1, 3, 8, 8))
    image, mask = a_batch(16)
    assert torch.equal(nearest_fill(image, mask), nearest_fill(masked(image, mask), mask))


def test_a_step_of_adam_is_as_large_a_part_of_a_wide_layer_as_of_a_narrow_one():
    """Karras et al., 2018, section 4.1; and features keep their size from layer to layer."""
    torch.manual_seed(0)
    shares = []
    for channels in (16, 256):
        layer = EqualisedConv2d(channels, channels, 3)
        features = torch.randn(4, channels, 16, 16)
        assert float(layer(features).detach()[..., 1:-1, 1:-1].var()) == pytest.approx(2.0, rel=0.1)
        before = layer.weight.detach().clone()
        layer(features).square().mean().backward()
        torch.optim.Adam(layer.parameters(), lr=1e-3, betas=(0.0, 0.99)).step()
        shares.append(float((layer.weight.detach() - before).norm() / before.norm()))
    assert shares == pytest.approx([1e-3, 1e-3], rel=0.1)
