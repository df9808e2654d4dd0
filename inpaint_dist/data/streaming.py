"""Shards that others made and that have no places to read at: compressed, remote, commands. Weaker promises.

No exact epochs and no exact resume: a stream has no positions. What is kept: no rank or worker starves, whatever the
number of shards, and each sample of an epoch goes to one rank.
"""

import random
import signal
from collections.abc import Iterator
from contextlib import closing
from copy import copy
from itertools import count, islice, repeat
from pathlib import Path
from tarfile import TarError
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from inpaint_dist.batch import Batch, image_from_uint8, mask_from_uint8
from inpaint_dist.chance import mix
from inpaint_dist.data.bad_samples import BadSamples
from inpaint_dist.data.fitting import fitted_mask, fitted_photo
from inpaint_dist.data.mask_mixture import HoleRatios
from inpaint_dist.data.masks import draw_mask, mask_rng
from inpaint_dist.data.order import permutation
from inpaint_dist.data.remote import is_pipe, is_remote, redacted
from inpaint_dist.data.shards import PHOTO_EXTENSIONS
from inpaint_dist.data.tar_streams import opened_tars
from inpaint_dist.errors import UserError
from inpaint_dist.host import signal_at_parents_end

WEAKER = (
    "compressed shards, or remote ones without our index: they are streamed by webdataset, so epochs are not exact and "
    "a resumed run does not see the samples it would have seen (uncompressed and on this machine, or made by "
    "tools/make_shards.py, they keep both promises)"
)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SHUFFLE = 500  # samples held to shuffle within a shard's neighbourhood
_EMPTY = 8  # epochs in a row without a sample that are an error (one may be the turn of an empty shard)


def is_stream(shards: str) -> bool:
    """Whether a --shards value means tars that others made: a pattern or a tar file, not a folder."""
    if is_pipe(shards):
        return True
    if is_remote(shards):  # a URL may have a query
        shards = shards.partition("?")[0]
    return any(sign in shards for sign in "{*?") or shards.endswith(_TARS)


def find_shards(pattern: str, flag: str = "--shards") -> list[str]:
    """Expand a brace pattern or a glob to local tar files, or a brace pattern of URLs or commands.

    Args:
        pattern: as the user gave it.
        flag: what errors call it.

    Raises:
        UserError: where nothing matches.
    """
    from braceexpand import braceexpand

    if is_remote(pattern) or is_pipe(pattern):
        return list(braceexpand(pattern))
    expanded = [Path(name) for name in braceexpand(pattern)]
    files = [file for path in expanded for file in (sorted(path.parent.glob(path.name)) or [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"{flag} {pattern}: no such file: {(missing or [pattern])[0]}")
    return [str(file) for file in files]


_Sample: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], str]


