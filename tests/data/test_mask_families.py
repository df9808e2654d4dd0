"""Families with parameters, mixtures, and the shapes of objects."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist.data import mask_families
from inpaint_dist.data.marks import Boxes, Ellipses, Strokes
from inpaint_dist.data.mask_families import FAMILIES, MaskFamily, Mixture, find_family
from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks
from inpaint_dist.data.masks import draw_mask, draw_within, mask_rng
from inpaint_dist.errors import UserError


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A disc, an L of 40x20 pixels, and a picture of nothing; white = object."""
    disc, corner = np.zeros((100, 120), np.uint8), np.zeros((50, 80), np.uint8)
    cv2.circle(disc, (60, 40), 30, 255, cv2.FILLED)
    corner[10:30, 20:30] = corner[20:30, 20:60] = 255
    (tmp_path / "shapes/deep").mkdir(parents=True)
    for name, picture in (("disc", disc), ("deep/corner", corner), ("nothing", np.zeros((9, 9), np.uint8))):
        cv2.imwrite(str(tmp_path / f"shapes/{name}.png"), picture)
    return tmp_path / "shapes"


def test_parameters_change_those_of_the_family_and_leave_the_others():
    assert find_family("boxes:count=2,side=40-60") == MaskFamily(marks=(Boxes(count=(2, 2), side=(40, 60), margin=0),))
    assert find_family("ellipses:axis=7-9").marks == (Ellipses(count=(1, 5), axis=(7, 9)),)
    assert find_family("strokes:max-len=30,max_width=4,max-segments=1").marks == (
        Strokes(count=(1, 6), max_len=30, max_width=4, max_segments=1),
    )
    assert find_family("lama-train") is FAMILIES["lama-train"]


def test_boxes_have_the_sides_and_the_margin_that_were_asked_for():
    for index in range(50):
        mask = draw_mask("boxes:count=1,side=40-60,margin=30", 256, 256, mask_rng(index))
        left, top, width, height = cv2.boundingRect(mask)
        assert 40 <= width <= 60 and 40 <= height <= 60
        assert mask[top : top + height, left : left + width].all()
        assert min(left, top, 256 - left - width, 256 - top - height) >= 30


def test_an_ellipse_has_axes_that_were_asked_for_and_grows_with_the_picture():
    for size in (256, 512):
        areas = [np.count_nonzero(draw_mask("ellipses:count=1,axis=60-60", size, size, mask_rng(i))) for i in range(60)]
        assert max(areas) == pytest.approx(np.pi * (30 * size / 256) ** 2, rel=0.05)
        assert min(areas) > max(areas) / 5  # its centre lies inside, so that a corner leaves a quarter


def test_a_mixture_draws_each_family_as_often_as_it_weighs():
    laws = find_family("3*center+1*boxes:count=1,side=10-20")
    assert isinstance(laws, Mixture)
    assert laws.weights == (3.0, 1.0)
    centre = draw_mask("center", 64, 64, mask_rng(0))
    drawn = [draw_mask("3*center+1*boxes:count=1,side=10-20", 64, 64, mask_rng(index)) for index in range(400)]
    share = np.mean([np.array_equal(mask, centre) for mask in drawn])
    assert share == pytest.approx(0.75, abs=0.065)  # three standard errors
    assert find_family("center+ellipses").weights == (1.0, 1.0)
    assert find_family("0*center+2.5*ellipses").weights == (0.0, 2.5)


def test_a_family_keeps_its_own_largest_hole_in_a_mixture():
    mixed = "1*lama-thin+0*center"
    assert find_family(mixed).largest == 1.0
    assert max(draw_within(mixed, 64, 64, mask_rng(index)).hole_ratio for index in range(150)) <= 0.5
    assert max((FAMILIES["lama-thin"].draw(64, 64, mask_rng(index)) > 0).mean() for index in range(150)) > 0.5


