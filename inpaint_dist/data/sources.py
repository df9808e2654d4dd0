"""What a run reads: its training batches, its validation set, and how long that makes it."""

from dataclasses import dataclass
from pathlib import Path

import torch

import inpaint_dist
from inpaint_dist.batch import Batch
from inpaint_dist.data.foreign_index import can_be_indexed, index_foreign
from inpaint_dist.data.loader import DataConfig, Loader, ValidationSet, decoders
from inpaint_dist.data.mask_mixture import read_mixture
from inpaint_dist.data.order import steps_for
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.data.streaming import WEAKER, StreamingLoader, find_shards, is_stream
from inpaint_dist.errors import UsageError

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
    foreign = find_shards(config.shards) if is_stream(config.shards) else []
    if foreign and not can_be_indexed(foreign):
        return _streamed(config, place, seed, max_steps, per_process, foreign)
    index = _foreign(config, foreign, place) if foreign else _own(config)
    loader = Loader(
        config, index, seed=seed, rank=place.rank, world=place.world, per_process=per_process, device=place.device
    )
    total = max_steps or steps_for(loader.samples, epochs, loader.global_batch)
    validation = _validation(config, place, index.size, None if foreign else index.folder)
    notes = [
        f"data: {loader.samples:,} photos of {index.size}x{index.size} in {index.folder}, "
        f"{0 if validation is None else len(validation):,} for validation, masks {config.mask_source}"
    ]
    if foreign:
        notes.append(
            f"these {len(index.shards):,} tars have no checksums: they are fitted to {index.size} pixels as they are "
            "decoded, and damage is found only where it no longer decodes (make_shards makes checked shards)"
        )
    if validation is None:
        notes.append("no validation samples: nothing is evaluated, and pictures are drawn of training samples")
    fingerprint = f"{index.fingerprint}:{loader.samples}"
    return Sources(loader, validation, total, fingerprint, index.size, notes)


def _own(config: DataConfig) -> ShardIndex:
    folder = shards_folder(config.shards)
    index = ShardIndex.load(folder, "train")
    if not len(index):
        raise UsageError(f"--shards {folder}: has no training samples")
    if config.size not in (None, index.size):
        raise UsageError(f"--size {config.size}: the shards in {folder} hold pictures of {index.size} pixels")
    return index


def _foreign(config: DataConfig, files: list[str], place: Place) -> ShardIndex:
    masks = read_mixture(config.mask_source).stored
    return index_foreign(files, config.size or DEFAULT_SIZE, masks=masks, keep=place.rank == 0)


def _streamed(
    config: DataConfig, place: Place, seed: int, max_steps: int | None, per_process: int, shards: list[str]
) -> Sources:
    """Compressed tars, which have no places to read at."""
    size, cure = config.size or DEFAULT_SIZE, "compressed tars are streamed; unpack them once, with gunzip or the like"
    if max_steps is None:
        raise UsageError(f"--shards {config.shards}: the length of an epoch is unknown: give --max-steps ({cure})")
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
    )
    fingerprint = " ".join(Path(shard).name for shard in shards)
    return Sources(loader, _validation(config, place, size, None), max_steps, fingerprint, size, [WEAKER])


def _validation(config: DataConfig, place: Place, size: int, beside: Path | None) -> ValidationSet | None:
    """What --val-shards names, else the val split of the folder of the training shards, where that has one."""
    named = config.val_shards
    if named is not None and is_stream(str(named)):
        files = find_shards(str(named), "--val-shards")
        if not can_be_indexed(files):
            raise UsageError(f"--val-shards {named}: compressed tars cannot be validated on; unpack them once")
        index = index_foreign(files, size, masks=True, keep=place.rank == 0)
    else:
        folder = shards_folder(named) if named is not None else beside
        index = None if folder is None else ShardIndex.load(folder, "val")
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
