import pytest
import torch
from torch import nn

from inpaint_dist.batch import Batch
from inpaint_dist.gan import InpaintingGAN
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.models import PatchDiscriminatorConfig, UNetConfig


def a_game(**objective: object) -> tuple[InpaintingGAN, nn.Module, nn.Module, Batch]:
    torch.manual_seed(0)
    generator, discriminator = UNetConfig(channels=(8, 8)).build(), PatchDiscriminatorConfig(channels=(8, 16)).build()
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    mask = torch.zeros(4, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return (
        InpaintingGAN(generator, discriminator, ObjectiveConfig(**objective)),
        generator,
        discriminator,
        Batch(image, mask),
    )


def test_the_discriminators_loss_gives_the_generator_no_gradient():
    game, generator, discriminator, batch = a_game()
    game.discriminator_loss(batch, game.complete(batch)).total.backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_one_pass_over_photos_and_completions_gives_the_losses_of_two():
    game, _, _, batch = a_game()
    completion = game.complete(batch)
    one = game.discriminator_loss(batch, completion)
    game.one_pass = False
    two = game.discriminator_loss(batch, completion)
    for name in ("total", "real", "fake"):
        assert torch.allclose(getattr(one, name), getattr(two, name), atol=1e-6)


def test_features_are_matched_only_where_they_have_a_weight():
    game, _, discriminator, batch = a_game(feature_matching_weight=2.0)
    losses = game.generator_loss(batch, game.complete(batch))
    assert losses.weighted["feature_matching"] == 2.0 * losses.terms["feature_matching"] > 0
    perfect = type(game.complete(batch))(batch.image, batch.image)
    assert game.generator_loss(batch, perfect).terms["feature_matching"] == 0
    game, *_ = a_game()
    assert "feature_matching" not in game.generator_loss(batch, game.complete(batch)).terms
    assert all(p.grad is None for p in discriminator.parameters())


def test_a_lazy_penalty_counts_for_the_steps_that_had_none_and_is_told_apart_from_the_loss():
    game, _, _, batch = a_game(r1_weight=0.5, r1_every=4)
    completion = game.complete(batch)
    without, penalised = (
        game.discriminator_loss(batch, completion),
        game.discriminator_loss(batch, completion, penalise=True),
    )
    assert without.r1 is None and penalised.r1 is not None and penalised.r1 > 0
    assert without.adversarial == penalised.adversarial == without.total
    assert torch.allclose(penalised.total, without.total + 0.5 * 4 * penalised.r1)


@pytest.mark.parametrize("sees", ["prediction", "composite"])
def test_the_discriminator_is_shown_what_the_objective_says(sees: str):
    game, _, _, batch = a_game(discriminator_sees=sees)
    completion = game.complete(batch)
    assert game.shown(completion) is getattr(completion, sees)


def test_the_generators_terms_weighed_are_its_loss():
    game, _, _, batch = a_game(reconstruction_weight=3.0, adversarial_weight=0.5)
    losses = game.generator_loss(batch, game.complete(batch))
    expected = 3.0 * losses.terms["reconstruction"] + 0.5 * losses.terms["adversarial"]
    assert torch.allclose(losses.total, expected)


def test_once_the_discriminator_has_learned_a_perfect_hole_costs_the_generator_less_than_noise():
    """AOT-GAN's released label is inverted: there a perfect hole scores worse than noise."""
    game, _, discriminator, batch = a_game(discriminator_sees="composite")
    noise = torch.where(batch.mask > 0.5, torch.rand_like(batch.image) * 2 - 1, batch.image)
    smooth = Batch(torch.zeros_like(batch.image) + torch.linspace(-0.5, 0.5, 16), batch.mask)
    bad = type(game.complete(batch))(noise, torch.where(batch.mask > 0.5, noise, smooth.image))
    perfect = type(bad)(smooth.image, smooth.image)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        game.discriminator_loss(smooth, bad).total.backward()
        optimizer.step()
    cost = [game.generator_loss(smooth, shown).terms["adversarial"].item() for shown in (perfect, bad)]
    assert cost[0] < 0.5 * cost[1]
