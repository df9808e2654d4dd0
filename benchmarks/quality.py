"""How well holes are filled: trained generators beside push-pull and OpenCV's Telea and Navier-Stokes.

python -m benchmarks.quality --photos DIR --masks DIR --runs unet=runs/unet seed=runs/seed

All systems fill the same holes of the same photos. Every figure is a mean over photos of a figure of the composite in 8
bits; differences are paired by photo, with a bootstrap interval.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import report
from inpaint_dist import cli
from inpaint_dist.batch import Batch, Image, Mask, composite, image_from_uint8, image_to_uint8, masked
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.pairs import Pairing, PhotoSet, ValSplit, spread
from inpaint_dist.data.photos import Pixels
from inpaint_dist.data.progress import Progress
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.evaluation import METRICS, Completer, eight_bits, score_result
from inpaint_dist.metrics.intervals import RESAMPLES, Scores, bootstrap_interval, buckets
from inpaint_dist.metrics.learned import LPIPS
from inpaint_dist.models.push_pull import push_pull
from inpaint_dist.weights import read_generator

BASE = "push-pull"
"""What the others are compared with: it learned nothing, and `unet` starts from it."""

OPENCV = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}
OPENCV_RADIUS = 3.0
BATCH = 8
_LABEL = 20


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
    """Generators, each NAME=RUN, a run folder or a .safetensors file; without one the baselines alone."""
    size: int = 256
    """Pixels of a side that photos and masks are fitted to; shards have their own."""
    limit: int | None = None
    """Score that many photos, spread evenly over the folder."""
    lpips: bool = False
    """LPIPS by AlexNet too (needs the extra `eval` and its weights)."""
    out: Path | None = None
    """The JSON to write; None: benchmarks/results/quality.json."""
    sheet: Path | None = None
    """Draw photo, masked photo and what each system made of it, into this .png."""
    sheet_photos: int = 8
    """Photos on the sheet, spread evenly over the hole ratios."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.photos is None) or (self.photos is None) != (self.masks is None):
            raise UsageError("give --photos and --masks, or --shards")
        names = [name for name, _ in self.named_runs()]
        if len({*names, BASE, *OPENCV}) < len(names) + 1 + len(OPENCV):
            raise UsageError(
                f"--runs: the names {', '.join(names)} have to differ, also from {BASE}, {', '.join(OPENCV)}"
            )
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet {self.sheet}: name a .png file")
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


@dataclass(frozen=True)
class Scored:
    """What was measured, photo by photo."""

    ratios: npt.NDArray[np.float64]
    """Share of hole, (photos,)."""
    scores: dict[str, Scores]
    """System → (photos, metrics)."""
    metrics: tuple[str, ...]
    """The columns."""


def open_photos(config: QualityConfig) -> PhotoSet | ValSplit:
    """What is scored."""
    if config.shards is not None:
        return ValSplit(config.shards, config.limit)
    assert config.photos is not None  # the config sees to it
    assert config.masks is not None
    return PhotoSet(config.photos, config.masks, pairing=config.pairing, size=config.size, limit=config.limit)


def open_systems(config: QualityConfig, size: int | None) -> dict[str, Completer]:
    """Every system as a function of (masked photo, mask) → prediction: the generators, then the baselines.

    Raises:
        UserError: a generator is not there, or takes no pictures of that size.
    """
    from inpaint_dist.inpainter import Inpainter

    systems: dict[str, Completer] = {}
    for name, place in config.named_runs():
        inpainter = Inpainter.load(place, device=config.device)
        if size is not None and size % inpainter.size_multiple:
            raise UserError(f"--size {size}: {name} takes multiples of {inpainter.size_multiple}")
        systems[name] = inpainter.network
    systems[BASE] = push_pull
    return systems | {name: partial(fill_by_opencv, method) for name, method in OPENCV.items()}


def fill_by_opencv(method: int, photo: Image, mask: Mask) -> Image:
    """Fill with cv2.inpaint, radius 3."""
    pixels, holes = image_to_uint8(photo).cpu().numpy(), mask[:, 0].to(torch.uint8).cpu().numpy()
    filled = [cv2.inpaint(np.ascontiguousarray(pixels[i]), holes[i], OPENCV_RADIUS, method) for i in range(len(pixels))]
    return image_from_uint8(torch.from_numpy(np.stack(filled)).to(photo.device))


def measure(
    photos: PhotoSet | ValSplit, systems: dict[str, Completer], device: torch.device, *, lpips: bool = False
) -> Scored:
    """Score every system on every photo, in float32."""
    learned = LPIPS("alex", device) if lpips else None
    ratios: list[torch.Tensor] = []
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in systems}
    with Progress("quality", len(photos), "photo") as progress, torch.inference_mode():
        for start in range(0, len(photos), BATCH):
            batch = photos.batch(range(start, min(start + BATCH, len(photos))), device)
            ratios.append(batch.mask.mean((1, 2, 3)).double().cpu())
            for name, complete in systems.items():
                prediction = complete(masked(batch.image, batch.mask), batch.mask)
                result = eight_bits(composite(prediction, batch.image, batch.mask))
                scores = score_result(result, batch.image, batch.mask)
                if learned is not None:
                    scores = torch.cat([scores, learned(result, batch.image)[:, None]], dim=1)
                columns[name].append(scores.cpu())
            progress.update(start + len(batch))
    scored = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    return Scored(torch.cat(ratios).numpy(), scored, (*METRICS, "lpips_alex") if lpips else METRICS)


