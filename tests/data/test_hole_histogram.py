"""make_masks --like: holes as large as those of another set, and as often."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist.data.hole_histogram import BINS, HoleHistogram
from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks
from inpaint_dist.errors import UsageError, UserError

SHARES = [0.07] * 6 + [0.22] * 3 + [0.48]


@pytest.fixture
def others(tmp_path: Path) -> str:
    """Ten masks of three sizes, one of them of 0.48; and one without a hole, which counts for nothing."""
    (tmp_path / "others/deep").mkdir(parents=True)
    for number, share in enumerate([*SHARES, 0.0]):
        mask = np.zeros((100, 100), np.uint8)
        mask.ravel()[: round(share * mask.size)] = 255
        mask = np.repeat(np.repeat(mask, number % 3 + 1, axis=0), number % 3 + 1, axis=1)
        cv2.imwrite(str(tmp_path / f"others/{'deep/' * (number % 2)}{number}.png"), mask)
    return str(tmp_path / "others")


def test_a_set_is_counted_by_twentieths(others: str):
    found = HoleHistogram.read(others)
    assert {place: count for place, count in enumerate(found.counts) if count} == {1: 6, 4: 3, 9: 1}
    assert found.ranges == [pytest.approx(limits) for limits in [(0.05, 0.1), (0.2, 0.25), (0.45, 0.5)]]
    assert found.ranges[0][1] < 0.1  # where the next twentieth begins
    assert len(found.without(found.ranges[1:2])) == 7
    assert HoleHistogram.of([0.0, 1.0]).counts == (1, *(0,) * (BINS - 2), 1)


def test_masks_have_the_shares_of_the_set_however_many_are_drawn(others: str, tmp_path: Path):
    whole = make_masks(MaskSetConfig(out=tmp_path / "whole", count=500, size=64, like=others, workers=2))
    counts = HoleHistogram.of(row.hole_ratio for row in whole.rows).counts
    assert np.abs(np.array(counts)[[1, 4, 9]] - [300, 150, 50]).max() <= 2 and sum(counts) == 500
    assert whole.lines()[-1].endswith("are of another twentieth than those of the 10 of --like")
    few = make_masks(MaskSetConfig(out=tmp_path / "few", count=20, size=64, like=others))
    assert few.rows == whole.rows[:20]
    assert (tmp_path / "few/000019.png").read_bytes() == (tmp_path / "whole/000019.png").read_bytes()
    another = make_masks(MaskSetConfig(out=tmp_path / "another", count=20, size=64, like=others, seed=1))
    assert [row.hole_ratio for row in another.rows] != [row.hole_ratio for row in few.rows]


@pytest.mark.parametrize("count", [7, 100, 1000])
def test_the_first_masks_of_a_sequence_have_each_twentieth_in_its_share(count: int):
    like = HoleHistogram((1, 2, 3, 4, *(0,) * 12, 5, 6, 7, 8))
    for seed in range(5):
        chosen = HoleHistogram.of(like.choose(index, seed)[0] + 0.01 for index in range(count))
        exact = np.array(like.counts) / len(like) * count
        assert np.abs(np.array(chosen.counts) - exact).max() <= 3
    assert like.distance(like) == 0
    assert like.distance(HoleHistogram((0,) * 10 + (1,) + (0,) * 9)) == pytest.approx(1.0)


def test_the_same_set_goes_on_and_another_one_is_refused(others: str, tmp_path: Path):
    config = MaskSetConfig(out=tmp_path / "out", count=5, size=64, like=others)
    first = make_masks(config)
    assert make_masks(config) == first
    Path(others, "0.png").unlink()
    with pytest.raises(UserError, match=r"masks made with other settings: like \[0, 6, .* \(now \[0, 5, "):
        make_masks(config)


def test_holes_that_the_family_never_has_are_left_out_and_counted(others: str, tmp_path: Path):
    mask = np.zeros((10, 10), np.uint8)
    mask[:7] = 255
    cv2.imwrite(f"{others}/large.png", mask)
    report = make_masks(MaskSetConfig(out=tmp_path / "out", count=20, size=64, family="lama-thin", like=others))
    assert report.out_of_reach == 1
    assert report.lines()[-1].startswith("1 masks of --like have holes that this --family never has")
    assert max(row.hole_ratio for row in report.rows) < 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"like": "{}", "family": "center"}, r"--like .*others: --hole-ratio 0\.45 0\.5 is out of reach: .* of center"),
        ({"like": "{}/none"}, "no such file"),
        ({"like": "{}/deep/black"}, r"--like .*: no mask there can be used: they have no hole"),
        ({"like": "{}", "hole_ratio": (0.1, 0.2)}, "--like and --hole-ratio: give one of the two"),
    ],
)
def test_a_set_that_cannot_be_drawn_like_is_refused(others: str, tmp_path: Path, options: dict, said: str):
    (Path(others) / "deep/black").mkdir()
    cv2.imwrite(f"{others}/deep/black/0.png", np.zeros((9, 9), np.uint8))
    options["like"] = options["like"].format(others)
    with pytest.raises((UserError, UsageError), match=said):
        make_masks(MaskSetConfig(out=tmp_path / "out", count=2, size=64, **options))
    assert not (tmp_path / "out").exists()
