import pytest
import torch
import torch.nn.functional as F

from inpaint_dist.batch import composite
from inpaint_dist.metrics.health import FLOOR, picture_health

HEALTHY = {"health/colour_gap": 0.0, "health/border": 1.0, "health/sharpness": 1.0, "health/checkerboard": 1.0}


def photos(count: int = 3, size: int = 64) -> torch.Tensor:
    """Shapes, slopes and grain, each photo its own."""
    torch.manual_seed(4)
    coarse = F.interpolate(torch.rand(count, 3, 8, 8) - 0.5, size=size, mode="bilinear")
    return coarse + 0.04 * torch.randn(count, 3, size, size).clamp(-2, 2)


def holes(count: int = 3, size: int = 64) -> torch.Tensor:
    mask = torch.zeros(count, 1, size, size)
    mask[..., 16:48, 12:40] = 1
    return mask


def health(fill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    found = picture_health(composite(fill, image, mask), image, mask)
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in found.values())
    return {name: value.item() for name, value in found.items()}


def blurred(image: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(image, (4, 4, 4, 4), mode="reflect"), 9, stride=1)


def test_the_photo_itself_is_healthy():
    assert health(photos(), photos(), holes()) == HEALTHY


def test_a_blurred_hole_is_neither_sharp_nor_a_seam_nor_a_grid():
    found = health(blurred(photos()), photos(), holes())
    assert found["health/sharpness"] < 0.2
    assert found["health/border"] == pytest.approx(1.0, abs=0.3)
    assert found["health/colour_gap"] < 0.05
    assert found["health/checkerboard"] < 1.0


def test_a_flat_hole_of_another_colour_shows_in_the_colour_gap_and_at_the_border():
    image = blurred(photos())
    found = health(torch.full_like(image, 0.9), image, holes())
    assert found["health/colour_gap"] > 0.5
    assert found["health/border"] > 5.0


GRIDS = {
    "board": lambda y, x: (y + x) % 2,
    "columns": lambda y, x: x % 2,
    "rows": lambda y, x: y % 2,
    "wide columns": lambda y, x: (x // 2) % 2,
    "dots": lambda y, x: 2 * (x % 4 == 0) * (y % 4 == 0),
}


@pytest.mark.parametrize("kind", GRIDS)
def test_a_grid_of_two_or_four_pixels_is_a_checkerboard_whether_the_hole_is_sharp_or_blurred(kind: str):
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    grid = 0.1 * (GRIDS[kind](y, x).float() - 0.5)
    for fill in (photos(), blurred(photos())):
        assert health(fill + grid, photos(), holes())["health/checkerboard"] > 3.0


def test_grain_without_a_period_is_no_checkerboard():
    grain = blurred(photos()) + 0.04 * torch.randn(photos().shape)
    assert health(grain, photos(), holes())["health/checkerboard"] == pytest.approx(1.0, abs=0.3)


def test_the_figures_are_those_computed_by_hand():
    """A photo of 0 with a step of 0.25 across the hole's whole border, filled with stripes of 0.25 + 0.5 and + 0.0."""
    image, mask = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    image[..., 8:24, 8:24] = 0.25
    fill = torch.full_like(image, 0.25)
    fill[..., 1::2] += 0.5
    found = health(fill, image, mask)
    assert found["health/colour_gap"] == pytest.approx(0.25, abs=1e-6)  # 0.5 instead of 0.25
    # Of the 64 pairs the 16 at the left meet 0.25, the 16 at the right 0.75, and above and below half meet each.
    assert found["health/border"] == pytest.approx((0.5 + FLOOR) / (0.25 + FLOOR), rel=1e-5)
    # Two of four neighbours differ by 0.5, so that each Laplacian is +0.25 or -0.25; the photo's is 0.
    assert found["health/sharpness"] == pytest.approx((0.25 + FLOOR) / FLOOR, rel=1e-5)
    assert found["health/checkerboard"] == pytest.approx((0.25 + FLOOR) / FLOOR, rel=1e-5)


def test_no_hole_all_hole_and_single_pixels_count_as_healthy_and_never_as_not_a_number():
    specks = torch.zeros(1, 1, 64, 64)
    specks[..., 5, 5] = specks[..., 40, 40] = 1
    fill = torch.ones(1, 3, 64, 64)
    for mask in (torch.zeros(1, 1, 64, 64), specks):
        assert health(fill, photos(1), mask) == HEALTHY
    everything = health(fill, photos(1), torch.ones(1, 1, 64, 64))
    assert everything["health/colour_gap"] == 0.0 and everything["health/border"] == 1.0
    assert everything["health/sharpness"] < 0.1


def test_a_thin_stroke_has_a_border_but_no_inside():
    stroke = torch.zeros(1, 1, 64, 64)
    stroke[..., 30:32, 8:56] = 1
    found = health(torch.ones(1, 3, 64, 64), blurred(photos(1)), stroke)
    assert found["health/border"] > 5.0 and found["health/colour_gap"] > 0.3
    assert found["health/sharpness"] == found["health/checkerboard"] == 1.0


@pytest.mark.parametrize("size", [30, 33, 34])
def test_any_size_of_picture_has_its_figures(size: int):
    mask = torch.zeros(2, 1, size, size)
    mask[..., 5:, 5:25] = 1
    assert health(photos(2, size), photos(2, size), mask) == HEALTHY


def test_a_batchs_figures_are_the_mean_of_its_images_own():
    image, fill, mask = photos().double(), blurred(photos()).double() + 0.1, holes().double()
    mask[1] = 0  # an image that has nothing to say counts as healthy, not as absent
    mask[2, :, 30:] = 0
    whole = picture_health(composite(fill, image, mask), image, mask)
    single = [picture_health(*(x[i : i + 1] for x in (composite(fill, image, mask), image, mask))) for i in range(3)]
    for name, value in whole.items():
        assert value.dtype == torch.float64
        assert torch.allclose(value, torch.stack([one[name] for one in single]).mean(), rtol=1e-12), name


def test_a_composite_in_bf16_is_measured_in_float32_and_nothing_flows_back():
    fill = blurred(photos()).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = picture_health(composite(fill, photos(), holes()), photos(), holes())
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in found.values())
