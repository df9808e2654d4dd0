import numpy as np
import pytest
import torch

from inpaint_dist.batch import (
    Batch,
    check,
    composite,
    image_from_uint8,
    image_to_uint8,
    mask_from_bits,
    mask_from_uint8,
    masked,
)
from inpaint_dist.errors import UserError


def test_every_8_bit_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    image = image_from_uint8(levels)
    assert image.amin() == -1 and image.amax() == 1
    assert torch.equal(image_to_uint8(image), levels)


def test_known_pixels_of_a_composite_are_the_photos_own_whatever_the_predictions_precision():
    image, mask = torch.rand(2, 3, 8, 8) * 2 - 1, (torch.rand(2, 1, 8, 8) > 0.5).float()
    result = composite(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), image, mask)
    known = (mask == 0).expand_as(image)
    assert torch.equal(result[known], image[known])
    assert result.dtype == torch.float32 and result.abs().max() <= 1


def test_a_masked_photo_holds_nothing_of_its_hole_not_even_a_nan():
    image, mask = torch.full((1, 3, 2, 2), float("nan")), torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    image[..., 1, 1] = 0.5
    assert torch.equal(masked(image, mask), torch.tensor([[0.0, 0.0], [0.0, 0.5]]).expand(1, 3, 2, 2))


@pytest.mark.parametrize("width", [8, 13, 32])
def test_packed_bits_unpack_to_the_mask_they_were_packed_from(width: int):
    pixels = np.random.RandomState(0).randint(0, 2, (3, 5, width)).astype(np.uint8)
    unpacked = mask_from_bits(torch.from_numpy(np.packbits(pixels, axis=2)), width)
    assert torch.equal(unpacked, torch.from_numpy(pixels)[:, None].float())


def test_the_threshold_of_8_bit_masks_is_127():
    assert mask_from_uint8(torch.tensor([[[0, 127, 128, 255]]], dtype=torch.uint8)).tolist() == [[[[0, 0, 1, 1]]]]


def test_a_batch_splits_into_equal_parts_in_order():
    batch = Batch(torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 1, 1), torch.zeros(4, 1, 1, 1), tuple("abcd"))
    first, second = batch.split(2)
    assert (first.keys, second.keys) == (("a", "b"), ("c", "d"))
    assert second.image[:, 0, 0, 0].tolist() == [2, 3]


GOOD = (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4))


def test_a_good_batch_passes_the_door():
    check(Batch(*GOOD))


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (GOOD[0] + 1.5, GOOD[1], "outside"),
        (GOOD[0] * float("nan"), GOOD[1], "not finite"),
        (GOOD[0], GOOD[1] * 0.5, "other than 0 and 1"),
        (GOOD[0], GOOD[1] * 0, "no holes"),
        (GOOD[0], GOOD[1] * 0 + 1, "nothing but holes"),
        (GOOD[0], GOOD[1][..., :2], "photos"),
    ],
)
def test_the_door_names_what_is_wrong_with_a_batch(image: torch.Tensor, mask: torch.Tensor, words: str):
    batch = object.__new__(Batch)
    batch.__dict__.update(image=image, mask=mask, keys=("k",))
    with pytest.raises(UserError, match=words):
        check(batch)
