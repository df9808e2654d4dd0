"""Decoding any photo or mask to the package's own form, and fitting it to a square, by a crop or by borders.

An image is uint8 RGB (H, W, 3), upright; a mask is uint8 (H, W) of 0 and 255, 255 = hole. Alpha is composited over
white (what lies under a transparent pixel is garbage), sixteen bits become eight, an animation gives its first frame,
colour profiles are not applied. JPEGs go through simplejpeg, everything else through OpenCV.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from inpaint_dist.data.headers import JPEG_SIGNATURE, exif_orientation, image_size
from inpaint_dist.data.opencv import MAX_PIXELS, MAX_PIXELS_VARIABLE, cv2
from inpaint_dist.errors import UserError

Pixels = npt.NDArray[np.uint8]

MASK_THRESHOLD = 127
"""A pixel of a mask above it is hole."""

_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}


class PhotoError(UserError):
    """One photo or mask that cannot be used; `reason` says why without the file's name."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it survives the way from one process to another
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode_photo(data: bytes, name: str, *, at_least: int = 0) -> Pixels:
    """Decode a file to upright 8-bit RGB.

    Args:
        data: the file's bytes: any format that OpenCV or libjpeg reads.
        name: what errors call it.
        at_least: where positive, a JPEG may come back smaller, its short side still at least this many pixels: libjpeg
            then leaves out the frequencies that a later reduction throws away. 0: full size.

    Returns:
        uint8 (H, W, 3), RGB, C-contiguous.

    Raises:
        PhotoError: not a picture, damaged, or of more pixels than the limit.
    """
    is_jpeg = data.startswith(JPEG_SIGNATURE)
    image = _decode_jpeg(data, name, at_least) if is_jpeg else _rgb(_decode_other(data, name))
    return np.ascontiguousarray(upright(image, exif_orientation(data)))


def decode_mask(data: bytes, name: str) -> Pixels:
    """Decode a mask as stored (no orientation applied): uint8 (H, W) of 0 and 255, 255 = hole.

    A pixel is hole where any colour channel is above 127; alpha is ignored.

    Raises:
        PhotoError: not a picture, damaged, too large, or written with 0 and 1 instead of 0 and 255.
    """
    pixels = _decode_other(data, name)
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(axis=2)
    if int(pixels.max()) == 1:
        raise PhotoError(name, "the mask holds 0 and 1, not 0 and 255: multiply it by 255")
    return np.where(pixels > MASK_THRESHOLD, np.uint8(255), np.uint8(0))


