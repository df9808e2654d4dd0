"""Decoding anything upright to RGB, binarising masks, fitting both to the same square."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from inpaint_dist.data.headers import exif_orientation, image_size, jpeg_without_metadata
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photos import PhotoError, decode_mask, decode_photo, fit_mask, fit_photo, upright

ROOT = Path(__file__).resolve().parents[2]


def scene(height: int = 48, width: int = 72) -> np.ndarray:
    """A smooth picture without any symmetry: every one of the eight orientations looks different."""
    y, x = np.mgrid[0:height, 0:width] / (height + width)
    return np.stack([255 * x / x.max(), 255 * y / y.max(), 200 * x * y / (x * y).max()], axis=-1).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(kind: str, orientation: int, **options) -> bytes:
    image = Image.fromarray(scene())
    exif = image.getexif()
    exif[274] = orientation
    return saved(image, kind, exif=exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_comes_out_upright(kind: str, orientation: int):
    options = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    data = with_orientation(kind, orientation, **options)
    image = Image.fromarray(scene())
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert difference(decode_photo(data, "photo"), expected) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_decode_is_turned_too(orientation: int):
    large = Image.fromarray(scene()).resize((720, 480))
    exif = large.getexif()
    exif[274] = orientation
    data = saved(large, "JPEG", exif=exif, quality=95)
    image = decode_photo(data, "photo", at_least=96)
    full = decode_photo(data, "photo")
    assert 96 <= min(image.shape[:2]) < min(full.shape[:2])
    assert (image.shape[0] > image.shape[1]) == (full.shape[0] > full.shape[1])
    assert difference(fit_photo(image, 48), fit_photo(full, 48)) < 2


def test_grey_palette_bilevel_and_animated_pictures_become_rgb():
    picture = Image.fromarray(scene())
    grey = np.asarray(picture.convert("L"))
    for data, expected, tolerance in [
        (saved(picture.convert("L"), "PNG"), np.repeat(grey[..., None], 3, 2), 0),
        (saved(picture.convert("L"), "JPEG", quality=95), np.repeat(grey[..., None], 3, 2), 2),
        (saved(picture.convert("P"), "PNG"), np.asarray(picture.convert("P").convert("RGB")), 0),
        (saved(picture.convert("1"), "PNG"), np.asarray(picture.convert("1").convert("RGB")), 0),
        (saved(picture, "GIF"), np.asarray(Image.open(io.BytesIO(saved(picture, "GIF"))).convert("RGB")), 0),
        (saved(picture, "BMP"), scene(), 0),
        (saved(picture, "TIFF"), scene(), 0),
        (saved(picture, "WEBP", lossless=True), scene(), 0),
        (saved(picture, "JPEG", quality=95, progressive=True), scene(), 3),
    ]:
        assert difference(decode_photo(data, "photo"), expected) <= tolerance


def test_transparent_pixels_become_white():
    alpha = np.zeros((48, 72), np.uint8)
    alpha[:, 36:] = 255
    alpha[:, 24:36] = 128
    rgba = Image.fromarray(np.dstack([scene(), alpha]))
    image = decode_photo(saved(rgba, "PNG"), "photo")
    assert (image[:, :24] == 255).all()
    assert (image[:, 36:] == scene()[:, 36:]).all()
    assert np.abs(image[:, 24:36].astype(int) - (scene()[:, 24:36] * 128.0 + 255 * 127) / 255).max() <= 1
    grey_alpha = Image.merge("LA", [Image.fromarray(scene()[..., 0]), Image.fromarray(alpha)])
    assert (decode_photo(saved(grey_alpha, "PNG"), "photo")[:, :24] == 255).all()
    palette = Image.fromarray(scene()).convert("P")
    hidden = np.asarray(palette) == np.asarray(palette)[0, 0]
    assert (
        decode_photo(saved(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])), "photo")[hidden] == 255
    ).all()


def test_cmyk_jpegs_and_tiffs_have_their_colours():
    ink = Image.fromarray(scene()).convert("CMYK")
    for data in (saved(ink, "JPEG", quality=98), saved(ink, "TIFF")):
        assert difference(decode_photo(data, "photo"), scene()) < 3


def test_sixteen_bits_become_eight():
    deep = scene().astype(np.uint16) * 257
    _, data = cv2.imencode(".png", deep[..., ::-1])
    assert (decode_photo(data.tobytes(), "photo") == scene()).all()
    _, data = cv2.imencode(".png", deep[..., 0])
    assert (decode_photo(data.tobytes(), "photo")[..., 1] == scene()[..., 0]).all()


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    jpeg = bytearray(saved(Image.fromarray(scene()), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    for data in (png, bytes(jpeg)):
        for decode in (decode_photo, decode_mask):
            with pytest.raises(PhotoError, match=r"bomb: 60000x60000 pixels .*OPENCV_IO_MAX_IMAGE_PIXELS"):
                decode(data, "bomb")


def test_sizes_are_read_from_every_header():
    picture = Image.fromarray(scene())
    kinds = ["PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000"]
    assert {kind: image_size(saved(picture, kind)) for kind in kinds} == dict.fromkeys(kinds, (72, 48))
    assert image_size(saved(picture, "WEBP", lossless=True)) == (72, 48)
    assert image_size(with_orientation("WEBP", 6)) == (72, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_cut_and_scrambled_headers_are_survived(kind: str):
    data = with_orientation(kind, 6)
    for end in range(min(len(data), 700)):
        assert 1 <= exif_orientation(data[:end]) <= 8
        image_size(data[:end])
    for at in range(4, min(len(data), 400)):
        scrambled = data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
        assert 1 <= exif_orientation(scrambled) <= 8
        image_size(scrambled)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not a picture"),
        (saved(Image.fromarray(scene()), "JPEG")[:-200], "a damaged JPEG"),
        (saved(Image.fromarray(scene()), "JPEG")[:100], "a damaged JPEG"),
        (saved(Image.fromarray(scene()), "PNG")[:60], "not a picture"),
        (saved(Image.fromarray(scene()[..., 0].astype(np.float32)), "TIFF"), "float32"),
    ],
)
def test_what_cannot_be_decoded_is_an_error_with_its_name(data: bytes, reason: str):
    with pytest.raises(PhotoError, match=rf"^x\.jpg: .*{reason}"):
        decode_photo(data, "x.jpg")


def test_a_jpeg_with_stray_bytes_between_its_markers_is_still_a_photo():
    data = saved(Image.fromarray(scene()), "JPEG", quality=95, restart_marker_blocks=2)
    at = data.index(b"\xff\xd1")
    stray = data[:at] + b"\x12\x34\x56" + data[at:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    assert difference(decode_photo(stray, "photo"), scene()) < 10


def test_the_error_of_a_photo_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(PhotoError("a.jpg", "is broken")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "is broken", "a.jpg: is broken")


def test_a_mask_is_hole_above_127():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    _, data = cv2.imencode(".png", levels)
    mask = decode_mask(data.tobytes(), "mask")
    assert mask.dtype == np.uint8
    assert (mask == np.where(levels > 127, 255, 0)).all()


def test_masks_of_other_kinds_are_understood():
    hole = np.zeros((16, 16), bool)
    hole[4:9, 3:12] = True
    red = np.zeros((16, 16, 3), np.uint8)
    red[hole] = (255, 0, 0)
    grey = (hole * 255).astype(np.uint8)
    for data in (
        saved(Image.fromarray(red), "PNG"),
        saved(Image.fromarray(grey).convert("1"), "PNG"),
        saved(Image.fromarray(grey), "JPEG", quality=95),
        saved(Image.fromarray(grey).convert("P"), "PNG"),
        saved(Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])), "PNG"),
        saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
    ):
        assert (decode_mask(data, "mask") == grey).all()


def test_a_mask_of_zeros_and_ones_is_named():
    with pytest.raises(PhotoError, match="0 and 1, not 0 and 255"):
        decode_mask(saved(Image.fromarray(np.eye(8, dtype=np.uint8)), "PNG"), "mask")


def test_a_photo_is_fitted_to_its_centre_with_antialiasing():
    photo = np.zeros((100, 300, 3), np.uint8)
    photo[:, 100:200] = np.indices((100, 100)).sum(0)[..., None] % 2 * 255  # a checkerboard in the centre square
    fitted = fit_photo(photo, 25)
    assert fitted.shape == (25, 25, 3)
    assert np.abs(fitted.astype(int) - 127).max() <= 2  # every pixel is the mean of sixteen, none is picked out
    assert (fit_photo(photo, 100) == photo[:, 100:200]).all()
    assert fit_photo(photo[:20, :30], 64).shape == (64, 64, 3)


def test_a_mask_gets_the_geometry_of_its_photo():
    for shape, size in [((301, 200), 64), ((120, 333), 80), ((50, 90), 128)]:
        mask = np.zeros(shape, np.uint8)
        mask[shape[0] // 3 : shape[0] // 2, shape[1] // 2 : shape[1] * 3 // 4] = 255
        fitted = fit_mask(mask, size)
        assert set(np.unique(fitted)) == {0, 255}
        photo = fit_photo(np.repeat(mask[..., None], 3, 2), size)[..., 0]
        disagree = (photo > 127) != (fitted > 127)
        border = cv2.dilate(fitted, np.ones((3, 3))) != cv2.erode(fitted, np.ones((3, 3)))
        assert not (disagree & ~border).any()


def test_a_mask_is_sampled_at_pixel_centres():
    """Sampled at their corners instead, it would lie half a pixel beside its photo."""
    mask = np.zeros((90, 90), np.uint8)
    mask[10:41, 22:57] = 255
    assert (fit_mask(mask[:, ::-1].copy(), 30) == fit_mask(mask, 30)[:, ::-1]).all()
    assert (fit_mask(mask, 30) == mask[1::3, 1::3]).all()


def test_upright_undoes_what_a_camera_did():
    image = scene()
    assert (upright(image, 6) == np.rot90(image, -1)).all()  # 6: turn a quarter to the right to see it upright
    assert (upright(image, 8) == np.rot90(image)).all()
    assert (upright(image, 3) == np.rot90(image, 2)).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_metadata_leaves_a_jpeg_and_every_pixel_stays(progressive: bool):
    image = Image.fromarray(scene())
    exif = image.getexif()
    exif[271] = "SECRET CAMERA"
    data = saved(
        image, "JPEG", exif=exif, comment=b"SECRET", icc_profile=b"SECRET" * 99, progressive=progressive, quality=90
    )
    data += b"SECRET video after the end\xff\xd9"
    stripped = jpeg_without_metadata(data)
    assert data.count(b"SECRET") > 100
    assert b"SECRET" not in stripped
    assert stripped.endswith(b"\xff\xd9")
    assert (simplejpeg.decode_jpeg(stripped) == simplejpeg.decode_jpeg(data)).all()
    assert jpeg_without_metadata(stripped) == stripped


def test_what_is_no_whole_jpeg_cannot_be_stripped():
    data = saved(Image.fromarray(scene()), "JPEG")
    for broken in (data[:-2], data[:200], b"\xff\xd8\xff", b""):
        with pytest.raises(ValueError, match="a JPEG without"):
            jpeg_without_metadata(broken)


def test_a_machine_without_libgl_is_told_the_cure(tmp_path: Path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), "photos", "--masks", "masks", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "libGL.so.1" in done.stderr
    assert "pip install --force-reinstall --no-deps opencv-python-headless" in done.stderr
    assert "Traceback" not in done.stderr
