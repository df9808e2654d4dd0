"""What shards hold, in numbers: of all samples what the index knows, of some what they have to be read for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.packed_masks import decode_packed_mask
from inpaint_dist.data.photos import PhotoError, decode_photo
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import PHOTO_EXTENSION, Columns, ShardIndex, mask_extension
from inpaint_dist.errors import UserError
from inpaint_dist.host import parse_json

_LONGEST_SIDE = 1 << 24  # pixels; what claims more is nonsense, and would be all that a histogram shows


class Looked(NamedTuple):
    """What one sample was read for."""

    number: int
    """Its place in the split."""
    brightness: float
    """Mean of its photo, 0 = black to 1 = white."""
    width: int
    """Pixels of the photo that it was made of; 0: the shard does not say."""
    height: int
    ratios: tuple[float, ...]
    """The share of the picture that is hole, of each of its masks."""
    at_edge: tuple[bool, ...]
    """Whether a hole reaches the picture's edge, of each of its masks."""


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """Numbers of one split."""

    index: ShardIndex
    looked: tuple[Looked, ...]
    """Samples spread evenly over the split that were read."""
    damaged: tuple[str, ...]
    """What was wrong with those that could not be."""

    @property
    def bytes(self) -> int:
        """Of all tars."""
        return sum(shard.bytes for shard in self.index.shards)

    @property
    def photo_bytes(self) -> NDArray[np.int64]:
        """Of each photo's file: (photos), in the order of the samples."""
        return _sizes(self.index.columns[PHOTO_EXTENSION])

    @property
    def mask_bytes(self) -> NDArray[np.int64]:
        """Of each mask's file: (masks), first those that are a sample's first."""
        return np.concatenate([np.zeros(0, np.int64), *map(_sizes, self._mask_columns)])

    @property
    def masks_of_each(self) -> NDArray[np.int64]:
        """How many masks each sample has: (samples)."""
        counts = np.zeros(len(self.index), np.int64)
        for column in self._mask_columns:
            counts += column.offset > 0
        return counts

    @property
    def _mask_columns(self) -> list[Columns]:
        return [column for name, column in self.index.columns.items() if name.startswith("mask")]

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Shares of hole of all masks that were looked at: (masks)."""
        return np.array([ratio for sample in self.looked for ratio in sample.ratios])

    @property
    def at_edge(self) -> float:
        """Share of the masks looked at whose hole reaches the picture's edge."""
        return float(np.mean([reaches for sample in self.looked for reaches in sample.at_edge] or [0.0]))

    @property
    def source_sides(self) -> NDArray[np.int64]:
        """Short sides, in pixels, of the photos that the samples looked at were made of: (those that say it)."""
        return np.array([min(each.width, each.height) for each in self.looked if each.width], np.int64)


def _sizes(column: Columns) -> NDArray[np.int64]:
    """Bytes of the members of one kind that are there."""
    return column.size[column.offset > 0]


