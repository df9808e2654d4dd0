"""How well holes are filled: trained generators beside fills that learned nothing.

python -m benchmarks.quality --photos DIR --masks DIR --runs unet=runs/unet seed=runs/seed --metrics psnr lpips_alex

All systems fill the same holes of the same photos, measured by the evaluator of `python -m inpaint_dist.evaluate`.
Differences are paired by photo, with a bootstrap interval.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from inpaint_dist import cli
from inpaint_dist.batch import Image, Mask, composite, image_from_uint8, image_to_uint8, masked
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.pairs import Pairing, Pairs, PhotoSet, ValSplit, spread
from inpaint_dist.data.photos import Pixels
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.evaluation import (
    ALL_METRICS,
    LOWER_IS_BETTER,
    METRICS,
    Completer,
    Measured,
    MetricName,
    Ruler,
    completions,
    measure,
    summarise,
)
from inpaint_dist.inpainter import Inpainter
from inpaint_dist.launch import Launch, LaunchConfig, open_launch
from inpaint_dist.metrics.intervals import RESAMPLES, bootstrap_interval, buckets
from inpaint_dist.models.ffc_unet import mixed_fill
from inpaint_dist.models.nearest_fill import nearest_fill
from inpaint_dist.models.push_pull import push_pull
from inpaint_dist.weights import read_generator

BASE = "push-pull"
"""What the others are compared with: it learned nothing, and `unet` starts from it."""

OPENCV_RADIUS = 3.0
_LABEL = 20


def fill_by_opencv(method: int, photo: Image, mask: Mask) -> Image:
    """Fill with cv2.inpaint, radius 3."""
    pixels, holes = image_to_uint8(photo).cpu().numpy(), mask[:, 0].to(torch.uint8).cpu().numpy()
    filled = [cv2.inpaint(np.ascontiguousarray(pixels[i]), holes[i], OPENCV_RADIUS, method) for i in range(len(pixels))]
    return image_from_uint8(torch.from_numpy(np.stack(filled)).to(photo.device))


FILLS: dict[str, Completer] = {
    BASE: push_pull,
    "nearest pixel": nearest_fill,
    "mixed": mixed_fill,
    "telea": partial(fill_by_opencv, cv2.INPAINT_TELEA),
    "navier-stokes": partial(fill_by_opencv, cv2.INPAINT_NS),
}
"""What learned nothing; `mixed` is what `mend` starts from."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What is scored, on what."""

    photos: Path | None = None
    """Folder of photos."""
    masks: Path | None = None
    """Folder of masks, white = hole."""
    pairing: Pairing = "pool"
    """pool: each photo's mask is drawn by a hash of its key, the same on any machine; name: the mask of its name."""
    shards: Path | None = None
    """Score the val split of a folder of shards, with its own masks, instead of --photos and --masks."""
    runs: tuple[str, ...] = ()
    """Generators, each NAME=RUN, a run folder or a .safetensors file; without one the unlearned fills alone."""
    size: int = 256
    """Pixels of a side that photos and masks are fitted to; shards have their own."""
    limit: int | None = None
    """Score that many photos, spread evenly over the folder."""
    metrics: tuple[MetricName, ...] = METRICS
    """What is scored."""
    name: str = "quality"
    """Of the report: benchmarks/results/NAME.json."""
    sheet: Path | None = None
    """Draw photo, masked photo and what each system made of it, a row each, into this .png or .jpg."""
    sheet_photos: int = 8
    """Photos on the sheet, spread evenly over the hole ratios."""
    sheet_systems: tuple[str, ...] = ()
    """Systems on the sheet, in this order; none named: all."""
    cpu: bool = False
    """Run on the CPU even where there is a GPU."""

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.photos is None) or (self.photos is None) != (self.masks is None):
            raise UsageError("give --photos and --masks, or --shards")
        refuse_unknown_metrics(self.metrics)
        names = [name for name, _ in self.named_runs()]
        if len({*names, *FILLS}) < len(names) + len(FILLS):
            raise UsageError(f"--runs: the names {', '.join(names)} have to differ, also from {', '.join(FILLS)}")
        if self.sheet is not None and self.sheet.suffix.lower() not in (".png", ".jpg"):
            raise UsageError(f"--sheet {self.sheet}: name a .png or .jpg file")
        if unknown := [name for name in self.sheet_systems if name not in (*names, *FILLS)]:
            raise UsageError(f"--sheet-systems {' '.join(unknown)}: choose of {', '.join((*names, *FILLS))}")
        for flag in ("size", "limit", "sheet_photos"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {value}: give at least 1")

    def named_runs(self) -> list[tuple[str, Path]]:
        """Name and place of each generator."""
        pairs = [text.partition("=") for text in self.runs]
        for text, (name, equals, place) in zip(self.runs, pairs, strict=True):
            if not (name and equals and place):
                raise UsageError(f"--runs {text}: give NAME=RUN, such as unet=runs/unet")
        return [(name, Path(place)) for name, _, place in pairs]


def refuse_unknown_metrics(metrics: Sequence[str]) -> None:
    """Say so before anything is trained or scored.

    Raises:
        UsageError: there are none, or some that are not known.
    """
    unknown = [name for name in metrics if name not in ALL_METRICS]
    if unknown or not metrics:
        raise UsageError(f"--metrics {' '.join(unknown)}: choose of {', '.join(ALL_METRICS)}")


def open_photos(config: QualityConfig) -> PhotoSet | ValSplit:
    """What is scored."""
    if config.shards is not None:
        return ValSplit(config.shards, config.limit)
    assert config.photos is not None  # the config sees to it
    assert config.masks is not None
    return PhotoSet(config.photos, config.masks, pairing=config.pairing, size=config.size, limit=config.limit)


def open_systems(runs: Sequence[tuple[str, Path]], size: int | None, device: torch.device) -> dict[str, Completer]:
    """Every system as a function of (masked photo, mask) → prediction: the generators, then what learned nothing."""
    return {name: open_generator(name, place, size, device) for name, place in runs} | FILLS


def open_generator(name: str, place: Path, size: int | None, device: torch.device) -> Completer:
    """A generator as a function of (masked photo, mask) → prediction.

    Raises:
        UserError: it is not there, or takes no pictures of that size.
    """
    inpainter = Inpainter.load(place, device="cuda" if device.type == "cuda" else "cpu")
    if size is not None and size % inpainter.size_multiple:
        raise UserError(f"--size {size}: {name} takes multiples of {inpainter.size_multiple}")
    if size is not None and getattr(inpainter.network, "fixed_size", size) != size:
        raise UserError(f"--size {size}: {name} is made for pictures of {inpainter.network.fixed_size} pixels")
    return inpainter.network


def score(pairs: Pairs, systems: Mapping[str, Completer], ruler: Ruler, launch: Launch) -> dict[str, Measured]:
    """Score all of them on the same holes."""
    found: dict[str, Measured] = {}
    for name, complete in systems.items():
        sys.stderr.write(f"scoring {name}\n")
        found[name] = measure(pairs, completions(complete, launch), ruler, launch)
    return found


def figures_of(scored: Mapping[str, Measured], metrics: Sequence[MetricName]) -> dict[str, Any]:
    """Of each system, over all photos and by hole ratio: its figures, and how far each photo is from the base."""
    base, told = scored[BASE], {}
    for name, measured in scored.items():
        told[name] = summarise(measured, metrics)
        for bucket, chosen in buckets(measured.ratios).items():
            names: list[MetricName] = [metric for metric in measured.scores if metric in metrics]
            if not names:
                continue
            gaps = np.stack([measured.scores[n] - base.scores[n] for n in names], axis=1)[chosen]
            columns = zip(names, gaps.mean(0), *bootstrap_interval(gaps), strict=True)
            told[name][bucket][f"difference to {BASE}"] = {
                metric: dict(zip(("mean", "low", "high"), (round(float(value), 5) for value in values), strict=True))
                for metric, *values in columns
            }
    return told


def table(figures: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """The figures over all photos, best LPIPS first where it was scored."""
    by = next((name for name in ("lpips_alex", "hole_l1", "psnr") if name in metrics), metrics[0])
    whole = {name: about["all"] for name, about in figures.items()}
    ranked = sorted(whole, key=lambda name: _main_figure(whole[name].get(by)), reverse=by not in LOWER_IS_BETTER)
    lines = [f"{'':<28}" + "".join(f"{metric:>26}" for metric in metrics)]
    return lines + [f"{name:<28}" + "".join(f"{_cell(whole[name].get(m)):>26}" for m in metrics) for name in ranked]


def _main_figure(part: Mapping[str, float] | None) -> float:
    return 0.0 if part is None else part.get("value", part.get("mean", 0.0))


def _cell(part: Mapping[str, float] | None) -> str:
    if part is None:  # of too few photos
        return "-"
    if "value" in part:
        return f"{part['value']:.4f}"
    return f"{part['mean']:.4f} [{part['low']:.4f}, {part['high']:.4f}]"


def draw_sheet(
    pairs: Pairs, systems: Mapping[str, Completer], ratios: Sequence[float], count: int, device: torch.device
) -> Pixels:
    """Photo, masked photo and each system in rows, a photo a column, from the smallest hole to the largest."""
    by_hole = [int(number) for number in spread(list(np.argsort(ratios, kind="stable")), count)]
    with torch.inference_mode():
        columns = [_column(pairs, number, systems, device) for number in by_hole]
    rows: list[Pixels] = []
    for title, tiles in zip(("photo", "masked", *systems), zip(*columns, strict=True), strict=True):
        heading = np.full((_LABEL, sum(tile.shape[1] for tile in tiles), 3), 255, np.uint8)
        cv2.putText(heading, title, (4, _LABEL - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [heading, np.hstack(tiles)]
    return np.vstack(rows)


def _column(pairs: Pairs, number: int, systems: Mapping[str, Completer], device: torch.device) -> list[Pixels]:
    batch = pairs.batch([number], device)
    image, mask = batch.image, batch.mask
    hidden = masked(image, mask)
    made = [composite(complete(hidden, mask), image, mask) for complete in systems.values()]
    return [image_to_uint8(tile)[0].cpu().numpy() for tile in (image, hidden, *made)]


def write_sheet(path: Path, sheet: Pixels) -> None:
    """Write the picture.

    Raises:
        UserError: the place cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise UserError(f"--sheet {path}: cannot be written")
    print(f"wrote {path}")


def context_of(config: QualityConfig, pairs: PhotoSet | ValSplit) -> dict[str, Any]:
    """How it was measured, in names that mean something on another machine."""
    told: dict[str, dict[str, Any]] = {}
    for name, place in config.named_runs():
        generator, _, about = read_generator(place)
        told[name] = {"network": type(generator).__name__, "recipe": about.get("recipe"), "step": about.get("step")}
        told[name]["weights"] = place.name if place.is_file() else "latest"
    where: dict[str, Any] = {"shards": config.shards.resolve().name, "split": "val"} if config.shards else {}
    if config.photos is not None and config.masks is not None:
        where = {"photos": config.photos.resolve().name, "masks": config.masks.resolve().name}
        where["pairing"] = config.pairing
    return {
        **where,
        "size": pairs.size,
        "precision": "float32",
        "opencv radius": OPENCV_RADIUS,
        "bootstrap resamples": RESAMPLES,
        "runs": told,
    }


def main(argv: Sequence[str]) -> int:
    config = cli.parse(
        QualityConfig, argv, prog="python -m benchmarks.quality", description="Score generators beside unlearned fills."
    )
    with open_launch(LaunchConfig(cpu=config.cpu, mixed_precision="no")) as launch:
        pairs = open_photos(config)
        systems = open_systems(config.named_runs(), pairs.size, launch.device)
        scored = score(pairs, systems, Ruler(config.metrics, launch.device), launch)
        figures = figures_of(scored, config.metrics)
        print("\n".join(table(figures, config.metrics)))
        if config.sheet is not None:
            ratios = scored[BASE].ratios.tolist()
            systems = {name: systems[name] for name in config.sheet_systems or systems}
            write_sheet(config.sheet, draw_sheet(pairs, systems, ratios, config.sheet_photos, launch.device))
    print(f"wrote {report.write_report(config.name, figures, **context_of(config, pairs))}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
