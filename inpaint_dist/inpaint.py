"""Filling holes: `python -m inpaint_dist.inpaint RUN --image FILE_OR_DIR --mask FILE_OR_DIR --out OUT`.

In Python: `Inpainter.load("runs/unet")(image, mask)`.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inpaint_dist import cli
from inpaint_dist.batch import composite, image_from_uint8, image_to_uint8, mask_from_uint8, masked
from inpaint_dist.data.headers import exif_orientation
from inpaint_dist.data.name_pairing import pair_by_name
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photo_sources import PhotoReader, Source, find_photos, stem
from inpaint_dist.data.photos import MASK_THRESHOLD, PhotoError, Pixels, decode_mask, decode_photo, turn_mask
from inpaint_dist.data.progress import Progress
from inpaint_dist.errors import EXIT_FAILURE, UsageError, UserError
from inpaint_dist.weights import BEST, load_into, read_generator

DeviceName = Literal["auto", "cpu", "cuda"]
WeightsName = Literal["latest", "best"]

WHOLE_PIXELS = 2048 * 2048
"""A photo of more pixels is worked on around its holes only: a network takes about 330 bytes a pixel."""

CONTEXT = 256
"""Pixels around the holes that such a photo gives the network at least."""

LARGE_HOLE = 0.6
"""Mean share of hole above which masks are more likely the wrong way round."""


class Inpainter:
    """A trained generator, ready to fill holes of photos of any size.

    inpainter = Inpainter.load("runs/unet")
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
            source: a run folder, or a generator's .safetensors file.
            weights: of a run folder: those of its last save, or those that scored best on its validation set.
            device: auto takes a GPU where there is one.

        Raises:
            UserError: there is no such generator, it is damaged, or the device is missing.
        """
        path = _weights_file(Path(source), weights)
        config, tensors, _ = read_generator(path)
        network = config.build()
        load_into(network, tensors, path)
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


def _weights_file(source: Path, weights: WeightsName) -> Path:
    if weights == "latest":
        return source
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


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """Which photos to fill, by which generator."""

    run: Path
    """Run folder, or a generator's .safetensors file."""
    image: str
    """Photo, or a folder, glob or .zip of photos. They may have any size: one of more than 4 megapixels is worked on
    around its holes only. Alpha is laid over white."""
    mask: str
    """Mask of the photo's size, white (above 127) = hole; or a folder of masks named as the photos (NAME.png or
    NAME_mask.png). One mask serves all photos of its size."""
    out: Path
    """A .png file for one photo, else a folder: PNG keeps the known pixels as they are."""
    weights: WeightsName = "latest"
    """Of a run folder: the latest weights, or those that scored best on its validation set."""
    invert_masks: bool = False
    """The masks are black where the hole is."""
    device: DeviceName = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        is_file = self.out.suffix != "" and not self.out.is_dir()
        if is_file and not _is_one(self.image):
            raise UsageError(f"--out {self.out}: --image is more than one photo, so name a folder")
        if is_file and self.out.suffix.lower() != ".png":
            raise UsageError(
                f"--out {self.out}: name a .png file, or a folder; {self.out.suffix} would not keep the known pixels"
            )
        target = self.out.resolve()
        for flag, place in (("--image", Path(self.image)), ("--mask", Path(self.mask))):
            if place.is_dir() and (target == place.resolve() or place.resolve() in target.parents):
                raise UsageError(f"--out {self.out} lies in {flag} {place}: name a folder outside of it")
        if _is_one(self.mask) and not _is_one(self.image) and target == Path(self.mask).resolve().parent:
            raise UsageError(f"--out {self.out} holds the mask, perhaps others too: name a folder of its own")


class Task(NamedTuple):
    """One photo to fill."""

    photo: Source
    mask: Source | None
    """None: it was not found."""
    target: Path


@dataclass(kw_only=True)
class Report:
    """What became of the photos."""

    written: list[Path] = field(default_factory=list)
    """The files written, in order."""
    failures: list[str] = field(default_factory=list)
    """A line for each photo that was not filled: its name, and why."""
    holes: list[float] = field(default_factory=list)
    """Share of hole of each photo written."""


def inpaint(config: InpaintConfig) -> Report:
    """Fill the holes of every photo; one that fails does not end the others.

    Raises:
        UserError: no generator, no photo or no mask at all, or an output that would replace an input.
    """
    tasks, unreadable = plan(config)
    inpainter = Inpainter.load(config.run, weights=config.weights, device=config.device)
    report = Report(failures=unreadable)
    targets: dict[Path, str] = {}
    with PhotoReader() as reader, Progress("inpaint", len(tasks), "photo") as progress:
        for done, task in enumerate(tasks, 1):
            try:
                if (other := targets.setdefault(task.target, task.photo.name)) != task.photo.name:
                    raise PhotoError(task.photo.name, f"would be written to the same file as {other}: rename one")
                report.holes.append(_fill_file(inpainter, reader, task, config))
                report.written.append(task.target)
            except UserError as error:
                report.failures.append(str(error))
            progress.update(done)
    return report


