"""Frozen evaluation sets: PACK/pack.json lists photos and their hashes, PACK/masks/ holds the mask of each, as scored.

A pack holds no photo: whoever has the photos scores on the very same list, or is told what differs. Masks have their
photos' names, so that any other system reads them too.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_dist.batch import Batch, image_to_uint8
from inpaint_dist.data.packed_masks import encode_mask
from inpaint_dist.data.pairs import RESIZE, Photos, PhotoSet
from inpaint_dist.data.photo_sources import PhotoReader, Source, find_photos, stem
from inpaint_dist.data.photos import Pixels, decode_mask
from inpaint_dist.data.progress import Progress
from inpaint_dist.errors import UserError
from inpaint_dist.host import folder_written_whole, parse_json

PACK, MASKS = "pack.json", "masks"
_KIND = "inpaint_dist evaluation pack"
_VERSION = 1


class PackError(UserError):
    """A pack, or what it is to be scored with, is not as it was made; every rank looks at all of it."""

    on_every_rank = True


def make_pack(photos: PhotoSet, folder: Path) -> str:
    """Freeze a set of photos and masks into a folder, which appears whole or not at all; the same set, the same bytes.

    Returns:
        The pack's hash: sha256 of its pack.json, which holds those of all else.

    Raises:
        UserError: the folder is there already or cannot be written, a photo or mask cannot be read, or two photos
            share a name.
    """
    if folder.exists():
        raise UserError(f"--make-pack {folder}: is there already; remove it, or name another")
    name, count = Counter(stem(photo.path) for photo in photos.photos).most_common(1)[0]
    if count > 1:
        raise UserError(f"--make-pack: {count} photos are named {name}, and masks have their photos' names")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_whole(folder) as part, Progress("pack", len(photos), "photo") as progress:
            rows: list[dict[str, str]] = []
            for row in _rows(photos, part):
                rows.append(row)
                progress.update(len(rows))
            about = {"kind": _KIND, "version": _VERSION, "pairing": photos.pairing, "size": photos.size}
            about["resize"] = None if photos.size is None else RESIZE
            data = (json.dumps(about | {"photos": rows}, indent=1) + "\n").encode()
            (part / PACK).write_bytes(data)
    except FileExistsError as error:
        raise UserError(
            f"--make-pack: {error.filename} is there, left by a killed process or another's; remove it"
        ) from None
    except OSError as error:
        raise UserError(f"--make-pack {folder}: cannot be written ({error})") from error
    return sha256(data).hexdigest()


def _rows(photos: PhotoSet, folder: Path) -> Iterator[dict[str, str]]:
    """Write the mask of each photo; say what the pack has to know of it."""
    reader = PhotoReader()
    for photo in photos.photos:
        image, mask = photos.read(photo)
        path, data = _mask_path(folder, photo.path), encode_mask(mask)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        yield {
            "photo": photo.path,
            "sha256": sha256(reader.read(photo)).hexdigest(),
            "mask sha256": sha256(data).hexdigest(),
            "pixels sha256": _pixel_digest(image, mask > 0).hex(),
        }


class PackedSet(Photos):
    """The photos of a pack with its masks, once every file has turned out to be what the pack was made of."""

    def __init__(self, pack: Path, photos: Path) -> None:
        """Open and verify.

        Raises:
            PackError: naming the file that is missing or differs.
        """
        self.pack = pack
        data, about = _read(pack)
        self.hash = sha256(data).hexdigest()
        """sha256 of pack.json, which holds those of all else."""
        self._rows: dict[str, dict[str, str]] = {row["photo"]: row for row in about["photos"]}
        found = {photo.path: photo for photo in find_photos([str(photos)], "--photos").sources}
        missing = [path for path in self._rows if path not in found]
        if missing:
            others = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
            raise PackError(f"--photos {photos}: {missing[0]}, which {pack} lists, is not there{others}")
        super().__init__([found[path] for path in self._rows], size=about["size"], pairing=about["pairing"])
        with Progress("verify", len(self), "photo") as progress:
            for number, photo in enumerate(self.photos, 1):
                self._verify(photo)
                progress.update(number)

    def _verify(self, photo: Source) -> None:
        row = self._rows[photo.path]
        if sha256(self._reader.read(photo)).hexdigest() != row["sha256"]:
            raise PackError(f"--photos: {photo.name} is not the file that {self.pack} was made of: its sha256 differs")
        if sha256(self._mask_bytes(photo)).hexdigest() != row["mask sha256"]:
            path = _mask_path(self.pack, photo.path)
            raise PackError(f"--pack: {path} was changed: its sha256 is not that of {PACK}; get the pack anew")

    def unlike(self, digests: Sequence[bytes]) -> list[str]:
        """Photos whose pixels, decoded and fitted here, are not those that the pack was made of.

        Args:
            digests: of each photo, as `pixel_digests` gives them.
        """
        pairs = zip(self.photos, digests, strict=True)
        return [photo.path for photo, digest in pairs if digest.hex() != self._rows[photo.path]["pixels sha256"]]

    def _mask(self, photo: Source, image: Pixels) -> Pixels:
        del image
        return decode_mask(self._mask_bytes(photo), str(_mask_path(self.pack, photo.path)))

    def _mask_bytes(self, photo: Source) -> bytes:
        path = _mask_path(self.pack, photo.path)
        try:
            return path.read_bytes()
        except OSError as error:
            raise PackError(f"--pack: {path}: cannot be read ({error.strerror}); get the pack anew") from None


def _read(pack: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a pack's list, and what they say."""
    path = pack / PACK
    try:
        data = path.read_bytes()
        about = dict(parse_json(data))
        known = (about["kind"], about["version"]) == (_KIND, _VERSION)
        about = {name: about[name] for name in ("pairing", "size", "resize", "photos")}
        whole = all({"photo", "sha256", "mask sha256", "pixels sha256"} <= row.keys() for row in about["photos"])
    except OSError as error:
        raise PackError(f"--pack {path}: cannot be read ({error.strerror}); --make-pack makes one") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PackError(f"--pack {path}: not the list of a pack; --make-pack makes one") from None
    if not known or not whole or about["resize"] not in (None, RESIZE):
        raise PackError(f"--pack {path}: made by another version of inpaint_dist, which this one cannot repeat")
    return data, about


def _mask_path(pack: Path, photo: str) -> Path:
    return pack / MASKS / f"{stem(photo)}.png"


def pixel_digests(batch: Batch) -> list[bytes]:
    """sha256 of the pixels of each photo and its mask."""
    images, holes = image_to_uint8(batch.image).cpu().numpy(), (batch.mask[:, 0] > 0.5).cpu().numpy()
    return [_pixel_digest(image, hole) for image, hole in zip(images, holes, strict=True)]


def _pixel_digest(image: Pixels, hole: np.ndarray) -> bytes:
    """Of a photo uint8 (H, W, 3) and its holes, bool (H, W)."""
    return sha256(image.tobytes() + hole.tobytes()).digest()
