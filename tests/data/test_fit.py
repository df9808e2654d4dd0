"""--fit: which pixels of a photo and of its masks go where."""

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from inpaint_dist.data.packed_masks import decode_packed_mask, encode_mask, is_own_mask
from inpaint_dist.data.photos import Box, decode_photo, pad_mask, pad_photo, padded_box, upright
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.data.verification import verify
from inpaint_dist.errors import UserError

SIZE = 32


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def make(folder: Path, photos: dict[str, bytes], masks: dict[str, bytes], **options) -> Path:
    for kind, files in (("photos", photos), ("masks", masks)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / kind / name).write_bytes(data)
    config = ShardingConfig(
        photos=(str(folder / "photos"),),
        masks=(str(folder / "masks"),),
        out=folder / "out",
        **{"size": SIZE, "fit": "pad", "workers": 1, "val_fraction": 0.0, **options},
    )
    make_shards(config)
    return config.out


def read(out: Path, i: int = 0) -> tuple[np.ndarray, np.ndarray, dict]:
    index = ShardIndex.load(out, "train")
    with ShardReader(index) as reader:
        bits, width = decode_packed_mask(reader.read(i, "mask.png"), "mask")
        facts = json.loads(reader.read(i, "json"))
        return decode_photo(reader.read(i, "jpg"), "photo"), np.unpackbits(bits, axis=1, count=width), facts


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (60, 120, Box(0, 8, 32, 16)),
        (120, 60, Box(8, 0, 16, 32)),
        (50, 50, Box(0, 0, 32, 32)),
        (16, 10, Box(6, 0, 20, 32)),  # enlarged
        (1000, 9, Box(15, 0, 1, 32)),  # a side never vanishes
        (47, 64, Box(0, 4, 32, 24)),  # 23.5 becomes 24
        (45, 64, Box(0, 4, 32, 23)),  # 22.5 becomes 23, and the odd line of border is below
    ],
)
def test_the_long_side_is_brought_to_the_size_and_the_photo_is_centred(height: int, width: int, box: Box):
    assert padded_box(height, width, SIZE) == box


