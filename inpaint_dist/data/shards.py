"""Reading shards: the index of a folder of tars, which knows where any member of any sample lies.

A folder of shards holds plain webdataset tars (`train-000000.tar`, `val-000000.tar`, …) and `index.json`, which knows
where every member lies and its checksum; shards/README.md describes both. The index is the truth: a tar that was cut
short or changed is found by it, while a reader of the tar alone would end early without a word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from inpaint_dist.data.brace_pattern import brace_pattern
from inpaint_dist.data.packed_masks import decode_packed_mask, encode_mask
from inpaint_dist.data.shard_source import ShardInfo, ShardSource
from inpaint_dist.data.tar import ShardError
from inpaint_dist.errors import UserError
from inpaint_dist.host import parse_json

__all__ = [
    "FORMAT",
    "INDEX_NAME",
    "PHOTO_EXTENSION",
    "PHOTO_EXTENSIONS",
    "SPLITS",
    "UNFINISHED",
    "Member",
    "ShardError",
    "ShardIndex",
    "ShardInfo",
    "ShardSource",
    "decode_packed_mask",
    "encode_mask",
    "mask_extension",
    "shard_name",
]

FORMAT = 1
"""The version of the format that is written, and the newest that is read."""

INDEX_NAME = "index.json"
SPLITS = ("train", "val")
UNFINISHED = ".unfinished"
"""The folder in a folder of shards that is there until their making is done."""
PHOTO_EXTENSION = "jpg"
PHOTO_EXTENSIONS = (PHOTO_EXTENSION, "jpeg", "png", "webp", "bmp")
"""Those of shards that others made, in the order in which they are looked for."""
MAX_READ = 1 << 28
"""A member of more bytes is not read at once: no photo or mask has 256 MB."""
SHARD_NAME = re.compile(r"(train|val)-\d{6,}\.tar")
KEY = re.compile(r"[A-Za-z0-9_-]+")

_LARGEST_SIDE = 1 << 15
_MAKE = "make them with tools/make_shards.py, or name another folder by --shards"


class Columns(NamedTuple):
    """One kind of member over all samples: where its data lies in its shard; offset 0 = the sample has none."""

    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]


class Member(NamedTuple):
    """Where one member of one sample lies."""

    shard: int
    """Number of the shard in `ShardIndex.shards`."""
    offset: int
    """Byte of the shard at which the data begins."""
    size: int
    """Bytes of data."""
    crc32: int
    """Checksum of the data, as `zlib.crc32`."""


def mask_extension(k: int) -> str:
    """The extension of a sample's k-th mask: `mask.png`, `mask-1.png`, `mask-2.png`, …"""
    return f"mask-{k}.png" if k else "mask.png"