class _Stream(IterableDataset[_Sample | str]):
    """The endless samples of one rank, split again over its workers; or what is wrong with them, said again and again.

    A worker's exception reaches the training with a traceback in its message: what the user should read is sent as a
    sample instead.
    """

    def __init__(
        self,
        shards: list[str],
        cache: Path | None,
        *,
        mask_source: str,
        hole_ratios: HoleRatios | None,
        size: int,
        flip: bool,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.shards, self.mask_source, self.size, self.flip, self.cache = shards, mask_source, size, flip, cache
        self.hole_ratios = hole_ratios
        self.seed, self.rank, self.world = seed, rank, world

    def __iter__(self) -> Iterator[_Sample | str]:
        try:
            yield from self._samples()
        except UserError as error:  # to whose arguments webdataset has added its own
            yield from repeat(f"--shards: {error.args[0]}")
        except (TarError, OSError, ValueError) as error:
            yield from repeat(f"--shards: {redacted(str(error))}")

    def _samples(self) -> Iterator[_Sample]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        empty = 0
        for epoch in count():
            found = False
            for sample in self._epoch(epoch, self.rank * workers + worker, self.world * workers):
                found = True
                photo, mask, key = self._decode(sample, epoch)
                if self.flip and mask_rng("flip", self.seed, epoch, key).random() < 0.5:
                    photo, mask = photo[:, ::-1], mask[:, ::-1]
                yield photo, mask, key
            empty = 0 if found else empty + 1
            if empty > _EMPTY:
                raise UserError(f"{redacted(self.shards[0])}: fewer samples than processes x workers; lower --workers")

    def _epoch(self, epoch: int, consumer: int, consumers: int) -> Iterator[dict[str, Any]]:
        """One consumer's part: whole shards where there are enough of them, else every n-th sample of all."""
        from webdataset.filters import shuffle
        from webdataset.tariterators import group_by_keys, tar_file_expander

        shards = [self.shards[i] for i in permutation(len(self.shards), self.seed, epoch)]
        by_shard = len(shards) >= consumers
        mine = shards[consumer::consumers] if by_shard else shards
        mixed = shuffle(_SHUFFLE, rng=random.Random(mix(self.seed, epoch)))
        # Closed after an error too, whose traceback would hold the shard open.
        with closing(opened_tars(mine, self.cache)) as opened:
            samples = mixed(group_by_keys(tar_file_expander(opened)))
            yield from samples if by_shard else islice(samples, consumer, None, consumers)

    def _decode(self, sample: dict[str, Any], epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
        key = str(sample["__key__"])
        url = Path(str(sample["__url__"])).name
        photo = next((sample[name] for name in PHOTO_EXTENSIONS if name in sample), None)
        if photo is None:
            members = ", ".join(str(name) for name in sample if not str(name).startswith("__"))
            raise UserError(f"{url}: sample {key} has no photo among its members ({members})")
        pixels = fitted_photo(photo, self.size, f"{url}: {key}")
        if self.mask_source != "paired":
            rng = mask_rng(self.mask_source, self.seed, epoch, key)
            limits = self.hole_ratios.choose(rng.getrandbits(64)) if self.hole_ratios else None
            return pixels, draw_mask(self.mask_source, self.size, self.size, rng, hole_ratio=limits), key
        others = (sample[name] for name in sample if str(name).endswith("mask.png"))
        stored = sample["mask.png"] if "mask.png" in sample else next(others, None)
        if stored is None:
            raise UserError(f"{url}: sample {key} has no mask.png; use --mask-source with a family")
        return pixels, fitted_mask(stored, photo, self.size, f"{url}: {key}"), key


class StreamingLoader:
    """Batches of streamed shards for one rank; a resumed run starts a stream of another order."""

    def __init__(
        self,
        shards: list[str],
        *,
        mask_source: str,
        size: int,
        flip: bool,
        seed: int,
        rank: int,
        world: int,
        per_process: int,
        device: torch.device,
        workers: int,
        cache: Path | None = None,
        hole_ratios: HoleRatios | None = None,
    ) -> None:
        if mask_source == "pool":
            raise UserError("--mask-source pool needs shards with an index; use paired or a family")
        if hole_ratios is not None:
            hole_ratios.check(mask_source, size)
        self.global_batch, self.device = per_process * world, device
        self.bad = BadSamples(0)
        """Stays empty: a stream stops at the first sample that cannot be read."""
        self._stream = _Stream(
            shards,
            cache,
            mask_source=mask_source,
            hole_ratios=hole_ratios,
            size=size,
            flip=flip,
            seed=seed,
            rank=rank,
            world=world,
        )
        self._per_process, self._workers = per_process, workers

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """As many batches as there are steps in [start, stop).

        Each start has an order of its own: a run that is often interrupted would otherwise read the first shards only.

        Raises:
            UserError: naming the sample that cannot be read, or the shard.
        """
        stream = copy(self._stream)
        stream.seed = mix(stream.seed, start) if start else stream.seed
        loader = DataLoader(
            stream,
            batch_size=self._per_process,
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=_live_with_the_run,
            generator=torch.Generator(),
            pin_memory=self.device.type == "cuda",
        )
        for collated in islice(loader, stop - start):
            if isinstance(collated, str):
                raise UserError(collated)
            pixels, masks, keys = collated
            on_device = (tensor.to(self.device, non_blocking=True) for tensor in (pixels, masks))
            yield Batch(image_from_uint8(next(on_device)), mask_from_uint8(next(on_device)), keys)


def _live_with_the_run(_: int) -> None:
    """In a worker: end with the run alone, not by a signal that a terminal or a scheduler sends to every process."""
    signal_at_parents_end(signal.SIGKILL)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _collate(samples: list[_Sample | str]) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]] | str:
    if wrong := next((sample for sample in samples if isinstance(sample, str)), None):
        return wrong
    pixels, masks, keys = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(masks)), keys
