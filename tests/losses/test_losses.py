import math

import pytest
import torch

from inpaint_dist.batch import Judgement
from inpaint_dist.errors import UsageError
from inpaint_dist.losses.adversarial import (
    AdversarialConfig,
    HingeConfig,
    LeastSquares,
    LeastSquaresConfig,
    NonSaturatingConfig,
    SoftMaskConfig,
    accuracy,
    feature_distance,
    r1_penalty,
)
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig, reconstruction_distance
from inpaint_dist.losses.spectrum import focal_frequency_distance, total_variation

WHOLE = torch.ones(2, 1, 4, 4)
"""A mask that is all hole."""
IMAGE = torch.zeros(2, 3, 2, 2)
PREDICTION = torch.full((2, 3, 2, 2), 0.5)
MASK = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 0.0]]]])  # holes of 1 and 3 pixels


@pytest.mark.parametrize(
    ("kind", "reduction", "by_hand"),
    [
        ("l1", "mean", 0.5),
        ("l2", "mean", 0.25),
        ("l1", "sum", (0.5 * 3 * 1 + 0.5 * 3 * 3) / 2),
        ("l2", "sum", (0.25 * 3 * 1 + 0.25 * 3 * 3) / 2),
    ],
)
def test_the_distance_inside_the_hole_is_that_computed_by_hand(kind: str, reduction: str, by_hand: float):
    config = ReconstructionConfig(kind=kind, reduction=reduction)
    assert reconstruction_distance(PREDICTION, IMAGE, MASK, config).item() == pytest.approx(by_hand)


def test_known_pixels_do_not_count():
    wrong_outside = PREDICTION + (1 - MASK) * 0.3
    config = ReconstructionConfig()
    assert torch.equal(
        reconstruction_distance(wrong_outside, IMAGE, MASK, config),
        reconstruction_distance(PREDICTION, IMAGE, MASK, config),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(reduction: str):
    config = ReconstructionConfig(reduction=reduction)
    halves = [reconstruction_distance(PREDICTION[i : i + 1], IMAGE[i : i + 1], MASK[i : i + 1], config) for i in (0, 1)]
    assert reconstruction_distance(PREDICTION, IMAGE, MASK, config) == sum(halves) / 2


def test_a_photo_without_a_hole_costs_nothing_and_divides_by_nothing():
    loss = reconstruction_distance(PREDICTION, IMAGE, torch.zeros_like(MASK), ReconstructionConfig())
    assert loss == 0


def test_bf16_predictions_are_summed_in_float32():
    loss = reconstruction_distance(PREDICTION.bfloat16(), IMAGE, MASK, ReconstructionConfig(reduction="sum"))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("where", "reduction", "by_hand"),
    [
        ("known", "mean", (0.5 + 0.5) / 2),
        ("known", "sum", (0.5 * 3 * 3 + 0.5 * 3 * 1) / 2),
        ("known", "picture", (0.5 * 3 / 4 + 0.5 * 1 / 4) / 2),
        ("hole", "picture", (0.5 * 1 / 4 + 0.5 * 3 / 4) / 2),
        ("both", "mean", 0.5),
        ("both", "sum", 0.5 * 12),
    ],
)
def test_known_pixels_or_all_may_count_instead(where: str, reduction: str, by_hand: float):
    config = ReconstructionConfig(where=where, reduction=reduction)
    assert reconstruction_distance(PREDICTION, IMAGE, MASK, config).item() == pytest.approx(by_hand)


def test_least_squares_gives_the_values_of_its_paper():
    real, fake = torch.full((2, 1, 2, 2), 0.75), torch.full((2, 1, 2, 2), 0.5)
    loss = LeastSquares()
    assert loss.discriminator(real, fake, WHOLE).item() == pytest.approx(0.25**2 + 0.5**2)
    assert loss.generator(fake, WHOLE[: len(fake)]).item() == pytest.approx(0.5**2)


def test_the_label_of_real_is_one_and_the_generator_is_rewarded_for_it():
    loss, fooled, caught = LeastSquares(), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert loss.generator(fooled, WHOLE[: len(fooled)]) < loss.generator(caught, WHOLE[: len(caught)])
    assert loss.discriminator(fooled, caught, WHOLE[:1]) == 0


def log_one_plus_exp(value: float) -> float:
    return math.log(1 + math.exp(value))


def test_the_non_saturating_loss_gives_the_values_of_its_paper():
    real, fake = torch.full((2, 1, 2, 2), 0.75), torch.full((2, 1, 2, 2), -0.5)
    loss = NonSaturatingConfig(mask_as_fake_target=False).build()
    by_hand = log_one_plus_exp(-0.75) + log_one_plus_exp(-0.5)
    assert loss.discriminator(real, fake, WHOLE).item() == pytest.approx(by_hand)
    assert loss.generator(fake, WHOLE[: len(fake)]).item() == pytest.approx(log_one_plus_exp(0.5))


