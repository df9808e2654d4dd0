"""What is to be made: which photo goes into which split and shard, under which key, with which masks.

Everything here follows from names and hashes alone: no photo has been opened yet.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.name_pairing import pair_by_name
from inpaint_dist.data.photo_copies import without_copies
from inpaint_dist.data.photo_sources import Found, find_photos, key_of
from inpaint_dist.data.remote import is_remote, redacted
from inpaint_dist.data.samples import Fit, Item, SampleSettings
from inpaint_dist.data.sharding_state import PartOf
from inpaint_dist.data.source_table import Sources
from inpaint_dist.errors import UsageError, UserError


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """Photos and masks to shards."""

    photos: tuple[str, ...]
    """Photos: folders (nested), files, globs, .zip files, or a place in one (archive.zip:train/images)."""
    masks: tuple[str, ...]
    """Masks, found like photos; white = hole, every pixel above 127."""
    out: Path
    """Folder to write the shards to."""
    upload: str | None = None
    """Folder on another machine, s3://BUCKET/mine or any URL that fsspec can write to, that each shard is put into,
    whole, as soon as it is made, and the index last. --out keeps the index and what a killed run goes on from, no
    tars."""
    allow_remote: bool = False
    """Let --upload be a URL: to open one may run code of the library that knows it."""
    size: int = 256
    """Pixels of a side."""
    fit: Fit = "crop"
    """crop: the short side to --size, then the centre. pad: the long side to --size, black borders, which are known in
    every mask; none of the photo is lost. All pictures of a set have one size, for a batch is one block of memory."""
    val: tuple[str, ...] = ()
    """Photos of the validation split. Without it, --val-fraction of PHOTOS."""
    val_fraction: float = 0.05
    """Share of the photos that goes to the validation split, by a hash of each photo's key."""
    drop_duplicates: bool = False
    """Leave out photos whose bytes are those of another; of one in --val and one in PHOTOS the latter goes. Files that
    share their size are read for it. rejected.jsonl names each."""
    pairing: Literal["pool", "name"] = "pool"
    """pool: any photo gets any mask, by a hash of its key. name: each photo has masks of its own name (a.jpg: a.png,
    a_mask.png, a_mask001.png, …), which are turned, resized and cropped with it."""
    masks_per_photo: int = 1
    """Masks that travel with a photo."""
    invert_masks: bool = False
    """The masks are black where the hole is."""
    allow_large_holes: bool = False
    """Accept masks whose mean hole is over 60 %, as outpainting has them."""
    quality: int = 95
    """JPEG quality of photos that are encoded anew."""
    keep_metadata: bool = False
    """Keep the metadata of JPEGs that are copied byte for byte because they have the size already."""
    samples_per_shard: int = 1000
    """Photos in one tar."""
    workers: int = 0
    """Processes; 0 = one for each usable core. The bytes do not depend on it."""
    part: str | None = None
    """I/N: make only the I-th of N parts of the shards, as a job array does: --part $SLURM_ARRAY_TASK_ID/16. All parts
    go to the same --out; when they are done, --merge."""
    merge: bool = False
    """After all parts: check that every shard is there, and write the index. The bytes are those of a single run."""
    executor: Literal["local", "dask"] = "local"
    """local: processes of this machine. dask: the workers of the cluster at --scheduler, which see photos, masks and
    --out at the same paths as this machine."""
    scheduler: str | None = None
    """Address of a dask scheduler, as tcp://HOST:8786."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            UsageError: naming the flag, the value and what is allowed.
        """
        if not self.photos:
            raise UsageError("PHOTOS is missing: name a folder, a glob or a .zip of photos")
        if not self.masks:
            raise UsageError("--masks is missing: name a folder of masks (tools/make_masks.py makes one)")
        for flag, value, low, high in (
            ("--size", self.size, 8, 8192),
            ("--quality", self.quality, 1, 100),
            ("--masks-per-photo", self.masks_per_photo, 1, 99),
            ("--samples-per-shard", self.samples_per_shard, 1, 1_000_000),
            ("--workers", self.workers, 0, 1024),
        ):
            if not low <= value <= high:
                raise UsageError(f"{flag} {value}: from {low} to {high}")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction {self.val_fraction}: from 0 to below 1")
        if self.part is not None and self.share is None:
            raise UsageError(f"--part {self.part}: give I/N, as 3/16, with I from 1 to N")
        if sum((self.part is not None, self.merge, self.executor == "dask")) > 1:
            raise UsageError("--part, --merge and --executor dask: give one of them")
        if self.upload is not None and not is_remote(self.upload):
            raise UsageError("--upload: give a URL, as s3://BUCKET/mine; --out names a folder of this machine")
        if self.upload is not None and not self.allow_remote:
            raise UsageError(f"--upload {redacted(self.upload)}: add --allow-remote to write there")
        if (self.executor == "dask") != (self.scheduler is not None):
            raise UsageError("--executor dask and --scheduler ADDRESS go together: give both, or neither")

    @property
    def share(self) -> PartOf | None:
        """The part to make; None: all of them."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part or "")
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            return None
        return PartOf(int(found[1]), int(found[2]))

    @property
    def sample_settings(self) -> SampleSettings:
        """What shapes a sample's bytes."""
        return SampleSettings(
            size=self.size,
            fit=self.fit,
            quality=self.quality,
            keep_metadata=self.keep_metadata,
            masks_per_photo=self.masks_per_photo,
            invert_masks=self.invert_masks,
            allow_large_holes=self.allow_large_holes,
        )


