"""A folder of precomputed masks: OUT/000000.png …, masks.jsonl that lists them, settings.json that made them.

Mask i is a function of (family, size, seed, i) alone, whatever the workers. Every file is written under a temporary
name and renamed, masks.jsonl last: a folder without it is unfinished, and the same command finishes it.
"""

import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inpaint_dist.data.hole_histogram import HoleHistogram
from inpaint_dist.data.masks import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    check_hole_ratio,
    draw_within,
    find_family,
    mask_rng,
)
from inpaint_dist.data.packed_masks import encode_mask
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import PART, parse_json, written_whole

LISTING = "masks.jsonl"
SETTINGS = "settings.json"
MOST_MASKS = 1_000_000  # what six digits number
_CHUNK = 256  # masks that a worker draws at a time: well under a second's work
_LINE_EVERY = 30.0  # seconds between lines of progress where stderr is no terminal


@dataclass(frozen=True, kw_only=True)
class MaskSetConfig:
    """Which masks to draw, and where to."""

    out: Path
    """Folder for the masks; new, empty, or one that these same settings began."""
    count: int = 1000
    """How many masks."""
    size: int = 256
    """Width and height in pixels."""
    family: str = "lama-train"
    """Law of the holes: lama-train, lama-thin, lama-medium, lama-thick, mat-small, mat-large, deepfill or center. Or
    boxes, strokes or ellipses, also with one's own parameters, as ellipses:count=1-5,axis=20-90; objects:FOLDER of
    segmentations (white = object); or a mixture by weight, as 3*lama-train+1*objects:FOLDER."""
    seed: int = 0
    """Another seed gives other masks."""
    hole_ratio: tuple[float, float] | None = None
    """Smallest and largest share of the picture that may be hole, such as 0.1 0.5."""
    like: str | None = None
    """Masks, found as photos are (white = hole), of any size: holes are drawn as large as theirs and as often, by
    twentieths of the picture; of which shape, --family says."""
    workers: int = 0
    """Processes that draw; 0 and 1 draw in this one, which is quicker for a few thousand masks."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn, in the words of the flags."""
        if not 1 <= self.count <= MOST_MASKS:
            raise UsageError(f"--count {self.count} is out of range: give 1 to {MOST_MASKS}.")
        if not SMALLEST_SIDE <= self.size <= LARGEST_SIDE:
            raise UsageError(f"--size {self.size} is out of range: give {SMALLEST_SIDE} to {LARGEST_SIDE} pixels.")
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers} is negative: give 0 to draw in this process, or a number.")
        if self.like is not None and self.hole_ratio is not None:
            raise UsageError("--like and --hole-ratio: give one of the two.")
        try:
            find_family(self.family)
            check_hole_ratio(self.family, self.size, self.size, self.hole_ratio)
        except UserError as error:
            raise UsageError(str(error)) from None


class MaskRow(NamedTuple):
    """One line of masks.jsonl."""

    file: str
    """The mask's name in the folder."""
    family: str
    """The law that drew it."""
    hole_ratio: float
    """Share of the picture that is hole, to six digits."""
    adjusted: bool
    """True where no draw met --hole-ratio or --like, so that the nearest one's hole was grown or shrunk at its edge."""


@dataclass(frozen=True, kw_only=True)
class MaskSetReport:
    """What a folder of masks holds."""

    rows: tuple[MaskRow, ...]
    """The lines of masks.jsonl."""
    like: HoleHistogram | None = None
    """What they were to be like."""
    out_of_reach: int = 0
    """How many of those masks have holes that the family never has."""

    @property
    def mean(self) -> float:
        """Mean share of the picture that is hole."""
        return float(np.mean([row.hole_ratio for row in self.rows]))

    @property
    def adjusted(self) -> int:
        """How many masks were grown or shrunk to meet --hole-ratio or --like."""
        return sum(row.adjusted for row in self.rows)

    @property
    def histogram(self) -> tuple[int, ...]:
        """Masks whose hole ratio lies in [0, .1), [.1, .2) … [.9, 1]."""
        tenths = np.minimum([int(row.hole_ratio * 10) for row in self.rows], 9)
        return tuple(np.bincount(tenths, minlength=10).tolist())

    def lines(self) -> list[str]:
        """The histogram and the mean as lines to print."""
        counts = self.histogram
        longest, digits = max(counts), len(str(max(counts)))
        bars = [
            f"  0.{tenth}-{(tenth + 1) / 10:.1f}  {count:>{digits}}  {'#' * round(40 * count / longest)}".rstrip()
            for tenth, count in enumerate(counts)
        ]
        lines = ["hole ratio, masks", *bars, f"mean hole ratio {self.mean:.3f} of {len(self.rows)} masks"]
        if self.adjusted:
            lines.append(
                f"{self.adjusted} masks met {'--like' if self.like else '--hole-ratio'} in none of their draws: the "
                f"nearest one's hole was grown or shrunk at its edge ({LISTING} marks them as adjusted)"
            )
        if self.like:
            apart = HoleHistogram.of(row.hole_ratio for row in self.rows).distance(self.like)
            lines.append(
                f"{apart:.1%} of the holes are of another twentieth than those of the {len(self.like)} of --like"
            )
        if self.out_of_reach:
            lines.append(
                f"{self.out_of_reach} masks of --like have holes that this --family never has: none is like them"
            )
        return lines