def test_with_the_mask_as_fake_target_patches_that_no_hole_touches_are_to_be_called_real():
    real, fake = torch.full((1, 1, 2, 2), 0.75), torch.full((1, 1, 2, 2), -0.5)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 3] = 1  # one pixel, in the first of four cells
    loss = NonSaturatingConfig().build()
    by_hand = log_one_plus_exp(-0.75) + (log_one_plus_exp(-0.5) + 3 * log_one_plus_exp(0.5)) / 4
    assert loss.discriminator(real, fake, mask).item() == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("config", "shift"), [(LeastSquaresConfig(), 0.5), (HingeConfig(), 0.0), (NonSaturatingConfig(), 0.0)]
)
def test_accuracy_is_the_share_of_patches_on_the_right_side_of_the_losss_threshold(
    config: AdversarialConfig, shift: float
):
    real = torch.tensor([[[[0.1, 0.2], [-0.1, 0.3]]], [[[0.1, -0.2], [-0.1, -0.3]]]]) + shift
    fake = torch.tensor([[[[-0.1, -0.2], [-0.1, -0.3]]], [[[0.1, -0.2], [0.2, 0.4]]]]) + shift
    right = accuracy(config.build(), real, fake, WHOLE)
    assert [share.item() for share in right] == pytest.approx([(3 + 1) / 8, (4 + 1) / 8])