def test_a_padded_photo_is_averages_over_areas_between_borders_of_nought():
    photo = np.random.RandomState(0).randint(0, 256, (32, 64, 3)).astype(np.uint8)
    padded = pad_photo(photo, SIZE, padded_box(32, 64, SIZE))
    assert not padded[:8].any()
    assert not padded[24:].any()
    means = photo.reshape(16, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(padded[8:24] - means).max() <= 0.5
    assert (pad_photo(photo, 64, padded_box(32, 64, 64))[16:48] == photo).all()


def test_a_padded_mask_takes_the_middle_pixel_of_each_and_is_known_in_the_borders():
    mask = (np.random.RandomState(0).randint(0, 2, (96, 48)) * 255).astype(np.uint8)
    padded = pad_mask(mask, SIZE, padded_box(96, 48, SIZE))
    assert (padded[:, 8:24] == mask[1::3, 1::3]).all()
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_turned_photo_and_its_own_mask_stay_together_pixel_by_pixel(tmp_path: Path, orientation: int, fit: str):
    """Stored 96x64 in four quarters of grey; the mask is one quarter. JPEG blocks and quarters share their edges."""
    stored = np.full((64, 96), 40, np.uint8)
    stored[32:, :48], stored[:32, 48:], stored[32:, 48:] = 90, 160, 220
    mask = np.where(stored == 160, np.uint8(255), np.uint8(0))
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    Image.fromarray(stored).convert("RGB").save(file, "JPEG", quality=100, exif=exif)
    out = make(tmp_path, {"a.jpg": file.getvalue()}, {"a.png": png(mask)}, pairing="name", fit=fit, size=48)
    photo, hole, facts = read(out)
    turned, turned_mask = upright(stored, orientation), upright(mask, orientation)
    height, width = turned.shape
    if fit == "crop":
        rows, columns = (slice(16, 80), slice(None)) if height > width else (slice(None), slice(16, 80))
        expected_hole = cv2.resize(turned_mask[rows, columns], (48, 48), interpolation=cv2.INTER_NEAREST_EXACT) > 0
        expected = cv2.resize(turned[rows, columns], (48, 48), interpolation=cv2.INTER_AREA)
    else:
        box = (slice(None), slice(8, 40)) if height > width else (slice(8, 40), slice(None))
        expected, expected_hole = np.zeros((48, 48), np.uint8), np.zeros((48, 48), bool)
        expected[box], expected_hole[box] = turned[::2, ::2], turned_mask[::2, ::2] > 0
        assert facts["box"] == ([8, 0, 32, 48] if height > width else [0, 8, 48, 32])
    assert (hole > 0).tolist() == expected_hole.tolist()
    assert np.abs(photo[..., 0].astype(int) - expected).max() <= 8
    assert (facts["width"], facts["height"]) == (width, height)
    assert verify(out) == []


def test_a_mask_of_the_pool_loses_its_holes_in_the_borders_and_one_without_others_is_passed_over(tmp_path: Path):
    masks = {}
    for name, rows in (("border", slice(0, 8)), ("both", slice(4, 14)), ("photo", slice(8, 24))):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[rows] = 255
        masks[f"{name}.png"] = png(mask)
    photos = {f"{number:02d}.png": png(np.full((30, 60, 3), 9 * number, np.uint8)) for number in range(12)}
    out = make(tmp_path, photos, masks)
    for i in range(12):
        _, hole, facts = read(out, i)
        assert facts["masks"] == ["both.png"]  # `photo` is all of the photo, `border` nothing of it
        assert np.flatnonzero(hole.any(axis=1)).tolist() == [8, 9, 10, 11, 12, 13]


def test_a_photo_that_is_only_as_long_as_the_size_is_neither_reduced_nor_counted_as_enlarged(tmp_path: Path):
    photo = np.random.RandomState(1).randint(100, 120, (20, SIZE, 3)).astype(np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[10:20, 10:20] = 255
    for name, size, enlarged in (("same", SIZE, 0), ("larger", SIZE + 1, 1)):
        folder = tmp_path / name
        make(folder, {"a.png": png(photo)}, {"m.png": png(mask)}, size=size)
        report = make_shards(
            ShardingConfig(
                photos=(str(folder / "photos"),),
                masks=(str(folder / "masks"),),
                out=folder / "again",
                size=size,
                fit="pad",
                workers=1,
                val_fraction=0.0,
            )
        )
        assert report.enlarged == enlarged


def test_a_folder_of_one_fit_is_not_taken_for_the_other(tmp_path: Path):
    photos = {"a.png": png(np.full((40, 60, 3), 90, np.uint8))}
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[10:20, 10:20] = 255
    make(tmp_path, photos, {"m.png": png(mask)})
    with pytest.raises(UserError, match=r"other settings \(fit pad, now crop\)"):
        make(tmp_path, photos, {"m.png": png(mask)}, fit="crop")
    index = tmp_path / "out/index.json"
    index.write_text(index.read_text().replace('"fit":"pad",', ""))  # as folders were before there was a choice
    with pytest.raises(UserError, match=r"other settings \(fit crop, now pad\)"):
        make(tmp_path, photos, {"m.png": png(mask)})


def test_a_mask_stored_as_shards_hold_it_is_copied_and_one_laid_out_otherwise_is_not(tmp_path: Path):
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[8:24, 8:24] = 255
    own = encode_mask(pixels)
    idat = zlib.compress(zlib.decompress(own[41:-16]), 1)  # the same rows, packed otherwise: still as shards hold it
    repacked = own[:33] + chunk(b"IDAT", idat) + own[-12:]
    spoilt = own[:-16] + bytes(4) + own[-12:]  # OpenCV reads it all the same
    assert is_own_mask(own, SIZE, SIZE)
    assert is_own_mask(repacked, SIZE, SIZE)
    assert not is_own_mask(own, SIZE, SIZE + 1)
    assert not is_own_mask(spoilt, SIZE, SIZE)
    assert not is_own_mask(png(pixels), SIZE, SIZE)
    for name, stored, expected in (("own", own, own), ("repacked", repacked, repacked), ("other", png(pixels), own)):
        folder = tmp_path / name
        out = make(folder, {"a.png": png(np.full((40, 60, 3), 90, np.uint8))}, {"m.png": stored}, fit="crop")
        with ShardReader(ShardIndex.load(out, "train")) as reader:
            assert reader.read(0, "mask.png") == expected
    with pytest.raises(UserError, match="no mask of the pool can be used"):
        make(tmp_path / "none", {"a.png": png(pixels)}, {"m.png": encode_mask(pixels * 0)}, fit="crop")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
