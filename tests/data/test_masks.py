"""The mask families: their laws, that a mask is a function of its key alone, and the limits of its hole."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import pytest

from inpaint_dist.data import mask_families, masks
from inpaint_dist.data.marks import Walks
from inpaint_dist.data.masks import FAMILIES, TRIES, MaskFamily, draw_mask, draw_within, mask_rng
from inpaint_dist.errors import UserError

NAMES = ("lama-train", "lama-thin", "lama-medium", "lama-thick", "mat-small", "mat-large", "deepfill", "center")
OURS = ("boxes", "strokes", "ellipses")

# sha256 of the pixels, first half: keys (family, size, 0, i) for 256 and i = 0, 1, then 512 and i = 0.
GOLDEN = {
    "lama-train": (
        "8363fbe57b0aeb2cc9475f38be9ed12a",
        "6326a73a62014e707c432c011df27c41",
        "688d0cd060ce8cfcedd76944cee9ddbe",
    ),
    "lama-thin": (
        "554923d0ae75ca04731398d4b9194cdb",
        "91354a55d8aedfc21a2ea5b9f9463d90",
        "9aa700ce4b42b5af39b2b89dab61b4c4",
    ),
    "lama-medium": (
        "eff3dd87a65b7cdfa3d1e7a98aa089e9",
        "0577edbbc4c812163887ccde20259e9f",
        "21e20b1486dd8d9b0ce41ad66c745da1",
    ),
    "lama-thick": (
        "3360dfba02cd2b5864ea0558e274e169",
        "47f6ddecf50aefcde24719f2ee000b6d",
        "2ff88e126dc0a14ee95f37f0733a896b",
    ),
    "mat-small": (
        "c2466b7e09dffdb8d9b612af916c9f98",
        "6cca747dc6d076f08b8b1060325ebab3",
        "03431121a66d01b524670a09dbf23895",
    ),
    "mat-large": (
        "5e78d731d19fd70ada15754e01967349",
        "1afed5b81530a316a9b4c2af76b7d680",
        "140ead0c538d7525b316671bf25423b8",
    ),
    "deepfill": (
        "13ce93e656b70bb9859ea7b6d87f9604",
        "f7e4610c8717da47dec5311086e90665",
        "8045f60cf085d7aedf4a33acce91d323",
    ),
    "center": (
        "91c72d1b585944a92281fb129a7e407b",
        "91c72d1b585944a92281fb129a7e407b",
        "b19b47d79ea3820bf8c5b7f9781d80e3",
    ),
    "boxes": (
        "aedaf9d14762f7fcc0065d6c9c217ad8",
        "82d7decb35a5e5da7d83651b7a281b00",
        "0c4898117235641b1d76b2b37770fbac",
    ),
    "strokes": (
        "18b0c6650dabce8a0f37f36367747811",
        "acc60e3bec445a4a0955dcf1ea18f07a",
        "e8955d3ebb01b38d9c29fc4fbb5e906c",
    ),
    "ellipses": (
        "f55cd45959f4abd25d2cab7503e9cf34",
        "19d5a31a056320e79804c1d6a4c2f458",
        "aba68f9f93ad17924d3e240fb2d5053a",
    ),
}

# Mean, 10th, 50th and 90th percentile of the hole ratio, measured on 400 masks of the authors' own code at 256.
PUBLISHED = {
    "lama-train": (0.34, 0.10, 0.31, 0.66),
    "lama-thin": (0.30, 0.10, 0.31, 0.48),
    "lama-medium": (0.23, 0.03, 0.26, 0.39),
    "lama-thick": (0.39, 0.11, 0.35, 0.70),
    "mat-small": (0.21, 0.05, 0.19, 0.38),
    "mat-large": (0.41, 0.16, 0.42, 0.65),
    "deepfill": (0.31, 0.23, 0.30, 0.40),
    "center": (0.25, 0.25, 0.25, 0.25),
}
# Both sides are samples of some hundreds: twice the standard error of their difference (0.2 x sqrt(1/300 + 1/400)),
# rounded up; a quantile's is about twice a mean's.
MEAN_TOLERANCE, QUANTILE_TOLERANCE = 0.03, 0.06


def ratios(family: str, size: int, count: int = 300) -> np.ndarray:
    return np.array([(draw_mask(family, size, size, mask_rng(family, size, 0, i)) > 0).mean() for i in range(count)])


def test_the_menu_holds_the_families_that_the_tests_know() -> None:
    assert tuple(FAMILIES) == (*NAMES, *OURS)
    assert set(GOLDEN) == {*NAMES, *OURS}
    assert set(PUBLISHED) == set(NAMES)


@pytest.mark.parametrize("family", [*NAMES, *OURS])
def test_a_mask_is_the_same_for_ever(family: str) -> None:
    keys = ((256, 0), (256, 1), (512, 0))
    drawn = [draw_mask(family, size, size, mask_rng(family, size, 0, index)) for size, index in keys]
    assert tuple(hashlib.sha256(mask.tobytes()).hexdigest()[:32] for mask in drawn) == GOLDEN[family]


def test_the_random_stream_of_a_key_is_frozen() -> None:
    assert mask_rng("lama-train", 256, 0, 0).random() == 0.728751724402015
    assert mask_rng(1, "é").getrandbits(32) == 1682123152


def test_every_part_of_a_key_and_its_type_counts() -> None:
    keys: list[tuple[int | str, ...]] = [(1,), ("1",), (1, 2), (12,), ("1", "2"), ("12",), ("1,2",), (2, 1), ()]
    assert len({mask_rng(*key).random() for key in keys}) == len(keys)


@pytest.mark.parametrize("family", NAMES)
def test_holes_are_as_large_as_those_of_the_published_code(family: str) -> None:
    mean, *quantiles = PUBLISHED[family]
    measured = ratios(family, 256)
    assert measured.mean() == pytest.approx(mean, abs=MEAN_TOLERANCE)
    assert np.quantile(measured, (0.1, 0.5, 0.9)) == pytest.approx(quantiles, abs=QUANTILE_TOLERANCE)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("size", [64, 512])
def test_a_family_covers_the_same_share_of_small_and_large_pictures(family: str, size: int) -> None:
    assert ratios(family, size, 100).mean() == pytest.approx(PUBLISHED[family][0], abs=2 * MEAN_TOLERANCE)


@pytest.mark.parametrize("family", [*NAMES, *OURS])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 64), (200, 320), (256, 256)])
def test_a_mask_is_of_0_and_255_with_a_hole_and_something_known(family: str, height: int, width: int) -> None:
    for index in range(20):
        mask = draw_mask(family, height, width, mask_rng(index))
        assert mask.shape == (height, width)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}


def test_the_central_hole_is_half_of_each_side() -> None:
    mask = draw_mask("center", 256, 128, mask_rng(0))
    assert mask[64:192, 32:96].all()
    assert (mask > 0).mean() == 0.25


def test_lama_thin_never_covers_more_than_half() -> None:
    assert max(ratios("lama-thin", 64, 200)) <= 0.5


def test_brush_walks_lead_to_both_sides() -> None:
    """Public ports throw the mirrored mask away, so that all walks drift one way."""
    walks = MaskFamily(marks=(Walks(count=(1, 1), vertices=(17, 17), width=(2, 3)),))
    columns = np.arange(512) - 255.5
    # A walk is densest where its steps pile up at the border that it ran into.
    leanings = [float((walks.draw(512, 512, mask_rng(i)).mean(axis=0) * columns).sum()) for i in range(100)]
    assert 25 < sum(leaning > 0 for leaning in leanings) < 75


@pytest.mark.parametrize(
    ("family", "limits"),
    [
        ("lama-train", (0.1, 0.5)),
        ("lama-train", (0.85, 0.9)),
        ("lama-thin", (0.45, 0.9)),
        ("lama-medium", (0.5, 0.5001)),
        ("mat-small", (0.0, 0.01)),
        ("mat-large", (0.8, 1.0)),
        ("deepfill", (0.55, 0.6)),
        ("center", (0.2, 0.3)),
    ],
)
def test_limits_of_the_hole_always_hold(family: str, limits: tuple[float, float]) -> None:
    for index in range(20):
        drawn = draw_within(family, 128, 128, mask_rng(index), hole_ratio=limits)
        assert drawn.hole_ratio == (drawn.mask > 0).mean()
        assert limits[0] <= drawn.hole_ratio <= limits[1]
        assert set(np.unique(drawn.mask)) == {0, 255}


def test_a_mask_that_meets_the_limits_at_once_is_the_one_without_limits() -> None:
    free = draw_within("lama-train", 128, 128, mask_rng(3))
    limited = draw_within("lama-train", 128, 128, mask_rng(3), hole_ratio=(free.hole_ratio - 0.01, 0.99))
    assert not limited.adjusted
    assert np.array_equal(free.mask, limited.mask)


@dataclass(frozen=True, kw_only=True)
class SquareFamily(MaskFamily):
    """The same square every time, and a count of how often it was drawn."""

    marks: tuple[()] = ()
    square: slice
    draws: list[int]

    def draw(self, height: int, width: int, rng: random.Random) -> np.ndarray:
        self.draws.append(1)
        canvas = np.zeros((height, width), np.uint8)
        canvas[self.square, self.square] = 255
        return canvas


def plant(monkeypatch: pytest.MonkeyPatch, square: slice) -> list[int]:
    """Put a SquareFamily called `planted` on the menu; the list grows by one for each of its draws."""
    family = SquareFamily(square=square, draws=[])
    monkeypatch.setattr(mask_families, "FAMILIES", {"planted": family})
    monkeypatch.setattr(masks, "_reach", lambda *key: (0.0, 1.0))
    masks._pixel_limits.cache_clear()
    return family.draws


@pytest.mark.parametrize(("limits", "wanted"), [((0.0, 0.03), 300), ((0.05, 0.9), 500)])
def test_after_bounded_tries_the_nearest_mask_is_grown_or_shrunk_at_its_edge(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[float, float], wanted: int
) -> None:
    draws = plant(monkeypatch, slice(20, 40))  # 400 of 10,000 pixels
    drawn = draw_within("planted", 100, 100, mask_rng(0), hole_ratio=limits)
    assert len(draws) == TRIES
    assert drawn.adjusted
    assert np.count_nonzero(drawn.mask) == wanted
    assert drawn.mask[23:37, 23:37].all()  # the middle of the square stays
    drawn.mask[17:43, 17:43] = 0
    assert not drawn.mask.any()  # and nothing far from it is touched


@pytest.mark.parametrize("square", [slice(0, 0), slice(0, 100)])
def test_a_law_that_draws_nothing_or_everything_still_gives_a_mask(
    monkeypatch: pytest.MonkeyPatch, square: slice
) -> None:
    draws = plant(monkeypatch, square)
    mask = draw_mask("planted", 100, 100, mask_rng(0))
    assert len(draws) == TRIES
    assert 0 < np.count_nonzero(mask) < mask.size


@pytest.mark.parametrize("family", ["center", "deepfill", "lama-thin"])
def test_limits_that_a_family_never_meets_are_refused_with_what_it_does_draw(family: str) -> None:
    with pytest.raises(UserError, match=rf"--hole-ratio 0.9 0.95 is out of reach: \d+ masks of {family} had holes of"):
        draw_mask(family, 256, 256, mask_rng(0), hole_ratio=(0.9, 0.95))


@pytest.mark.parametrize("limits", [(0.5, 0.1), (0.2, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_limits_that_are_no_range_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="is no range: give two numbers"):
        draw_mask("lama-train", 64, 64, mask_rng(0), hole_ratio=limits)


def test_an_unknown_family_is_refused_with_the_names_and_a_guess() -> None:
    with pytest.raises(UserError) as refusal:
        draw_mask("lama_tran", 64, 64, mask_rng(0))
    assert "Did you mean lama-train?" in str(refusal.value)
    assert all(name in str(refusal.value) for name in NAMES)


@pytest.mark.parametrize(("height", "width"), [(4, 64), (64, 0), (64, 20000)])
def test_a_size_that_cannot_be_drawn_is_refused(height: int, width: int) -> None:
    with pytest.raises(UserError, match=f"{width}x{height}"):
        draw_mask("center", height, width, mask_rng(0))
