"""Remote shards fetched ahead of the reading, in the order in which the steps will need them."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from inpaint_dist.data.shard_source import ShardInfo, ShardSource
from inpaint_dist.errors import UserError

_AT_ONCE = 4  # downloads of a process: one connection seldom fills the line
_FARTHEST = 100_000  # steps looked ahead, of a set that is all here
_POLL = 0.2  # seconds between two looks for what is to be done
_LOOK_AGAIN = 5.0  # seconds for which a copy that was here is taken to be here still
_BUSY = 0.5  # seconds after which a shard is tried again that another process fetches, or that had no room
_FAILED = 30.0  # seconds after which a shard is tried again that could not be had; who needs it now asks at once


class Prefetcher:
    """Threads that bring shards into the cache before they are read.

    What the coming steps need, as much of it as fits in three quarters of the cache, is fetched soonest first and kept
    there by this process. Nobody waits for these threads: who reads a shard that is not here yet fetches it himself, or
    waits for the download under way.

    Args:
        remote: where the shards are.
        shards: all of them.
        needs: step → the numbers of the shards that it reads, in the order of reading.
        start: the first step.
        stop: the step after the last one.
    """

    def __init__(
        self,
        remote: ShardSource,
        shards: Sequence[ShardInfo],
        needs: Callable[[int], Iterable[int]],
        start: int,
        stop: int,
    ) -> None:
        self.now = start
        """The step that is read now; whoever reads moves it on."""
        self.coming: dict[int, int] = {}
        """Shards that are needed from now on, soonest first, and the last step looked at that needs each."""
        self._remote, self._shards, self._needs = remote, shards, needs
        self._scanned, self._stop = start, stop
        whole = sum(shard.bytes for shard in shards)
        self._budget = whole if whole <= remote.limit else remote.limit * 3 // 4
        self._not_before: dict[int, float] = {}
        self._planning = threading.Lock()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True) for number in range(_AT_ONCE)
        ]

    def __enter__(self) -> "Prefetcher":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have the threads end; one that waits for a server is not waited for."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _work(self) -> None:
        while not self._ended.is_set():
            with self._planning:
                self._look_ahead()
                number, needed = self._choose(), {self._shards[number].sha256 for number in self.coming}
            if number is None:
                self._ended.wait(_POLL)
                continue
            try:
                pause = _LOOK_AGAIN if self._remote.fetch_ahead(self._shards[number], needed, self._ended) else _BUSY
            except UserError:  # said by who needs it, if it is so then
                pause = _FAILED
            self._not_before[number] = time.monotonic() + pause

    def _look_ahead(self) -> None:
        """Forget what is no longer needed, and see what the next steps need, up to the budget."""
        now = self.now
        self.coming = {number: last for number, last in self.coming.items() if last >= now}
        self._scanned = max(self._scanned, now)
        held = sum(self._shards[number].bytes for number in self.coming)
        end = min(self._stop, now + _FARTHEST)
        while self._scanned < end and held < self._budget:
            for number in self._needs(self._scanned):
                held += 0 if number in self.coming else self._shards[number].bytes
                self.coming[number] = self._scanned
            self._scanned += 1

    def _choose(self) -> int | None:
        """The soonest needed shard that is not here; it is left alone by the other threads from now on."""
        now = time.monotonic()
        for number in self.coming:
            if self._not_before.get(number, 0.0) > now:
                continue
            if self._remote.is_here(self._shards[number]):
                self._not_before[number] = now + _LOOK_AGAIN
                continue
            self._not_before[number] = float("inf")
            return number
        return None
