"""Scores of a generator over a validation set."""

import pytest
import torch

from inpaint_dist.batch import Batch
from inpaint_dist.evaluation import EvaluationFailed, evaluate
from inpaint_dist.launch import Launch

ALONE = Launch(torch.device("cpu"), rank=0, world=1, precision="no", threads=1)


def a_batch() -> Batch:
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return Batch(torch.rand(2, 3, 16, 16) * 2 - 1, mask, ("a", "b"))


def test_what_is_scored_never_saw_what_a_hole_hides():
    seen: list[torch.Tensor] = []

    def complete(masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(masked.clone())
        return masked

    batch = a_batch()
    evaluate(complete, [batch], ALONE)
    assert torch.equal(seen[0], torch.where(batch.mask > 0.5, 0.0, batch.image))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_is_not_scored(value: float):
    """As 8 bits it is a picture like any other."""

    def complete(masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        prediction = masked.clone()
        prediction[0, 0, 5, 5] = value
        return prediction

    with pytest.raises(EvaluationFailed, match="a prediction is not finite"):
        evaluate(complete, [a_batch()], ALONE)
