"""Shards that lie on another machine, through a folder of copies on this one that never outgrows its limit.

Any number of processes share the folder and nothing but the folder: what one of them does the others see by files,
their times and their locks, which go with a process however it ends.

    SHA256.tar          a shard, whole: its size and hash were compared with the index. A process that reads it holds a
                        shared lock on it meanwhile, and one with a lock is not removed. The time of the last change is
                        the time of the last use.
    SHA256.tar.part     a shard on its way, of its full size from the start so that the space counts as taken. Who
                        downloads it holds an exclusive lock on it; one without a lock was left by a process that died.
    set-HASH/index.json what a URL's index was, when it was last asked for; seen.json is the version of it.
    .room               locked while somebody makes room.
"""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path

from inpaint_dist.data.remote import PATIENCE, Patience, RemoteError, blocks, opened, refuse_cut, shown_folder, tried
from inpaint_dist.data.shards import INDEX_NAME, ShardInfo
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import PART, sync_to_disk, written_whole

GB = 10**9
_SEEN = "seen.json"
_POLL = 0.05  # seconds between two looks at what another process is doing
_USED = 5.0  # seconds to which the time of a shard's last use is exact
_LARGEST_INDEX = 8 * GB
_FLAGS = os.O_RDWR | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class RemoteShards:
    """A remote folder of shards, read through a cache. It holds nothing open: any process may have its own."""

    url: str = field(repr=False)
    """The folder."""
    cache: Path
    """Where copies are kept."""
    limit: int
    """Bytes of tars in the cache, over all sets and processes."""
    salt: int = 0
    """A number of this process's own, by which it waits otherwise than those of other machines."""
    patience: Patience = field(default_factory=lambda: PATIENCE)
    """With the server."""

    def __str__(self) -> str:
        """The URL, without its secrets."""
        return shown_folder(self.url)

    @property
    def folder(self) -> Path:
        """Where the index is kept: the same one whatever the password or the token."""
        return self.cache / f"set-{sha256(str(self).replace('***@', '').encode()).hexdigest()[:16]}"

    # ---------------------------------------------------------------- the index

    def refresh_index(self) -> list[str]:
        """Bring the index here, unless the one that is here is the newest. Of several processes one downloads it.

        Returns:
            What the user should know.

        Raises:
            RemoteError: it cannot be had, and there is none from before.
            UserError: the cache cannot be written.
        """
        path = self.folder / INDEX_NAME
        with _writing(self.cache):
            self.folder.mkdir(parents=True, exist_ok=True)
            while (descriptor := _claimed(path.with_name(f"{INDEX_NAME}.lock"))) is None:
                time.sleep(_POLL)
        try:
            tried(lambda: self._ask_for_index(path), self.patience, self.salt)
        except RemoteError as error:
            if not error.passing or not path.exists():
                raise
            return [f"note: {error}; the index of an earlier run is used"]
        finally:
            path.with_name(f"{INDEX_NAME}{PART}").unlink(missing_ok=True)
            os.close(descriptor)
        return []

    def forget_index(self) -> None:
        """Have the index fetched anew at the next start."""
        (self.folder / _SEEN).unlink(missing_ok=True)

    def _ask_for_index(self, path: Path) -> None:
        name, part = f"{self}/{INDEX_NAME}", path.with_name(f"{INDEX_NAME}{PART}")  # the lock is ours, so is the part
        seen = _read_seen(path.with_name(_SEEN)) if path.exists() else None
        with _writing(self.cache), part.open("wb") as file:
            with opened(self.url, INDEX_NAME, self.patience.timeout, unless=seen) as answer:
                if answer is None:
                    return
                size = 0
                for block in blocks(answer, self.patience.timeout):
                    if not size and not block.startswith(b"{"):
                        raise RemoteError(f"{name}: is no index of shards; name the folder that has one")
                    with _writing(self.cache):
                        size += file.write(block)
                    if size > _LARGEST_INDEX:
                        raise RemoteError(f"{name}: has no end")
                refuse_cut(name, size, answer.length)
                if not size:
                    raise RemoteError(f"{name}: is empty", passing=True)
            self.forget_index()
            file.flush()
            sync_to_disk(part)
            part.replace(path)
            with written_whole(path.with_name(_SEEN)) as part:
                part.write_text(json.dumps(dict(answer.seen)), "utf-8")

    # ---------------------------------------------------------------- the shards

    def open(self, info: ShardInfo, stop: threading.Event | None = None) -> int:
        """A descriptor of a shard's copy, which nobody removes before it is closed; fetched where there is none.

        Raises:
            RemoteError: it cannot be had, or `stop` was set while it was waited for.
            UserError: the cache cannot be written.
        """
        while True:
            for attempt in (self._open_copy, lambda info: self._fetched(info, stop)):
                if (descriptor := attempt(info)) is not None:
                    return descriptor
            if stop is None:
                time.sleep(_POLL)
            elif stop.wait(_POLL):
                raise RemoteError("stopped while waiting for a shard")

    def fetch_ahead(self, info: ShardInfo, needed: Collection[str], stop: threading.Event) -> bool:
        """Bring a shard here, unless that means to remove one of `needed` (hashes), or another process is at it.

        Returns:
            Whether it is here now.

        Raises:
            RemoteError: it cannot be had, or `stop` was set.
            UserError: the cache cannot be written.
        """
        if self.is_here(info):
            return True
        descriptor = self._fetched(info, stop, needed)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def is_here(self, info: ShardInfo) -> bool:
        """Whether there is a copy; if so it counts as used now."""
        try:
            os.utime(self._path(info))
        except OSError:
            return False
        return True

    def removed_as_damaged(self, info: ShardInfo) -> bool:
        """Look whether a copy is still what was downloaded; remove it if not. Whether it is worth another try."""
        path = self._path(info)
        with suppress(FileNotFoundError):
            with path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() == info.sha256:
                    return False
            path.unlink(missing_ok=True)
        return True

    def refuse_too_large(self, shards: Collection[ShardInfo]) -> None:
        """Look whether the cache can hold any shard at all.

        Raises:
            UsageError: it cannot.
        """
        largest = max(shards, key=lambda shard: shard.bytes, default=None)
        if largest is not None and largest.bytes > self.limit:
            raise UsageError(
                f"--shard-cache-gb {self.limit / GB:g}: {self}/{largest.name} alone has {largest.bytes / GB:.3g} GB; "
                "give more"
            )

    def _path(self, info: ShardInfo) -> Path:
        return self.cache / f"{info.sha256}.tar"

    def _open_copy(self, info: ShardInfo) -> int | None:
        path = self._path(info)
        try:
            descriptor = os.open(path, _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{path} cannot be opened ({error.strerror}); name another folder by --shard-cache"
            ) from None
        good = False
        try:
            if _locks(descriptor, fcntl.LOCK_SH):
                stat = os.fstat(descriptor)
                good = stat.st_nlink > 0 and stat.st_size == info.bytes
                if good and time.time() - stat.st_mtime > _USED:
                    os.utime(descriptor)
                elif stat.st_nlink and not good:
                    path.unlink(missing_ok=True)  # somebody cut it
        finally:
            if not good:
                os.close(descriptor)
        return descriptor if good else None

    def _fetched(
        self, info: ShardInfo, stop: threading.Event | None = None, needed: Collection[str] = ()
    ) -> int | None:
        """Download a shard; None where another process does so, has done so, or there is no room now."""
        path = self._path(info)
        part = path.with_name(f"{path.name}{PART}")
        with _writing(self.cache):
            descriptor = _claimed(part)
        if descriptor is None:
            return None
        try:
            # While the part is ours nobody else makes a copy.
            if path.exists() or not self._makes_room(descriptor, part, info.bytes, needed):
                part.unlink()
                os.close(descriptor)
                return None
            number = int(info.sha256[:15], 16)
            tried(lambda: self._download(info, descriptor, stop), self.patience, number, self.salt, stop=stop)
            with _writing(self.cache):
                os.fsync(descriptor)
                part.rename(path)  # still locked: until it has its name nobody may take it for ours or for nobody's
                sync_to_disk(self.cache)
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        if _locks(descriptor, fcntl.LOCK_SH):  # in place of the exclusive one
            return descriptor
        os.close(descriptor)
        return None

    def _download(self, info: ShardInfo, descriptor: int, stop: threading.Event | None) -> None:
        name, digest, came = f"{self}/{info.name}", sha256(), 0
        with opened(self.url, info.name, self.patience.timeout) as answer:
            if answer is None:
                raise RemoteError(f"{name}: no answer", passing=True)
            if answer.length not in (None, info.bytes):
                raise _changed(name, f"has {answer.length} bytes, the index says {info.bytes}")
            for block in blocks(answer, self.patience.timeout, stop):
                digest.update(block)
                if came + len(block) > info.bytes:
                    raise _changed(name, f"has more than the {info.bytes} bytes that the index says")
                with _writing(self.cache):
                    _write(descriptor, block, came)
                came += len(block)
        refuse_cut(name, came, info.bytes)
        if digest.hexdigest() != info.sha256:
            raise _changed(name, "its sha256 is not the one in the index")

    # ---------------------------------------------------------------- room

    def _makes_room(self, descriptor: int, part: Path, size: int, needed: Collection[str]) -> bool:
        """Remove what was used longest ago until so many bytes fit, and take them for a part; whether they fit."""
        with _writing(self.cache), _alone(self.cache / ".room"):
            tars = sorted(_files(self.cache, ".tar"), key=lambda found: found[1].st_mtime_ns)
            held = sum(stat.st_size for _, stat in tars)
            for path, stat in _files(self.cache, f".tar{PART}"):
                if path != part and not _removed(path):
                    held += stat.st_size
            for path, stat in tars:
                if held + size <= self.limit:
                    break
                if path.stem not in needed and _removed(path):
                    held -= stat.st_size
            if held + size > self.limit:
                return False
            os.truncate(descriptor, size)
            return True


