import pytest
import torch

from inpaint_dist.errors import UsageError
from inpaint_dist.losses.adversarial import LeastSquares
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig, hole_distance

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
    assert hole_distance(PREDICTION, IMAGE, MASK, config).item() == pytest.approx(by_hand)


def test_known_pixels_do_not_count():
    wrong_outside = PREDICTION + (1 - MASK) * 0.3
    config = ReconstructionConfig()
    assert torch.equal(
        hole_distance(wrong_outside, IMAGE, MASK, config), hole_distance(PREDICTION, IMAGE, MASK, config)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(reduction: str):
    config = ReconstructionConfig(reduction=reduction)
    halves = [hole_distance(PREDICTION[i : i + 1], IMAGE[i : i + 1], MASK[i : i + 1], config) for i in (0, 1)]
    assert hole_distance(PREDICTION, IMAGE, MASK, config) == sum(halves) / 2


def test_a_photo_without_a_hole_costs_nothing_and_divides_by_nothing():
    loss = hole_distance(PREDICTION, IMAGE, torch.zeros_like(MASK), ReconstructionConfig())
    assert loss == 0


def test_bf16_predictions_are_summed_in_float32():
    loss = hole_distance(PREDICTION.bfloat16(), IMAGE, MASK, ReconstructionConfig(reduction="sum"))
    assert loss.dtype == torch.float32


def test_least_squares_gives_the_values_of_its_paper():
    real, fake = torch.full((2, 1, 2, 2), 0.75), torch.full((2, 1, 2, 2), 0.5)
    loss = LeastSquares()
    assert loss.discriminator(real, fake).item() == pytest.approx(0.25**2 + 0.5**2)
    assert loss.generator(fake).item() == pytest.approx(0.5**2)


def test_the_label_of_real_is_one_and_the_generator_is_rewarded_for_it():
    loss, fooled, caught = LeastSquares(), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert loss.generator(fooled) < loss.generator(caught)
    assert loss.discriminator(real=fooled, fake=caught) == 0


def test_terms_are_weighed_by_name():
    objective = ObjectiveConfig(reconstruction_weight=2.0, adversarial_weight=0.5)
    weighted = objective.weigh({"reconstruction": torch.tensor(3.0), "adversarial": torch.tensor(4.0)})
    assert {name: value.item() for name, value in weighted.items()} == {"reconstruction": 6.0, "adversarial": 2.0}


def test_a_negative_weight_is_refused_by_the_name_of_its_flag():
    with pytest.raises(UsageError, match=r"--objective\.adversarial-weight -1"):
        ObjectiveConfig(adversarial_weight=-1.0)