def make_masks(config: MaskSetConfig) -> MaskSetReport:
    """Draw `config.count` masks into `config.out` and list them in masks.jsonl.

    The masks are 1-bit PNG whose rows use filter 0, 1 (white) = hole. The same settings give the same bytes, again and
    with any number of workers.

    Raises:
        UserError: the folder holds other masks or other files, or cannot be written; no mask of --like can be used,
            or none that the family can be like.
    """
    out = config.out
    asked = HoleHistogram.read(config.like) if config.like is not None else None
    like = _within_reach(config, asked) if asked is not None else None
    try:
        _claim(config, like)
        rows: list[MaskRow] = []
        with contextlib.closing(_chunks(config, like)) as chunks:
            for chunk in _with_progress(chunks, config.count):
                rows += chunk
        listing = "".join(json.dumps(row._asdict()) + "\n" for row in rows)
        _write(out / LISTING, listing.encode())
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}. Mend it, or give another OUT.") from error
    except BrokenProcessPool as error:
        raise UserError("A worker process died, perhaps for want of memory. Try fewer --workers.") from error
    return MaskSetReport(rows=tuple(rows), like=like, out_of_reach=len(asked or ()) - len(like or ()))


def _within_reach(config: MaskSetConfig, like: HoleHistogram) -> HoleHistogram:
    """The masks of --like that are not too large or too small for the family.

    Raises:
        UserError: all are.
    """
    out_of_reach: list[tuple[float, float]] = []
    for limits in like.ranges:
        try:
            check_hole_ratio(config.family, config.size, config.size, limits)
        except UserError as error:
            out_of_reach.append(limits)
            if len(out_of_reach) == len(like.ranges):
                raise UserError(f"--like {config.like}: {error}") from None
    return like.without(out_of_reach)


def _claim(config: MaskSetConfig, like: HoleHistogram | None) -> None:
    """Make the folder, or make sure that an old one is ours and of these settings."""
    out, wanted = config.out, _settings(config, like)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Give a folder for the masks.")
    out.mkdir(parents=True, exist_ok=True)
    found = _read_settings(out)
    if found is None:
        _write(out / SETTINGS, (json.dumps(wanted, indent=2) + "\n").encode())
        return
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        told = ", ".join(
            f"{key} (another version's)" if key == "law" else f"{key} {found.get(key)} (now {wanted[key]})"
            for key in differing
            if key != "law" or "family" not in differing
        )
        raise UserError(f"{out} holds masks made with other settings: {told}. Give another OUT, or delete it first.")


def _read_settings(out: Path) -> dict[str, Any] | None:
    """The settings that made the folder's masks; None where it is empty."""
    if not (out / SETTINGS).exists():
        left = f"{SETTINGS}{PART}"  # all that a run killed at its very start leaves
        others = sorted(entry.name for entry in out.iterdir() if entry.name != left and entry.name[0] != ".")
        if others:
            raise UserError(
                f"{out} is not empty and not a folder of make_masks: it holds {others[0]}. Give another OUT."
            )
        return None
    try:
        found = parse_json((out / SETTINGS).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{out / SETTINGS} cannot be read as settings of masks. Give another OUT, or delete {out} first."
        )
    return found


def _settings(config: MaskSetConfig, like: HoleHistogram | None) -> dict[str, Any]:
    """What decides the folder's bytes, as JSON reads it back: all but where it is and who draws."""
    settings = asdict(config) | {"law": repr(find_family(config.family)), "like": like.counts if like else None}
    return json.loads(json.dumps({key: value for key, value in settings.items() if key not in ("out", "workers")}))


def _chunks(config: MaskSetConfig, like: HoleHistogram | None) -> Generator[list[MaskRow], None, None]:
    """Draw and write all masks; their rows in order, a chunk at a time."""
    ranges = [range(start, min(start + _CHUNK, config.count)) for start in range(0, config.count, _CHUNK)]
    if config.workers <= 1:
        for indices in ranges:
            yield _write_masks(config, like, indices)
        return
    # Spawned, not forked: a fork beside other threads (OpenCV's, a notebook's) can hang. No pixels cross processes.
    pool = ProcessPoolExecutor(min(config.workers, len(ranges)), multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(partial(_write_masks, config, like), ranges)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_masks(config: MaskSetConfig, like: HoleHistogram | None, indices: range) -> list[MaskRow]:
    """Draw and write these masks."""
    rows: list[MaskRow] = []
    for index in indices:
        rng = mask_rng(config.family, config.size, config.seed, index)
        limits = like.choose(index, config.seed) if like else config.hole_ratio
        drawn = draw_within(config.family, config.size, config.size, rng, hole_ratio=limits)
        row = MaskRow(f"{index:06d}.png", config.family, round(drawn.hole_ratio, 6), drawn.adjusted)
        _write(config.out / row.file, encode_mask(drawn.mask))
        rows.append(row)
    return rows


def _write(path: Path, data: bytes) -> None:
    # Not synced, which would take 25 times as long: what a power cut spoils, the same command mends.
    with written_whole(path, sync=False) as part:
        part.write_bytes(data)


def _with_progress(chunks: Iterator[list[MaskRow]], count: int) -> Iterator[list[MaskRow]]:
    """Pass the chunks on; a bar on a terminal, else a line now and then."""
    from tqdm import tqdm  # late: who imports this module need not load it

    done, last_line = 0, time.monotonic()
    with tqdm(total=count, unit="mask", disable=None) as bar:
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            bar.update(len(chunk))
            if bar.disable and time.monotonic() - last_line > _LINE_EVERY:
                last_line = time.monotonic()
                sys.stderr.write(f"masks: {done} of {count}\n")