def look_at(index: ShardIndex, most: int, on_samples: Callable[[int], None]) -> SplitStatistics:
    """Read samples spread evenly over a split.

    Args:
        index: the split.
        most: samples that are read, at most.
        on_samples: told after each how many are done.
    """
    looked, damaged = list[Looked](), list[str]()
    chosen = [place * len(index) // most for place in range(most)] if len(index) > most else [*range(len(index))]
    with ShardReader(index) as reader:
        for done, number in enumerate(chosen, 1):
            try:
                looked.append(_look(reader, number))
            except UserError as error:
                damaged.append(str(error))
            on_samples(done)
    return SplitStatistics(index=index, looked=tuple(looked), damaged=tuple(damaged))


def _look(reader: ShardReader, number: int) -> Looked:
    index = reader.index
    name = f"{index.where(index.shard_of.item(number))}: {index.keys[number]}"
    photo = decode_photo(reader.read(number, PHOTO_EXTENSION), name)
    _check_sides(f"{name}.{PHOTO_EXTENSION}", photo.shape[0], photo.shape[1], index.size)
    ratios, at_edge = list[float](), list[bool]()
    for k in range(index.mask_count(number)):
        bits, width = decode_packed_mask(reader.read(number, mask_extension(k)), name)
        _check_sides(f"{name}.{mask_extension(k)}", bits.shape[0], width, index.size)
        hole = np.unpackbits(bits, axis=1, count=width)
        ratios.append(float(hole.mean()))
        at_edge.append(bool(hole[0].any() or hole[-1].any() or hole[:, 0].any() or hole[:, -1].any()))
    width, height = _source_sides(reader, number)
    return Looked(number, float(photo.mean()) / 255.0, width, height, tuple(ratios), tuple(at_edge))


def _check_sides(name: str, height: int, width: int, size: int) -> None:
    if (height, width) != (size, size):
        raise PhotoError(name, f"is {width}x{height}, not {size}x{size}")


def _source_sides(reader: ShardReader, number: int) -> tuple[int, int]:
    """Width and height of the photo that a sample was made of; 0 where it does not say."""
    columns = reader.index.columns.get("json")
    if columns is None or columns.offset[number] <= 0:
        return 0, 0
    try:
        about = parse_json(reader.read(number, "json"))
        width, height = int(about["width"]), int(about["height"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0, 0
    return (width, height) if min(width, height) > 0 and max(width, height) <= _LONGEST_SIDE else (0, 0)


class Copies(NamedTuple):
    """Photos whose files are equal, byte for byte."""

    names: tuple[str, ...]
    """Each as split and key."""
    leak: bool
    """Some are in train and some in val."""


def find_copies(indexes: list[ShardIndex]) -> tuple[list[Copies], int]:
    """All photos that are in the splits more than once.

    Size and checksum say which may be; their bytes decide.

    Returns:
        The copies, and how many photos may be some but cannot be read.
    """
    columns = [index.columns[PHOTO_EXTENSION] for index in indexes]
    prints = np.concatenate([column.size << 32 | column.crc32.astype(np.int64) for column in columns])
    order = np.argsort(prints, kind="stable")
    alike = np.concatenate([[False], prints[order][1:] == prints[order][:-1], [False]])
    order = order[alike[:-1] | alike[1:]]
    groups = np.split(order, np.flatnonzero(np.diff(prints[order])) + 1) if len(order) else []
    starts = np.cumsum([0, *map(len, indexes)])
    readers = [ShardReader(index) for index in indexes]
    found, unread = list[Copies](), 0
    for group in groups:
        places = [_locate(starts, int(sample)) for sample in group]
        by_bytes: dict[bytes, list[tuple[int, int]]] = {}
        for split, number in places:
            try:
                data = readers[split].read(number, PHOTO_EXTENSION)
            except UserError:
                unread += 1
            else:
                by_bytes.setdefault(data, []).append((split, number))
        for same in by_bytes.values():
            if len(same) > 1:
                names = tuple(f"{indexes[split].split} {indexes[split].keys[number]}" for split, number in same)
                found.append(Copies(names, leak=len({split for split, _ in same}) > 1))
    for reader in readers:
        reader.close()
    return found, unread


def _locate(starts: NDArray[np.int64], sample: int) -> tuple[int, int]:
    """Which of several lists, one after the other, an item is in, and its place there."""
    which = int(np.searchsorted(starts, sample, side="right")) - 1
    return which, sample - int(starts[which])


class Rejected(NamedTuple):
    """What make_shards left out for one reason."""

    kind: str
    """photo, mask or file."""
    reason: str
    """That of the first."""
    times: int
    names: tuple[str, ...]
    """The first few."""


def read_rejected(path: Path, names: int = 5) -> list[Rejected] | None:
    """What rejected.jsonl lists, by reason, the most frequent first; None where there is no such file.

    Reasons that differ in numbers alone, or in whose bytes a photo has, are one.

    Raises:
        UserError: a line of it is no record.
    """
    found: dict[tuple[str, str], Rejected] = {}
    try:
        lines = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
                kind = next(kind for kind in ("photo", "mask", "file") if kind in record)
                name, reason = str(record[kind]), str(record["reason"])
            except (ValueError, KeyError, TypeError, StopIteration):
                raise UserError(f"{path}: line {number} is no record of something left out; remove the line") from None
            same = (kind, "".join(letter for letter in reason.partition("same bytes as")[0] if not letter.isdigit()))
            before = found.get(same, Rejected(kind, reason, 0, ()))
            shown = (*before.names, name) if before.times < names else before.names
            found[same] = before._replace(times=before.times + 1, names=shown)
    return sorted(found.values(), key=lambda rejected: -rejected.times)
