"""What a discriminator is shown: changed alike in photo, completion and mask, and as each sample's luck says."""

import pytest
import torch

from inpaint_dist.batch import LUCK, Batch
from inpaint_dist.chance import uniform
from inpaint_dist.gan import InpaintingGAN
from inpaint_dist.losses.adversarial import NonSaturatingConfig
from inpaint_dist.losses.augmentation import augment_image, augment_mask
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.models import PatchDiscriminatorConfig, UNetConfig

ALL = ("colour", "translation", "cutout")


def luck(rows: int, value: float = 0.5, **columns: float) -> torch.Tensor:
    """Every draw `value`, but for the named ones."""
    names = ("brightness", "saturation", "contrast", "down", "right", "cut_row", "cut_column", "window")
    drawn = torch.full((rows, LUCK), value)
    for name, number in columns.items():
        drawn[:, names.index(name)] = number
    return drawn


def a_picture(count: int = 1, side: int = 16) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, side, side) * 2 - 1


def test_luck_in_the_middle_leaves_colours_and_places_as_they_are():
    image = a_picture()
    assert torch.allclose(augment_image(image, luck(1), ("colour", "translation")), image, atol=1e-6)
    assert augment_image(image, luck(1), ()) is image


def test_colours_change_by_the_amounts_of_the_paper():
    image = a_picture()
    brighter = augment_image(image, luck(1, brightness=0.75), ("colour",))
    assert torch.allclose(brighter, image + 0.25, atol=1e-6)
    grey = augment_image(image, luck(1, saturation=0.0), ("colour",))
    assert torch.allclose(grey, image.mean(1, keepdim=True).expand_as(image), atol=1e-6)
    flat = augment_image(image, luck(1, contrast=0.0), ("colour",))
    assert torch.allclose(flat - flat.mean(), 0.5 * (image - image.mean()), atol=1e-6)


@pytest.mark.parametrize(("drawn", "by"), [(0.0, -2), (0.5, 0), (0.999, 2)])
def test_a_picture_moves_by_up_to_an_eighth_of_its_side_and_what_moves_in_is_blank(drawn: float, by: int):
    image = a_picture()
    moved = augment_image(image, luck(1, down=drawn), ("translation",))
    rows = [row + by for row in range(16)]
    for row, source in enumerate(rows):
        expected = image[:, :, source] if 0 <= source < 16 else torch.zeros(1, 3, 16)
        assert torch.equal(moved[:, :, row], expected)


def test_a_square_of_half_the_side_is_cut_out():
    cut = augment_image(torch.ones(1, 3, 16, 16), luck(1), ("cutout",))
    assert cut[0, 0].sum() == 16 * 16 - 8 * 8
    assert cut[0, 0, 4:12, 4:12].sum() == 0
    at_a_corner = augment_image(torch.ones(1, 3, 16, 16), luck(1, cut_row=0.0, cut_column=0.0), ("cutout",))
    assert at_a_corner[0, 0].sum() == 16 * 16 - 4 * 4


def test_photo_completion_and_mask_change_alike_and_each_sample_by_its_own_luck():
    drawn = torch.from_numpy(uniform(4, LUCK, 1, start=0))
    image = a_picture(4)
    mask = (image[:, :1] > 0.3).float()
    changed, moved = augment_image(image, drawn, ALL[1:]), augment_mask(mask, drawn, ALL)
    blank = changed[:, :1] == 0
    assert torch.equal(moved, torch.where(blank, torch.zeros(()), (changed[:, :1] > 0.3).float()))
    alone = [augment_image(image[i : i + 1], drawn[i : i + 1], ALL) for i in range(4)]
    assert torch.allclose(torch.cat(alone), augment_image(image, drawn, ALL), atol=1e-6)
    assert len({tuple(row.tolist()) for row in drawn}) == 4


def test_gradients_flow_back_to_the_completion_alone_where_it_was_not_cut_out():
    image = a_picture().requires_grad_()
    augment_image(image, luck(1), ALL).sum().backward()
    assert image.grad is not None
    assert (image.grad[0, 0, 4:12, 4:12] == 0).all() and (image.grad[0, 0, :4] != 0).any()


def test_the_game_shows_changed_photos_completions_and_holes_to_d():
    torch.manual_seed(0)
    image, seen = a_picture(2, 32), []
    batch = Batch(image, (image[:, :1] > 0.5).float(), luck=luck(2, down=0.0))
    objective = ObjectiveConfig(adversarial=NonSaturatingConfig(), augment=("translation",))
    critic = PatchDiscriminatorConfig(channels=(4, 8), sigmoid=False).build()
    critic.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    game = InpaintingGAN(UNetConfig(channels=(4, 8)).build(), critic, objective)
    completion = game.complete(batch)
    game.discriminator_loss(batch, completion)
    game.generator_loss(batch, completion)
    both, fake = seen
    assert torch.equal(both[:2, :, 4:], image[:, :, :-4]) and (both[:2, :, :4] == 0).all()
    assert torch.equal(both[2:], fake)
    with pytest.raises(ValueError, match="luck"):
        game.discriminator_loss(Batch(image, batch.mask), completion)
