"""check_shards --near-duplicates: photos of val that look like one of train."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist.data.near_copies import Alike, _nearest
from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.data.verification import CheckConfig, check_shards
from inpaint_dist.errors import UserError

SIZE = 64


def photo(seed: int) -> np.ndarray:
    """Blobs of grey, each seed its own."""
    noise = np.random.RandomState(seed).randint(0, 200, (7, 7, 3)).astype(np.uint8)
    return cv2.resize(noise, (128, 128), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for split, seeds in (("train", range(12)), ("val", range(20, 25))):
        (tmp_path / split).mkdir()
        for seed in seeds:
            cv2.imwrite(str(tmp_path / split / f"{split}{seed}.png"), photo(seed))
    changed = cv2.resize(photo(3), (97, 97), interpolation=cv2.INTER_AREA)
    cv2.imwrite(
        str(tmp_path / "val/again.jpg"), cv2.convertScaleAbs(changed, alpha=1.15), [cv2.IMWRITE_JPEG_QUALITY, 40]
    )
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks/m.png"), np.pad(np.full((20, 20), 255, np.uint8), 22))
    places = {
        name: (str(tmp_path / folder),) for name, folder in (("photos", "train"), ("val", "val"), ("masks", "masks"))
    }
    make_shards(ShardingConfig(**places, out=tmp_path / "out", size=SIZE, workers=1))
    return tmp_path / "out"


def test_a_photo_that_was_resized_brightened_and_encoded_anew_is_named_with_the_one_it_looks_like(shards: Path):
    pytest.importorskip("imagehash", reason="imagehash is not installed (the extra `duplicates`)")
    report = check_shards(CheckConfig(shards=str(shards), near_duplicates=True))
    assert report.alike is not None
    assert [(pair.val, pair.train) for pair in report.alike] == [("again", "train3")]
    assert report.alike[0].bits <= 8
    assert report.faults == ()
    assert report.lines()[1].startswith("val again looks like train train3 (")
    assert report.lines()[2] == "1 photos of val look like one of train"
    assert check_shards(CheckConfig(shards=str(shards))).alike is None


def test_without_imagehash_the_error_names_the_extra(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(UserError, match=r"pip install 'inpaint-dist\[duplicates\]'"):
        check_shards(CheckConfig(shards=str(shards), near_duplicates=True))


def test_the_nearest_of_many_is_found_in_whichever_block_it_lies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("inpaint_dist.data.near_copies._BLOCK", 7)
    monkeypatch.setattr("inpaint_dist.data.near_copies._SOME", 3)
    signs = np.random.RandomState(0).randint(0, 2, (40, 64)).astype(np.int8) * 2 - 1
    some = signs[[0, 8, 39, 20]].copy()
    some[1, :5] *= -1
    numbers, bits = _nearest(some, signs)
    assert numbers.tolist() == [0, 8, 39, 20]
    assert bits.tolist() == [0, 5, 0, 0]


def test_a_pair_in_words():
    assert str(Alike("a", "b", 3)) == "val a looks like train b (3 of 64 bits differ)"