class Items(Sequence[Item]):
    """The samples of a split, in the order in which the shards hold them; made when asked for, by the slice."""

    def __init__(self, sources: Sources, order: NDArray[np.int64], masks: Sequence[tuple[int, ...]] | None):
        """Choose.

        Args:
            sources: the photos.
            order: which of them, in which order.
            masks: for each of the chosen the numbers of its own masks; None where they are drawn from the pool.
        """
        self.sources, self.order, self.masks = sources, order, masks

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return [self._make(one) for one in range(*place.indices(len(self)))]
        return self._make(range(len(self))[place])

    def _make(self, place: int) -> Item:
        source = self.sources[int(self.order[place])]
        return Item(key_of(source.path), source, None if self.masks is None else self.masks[place])

    def listing(self, split: str) -> Iterator[str]:
        """A line for each: what tells whether another run was given the same."""
        sources = self.sources
        for number in map(int, self.order):
            yield f"{split} {key_of(sources.path(number))} {sources.size(number)}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The samples to make, split by split, in the order in which the shards hold them."""

    train: Items
    """Samples of the train split."""
    val: Items
    """Samples of the val split."""
    masks: Sources
    """All masks, sorted; items name them by number."""
    refused: list[tuple[str, str]]
    """Files that are not even opened, and why."""
    copies: list[tuple[str, str]]
    """Photos that are left out for others of the same bytes, and which."""
    notes: list[str]
    """What the user should be told."""
    settings: dict[str, Any]
    """What shapes the shards' bytes, without anything of this machine."""


class _Keyed(NamedTuple):
    """Photos with what their keys' hashes say: no key is held, for a million would fill a tenth of a gigabyte."""

    sources: Sources
    chosen: NDArray[np.int64]
    """Numbers of the photos, in the order of their shards."""
    share: NDArray[np.float64]
    """For each of the chosen a number of [0, 1) that decides its split."""


def make_plan(config: ShardingConfig) -> Plan:
    """Find photos and masks, give out keys, split and pair.

    Raises:
        UserError: a place without pictures, two photos of one key, masks that fit no photo.
    """
    found = find_photos(config.photos, "PHOTOS")
    notes: list[str] = []
    copies: list[tuple[str, str]] = []
    if config.val:
        found_val = find_photos(config.val, "--val")
        of_val: Iterable[int] = range(len(found_val.sources))
        of_train: Iterable[int] = _without(found.sources, found_val.sources, notes)
        if config.drop_duplicates:
            (of_val, of_train), copies = without_copies([(found_val.sources, of_val), (found.sources, of_train)])
        train, val = _keyed(found.sources, of_train), _keyed(found_val.sources, of_val)
        refused = found.refused + found_val.refused
    else:
        chosen: Iterable[int] = range(len(found.sources))
        if config.drop_duplicates:
            (chosen,), copies = without_copies([(found.sources, chosen)])
        train, val = _split(_keyed(found.sources, chosen), config.val_fraction, notes)
        refused = list(found.refused)
    if copies:
        notes.append(f"{len(copies)} photos are copies of others, byte for byte, and were left out")
    masks_found = find_photos([*config.masks], "--masks")
    masks = Sources(sorted(masks_found.sources, key=lambda mask: (mask.path, mask.name)))
    refused += masks_found.refused
    if not len(train.chosen):
        raise UserError("no photo is left for the train split: --val holds all of PHOTOS")
    if config.pairing == "pool" and config.masks_per_photo > len(masks):
        raise UserError(f"--masks-per-photo {config.masks_per_photo}: --masks holds only {len(masks)}")
    items = _paired({"train": train, "val": val}, masks, config, notes)
    settings = _settings(config, items, masks)
    notes += _ignored(found)
    return Plan(**items, masks=masks, refused=sorted(refused), copies=copies, notes=notes, settings=settings)


