"""Reading every sample of a folder of shards back, here or on another machine, against its index and checksums."""

import os
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from inpaint_dist.data.near_copies import Alike, find_near_copies
from inpaint_dist.data.packed_masks import decode_packed_mask
from inpaint_dist.data.photos import PhotoError, decode_photo
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.remote import PATIENCE, RemoteError, download, is_remote, redacted
from inpaint_dist.data.shards import INDEX_NAME, PHOTO_EXTENSION, SHARD_NAME, SPLITS, ShardError, ShardIndex
from inpaint_dist.data.tar import Entry, walk
from inpaint_dist.errors import UsageError
from inpaint_dist.host import parse_json, usable_cores

_JSON_KEYS = {"source", "width", "height", "sha256"}


class Fault(NamedTuple):
    """Something that is not as it should be."""

    shard: str
    """The file's name."""
    key: str
    """The sample's key; empty where the fault is the whole file's."""
    problem: str
    """What is wrong."""

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Check a folder of shards."""

    shards: str
    """The folder of shards, of this machine or, as a URL, of another one: each shard is brought here once, and goes."""
    allow_remote: bool = False
    """Let SHARDS be a URL: to open one may run code of the library that knows it."""
    fast: bool = False
    """Only sizes, headers and the index: no photo, mask or checksum is read."""
    near_duplicates: bool = False
    """List photos of val that look like one of train, by a perceptual hash of each (they are no faults); needs
    pip install 'inpaint-dist[duplicates]'."""

    def __post_init__(self) -> None:
        """Refuse what a URL does not allow."""
        if not is_remote(self.shards):
            return
        if not self.allow_remote:
            raise UsageError(f"{redacted(self.shards)}: add --allow-remote to read from there")
        if self.fast or self.near_duplicates:
            flag = "--fast" if self.fast else "--near-duplicates"
            raise UsageError(f"{flag}: is for folders of this machine, not for {redacted(self.shards)}")


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What check_shards found."""

    samples: int
    """Samples that the index lists."""
    shards: int
    """Tars that it lists."""
    faults: tuple[Fault, ...]
    """Everything that is wrong."""
    fast: bool
    """Nothing was read but headers."""
    alike: tuple[Alike, ...] | None = None
    """Photos of val that look like one of train; None where nobody looked."""

    def lines(self) -> list[str]:
        """The report in words: a line a fault, and the sum."""
        how = "by their headers alone" if self.fast else "byte for byte"
        found = f"{len(self.faults)} faults" if self.faults else "no fault"
        lines = [*map(str, self.faults), f"{self.samples} samples in {self.shards} shards read {how}: {found}"]
        if self.alike is not None:
            lines += [*map(str, self.alike), f"{len(self.alike)} photos of val look like one of train"]
        return lines


def check_shards(config: CheckConfig) -> CheckReport:
    """`verify` with progress and a report.

    Raises:
        UserError: the folder does not exist or has no index.
    """
    if is_remote(config.shards):
        with tempfile.TemporaryDirectory() as folder:
            with (Path(folder) / INDEX_NAME).open("wb") as file:
                download(config.shards, file, PATIENCE, member=INDEX_NAME)
            return _checked(Path(folder), config, config.shards)
    return _checked(Path(config.shards), config)


def _checked(folder: Path, config: CheckConfig, url: str | None = None) -> CheckReport:
    counts = [0, 0]
    try:
        indexes = [ShardIndex.load(folder, split) for split in SPLITS]
        counts = [sum(map(len, indexes)), sum(len(index.shards) for index in indexes)]
    except ShardError:  # a fault, which `verify` lists
        pass
    with Progress("check", counts[0], "sample") as progress:
        faults = verify(folder, fast=config.fast, on_samples=progress.update, url=url)
    alike = None
    if config.near_duplicates and not faults:
        with Progress("near duplicates", counts[0], "photo") as progress:
            alike = tuple(find_near_copies(folder, progress.update))
    return CheckReport(samples=counts[0], shards=counts[1], faults=tuple(faults), fast=config.fast, alike=alike)


def verify(
    folder: Path, fast: bool = False, on_samples: Callable[[int], None] | None = None, url: str | None = None
) -> list[Fault]:
    """Every fault of a folder of shards.

    Args:
        folder: the shards.
        fast: read the tars' headers alone: finds files that are missing, cut short or rewritten, no flipped byte.
        on_samples: told now and then how many samples are done.
        url: where the tars are, if `folder` holds the index alone.

    Raises:
        UserError: the folder does not exist, has no index or one of a newer format.
    """
    try:
        indexes = [ShardIndex.load(folder, split) for split in SPLITS]
    except ShardError as error:
        return [Fault(INDEX_NAME, "", str(error))]
    done, lock = 0, threading.Lock()

    def count(samples: int) -> None:
        nonlocal done
        with lock:
            done += samples
            if on_samples is not None:
                on_samples(done)

    faults = [fault for index in indexes for fault in _unlisted(index)]
    jobs = [(index, number) for index in indexes for number in range(len(index.shards))]
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:  # decoders and hashes let go of Python's lock
        for found in pool.map(lambda job: _check_shard(*job, fast=fast, count=count, url=url), jobs):
            faults += found
    return faults


def _unlisted(index: ShardIndex) -> Iterator[Fault]:
    known = {shard.name for shard in index.shards}
    for path in sorted(index.folder.glob(f"{index.split}-*.tar")):
        if SHARD_NAME.fullmatch(path.name) and path.name not in known:
            yield Fault(path.name, "", "the index does not list it")


