"""Keeping a run going: `python -m inpaint_dist.supervise [flags] accelerate launch -m inpaint_dist.train unet …`.

The command is started again whenever it fails, as a whole and from outside, which needs no agreement of launchers; the
run goes on from its newest checkpoint. Signals are passed on, and launchers are given the time that a checkpoint takes.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from inpaint_dist import cli
from inpaint_dist.errors import EXIT_FAILURE, EXIT_PREEMPTED, EXIT_USAGE, UsageError
from inpaint_dist.host import is_running, process_state, signal_at_parents_end
from inpaint_dist.pulse import WATCHED, Place, read_places
from inpaint_dist.stopping import ASKING

PROG = "python -m inpaint_dist.supervise"
LAST_LINES = 15
LOOK_EVERY = 1.0
"""Seconds between two looks at processes."""
FAREWELL = 10.0
"""Seconds that processes may outlive their launcher before they are killed."""


@dataclass(frozen=True, kw_only=True)
class SuperviseConfig:
    """When a run is started again."""

    give_up_after: int = 3
    """Failures in a row at one and the same step after which it is not started again."""
    give_up_without_progress: int = 10
    """Failures in a row, at any steps, after which it is not, unless one came further than all before."""
    first_wait: float = 1.0
    """Seconds before it is started again; twice as long after each failure that came no further."""
    longest_wait: float = 60.0
    """Seconds at most."""
    when_preempted: Literal["stop", "relaunch"] = "stop"
    """What to do where somebody else's signal stopped the run (exit code 75). A signal to this process always stops."""
    shutdown_timeout: int = 600
    """Seconds that torchrun, and accelerate with several processes, wait after a signal before they kill."""

    stopped_timeout: float = 600.0
    """Seconds for which a process may be stopped (SIGSTOP) before it is killed, which no process can do for itself; 0:
    for ever."""

    def __post_init__(self) -> None:
        for name in ("give_up_after", "give_up_without_progress", "shutdown_timeout"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")
        for name in ("first_wait", "longest_wait", "stopped_timeout"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")


@dataclass(frozen=True)
class Ending:
    """How one start of the command ended."""

    code: int
    """The launcher's exit code; -N: ended by signal N."""
    places: list[Place]
    """Where its processes were."""
    lines: list[str]
    """What was printed last."""

    @property
    def kind(self) -> Literal["done", "preempted", "usage", "failed"]:
        """What it means."""
        codes = {place.code for place in self.places}
        if self.code == 0:
            return "done"
        if EXIT_USAGE in codes or self.code == EXIT_USAGE:
            return "usage"
        # One process alone also ends so when a launcher that has failed asks it to.
        if self.code == EXIT_PREEMPTED or (codes == {EXIT_PREEMPTED} and self.code != -signal.SIGKILL):
            return "preempted"
        return "failed"

    @property
    def step(self) -> int:
        """The furthest step that a process had begun; 0: none."""
        return max((place.step for place in self.places), default=0)

    def __str__(self) -> str:
        said = f"ended by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        where = f"in step {self.step:,}" if self.step else "before its first step"
        # A process that was killed, or met one of our own bugs, could not say how it ends.
        silent = [f"rank {place.rank} in {place.phase}" for place in self.places if place.code is None]
        told = [f"rank {place.rank} with {place.code}" for place in self.places if place.code]
        return f"{said} {where}" + (f" ({', '.join([*told, *silent])})" if told or silent else "")


@dataclass
class Patience:
    """How often a run has failed, and whether to go on."""

    config: SuperviseConfig
    failures: int = 0
    """In a row, none of which came further than all before."""
    here: int = 0
    """Of these, at the step of the last one."""
    step: int | None = None
    furthest: int = -1
    starts: int = field(default=1)

    def note(self, ending: Ending) -> str | None:
        """Count a failure; the reason to give up, if there is one."""
        step = ending.step
        self.here = self.here + 1 if step == self.step else 1
        self.failures = 1 if step > self.furthest else self.failures + 1
        self.step, self.furthest = step, max(step, self.furthest)
        if self.here >= self.config.give_up_after:
            return f"{self.here} failures in a row {f'in step {step:,}' if step else 'before the first step'}"
        if self.failures >= self.config.give_up_without_progress:
            return f"{self.failures} failures in a row, none of which came further than step {self.furthest:,}"
        return None

    @property
    def wait(self) -> float:
        """Seconds before the next start."""
        return min(self.config.longest_wait, self.config.first_wait * 2 ** (self.failures - 1))


class Supervisor:
    """Starts a command, passes signals on, and starts it again when it fails."""

    def __init__(self, config: SuperviseConfig, command: Sequence[str]) -> None:
        self.config, self.command = config, list(command)
        self._asked = threading.Event()
        self._number = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def run(self) -> int:
        """Until the command has done its work, or there is no point in going on; the exit code.

        Raises:
            UsageError: there is no such program.
        """
        for number in ASKING:
            signal.signal(number, self._pass_on)
        patience = Patience(self.config)
        while True:
            ending = self._start()
            if ending.step:  # it has replaced what there was: the next start goes on from it
                self.command = [word for word in self.command if word != "--overwrite"]
            if ending.kind in ("done", "usage"):
                return 0 if ending.kind == "done" else EXIT_USAGE
            if self._asked.is_set():
                return EXIT_PREEMPTED if ending.kind == "preempted" else 128 + self._number
            if ending.kind == "preempted":
                if self.config.when_preempted == "stop":
                    return EXIT_PREEMPTED
                _say("the run was preempted; it is started again (--when-preempted relaunch)")
                wait = self.config.first_wait
            else:
                if reason := patience.note(ending):
                    _say(f"giving up: {reason}; the last one: {ending}. It printed last:", *ending.lines)
                    return EXIT_FAILURE
                wait = patience.wait
                _say(f"{ending}; started again in {wait:g} s")
            if self._asked.wait(wait):
                return EXIT_PREEMPTED

    def _start(self) -> Ending:
        with tempfile.TemporaryDirectory(prefix="inpaint_dist-") as folder:
            self._folder, lines = Path(folder), deque[str](maxlen=LAST_LINES)
            try:
                process = subprocess.Popen(
                    self.command,
                    env=self._environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # a Ctrl-C reaches it once, through this process
                    preexec_fn=lambda: signal_at_parents_end(signal.SIGKILL),
                )
            except OSError as error:
                raise UsageError(f"{self.command[0]}: {error.strerror}") from None
            self._process = process
            if self._asked.is_set():  # between two starts
                self._send(self._number)
            readers = [
                threading.Thread(target=_tee, args=(source, sink.buffer, lines), daemon=True)
                for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
            ]
            for reader in readers:
                reader.start()
            code = self._watch(process)
            places = self._await_processes()
            for reader in readers:
                reader.join(FAREWELL)
            self._process = None
            return Ending(code, places, list(lines))

    def _watch(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for the launcher's end, and meanwhile kill what stays stopped."""
        since: dict[int, float] = {}
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK_EVERY)
            now = time.monotonic()
            stopped = [place for place in read_places(self._folder) if process_state(place.pid) == "T"]
            since = {place.pid: since.get(place.pid, now) for place in stopped}
            for place in stopped:
                if 0 < self.config.stopped_timeout < now - since[place.pid]:
                    _say(
                        f"rank {place.rank} in step {place.step:,} was stopped for too long (--stopped-timeout): killed"
                    )
                    with suppress(ProcessLookupError):
                        os.kill(place.pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        wanted = {
            "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
            "PET_SHUTDOWN_TIMEOUT": str(self.config.shutdown_timeout),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.config.shutdown_timeout),
        }
        return wanted | os.environ | {WATCHED: str(self._folder)}

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._number = number
        self._asked.set()
        self._send(number)

    def _send(self, number: int) -> None:
        """Signal the launcher, or, where there is a single process, that one: its launcher would pass nothing on."""
        if (process := self._process) is None:
            return
        places = read_places(self._folder)
        with suppress(ProcessLookupError):
            if len(places) == 1 and places[0].world == 1:
                os.kill(places[0].pid, number)
            else:
                os.killpg(process.pid, number)

    def _await_processes(self) -> list[Place]:
        """Wait until all have gone, who would hold the run's folder; kill those who stay."""
        deadline = time.monotonic() + FAREWELL
        while any(is_running(place.pid) for place in read_places(self._folder)):
            if time.monotonic() > deadline:
                for place in read_places(self._folder):
                    if is_running(place.pid):
                        with suppress(ProcessLookupError):
                            os.kill(place.pid, signal.SIGKILL)
            time.sleep(0.05)
        return read_places(self._folder)


def _tee(source: IO[bytes] | None, sink: IO[bytes], lines: deque[str]) -> None:
    """Pass on what a command prints, and keep its last lines."""
    for line in source or ():
        lines.append(line.decode(errors="replace").rstrip())
        with suppress(OSError):  # our own reader may have gone; the run goes on
            sink.write(line)
            sink.flush()


def _say(*lines: str) -> None:
    sys.stderr.write(f"supervise: {lines[0]}\n" + "".join(f"    {line}\n" for line in lines[1:]))
    sys.stderr.flush()


def parse(argv: Sequence[str]) -> tuple[SuperviseConfig, list[str]]:
    """Split flags of our own from the command after them, which begins with the first word that is none.

    Raises:
        UsageError: where there is no command.
    """
    end = 0
    while end < len(argv) and argv[end].startswith("-") and argv[end] != "--":
        end += 1 if "=" in argv[end] or argv[end] in ("-h", "--help") else 2
    config = cli.parse(
        SuperviseConfig,
        argv[:end],
        prog=f"{PROG} [flags] COMMAND",
        description="Run COMMAND (accelerate launch …, torchrun …), and again when it fails; pass signals on.",
    )
    command = [*argv[end + 1 :]] if argv[end : end + 1] == ["--"] else [*argv[end:]]
    if not command:
        example = shlex.join(["accelerate", "launch", "-m", "inpaint_dist.train", "unet"])
        raise UsageError(f"give the command to supervise: {PROG} {example}")
    return config, command


def main(argv: Sequence[str]) -> int:
    """Parse and supervise."""
    return Supervisor(*parse(argv)).run()


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
