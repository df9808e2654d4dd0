"""Quality against minutes, drawn: a line and its interval for each row of a race, what learned nothing as levels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inpaint_dist.evaluation import MetricName
from inpaint_dist.host import written_whole
from inpaint_dist.tracking.plots import STYLE

WANTED: tuple[MetricName, ...] = ("lpips_alex", "kid")
LEVELS = {"navier-stokes": (0, (5, 2)), "push-pull": (0, (1, 1.5))}
"""Of what learned nothing, those that are drawn, and their dashes."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B5A2B", "#5B4FA2", "#555555", "#7A9A01")
MARKERS = "osD^vP<>Xh"
TITLES = {
    "lpips_alex": "LPIPS (AlexNet), lower is better",
    "kid": "KID, lower is better",
    "psnr": "PSNR in dB, higher is better",
}


def draw_progress(path: Path, figures: Mapping[str, Mapping[str, Any]], metrics: Sequence[MetricName]) -> None:
    """Draw LPIPS and KID, or the first two metrics where neither was scored, against minutes of training.

    Args:
        path: the PNG to write; it appears whole or not at all.
        figures: system → its figures: rows with a `progress`, as race.py tells them, and others without.
        metrics: what was scored.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    shown: list[MetricName] = [name for name in WANTED if name in metrics] or [*metrics[:2]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(6.4 * len(shown), 5.2))
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, metric in zip(panels, shown, strict=True):
            _panel(axes, figures, metric)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        with written_whole(path) as part:
            figure.savefig(part, format="png", dpi=120)


def _panel(axes: Any, figures: Mapping[str, Mapping[str, Any]], metric: MetricName) -> None:
    axes.set_title(TITLES.get(metric, metric), pad=10)
    axes.set_xlabel("minutes of training")
    rows = {name: about["progress"] for name, about in figures.items() if "progress" in about}
    for number, (name, points) in enumerate(rows.items()):
        known = [point for point in points if metric in point]
        minutes = [point["minutes"] for point in known]
        colour = COLOURS[number % len(COLOURS)]
        if all("low" in point[metric] for point in known):
            ends = ([point[metric][end] for point in known] for end in ("low", "high"))
            axes.fill_between(minutes, *ends, color=colour, alpha=0.1, lw=0)
        values = [point[metric].get("mean", point[metric].get("value")) for point in known]
        axes.plot(minutes, values, color=colour, marker=MARKERS[number % len(MARKERS)], ms=5, lw=1.9, label=name)
    for name, dash in LEVELS.items():
        if metric in (about := figures.get(name, {}).get("all", {})):
            level = about[metric].get("mean", about[metric].get("value"))
            axes.axhline(level, color="#444444", lw=1.2, linestyle=dash, label=f"{name} (nothing learned)")
    axes.set_xlim(left=0)
