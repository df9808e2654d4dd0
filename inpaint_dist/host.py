"""The machine under a process: its cores, files that are whole or not there, folders that one process writes to.

Standard library alone.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""What the name of a file ends in while it is written."""


def usable_cores() -> int:
    """Cores that this process may run on, which containers and schedulers make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_a_process() -> int:
    """The share of the usable cores of each process that the launcher started on this machine: at least 1."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def written_whole(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file gets its own when the block ends well, and goes when it raises.

    Args:
        path: the file that is to be; its folder is there already. An older one stays until the new one is whole.
        sync: bring the file and its name to the disk first, so that a power cut spoils neither.
    """
    part = path.with_name(f"{path.name}{PART}")
    try:
        yield part
        if sync:
            _sync(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # what is raised already says more
            part.unlink()
        raise
    if sync:
        with suppress(OSError):  # not every file system lets a folder be synced
            _sync(path.parent)


@contextmanager
def alone_in(folder: Path, taken: Exception) -> Iterator[None]:
    """Hold a lock on a folder; it goes with this process, however that ends, and leaves no file.

    Args:
        folder: it is there already.
        taken: what is raised where another process holds the lock.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


_held: set[int] = set()
"""Descriptors of the folders that are locked."""


def _let_go() -> None:
    """In a forked child: it would keep the lock for as long as it outlives its parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