def _changed(name: str, what: str) -> RemoteError:
    cure = "the shards there were changed after their index, or are being uploaded: upload both again"
    return RemoteError(f"{name}: {what}; if it stays so, {cure}", passing=True)


def _read_seen(path: Path) -> dict[str, str] | None:
    try:
        seen = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return seen if isinstance(seen, dict) and all(isinstance(value, str) for value in seen.values()) else None


def _write(descriptor: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Say what is wrong with the cache, where it is the cache that fails."""
    try:
        yield
    except OSError as error:
        cure = "give it less by --shard-cache-gb, or name" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name"
        raise UserError(f"--shard-cache {cache}: {error.strerror or error}; {cure} another folder") from None


# -------------------------------------------------------------------- locks


def _locks(descriptor: int, kind: int) -> bool:
    """Lock an open file, or find that somebody else holds it.

    Raises:
        UserError: the file system knows no locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"--shard-cache: its file system has no locks ({error.strerror}); name a local folder"
        ) from None
    return True


def _claimed(path: Path) -> int | None:
    """Make a file, or open it, and lock it for us alone; None where somebody has it."""
    descriptor, ours = os.open(path, _FLAGS | os.O_CREAT, 0o644), False
    try:
        with suppress(FileNotFoundError):  # whoever had it has given it its name, or removed it
            ours = _locks(descriptor, fcntl.LOCK_EX) and os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        if not ours:
            os.close(descriptor)
    return descriptor if ours else None


def _removed(path: Path) -> bool:
    """Remove a file unless somebody holds a lock on it."""
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return True
    try:
        if not _locks(descriptor, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, _FLAGS | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for milliseconds: waited for
        yield
    finally:
        os.close(descriptor)


def _files(folder: Path, ending: str) -> list[tuple[Path, os.stat_result]]:
    found: list[tuple[Path, os.stat_result]] = []
    for path in folder.iterdir():
        if path.name.endswith(ending):
            with suppress(FileNotFoundError):
                found.append((path, path.stat()))
    return found
