"""Batches for one rank: the order names samples, threads decode them into reused buffers, the device does the rest.

Nothing here is ever given to accelerate.prepare, which would dispatch from rank 0 or split a second time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpaint_dist.batch import Batch, image_from_uint8, mask_from_bits
from inpaint_dist.chance import mix
from inpaint_dist.data.masks import draw_mask, find_family, mask_rng
from inpaint_dist.data.order import Draw, SampleOrder
from inpaint_dist.data.photos import decode_photo
from inpaint_dist.data.shards import ShardIndex, ShardReader, decode_packed_mask, mask_extension
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import cores_a_process

_STORED = ("paired", "pool")  # where masks come from that are not drawn
_FLIP, _POOL, _WHICH = 1, 2, 3  # names of independent random draws of one sample
_AHEAD = 2  # batches decoded while one is being used, at least, and parts waiting for each thread
# Samples that a thread takes at once, and of which it reads all bytes before it decodes a photo: that throws our code
# and zlib's out of the CPU's caches, and one sample after the other paid for it with a tenth of the time.
_TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how."""

    shards: str = "shards/sample"
    """Folder of training shards (made by tools/make_shards.py), or a pattern of shards without an index, as
    "FOLDER/train-{000000..000009}.tar"."""
    val_shards: Path | None = None
    """Folder of validation shards; None: the val split in --shards."""
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
    on the fly, such as lama-train: whatever --family of tools/make_masks.py takes."""
    size: int | None = None
    """Pixels of a side of pictures from shards without an index; None: 256. An index says it for its shards."""
    workers: int | None = None
    """Decoding threads of a process (worker processes, for shards without an index); 0: decode in the training thread;
    None: as the cores allow, at most 8."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.global_batch_size is not None:
            raise UsageError("--batch-size and --global-batch-size: give one of the two")
        for flag in ("limit", "batch_size", "global_batch_size", "size"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {value}: give at least 1")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: give 0 or more")
        if self.mask_source not in _STORED:
            try:
                find_family(self.mask_source)
            except UserError as error:
                raise UsageError(
                    f"--mask-source {self.mask_source}: choose paired, pool or a family. {error}"
                ) from None

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