def shard_name(split: str, number: int) -> str:
    """The file name of a shard: `train-000000.tar`."""
    return f"{split}-{number:06d}.tar"


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """All samples of one split: their keys, and where their members lie. Light for millions: columns, not objects."""

    folder: Path
    """Where the shards are."""
    split: str
    """`train` or `val`."""
    size: int
    """Pixels of a side of photos and masks."""
    shards: tuple[ShardInfo, ...]
    """The tars of this split, in order."""
    keys: list[str]
    """The samples' keys, shard by shard in the order of the tars."""
    shard_of: npt.NDArray[np.int32] = field(repr=False)
    """The number of each sample's shard."""
    columns: Mapping[str, Columns] = field(repr=False)
    """Extension → where that member lies, by sample."""
    settings: Mapping[str, Any] = field(repr=False)
    """What shaped the shards: the settings of the tool, and a digest of its inputs."""
    foreign: bool = False
    """Made by others: members have no checksum, and photos and masks of any size are fitted as they are decoded."""
    remote: ShardSource | None = None
    """Where the shards are, if `folder` holds the index alone."""
    sets: tuple[int, ...] = ()
    """Shards of each of the sets that it was joined from, one after the other; none: it is one set."""

    @classmethod
    def load(cls, folder: Path, split: str) -> "ShardIndex":
        """Read the index of a folder; a split without samples gives an index of length 0.

        Raises:
            UserError: the folder or its index is missing, damaged, or of a newer format.
        """
        head, records = _read_index(Path(folder), split)
        path = Path(folder) / INDEX_NAME
        try:
            index = _assemble(cls, Path(folder), split, head, records)
            expected = head["splits"][split]["samples"]
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ShardError(f"{path} is damaged ({error}): make the shards again with tools/make_shards.py") from None
        if len(index) != expected:
            raise ShardError(f"{path} is damaged: it lists {len(index)} {split} samples of {expected}")
        return index

    def __len__(self) -> int:
        """How many samples the split holds."""
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over the shards' names and hashes: equal exactly where the split's bytes are."""
        return sha256("".join(f"{shard.name} {shard.sha256}\n" for shard in self.shards).encode()).hexdigest()

    def where(self, number: int) -> str:
        """Path or URL of a shard, to be shown."""
        name = self.shards[number].name
        return str(self.folder / name) if self.remote is None else f"{self.remote}/{name}"

    def extension(self, i: int) -> str:
        """The extension of sample i's photo."""
        if not self.foreign:
            return PHOTO_EXTENSION
        return next(name for name in PHOTO_EXTENSIONS if name in self.columns and self.columns[name].offset[i] > 0)

    def mask_count(self, i: int) -> int:
        """How many masks sample i has."""
        count = 0
        while (column := self.columns.get(mask_extension(count))) is not None and column.offset[i] > 0:
            count += 1
        return count

    def member(self, i: int, extension: str) -> Member:
        """Where a member of sample i lies.

        Raises:
            ShardError: the sample has no such member.
        """
        column = self.columns.get(extension)
        offset = 0 if column is None else column.offset.item(i)
        if column is None or offset <= 0:
            raise ShardError(f"{self.where(self.shard_of.item(i))}: {self.keys[i]} has no {extension}")
        return Member(shard=self.shard_of.item(i), offset=offset, size=column.size.item(i), crc32=column.crc32.item(i))

    def members(self, wanted: Sequence[tuple[int, str]]) -> list[Member]:
        """`member` of each sample and extension, looked up by columns.

        Raises:
            ShardError: a sample has no such member.
        """
        places: dict[str, list[int]] = {}
        for place, (_, extension) in enumerate(wanted):
            places.setdefault(extension, []).append(place)
        found: dict[int, Member] = {}
        for extension, here in places.items():
            samples = [wanted[place][0] for place in here]
            if (columns := self.columns.get(extension)) is None:
                self.member(samples[0], extension)  # raises
                continue
            fields = (column[samples].tolist() for column in (self.shard_of, *columns))
            found.update(zip(here, map(Member._make, zip(*fields, strict=True)), strict=True))
        if any(member.offset <= 0 for member in found.values()):
            return [self.member(*each) for each in wanted]  # raises
        return [found[place] for place in range(len(wanted))]


