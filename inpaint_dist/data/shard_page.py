"""A page about shards, in one file that needs nothing else: what they hold, what was left out, what looks wrong."""

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inpaint_dist.data.contact_sheet import draw_samples
from inpaint_dist.data.near_copies import Alike, find_near_copies
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.shard_statistics import Copies, Rejected, SplitStatistics, find_copies, look_at, read_rejected
from inpaint_dist.data.sharding_report import REJECTED_NAME
from inpaint_dist.data.shards import PHOTO_EXTENSION, SPLITS, ShardIndex
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"train": "#0072B2", "val": "#E69F00"}
_LISTED = 20  # names or reasons of a kind that the page shows
_LETTERS = 500  # of one of them
_STYLE = """
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
body { color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.warning { border-left: 4px solid #C2410C; padding-left: .8rem; } code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } h2 { border-color: #555; } }
@media print { h2 { break-after: avoid; } img { break-inside: avoid; } }
"""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a page about a folder of shards."""

    shards: Path
    """The folder of shards."""
    out: Path = Path("report.html")
    """The page to write; it holds its pictures."""
    sample: int = 2000
    """Samples of each split that are read for brightness, source sizes and holes, spread evenly over it."""
    count: int = 12
    """Samples of each split that are shown."""
    near_duplicates: bool = False
    """List photos of val that look like one of train, by a perceptual hash of each; needs
    pip install 'inpaint-dist[duplicates]'."""

    def __post_init__(self) -> None:
        """Refuse what cannot be written.

        Raises:
            UsageError: naming the flag and what is allowed.
        """
        if self.sample < 1:
            raise UsageError(f"--sample {self.sample}: give at least 1")
        if not 1 <= self.count <= 300:
            raise UsageError(f"--count {self.count}: from 1 to 300")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out {self.out}: name an .html file")


def report_shards(config: ReportConfig) -> list[str]:
    """Write the page; returns what to tell the user.

    Raises:
        UserError: the index cannot be read, holds no sample, or the page cannot be written.
    """
    indexes = [index for split in SPLITS if len(index := ShardIndex.load(config.shards, split))]
    if not indexes:
        raise UserError(f"{config.shards} holds no sample")
    if any(PHOTO_EXTENSION not in index.columns for index in indexes):
        raise UserError(f"{config.shards}: its index names no photos; make the shards again with tools/make_shards.py")
    rejected = read_rejected(config.shards / REJECTED_NAME)
    splits = [_looked_at(index, config.sample) for index in indexes]
    alike = _find_alike(config, splits)
    page = _page(config, splits, rejected, find_copies(indexes), alike)
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(config.out) as part:
            part.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror})") from None
    damaged = sum(len(split.damaged) for split in splits)
    lines = [f"{damaged} of the samples that were read are damaged: check_shards names all"] if damaged else []
    return [*lines, f"wrote {config.out}"]


def _looked_at(index: ShardIndex, most: int) -> SplitStatistics:
    with Progress(index.split, min(most, len(index)), "sample") as progress:
        return look_at(index, most, progress.update)


def _find_alike(config: ReportConfig, splits: Sequence[SplitStatistics]) -> list[Alike] | str:
    """Photos of val that look like one of train, or why nobody looked."""
    if not config.near_duplicates:
        return "this was not asked for (--near-duplicates)"
    if any(split.damaged for split in splits):
        return "samples are damaged"
    if len(splits) < len(SPLITS):
        return "there is one split alone"
    try:
        with Progress("near duplicates", sum(len(split.index) for split in splits), "photo") as progress:
            return find_near_copies(config.shards, progress.update)
    except UserError as error:
        return str(error)


# ------------------------------------------------------------------------------------------------ the page


def _page(
    config: ReportConfig,
    splits: Sequence[SplitStatistics],
    rejected: Sequence[Rejected] | None,
    copies: Sequence[Copies],
    alike: Sequence[Alike] | str,
) -> str:
    title = f"Shards: {escape(str(config.shards))}"
    sections = {
        "What they hold": _counts(splits),
        "Holes": _holes(splits),
        "Photos": _photos(splits),
        "Copies": _copies(copies, alike),
        "Left out": _rejected(rejected),
        "Damaged": _damaged(splits),
        "Samples": "".join(_sheet(split, config.count) for split in splits),
        "How they were made": _settings(splits[0].index),
    }
    body = "".join(f"<h2>{name}</h2>\n{text}\n" for name, text in sections.items() if text)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}</body></html>\n"
    )


def _counts(splits: Sequence[SplitStatistics]) -> str:
    rows: dict[str, list[str]] = {"": [], "samples": [], "shards": [], "MB": [], "masks": []}
    rows |= {"bytes of a photo, mean": [], "smallest and largest": [], "pixels": [], "fingerprint": []}
    for split in splits:
        index, sizes = split.index, split.photo_bytes
        cells = [
            index.split,
            f"{len(index):,}",
            f"{len(index.shards):,}",
            f"{split.bytes / 1e6:,.1f}",
            f"{split.masks:,}",
        ]
        cells += [f"{sizes.mean():,.0f}", f"{sizes.min():,} and {sizes.max():,}", f"{index.size} x {index.size}"]
        for row, cell in zip(rows.values(), [*cells, index.fingerprint[:16]], strict=True):
            row.append(cell)
    return _table([[name, *row] for name, row in rows.items()], numbers=True)


def _holes(splits: Sequence[SplitStatistics]) -> str:
    masks = np.concatenate([split.ratios for split in splits])
    if not len(masks):
        return _warning("No sample that was read has a mask.")
    rows = [["", "masks read", "mean hole", "more than half hole", "hole at the edge", "no hole"]]
    for split in splits:
        ratios = split.ratios
        if len(ratios):
            shares = (ratios.mean(), (ratios > 0.5).mean(), split.at_edge, (ratios == 0).mean())
            rows.append([split.index.split, f"{len(ratios):,}", *(f"{share:.1%}" for share in shares)])
    if masks.mean() > 0.5:
        verdict = _warning(
            "More than half of the pictures is hole. If white is what is known in your masks, make the shards again "
            "with --invert-masks."
        )
    else:
        verdict = "<p>Holes are white in the masks below, and the smaller part of the pictures, as is usual.</p>"

    def draw(axes: "Axes") -> None:
        edges = np.linspace(0, 1, 11)
        width = 0.8 / len(splits)
        for number, split in enumerate(splits):
            counts, _ = np.histogram(split.ratios, edges)
            left = np.arange(10) + (number + 0.5) * width - 0.4
            name = split.index.split
            axes.bar(left, counts / max(1, counts.sum()), width, color=_COLOURS[name], label=name)
        axes.set_xticks(range(10), [f"{low}-{low + 10}" for low in range(0, 100, 10)])
        axes.set_xlabel("share of the picture that is hole, per cent")
        axes.set_ylabel("share of the masks")

    return (
        verdict + _table(rows, numbers=True) + _figure(draw, "Hole ratios of train and val by buckets of ten per cent")
    )


def _photos(splits: Sequence[SplitStatistics]) -> str:
    looked = [sample for split in splits for sample in split.looked]
    if not looked:
        return ""

    def brightness(axes: "Axes") -> None:
        for split in splits:
            values = [sample.brightness for sample in split.looked]
            _steps(axes, split, values, np.linspace(0, 1, 26))
        axes.set_xlabel("mean brightness of a photo, 0 = black, 1 = white")
        axes.set_ylabel("share of the photos")

    text = f"<p>Of {len(looked):,} photos that were read.</p>"
    text += _figure(brightness, "Brightness of the photos of train and val")
    sides = {split: [min(s.width, s.height) for s in split.looked if s.width and s.height] for split in splits}
    known = np.array([side for values in sides.values() for side in values])
    if not len(known):
        return text + "<p>The shards do not say how large the photos were that they were made of.</p>"
    size = splits[0].index.size
    smaller = int((known < size).sum())
    text += (
        f"<p>Short sides of the photos that they were made of: {known.min():,} to {known.max():,} pixels, the median "
    )
    text += f"{int(np.median(known)):,}; {smaller:,} of {len(known):,} were smaller than {size}.</p>"

    def resolution(axes: "Axes") -> None:
        edges = np.geomspace(max(1, known.min()), known.max() + 1, 26)
        for split, values in sides.items():
            _steps(axes, split, values, edges)
        axes.set_xscale("log")
        axes.set_xlabel("short side of the source, pixels")
        axes.set_ylabel("share of the photos")
        ticks = sorted({round(edge) for edge in edges[::5]})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()

    return text + _figure(resolution, "Resolution of the sources of train and val")


def _copies(copies: Sequence[Copies], alike: Sequence[Alike] | str) -> str:
    leaks = [each for each in copies if each.leak]
    text = ""
    if leaks:
        text += _warning(
            f"{len(leaks):,} photos are in train and in val, byte for byte: scores on val will flatter; "
            "make_shards --drop-duplicates leaves them out."
        )
    if copies:
        listed = [" = ".join(each.names) for each in (*leaks, *(each for each in copies if not each.leak))]
        text += f"<p>{len(copies):,} photos are there more than once:</p>{_list(listed)}"
    else:
        text += "<p>No two photos are equal, byte for byte.</p>"
    if isinstance(alike, str):
        return text + f"<p>Whether photos of val look like one of train is not known: {escape(alike)}.</p>"
    return text + f"<p>{len(alike):,} photos of val look like one of train.</p>" + _list([str(each) for each in alike])


def _rejected(rejected: Sequence[Rejected] | None) -> str:
    if rejected is None:
        return f"<p>There is no {REJECTED_NAME} that would say it.</p>"
    if not rejected:
        return "<p>Nothing was left out.</p>"
    rows = [["what", "how many", "reason (of the first)", "such as"]]
    for each in rejected[:_LISTED]:
        rows.append([each.kind, f"{each.times:,}", each.reason[:_LETTERS], ", ".join(each.names)[:_LETTERS]])
    more = sum(each.times for each in rejected[_LISTED:])
    return _table(rows) + f"<p>and {more:,} more, for other reasons</p>" * (more > 0)


def _damaged(splits: Sequence[SplitStatistics]) -> str:
    found = Counter(reason for split in splits for reason in split.damaged)
    if not found:
        return ""
    say = f"{found.total():,} of the samples that were read are damaged; check_shards names all."
    return _warning(say) + _list(
        [f"{reason} ({times} times)" * (times > 1) or reason for reason, times in found.items()]
    )


def _sheet(split: SplitStatistics, count: int) -> str:
    readable = [sample.number for sample in split.looked if sample.ratios]
    if not readable:
        return ""
    wanted = min(count, len(readable))
    chosen = [readable[place * len(readable) // wanted] for place in range(wanted)]
    _, encoded = cv2.imencode(".jpg", draw_samples(split.index, chosen)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    name = split.index.split
    return f"<p>{name}: photo, mask, masked</p>{_image(encoded.tobytes(), 'jpeg', f'Samples of {name}')}"


def _settings(index: ShardIndex) -> str:
    if not isinstance(index.settings, Mapping):
        return f"<p>{escape(str(index.settings))}</p>"
    return _table([[name, _said(value)] for name, value in index.settings.items()])


# ------------------------------------------------------------------------------------------------ parts of it


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_said(each)}" for name, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Rows of cells, the first of which names the row; with `numbers` the others stand to the right."""
    kind = ' class="n"' if numbers else ""
    lines = (
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td{kind}>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _list(texts: Sequence[str]) -> str:
    shown = "".join(f"<li><code>{escape(text)}</code></li>" for text in islice(texts, _LISTED))
    more = f"<li>and {len(texts) - _LISTED:,} more</li>" if len(texts) > _LISTED else ""
    return f"<ul>{shown}{more}</ul>" if texts else ""


def _warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def _image(data: bytes, kind: str, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _steps(axes: "Axes", split: SplitStatistics, values: Sequence[int | float], edges: Any) -> None:
    counts, _ = np.histogram(values, edges)
    name = split.index.split
    axes.stairs(counts / max(1, counts.sum()), edges, color=_COLOURS[name], label=name, linewidth=2)


def _figure(draw: Callable[["Axes"], None], alt: str) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: a second, which --help must not wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    axes.legend(frameon=False)
    file = BytesIO()
    figure.savefig(file, format="png")
    return _image(file.getvalue(), "png", alt)