def upright(image: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (H, W) or (H, W, C) upright by an EXIF orientation of 1 to 8; a view."""
    return _UPRIGHT[orientation](image)


def turn_mask(mask: Pixels, orientation: int, size: tuple[int, int], name: str) -> Pixels:
    """Give a mask the EXIF orientation of its photo, unless its size shows that it was drawn on the upright picture.

    Args:
        mask: (H, W).
        orientation: the photo's, 1 to 8.
        size: width and height of the upright photo.
        name: the photo's, for the error.

    Raises:
        PhotoError: the mask has the photo's size neither way.
    """
    turned = upright(mask, orientation)
    if turned.shape == size[::-1]:
        return np.ascontiguousarray(turned)
    if mask.shape == size[::-1]:
        return mask
    raise PhotoError(name, f"the mask is {mask.shape[1]}x{mask.shape[0]} and its photo {size[0]}x{size[1]}")


def fit_photo(image: Pixels, size: int) -> Pixels:
    """Short side to `size` with antialiasing, centre crop: (H, W, 3) → (size, size, 3).

    The square is cut out first and then resized, which gives the same pixels for less work. Averages over areas when it
    reduces; a photo smaller than `size` is enlarged (bicubic).
    """
    square = centre_square(image)
    if square.shape[0] == size:
        return np.ascontiguousarray(square)
    return _resize(square, (size, size), _by_need(square.shape[0], size))


def fit_mask(mask: Pixels, size: int) -> Pixels:
    """The geometry of `fit_photo` by nearest neighbour, for masks: (H, W) → (size, size), values kept."""
    square = centre_square(mask)
    if square.shape[0] == size:
        return np.ascontiguousarray(square)
    return _resize(square, (size, size), cv2.INTER_NEAREST_EXACT)


class Box(NamedTuple):
    """Where in a square picture a padded photo lies, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the photo."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def padded_box(height: int, width: int, size: int) -> Box:
    """Where a picture of these sides lies in a square of `size` when its long side is brought to `size`, centred."""
    long = max(height, width)
    fitted_height, fitted_width = (max(1, (2 * side * size + long) // (2 * long)) for side in (height, width))
    return Box((size - fitted_width) // 2, (size - fitted_height) // 2, fitted_width, fitted_height)


def pad_photo(image: Pixels, size: int, box: Box) -> Pixels:
    """Bring a photo into a box of a black square: (H, W, 3) → (size, size, 3).

    The borders are not the photo mirrored: that would show what is in a hole at the photo's edge a second time, outside
    of it.
    """
    square = np.zeros((size, size, 3), np.uint8)
    square[box.inside] = _resize(image, (box.width, box.height), _by_need(max(image.shape[:2]), size))
    return square


def pad_mask(mask: Pixels, size: int, box: Box) -> Pixels:
    """The geometry of `pad_photo` by nearest neighbour, for masks: (H, W) → (size, size); the borders are known."""
    square = np.zeros((size, size), np.uint8)
    square[box.inside] = _resize(mask, (box.width, box.height), cv2.INTER_NEAREST_EXACT)
    return square


def centre_square(image: Pixels) -> Pixels:
    """The largest centred square of a picture; a view."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _by_need(side: int, wanted: int) -> int:
    """How photos are resized: averages over areas to reduce, bicubic to enlarge."""
    return cv2.INTER_AREA if side > wanted else cv2.INTER_CUBIC


def _resize(image: Pixels, size: tuple[int, int], interpolation: int) -> Pixels:
    """Bring a picture to a width and a height."""
    if image.shape[1::-1] == size:
        return image
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def jpeg_header(data: bytes, name: str) -> tuple[int, int, str]:
    """Height, width and colour space (YCbCr, Gray, RGB, CMYK, YCCK) of a JPEG as stored.

    Raises:
        PhotoError: the header is damaged, or claims more pixels than the limit.
    """
    try:
        rows, columns, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise PhotoError(name, f"a damaged JPEG ({error})") from None
    height, width = int(rows), int(columns)
    _check_pixels(width, height, name)
    return height, width, colours


def claimed_size(data: bytes, name: str) -> tuple[int, int] | None:
    """Width and height of a picture as stored, by its header alone; None where the format is not one of those known.

    Raises:
        PhotoError: a JPEG's header is damaged, or more pixels are claimed than the limit.
    """
    if data.startswith(JPEG_SIGNATURE):
        height, width, _ = jpeg_header(data, name)
        return width, height
    size = image_size(data)
    if size is not None:
        _check_pixels(*size, name)
    return size


def _decode_jpeg(data: bytes, name: str, at_least: int) -> Pixels:
    colours = jpeg_header(data, name)[2]
    wanted = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
    try:
        image = _simplejpeg(data, wanted, at_least, strict=True)
    except ValueError as error:
        if "extraneous bytes" not in str(error):  # harmless: cameras and editors leave some between the markers
            raise PhotoError(name, f"a damaged JPEG ({error})") from None
        image = _simplejpeg(data, wanted, at_least, strict=False)
    if wanted == "CMYK":  # stored inverted, as Adobe does and everybody after it: 255 = no ink
        ink = image.astype(np.uint16)
        image = ((ink[..., :3] * ink[..., 3:] + 127) // 255).astype(np.uint8)
    return image


def _simplejpeg(data: bytes, colours: str, at_least: int, *, strict: bool) -> Pixels:
    if at_least <= 0:
        return simplejpeg.decode_jpeg(data, colours, strict=strict)
    return simplejpeg.decode_jpeg(data, colours, min_height=at_least, min_width=at_least, min_factor=2, strict=strict)


def _decode_other(data: bytes, name: str) -> Pixels:
    """Decode by OpenCV as stored: uint8 (H, W), (H, W, 3) BGR or (H, W, 4) BGRA."""
    claimed_size(data, name)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        raise PhotoError(name, f"OpenCV cannot decode it ({str(error).strip().splitlines()[-1]})") from None
    if pixels is None or pixels.size == 0:
        raise PhotoError(name, "not a picture that OpenCV can decode" if data else "the file is empty")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise PhotoError(name, f"its pixels are {pixels.dtype}; 8 or 16 bits a channel can be used")
    return np.asarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels, np.uint8)


def _rgb(pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    if pixels.shape[2] == 3:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
    alpha = pixels[..., 3:].astype(np.uint16)
    over_white = pixels[..., 2::-1] * alpha + 255 * (255 - alpha)
    return ((over_white + 127) // 255).astype(np.uint8)


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise PhotoError(
            name,
            f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}; set {MAX_PIXELS_VARIABLE} to allow it",
        )
