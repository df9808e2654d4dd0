"""What a run reads: its training batches, its validation set, and how long that makes it."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import inpaint_dist
from inpaint_dist.batch import Batch
from inpaint_dist.data.foreign_index import can_be_indexed, index_foreign
from inpaint_dist.data.joined_sets import SetMixture, join, read_sets
from inpaint_dist.data.loader import DataConfig, Loader, ValidationSet, decoders
from inpaint_dist.data.mask_mixture import read_hole_ratios, read_mixture
from inpaint_dist.data.order import SHUFFLED_WHOLE, WINDOW, steps_for
from inpaint_dist.data.remote import PIPE, is_pipe, is_remote, redacted
from inpaint_dist.data.shards import ShardError, ShardIndex
from inpaint_dist.data.streaming import WEAKER, StreamingLoader, find_shards, is_stream
from inpaint_dist.errors import UsageError

GB = 10**9
DEFAULT_SIZE = 256
"""Pixels of a side, where shards of others are read and no --size is given."""


@dataclass(frozen=True)
class Place:
    """One process among the others, as far as reading goes."""

    rank: int
    world: int
    device: torch.device


@dataclass(frozen=True)
class Sources:
    """The data of a run."""

    loader: Loader | StreamingLoader
    validation: ValidationSet | None
    total_steps: int
    fingerprint: str
    """Equal exactly where the training samples are."""
    size: int
    """Pixels of a side."""
    notes: list[str]
    """What the user should know: how much there is, and which promises do not hold."""

    def first(self) -> Batch:
        """This rank's part of the first global batch."""
        return next(iter(self.loader.batches(0, 1)))


