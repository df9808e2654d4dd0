"""What is to be made: which photo goes into which split and shard, under which key, with which masks.

Everything here follows from names and hashes alone: no photo has been opened yet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from inpaint_dist.data.name_pairing import pair_by_name
from inpaint_dist.data.photo_sources import Found, Source, find_photos, key_of
from inpaint_dist.data.samples import Item, SampleSettings
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
    size: int = 256
    """Pixels of a side: short side to it, centre crop."""
    val: tuple[str, ...] = ()
    """Photos of the validation split. Without it, --val-fraction of PHOTOS."""
    val_fraction: float = 0.05
    """Share of the photos that goes to the validation split, by a hash of each photo's key."""
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

    @property
    def sample_settings(self) -> SampleSettings:
        """What shapes a sample's bytes."""
        return SampleSettings(
            size=self.size,
            quality=self.quality,
            keep_metadata=self.keep_metadata,
            masks_per_photo=self.masks_per_photo,
            invert_masks=self.invert_masks,
            allow_large_holes=self.allow_large_holes,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The samples to make, split by split, in the order in which the shards hold them."""

    train: list[Item]
    """Samples of the train split."""
    val: list[Item]
    """Samples of the val split."""
    masks: list[Source]
    """All masks, sorted; items name them by number."""
    refused: list[tuple[str, str]]
    """Files that are not even opened, and why."""
    notes: list[str]
    """What the user should be told."""
    settings: dict[str, Any]
    """What shapes the shards' bytes, without anything of this machine."""


def make_plan(config: ShardingConfig) -> Plan:
    """Find photos and masks, give out keys, split and pair.

    Raises:
        UserError: a place without pictures, two photos of one key, masks that fit no photo.
    """
    found = find_photos(config.photos, "PHOTOS")
    notes: list[str] = []
    if config.val:
        found_val = find_photos(config.val, "--val")
        train = _keyed(_without(found.sources, found_val.sources, notes))
        val, refused = _keyed(found_val.sources), found.refused + found_val.refused
    else:
        train, val = _split(_keyed(found.sources), config.val_fraction, notes)
        refused = list(found.refused)
    masks_found = find_photos([*config.masks], "--masks")
    masks = sorted(masks_found.sources, key=lambda mask: (mask.path, mask.name))
    refused += masks_found.refused
    if not train:
        raise UserError("no photo is left for the train split: --val names all of PHOTOS")
    if config.pairing == "pool" and config.masks_per_photo > len(masks):
        raise UserError(f"--masks-per-photo {config.masks_per_photo}: --masks holds only {len(masks)}")
    splits = {"train": _shuffled(train), "val": _shuffled(val)}
    items = _paired(splits, masks, config, notes)
    settings = _settings(config, splits, masks)
    return Plan(**items, masks=masks, refused=sorted(refused), notes=notes + _ignored(found), settings=settings)


def _keyed(sources: Sequence[Source]) -> dict[str, Source]:
    keyed: dict[str, Source] = {}
    for source in sources:
        key = key_of(source.path)
        if key in keyed:
            raise UserError(
                f"{keyed[key].name} and {source.name} would both get the key {key}: rename one, or name the folder "
                "above both instead of each (a key holds the folders below the one that is named)"
            )
        keyed[key] = source
    return keyed


def _without(train: Sequence[Source], val: Sequence[Source], notes: list[str]) -> list[Source]:
    in_val = {(source.file, source.member) for source in val}
    kept = [source for source in train if (source.file, source.member) not in in_val]
    if len(kept) < len(train):
        notes.append(f"{len(train) - len(kept)} photos of --val lie among PHOTOS too: train goes without them")
    return kept


def _split(keyed: dict[str, Source], fraction: float, notes: list[str]) -> tuple[dict[str, Source], dict[str, Source]]:
    """By a hash of each key alone: photos that come later move none of those that were there."""
    in_val = {key for key in keyed if _hash(f"split {key}") < fraction}
    if fraction == 0:
        notes.append("val is empty, as --val-fraction 0 asks: runs will have nothing to be measured on")
    elif len(keyed) == 1:
        in_val = set()
        notes.append("val is empty: there is only one photo, and it went to train")
    elif not in_val or len(in_val) == len(keyed):
        first = min(keyed, key=lambda key: _hash(f"split {key}"))
        in_val = {first}
        notes.append(
            f"the hash split of {len(keyed)} photos at --val-fraction {fraction} left one side empty: val is the one "
            f"photo {first} (it may move when photos are added; --val names a set that does not)"
        )
    train = {key: source for key, source in keyed.items() if key not in in_val}
    return train, {key: source for key, source in keyed.items() if key in in_val}


def _shuffled(keyed: dict[str, Source]) -> list[tuple[str, Source]]:
    """Neighbours in a folder do not end up neighbours in a shard: who reads shards one after the other needs a mix."""
    return sorted(keyed.items(), key=lambda item: _digest(f"order {item[0]}"))


def _paired(
    splits: dict[str, list[tuple[str, Source]]], masks: list[Source], config: ShardingConfig, notes: list[str]
) -> dict[str, list[Item]]:
    if config.pairing == "pool":
        return {split: [Item(key, source, None) for key, source in keyed] for split, keyed in splits.items()}
    everything = list(chain.from_iterable(splits.values()))
    pairs = iter(pair_by_name([source for _, source in everything], masks))
    items = {split: [Item(key, source, next(pairs)) for key, source in keyed] for split, keyed in splits.items()}
    paired = [item for item in chain.from_iterable(items.values()) if item.masks]
    if not paired:
        raise UserError(
            f"--pairing name: no mask has the name of a photo (a photo is {everything[0][1].name}, a mask "
            f"{masks[0].name}); --pairing pool gives any mask to any photo"
        )
    if len(paired) < len(everything):
        notes.append(f"{len(everything) - len(paired)} of {len(everything)} photos have no mask of their name")
    return items


def _settings(
    config: ShardingConfig, splits: dict[str, list[tuple[str, Source]]], masks: list[Source]
) -> dict[str, Any]:
    names = ("size", "quality", "pairing", "masks_per_photo", "invert_masks", "allow_large_holes", "keep_metadata")
    photos = (f"{split} {key} {source.size}" for split, keyed in splits.items() for key, source in keyed)
    return {
        **{name: getattr(config, name) for name in names},
        "samples_per_shard": config.samples_per_shard,
        "val": "given" if config.val else f"fraction {config.val_fraction}",
        "photos": _listing(photos),
        "masks": _listing(f"{mask.path} {mask.size}" for mask in masks),
    }


def _listing(lines: Iterable[str]) -> dict[str, Any]:
    every = list(lines)
    return {"count": len(every), "sha256": _digest("\n".join(every)).hex()}


def _ignored(found: Found) -> list[str]:
    if not found.ignored:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.ignored.most_common(6))
    return [f"files that are no pictures were passed over: {kinds}"]


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


def _hash(text: str) -> float:
    """A number in 0..1 that depends on nothing but the text."""
    return int.from_bytes(_digest(text)[:8], "big") / 2**64
