"""An index of tars that others made: one walk over their headers, kept beside them or in the user's cache.

With it they load like our own shards: exact epochs, exact resume. What it cannot give is checksums, which nobody has
taken when they were written: a photo that changed is found only where it no longer decodes.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_dist.data.foreign_tar import is_compressed, walk_foreign
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.remote import is_pipe, is_remote
from inpaint_dist.data.shards import (
    MAX_READ,
    PHOTO_EXTENSIONS,
    Columns,
    ShardError,
    ShardIndex,
    ShardInfo,
    absent,
    checked,
    mask_extension,
)
from inpaint_dist.errors import UserError
from inpaint_dist.host import alone_in, parse_json, written_whole

_HEAD = {"kind": "inpaint_dist index of shards of others", "version": 1}
_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)", re.DOTALL)  # webdataset's split: key, and extension from its first dot
_META = re.compile(r"__[^/]*__($|/)|(?:.*/)?\._")  # webdataset's own notes, and those of macOS
_MASK = re.compile(r"mask(-[1-9]\d?)?\.png")

Record = dict[str, Any]
"""One tar: name, bytes, mtime_ns, layout (a hash of its members' names and places), keys, members."""


def can_be_indexed(files: Sequence[str]) -> bool:
    """Whether places in these files are places in tars: none is compressed, remote or a command's output."""
    if any(is_remote(file) or is_pipe(file) for file in files):
        return False
    for file in files:
        try:
            with Path(file).open("rb") as opened:
                if is_compressed(opened.read(8)):
                    return False
        except OSError as error:
            raise ShardError(f"{file} cannot be opened ({error.strerror})") from None
    return True


def index_foreign(files: Sequence[str], size: int, *, masks: bool, keep: bool) -> ShardIndex:
    """The index of tars, in the order in which they are given: what was kept of it where they are unchanged, else new.

    Args:
        files: plain tars whose samples are photos, and masks where `masks` says so.
        size: pixels of a side that photos and masks are fitted to.
        masks: every sample must have a mask.
        keep: keep what is found beside the tars, or in the cache where that folder cannot be written.

    Raises:
        ShardError: a tar is damaged; names the file and the byte.
        UserError: a sample has no photo or no mask, or there is none.
    """
    paths = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100 - a link in the path is not followed
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(folder).as_posix() for path in paths]
    places = _places(folder, names)
    kept = next((records for place in places if (records := _read(place)) is not None), {})
    found = {name: _unchanged(folder / name, kept.get(name)) for name in names}
    new = [name for name, record in found.items() if record is None]
    if new:
        with Progress("index", len(new), "shard") as progress:
            for number, name in enumerate(new, 1):
                found[name] = scan(folder / name, name)
                progress.update(number)
    records = [record for record in found.values() if record is not None]
    index = _assemble(folder, records, size)
    if keep and (new or found.keys() != kept.keys()):
        _keep(places, records)
    _refuse_incomplete(index, masks=masks)
    return index


def scan(path: Path, name: str) -> Record:
    """Walk over one tar.

    Raises:
        ShardError: naming the file, and the byte at which it is damaged or makes no sense.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    layout = sha256()
    try:
        with path.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            for entry in walk_foreign(file):
                layout.update(f"{entry.name}\0{entry.offset}\0{entry.size}\n".encode("utf-8", "backslashreplace"))
                match = _NAME.fullmatch(entry.name)
                if match is None or _META.match(entry.name):
                    continue
                members = samples.setdefault(match[1], {})
                extension = match[2].lower()
                if extension in members:
                    raise ValueError(f"byte {entry.offset}: {entry.name} is there twice")
                if extension.endswith(("mask.png", *PHOTO_EXTENSIONS)) and entry.size > MAX_READ:
                    raise ValueError(f"byte {entry.offset}: {entry.name} has {entry.size} bytes, more than {MAX_READ}")
                members[extension] = (entry.offset, entry.size)
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ShardError(f"{path}: {error}") from None
    kinds: dict[str, dict[str, list[int]]] = {}
    for number, (key, members) in enumerate(samples.items()):
        used = _used(members)
        if not any(extension in PHOTO_EXTENSIONS for extension in used):
            listed = ", ".join(members)
            raise ShardError(f"{path}: sample {_shown(key)} has no photo among its members ({_shown(listed)})")
        for extension, (offset, size) in used.items():
            if extension not in kinds:
                kinds[extension] = {what: [0] * len(samples) for what in ("offset", "size")}
            kinds[extension]["offset"][number], kinds[extension]["size"][number] = offset, size
    about = {"name": name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "layout": layout.hexdigest()}
    return {**about, "keys": [_shown(key) for key in samples], "members": kinds}


def _used(members: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The members that training reads: a photo, and the masks by our own names for them."""
    photos = [name for name in PHOTO_EXTENSIONS if name in members][:1]
    used = {name: place for name, place in members.items() if name in photos or _MASK.fullmatch(name)}
    other = next((name for name in members if name.endswith("mask.png")), None)
    if other is not None and mask_extension(0) not in used:
        used[mask_extension(0)] = members[other]
    return used


