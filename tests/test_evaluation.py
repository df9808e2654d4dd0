"""Scores of a generator over a validation set."""

import numpy as np
import pytest
import torch

from inpaint_dist.batch import Batch
from inpaint_dist.evaluation import METRICS, EvaluationFailed, Measured, Ruler, evaluate, measure
from inpaint_dist.launch import Launch
from inpaint_dist.metrics.learned import FEATURES

ALONE = Launch(torch.device("cpu"), rank=0, world=1, precision="no", threads=1)


class OneBatch:
    """A set of two photos."""

    size = 16

    def __init__(self) -> None:
        self.whole = a_batch()

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, numbers: list[int], device: torch.device) -> Batch:
        return self.whole


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

    photos = OneBatch()
    batch = photos.whole
    evaluate(complete, photos, Ruler(METRICS, ALONE.device), ALONE)
    assert torch.equal(seen[0], torch.where(batch.mask > 0.5, 0.0, batch.image))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_is_not_scored(value: float):
    """As 8 bits it is a picture like any other."""

    def complete(masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        prediction = masked.clone()
        prediction[0, 0, 5, 5] = value
        return prediction

    with pytest.raises(EvaluationFailed, match="a prediction is not finite"):
        evaluate(complete, OneBatch(), Ruler(METRICS, ALONE.device), ALONE)


def test_a_sets_own_features_are_computed_once_however_often_it_is_scored():
    ruler, seen = Ruler(METRICS, ALONE.device), 0

    def inception(image: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(image)
        return image.double().flatten(1).repeat(1, 3)[:, :FEATURES]  # 3 x 16 x 16 of them, thrice

    ruler.inception = inception  # type: ignore[assignment]

    def look(photos: OneBatch, shade: float) -> Measured:
        return measure(photos, lambda _, batch: torch.full_like(batch.image, shade), ruler, ALONE)

    photos, others = OneBatch(), OneBatch()
    first, second = look(photos, 0.1), look(photos, 0.2)
    assert seen == 2 * 2 + 2
    assert first.photos is not None and second.photos is not None and (first.photos == second.photos).all()
    assert second.completions is not None and (second.completions[:, :3] == np.float32(0.2)).all()
    look(others, 0.1)
    assert seen == 2 * 2 + 2 + 2 * 2
