"""The processes that make shards: each writes whole tars of its own and their records, and sends back no pixel."""

import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photos import PhotoError
from inpaint_dist.data.samples import Item, SampleMaker, SampleSettings
from inpaint_dist.data.shard_writer import ShardWriter, compact_json
from inpaint_dist.data.sharding_state import ShardRecord
from inpaint_dist.data.source_table import Source
from inpaint_dist.data.upload import Upload
from inpaint_dist.errors import UserError

GRACE = 20.0
"""Seconds that a worker has for the photo and the upload that it is at, once nobody wants its shard any more."""

_POLL_SECONDS = 0.2
_AHEAD = 2  # shards that wait for a process: a list of their photos is made only then


class Job(NamedTuple):
    """One shard to make."""

    path: Path
    items: list[Item]
    record: Path | None = None
    """Where its record is kept."""
    plan: str = ""
    """Hash of what it is made by."""
    upload: Upload | None = None
    """Where the shard is put, and nothing of it kept here but its record."""


class _Empty(Exception):
    """No sample went into the shard."""


class _Stopped(Exception):
    """The parent wants this shard no more."""


def make_shard(job: Job, maker: SampleMaker, on_photo: Callable[[], None]) -> ShardRecord:
    """Make one shard and keep its record; what `on_photo` raises after any photo leaves nothing behind.

    Raises:
        UserError: the disk is full or cannot be written, or the shard cannot be put where it should be.
    """
    rejected: list[tuple[str, str]] = []
    hashes: list[str] = []
    copied = enlarged = 0
    bad_before = set(maker.bad_masks)
    try:
        with ShardWriter(job.path) as writer:
            for item in job.items:
                try:
                    sample = maker.make(item)
                except PhotoError as error:
                    rejected.append((item.source.name, _reason(error, item)))
                else:
                    writer.add(item.key, sample.members)
                    hashes.append(sample.sha256)
                    copied, enlarged = copied + sample.copied, enlarged + sample.enlarged
                on_photo()
            if not len(writer):
                raise _Empty
        line = writer.record
    except _Empty:
        line = {"samples": 0, "bytes": 0, "sha256": ""}
    except OSError as error:
        raise UserError(f"{job.path} cannot be written ({error.strerror}); the same command goes on") from None
    record = ShardRecord(
        plan=job.plan,
        name=job.path.name,
        samples=line["samples"],
        bytes=line["bytes"],
        sha256=line["sha256"],
        rejected=rejected,
        bad_masks={name: reason for name, reason in maker.bad_masks.items() if name not in bad_before},
        hashes=hashes,
        copied=copied,
        enlarged=enlarged,
        line=compact_json(line) if line["samples"] else "",
    )
    if job.record is not None:
        record.write(job.record)
    if job.upload is not None and record.samples:
        job.upload.put(job.path)
        job.path.unlink(missing_ok=True)
    return record


def _reason(error: PhotoError, item: Item) -> str:
    return error.reason if error.name == item.source.name else str(error)


def run_jobs(
    jobs: Sequence[Job],
    settings: SampleSettings,
    masks: Sequence[Source],
    workers: int,
    on_photos: Callable[[int], None],
) -> Iterator[str]:
    """Make shards, in this process or in several; yields the name of each as it is done.

    Args:
        jobs: the shards; asked for one by one, as their turn comes.
        settings: what shapes a sample.
        masks: all masks; the jobs' items name them by number.
        workers: processes.
        on_photos: told now and then how many photos are done.
    """
    if min(workers, len(jobs)) <= 1:
        yield from _run_here(jobs, settings, masks, on_photos)
    else:
        yield from _run_in_processes(jobs, settings, masks, min(workers, len(jobs)), on_photos)


def _run_here(
    jobs: Sequence[Job], settings: SampleSettings, masks: Sequence[Source], on_photos: Callable[[int], None]
) -> Iterator[str]:
    maker, done = SampleMaker(settings, masks), 0

    def on_photo() -> None:
        nonlocal done
        done += 1
        on_photos(done)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one core is what one worker is
    try:
        for job in jobs:
            yield make_shard(job, maker, on_photo).name
    finally:
        cv2.setNumThreads(threads)
        maker.close()


def _run_in_processes(
    jobs: Sequence[Job],
    settings: SampleSettings,
    masks: Sequence[Source],
    workers: int,
    on_photos: Callable[[int], None],
) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
    counter, stop = context.Value("Q", 0), context.Event()
    arguments = (settings, masks, counter, stop)
    others = {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments)
    try:
        left = iter(jobs)
        with _deaf_to_ctrl_c():  # as are the processes that start here, from their first instruction on
            waiting = {pool.submit(_make_in_worker, job) for job in islice(left, workers + _AHEAD)}
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(_make_in_worker, job) for job in islice(left, len(done))}
            on_photos(counter.value)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); the same command goes on, perhaps with fewer --workers"
        ) from None
    finally:  # an error, Ctrl-C, or the caller stopped asking: the others end at their next photo
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        _end({*multiprocessing.active_children()} - others)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: set[multiprocessing.process.BaseProcess]) -> None:
    """Wait for processes to end; one that an upload holds up is stopped, which leaves no file half-written."""
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        worker.kill()
        worker.join()


_worker: tuple[SampleMaker, Callable[[], None]] | None = None  # set once in each worker process


def _start_worker(settings: SampleSettings, masks: Sequence[Source], counter: Any, stop: Any) -> None:
    global _worker  # how a process pool keeps state between jobs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, where masks are not inherited too
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)

    def on_photo() -> None:
        with counter.get_lock():
            counter.value += 1
        if stop.is_set():
            raise _Stopped

    _worker = SampleMaker(settings, masks), on_photo


def _make_in_worker(job: Job) -> str:
    assert _worker is not None
    return make_shard(job, *_worker).name


def _end_with_parent() -> None:
    """A pool's processes outlive a parent that was killed, and would go on writing beside its successor's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
