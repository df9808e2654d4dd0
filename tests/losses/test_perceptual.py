"""The perceptual and style terms: by hand, and on the official weights where they are at hand."""

from pathlib import Path

import pytest
import torch

from inpaint_dist.batch import LUCK, Batch
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.gan import InpaintingGAN
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.perceptual import (
    PerceptualConfig,
    VGG16Features,
    cut_windows,
    perceptual_distance,
    style_distance,
    window_corners,
    window_size,
)
from inpaint_dist.models import PatchDiscriminatorConfig, UNetConfig

OFFICIAL = Path(__file__).parents[3] / "shared" / "weights" / "lpips_vgg_trunk_and_lins.fp16.pth"


def layer(*values: float) -> torch.Tensor:
    """Features of one image at one place."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_perceptual_distance_is_that_of_unit_vectors_summed_over_layers():
    mine, theirs = [layer(3, 4), layer(1, 0)], [layer(4, 3), layer(0, 5)]
    by_hand = (0.6 - 0.8) ** 2 + (0.8 - 0.6) ** 2 + (1 + 1)
    assert perceptual_distance(mine, theirs).item() == pytest.approx(by_hand)
    assert perceptual_distance(mine, [10 * values for values in mine]).item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(perceptual_distance([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 2, 3, 3)]))


def test_style_distance_is_that_of_gram_matrices_and_knows_no_places():
    mine, theirs = [layer(1, 2)], [layer(2, 0)]
    by_hand = (abs(1 - 4) + abs(2) + abs(2) + abs(4)) / 4 / 2  # of 2 x 2 numbers, each over C x H x W
    assert style_distance(mine, theirs).item() == pytest.approx(by_hand)
    features = torch.randn(2, 4, 5, 5)
    assert style_distance([features], [features.flip(3)]).item() == pytest.approx(0, abs=1e-6)


def test_the_features_are_those_of_torchvisions_layers_and_take_no_gradient(vgg16: Path):
    network = PerceptualConfig(weights=vgg16).build()
    image = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    found = network(image)
    assert [tuple(f.shape) for f in found] == [(2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4)]
    assert list(network.state_dict())[-1] == "features.21.bias"
    assert not any(p.requires_grad for p in network.parameters())
    found[-1].sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_only_the_layers_asked_for_are_computed(vgg16: Path):
    network = PerceptualConfig(layers=("relu2_2",), weights=vgg16).build()
    assert [tuple(f.shape) for f in network(torch.zeros(1, 3, 8, 8))] == [(1, 128, 4, 4)]
    assert len(list(network.parameters())) == 2 * 4


def test_weights_that_are_not_there_or_not_of_this_network_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"--objective\.perceptual\.weights .*none\.pth: no such file"):
        PerceptualConfig(weights=tmp_path / "none.pth").build()
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: not VGG16 trained on ImageNet \(https://"):
        PerceptualConfig(weights=tmp_path / "other.pth").build()
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"noise\.pth: not a file of weights"):
        PerceptualConfig(weights=tmp_path / "noise.pth").build()
    with pytest.raises(UsageError, match=r"--objective\.perceptual\.layers"):
        PerceptualConfig(layers=())


def test_both_terms_are_computed_only_where_they_have_a_weight(vgg16: Path):
    torch.manual_seed(0)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    batch = Batch(image, (torch.rand(2, 1, 16, 16) > 0.5).float())
    networks = UNetConfig(channels=(4, 8)).build(), PatchDiscriminatorConfig(channels=(4, 8)).build()
    for weights, wanted in (
        ({"perceptual_weight": 0.5}, {"perceptual"}),
        ({"style_weight": 2.0}, {"style"}),
        ({"perceptual_weight": 0.5, "style_weight": 2.0}, {"perceptual", "style"}),
        ({}, set()),
    ):
        objective = ObjectiveConfig(perceptual=PerceptualConfig(weights=vgg16), **weights)
        features = objective.perceptual.build() if objective.looks_at_features else None
        game = InpaintingGAN(*networks, objective, features=features)
        losses = game.generator_loss(batch, game.complete(batch))
        assert losses.terms.keys() - {"reconstruction", "adversarial"} == wanted
        assert all(losses.weighted[name] == weights[f"{name}_weight"] * losses.terms[name] > 0 for name in wanted)


@pytest.mark.parametrize(
    ("height", "width", "share", "expected"),
    [(256, 256, 0.5, (128, 128)), (128, 96, 0.5, (64, 48)), (32, 32, 0.1, (16, 16)), (8, 40, 0.5, (8, 16))],
)
def test_a_window_is_a_share_of_the_picture_in_whole_sixteens(height: int, width: int, share: float, expected: tuple):
    assert window_size(height, width, share) == expected


def test_a_window_lies_around_a_pixel_of_the_hole_and_inside_the_picture():
    mask = torch.zeros(3, 1, 64, 48)
    mask[0, 0, 30, 20] = 1  # in the middle
    mask[1, 0, 0, 47] = 1  # in a corner
    for drawn in (0.0, 0.5, 0.999):
        corners = window_corners(mask, torch.full((3,), drawn), (16, 32))
        assert corners[:2].tolist() == [[22, 4], [0, 16]]
        assert 0 <= corners[2, 0] <= 48 and 0 <= corners[2, 1] <= 16  # no hole at all
    picture = torch.arange(64 * 48.0).view(1, 1, 64, 48).expand(3, 3, 64, 48)
    cut = cut_windows(picture, corners, (16, 32))
    assert torch.equal(cut[0], picture[0, :, 22:38, 4:36]) and torch.equal(cut[1], picture[1, :, :16, 16:])


def test_every_pixel_of_a_hole_is_chosen_as_often_as_any_other():
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = mask[0, 0, 3, 0] = 1
    drawn = torch.linspace(0, 0.999, 100)
    corners = window_corners(mask.expand(100, 1, 4, 4), drawn, (1, 1))
    assert corners[:50].unique(dim=0).tolist() == [[1, 2]] and corners[51:].unique(dim=0).tolist() == [[3, 0]]


def test_a_window_costs_its_share_and_its_gradient_stays_inside_it(vgg16: Path):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:12, 8:12] = 1
    objective = ObjectiveConfig(
        perceptual=PerceptualConfig(weights=vgg16, layers=("relu1_2",), window=0.5), perceptual_weight=1.0
    )
    shapes: list[tuple[int, ...]] = []
    features = objective.perceptual.build()
    features.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    critic = PatchDiscriminatorConfig(channels=(4, 8)).build()
    game = InpaintingGAN(lambda masked, mask: masked + 0.1, critic, objective, features=features)
    batch = Batch(image, mask, luck=torch.full((1, LUCK), 0.5))
    completion = game.complete(batch)
    completion.prediction.requires_grad_()
    (pull,) = torch.autograd.grad(game.generator_loss(batch, completion).terms["perceptual"], completion.prediction)
    assert shapes == [(1, 3, 32, 32)] * 2
    assert pull[..., :32, :32].abs().sum() > 0 and pull[..., 32:, :].abs().sum() == pull[..., 32:].abs().sum() == 0
    with pytest.raises(UsageError, match=r"--objective\.perceptual\.window 0"):
        PerceptualConfig(window=0.0)


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the official VGG16 is not beside the project")
def test_the_official_network_finds_blur_farther_than_the_same_error_in_brightness():
    network = PerceptualConfig(weights=OFFICIAL).build()
    assert isinstance(network, VGG16Features)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    stripes = torch.sign(torch.sin(x / 2) * torch.sin(y / 3)).expand(1, 3, 64, 64) * 0.5
    blurred = torch.nn.functional.avg_pool2d(stripes, 5, 1, 2)
    brighter = stripes + (blurred - stripes).square().mean().sqrt()
    theirs = network(stripes)
    assert perceptual_distance(network(blurred), theirs) > 2 * perceptual_distance(network(brighter), theirs)