def _read_index(folder: Path, split: str) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The index without its shards, and the records of the split's shards, one at a time.

    The index has a line for each shard: parsed one by one, a million samples never stand in memory as Python objects,
    and those of another split are not parsed at all.
    """
    if split not in SPLITS:
        raise UserError(f"a split is {' or '.join(SPLITS)}, not {split!r}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards; {_MAKE}")
    path = folder / INDEX_NAME
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ShardError(f"{path} is no file")
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{folder} has no {INDEX_NAME}; {_without_index(folder, split)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path} cannot be read ({error})") from None
    try:
        head = parse_json("\n".join(line for line in lines if not line.startswith('{"name"')))
        version = int(head["format"])
    except (ValueError, KeyError, TypeError):
        raise ShardError(f"{path} is damaged: make the shards again with tools/make_shards.py") from None
    if version > FORMAT:
        raise UserError(f"{path} is of format {version}, and this version reads up to {FORMAT}: update inpaint_dist")
    start = f'{{"name":"{split}-'
    by_line = (parse_json(line.removesuffix(",")) for line in lines if line.startswith(start))
    if head.get("shards"):  # somebody laid the file out anew
        return head, (record for record in head["shards"] if str(record["name"]).startswith(f"{split}-"))
    return head, by_line


def _without_index(folder: Path, split: str) -> str:
    """What to do with a folder that has no index."""
    if (folder / UNFINISHED).is_dir():
        return "its making did not finish: run the same make_shards command again"
    tars = sorted(path.name for path in folder.glob("*.tar"))
    if not tars or split != "train":  # validation needs an index
        return _MAKE
    own = [name for name in tars if name.startswith(split)]
    pattern = brace_pattern(own or tars) or (f"{split}*.tar" if own else "*.tar")
    return f'its tars can be read by --shards "{folder / pattern}"'


def _assemble(
    cls: type[ShardIndex], folder: Path, split: str, head: dict[str, Any], records: Iterator[dict[str, Any]]
) -> ShardIndex:
    """Columns from the records of the shards; raises what makes no sense as KeyError, TypeError or ValueError."""
    shards: list[ShardInfo] = []
    keys: list[str] = []
    parts: dict[str, list[Columns]] = {}
    for record in records:
        info = ShardInfo(**{name: record[name] for name in ("name", "samples", "bytes", "sha256")})
        if not SHARD_NAME.fullmatch(info.name) or info.samples != len(record["keys"]):
            raise ValueError(f"the record of {info.name!r} makes no sense")
        if bad := next((key for key in record["keys"] if not KEY.fullmatch(key)), None):
            raise ValueError(f"{info.name}: {bad!r} is no key")
        missing_before = len(keys)
        for extension in {**parts, **record["members"]}:
            columns = _columns(record["members"].get(extension), info)
            parts.setdefault(extension, [absent(missing_before)] if missing_before else []).append(columns)
        shards.append(info)
        keys += record["keys"]
    if len(set(keys)) != len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"two samples have the key {twice}")
    if not 0 < (size := int(head["size"])) <= _LARGEST_SIDE:
        raise ValueError(f"{size} pixels a side")
    samples_of = [shard.samples for shard in shards]
    return cls(
        folder=folder,
        split=split,
        size=size,
        shards=tuple(shards),
        keys=keys,
        shard_of=np.repeat(np.arange(len(shards), dtype=np.int32), samples_of),
        columns={name: Columns(*map(np.concatenate, zip(*part, strict=True))) for name, part in parts.items()},
        settings=head["settings"],
    )


def _columns(member: dict[str, list[int]] | None, info: ShardInfo) -> Columns:
    if member is None:
        return absent(info.samples)
    columns = Columns(
        np.array(member["offset"], np.int64), np.array(member["size"], np.int64), np.array(member["crc32"], np.uint32)
    )
    return checked(columns, info)


def checked(columns: Columns, info: ShardInfo) -> Columns:
    """Look whether one kind of member lies within its shard.

    Raises:
        ValueError: saying what makes no sense.
    """
    if any(column.shape != (info.samples,) for column in columns):
        raise ValueError(f"{info.name}: its columns do not hold one number a sample")
    if not info.samples:
        return columns
    if min(columns.offset.min(), columns.size.min()) < 0 or (columns.offset + columns.size).max() > info.bytes:
        raise ValueError(f"{info.name}: a member lies outside the file")
    if columns.size.max() > MAX_READ:
        raise ValueError(f"{info.name}: a member has {columns.size.max()} bytes, more than {MAX_READ}")
    return columns


def absent(samples: int) -> Columns:
    """A kind of member that none of so many samples has."""
    return Columns(np.zeros(samples, np.int64), np.zeros(samples, np.int64), np.zeros(samples, np.uint32))
