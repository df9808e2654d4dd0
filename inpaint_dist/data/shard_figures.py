"""Histograms of what shards hold, as PNGs: the splits side by side. matplotlib is imported late."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.shard_statistics import SplitStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"train": "#0072B2", "val": "#E69F00"}
_BINS = 25


def hole_figure(splits: Sequence[SplitStatistics]) -> bytes:
    """The masks of each split by the share of the picture that is hole, in buckets of ten per cent."""
    with _axes("share of the picture that is hole, per cent", "share of the masks") as (axes, png):
        width = 0.8 / len(splits)
        for number, split in enumerate(splits):
            counts, _ = np.histogram(split.ratios, np.linspace(0, 1, 11))
            left = np.arange(10) + (number + 0.5) * width - 0.4
            name = split.index.split
            axes.bar(left, counts / max(1, counts.sum()), width, color=_COLOURS[name], label=_label(name, split.ratios))
        axes.set_xticks(range(10), [f"{low}-{low + 10}" for low in range(0, 100, 10)])
    return png.getvalue()


def brightness_figure(splits: Sequence[SplitStatistics]) -> bytes:
    """The photos of each split by their mean."""
    values = {split.index.split: np.array([sample.brightness for sample in split.looked]) for split in splits}
    with _axes("mean brightness of a photo, 0 = black, 1 = white", "share of the photos") as (axes, png):
        _steps(axes, values, np.linspace(0, 1, _BINS + 1))
    return png.getvalue()


def source_figure(splits: Sequence[SplitStatistics]) -> bytes:
    """The photos of each split by the short side of what they were made of."""
    with _axes("short side of the source, pixels", "share of the photos") as (axes, png):
        _log_steps(axes, {split.index.split: split.source_sides for split in splits})
    return png.getvalue()


def bytes_figure(splits: Sequence[SplitStatistics]) -> bytes:
    """The photos of each split by the bytes of their files."""
    with _axes("bytes of a photo's file", "share of the photos") as (axes, png):
        _log_steps(axes, {split.index.split: split.photo_bytes for split in splits})
    return png.getvalue()


@contextmanager
def _axes(across: str, up: str) -> Iterator[tuple["Axes", BytesIO]]:
    """Axes to draw in, and where the PNG is when the block has ended."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: a second, which --help must not wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.9), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes, png = figure.add_subplot(), BytesIO()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    yield axes, png
    axes.legend(frameon=False)
    figure.savefig(png, format="png")


def _label(name: str, values: NDArray[np.generic]) -> str:
    return f"{name} ({len(values):,})"


def _steps(axes: "Axes", values: Mapping[str, NDArray[np.generic]], edges: NDArray[np.float64]) -> None:
    for name, some in values.items():
        counts, _ = np.histogram(some, edges)
        shares = counts / max(1, counts.sum())
        axes.stairs(shares, edges, color=_COLOURS[name], fill=True, alpha=0.25)
        axes.stairs(shares, edges, color=_COLOURS[name], label=_label(name, some), linewidth=1.8)


def _log_steps(axes: "Axes", values: Mapping[str, NDArray[np.int64]]) -> None:
    """As `_steps`, with edges that grow by one factor."""
    known = np.concatenate([*values.values()])
    edges = np.geomspace(max(1, known.min()), known.max() + 1, _BINS + 1)
    _steps(axes, values, edges)
    axes.set_xscale("log")
    ticks = sorted({round(edge) for edge in edges[::5]})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
