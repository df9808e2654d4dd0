"""A run that stands still is ended, and the rank that stopped is named.

Two threads of each rank: one exchanges with the others where their main threads are, through the store at which they
met; one judges, since an exchange with a machine that is away may never return. A rank is quiet while its pulse does
not change, and silent while it tells nothing at all: it was stopped, or is gone. When all are quiet or silent for
longer than they may be, each prints its stacks and ends.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from inpaint_dist.errors import EXIT_FAILURE
from inpaint_dist.pulse import PULSE
from inpaint_dist.stopping import Stop

PHASES = ("start", "data", "step", "report", "draw", "evaluate", "save", "end")
"""In the order of a step."""
QUIET = 600.0
"""Seconds that a run may be quiet where nothing else is asked, or longer where it has been so before:"""
TIMES = 10.0
"""by so many times the longest quiet of this process after its first step."""
SILENT = 1.0
"""Seconds of silence, after what an exchange takes, that make a rank silent where the run stands still."""
GONE = 10.0
"""Seconds of silence after which a rank that was asked to stop no longer waits for another's agreement."""
LOGGED = 1.0
"""Seconds that a line in the log may take."""
_WAITING = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}torch{os.sep}autograd{os.sep}graph.py")


@dataclass
class Sign:
    """What a rank tells of itself."""

    rank: int
    pid: int
    host: str
    tick: int = 0
    """Grows for as long as the process lives."""
    step: int = 0
    phase: str = "start"
    quiet: float = 0.0
    """Seconds since its pulse changed, of those in which the process ran."""
    waits: bool = False
    """Whether its main thread is inside an exchange with the other ranks."""
    where: str = ""
    """The line of ours that its main thread is at."""
    left: bool = False
    """Whether it has left in order."""
    silent: float = 0.0
    """Seconds since the tick changed, as the reader counts them."""

    def stands_still(self, limit: float) -> bool:
        """Whether it is quiet or silent for that many seconds."""
        return self.quiet + self.silent >= limit

    @property
    def is_silent(self) -> bool:
        """Whether it tells nothing any more, rather than late."""
        return self.silent > SILENT


def culprits(signs: Mapping[int, Sign]) -> list[Sign]:
    """Who holds the others up: the silent, else of those who do not wait for others who is least far."""
    if silent := [sign for sign in signs.values() if sign.is_silent]:
        return silent
    busy = [sign for sign in signs.values() if not sign.waits] or [*signs.values()]
    first = min((sign.step, PHASES.index(sign.phase)) for sign in busy)
    return [sign for sign in busy if (sign.step, PHASES.index(sign.phase)) == first]


def describe(signs: Mapping[int, Sign], stood: float) -> str:
    """One line: for how long a run stands still, and because of whom."""
    named = [
        f"rank {sign.rank} on {sign.host} tells nothing any more, last in step {sign.step:,}, {sign.phase}: it was "
        "stopped, or its machine is away"
        if sign.is_silent
        else f"rank {sign.rank} on {sign.host} in step {sign.step:,}, {sign.phase}, at {sign.where}"
        for sign in culprits(signs)
    ]
    return (
        f"error: the run has stood still for {stood:.0f} s ({'; '.join(named)}); the stacks of each rank that could "
        "tell are above. --hang-timeout says how long it may"
    )


