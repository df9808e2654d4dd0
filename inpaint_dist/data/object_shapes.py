"""Holes in the shapes of objects, from a folder of segmentations."""

import random
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

import numpy as np

from inpaint_dist.data.marks import MaskArray
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photo_sources import PhotoReader, find_photos
from inpaint_dist.data.photos import decode_mask
from inpaint_dist.data.source_table import Sources

_CACHED_SHAPES = 4096


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Silhouettes cut out of segmentations (white = object), mirrored by a coin, brought to a size and put anywhere."""

    files: str
    """sha256 of the segmentations' paths and sizes: others are another law."""
    count: tuple[int, int] = (1, 2)
    """Fewest and most objects."""
    share: tuple[float, float] = (0.3, 0.8)
    """An object's longer side is this share of the picture's shorter one; it lies whole inside the picture."""
    sources: Sources = field(repr=False, compare=False)
    """The segmentations, by path."""

    @classmethod
    def of(cls, folder: str) -> "Objects":
        """Find the segmentations of a folder, a glob or a .zip.

        Raises:
            UserError: there are none.
        """
        found = find_photos([folder], "objects:").sources
        sources = Sources(sorted(found, key=lambda source: (source.path, source.name)))
        listing = "\n".join(f"{source.path} {source.size}" for source in sources)
        return cls(files=sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(), sources=sources)

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:  # noqa: ARG002 (shares have no pixels)
        """Add the objects to the canvas, in place; a segmentation without an object adds nothing.

        Raises:
            PhotoError: a segmentation cannot be read.
        """
        uniform = rng.random
        height, width = canvas.shape
        low, high = self.count
        for _ in range(low + int(uniform() * (high - low + 1))):
            shape = _read(self.sources, int(uniform() * len(self.sources)))
            side = (self.share[0] + uniform() * (self.share[1] - self.share[0])) * min(height, width)
            mirrored, right, down = uniform() < 0.5, uniform(), uniform()
            if not shape.size:
                continue
            factor = side / max(shape.shape)
            size = max(1, round(shape.shape[1] * factor)), max(1, round(shape.shape[0] * factor))
            # Averaged, then cut at the half: an outline stays one, where the nearest pixels would show their squares.
            scaled = cv2.resize(
                np.ascontiguousarray(shape[:, ::-1]) if mirrored else shape, size, interpolation=cv2.INTER_LINEAR_EXACT
            )
            x, y = int(right * (width - size[0] + 1)), int(down * (height - size[1] + 1))
            canvas[y : y + size[1], x : x + size[0]][scaled > 127] = 255


def _read(sources: Sources, number: int) -> MaskArray:
    """A segmentation cut to its object's bounds, 255 = object; empty where there is none."""
    bits, width = _packed(sources, number)
    return np.unpackbits(bits, axis=1, count=width) * np.uint8(255)


@lru_cache(maxsize=_CACHED_SHAPES)
def _packed(sources: Sources, number: int) -> tuple[MaskArray, int]:
    """The same in one bit a pixel, and its width."""
    source = sources[number]
    with PhotoReader() as reader:
        mask = decode_mask(reader.read(source), source.name)
    left, top, width, height = cv2.boundingRect(mask)
    return np.packbits(mask[top : top + height, left : left + width], axis=1), width
