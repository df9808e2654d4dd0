"""The two conventions that everything else stands on: what an image is and what a mask is.

image: float (B, 3, H, W), RGB in [-1, 1]. mask: float (B, 1, H, W) in {0, 1}, 1 = hole (to be filled), 0 = known.
On disk and in workers both are uint8; they are converted here, once, on the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from inpaint_dist.errors import UserError

Image: TypeAlias = Float[Tensor, "batch 3 height width"]
Mask: TypeAlias = Float[Tensor, "batch 1 height width"]
Scores: TypeAlias = Float[Tensor, "batch maps rows columns"]
LUCK = 8
Luck: TypeAlias = Float[Tensor, "batch 8"]
"""What a sample's random choices in a step are made of: uniform in [0, 1). Seven are the augmentation's, one the
perceptual window's."""


@dataclass(frozen=True)
class Batch:
    """Photos and their holes, on the device."""

    image: Image
    mask: Mask
    keys: tuple[str, ...] = ()
    """The samples' names, for messages."""
    luck: Luck | None = None
    """What losses that choose at random choose by; the trainer draws it."""

    def __len__(self) -> int:
        return len(self.image)

    def split(self, parts: int) -> "Iterator[Batch]":
        """Cut into `parts` equal micro-batches, in order."""
        size = len(self) // parts
        for start in range(0, parts * size, size):
            here = slice(start, start + size)
            yield Batch(
                self.image[here], self.mask[here], self.keys[here], None if self.luck is None else self.luck[here]
            )

    def take(self, count: int) -> "Batch":
        """The first `count` samples."""
        return Batch(self.image[:count], self.mask[:count], self.keys[:count])


@dataclass(frozen=True)
class Completion:
    """What a generator made of a batch."""

    prediction: Image
    """The raw output: a whole picture, the known pixels included."""
    composite: Image
    """The prediction pasted into the hole; the known pixels are the photo's own, bit for bit."""
    drafts: tuple[Image, ...] = ()
    """What a generator of several stages made before it."""


class Drafted(NamedTuple):
    """What a generator of several stages makes while it trains. A tuple, for DistributedDataParallel."""

    prediction: Image
    """The last stage's output."""
    drafts: tuple[Image, ...]
    """The stages' before it, which are asked to be near the photo too."""


class Judgement(NamedTuple):
    """What a discriminator says of images. A tuple, so that DistributedDataParallel finds the tensors in it."""

    scores: Scores
    """Numbers of each patch, high where it looks real; most discriminators give one map of them."""
    features: tuple[Tensor, ...] = ()
    """(B, C, H, W) of each layer below the scores, first to last."""


def masked(image: Image, mask: Mask) -> Image:
    """Take the hole's pixels out of a photo: they become 0, mid-grey, whatever they were (a NaN too)."""
    return image.masked_fill(mask > 0.5, 0.0)


def composite(prediction: Image, image: Image, mask: Mask) -> Image:
    """Paste a prediction into the hole, in the photo's precision; the known pixels stay the photo's, bit for bit."""
    return torch.where(mask > 0.5, prediction.to(image.dtype).clamp(-1.0, 1.0), image)


def image_from_uint8(pixels: UInt8[Tensor, "batch height width 3"]) -> Image:
    """Bring 8-bit RGB pixels (B, H, W, 3) to [-1, 1]; the result is channels_last without a copy of its own."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def image_to_uint8(image: Image) -> UInt8[Tensor, "batch height width 3"]:
    """Bring an image back to 8-bit RGB pixels, rounded to the nearest level; undoes `image_from_uint8` exactly."""
    return image.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def mask_from_bits(bits: UInt8[Tensor, "batch height bytes"], width: int) -> Mask:
    """Unpack masks of one bit a pixel (rows padded to whole bytes, highest bit first, 1 = hole)."""
    shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    pixels = (bits.unsqueeze(-1) >> shifts) & 1
    return pixels.flatten(2)[:, None, :, :width].float()


def mask_from_uint8(pixels: UInt8[Tensor, "batch height width"]) -> Mask:
    """Bring 8-bit masks (255 = hole, threshold 127) to {0, 1}."""
    return (pixels > 127).float().unsqueeze(1)


def check(batch: Batch) -> None:
    """Look at a whole batch once, at the door: what the conventions promise must hold. On a GPU it waits for it.

    Raises:
        UserError: naming what is wrong.
    """
    image, mask = batch.image, batch.mask
    if image.ndim != 4 or image.shape[1] != 3 or mask.shape != (len(image), 1, *image.shape[2:]):
        raise UserError(
            f"a batch has photos {tuple(image.shape)} and masks {tuple(mask.shape)}, not (B,3,H,W) and (B,1,H,W)"
        )
    if not bool(torch.isfinite(image).all()) or float(image.abs().amax()) > 1.0:
        raise UserError(f"a batch has pixels outside [-1, 1] or not finite (samples {', '.join(batch.keys[:4])})")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise UserError(f"a batch has masks with values other than 0 and 1 (samples {', '.join(batch.keys[:4])})")
    share = float(mask.mean())
    if share in (0.0, 1.0):
        what = "no holes" if share == 0.0 else "nothing but holes"
        raise UserError(f"a batch has {what}: look at the masks with tools/show_shards.py (white = hole)")
