"""One sample of a shard from one photo: its JPEG, its masks, its json."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import simplejpeg

from inpaint_dist.data.headers import JPEG_SIGNATURE, exif_orientation, jpeg_without_metadata
from inpaint_dist.data.photo_sources import PhotoReader
from inpaint_dist.data.photos import (
    Box,
    PhotoError,
    Pixels,
    decode_mask,
    decode_photo,
    fit_mask,
    fit_photo,
    jpeg_header,
    pad_mask,
    pad_photo,
    padded_box,
    turn_mask,
)
from inpaint_dist.data.shards import PHOTO_EXTENSION, decode_packed_mask, encode_mask, mask_extension
from inpaint_dist.data.source_table import Source

_CACHED_MASKS = 20_000  # of about a kilobyte each
_DRAWS = 64
_TURNED = 5  # from this EXIF orientation on, width and height change places


Fit: TypeAlias = Literal["crop", "pad"]


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What shapes the bytes of a sample."""

    size: int
    """Pixels of a side."""
    fit: Fit
    """How a photo becomes a square."""
    quality: int
    """JPEG quality of photos that are encoded anew."""
    keep_metadata: bool
    """Copied JPEGs keep their metadata."""
    masks_per_photo: int
    """Most masks of a sample."""
    invert_masks: bool
    """Masks are black where the hole is."""
    allow_large_holes: bool
    """A mask may be all hole."""


class Item(NamedTuple):
    """A photo that is to become a sample."""

    key: str
    source: Source
    masks: tuple[int, ...] | None
    """Numbers of its own masks, or None where they are drawn from the pool."""


class Sample(NamedTuple):
    """A finished sample."""

    members: dict[str, bytes]
    sha256: str
    """Of the photo's file, hex."""
    copied: bool
    """The JPEG's bytes were copied, not encoded anew."""
    enlarged: bool
    """The photo was smaller than the size."""


class _Photo(NamedTuple):
    """A photo in its final form, and what its masks need to know of it."""

    jpeg: bytes
    size: tuple[int, int]
    """Width and height of the upright picture it was made from."""
    orientation: int
    copied: bool


