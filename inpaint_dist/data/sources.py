"""What a run reads: its training batches, its validation set, and how long that makes it."""

from dataclasses import dataclass
from pathlib import Path

import torch

import inpaint_dist
from inpaint_dist.batch import Batch
from inpaint_dist.data.loader import DataConfig, Loader, ValidationSet, decoders
from inpaint_dist.data.order import steps_for
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.data.streaming import WEAKER, StreamingLoader, find_shards, is_stream
from inpaint_dist.errors import UsageError


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
    if is_stream(config.shards):
        return _streamed(config, place, seed, max_steps, per_process)
    folder = shards_folder(config.shards)
    index = ShardIndex.load(folder, "train")
    if not len(index):
        raise UsageError(f"--shards {folder}: has no training samples")
    if config.size not in (None, index.size):
        raise UsageError(f"--size {config.size}: the shards in {folder} hold pictures of {index.size} pixels")
    loader = Loader(
        config, index, seed=seed, rank=place.rank, world=place.world, per_process=per_process, device=place.device
    )
    total = max_steps or steps_for(loader.samples, epochs, loader.global_batch)
    validation = ShardIndex.load(shards_folder(config.val_shards) if config.val_shards else folder, "val")
    notes = [
        f"data: {loader.samples:,} photos of {index.size}x{index.size} in {folder}, "
        f"{len(validation):,} for validation, masks {config.mask_source}"
    ]
    if not len(validation):
        notes.append("no validation samples: nothing is evaluated, and pictures are drawn of training samples")
    fingerprint = f"{index.fingerprint}:{loader.samples}"
    return Sources(loader, _validation(validation, place, index.size), total, fingerprint, index.size, notes)


def _streamed(config: DataConfig, place: Place, seed: int, max_steps: int | None, per_process: int) -> Sources:
    if max_steps is None:
        raise UsageError(f"--shards {config.shards}: no index, so the length of an epoch is unknown: give --max-steps")
    if config.limit is not None:
        raise UsageError(f"--limit {config.limit}: needs shards with an index (tools/make_shards.py)")
    shards, size = find_shards(config.shards), config.size or 256
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
    validation = ShardIndex.load(shards_folder(config.val_shards), "val") if config.val_shards else None
    fingerprint = " ".join(Path(shard).name for shard in shards)
    return Sources(loader, _validation(validation, place, size), max_steps, fingerprint, size, [WEAKER])


def _validation(index: ShardIndex | None, place: Place, size: int) -> ValidationSet | None:
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
