"""Pictures of a run: its curves, and grids of samples. matplotlib and cv2 are imported late."""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_dist.host import written_whole

POINTS = 2000
"""About how many points of a curve are drawn: more than a picture of this width can show."""

# Okabe and Ito's colour-blind-safe hues; the two that share a panel differ in lightness and dash too.
BLUE, VERMILION, NAVY, ORANGE, GREEN = "#0072B2", "#C2410C", "#0B3C6F", "#E69F00", "#00795B"

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 10,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
}

Row = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity against iterations, as wide as memory needs it to be: whole, before thinning."""

    steps: np.ndarray
    """int64 (N,), rising."""
    values: np.ndarray
    """float64 (N,), finite."""

    def thinned(self, points: int = POINTS) -> "Curve":
        """Keep each bin's lowest and highest value, and the two ends, so that no spike is lost."""
        count = len(self.steps)
        if count <= points:
            return self
        bins = points // 2 - 1
        width = math.ceil(count / bins)
        padded = np.full(bins * width, np.nan)
        padded[:count] = self.values
        full = padded.reshape(bins, width)[: math.ceil(count / width)]
        starts = np.arange(len(full)) * width
        kept = [np.nanargmin(full, axis=1) + starts, np.nanargmax(full, axis=1) + starts, np.array([0, count - 1])]
        index = np.unique(np.concatenate(kept))
        return Curve(steps=self.steps[index], values=self.values[index])

    def smoothed(self, points: int = POINTS) -> "Curve":
        """Exponential average over a fortieth of the run, unbiased from its first point on.

        Long curves are averaged over bins of equal width first.
        """
        count = len(self.steps)
        width = math.ceil(count / points)
        starts = np.arange(0, count, width)
        sizes = np.diff(np.append(starts, count))
        means = np.add.reduceat(self.values, starts) / sizes
        decay = 1 - 1 / max(3.0, len(means) / 40)
        total, weight = 0.0, 0.0
        values = np.empty_like(means)
        for i, mean in enumerate(means.tolist()):
            total, weight = decay * total + (1 - decay) * mean, decay * weight + (1 - decay)
            values[i] = total / weight
        return Curve(steps=self.steps[starts + sizes - 1], values=values)


def curves(history: Iterable[Row], wanted: Callable[[str], bool]) -> dict[str, Curve]:
    """Read the wanted values of a history, in one pass; what is not finite is left out."""
    found: dict[str, tuple[array[int], array[float]]] = {}
    asked: dict[str, bool] = {}
    for row in history:
        step = row["step"]
        for name, value in row.items():
            if name not in asked:
                asked[name] = wanted(name)
            if not asked[name] or value is None or step is None or not math.isfinite(value):
                continue
            if name not in found:
                found[name] = (array("q"), array("d"))
            found[name][0].append(int(step))
            found[name][1].append(value)
    return {
        name: Curve(steps=np.array(steps, dtype=np.int64), values=np.array(values, dtype=np.float64))
        for name, (steps, values) in found.items()
    }