class SampleMaker:
    """Makes samples; each process has its own, with its own open archives and its own cache of masks."""

    def __init__(self, settings: SampleSettings, masks: Sequence[Source]):
        self.settings, self.masks = settings, masks
        self.bad_masks: dict[str, str] = {}
        """Masks of the pool that cannot be used: name → reason."""
        self._reader = PhotoReader()
        self._pooled: Callable[[int], bytes | None] = lru_cache(maxsize=_CACHED_MASKS)(self._pool_mask)

    def make(self, item: Item) -> Sample:
        """Read, decode and fit one photo and its masks.

        Raises:
            PhotoError: the photo or its masks cannot be used.
        """
        data = self._reader.read(item.source)
        photo = self._photo(data, item.source.name)
        own = item.masks
        box = self._box(photo.size)
        chosen = self._draw(item.key, box) if own is None else self._own_masks(own, photo, box, item.source.name)
        digest = sha256(data).hexdigest()
        width, height = photo.size
        facts: dict[str, Any] = {
            "source": item.source.name,
            "width": width,
            "height": height,
            "sha256": digest,
            "masks": [name for name, _ in chosen],
        }
        if self.settings.fit == "pad":
            facts["box"] = list(box)
        members = {PHOTO_EXTENSION: photo.jpeg}
        members |= {mask_extension(k): png for k, (_, png) in enumerate(chosen)}
        members["json"] = json.dumps(facts, separators=(",", ":")).encode()
        return Sample(members, digest, photo.copied, max(box.width / width, box.height / height) > 1)

    def _box(self, size: tuple[int, int]) -> Box:
        """What of the square is photo, where the upright photo has this width and height."""
        side = self.settings.size
        return Box(0, 0, side, side) if self.settings.fit == "crop" else padded_box(size[1], size[0], side)

    def _photo(self, data: bytes, name: str) -> _Photo:
        size, orientation = self.settings.size, exif_orientation(data)
        if not data.startswith(JPEG_SIGNATURE):
            image = decode_photo(data, name)
            size_upright = image.shape[1], image.shape[0]
            return _Photo(self._encode(image, self._box(size_upright)), size_upright, orientation, copied=False)
        height, width, colours = jpeg_header(data, name)
        if (height, width, colours, orientation) == (size, size, "YCbCr", 1):
            kept = data if self.settings.keep_metadata else _stripped(data, name)
            decode_photo(kept, name)  # a copy nobody looked at could be cut short
            return _Photo(kept, (width, height), orientation, copied=True)
        size_upright = (height, width) if orientation >= _TURNED else (width, height)
        box = self._box(size_upright)
        image = decode_photo(data, name, at_least=2 * min(box.width, box.height))
        return _Photo(self._encode(image, box), size_upright, orientation, copied=False)

    def _encode(self, image: Pixels, box: Box) -> bytes:
        """4:2:0 as cameras write it: it decodes 1.6 times as fast as 4:4:4."""
        side = self.settings.size
        fitted = fit_photo(image, side) if self.settings.fit == "crop" else pad_photo(image, side, box)
        return simplejpeg.encode_jpeg(fitted, quality=self.settings.quality, colorsubsampling="420")

    def _draw(self, key: str, box: Box) -> list[tuple[str, bytes]]:
        """Masks of the pool by the photo's key alone, each at most once; those that cannot be used are passed over."""
        chosen: dict[int, bytes] = {}
        for number in _drawn_numbers(key, len(self.masks)):
            png = self._within(self._pooled(number), box)
            if png is not None:
                chosen[number] = png
            if len(chosen) == self.settings.masks_per_photo:
                break
        if not chosen:
            raise PhotoError("--masks", "no mask of the pool can be used")
        return [(self.masks[number].name, png) for number, png in chosen.items()]

    def _within(self, png: bytes | None, box: Box) -> bytes | None:
        """A mask less its holes in the borders; None where none is left, or nothing but hole."""
        if png is None or box.width == box.height:
            return png
        bits, width = decode_packed_mask(png, "a mask of the pool")
        mask = np.zeros((width, width), np.uint8)
        mask[box.inside] = np.unpackbits(bits, axis=1, count=width)[box.inside]
        holes = np.count_nonzero(mask)
        usable = holes and (holes < box.width * box.height or self.settings.allow_large_holes)
        return encode_mask(mask) if usable else None

    def _pool_mask(self, number: int) -> bytes | None:
        source = self.masks[number]
        try:
            mask = self.read_mask(number)
            square = fit_mask(mask, self.settings.size)
            return encode_mask(self._checked(square, square.size, source.name))
        except PhotoError as error:
            self.bad_masks[source.name] = error.reason
            return None

    def _own_masks(self, numbers: tuple[int, ...], photo: _Photo, box: Box, name: str) -> list[tuple[str, bytes]]:
        if not numbers:
            raise PhotoError(name, "no mask has its name")
        chosen: list[tuple[str, bytes]] = []
        for number in numbers[: self.settings.masks_per_photo]:
            source = self.masks[number]
            mask = turn_mask(self.read_mask(number), photo.orientation, photo.size, source.name)
            side, crops = self.settings.size, self.settings.fit == "crop"
            fitted = fit_mask(mask, side) if crops else pad_mask(mask, side, box)
            fitted = self._checked(fitted, box.width * box.height, source.name)
            chosen.append((source.name, encode_mask(fitted)))
        return chosen

    def read_mask(self, number: int) -> Pixels:
        """A mask as stored, 255 = hole."""
        source = self.masks[number]
        mask = decode_mask(self._reader.read(source), source.name)
        return 255 - mask if self.settings.invert_masks else mask

    def _checked(self, mask: Pixels, photo: int, name: str) -> Pixels:
        """A mask, if there is a hole in it and something known in the photo's pixels, of which there are `photo`."""
        holes, where = np.count_nonzero(mask), "crop" if self.settings.fit == "crop" else "photo"
        if holes == 0:
            raise PhotoError(name, f"the mask has no hole within the {where}")
        if holes == photo and not self.settings.allow_large_holes:
            raise PhotoError(name, f"the mask is all hole within the {where}")
        return mask

    def close(self) -> None:
        """Close the archives."""
        self._reader.__exit__()


def _stripped(data: bytes, name: str) -> bytes:
    try:
        return jpeg_without_metadata(data)
    except ValueError as error:
        raise PhotoError(name, str(error)) from None


def _drawn_numbers(key: str, count: int) -> Iterator[int]:
    """Numbers below `count` by a hash of the key; after enough draws all of them in turn, so that it always ends."""
    number = 0
    for draw in range(_DRAWS):
        number = int.from_bytes(sha256(f"mask {key} {draw}".encode()).digest()[:8], "big") % count
        yield number
    yield from ((number + step) % count for step in range(1, count))