def plan(config: InpaintConfig) -> tuple[list[Task], list[str]]:
    """Find the photos, the mask of each, and where each output goes; and photos that are there but cannot be opened.

    Raises:
        UserError: there is no photo or no mask, or an output would replace an input.
    """
    found = find_photos([config.image], "--image")
    photos, masks = found.sources, find_photos([config.mask], "--mask").sources
    tasks = [Task(photo, mask, _target(config, photo)) for photo, mask in _pairs(config, photos, masks)]
    inputs = {Path(source.file).resolve() for source in (*photos, *masks)}
    for task in tasks:
        if task.target.resolve() in inputs:
            raise UsageError(f"--out {config.out}: {task.target} would replace an input; name another place")
    if not tasks:
        raise UserError("--image and --mask: all of them are masks of each other; put the masks in their own folder")
    return tasks, [f"{name}: {reason}" for name, reason in found.refused]


def _pairs(
    config: InpaintConfig, photos: Sequence[Source], masks: Sequence[Source]
) -> Iterator[tuple[Source, Source | None]]:
    # Photos and masks may share a folder: then a photo is not its own mask, and what is a mask is no photo.
    if _is_one(config.mask):
        yield from ((photo, masks[0]) for photo in photos if _place(photo) != _place(masks[0]))
        return
    own = [
        next((masks[number] for number in numbers if _place(masks[number]) != _place(photo)), None)
        for photo, numbers in zip(photos, pair_by_name(photos, masks), strict=True)
    ]
    used = {_place(mask) for mask in own if mask is not None}
    yield from ((photo, mask) for photo, mask in zip(photos, own, strict=True) if _place(photo) not in used)


def _place(source: Source) -> tuple[str, str]:
    return source.file, source.member


def _is_one(place: str) -> bool:
    """Whether a place is one picture, rather than a folder, a glob or an archive."""
    path = Path(place).expanduser()
    return path.is_file() and path.suffix.lower() != ".zip"


def _target(config: InpaintConfig, photo: Source) -> Path:
    if config.out.suffix.lower() == ".png" and not config.out.is_dir():
        return config.out
    return config.out / f"{stem(photo.path)}.png"


def _fill_file(inpainter: Inpainter, reader: PhotoReader, task: Task, config: InpaintConfig) -> float:
    """Fill one photo and write it under its final name only when it is whole; returns its share of hole."""
    name = task.photo.name
    if task.mask is None:
        raise PhotoError(name, f"no mask has its name in {config.mask}")
    data = reader.read(task.photo)
    image = decode_photo(data, name)
    drawn = decode_mask(reader.read(task.mask), task.mask.name)
    mask = turn_mask(drawn, exif_orientation(data), image.shape[1::-1], name)
    if config.invert_masks:
        mask = 255 - mask
    try:
        filled = inpainter(image, mask)
    except UserError as error:
        raise PhotoError(name, str(error)) from None
    _write_png(task.target, filled)
    return float(np.mean(mask > 0))


def _write_png(path: Path, image: Pixels) -> None:
    _, encoded = cv2.imencode(".png", image[..., ::-1])
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(encoded.tobytes())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def summary(report: Report, config: InpaintConfig) -> list[str]:
    """What to tell the user."""
    lines = [f"not filled: {failure}" for failure in report.failures]
    if report.holes and float(np.mean(report.holes)) > LARGE_HOLE and not config.invert_masks:
        lines.append(f"note: {np.mean(report.holes):.0%} of the photos was hole; did you mean --invert-masks?")
    tried = len(report.written) + len(report.failures)
    where = report.written[0] if tried == 1 and report.written else config.out
    return [*lines, f"{len(report.written)} of {tried} photos filled" + (f", in {where}" if report.written else "")]


def main(argv: Sequence[str]) -> int:
    """Parse, fill, and tell; 1 where a photo could not be filled."""
    config = cli.parse(
        InpaintConfig,
        argv,
        prog="python -m inpaint_dist.inpaint",
        description="Fill the holes of photos with a trained generator; the known pixels stay as they are.",
        positional=("run",),
    )
    report = inpaint(config)
    *told, last = summary(report, config)
    sys.stderr.writelines(f"{line}\n" for line in told)
    sys.stdout.write(f"{last}\n")
    return EXIT_FAILURE if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
