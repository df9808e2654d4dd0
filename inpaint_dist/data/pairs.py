"""Photos with one hole each, to be scored: from folders, paired by a hash or by name, or the val split of shards.

The third kind, frozen evaluation sets, is in packs.py.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from inpaint_dist.batch import Batch, Image, image_from_uint8, mask_from_uint8
from inpaint_dist.data.loader import ValidationSet
from inpaint_dist.data.name_pairing import pair_by_name
from inpaint_dist.data.photo_sources import PhotoReader, Source, find_photos, key_of
from inpaint_dist.data.photos import Pixels, decode_mask, decode_photo, fit_mask, fit_photo
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UserError

Pairing: TypeAlias = Literal["pool", "name"]

_DRAWS = 64


RESIZE = "short side by averages over areas, centre crop; masks nearest"
"""How photos and masks are fitted, in words."""


@runtime_checkable
class Pairs(Protocol):
    """Photos with one hole each, by number."""

    @property
    def size(self) -> int | None:
        """Pixels of a side; None: each photo has its own, so that a batch is one photo."""
        ...

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Some of them."""
        ...


class Photos:
    """Photos in an order, fitted to squares or as they are; those who inherit know the mask of each."""

    def __init__(self, photos: Sequence[Source], *, size: int | None, pairing: Pairing) -> None:
        self.photos, self.size, self.pairing = list(photos), size, pairing
        self._all = self.photos
        self._reader = PhotoReader()

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, photo: Source) -> tuple[Pixels, Pixels]:
        """A photo (H, W, 3) and its mask (H, W), as they are scored.

        Raises:
            UserError: either cannot be read, or no mask fits.
        """
        image = decode_photo(self._reader.read(photo), photo.name)
        return self.fit(image), self._mask(photo, image)

    def batch(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Some of them."""
        photos = [self.photos[number] for number in numbers]
        images, masks = zip(*map(self.read, photos), strict=True)
        return Batch(
            image_from_uint8(torch.from_numpy(np.stack(images)).to(device)),
            mask_from_uint8(torch.from_numpy(np.stack(masks)).to(device)),
            tuple(key_of(photo.path) for photo in photos),
        )

    def completions(self, folder: Path) -> "Completions":
        """Pictures that another system made of these photos, by name.

        Raises:
            UserError: a photo has none.
        """
        return Completions(self, folder, self._all)

    def fit(self, image: Pixels) -> Pixels:
        """A picture in the geometry of this set."""
        return image if self.size is None else fit_photo(image, self.size)

    def _mask(self, photo: Source, image: Pixels) -> Pixels:
        raise NotImplementedError


class PhotoSet(Photos):
    """Photos of a folder, each with one mask of another, in the order of their paths."""

    def __init__(
        self, photos: Path, masks: Path, *, pairing: Pairing, size: int | None, limit: int | None = None
    ) -> None:
        """Find them.

        Args:
            photos: folder of photos.
            masks: folder of masks, white = hole.
            pairing: pool: each photo's mask is drawn by a hash of its key, the same on any machine; name: the mask of
                its name.
            size: pixels of a side that photos and masks are fitted to; None: as they are (with pairing by name).
            limit: use that many photos, spread evenly.

        Raises:
            UserError: there are no pictures.
        """
        found = sorted(find_photos([str(photos)], "--photos").sources, key=lambda photo: photo.path)
        super().__init__(spread(found, limit), size=size, pairing=pairing)
        self._all = found
        self.masks = sorted(find_photos([str(masks)], "--masks").sources, key=lambda mask: mask.path)
        if pairing == "name":
            self._own = dict(zip(found, pair_by_name(found, self.masks), strict=True))
        self._pooled = lru_cache(maxsize=2000)(self._fitted_mask)

    def _mask(self, photo: Source, image: Pixels) -> Pixels:
        if self.pairing == "pool":
            return self._drawn(photo)
        numbers = self._own[photo]
        if not numbers:
            raise UserError(f"{photo.name}: no mask has its name; --pairing pool draws one for each")
        mask = decode_mask(self._reader.read(self.masks[numbers[0]]), self.masks[numbers[0]].name)
        if mask.shape != image.shape[:2]:
            raise UserError(f"{photo.name}: its mask is of another size")
        return mask if self.size is None else fit_mask(mask, self.size)

    def _drawn(self, photo: Source) -> Pixels:
        """A mask by the photo's key; one without a hole, or all hole, is passed over."""
        for draw in range(_DRAWS):
            digest = sha256(f"quality {key_of(photo.path)} {draw}".encode()).digest()
            mask = self._pooled(int.from_bytes(digest[:8], "big") % len(self.masks))
            if 0 < np.count_nonzero(mask) < mask.size:
                return mask
        raise UserError("--masks: hardly a mask has a hole and something known around it")

    def _fitted_mask(self, number: int) -> Pixels:
        assert self.size is not None, "a mask of the pool is fitted"
        return fit_mask(decode_mask(self._reader.read(self.masks[number]), self.masks[number].name), self.size)


class Completions:
    """What another system made of a set's photos: one picture for each, named as the photo."""

    def __init__(self, pairs: Photos, folder: Path, photos: Sequence[Source]) -> None:
        self._pairs, self._reader = pairs, PhotoReader()
        self._files = find_photos([str(folder)], "--outputs").sources
        found = dict(zip(photos, pair_by_name(photos, self._files), strict=True))
        missing = [photo.name for photo in pairs.photos if not found[photo]]
        if missing:
            raise UserError(
                f"--outputs {folder}: no picture is named as {missing[0]}"
                + (f", nor as {len(missing) - 1} others" if len(missing) > 1 else "")
            )
        self._of = {photo: self._files[found[photo][0]] for photo in pairs.photos}

    def batch(self, numbers: Sequence[int], device: torch.device) -> Image:
        """Some of them, in the geometry of the photos.

        Raises:
            UserError: one cannot be read, or is of another size than its photo.
        """
        made = [self._read(self._pairs.photos[number]) for number in numbers]
        return image_from_uint8(torch.from_numpy(np.stack(made)).to(device))

    def _read(self, photo: Source) -> Pixels:
        file = self._of[photo]
        image = decode_photo(self._reader.read(file), file.name)
        original = decode_photo(self._reader.read(photo), photo.name)
        if image.shape != original.shape:
            sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (image, original)]
            raise UserError(f"--outputs: {file.name} has {sizes[0]} pixels and its photo {sizes[1]}")
        return self._pairs.fit(image)


class ValSplit:
    """The val split of shards, each photo with its own first mask."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Open it.

        Raises:
            UserError: there is none.
        """
        index = ShardIndex.load(folder, "val")
        if not len(index):
            raise UserError(f"--shards {folder} has no val split")
        self.fingerprint = index.fingerprint
        self.size = index.size
        self._chosen = spread(range(len(index)), limit)
        self._open = lru_cache(maxsize=1)(partial(ValidationSet, index))

    def __len__(self) -> int:
        return len(self._chosen)

    def batch(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Some of them."""
        return self._open(device).batch([self._chosen[number] for number in numbers])


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """`limit` of the items, spread evenly over them."""
    count = min(limit or len(items), len(items))
    return [items[number * len(items) // count] for number in range(count)]