def draw_losses(history: Iterable[Row], path: Path, *, title: str = "") -> None:
    """Draw the losses against iterations, raw and smoothed, with the scores and the validation PSNR where known.

    Long histories are thinned to about 2000 points a curve first. The file appears whole or not at all.

    Args:
        history: rows with `step` and any of `g/loss`, `d/loss`, `d/real`, `d/fake`, `val/...psnr...`.
        path: the PNG to write.
        title: stands over the panels.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    found = curves(history, _is_drawn)
    last = max((int(curve.steps[-1]) for curve in found.values()), default=1)
    psnr = sorted((name for name in found if name.startswith("val/")), key=len)  # the plain one first
    panels: list[Callable[[Any], None]] = [
        lambda axes: _loss_panel(axes, "Generator loss", found.get("g/loss"), BLUE),
        lambda axes: _loss_panel(axes, "Discriminator loss", found.get("d/loss"), VERMILION),
    ]
    if "d/real" in found or "d/fake" in found:
        panels.append(lambda axes: _score_panel(axes, found))
    if psnr:
        panels.append(lambda axes: _psnr_panel(axes, {name: found[name] for name in psnr}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(12, 4 if len(panels) == 2 else 7.2))
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=14)
        grid = figure.add_gridspec(math.ceil(len(panels) / 2), 2)
        for i, panel in enumerate(panels):
            alone = i == len(panels) - 1 and i % 2 == 0
            axes = figure.add_subplot(grid[i // 2, :] if alone else grid[i // 2, i % 2])
            panel(axes)
            _finish_iterations(axes, last)
        with written_whole(path) as part:
            figure.savefig(part, format="png", dpi=120)


def draw_grid(path: Path, columns: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw images side by side: a row for each image, a titled column for each kind.

    Args:
        path: the PNG to write; it appears whole or not at all.
        columns: titles and uint8 RGB images (N,H,W,3), of one shape in all columns.

    Raises:
        ValueError: no columns, no images, or columns that differ in shape or are not uint8 RGB.
    """
    import cv2

    shapes = {images.shape for _, images in columns}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
        raise ValueError(f"a grid wants columns of one shape (N,H,W,3), not {sorted(shapes)}")
    if any(images.dtype != np.uint8 for _, images in columns):
        raise ValueError(f"a grid wants uint8 images, not {sorted({str(images.dtype) for _, images in columns})}")
    count, height, width, _ = shape
    gap = max(2, width // 40)
    band = max(16, width // 7)
    sheet = np.full((band + count * (height + gap), gap + len(columns) * (width + gap), 3), 255, np.uint8)
    for c, (title, images) in enumerate(columns):
        left = gap + c * (width + gap)
        _write_title(sheet, title, left, width, band)
        for r, image in enumerate(images):
            top = band + r * (height + gap)
            sheet[top : top + height, left : left + width] = image
    written, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not written:
        raise ValueError(f"{path}: cv2 cannot encode a {sheet.shape[1]}x{sheet.shape[0]} PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_bytes(data.tobytes())


def _is_drawn(name: str) -> bool:
    return name in ("g/loss", "d/loss", "d/real", "d/fake") or (name.startswith("val/") and "psnr" in name)


def _loss_panel(axes: Any, title: str, curve: Curve | None, colour: str) -> None:
    axes.set_title(title, pad=10)
    axes.set_ylabel("loss")
    if curve is None:
        axes.text(0.5, 0.5, "nothing reported yet", transform=axes.transAxes, ha="center", color="#777777")
        return
    low, high = np.percentile(curve.values, [0.25, 99.75])
    log = bool(curve.values.min() > 0 and high > 30 * low)
    smooth = _draw(axes, curve, colour, "smoothed (EMA)", raw_label="each report", log=log).values
    low, high = float(min(low, smooth.min())), float(max(high, smooth.max()))  # all of it; of the raw not the spikes
    if log:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.25, high * 1.25)
    else:
        pad = 0.05 * (high - low) or 0.05 * max(abs(high), 1e-3)
        axes.set_ylim(low - pad, high + pad)
        if high >= 10_000:
            axes.yaxis.set_major_formatter("{x:,g}")
    axes.legend(loc="best")


def _score_panel(axes: Any, found: Mapping[str, Curve]) -> None:
    axes.set_title("Discriminator's mean score", pad=10)
    axes.set_ylabel("score")
    looks = (("d/real", "D(real): photos", NAVY, "-"), ("d/fake", "D(fake): completions", ORANGE, (0, (5, 1.6))))
    low, high = math.inf, -math.inf
    for name, label, colour, dash in looks:
        if (curve := found.get(name)) is not None:
            _draw(axes, curve, colour, label, dash=dash)
            low, high = min(low, float(curve.values.min())), max(high, float(curve.values.max()))
    if low >= 0 and high <= 1:
        axes.set_ylim(-0.18, 1.02)  # the legend has a strip of its own below
        axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.legend(loc="lower left", ncols=2)


def _psnr_panel(axes: Any, found: Mapping[str, Curve]) -> None:
    axes.set_title("Validation PSNR", pad=10)
    axes.set_ylabel("dB (higher is better)")
    looks = ((GREEN, "-", "o"), (ORANGE, (0, (5, 1.6)), "s"), (NAVY, ":", "^"))
    for i, (name, curve) in enumerate(found.items()):
        thin = curve.thinned()
        colour, dash, marker = looks[i % len(looks)]
        marker = marker if len(thin.steps) <= 60 else ""
        label = name.removeprefix("val/")
        axes.plot(thin.steps, thin.values, color=colour, linestyle=dash, marker=marker, ms=4.5, lw=1.8, label=label)
    axes.legend(loc="best")


def _finish_iterations(axes: Any, last: int) -> None:
    """The same x axis for every panel: from the start to the last step."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("iteration")
    axes.set_xlim(-0.01 * last, 1.01 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw(
    axes: Any,
    curve: Curve,
    colour: str,
    label: str,
    *,
    dash: Any = "-",
    raw_label: str | None = None,
    log: bool = False,
) -> Curve:
    """The raw curve in light, the smoothed one (of logarithms for a log axis) over it; returns the smoothed one."""
    thin = curve.thinned()
    if log:
        smooth = Curve(steps=curve.steps, values=np.log(curve.values)).smoothed()
        smooth = Curve(steps=smooth.steps, values=np.exp(smooth.values))
    else:
        smooth = curve.smoothed()
    alpha, width = (0.28, 0.9) if len(thin.steps) > 300 else (0.5, 1.1)
    marker = "." if len(thin.steps) <= 40 else ""  # a single point would be no line at all
    axes.plot(thin.steps, thin.values, color=colour, alpha=alpha, lw=width, marker=marker, label=raw_label)
    axes.plot(smooth.steps, smooth.values, color=colour, lw=2.2, linestyle=dash, label=label)
    return smooth


def _write_title(sheet: np.ndarray, title: str, left: int, width: int, band: int) -> None:
    """Centre a column's title in the band above it, as large as fits."""
    import cv2

    font, room = cv2.FONT_HERSHEY_SIMPLEX, (0.9 * width, 0.5 * band)
    (wide, tall), _ = cv2.getTextSize(title, font, 1.0, 2)
    scale = min(room[0] / max(wide, 1), room[1] / max(tall, 1), 1.2)
    thick = 2 if scale > 0.8 else 1
    (wide, tall), _ = cv2.getTextSize(title, font, scale, thick)
    place = (left + (width - wide) // 2, (band + tall) // 2)
    cv2.putText(sheet, title, place, font, scale, (40, 40, 40), thick, cv2.LINE_AA)