class SampleDecoder:
    """Fills buffers with samples of one set of shards: pixels as they are, masks one bit a pixel."""

    def __init__(self, index: ShardIndex, mask_source: str, seed: int) -> None:
        self.index, self.reader = index, ShardReader(index)
        self.mask_source, self.seed = mask_source, seed
        self._mask_counts = _mask_counts(index)

    def fill(self, draws: Sequence[Draw], pixels: NDArray[np.uint8], bits: NDArray[np.uint8]) -> None:
        """Decode photos into (draws, size, size, 3) RGB and masks into (draws, size, ceil(size / 8)) packed bits."""
        for start in range(0, len(draws), _TOGETHER):
            some = draws[start : start + _TOGETHER]
            for place, draw in enumerate(some, start):
                self.mask(draw, bits[place])
            photos = [self.read_photo(draw.index) for draw in some]
            for place, (draw, data) in enumerate(zip(some, photos, strict=True), start):
                self.decode_photo(draw.index, data, pixels[place])

    def read_photo(self, sample: int) -> bytes:
        """A photo's file."""
        return self.reader.read(sample, self.index.extension(sample))

    def decode_photo(self, sample: int, data: bytes, out: NDArray[np.uint8]) -> None:
        """Decode a photo's file, (size, size, 3) RGB, into `out`, without a copy where it is a JPEG."""
        if self.index.extension(sample) in ("jpg", "jpeg"):
            try:
                # Into a buffer too small it raises; of a smaller photo it returns a smaller view.
                if simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape == out.shape:
                    return
            except ValueError:
                pass  # what simplejpeg refuses OpenCV may read; if not, it says so below
        pixels = decode_photo(data, self._name(sample))
        if pixels.shape != out.shape:
            found, expected = (f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, out.shape))
            raise UserError(f"{self._name(sample)}: the photo is {found}, the index says {expected}; run check_shards")
        out[:] = pixels

    def mask(self, draw: Draw, out: NDArray[np.uint8]) -> None:
        """Bring the mask of a draw, (size, ceil(size / 8)) packed bits, into `out`."""
        size = self.index.size
        if self.mask_source not in _STORED:
            rng = mask_rng(self.mask_source, size, self.seed, draw.epoch, draw.index)
            out[:] = np.packbits(draw_mask(self.mask_source, size, size, rng), axis=1)
            return
        owner = draw.index
        if self.mask_source == "pool":
            owner = self._random(draw, _POOL, len(self.index))
        stored = mask_extension(self._random(draw, _WHICH, self._mask_counts.item(owner)))
        bits, width = decode_packed_mask(self.reader.read(owner, stored), self._name(owner))
        if width != size or bits.shape != out.shape:
            raise UserError(f"{self._name(owner)}: the mask is not {size}x{size} as the index says; run check_shards")
        out[:] = bits

    def flipped(self, draw: Draw) -> bool:
        """Whether this draw is mirrored."""
        return self._random(draw, _FLIP, 2) == 1

    def _random(self, draw: Draw, purpose: int, below: int) -> int:
        """A whole number in [0, below) that is a function of seed, epoch, sample and purpose alone."""
        return mix(self.seed, draw.epoch, draw.index, purpose) % below if below > 1 else 0

    def _name(self, sample: int) -> str:
        return f"sample {self.index.keys[sample]}"


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
        self.order = SampleOrder(self.samples, seed)
        self.rank, self.per_process, self.global_batch = rank, per_process, per_process * world
        self.decoder = SampleDecoder(index, config.mask_source, seed)
        self.threads = decoders(config.workers)

    def draws(self, step: int) -> list[Draw]:
        """What this rank reads in a step: its slice of the global batch."""
        start = step * self.global_batch + self.rank * self.per_process
        return list(self.order.draws(start, start + self.per_process))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), decoded ahead by threads."""
        for buffers, draws in self.decoded(start, stop):
            yield self._to_device(buffers, draws)

    def decoded(self, start: int, stop: int) -> Iterator[tuple[HostBatch, list[Draw]]]:
        """What `batches` brings to the device: 8-bit pixels, packed masks and who is mirrored, in the host's memory.

        The memory is reused: it holds a batch until the next one is asked for.
        """
        pinned = self.device.type == "cuda"
        parts = -(-self.per_process // _TOGETHER)
        ahead = max(_AHEAD, -(-_AHEAD * self.threads // parts))
        ring = [HostBatch.make(self.per_process, self.index.size, pinned=pinned) for _ in range(ahead + 1)]
        if self.threads == 0:
            for step in range(start, stop):
                draws = self.draws(step)
                self._fill(ring[0], draws, slice(0, self.per_process))
                yield ring[0], draws
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            pending: deque[tuple[HostBatch, list[Draw], list[Future[None]]]] = deque()
            try:
                for step in range(start, stop + ahead):
                    if step < stop:
                        buffers, draws = ring[step % len(ring)], self.draws(step)
                        pending.append((buffers, draws, self._submit(pool, buffers, draws)))
                    if step >= start + ahead:
                        buffers, draws, filling = pending.popleft()
                        for part in filling:
                            part.result()
                        yield buffers, draws
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, buffers: HostBatch, draws: list[Draw]) -> list[Future[None]]:
        parts = (slice(at, at + _TOGETHER) for at in range(0, len(draws), _TOGETHER))
        return [pool.submit(self._fill, buffers, draws, part) for part in parts]

    def _fill(self, buffers: HostBatch, draws: list[Draw], part: slice) -> None:
        if buffers.copied is not None:
            buffers.copied.synchronize()
        pixels, bits, flips = buffers.views
        flips[part] = [self.config.flip and self.decoder.flipped(draw) for draw in draws[part]]
        self.decoder.fill(draws[part], pixels[part], bits[part])

    def _to_device(self, buffers: HostBatch, draws: list[Draw]) -> Batch:
        """Copy to the device, where the chosen ones are mirrored, bits become masks and pixels images."""
        pixels, bits, flips = (
            tensor.to(self.device, non_blocking=True, copy=True)
            for tensor in (buffers.pixels, buffers.bits, buffers.flips)
        )
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
            buffers.copied = copied
        flips, mask = flips[:, None, None, None], mask_from_bits(bits, self.index.size)
        pixels = torch.where(flips, pixels.flip(2), pixels)  # a quarter of the bytes that the image will have
        keys = tuple(self.index.keys[draw.index] for draw in draws)
        return Batch(image_from_uint8(pixels), torch.where(flips, mask.flip(3), mask), keys)


class ValidationSet:
    """Samples of a split in their stored order, with their own first mask, for evaluation and pictures."""

    def __init__(self, index: ShardIndex, device: torch.device) -> None:
        self.index, self.device = index, device
        self.decoder = SampleDecoder(index, "paired", seed=0)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.index.size

    def batch(self, numbers: Sequence[int], device: torch.device | None = None) -> Batch:
        """Read these samples, to the set's own device where none is named."""
        size, device = self.index.size, device or self.device
        buffers = HostBatch.make(len(numbers), size, pinned=False)
        pixels, bits, _ = buffers.views
        for place, sample in enumerate(numbers):
            self.decoder.decode_photo(sample, self.decoder.read_photo(sample), pixels[place])
            data = self.decoder.reader.read(sample, mask_extension(0))
            bits[place] = decode_packed_mask(data, self.index.keys[sample])[0]
        return Batch(
            image_from_uint8(buffers.pixels.to(device)),
            mask_from_bits(buffers.bits.to(device), size),
            tuple(self.index.keys[sample] for sample in numbers),
        )


def _mask_counts(index: ShardIndex) -> NDArray[np.int32]:
    """How many masks each sample has, as `ShardIndex.mask_count` says it one by one: (samples)."""
    counts, has = np.zeros(len(index), np.int32), np.ones(len(index), np.bool_)
    k = 0
    while (column := index.columns.get(mask_extension(k))) is not None:
        has &= column.offset > 0
        counts += has
        k += 1
    return counts