@contextmanager
def _opened(index: ShardIndex, number: int, url: str | None) -> Iterator[BufferedReader]:
    """A shard's file, or a copy of it that goes with the block."""
    name = index.shards[number].name
    if url is None:
        with (index.folder / name).open("rb") as file:
            yield file
        return
    try:
        with (index.folder / name).open("wb") as copy:
            download(url, copy, PATIENCE, number, member=name)
        with (index.folder / name).open("rb") as file:
            yield file
    finally:
        (index.folder / name).unlink(missing_ok=True)


def _check_shard(
    index: ShardIndex, number: int, *, fast: bool, count: Callable[[int], None], url: str | None
) -> list[Fault]:
    info = index.shards[number]
    first = sum(shard.samples for shard in index.shards[:number])
    samples = range(first, first + info.samples)
    try:
        with _opened(index, number, url) as file:
            faults = _check_layout(index, number, samples, file)
            if fast:
                count(info.samples)
                return faults
            for i in samples:
                faults += _check_sample(index, i, file)
                count(1)
            if not faults and file_digest(_rewound(file), "sha256").hexdigest() != info.sha256:
                faults.append(Fault(info.name, "", "its sha256 is not the index's, though every sample is whole"))
    except FileNotFoundError:
        return [Fault(info.name, "", f"is missing, with {info.samples} samples")]
    except RemoteError as error:
        return [Fault(info.name, "", f"cannot be had, with {info.samples} samples ({error})")]
    except OSError as error:
        return [Fault(info.name, "", f"cannot be read ({error.strerror})")]
    return faults


def _check_layout(index: ShardIndex, number: int, samples: range, file: BufferedReader) -> list[Fault]:
    """Compare the tar's own headers with the index."""
    info = index.shards[number]
    expected = _expected(index, samples)
    faults: list[Fault] = []
    size = os.fstat(file.fileno()).st_size
    if size != info.bytes:
        faults.append(Fault(info.name, "", f"has {size} bytes, the index says {info.bytes}"))
    entries: list[Entry] = []
    try:
        entries.extend(walk(file))
    except ValueError as error:
        at = entries[-1].offset if entries else -1
        key = next((_key(entry) for entry in expected if entry.offset > at), "")
        return [*faults, Fault(info.name, key, f"the tar ends being one here: {error}")]
    for name, times in Counter(entry.name for entry in entries).items():
        if times > 1:
            faults.append(Fault(info.name, name.partition(".")[0], f"{name} is there {times} times"))
    there, wanted = set(entries), set(expected)
    for entry in sorted(wanted - there, key=lambda entry: entry.offset):
        faults.append(
            Fault(info.name, _key(entry), f"the tar has no {entry.name} of {entry.size} bytes at {entry.offset}")
        )
    for entry in sorted(there - wanted, key=lambda entry: entry.offset):
        faults.append(
            Fault(info.name, _key(entry), f"the index has no {entry.name} of {entry.size} bytes at {entry.offset}")
        )
    return faults


def _expected(index: ShardIndex, samples: range) -> list[Entry]:
    """The members of a shard as the index has them, in the order of the file."""
    entries = [
        Entry(f"{index.keys[i]}.{extension}", int(column.offset[i]), int(column.size[i]))
        for i in samples
        for extension, column in index.columns.items()
        if column.offset[i] > 0
    ]
    return sorted(entries, key=lambda entry: entry.offset)


def _check_sample(index: ShardIndex, i: int, file: BufferedReader) -> list[Fault]:
    """Read one sample by the index: checksums first, then whether each member is what it should be."""
    shard, key = index.shards[index.shard_of[i]].name, index.keys[i]
    faults: list[Fault] = []
    extensions = [extension for extension, column in index.columns.items() if column.offset[i] > 0]
    for needed in (PHOTO_EXTENSION, "mask.png", "json"):
        if needed not in extensions:
            faults.append(Fault(shard, key, f"{key}.{needed} is not in the index"))
    for extension in extensions:
        member = index.member(i, extension)
        data = os.pread(file.fileno(), member.size, member.offset)
        if len(data) < member.size:
            problem = f"is cut short ({len(data)} of {member.size} bytes)"
        elif zlib.crc32(data) != member.crc32:
            problem = "has changed: its checksum does not fit"
        else:
            problem = _content_problem(extension, data, index.size)
        if problem:
            faults.append(Fault(shard, key, f"{key}.{extension} {problem}"))
    return faults


def _content_problem(extension: str, data: bytes, size: int) -> str | None:
    """What is wrong with a member whose bytes are those that were written."""
    try:
        if extension == "json":
            missing = _JSON_KEYS - set(parse_json(data))
            return f"lacks {', '.join(sorted(missing))}" if missing else None
        if extension == PHOTO_EXTENSION:
            height, width = decode_photo(data, extension).shape[:2]
        else:
            bits, width = decode_packed_mask(data, extension)
            height = bits.shape[0]
            if not bits.any():
                return "has no hole"
    except PhotoError as error:
        return f"does not decode ({error.reason})"
    except (ValueError, TypeError):
        return "is no JSON object"
    return None if (height, width) == (size, size) else f"is {width}x{height}, not {size}x{size}"


def _key(entry: Entry) -> str:
    return entry.name.partition(".")[0]


def _rewound(file: BufferedReader) -> BufferedReader:
    file.seek(0)
    return file