def _shown(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _assemble(folder: Path, records: Sequence[Record], size: int) -> ShardIndex:
    infos = [
        ShardInfo(name=record["name"], samples=len(record["keys"]), bytes=record["bytes"], sha256=str(record["layout"]))
        for record in records
    ]
    names = dict.fromkeys(chain.from_iterable(record["members"] for record in records))
    parts = {
        name: [_columns(record["members"].get(name), info) for record, info in zip(records, infos, strict=True)]
        for name in names
    }
    return ShardIndex(
        folder=folder,
        split="train",
        size=size,
        shards=tuple(infos),
        keys=_keys(records),
        shard_of=np.repeat(np.arange(len(infos), dtype=np.int32), [info.samples for info in infos]),
        columns={name: Columns(*map(np.concatenate, zip(*part, strict=True))) for name, part in parts.items()},
        settings={},
        foreign=True,
    )


def _keys(records: Sequence[Record]) -> list[str]:
    """The samples' keys; with their shard's name before them where two shards share one."""
    keys = [key for record in records for key in record["keys"]]
    if len(set(keys)) == len(keys):
        return keys
    return [f"{record['name']}/{key}" for record in records for key in record["keys"]]


def _columns(member: dict[str, list[int]] | None, info: ShardInfo) -> Columns:
    if member is None:
        return absent(info.samples)
    offset, size = (np.array(member[what], np.int64) for what in ("offset", "size"))
    return checked(Columns(offset, size, np.zeros(info.samples, np.uint32)), info)


def _refuse_incomplete(index: ShardIndex, *, masks: bool) -> None:
    if not len(index):
        raise UserError(f"--shards {index.folder}: {len(index.shards)} shards without a sample")
    stored = index.columns.get(mask_extension(0))
    without = np.arange(len(index)) if stored is None else np.flatnonzero(stored.offset == 0)
    if masks and len(without):
        first = int(without[0])
        path = index.folder / index.shards[index.shard_of[first]].name
        others = f", nor have {len(without) - 1:,} others" if len(without) > 1 else ""
        raise UserError(
            f"{path}: sample {index.keys[first]} has no mask.png{others}; use --mask-source with a family of masks"
        )


# -------------------------------------------------------------------- what is kept


def _places(folder: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """Where the index of these tars is looked for, and kept: beside them, else in the user's cache."""
    text = "\n".join(names)
    beside = sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    anywhere = sha256(f"{folder}\n{text}".encode("utf-8", "backslashreplace")).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return folder / f".inpaint_dist-{beside}.json", Path(home) / "inpaint_dist" / f"shards-{anywhere}.json"


def _read(path: Path) -> dict[str, Record] | None:
    """What was kept, by name; None where there is nothing, or nothing that makes sense."""
    try:
        lines = path.read_text("utf-8").splitlines()
        if parse_json(lines[0]) != _HEAD:
            return None
        records = [_sensible(parse_json(line)) for line in lines[1:]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        return None
    return {record["name"]: record for record in records}


def _sensible(record: Record) -> Record:
    """The record, once its places lie within the tar it says it is of; else an error of many kinds."""
    known = record.keys() == {"name", "bytes", "mtime_ns", "layout", "keys", "members"}
    keys = record["keys"]
    texts = all(isinstance(text, str) and text.isprintable() for text in (record["name"], record["layout"], *keys))
    if not known or not texts or not all(type(record[name]) is int for name in ("bytes", "mtime_ns")):
        raise ValueError
    info = ShardInfo(name=record["name"], samples=len(keys), bytes=record["bytes"], sha256=record["layout"])
    columns = {name: _columns(member, info) for name, member in record["members"].items()}
    if not all(name in PHOTO_EXTENSIONS or _MASK.fullmatch(name) for name in columns):
        raise ValueError
    photos = [columns[name].offset > 0 for name in PHOTO_EXTENSIONS if name in columns]
    if keys and not np.logical_or.reduce(photos).all():
        raise ValueError
    return record


def _unchanged(path: Path, record: Record | None) -> Record | None:
    """What was kept of a tar, where it still has that size and that time of its last change."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ShardError(f"{path} cannot be opened ({error.strerror})") from None
    same = record is not None and (stat.st_size, stat.st_mtime_ns) == (record["bytes"], record["mtime_ns"])
    return record if same else None


def _keep(places: Sequence[Path], records: Sequence[Record]) -> None:
    """Write the index to the first place that takes it; where none does it is made anew at the next start."""
    for path in places:
        with suppress(OSError, UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Alone in the folder: of two runs that start together one writes, and both have what they need.
            with alone_in(path.parent, UserError("another process writes it")), written_whole(path, sync=False) as part:
                part.write_text("".join(_lines(records)), "utf-8")
            return


def _lines(records: Sequence[Record]) -> Iterator[str]:
    for plain in (_HEAD, *records):
        yield f"{json.dumps(plain, separators=(',', ':'))}\n"
