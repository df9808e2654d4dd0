"""Samples of indexed shards, decoded into buffers; what cannot be read is replaced by a function of the draw alone."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from inpaint_dist.chance import mix
from inpaint_dist.data.bad_samples import BadSample, SampleError
from inpaint_dist.data.mask_mixture import STORED, HoleRatios, read_mixture
from inpaint_dist.data.mask_pool import MaskPool
from inpaint_dist.data.masks import draw_mask, mask_rng
from inpaint_dist.data.order import Draw
from inpaint_dist.data.packed_masks import unpack_masks
from inpaint_dist.data.photos import claimed_size, decode_photo
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import ShardIndex, decode_packed_mask, mask_extension
from inpaint_dist.errors import UserError

TOGETHER = 8
"""Samples that a thread takes at once, and of which it reads all bytes before it decodes a photo: that throws our code
and zlib's out of the CPU's caches, and one sample after the other paid for it with a tenth of the time."""

_FLIP, _POOL, _WHICH, _SUBSTITUTE, _MIXTURE, _HOLE_RATIO = 1, 2, 3, 5, 6, 7
"""Names of independent random draws of one sample; the trainer's is 4."""
_TRIES = 100


class SampleDecoder:
    """Fills buffers with samples of one set of shards: pixels as they are, masks one bit a pixel.

    Args:
        index: the set.
        mask_source: paired, pool, a family or a mixture of them, as in `DataConfig`.
        seed: of everything drawn.
        samples: the first so many are read in the place of those that cannot be; None: all.
        hole_ratios: of the masks that families draw and of those of the pool; None: as they come.

    Raises:
        UserError: a family, or the pool, has no masks of such a range at the set's size; a mask of the pool cannot be
            read.
    """

    def __init__(
        self,
        index: ShardIndex,
        mask_source: str,
        seed: int,
        samples: int | None = None,
        hole_ratios: HoleRatios | None = None,
    ) -> None:
        self.index, self.reader = index, ShardReader(index)
        self.mixture, self.seed = read_mixture(mask_source), seed
        self.hole_ratios = hole_ratios
        if hole_ratios is not None:
            for family in {*self.mixture.names} - {*STORED}:
                hole_ratios.check(family, index.size)
        self._samples = len(index) if samples is None else samples
        self._mask_counts = mask_counts(index)
        self._has_pool = "pool" in self.mixture.names
        self._shards = [index.where(number) for number in range(len(index.shards))]
        self._full_masks = bool(index.settings.get("allow_large_holes"))
        self._pool: MaskPool | None = None
        if hole_ratios is not None and self._has_pool:
            if index.remote is not None:
                raise UserError("--hole-ratios with --mask-source pool needs shards on this machine; give a family.")
            self._pool = MaskPool.measure(self._mask_counts, seed, self._hole_ratio)
            self._pool.check(hole_ratios)

    def fill(
        self, draws: Sequence[Draw], pixels: NDArray[np.uint8], bits: NDArray[np.uint8]
    ) -> tuple[list[Draw], list[BadSample]]:
        """Decode photos into (draws, size, size, 3) RGB and masks into (draws, size, ceil(size / 8)) packed bits.

        Returns:
            What was read: the draws, but where one cannot be read another sample of its epoch; and the samples that
            cannot be read. Which sample stands in is a function of seed, epoch and sample alone, so that every rank,
            any number of them and a resumed run see the same.

        Raises:
            UserError: for one of the draws nothing can be read in many tries.
        """
        read, bad = list(draws), list[BadSample]()
        for start in range(0, len(draws), TOGETHER):
            part = slice(start, start + TOGETHER)
            try:
                self._fill(draws[part], pixels[part], bits[part])
            except UserError:  # one of them: look at each alone
                for place in range(start, min(start + TOGETHER, len(draws))):
                    read[place] = self._read(draws[place], pixels[place], bits[place], bad)
        return read, bad

    def flipped(self, draw: Draw) -> bool:
        """Whether this draw is mirrored."""
        return self._random(draw, _FLIP, 2) == 1

    def samples_of(self, draw: Draw) -> tuple[int, ...]:
        """Whose photo and, where it is stored, whose mask a draw reads."""
        return (draw.index, self._mask_owner(draw)[0]) if self._has_pool else (draw.index,)

    def stored(self, sample: int, pixels: NDArray[np.uint8], bits: NDArray[np.uint8]) -> None:
        """Decode a sample's photo and its own first mask, whatever is drawn in training.

        Raises:
            UserError: naming shard and sample.
        """
        self.decode_photo(sample, self.read_photo(sample), pixels)
        self._stored_mask(sample, 0, bits)

    def read_photo(self, sample: int) -> bytes:
        """A photo's file."""
        return self.reader.read(sample, self.index.extension(sample))

    def decode_photo(self, sample: int, data: bytes | memoryview, out: NDArray[np.uint8]) -> None:
        """Decode a photo's file, (size, size, 3) RGB, into `out`, without a copy where it is a JPEG."""
        if self.index.extension(sample) in ("jpg", "jpeg"):
            try:
                # Into a buffer too small it raises; of a smaller photo it returns a smaller view.
                if simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape == out.shape:
                    return
            except ValueError:
                pass  # what simplejpeg refuses OpenCV may read; if not, it says so below
        data, name = bytes(data), self._name(sample)
        size = claimed_size(data, name)
        if size is None or size == out.shape[1::-1]:  # else there is no need to decode what may be a bomb
            pixels = decode_photo(data, name)
            size = pixels.shape[1::-1]
            if pixels.shape == out.shape:
                out[:] = pixels
                return
        found, expected = (f"{width}x{height}" for width, height in (size, out.shape[1::-1]))
        raise UserError(f"{name}: the photo is {found}, the index says {expected}; run check_shards")

    def mask(self, draw: Draw, out: NDArray[np.uint8]) -> None:
        """Bring the mask of a draw, (size, ceil(size / 8)) packed bits, into `out`."""
        source = self._source(draw)
        if source not in STORED:
            size = self.index.size
            rng = mask_rng(source, size, self.seed, draw.epoch, draw.index)
            out[:] = np.packbits(draw_mask(source, size, size, rng, hole_ratio=self._limits(draw)), axis=1)
            return
        self._stored_mask(*self._mask_owner(draw), out)

    # ---------------------------------------------------------------- many at once

    def _fill(self, draws: Sequence[Draw], pixels: NDArray[np.uint8], bits: NDArray[np.uint8]) -> None:
        """Decode a few draws; an error may be any one's."""
        owners = [self._mask_owner(draw) if self._source(draw) in STORED else None for draw in draws]
        wanted = list[tuple[int, str]]()
        for draw, owner in zip(draws, owners, strict=True):
            wanted.append((draw.index, self.index.extension(draw.index)))
            if owner is not None:
                wanted.append((owner[0], mask_extension(owner[1])))
        files = iter(self.reader.read_together(wanted))
        photos, masks = list[memoryview](), list[memoryview]()
        for owner in owners:
            photos.append(next(files))
            if owner is not None:
                masks.append(next(files))
        if len(masks) < len(draws) or not unpack_masks(masks, bits):
            for place, draw in enumerate(draws):
                self.mask(draw, bits[place])
        self._refuse_constant(bits)
        for draw, photo, out in zip(draws, photos, pixels, strict=True):
            self.decode_photo(draw.index, photo, out)

    def _refuse_constant(self, bits: NDArray[np.uint8]) -> None:
        """Stored masks teach nothing where they have no hole, or nothing but hole: (masks, size, bytes)."""
        if not self.mixture.stored:
            return
        if not bits.max((1, 2)).all():
            raise UserError("the mask has no hole")
        whole = self.index.size // 8
        if self._full_masks or not whole or bits[:, :, :whole].min((1, 2)).max() < 255:
            return
        if (np.unpackbits(bits, axis=2).sum((1, 2), dtype=np.int64) == self.index.size**2).any():
            raise UserError("the mask is all hole")

    # ---------------------------------------------------------------- one alone

    def _read(self, draw: Draw, pixels: NDArray[np.uint8], bits: NDArray[np.uint8], bad: list[BadSample]) -> Draw:
        """Read a draw, or the first in a list of its own that can be read; those that cannot join `bad`."""
        attempt, met = draw, list[BadSample]()
        for number in range(_TRIES):
            try:
                self._read_one(attempt, pixels, bits)
            except SampleError as error:
                met.append(error.bad)
            else:
                bad += met
                return attempt
            attempt = Draw(draw.epoch, mix(self.seed, draw.epoch, draw.index, _SUBSTITUTE, number) % self._samples)
        raise UserError(f"{met[0].reason}\nnor can any of {_TRIES} samples drawn in its place be read")

    def _read_one(self, draw: Draw, pixels: NDArray[np.uint8], bits: NDArray[np.uint8]) -> None:
        sample, _ = self._mask_owner(draw)
        try:
            self.mask(draw, bits)
            try:
                if self._source(draw) in STORED:
                    self._refuse_constant(bits[None])
            except UserError as error:
                raise UserError(f"{self._name(sample)}: {error}") from None
            sample = draw.index
            self.decode_photo(sample, self.read_photo(sample), pixels)
        except UserError as error:
            shard = self.index.shards[self.index.shard_of.item(sample)].name
            raise SampleError(BadSample(shard, self.index.keys[sample], str(error))) from None

    def _mask_owner(self, draw: Draw) -> tuple[int, int]:
        """The sample whose mask a draw has, and which of its masks."""
        owner = draw.index
        if self._source(draw) == "pool":
            if self._pool is not None and (limits := self._limits(draw)):
                return self._pool.choose(limits, mix(self.seed, draw.epoch, draw.index, _POOL))
            owner = self._random(draw, _POOL, len(self.index))
        return owner, self._random(draw, _WHICH, self._mask_counts.item(owner))

    def _limits(self, draw: Draw) -> tuple[float, float] | None:
        """The share of the picture that a draw's hole takes, where shares are asked for."""
        ratios = self.hole_ratios
        return ratios.choose(mix(self.seed, draw.epoch, draw.index, _HOLE_RATIO)) if ratios else None

    def _hole_ratio(self, owner: int, which: int) -> float | None:
        """The share of the picture that the hole of a stored mask takes; None where it teaches nothing.

        Raises:
            UserError: the mask cannot be read.
        """
        size = self.index.size
        bits = np.empty((size, -(-size // 8)), np.uint8)
        self._stored_mask(owner, which, bits)
        ratio = float(np.unpackbits(bits).sum(dtype=np.int64)) / size**2
        return ratio if 0 < ratio < 1 or (ratio == 1 and self._full_masks) else None

    def _source(self, draw: Draw) -> str:
        """Where a draw's mask comes from."""
        names = self.mixture.names
        if len(names) == 1:
            return names[0]
        return self.mixture.choose(mix(self.seed, draw.epoch, draw.index, _MIXTURE))

    def _stored_mask(self, owner: int, which: int, out: NDArray[np.uint8]) -> None:
        data = self.reader.read(owner, mask_extension(which))
        bits, width = decode_packed_mask(data, self._name(owner))
        size = self.index.size
        if width != size or bits.shape != out.shape:
            raise UserError(f"{self._name(owner)}: the mask is not {size}x{size} as the index says; run check_shards")
        out[:] = bits

    def _random(self, draw: Draw, purpose: int, below: int) -> int:
        """A whole number in [0, below) that is a function of seed, epoch, sample and purpose alone."""
        return mix(draw.index, purpose, state=_epoch_state(self.seed, draw.epoch)) % below if below > 1 else 0

    def _name(self, sample: int) -> str:
        return f"{self._shards[self.index.shard_of.item(sample)]}: {self.index.keys[sample]}"


_epoch_state = lru_cache(maxsize=8)(mix)


def mask_counts(index: ShardIndex) -> NDArray[np.int32]:
    """How many masks each sample has, as `ShardIndex.mask_count` says it one by one: (samples)."""
    counts, has = np.zeros(len(index), np.int32), np.ones(len(index), np.bool_)
    k = 0
    while (column := index.columns.get(mask_extension(k))) is not None:
        has &= column.offset > 0
        counts += has
        k += 1
    return counts