def test_objects_are_the_shapes_of_a_folder_at_the_size_that_was_asked_for(shapes: Path):
    seen = set()
    for index in range(60):
        mask = draw_mask(f"objects:{shapes},count=1,share=0.5-0.5", 160, 240, mask_rng(index))
        left, top, width, height = cv2.boundingRect(mask)
        hole = mask[top : top + height, left : left + width]
        assert max(width, height) == 80  # half of the shorter side
        if width == height:
            yy, xx = np.mgrid[0:80, 0:80] - 39.5
            assert (
                abs(np.count_nonzero(hole) / np.count_nonzero(xx**2 + yy**2 < 40**2) - 1) < 0.05
            )  # OpenCV draws it a little small
            seen.add("disc")
        else:
            assert (width, height) == (80, 40)
            mirrored = not hole[5, 5]
            corner = np.zeros((40, 80), bool)
            corner[:, :20] = corner[20:] = True
            assert ((hole > 0) != (corner[:, ::-1] if mirrored else corner)).sum() < 60  # along its outline
            seen.add(f"corner {mirrored}")
    assert seen == {"disc", "corner True", "corner False"}


def test_objects_lie_anywhere_but_whole_inside_the_picture(shapes: Path):
    corners = [cv2.boundingRect(draw_mask(f"objects:{shapes},count=1", 64, 64, mask_rng(i))) for i in range(200)]
    assert min(left for left, *_ in corners) == min(top for _, top, *_ in corners) == 0
    assert max(left + width for left, _, width, _ in corners) == 64
    longest = [max(width, height) / 64 for *_, width, height in corners]
    assert 0.28 < min(longest) < 0.35 and 0.75 < max(longest) < 0.82


def test_masks_of_objects_depend_on_the_paths_in_their_folder_alone(shapes: Path, tmp_path: Path):
    before = find_family(f"objects:{shapes}")
    drawn = [before.draw(64, 64, mask_rng(index)) for index in range(10)]
    moved = shapes.rename(tmp_path / "moved")
    after = find_family(f"objects:{moved}")
    assert all(np.array_equal(after.draw(64, 64, mask_rng(i)), mask) for i, mask in enumerate(drawn))
    assert repr(before) == repr(after)
    (moved / "more.png").write_bytes((moved / "disc.png").read_bytes())
    mask_families._parse.cache_clear()  # another process
    assert repr(find_family(f"objects:{moved}")) != repr(before)


def test_make_masks_draws_them_and_knows_another_folder_of_shapes(shapes: Path, tmp_path: Path):
    family = f"2*objects:{shapes}+1*ellipses:count=2-3"
    for workers in (0, 2):
        config = MaskSetConfig(out=tmp_path / str(workers), count=300, size=32, family=family, workers=workers)
        assert len(make_masks(config).rows) == 300
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("0", "2")]
    assert files[0] == files[1]
    (shapes / "disc.png").unlink()
    mask_families._parse.cache_clear()  # another process
    with pytest.raises(UserError, match=r"law \(another version's\)"):
        make_masks(MaskSetConfig(out=tmp_path / "0", count=300, size=32, family=family))


def test_a_segmentation_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"bad\.png"):
        draw_mask(f"objects:{tmp_path}", 64, 64, mask_rng(0))


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("boxes:sides=3", r"'sides=3' is no parameter of it\. It has count=1-4, side=30-150, margin=0\."),
        ("ellipses:count", r"'count' is no parameter of it"),
        ("ellipses:count=5-2", r"'count=5-2' takes LOW-HIGH"),
        ("ellipses:count=1.5", r"'count=1\.5' takes whole numbers"),
        ("boxes:margin=1-2", r"'margin=1-2' takes one number"),
        ("ellipses:axis=0", r"'axis=0' draws nothing"),
        ("lama-train:count=3", r"No mask family is called 'lama-train:count=3'"),
        ("elipses:count=3", r"Did you mean ellipses\?"),
        ("center+", r"a name is missing beside a \+"),
        ("0*center+0*boxes", r"all weights are 0"),
        ("center+nothing", r"No mask family is called 'nothing'"),
        ("objects:nowhere", r"objects: nowhere: no such file or folder"),
    ],
)
def test_words_that_make_no_family_are_refused_with_what_can_be_said(family: str, told: str):
    with pytest.raises(UserError, match=told):
        find_family(family)


def test_a_share_of_more_than_the_picture_is_refused(shapes: Path):
    with pytest.raises(UserError, match=r"'share=0\.5-2' is a share: from 0 to 1"):
        find_family(f"objects:{shapes},share=0.5-2")
    with pytest.raises(UserError, match=r"It has count=1-2, share=0\.3-0\.8\."):
        find_family(f"objects:{shapes},files=3")
