"""A sheet of what shards hold: photo | mask | masked, and the histograms of the hole ratios of train and val."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.packed_masks import decode_packed_mask
from inpaint_dist.data.photos import Pixels, decode_photo
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import PHOTO_EXTENSION, SPLITS, ShardIndex, mask_extension
from inpaint_dist.errors import UsageError, UserError

_TILE = 192
_LABEL = 22
_GAP = 6
_ACROSS = 2  # samples side by side, three tiles each
_LARGEST_SAMPLE = 5000  # masks whose hole ratio is measured, of each split
_GREY = 127


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """Draw a contact sheet of shards."""

    shards: Path
    """The folder of shards."""
    out: Path = Path("sheet.png")
    """The picture to write."""
    count: int = 12
    """Samples to show, two thirds of them from train."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UsageError: naming the flag and what is allowed.
        """
        if not 1 <= self.count <= 300:
            raise UsageError(f"--count {self.count}: from 1 to 300")
        if self.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise UsageError(f"--out {self.out}: name a .png, .jpg or .webp file")


def show_shards(config: SheetConfig) -> list[str]:
    """Write the sheet; returns what to tell the user.

    Raises:
        UserError: the shards cannot be read, or the picture cannot be written.
    """
    indexes = {split: ShardIndex.load(config.shards, split) for split in SPLITS}
    indexes = {split: index for split, index in indexes.items() if len(index)}
    if not indexes:
        raise UserError(f"{config.shards} holds no sample")
    ratios = {split: hole_ratios(index) for split, index in indexes.items()}
    parts = [_draw_samples(index, chosen) for index, chosen in _choose(indexes, config.count)]
    parts.append(_histograms(ratios, width=parts[0].shape[1]))
    _, encoded = cv2.imencode(config.out.suffix.lower(), np.vstack(parts)[..., ::-1])
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_bytes(encoded.tobytes())
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror})") from None
    lines = [
        f"{split}: {len(index)} samples of {index.size}x{index.size}, mean hole {np.mean(ratios[split]):.1%}"
        for split, index in indexes.items()
    ]
    return [*lines, f"wrote {config.out}"]


def hole_ratios(index: ShardIndex) -> np.ndarray:
    """The share of hole of every mask of a split, or of 5,000 samples spread evenly over it; float (N,) in 0..1."""
    step = -(-len(index) // _LARGEST_SAMPLE)
    ratios: list[float] = []
    with ShardReader(index) as reader:
        for i in range(0, len(index), step):
            for k in range(index.mask_count(i)):
                bits, width = decode_packed_mask(reader.read(i, mask_extension(k)), index.keys[i])
                holes = np.unpackbits(bits, axis=1, count=width)
                ratios.append(float(holes.mean()))
    return np.array(ratios)


def _choose(indexes: dict[str, ShardIndex], count: int) -> list[tuple[ShardIndex, list[int]]]:
    """Samples spread evenly over each split."""
    share = {"train": -(-2 * count // 3), "val": count // 3} if len(indexes) == 2 else dict.fromkeys(indexes, count)
    chosen: list[tuple[ShardIndex, list[int]]] = []
    for split, index in indexes.items():
        wanted = min(share[split], len(index))
        if wanted:
            chosen.append((index, [number * len(index) // wanted for number in range(wanted)]))
    return chosen


def _draw_samples(index: ShardIndex, chosen: Sequence[int]) -> Pixels:
    """Photo | mask | masked of the chosen samples, two side by side; uint8 (H, W, 3) RGB."""
    with ShardReader(index) as reader:
        cells = [draw_sample(reader, i) for i in chosen]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % _ACROSS)
    rows = [np.hstack(cells[first : first + _ACROSS]) for first in range(0, len(cells), _ACROSS)]
    return np.vstack(rows)


def draw_sample(reader: ShardReader, i: int) -> Pixels:
    """One sample: photo | mask | masked under its key; (label + tile + gap, 3 * (tile + gap), 3)."""
    index = reader.index
    key = index.keys[i]
    photo = decode_photo(reader.read(i, PHOTO_EXTENSION), key)
    bits, width = decode_packed_mask(reader.read(i, mask_extension(0)), key)
    mask = np.unpackbits(bits, axis=1, count=width) * np.uint8(255)
    masked = np.where(mask[..., None] > 0, np.uint8(_GREY), photo)
    tiles = [photo, np.repeat(mask[..., None], 3, axis=2), masked]
    cell = np.full((_LABEL + _TILE + _GAP, len(tiles) * (_TILE + _GAP), 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        left = number * (_TILE + _GAP)
        smaller = tile.shape[0] > _TILE
        shown = cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
        cell[_LABEL : _LABEL + _TILE, left : left + _TILE] = shown
    more = f" +{index.mask_count(i) - 1} masks" if index.mask_count(i) > 1 else ""
    label = f"{index.split} {key}  {np.mean(mask > 0):.0%} hole{more}"
    cv2.putText(cell, label, (2, _LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _histograms(ratios: dict[str, np.ndarray], width: int) -> Pixels:
    """One histogram a split, side by side; uint8 (H, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: a second, which --help must not wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, 2.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (split, values) in enumerate(ratios.items(), 1):
        axes = figure.add_subplot(1, len(ratios), number)
        axes.hist(values, bins=20, range=(0, 1), color="#3b6ea5")
        axes.set_title(f"{split}: hole ratio of {len(values)} masks, mean {values.mean():.1%}", fontsize=9)
        axes.set_xlabel("share of the picture that is hole", fontsize=8)
        axes.set_ylabel("masks", fontsize=8)
        axes.tick_params(labelsize=8)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    sheet = np.full((drawn.shape[0], width, 3), 255, np.uint8)
    sheet[:, : drawn.shape[1]] = drawn[:, :width]
    return sheet