def open_sources(
    config: DataConfig, place: Place, *, seed: int, epochs: int, max_steps: int | None, parts: int
) -> Sources:
    """Find the shards, cut the global batch, and count the steps.

    Args:
        config: what to read.
        place: this process.
        seed: of the order and of masks drawn.
        epochs: times every sample is read, where `max_steps` is None.
        max_steps: steps of the run.
        parts: micro-batches of a step.

    Raises:
        UserError: where there is nothing to read, or the batch cannot be divided.
    """
    per_process = config.per_process(place.world, parts)
    sets = read_sets(config.shards)
    foreign = find_shards(config.shards) if sets is None and is_stream(config.shards) else []
    if foreign and not can_be_indexed(foreign):
        return _streamed(config, place, seed, max_steps, per_process, foreign)
    if foreign:
        training = _foreign(config, foreign, place)
    elif sets is not None:
        training = _joined(sets)
    else:
        training = _own(config, place)
    index = training.index
    if config.size not in (None, index.size):
        raise UsageError(f"--size {config.size}: the shards in {training.where} hold pictures of {index.size} pixels")
    loader = Loader(
        config, index, seed=seed, rank=place.rank, world=place.world, per_process=per_process, device=place.device
    )
    total = max_steps or steps_for(loader.samples, epochs, loader.global_batch)
    validation = _validation(config, place, index.size, training.beside)
    notes = [
        f"data: {loader.samples:,} photos of {index.size}x{index.size} in {training.where}, "
        f"{0 if validation is None else len(validation):,} for validation, masks {config.mask_source}"
        + (f" of holes {' '.join(config.hole_ratios)}" if config.hole_ratios else ""),
        *training.said,
    ]
    if index.remote is not None:
        notes += _about_cache(config, index)
    if foreign:
        notes.append(
            f"these {len(index.shards):,} tars have no checksums: they are fitted to {index.size} pixels as they are "
            "decoded, and damage is found only where it no longer decodes (make_shards makes checked shards)"
        )
    if validation is None:
        notes.append("no validation samples: nothing is evaluated, and pictures are drawn of training samples")
    fingerprint = f"{training.fingerprint}:{loader.samples}"
    return Sources(loader, validation, total, fingerprint, index.size, notes)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What --shards names."""

    index: ShardIndex
    where: str
    """Its place, to be shown."""
    fingerprint: str
    beside: Callable[[], ShardIndex] | None = None
    """The validation samples that lie beside; None: there are none of that kind."""
    said: list[str] = field(default_factory=list)
    """What the user should know of it."""


def _own(config: DataConfig, place: Place) -> _Training:
    """A folder of our own shards."""
    index, notes = _load(config.shards, "train", config, place)
    where = str(index.remote or index.folder)
    _refuse_empty(index, where)

    def beside() -> ShardIndex:
        return replace(ShardIndex.load(index.folder, "val"), remote=index.remote)

    return _Training(index=index, where=where, fingerprint=index.fingerprint, beside=beside, said=notes)


def _joined(sets: SetMixture) -> _Training:
    """Several folders of our own shards, by weight."""
    if other := next((place for place in sets.places if is_remote(place) or is_stream(place)), None):
        raise UsageError(
            f"--shards {redacted(other)}: several sets are read from folders of this machine alone, which make_shards "
            "made"
        )
    folders = [shards_folder(place) for place in sets.places]
    indexes = [ShardIndex.load(folder, "train") for folder in folders]
    for index in indexes:
        _refuse_empty(index, str(index.folder))
    return _Training(
        index=join(indexes),
        where=str(sets),
        fingerprint=sets.fingerprint(indexes),
        beside=lambda: join([ShardIndex.load(folder, "val") for folder in folders]),
    )


def _refuse_empty(index: ShardIndex, where: str) -> None:
    if not len(index):
        raise UsageError(f"--shards {where}: has no training samples")


def _load(shards: str, split: str, config: DataConfig, place: Place) -> tuple[ShardIndex, list[str]]:
    """The index of a split, of this machine or brought here."""
    if not is_remote(shards):
        return ShardIndex.load(shards_folder(shards), split), []
    from inpaint_dist.data.shard_cache import RemoteShards  # POSIX alone

    remote = RemoteShards(url=shards, cache=_cache(config), limit=int(config.shard_cache_gb * GB), salt=place.rank)
    notes = remote.refresh_index()
    try:
        index = ShardIndex.load(remote.folder, split)
    except ShardError:
        remote.forget_index()
        raise
    remote.refuse_too_large(index.shards)
    return replace(index, remote=remote), notes


def _cache(config: DataConfig) -> Path:
    """Where copies of what is elsewhere lie."""
    if config.shard_cache is not None:
        return config.shard_cache.absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "inpaint_dist" / "shards"


def _about_cache(config: DataConfig, index: ShardIndex) -> list[str]:
    """Whether the copies of remote shards suffice for the order in which they are read."""
    assert index.remote is not None
    total, limit = sum(shard.bytes for shard in index.shards), index.remote.limit
    if total <= limit:
        return []
    fit = limit * len(index.shards) // total
    head = f"note: the cache holds some {fit:,} of the {len(index.shards):,} shards (--shard-cache-gb {limit / GB:g})"
    enough = f"--shard-cache-gb {math.ceil(total / 1e8) / 10:g}"
    if "pool" in read_mixture(config.mask_source).names:
        return [f"{head}, and --mask-source pool reads masks of all: they are fetched over and over; give {enough}"]
    window = config.shuffle_window
    if window is None and len(index) > SHUFFLED_WHOLE:
        window = WINDOW
    if window is not None and 2 * window <= fit:
        return []
    how = (
        "a whole shuffle reads all of them at once"
        if window is None
        else f"windows of {window} shards need twice so many"
    )
    return [
        f"{head}, and {how}: they are fetched over and over; start with --shuffle-window {max(1, fit // 3)} (another "
        f"order), or give {enough}"
    ]


def _foreign(config: DataConfig, files: list[str], place: Place) -> _Training:
    """Tars that others made."""
    masks = read_mixture(config.mask_source).stored
    index = index_foreign(files, config.size or DEFAULT_SIZE, masks=masks, keep=place.rank == 0)
    return _Training(index=index, where=str(index.folder), fingerprint=index.fingerprint)


def _streamed(
    config: DataConfig, place: Place, seed: int, max_steps: int | None, per_process: int, shards: list[str]
) -> Sources:
    """Tars that have no places to read at."""
    size, cure = config.size or DEFAULT_SIZE, "compressed tars are streamed; unpack them once, with gunzip or the like"
    if is_remote(config.shards) or is_pipe(config.shards):
        cure = "they are streamed; make_shards makes shards with an index, which are read from elsewhere too"
    if max_steps is None:
        raise UsageError(
            f"--shards {redacted(config.shards)}: the length of an epoch is unknown: give --max-steps ({cure})"
        )
    for flag, given in (("limit", config.limit), ("max-bad-samples", config.max_bad_samples)):
        if given:
            raise UsageError(f"--{flag} {given}: {cure}")
    if len(read_mixture(config.mask_source).names) > 1:
        raise UsageError(f"--mask-source {config.mask_source}: {cure}")
    loader = StreamingLoader(
        shards,
        mask_source=config.mask_source,
        size=size,
        flip=config.flip,
        seed=seed,
        rank=place.rank,
        world=place.world,
        per_process=per_process,
        device=place.device,
        workers=decoders(config.workers),
        cache=_cache(config),
        hole_ratios=read_hole_ratios(config.hole_ratios),
    )
    fingerprint = " ".join(PIPE if is_pipe(shard) else Path(redacted(shard)).name for shard in shards)
    return Sources(loader, _validation(config, place, size, None), max_steps, fingerprint, size, [WEAKER])


def _validation(
    config: DataConfig, place: Place, size: int, beside: Callable[[], ShardIndex] | None
) -> ValidationSet | None:
    """What --val-shards names, else the val split beside the training shards, where they have one."""
    named = config.val_shards
    if named is not None and is_stream(named):
        files = find_shards(named, "--val-shards")
        if not can_be_indexed(files):
            raise UsageError(
                f"--val-shards {redacted(named)}: compressed tars and others' remote ones cannot be validated on; "
                "unpack them, or bring them here, once"
            )
        index = index_foreign(files, size, masks=True, keep=place.rank == 0)
    elif named is not None:
        index, _ = _load(named, "val", config, place)
    else:
        index = beside() if beside is not None else None
    if index is None or not len(index):
        return None
    if index.size != size:
        raise UsageError(f"--val-shards: {index.size} pixels a side, the training pictures have {size}")
    return ValidationSet(index, place.device)


def shards_folder(shards: str | Path) -> Path:
    """The folder that --shards or --val-shards names, looked for here and then in the project's own checkout."""
    folder = Path(shards)
    beside = Path(inpaint_dist.__file__).parents[1] / shards
    return beside if not folder.exists() and beside.is_dir() else folder
