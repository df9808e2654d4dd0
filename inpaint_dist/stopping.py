"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end a run after the step under way, with a checkpoint.

Python runs the handlers of signals in the main thread, between two of its own instructions, which may wait for long in
a network's step or for another rank. So the handlers here do next to nothing, and a thread decides: it notes the first
signal, and ends the process where that may not wait. Standard library alone: a process listens before the imports that
take seconds.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

from inpaint_dist.errors import EXIT_PREEMPTED, Preempted
from inpaint_dist.pulse import PULSE

ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""The signals that ask a run to stop."""
LAUNCHER_GONE = signal.SIGRTMIN + 3 if sys.platform == "linux" else 0
"""What the kernel sends where the launcher has ended, however it ended. No library of ours uses it."""
SAME = 1.0
"""Seconds in which a signal that comes again is the first one: a terminal or a scheduler sends it to all processes, and
the launcher passes it on."""
GRACE = 1.5
"""Seconds to end in order where nobody waits any longer: 2 after its launcher, a process must be gone."""

Stage = Literal["importing", "starting", "stepping", "leaving"]


class Stop:
    """Whether this process was asked to stop, and what that means at the moment.

    importing, starting: it ends at once, with `EXIT_PREEMPTED`; nothing was changed yet. stepping: it is noted, for the
    run to stop after a step; the same signal once more ends the process at once. leaving: all is saved, so any signal
    ends it at once.
    """

    def __init__(self) -> None:
        self.stage: Stage = "importing"
        self.asked_by: str | None = None
        """The name of the signal that asked first."""
        self._first: dict[bool, float] = {}  # when: of SIGUSR1, which is a notice, and of the others

    @property
    def launchers_end(self) -> int | None:
        """The signal to have sent when the launcher ends; None: SIGKILL.

        Launchers are themselves ended by signals that they should have passed on, so a process may then try to save.
        """
        return LAUNCHER_GONE if LAUNCHER_GONE and _listening is self else None

    def handle(self, number: int, _: FrameType | None) -> None:
        """In the main thread: leave by an exception where a signal ends the process at once."""
        if self.stage == "starting":
            raise Preempted(f"by {name_of(number)} before the first step")

    def receive(self, number: int) -> None:
        """In a thread of its own: note the first signal, act on others."""
        if self.stage == "importing":
            _say(f"stopped: by {name_of(number)} before the first step")
            _end()
        elif self.stage == "starting":
            _end_in(GRACE)  # the main thread leaves by its handler, if it comes to that
        elif number == LAUNCHER_GONE:
            self._lose_launcher()
        elif self.stage == "leaving":
            _end()
        else:
            self._receive_in_a_step(number)

    def _lose_launcher(self) -> None:
        if self.asked_by is None:
            self.asked_by = name_of(LAUNCHER_GONE)
            _end_in(GRACE)
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # torchrun waits for those whom it has asked, until it is asked a second time.
            in_haste = time.monotonic() - min(self._first.values(), default=0.0) > SAME
            _end_in(0.0 if in_haste else GRACE)
        # The launcher of one process never waits: its process was asked by somebody who is still there.

    def _receive_in_a_step(self, number: int) -> None:
        # A scheduler sends SIGUSR1 some time before SIGTERM, which is then no impatience.
        kind, now = number == getattr(signal, "SIGUSR1", None), time.monotonic()
        if kind in self._first:
            if now - self._first[kind] > SAME:
                _say(f"{name_of(number)} again: stopped at once; the same command goes on from the last checkpoint")
                os._exit(128 + number)
            return
        self._first[kind] = now
        if self.asked_by is None:
            self.asked_by = name_of(number)
            _say(f"{self.asked_by}: the run stops after this step, with a checkpoint; once more stops it at once")


def name_of(number: int) -> str:
    """SIGTERM for 15."""
    return "the end of its launcher" if number == LAUNCHER_GONE else signal.Signals(number).name


_listening: Stop | None = None


@contextmanager
def listening() -> Iterator[Stop]:
    """Listen to the signals until the block ends; outside the main thread, which alone may, nobody ever asks.

    A block inside another one listens with it.
    """
    global _listening
    if _listening is not None or threading.current_thread() is not threading.main_thread():
        yield _listening or Stop()
        return
    _listening = stop = Stop()
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = {number: signal.getsignal(number) for number in (*ASKING, LAUNCHER_GONE) if number}
    fd = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, stop.handle)
    thread = threading.Thread(target=_listen, args=(ears, stop, frozenset(before)), name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.stage = "leaving"
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)
        mouth.close()
        thread.join()
        ears.close()
        _listening = None


def _listen(ears: socket.socket, stop: Stop, numbers: frozenset[int]) -> None:
    while received := ears.recv(64):
        for number in received:
            if number in numbers:  # others have handlers too, as SIGCHLD
                stop.receive(number)


def _forget_in_a_fork() -> None:
    """A forked worker ends with its run, not by what a terminal or a scheduler sends to all: the run needs its data."""
    global _listening
    if _listening is not None:
        _listening = None
        signal.set_wakeup_fd(-1)  # it leads to the parent's ears
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_a_fork)


def _end_in(seconds: float) -> None:
    """End this process by then, wherever its main thread is: by a thread, else by the kernel.

    No thread of Python's runs while the interpreter is being taken down, or a library holds its lock.
    """
    timer = threading.Timer(seconds, _end)
    timer.daemon = True
    timer.start()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds + 0.1)


def _end() -> None:
    PULSE.end(EXIT_PREEMPTED)
    os._exit(EXIT_PREEMPTED)


def _say(text: str) -> None:
    """One line for the processes of a machine, past all buffers and locks."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):  # the terminal may be what has gone
            os.write(2, f"{text}\n".encode())
