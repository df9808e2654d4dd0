"""The machine under a process: its cores and packages, files that are whole or not there, folders of one writer.

Standard library alone.
"""

import ctypes
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

PART = ".part"
"""What the name of a file ends in while it is written."""


def usable_cores() -> int:
    """Cores that this process may use, which containers and schedulers make fewer than the machine has: at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas())]))


GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux shows its control groups, and which of them a process is in."""


def _quotas() -> list[float]:
    """Cores' worth of time that each control group around this process may take, of those that have a limit."""
    found: list[float] = []
    with suppress(OSError, ValueError):  # no Linux, or hidden from us
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = GROUPS / "cpu" if controllers else GROUPS  # version 1 has a tree for each controller
            inside = Path(path.lstrip("/"))
            for folder in (root / inside, *(root / parent for parent in inside.parents)):
                with suppress(OSError, ValueError):
                    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
                    quota, period = " ".join((folder / name).read_text() for name in names).split()
                    if int(quota) > 0:  # else -1, or "max", which is no number
                        found.append(int(quota) / int(period))
    return found


def cores_a_process() -> int:
    """The share of the usable cores of each process that the launcher started on this machine: at least 1."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version and those of the packages that are installed.

    By the names of the registry, whose metadata is read: nothing is imported, so that none that is broken fails here.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@contextmanager
def written_whole(path: Path, *, sync: bool = True, apart: bool = False) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file gets its own when the block ends well, and goes when it raises.

    Args:
        path: the file that is to be; its folder is there already. An older one stays until the new one is whole.
        sync: bring the file and its name to the disk first, so that a power cut spoils neither.
        apart: give a name that no other process gives, where several may write the same file at once.
    """
    part = path.with_name(f"{path.name}.{uuid4().hex[:12]}{PART}" if apart else f"{path.name}{PART}")
    try:
        yield part
        if sync:
            sync_to_disk(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # what is raised already says more
            part.unlink()
        raise
    if sync:
        with suppress(OSError):  # not every file system lets a folder be synced
            sync_to_disk(path.parent)


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
                sync_to_disk(path)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # what is raised already says more
        raise
    with suppress(OSError):
        sync_to_disk(folder.parent)


@contextmanager
def alone_in(folder: Path, taken: Exception, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder; it goes with this process, however that ends, and leaves no file.

    Args:
        folder: it is there already.
        taken: what is raised where another process holds the lock.
        shared: others that share may be there at the same time, but nobody who wants to be alone.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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


def sync_to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_PR_SET_PDEATHSIG = 1


def signal_at_parents_end(number: int) -> None:
    """Have the kernel send a signal when the thread that started this process ends; 0: none. Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def process_state(process: int) -> str:
    """What Linux says of a process: R running, S sleeping, T stopped, Z ended and not yet asked for …; "": gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(process: int) -> bool:
    """Whether a process is there and has not ended, as far as this system tells."""
    return process_state(process) not in ("", "Z")


def parse_json(text: str | bytes | bytearray) -> Any:
    """What json.loads gives; nesting too deep for Python is nonsense like any other.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