def summarise(scored: Scored) -> dict[str, Any]:
    """Means and paired differences over all photos, and in each bucket of hole ratio that has any."""
    return {name: _summary(scored, chosen) for name, chosen in buckets(scored.ratios).items()}


def _summary(scored: Scored, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    scores = {name: values[chosen] for name, values in scored.scores.items()}
    others = {name: values - scores[BASE] for name, values in scores.items() if name != BASE}
    return {
        "photos": int(chosen.sum()),
        "mean hole ratio": round(float(scored.ratios[chosen].mean()), 4),
        "means": {name: _by_metric(scored.metrics, values.mean(0)) for name, values in scores.items()},
        f"difference to {BASE}": {name: _differences(scored.metrics, values) for name, values in others.items()},
    }


def _by_metric(metrics: Sequence[str], values: Scores) -> dict[str, float]:
    return {metric: round(float(value), 5) for metric, value in zip(metrics, values, strict=True)}


def _differences(metrics: Sequence[str], values: Scores) -> dict[str, dict[str, float]]:
    """Mean difference of each metric, and its 95 % interval."""
    low, high = bootstrap_interval(values)
    parts = {name: _by_metric(metrics, of) for name, of in (("mean", values.mean(0)), ("low", low), ("high", high))}
    return {metric: {part: figures[metric] for part, figures in parts.items()} for metric in metrics}


def table(figures: dict[str, Any]) -> list[str]:
    """The figures to be read: all metrics over all photos, then PSNR and hole L1 by bucket."""
    whole = figures["all"]
    lines = [f"{whole['photos']} photos, mean hole ratio {whole['mean hole ratio']:.1%}"]
    metrics = tuple(whole["means"][BASE])
    lines.append(f"{'':<16}" + "".join(f"{metric:>11}" for metric in metrics) + f"   PSNR over {BASE} [95 %]")
    for name, means in whole["means"].items():
        row = f"{name:<16}" + "".join(f"{means[metric]:>11.4f}" for metric in metrics)
        lines.append(row + _told(whole, name, "psnr", "+.3f"))
    for bucket, part in figures.items():
        if bucket == "all":
            continue
        lines.append(f"hole {bucket}: {part['photos']} photos")
        for name, means in part["means"].items():
            row = f"  {name:<14}{means['psnr']:>9.3f} dB{_told(part, name, 'psnr', '+.3f'):<30}"
            row += f" hole L1 {means['hole_l1']:.4f}{_told(part, name, 'hole_l1', '+.4f')}"
            lines.append(row + (f"   LPIPS {means['lpips_alex']:.4f}" if "lpips_alex" in means else ""))
    return lines


def _told(part: dict[str, Any], name: str, metric: str, form: str) -> str:
    difference = part[f"difference to {BASE}"].get(name)
    if difference is None:
        return ""
    mean, low, high = (format(difference[metric][key], form) for key in ("mean", "low", "high"))
    return f"   {mean} [{low}, {high}]"


def draw_sheet(
    config: QualityConfig,
    photos: PhotoSet | ValSplit,
    systems: dict[str, Completer],
    ratios: npt.NDArray[np.float64],
    device: torch.device,
) -> Pixels:
    """Photo | masked | one column a system, a row a photo, from the smallest hole to the largest."""
    by_hole = [int(number) for number in spread(list(np.argsort(ratios, kind="stable")), config.sheet_photos)]
    with torch.inference_mode():
        rows = [_row(photos.batch([number], device), systems) for number in by_hole]
    titles = ("photo", "masked", *systems)
    heading = np.full((_LABEL, rows[0].shape[1], 3), 255, np.uint8)
    for column, title in enumerate(titles):
        left = column * (rows[0].shape[1] // len(titles)) + 4
        cv2.putText(heading, title, (left, _LABEL - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([heading, *rows])


def _row(batch: Batch, systems: dict[str, Completer]) -> Pixels:
    image, mask = batch.image, batch.mask
    hidden = masked(image, mask)
    made = [composite(complete(hidden, mask), image, mask) for complete in systems.values()]
    return np.hstack([image_to_uint8(tile)[0].cpu().numpy() for tile in (image, hidden, *made)])


def context_of(config: QualityConfig, photos: PhotoSet | ValSplit) -> dict[str, Any]:
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
        "size": photos.size,
        "precision": "float32",
        "opencv radius": OPENCV_RADIUS,
        "bootstrap resamples": RESAMPLES,
        "runs": told,
    }


def write(config: QualityConfig, figures: dict[str, Any], context: dict[str, Any]) -> Path:
    """Write the report to its place, or beside it where --out says so."""
    if config.out is None:
        return report.write_report("quality", figures, **context)
    made_by = {"machine": report.machine(), "versions": report.versions(report.PACKAGES), "commit": report.commit()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps({"name": "quality", "figures": figures, "context": context, **made_by}, indent=2))
    return config.out


def main(argv: Sequence[str]) -> int:
    from inpaint_dist.inpainter import find_device

    config = cli.parse(
        QualityConfig, argv, prog="python -m benchmarks.quality", description="Score generators beside baselines."
    )
    device = find_device(config.device)
    photos = open_photos(config)
    systems = open_systems(config, photos.size)
    scored = measure(photos, systems, device, lpips=config.lpips)
    figures = summarise(scored)
    print("\n".join(table(figures)))
    if config.sheet is not None:
        sheet = draw_sheet(config, photos, systems, scored.ratios, device)
        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(config.sheet), sheet[..., ::-1])
        print(f"wrote {config.sheet}")
    print(f"wrote {write(config, figures, context_of(config, photos))}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
