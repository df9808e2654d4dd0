"""Filling holes: `python -m inpaint_dist.inpaint RUN --image FILE_OR_DIR --mask FILE_OR_DIR --out OUT`.

In Python: `Inpainter.load("runs/mine")(image, mask)`.
"""

import glob
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inpaint_dist import cli
from inpaint_dist.data.headers import exif_orientation
from inpaint_dist.data.name_pairing import pair_by_name
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photo_sources import PhotoReader, Source, find_photos, stem
from inpaint_dist.data.photos import PhotoError, Pixels, decode_mask, decode_photo, turn_mask
from inpaint_dist.data.progress import Progress
from inpaint_dist.errors import EXIT_FAILURE, UsageError, UserError
from inpaint_dist.host import written_whole
from inpaint_dist.inpainter import DeviceName, Inpainter, WeightsName

__all__ = ["InpaintConfig", "Inpainter", "Report", "inpaint", "main", "plan", "summary"]

LARGE_HOLE = 0.6
"""Mean share of hole above which masks are more likely the wrong way round."""


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """Which photos to fill, by which generator."""

    run: Path
    """Run folder, one of its checkpoints, or a generator's .safetensors file."""
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
        if is_file and not (_is_one(self.image) or _is_missing(self.image)):
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


def _is_missing(place: str) -> bool:
    """Whether a place is no path that exists, nor one to be looked up; `find_photos` refuses it by its name."""
    return not (Path(place).expanduser().exists() or glob.has_magic(place) or ".zip:" in place)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_bytes(encoded.tobytes())
    except OSError as error:
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