def _keyed(sources: Sources, kept: Iterable[int]) -> _Keyed:
    """Order by a hash of each key: neighbours in a folder do not end up neighbours in a shard.

    Whoever reads shards one after the other needs a mix.
    """
    numbers = array("q", kept)
    hashes, shares = bytearray(), array("d")
    for number in numbers:
        key = key_of(sources.path(number))
        hashes += _digest(f"order {key}")[:16]
        shares.append(_hash(f"split {key}"))
    halves = np.frombuffer(hashes, ">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of one key, the photo that was found first comes first
    halves = halves[order]
    _refuse_twins(sources, np.frombuffer(numbers, np.int64)[order], (halves[1:] == halves[:-1]).all(axis=1))
    return _Keyed(sources, np.frombuffer(numbers, np.int64)[order], np.frombuffer(shares, np.float64)[order])


def _refuse_twins(sources: Sources, ordered: NDArray[np.int64], same_as_next: NDArray[np.bool_]) -> None:
    if not same_as_next.any():
        return
    at = min(np.flatnonzero(same_as_next), key=lambda place: ordered[place + 1])
    first, second = (sources[int(ordered[place])] for place in (at, at + 1))
    raise UserError(
        f"{first.name} and {second.name} would both get the key {key_of(first.path)}: rename one, or name the folder "
        "above both instead of each (a key holds the folders below the one that is named)"
    )


def _without(train: Sources, val: Sources, notes: list[str]) -> list[int]:
    in_val = {(source.file, source.member) for source in val}
    kept = [number for number, source in enumerate(train) if (source.file, source.member) not in in_val]
    if len(kept) < len(train):
        notes.append(f"{len(train) - len(kept)} photos of --val lie among PHOTOS too: train goes without them")
    return kept


def _split(keyed: _Keyed, fraction: float, notes: list[str]) -> tuple[_Keyed, _Keyed]:
    """By a hash of each key alone: photos that come later move none of those that were there."""
    sources, chosen, share = keyed
    in_val = share < fraction
    if fraction == 0:
        notes.append("val is empty, as --val-fraction 0 asks: runs will have nothing to be measured on")
    elif len(chosen) == 1:
        in_val[:] = False
        notes.append("val is empty: there is only one photo, and it went to train")
    elif not in_val.any() or in_val.all():
        first = int(share.argmin())
        in_val = np.arange(len(share)) == first
        notes.append(
            f"the hash split of {len(chosen)} photos at --val-fraction {fraction} left one side empty: val is the one "
            f"photo {key_of(sources.path(int(chosen[first])))} (it may move when photos are added; --val names a set "
            "that does not)"
        )
    return _Keyed(sources, chosen[~in_val], share[~in_val]), _Keyed(sources, chosen[in_val], share[in_val])


def _paired(splits: dict[str, _Keyed], masks: Sources, config: ShardingConfig, notes: list[str]) -> dict[str, Items]:
    if config.pairing == "pool":
        return {split: Items(keyed.sources, keyed.chosen, None) for split, keyed in splits.items()}
    everything = [keyed.sources[number] for keyed in splits.values() for number in map(int, keyed.chosen)]
    pairs = pair_by_name(everything, masks)
    paired = sum(map(bool, pairs))
    if not paired:
        raise UserError(
            f"--pairing name: no mask has the name of a photo (a photo is {everything[0].name}, a mask "
            f"{masks[0].name}); --pairing pool gives any mask to any photo"
        )
    if paired < len(everything):
        notes.append(f"{len(everything) - paired} of {len(everything)} photos have no mask of their name")
    own = iter(pairs)
    return {
        split: Items(keyed.sources, keyed.chosen, list(islice(own, len(keyed.chosen))))
        for split, keyed in splits.items()
    }


def _settings(config: ShardingConfig, items: dict[str, Items], masks: Sources) -> dict[str, Any]:
    names = (
        "size",
        "fit",
        "quality",
        "pairing",
        "masks_per_photo",
        "invert_masks",
        "allow_large_holes",
        "keep_metadata",
    )
    photos = chain.from_iterable(some.listing(split) for split, some in items.items())
    return {
        **{name: getattr(config, name) for name in names},
        "keep_metadata": config.keep_metadata,
        "samples_per_shard": config.samples_per_shard,
        "val": "given" if config.val else f"fraction {config.val_fraction}",
        "photos": _listing(photos),
        "masks": _listing(f"{mask.path} {mask.size}" for mask in masks),
    }


def _listing(lines: Iterable[str]) -> dict[str, Any]:
    digest, count = sha256(), 0
    for line in lines:
        digest.update(_bytes(f"\n{line}" if count else line))
        count += 1
    return {"count": count, "sha256": digest.hexdigest()}


def _ignored(found: Found) -> list[str]:
    if not found.ignored:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.ignored.most_common(6))
    return [f"files that are no pictures were passed over: {kinds}"]


def _digest(text: str) -> bytes:
    return sha256(_bytes(text)).digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _hash(text: str) -> float:
    """A number in 0..1 that depends on nothing but the text."""
    return int.from_bytes(_digest(text)[:8], "big") / 2**64
