"""A trained generator, ready for use: `Inpainter.load("runs/mine")(image, mask)`."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inpaint_dist.batch import composite, image_from_uint8, image_to_uint8, mask_from_uint8, masked
from inpaint_dist.data.photos import MASK_THRESHOLD, Pixels
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.weights import BEST, build_for, generator_file, read_generator

DeviceName = Literal["auto", "cpu", "cuda"]
WeightsName = Literal["latest", "best"]

WHOLE_PIXELS = 2048 * 2048
"""A photo of more pixels is worked on around its holes only: a network takes about 330 bytes a pixel."""

CONTEXT = 256
"""Pixels around the holes that such a photo gives the network at least."""


class Inpainter:
    """A trained generator, ready to fill holes of photos of any size.

    inpainter = Inpainter.load("runs/mine")
    filled = inpainter(image, mask)
    """

    def __init__(self, network: nn.Module, size_multiple: int, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.size_multiple, self.device = size_multiple, device

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], *, weights: WeightsName = "latest", device: DeviceName = "auto"
    ) -> "Inpainter":
        """Read a generator.

        Args:
            source: a run folder, one of its checkpoints, or a generator's .safetensors file.
            weights: of a run folder: those of its last save, or those that scored best on its validation set.
            device: auto takes a GPU where there is one.

        Raises:
            UserError: there is no such generator, it is damaged, or the device is missing.
        """
        path = weights_file(Path(source), weights)
        config, tensors, _ = read_generator(path)
        network = build_for(config, tensors, path)
        return cls(network, network.size_multiple, find_device(device))

    def __call__(self, image: npt.NDArray[Any], mask: npt.NDArray[Any]) -> Pixels:
        """Fill the holes of one photo.

        Args:
            image: uint8 (H, W, 3), RGB. What it holds under the hole is never looked at.
            mask: uint8 (H, W), above 127 = hole, to be filled; or bool, True = hole.

        Returns:
            uint8 (H, W, 3), RGB; outside the hole the photo's own pixels, bit for bit. The same input on the same
            machine gives the same output.

        Raises:
            UserError: other shapes or types, a mask that is all hole, or not enough memory.
        """
        holes = _checked_holes(image, mask)
        filled = np.array(image, order="C")
        if not holes.any():
            return filled
        here = _surroundings(holes) if holes.size > WHOLE_PIXELS else (slice(None), slice(None))
        try:
            made = self._complete(image[here], holes[here])
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            height, width = holes[here].shape
            raise UserError(
                f"not enough memory on {self.device.type} for {width}x{height} pixels at once: "
                "use a smaller photo, or one hole at a time where they are far apart"
            ) from None
        filled[holes] = made[holes[here]]
        return filled

    def _complete(self, image: Pixels, holes: npt.NDArray[np.bool_]) -> Pixels:
        """Composite of a photo (H, W, 3) as the network completes it, in float32.

        Padded below and on the right by reflection, hole and all: to the network the photo goes on as photos do, while
        repeated edge pixels would be streaks such as it never saw. Pixels of a reflected hole stay unknown.
        """
        height, width = holes.shape
        bottom, right = -height % self.size_multiple, -width % self.size_multiple
        padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="reflect")
        hidden = np.pad(holes, ((0, bottom), (0, right)), mode="reflect").astype(np.uint8) * np.uint8(255)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            photo = image_from_uint8(torch.from_numpy(padded)[None].to(self.device))
            hole = mask_from_uint8(torch.from_numpy(hidden)[None].to(self.device))
            prediction: Tensor = self.network(masked(photo, hole), hole)
            if not bool(torch.isfinite(prediction).all()):
                raise UserError("the generator gives values that are not finite: its weights are of no use")
            result = image_to_uint8(composite(prediction, photo, hole))
        return result[0, :height, :width].cpu().numpy()


def find_device(name: DeviceName) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: cuda where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def weights_file(source: Path, weights: WeightsName) -> Path:
    """The file of a generator's weights: of a run folder the latest, or the best on its validation set.

    Raises:
        UserError: there are no best ones.
    """
    if weights == "latest":
        return generator_file(source)
    if source.is_file():
        raise UsageError(f"--weights best: {source} is a file; it needs a run folder")
    if source.is_dir() and not (source / BEST).is_file():
        raise UserError(f"{source} has no {BEST} (the run was not evaluated yet); use --weights latest")
    return source / BEST


def _checked_holes(image: npt.NDArray[Any], mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The mask as bool (H, W), True = hole, once it and the photo are what they have to be."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"the photo is {image.dtype} {image.shape}, not uint8 (height, width, 3)")
    if mask.dtype not in (np.uint8, np.bool_) or mask.ndim != 2:
        raise UserError(f"the mask is {mask.dtype} {mask.shape}, not uint8 or bool (height, width)")
    if mask.shape != image.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (mask.shape, image.shape[:2])]
        raise UserError(f"the mask is {sizes[0]} and its photo {sizes[1]}: make them the same size")
    if mask.dtype == np.uint8 and int(mask.max()) == 1:
        raise UserError("the mask holds 0 and 1, not 0 and 255: multiply it by 255, or give it as bool")
    holes = mask if mask.dtype == np.bool_ else mask > MASK_THRESHOLD
    if holes.all():
        raise UserError(
            "the mask is all hole (white = hole), so nothing of the photo is known; did you mean --invert-masks?"
        )
    return holes


def _surroundings(holes: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """The box of all holes with context around it: half its own size, at least CONTEXT pixels."""
    box: list[slice] = []
    for axis, size in enumerate(holes.shape):
        found = np.flatnonzero(holes.any(axis=1 - axis))
        first, last = int(found[0]), int(found[-1]) + 1
        margin = max(CONTEXT, (last - first) // 2)
        box.append(slice(max(0, first - margin), min(size, last + margin)))
    return box[0], box[1]


def _is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "allocate memory" in str(error)  # what torch's CPU allocator says is a plain RuntimeError
