"""Photos and masks of any size, fitted to a square as they are decoded: of shards that others made.

Short side to the size, centre crop; a mask by the same geometry without new values, its threshold 127.
"""

from collections.abc import Sequence

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from inpaint_dist.data.headers import JPEG_SIGNATURE, exif_orientation
from inpaint_dist.data.order import Draw
from inpaint_dist.data.photos import (
    Pixels,
    claimed_size,
    decode_mask,
    decode_photo,
    fit_mask,
    fit_photo,
    upright,
)
from inpaint_dist.data.sample_decoder import SampleDecoder
from inpaint_dist.data.shards import decode_packed_mask, mask_extension


def fitted_photo(data: bytes, size: int, name: str) -> Pixels:
    """A photo's file as upright RGB (size, size, 3).

    Raises:
        PhotoError: it cannot be decoded.
    """
    return fit_photo(decode_photo(data, name, at_least=2 * size), size)


def fitted_mask(data: bytes, photo: bytes, size: int, name: str) -> Pixels:
    """A mask's file as (size, size) of 0 and 255, turned as its photo's EXIF says where it was drawn on the photo as
    stored; one drawn on the upright photo, or on none in particular, stays as it is.

    Raises:
        PhotoError: it cannot be decoded.
    """
    mask, orientation = decode_mask(data, name), exif_orientation(photo)
    if orientation > 1 and claimed_size(photo, name) == mask.shape[::-1]:
        mask = upright(mask, orientation)
    return fit_mask(mask, size)


class FittingDecoder(SampleDecoder):
    """Fills buffers with samples of shards that others made."""

    def decode_photo(self, sample: int, data: bytes | memoryview, out: NDArray[np.uint8]) -> None:
        """Decode a photo's file, fitted, into `out`; without a copy where it is a JPEG of that very size."""
        data = bytes(data)
        if data.startswith(JPEG_SIGNATURE) and exif_orientation(data) == 1:
            try:
                if simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape == out.shape:
                    return
            except ValueError:
                pass  # larger, or not to be read that way
        out[:] = fitted_photo(data, self.index.size, self._name(sample))

    def _fill(self, draws: Sequence[Draw], pixels: NDArray[np.uint8], bits: NDArray[np.uint8]) -> None:
        for place, draw in enumerate(draws):
            self.mask(draw, bits[place])
        self._refuse_constant(bits)
        for place, draw in enumerate(draws):
            self.decode_photo(draw.index, self.read_photo(draw.index), pixels[place])

    def _stored_mask(self, owner: int, which: int, out: NDArray[np.uint8]) -> None:
        extension, name, size = mask_extension(which), self._name(owner), self.index.size
        data, photo = self.reader.read(owner, extension), self.read_photo(owner)
        if exif_orientation(photo) == 1:
            bits, width = decode_packed_mask(data, name)
            if width == size and bits.shape == out.shape:
                out[:] = bits
                return
        out[:] = np.packbits(fitted_mask(data, photo, size, name), axis=1)