def test_with_the_mask_as_fake_target_accuracy_asks_only_for_patches_that_a_hole_touches():
    fake = torch.tensor([[[[-1.0, 1.0], [1.0, 1.0]]], [[[-1.0, 1.0], [-1.0, -1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, :, 3, 3] = 1  # one of four cells, which is caught
    mask[1, :, :4] = 1  # two of four, of which one is; the third image has no hole and nothing to be caught
    _, caught = accuracy(NonSaturatingConfig().build(), fake, fake, mask)
    assert caught.item() == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    _, caught = accuracy(NonSaturatingConfig(mask_as_fake_target=False).build(), fake, fake, mask)
    assert caught.item() == pytest.approx((1 / 4 + 3 / 4 + 0) / 3)


def test_the_hinge_loss_gives_the_values_of_its_paper_and_nothing_beyond_its_margins():
    real, fake = torch.tensor([[[[0.25, 2.0]]]]), torch.tensor([[[[-0.5, -3.0]]]])
    loss = HingeConfig().build()
    assert loss.discriminator(real, fake, WHOLE[:1]).item() == pytest.approx((0.75 + 0) / 2 + (0.5 + 0) / 2)
    assert loss.generator(fake, WHOLE[: len(fake)]).item() == pytest.approx(1.75)


def test_the_soft_mask_loss_gives_the_values_of_its_paper_with_a_softened_hole():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1  # the left half of the picture; scores of 8 x 8, of which the edge is in the middle
    real, fake = torch.full((1, 1, 8, 8), 0.75), torch.full((1, 1, 8, 8), 0.5)
    blur = [math.exp(-0.5 * place**2) for place in range(-3, 4)]
    blur = [weight / sum(blur) for weight in blur]
    hole = [1, 1, 1, 1, 0, 0, 0, 0]
    soft = [sum(w * hole[min(max(x + d, 0), 7)] for d, w in enumerate(blur, -3)) for x in range(8)]
    by_hand = sum((0.5 - (1 - s)) ** 2 for s in soft) / 8 + 0.25**2
    loss = SoftMaskConfig(sigma=1.0).build()
    assert loss.discriminator(real, fake, mask).item() == pytest.approx(by_hand, abs=1e-6)
    assert loss.generator(fake, mask).item() == pytest.approx(0.5**2 / 2)
    assert 0.5 < soft[3] < 1 and 0 < soft[4] < 0.5


def test_a_perfect_hole_costs_the_soft_mask_generator_nothing_and_noise_does():
    """The released code of AOT-GAN labels it the other way: there a hole that D takes for real scores worst."""
    loss, mask = SoftMaskConfig().build(), torch.ones(1, 1, 8, 8)
    taken_for_real, caught = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert loss.generator(taken_for_real, mask) == 0 < loss.generator(caught, mask)

    def inverted(fake: torch.Tensor) -> torch.Tensor:  # the bug, made again
        return ((fake - (1 - mask[..., :2, :2])).square() * mask[..., :2, :2]).mean()

    assert inverted(taken_for_real) > inverted(caught)


@pytest.mark.parametrize("config", [LeastSquaresConfig(), NonSaturatingConfig(), HingeConfig(), SoftMaskConfig()])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_scores_are_float32_and_good_scores_cost_less(
    config: AdversarialConfig, half: torch.dtype
):
    good, bad = torch.ones(2, 1, 4, 4, dtype=half), -torch.ones(2, 1, 4, 4, dtype=half)
    loss = config.build()
    assert loss.generator(good, WHOLE[: len(good)]).dtype == loss.discriminator(good, bad, WHOLE).dtype == torch.float32
    assert loss.generator(good, WHOLE[: len(good)]) < loss.generator(bad, WHOLE[: len(bad)])
    assert loss.discriminator(good, bad, WHOLE) < loss.discriminator(bad, good, WHOLE)


def test_r1_is_half_the_squared_gradient_of_the_scores_at_photos():
    weight = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).requires_grad_()

    def judge(image: torch.Tensor) -> Judgement:
        return Judgement((image * weight).sum((1, 2, 3)).view(-1, 1, 1, 1))

    penalty = r1_penalty(judge, torch.rand(5, 3, 4, 4))
    assert penalty.item() == pytest.approx(0.5 * 16 * (1 + 4 + 0.25))
    penalty.backward()  # it can be derived again: d/dw of 0.5 * 16 * |w|^2
    assert torch.allclose(weight.grad, 16 * weight.detach())


def test_feature_matching_is_the_mean_over_layers_of_the_squared_distance_and_leaves_the_photo_alone():
    scores = torch.zeros(1, 1, 1, 1)
    mine = torch.full((1, 2, 3, 3), 1.0, requires_grad=True)
    theirs = torch.full((1, 2, 3, 3), 3.0, requires_grad=True)
    other = torch.zeros(1, 4, 1, 1)
    loss = feature_distance(Judgement(scores, (mine, other)), Judgement(scores, (theirs, other + 1)))
    assert loss.item() == pytest.approx((4 + 1) / 2)
    loss.backward()
    assert mine.grad is not None and theirs.grad is None


def test_terms_are_weighed_by_name():
    objective = ObjectiveConfig(reconstruction_weight=2.0, adversarial_weight=0.5)
    weighted = objective.weigh({"reconstruction": torch.tensor(3.0), "adversarial": torch.tensor(4.0)})
    assert {name: value.item() for name, value in weighted.items()} == {"reconstruction": 6.0, "adversarial": 2.0}


def test_a_negative_weight_is_refused_by_the_name_of_its_flag():
    with pytest.raises(UsageError, match=r"--objective\.adversarial-weight -1"):
        ObjectiveConfig(adversarial_weight=-1.0)


def test_the_focal_frequency_distance_weighs_each_frequency_by_its_own_distance():
    image = torch.zeros(1, 3, 4, 4)
    flat = torch.full_like(image, 0.5)  # one frequency of 16: 0.5 * 16 / 4 = 2, squared 4, weight 1
    assert focal_frequency_distance(flat, image).item() == pytest.approx(4 / 16)
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(1, 3, 4, 4)  # another one: 16 / 4 = 4
    both = focal_frequency_distance(flat + wave, image).item()
    assert both == pytest.approx((16 * 1 + 4 * 0.5) / 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert focal_frequency_distance(flat.bfloat16(), image).dtype == torch.float32


def test_the_total_variation_counts_steps_in_the_hole_and_at_its_edge_alone():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:5, 3:5] = 1  # with one pixel around it rows and columns 2 to 5
    stripes = torch.arange(8.0).remainder(2).view(1, 1, 1, 8).expand(1, 3, 8, 8)  # a step of 1 at every column
    assert total_variation(stripes, mask).item() == pytest.approx(3 * 4 * 3 / (3 * 64))  # 3 steps in 4 rows
    outside = torch.where(torch.arange(8.0) > 6, 1.0, 0.0).view(1, 1, 1, 8).expand(1, 3, 8, 8)
    assert total_variation(outside, mask) == 0


def test_a_distance_over_scales_is_the_mean_over_halvings_of_what_counts():
    image, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., 1:3] = 1
    checks = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    plain, two = (reconstruction_distance(checks, image, mask, ReconstructionConfig(scales=n)) for n in (1, 2))
    assert plain == 1.0
    # columns 1 and 2 are the hole: at half the size each cell has two of four pixels that count, both of one sign
    assert two.item() == pytest.approx((1.0 + 1.0) / 2)
    alike = mask * 0.5
    assert reconstruction_distance(alike.expand(1, 3, 4, 4), image, mask, ReconstructionConfig(scales=3)) == 0.5
    with pytest.raises(UsageError, match=r"--objective\.reconstruction\.scales 0"):
        ReconstructionConfig(scales=0)
