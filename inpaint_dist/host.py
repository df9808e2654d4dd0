"""The machine under a process: the cores it may use, and files that are whole or not there. Standard library alone."""

import os
import shutil
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
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` to fill; it gets its name when the block ends well, and goes when it raises.

    Args:
        folder: the folder that is to be, which must not be there; its parent is.

    Raises:
        OSError: there is another one, such as a process killed while it wrote left behind, or it cannot be written.
    """
    part = folder.with_name(f"{folder.name}{PART}")
    part.mkdir()
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                _sync(path)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # what is raised already says more
        raise
    with suppress(OSError):
        _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
