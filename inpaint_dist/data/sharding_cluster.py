"""Making shards on the workers of an existing dask cluster, which see the same disk as this machine.

A worker that dies loses nothing: dask gives the shards that it was at to others, and those that it finished are known
by their records.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.samples import SampleMaker, SampleSettings
from inpaint_dist.data.sharding_state import ShardRecord
from inpaint_dist.data.sharding_workers import Job, make_shard
from inpaint_dist.data.source_table import Source
from inpaint_dist.errors import UserError

_PATIENCE = "30s"
_AHEAD = 2  # shards that wait for each of the cluster's threads


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What all shards are made by."""

    settings: SampleSettings
    masks: Sequence[Source]


def run_on_cluster(
    jobs: Sequence[Job],
    settings: SampleSettings,
    masks: Sequence[Source],
    scheduler: str,
    on_photos: Callable[[int], None],
) -> Iterator[str]:
    """Make shards on a cluster; yields the name of each as it is done.

    Args:
        jobs: the shards, their paths absolute.
        settings: what shapes a sample.
        masks: all masks; the jobs' items name them by number.
        scheduler: its address, as tcp://HOST:8786.
        on_photos: told now and then how many photos are done.

    Raises:
        UserError: dask is not installed, no scheduler answers, it has no worker, or workers died at one shard again and
            again.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise UserError("--executor dask: dask.distributed is missing; pip install 'inpaint-dist[cluster]'") from None
    try:
        client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler {scheduler}: no scheduler answers there ({_first_line(error)})") from None
    futures: set[Any] = set()
    with client:
        per_worker: Any = client.nthreads()  # its stubs know the asynchronous client alone
        threads = sum(per_worker.values())
        if not threads:
            raise UserError(f"--scheduler {scheduler}: has no workers; start some with `dask worker {scheduler}`")
        # A task, not data that is sent: when the worker that holds it dies, the scheduler makes it again.
        common = client.submit(_Common, settings=settings, masks=masks, pure=False)
        left, done = iter(jobs), 0

        def submit(count: int) -> set[Any]:
            new = {client.submit(_make_on_worker, job, common, pure=False) for job in islice(left, count)}
            futures.update(new)
            return new

        try:
            finished = as_completed(submit(_AHEAD * threads), loop=client.loop)
            for future in finished:
                name, photos = future.result()
                futures.discard(future)
                finished.update(submit(1))
                done += photos
                on_photos(done)
                yield name
        except KilledWorker as error:
            raise UserError(
                f"--scheduler {scheduler}: workers died at one shard again and again (out of memory?), the last was "
                f"{error.last_worker.address}; the same command goes on"
            ) from None
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"--scheduler {scheduler}: the cluster cannot run what it is sent; scheduler and workers need this "
                "inpaint_dist and this dask (--debug shows its error)"
            ) from error
        finally:  # an error, Ctrl-C, or the caller stopped asking
            with suppress(OSError, RuntimeError):
                client.cancel([*futures, common])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_own = threading.local()  # a worker's threads each have a maker, with their own open archives


def _make_on_worker(job: Job, common: _Common) -> tuple[str, int]:
    """Make one shard, unless another worker finished it and died before it could say so; its name and photos."""
    assert job.record is not None, "what others made is known by its record"
    there = ShardRecord.read(job.record)
    # What was uploaded is asked for anew: a worker may have died between the record and the upload.
    uploaded = job.upload is None or there is None or job.upload.sizes().get(job.path.name) == there.bytes
    if there is None or there.plan != job.plan or not uploaded:
        if getattr(_own, "plan", None) != job.plan:
            cv2.setNumThreads(1)  # one core is what one of dask's threads is
            _own.maker, _own.plan = SampleMaker(common.settings, common.masks), job.plan
        make_shard(job, _own.maker, lambda: None)
    return job.path.name, len(job.items)
