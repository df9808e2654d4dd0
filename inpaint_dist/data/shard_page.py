"""A page about shards, in one file that needs nothing else: what they hold, what was left out, what looks wrong."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.contact_sheet import draw_sample
from inpaint_dist.data.near_copies import Alike, find_near_copies
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.shard_figures import brightness_figure, bytes_figure, hole_figure, source_figure
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shard_statistics import Copies, Rejected, SplitStatistics, find_copies, look_at, read_rejected
from inpaint_dist.data.sharding_report import REJECTED_NAME
from inpaint_dist.data.shards import PHOTO_EXTENSION, SPLITS, ShardIndex
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import written_whole

_LISTED = 20  # names or reasons of a kind that the page shows
_LETTERS = 500  # of one of them
_STYLE = """
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
body { color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
td.n { font-variant-numeric: tabular-nums; } h1, code { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.figure { max-width: 42rem; margin: 1rem 0; }
.samples { display: flex; flex-wrap: wrap; gap: .5rem; } .samples img { flex: 0 1 35rem; min-width: 0; }
.warning { border-left: 4px solid #C2410C; padding-left: .8rem; }
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
    page = _page(config, splits, rejected, _copies(*find_copies(indexes)) + _alike(alike))
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
        return 'this was not asked for (--near-duplicates; it needs pip install -e ".[duplicates]")'
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
    copies: str,
) -> str:
    title = f"Shards: {escape(str(config.shards))}"
    sections = {
        "What they hold": _counts(splits),
        "Holes": _holes(splits),
        "Photos": _photos(splits),
        "Copies": copies,
        "Left out": _rejected(rejected),
        "Damaged": _damaged(splits),
        "Samples": "".join(_samples(split, config.count) for split in splits),
        "How they were made": _settings(splits),
    }
    body = "".join(f"<h2>{name}</h2>\n{text}\n" for name, text in sections.items() if text)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}</body></html>\n"
    )


def _counts(splits: Sequence[SplitStatistics]) -> str:
    columns = [_count(split) for split in splits]
    rows = [[cells[0][0], *(cell for _, cell in cells)] for cells in zip(*columns, strict=True)]
    read = " and ".join(f"{len(each.looked):,} of {len(each.index):,} {each.index.split} samples" for each in splits)
    text = f"<p>Holes, brightness and sources below are those of {read}, spread evenly.</p>"
    return _table(["", *(split.index.split for split in splits)], rows, numbers=True) + text


def _count(split: SplitStatistics) -> list[tuple[str, str]]:
    """What the index says of a split: names and values."""
    index, each = split.index, split.masks_of_each
    least, most = each.min(), each.max()
    return [
        ("samples", f"{len(index):,}"),
        ("shards", f"{len(index.shards):,}"),
        ("MB", f"{split.bytes / 1e6:,.1f}"),
        ("pixels of a side", f"{index.size:,}"),
        *_sizes("photo", split.photo_bytes),
        ("masks", f"{each.sum():,}"),
        ("masks of a photo", f"{least:,}" if least == most else f"{least:,} to {most:,}"),
        *_sizes("mask", split.mask_bytes),
    ]


def _sizes(what: str, sizes: NDArray[np.int64]) -> list[tuple[str, str]]:
    values = (f"{sizes.mean():,.0f}", f"{sizes.min():,}", f"{sizes.max():,}") if len(sizes) else ("", "", "")
    return [
        *zip((f"bytes of a {what}, mean", f"of the smallest {what}", f"of the largest {what}"), values, strict=True)
    ]


def _holes(splits: Sequence[SplitStatistics]) -> str:
    splits = [split for split in splits if len(split.ratios)]
    if not splits:
        return _warning("No sample that was read has a mask.")
    rows = list[list[str]]()
    for split in splits:
        ratios = split.ratios
        shares = (ratios.mean(), (ratios > 0.5).mean(), split.at_edge, (ratios == 0).mean())
        rows.append([split.index.split, f"{len(ratios):,}", *(f"{share:.1%}" for share in shares)])
    head = ["", "masks read", "mean hole", "more than half hole", "hole at the edge", "no hole"]
    picture = _figure(hole_figure(splits), "Hole ratios of train and val by buckets of ten per cent")
    return _polarity(splits) + _table(head, rows, numbers=True) + picture


def _polarity(splits: Sequence[SplitStatistics]) -> str:
    """Whether white looks like hole, of each split on its own: a few inverted masks of val are lost among train's."""
    large = [split.index.split for split in splits if split.ratios.mean() > 0.5]
    if not large:
        return "<p>Holes are white in the masks below, and the smaller part of the pictures, as is usual.</p>"
    settings = splits[0].index.settings
    how = "without" if isinstance(settings, Mapping) and settings.get("invert_masks") is True else "with"
    return _warning(
        f"More than half of the pictures of {' and of '.join(large)} is hole. If white is what is known in your masks, "
        f"make the shards again {how} --invert-masks."
    )


