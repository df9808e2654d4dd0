"""Batches for one rank: the order names samples, threads decode them into reused buffers, the device does the rest.

Nothing here is ever given to accelerate.prepare, which would dispatch from rank 0 or split a second time.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpaint_dist.batch import Batch, image_from_uint8, mask_from_bits
from inpaint_dist.chance import mix
from inpaint_dist.data.bad_samples import BadSample, BadSamples
from inpaint_dist.data.fitting import FittingDecoder
from inpaint_dist.data.joined_sets import JoinedOrder, read_sets
from inpaint_dist.data.mask_mixture import read_hole_ratios, read_mixture
from inpaint_dist.data.order import Draw, SampleOrder, WindowedOrder, order_of
from inpaint_dist.data.prefetch import Prefetcher
from inpaint_dist.data.remote import is_pipe, is_remote, redacted
from inpaint_dist.data.sample_decoder import TOGETHER, SampleDecoder
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import cores_a_process

_AHEAD = 2  # batches decoded while one is being used, at least, and parts waiting for each thread
_ON_DEVICE = 4
"""Batches that a GPU has not come to yet: the host, which waits for no step, would else copy ever more of them."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how."""

    shards: str = "shards/sample"
    """Folder of training shards (made by tools/make_shards.py), of this machine or, as a URL, of another one; or a
    pattern of tars that others made, as "FOLDER/train-{000000..000009}.tar". Several folders by weight, so that of ten
    photos seven are from one: "7*shards/places+3*shards/mine"."""
    val_shards: str | None = None
    """Folder of validation shards, or a pattern as for --shards; None: the val split of the folder in --shards."""
    allow_remote: bool = False
    """Let --shards and --val-shards be URLs: https://, s3://, gs:// or any other that fsspec knows. To open one may run
    code of the library that knows it. User, password and query are written nowhere."""
    allow_pipe: bool = False
    """Let --shards be a command, pipe:COMMAND, that the shell runs and whose output is a tar."""
    shard_cache: Path | None = None
    """Folder of the copies of remote shards, which any number of processes share; None: inpaint_dist/shards in the
    user's cache (XDG_CACHE_HOME)."""
    shard_cache_gb: float = 50.0
    """GB that the copies take at most; those used longest ago make room."""
    limit: int | None = None
    """Use the first N training samples only."""
    batch_size: int | None = None
    """Images a process and step; None with no --global-batch-size: 8."""
    global_batch_size: int | None = None
    """Images a step over all processes."""
    flip: bool = True
    """Mirror photo and mask with probability 1/2."""
    mask_source: str = "paired"
    """paired: a mask stored with the photo; pool: one of any training sample, drawn anew each epoch; or a family drawn
    on the fly, such as lama-train: whatever --family of tools/make_masks.py takes. Several by weight:
    1*paired+3*lama-train."""
    hole_ratios: tuple[str, ...] = ()
    """Shares of the picture that holes take, of a family's masks or of the pool's: ranges, of which each sample draws
    one, with weights if need be: 0-0.1 0.1-0.2 3*0.2-0.4. None named: as they come."""
    size: int | None = None
    """Pixels of a side that photos and masks of others' tars are fitted to (short side, then the centre); None: 256.
    The index of our own shards says it."""
    workers: int | None = None
    """Decoding threads of a process (worker processes, for compressed tars); 0: decode in the training thread; None: as
    the cores allow, at most 8."""
    shuffle_window: int | None = None
    """Shards that are shuffled among each other at a time, for sets that the disk or the memory cannot shuffle whole;
    None: all, in a set of at most 4 million samples, else 64."""
    max_bad_samples: int = 0
    """Training samples that may turn out unreadable, over all processes and each counted once: another sample of the
    epoch is read in the place of each, and the log names it. 0: stop at the first. Several processes stop together, at
    the next report or before the next checkpoint."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.global_batch_size is not None:
            raise UsageError("--batch-size and --global-batch-size: give one of the two")
        for flag in ("limit", "batch_size", "global_batch_size", "size", "shuffle_window"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {value}: give at least 1")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: give 0 or more")
        if self.max_bad_samples < 0:
            raise UsageError(f"--max-bad-samples {self.max_bad_samples}: give 0 or more")
        if not self.shard_cache_gb > 0:
            raise UsageError(f"--shard-cache-gb {self.shard_cache_gb}: give more than 0")
        for flag, place in (("--shards", self.shards), ("--val-shards", self.val_shards or "")):
            if is_remote(place) and not self.allow_remote:
                raise UsageError(f"{flag} {redacted(place)}: add --allow-remote to read from there")
        if is_pipe(self.shards) and not self.allow_pipe:
            raise UsageError(f"--shards {redacted(self.shards)}: add --allow-pipe to run the command")
        if is_pipe(self.val_shards or ""):
            raise UsageError("--val-shards: a command's output cannot be validated on; give a folder of shards")
        try:
            sets = read_sets(self.shards)
        except UserError as error:
            raise UsageError(f"--shards {redacted(self.shards)}: {error}") from None
        if sets is not None and self.limit is not None:
            raise UsageError("--limit: is of one set; --shards names several")
        try:
            read_mixture(self.mask_source)
        except UserError as error:
            raise UsageError(f"--mask-source {self.mask_source}: choose paired, pool or a family. {error}") from None
        try:
            ratios = read_hole_ratios(self.hole_ratios)
        except UserError as error:
            raise UsageError(f"--hole-ratios {' '.join(self.hole_ratios)}: {error}") from None
        if ratios is not None and "paired" in read_mixture(self.mask_source).names:
            raise UsageError(
                f"--hole-ratios with --mask-source {self.mask_source}: a photo's own masks have the holes they have; "
                "give pool, or a family such as lama-train"
            )

    def per_process(self, world: int, parts: int) -> int:
        """Images a process and step, for `world` processes of `parts` micro-batches each.

        Raises:
            UsageError: where the total cannot be divided evenly.
        """
        if self.global_batch_size is None:
            size = self.batch_size or 8
            if size % parts:
                raise UsageError(f"--batch-size {size} is not a multiple of --gradient-accumulation-steps {parts}")
            return size
        if self.global_batch_size % (world * parts):
            raise UsageError(
                f"--global-batch-size {self.global_batch_size} is not a multiple of {world} processes x "
                f"{parts} gradient accumulation steps"
            )
        return self.global_batch_size // world


Order: TypeAlias = SampleOrder | WindowedOrder | JoinedOrder
"""The endless sequence of draws that a run reads."""

_Filled: TypeAlias = tuple[list[Draw], list[BadSample]]
"""What was read into a part of a batch, and the samples that could not be."""


@dataclass
class HostBatch:
    """Host memory of one batch, reused; page-locked where batches go to a GPU."""

    pixels: Tensor
    bits: Tensor
    flips: Tensor
    copied: "torch.cuda.Event | None" = None
    """Recorded when the device has its copy; the buffers may be refilled after it."""
    views: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]] = field(init=False)

    def __post_init__(self) -> None:
        self.views = (self.pixels.numpy(), self.bits.numpy(), self.flips.numpy())

    @classmethod
    def make(cls, count: int, size: int, *, pinned: bool) -> "HostBatch":
        """Room for `count` samples of `size` pixels a side."""
        return cls(
            torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pinned),
            torch.empty((count, size, -(-size // 8)), dtype=torch.uint8, pin_memory=pinned),
            torch.empty(count, dtype=torch.bool, pin_memory=pinned),
        )


def decoders(asked: int | None) -> int:
    """Threads or processes that decode for this process: as asked, else its share of the cores, at most 8."""
    return min(8, cores_a_process()) if asked is None else asked


class Loader:
    """Batches of the training set for one rank, from any step on."""

    def __init__(
        self,
        config: DataConfig,
        index: ShardIndex,
        *,
        seed: int,
        rank: int,
        world: int,
        per_process: int,
        device: torch.device,
    ) -> None:
        self.config, self.index, self.device = config, index, device
        self.samples = min(len(index), config.limit or len(index))
        self._seed, self.order = seed, self._order(seed)
        self.rank, self.per_process, self.global_batch = rank, per_process, per_process * world
        decoder = FittingDecoder if index.foreign else SampleDecoder
        ratios = read_hole_ratios(config.hole_ratios)
        self.decoder = decoder(index, config.mask_source, seed, self.samples, ratios)
        self.bad = BadSamples(config.max_bad_samples, alone=world == 1)
        """The samples that could not be read, up to the batch that was handed out last."""
        self.threads = decoders(config.workers)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.device_behind = 0.0
        """Seconds in which batches waited for the device, and not the device for them."""
        self._handed_out: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()

    def draws(self, step: int, order: Order | None = None) -> list[Draw]:
        """What this rank reads in a step: its slice of the global batch."""
        start = step * self.global_batch + self.rank * self.per_process
        return list((order or self.order).draws(start, start + self.per_process))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), decoded ahead by threads.

        Raises:
            TooManyBadSamples: there is one rank, and with this batch its bad samples are more than the limit.
        """
        for buffers, draws in self.decoded(start, stop):
            yield self._to_device(buffers, draws)

    def decoded(self, start: int, stop: int) -> Iterator[tuple[HostBatch, list[Draw]]]:
        """What `batches` brings to the device: 8-bit pixels, packed masks and who is mirrored, in the host's memory.

        The memory is reused: it holds a batch until the next one is asked for.
        """
        pinned = self.device.type == "cuda"
        parts = -(-self.per_process // TOGETHER)
        ahead = max(_AHEAD, -(-_AHEAD * self.threads // parts)) if self.threads else 0
        ring = [HostBatch.make(self.per_process, self.index.size, pinned=pinned) for _ in range(ahead + 1)]
        with self._fetching(start, stop) as prefetcher:
            for step, filled in self._filled(ring, start, stop):
                yield ring[step % len(ring)], self._noted(filled)
                if prefetcher is not None:
                    prefetcher.now = step + 1

    def _filled(self, ring: list[HostBatch], start: int, stop: int) -> Iterator[tuple[int, list[_Filled]]]:
        """Fill the buffers of a ring in turn, by threads as far ahead of what is asked for as they suffice."""
        if self.threads == 0:
            for step in range(start, stop):
                yield step, [self._fill(ring[0], self.draws(step), 0)]
            return
        ahead = len(ring) - 1
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            pending: deque[list[Future[_Filled]]] = deque()
            try:
                for step in range(start, stop + ahead):
                    if step < stop:
                        pending.append(self._submit(pool, ring[step % len(ring)], self.draws(step)))
                    if step >= start + ahead:
                        yield step - ahead, [part.result() for part in pending.popleft()]
            finally:
                self.decoder.reader.stop.set()  # a thread that waits for a remote shard need not
                pool.shutdown(wait=True, cancel_futures=True)
                self.decoder.reader.stop.clear()

    @contextmanager
    def _fetching(self, start: int, stop: int) -> Iterator[Prefetcher | None]:
        """Bring remote shards here ahead of the steps [start, stop)."""
        if self.index.remote is None:
            yield None
            return
        # An order of its own: one that two read at places far apart would be shuffled again and again.
        order, decoder, shard_of = self._order(self._seed), self.decoder, self.index.shard_of

        def needs(step: int) -> list[int]:
            samples = (sample for draw in self.draws(step, order) for sample in decoder.samples_of(draw))
            return list(dict.fromkeys(shard_of[list(samples)].tolist()))

        with Prefetcher(self.index.remote, self.index.shards, needs, start, stop) as prefetcher:
            yield prefetcher

    def _order(self, seed: int) -> Order:
        sizes, window = iter(_sizes(self.index, self.samples)), self.config.shuffle_window
        sets = read_sets(self.config.shards)
        if sets is None:
            return order_of(list(sizes), seed, window)
        orders = [
            order_of(list(islice(sizes, shards)), mix(seed, number), window)
            for number, shards in enumerate(self.index.sets)
        ]
        return JoinedOrder(orders, sets.weights, seed)

    def _submit(self, pool: ThreadPoolExecutor, buffers: HostBatch, draws: list[Draw]) -> list[Future[_Filled]]:
        return [
            pool.submit(self._fill, buffers, draws[at : at + TOGETHER], at) for at in range(0, len(draws), TOGETHER)
        ]

    def _fill(self, buffers: HostBatch, draws: list[Draw], start: int) -> _Filled:
        """Decode draws into the places of a batch from `start` on."""
        if buffers.copied is not None:
            buffers.copied.synchronize()
        part = slice(start, start + len(draws))
        pixels, bits, flips = buffers.views
        read, bad = self.decoder.fill(draws, pixels[part], bits[part])
        flips[part] = [self.config.flip and self.decoder.flipped(draw) for draw in read]
        return read, bad

    def _noted(self, parts: list[_Filled]) -> list[Draw]:
        """What a batch turned out to hold, once what could not be read is on the list."""
        for _, bad in parts:
            self.bad.note(bad)
        return [draw for read, _ in parts for draw in read]

    def _to_device(self, buffers: HostBatch, draws: list[Draw]) -> Batch:
        """Copy to the device, where the chosen ones are mirrored, bits become masks and pixels images.

        On a GPU the copies have a stream of their own, so that they go on beside the step before.
        """
        if len(self._handed_out) == _ON_DEVICE:
            before = time.perf_counter()
            self._handed_out.popleft()[0].synchronize()
            self.device_behind += time.perf_counter() - before
        with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
            pixels, bits, flips = copies = [
                tensor.to(self.device, non_blocking=True, copy=True)
                for tensor in (buffers.pixels, buffers.bits, buffers.flips)
            ]
        if self._copies is not None:
            copied, steps = torch.cuda.Event(), torch.cuda.current_stream(self.device)
            self._copies.record_event(copied)
            steps.wait_event(copied)
            buffers.copied = copied
        flips, mask = flips[:, None, None, None], mask_from_bits(bits, self.index.size)
        pixels = torch.where(flips, pixels.flip(2), pixels)  # a quarter of the bytes that the image will have
        keys = tuple(self.index.keys[draw.index] for draw in draws)
        batch = Batch(image_from_uint8(pixels), torch.where(flips, mask.flip(3), mask), keys)
        if self._copies is not None:
            read = torch.cuda.Event(blocking=True)
            torch.cuda.current_stream(self.device).record_event(read)  # after all steps before, too
            self._handed_out.append((read, copies))  # kept: their memory is of the copies' stream, which would reuse it
        return batch


def _sizes(index: ShardIndex, samples: int) -> list[int]:
    """Samples of each shard, of the first so many of the set."""
    ends = np.minimum(np.cumsum([shard.samples for shard in index.shards]), samples)
    return np.diff(ends, prepend=0).tolist()


class ValidationSet:
    """Samples of a split in their stored order, with their own first mask, for evaluation and pictures."""

    def __init__(self, index: ShardIndex, device: torch.device) -> None:
        self.index, self.device = index, device
        self.decoder = (FittingDecoder if index.foreign else SampleDecoder)(index, "paired", seed=0)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.index.size

    def batch(self, numbers: Sequence[int], device: torch.device | None = None) -> Batch:
        """Read these samples, to the set's own device where none is named."""
        size, device = self.size, device or self.device
        buffers = HostBatch.make(len(numbers), size, pinned=False)
        pixels, bits, _ = buffers.views
        for place, sample in enumerate(numbers):
            self.decoder.stored(sample, pixels[place], bits[place])
        return Batch(
            image_from_uint8(buffers.pixels.to(device)),
            mask_from_bits(buffers.bits.to(device), size),
            tuple(self.index.keys[sample] for sample in numbers),
        )

    def spread(self, count: int) -> Batch:
        """At most `count` samples spread evenly over the set, to be shown: one that cannot be read is passed over.

        Raises:
            UserError: no sample can be read.
        """
        count = min(count, len(self))
        places = [place * len(self) // count for place in range(count + 1)]
        chosen = [next(filter(self._is_readable, range(*ends)), None) for ends in pairwise(places)]
        return self.batch([sample for sample in chosen if sample is not None] or [0])

    def _is_readable(self, sample: int) -> bool:
        pixels, bits, _ = HostBatch.make(1, self.size, pinned=False).views
        try:
            self.decoder.stored(sample, pixels[0], bits[0])
        except UserError:
            return False
        return True