class Watch:
    """Watches this process, and with the others the run, until the block ends.

    Args:
        hang_timeout: seconds of quiet after the first step that are too long; None: `QUIET`, or `TIMES` the longest
            one so far; 0: no quiet is.
        start_timeout: the same before the end of the first step, where it is more.
        rank: this process's.
        world: processes of the run.
        stop: whether this process was asked to stop.

    Attributes:
        log: file of the run, once there is one, that is told of a standstill too.
    """

    def __init__(self, hang_timeout: float | None, start_timeout: float, *, rank: int, world: int, stop: Stop) -> None:
        self._asked, self._start, self._world, self._stop = hang_timeout, start_timeout, world, stop
        self._period = min(1.0, (hang_timeout or QUIET) / 10) * max(1.0, world / 64)
        self._mine = Sign(rank, os.getpid(), socket.gethostname())
        self._others: dict[int, Sign] = {}
        self._beats, self._first_step, self._longest = PULSE.beats, 0, 0.0
        self.log: Path | None = None
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._threads = [threading.Thread(target=self._judge, name="watch", daemon=True)]
        if world > 1:
            self._threads.append(threading.Thread(target=self._exchange, name="watch-others", daemon=True))

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(GONE)

    # ---------------------------------------------------------------- what is told

    def _exchange(self) -> None:
        """Tell the others where this rank is, and hear it of them."""
        with suppress(Exception):  # then this rank judges by itself alone; a run needs no watch to be right
            store = _open_store()
            keys = [_key(rank) for rank in range(self._world)]
            while not self._over.is_set():
                store.set(_key(self._mine.rank), json.dumps(asdict(self._mine)))
                heard = [Sign(**json.loads(value)) for value in store.multi_get(keys)]
                self._others = {sign.rank: sign for sign in heard if sign.rank != self._mine.rank}
                self._over.wait(self._period)
            store.set(_key(self._mine.rank), json.dumps(asdict(self._mine) | {"left": True}))

    # ---------------------------------------------------------------- what is judged

    def _judge(self) -> None:
        ticks: dict[int, tuple[int, float]] = {}  # rank → its last tick, and for how long that has been the last
        before = time.monotonic()
        while not self._over.wait(self._period):
            now = time.monotonic()
            passed, before = min(now - before, 2 * self._period), now  # a time in which we were stopped does not count
            self._look_at_myself(passed)
            signs = {self._mine.rank: self._mine}
            for rank, sign in sorted(self._others.items()):
                tick, silent = ticks.get(rank, (-1, 0.0))
                ticks[rank] = (sign.tick, 0.0 if sign.tick != tick else silent + passed)
                sign.silent = max(0.0, ticks[rank][1] - 3 * self._period)  # exchanges take their time
                signs[rank] = sign
            self._act_on(signs)

    def _look_at_myself(self, passed: float) -> None:
        mine, place = self._mine, PULSE.place
        if PULSE.beats != self._beats:
            if self._has_stepped:
                self._longest = max(self._longest, mine.quiet)
            self._beats, mine.quiet = PULSE.beats, 0.0
        else:
            mine.quiet += passed
        mine.tick += 1
        mine.step, mine.phase = place.step, place.phase
        self._first_step = self._first_step or place.step
        if mine.quiet > self._limit() / 2:
            mine.waits, mine.where = _look_at(sys._current_frames().get(self._main))

    @property
    def _has_stepped(self) -> bool:
        return self._first_step > 0 and PULSE.place.step > self._first_step

    def _limit(self) -> float:
        if self._asked == 0:
            return 0.0
        limit = self._asked or max(QUIET, TIMES * self._longest)
        return limit if self._has_stepped else max(limit, self._start)

    def _act_on(self, signs: Mapping[int, Sign]) -> None:
        present = {rank: sign for rank, sign in signs.items() if not sign.left}
        gone = [rank for rank, sign in signs.items() if sign.silent > GONE]
        if gone and self._stop.asked_by and self._stop.stage == "stepping":
            _write(
                f"error: rank {gone[0]} is gone, so the ranks cannot agree where to stop; the last checkpoint stays\n"
            )
            _end()
        limit = self._limit()
        if limit and all(sign.stands_still(limit) for sign in present.values()):
            stood = max(sign.quiet + sign.silent for sign in present.values())
            self._end_run(present, stood)

    def _end_run(self, signs: Mapping[int, Sign], stood: float) -> None:
        _write(f"rank {self._mine.rank} of {self._world}, in step {self._mine.step:,}, {self._mine.phase}:\n")
        with suppress(OSError, ValueError):
            faulthandler.dump_traceback(2, all_threads=True)
        time.sleep(3 * self._period)  # the first to end has the launcher end the others, who also have a stack to show
        speaking = [rank for rank, sign in signs.items() if not sign.is_silent]
        if self._mine.rank == min(speaking, default=self._mine.rank):
            _write(f"{describe(signs, stood)}\n")
            self._log(describe(signs, stood))
        for sign in signs.values():
            if sign.is_silent and sign.host == self._mine.host:
                _kill_sibling(sign.pid)
        _end()

    def _log(self, text: str) -> None:
        """Add a line to the run's log, unless its disk is what stands still."""

        def add(log: Path) -> None:
            with suppress(OSError), log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

        if self.log is not None:
            adding = threading.Thread(target=add, args=(self.log,), daemon=True)
            adding.start()
            adding.join(LOGGED)


def _key(rank: int) -> str:
    return f"inpaint_dist/watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _open_store() -> Any:
    """A connection of this thread's own to the store where the ranks met: another's waits would block it."""
    from torch import distributed

    where, forever = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(days=365)
    return distributed.TCPStore(*where, is_master=False, timeout=forever)  # pyright: ignore[reportPrivateImportUsage]


def _look_at(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread is in an exchange between ranks, and the line of ours that it is at."""
    waits = frame is not None and any(part in frame.f_code.co_filename for part in _WAITING)
    innermost = frame
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(Path(__file__).parent):
            return waits, f"{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    if innermost is None:
        return waits, "an unknown place"
    return waits, f"{Path(innermost.f_code.co_filename).name}:{innermost.f_lineno} in {innermost.f_code.co_name}"


def _kill_sibling(process: int) -> None:
    """End a process of our launcher, who would wait for it for long; of no other, should its number be another's."""
    with suppress(OSError, ValueError, IndexError):
        parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        if parent == os.getppid():
            os.kill(process, signal.SIGKILL)


def _write(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())


def _end() -> None:
    PULSE.end(EXIT_FAILURE)
    os._exit(EXIT_FAILURE)