def _photos(splits: Sequence[SplitStatistics]) -> str:
    if not any(split.looked for split in splits):
        return ""
    text = _figure(brightness_figure(splits), "Mean brightness of the photos of train and val")
    known = np.concatenate([split.source_sides for split in splits])
    if not len(known):
        text += (
            "<p>The shards do not say how large the photos were that they were made of. How many bytes the files of "
            "their own photos have, of all of them:</p>"
        )
        return text + _figure(bytes_figure(splits), "Bytes of the photos of train and val")
    least, most, size = known.min(), known.max(), splits[0].index.size
    text += (
        f"<p>Short sides of the photos that they were made of: {least:,} to {most:,} pixels, the median "
        f"{int(np.median(known)):,}; {int((known < size).sum()):,} of {len(known):,} were smaller than {size}.</p>"
    )
    if least == most:  # nothing to draw
        return text
    return text + _figure(source_figure(splits), "Resolution of the sources of train and val")


def _copies(copies: Sequence[Copies], unread: int) -> str:
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
    elif not unread:
        text += "<p>No two photos are equal, byte for byte.</p>"
    if unread:
        text += _warning(
            f"{unread:,} photos have the size and checksum of another one, but cannot be read: whether they are copies "
            "is not known."
        )
    return text


def _alike(alike: Sequence[Alike] | str) -> str:
    if isinstance(alike, str):
        return f"<p>Whether photos of val look like one of train is not known: {escape(alike)}.</p>"
    if not alike:
        return "<p>No photo of val looks like one of train.</p>"
    return f"<p>{len(alike):,} photos of val look like one of train:</p>" + _list([str(each) for each in alike])


def _rejected(rejected: Sequence[Rejected] | None) -> str:
    if rejected is None:
        return f"<p>There is no {REJECTED_NAME} that would say it.</p>"
    if not rejected:
        return "<p>Nothing was left out.</p>"
    rows = list[list[str]]()
    for each in rejected[:_LISTED]:
        rows.append([each.kind, f"{each.times:,}", each.reason[:_LETTERS], ", ".join(each.names)[:_LETTERS]])
    more = sum(each.times for each in rejected[_LISTED:])
    table = _table(["what", "how many", "reason (of the first)", "such as"], rows)
    return table + f"<p>and {more:,} more, for other reasons</p>" * (more > 0)


def _damaged(splits: Sequence[SplitStatistics]) -> str:
    found = Counter(reason for split in splits for reason in split.damaged)
    if not found:
        return ""
    say = f"{found.total():,} of the samples that were read are damaged; check_shards names all."
    return _warning(say) + _list(
        [f"{reason} ({times} times)" * (times > 1) or reason for reason, times in found.items()]
    )


def _samples(split: SplitStatistics, count: int) -> str:
    readable = [sample.number for sample in split.looked if sample.ratios]
    if not readable:
        return ""
    wanted = min(count, len(readable))
    name = split.index.split
    pictures = list[str]()
    with ShardReader(split.index) as reader:
        for number in (readable[place * len(readable) // wanted] for place in range(wanted)):
            _, encoded = cv2.imencode(".jpg", draw_sample(reader, number)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
            pictures.append(_image(encoded.tobytes(), "jpeg", f"Sample of {name}: {split.index.keys[number]}"))
    return f'<p>{name}: photo, mask, masked</p><div class="samples">{"".join(pictures)}</div>'


def _settings(splits: Sequence[SplitStatistics]) -> str:
    settings = splits[0].index.settings
    rows = [[f"fingerprint of {split.index.split}", split.index.fingerprint] for split in splits]
    if not isinstance(settings, Mapping):
        return _table([], [*rows, ["settings", str(settings)]])
    return _table([], [*rows, *([str(name), _said(value)] for name, value in settings.items())])


# ------------------------------------------------------------------------------------------------ parts of it


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_said(each)}" for name, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Rows of cells, the first of which names the row, below names of the columns; `numbers` stand to the right."""
    kind = ' class="n"' if numbers else ""
    names = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name in head)
    lines = (
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    top = f"<tr>{names}</tr>" if head else ""
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'


def _list(texts: Sequence[str]) -> str:
    shown = "".join(f"<li><code>{escape(text)}</code></li>" for text in islice(texts, _LISTED))
    more = f"<li>and {len(texts) - _LISTED:,} more</li>" if len(texts) > _LISTED else ""
    return f"<ul>{shown}{more}</ul>" if texts else ""


def _warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def _image(data: bytes, kind: str, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _figure(png: bytes, alt: str) -> str:
    return f'<div class="figure">{_image(png, "png", alt)}</div>'
