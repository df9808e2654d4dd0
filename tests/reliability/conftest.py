"""Runs of real processes that are signalled, stopped and killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from inpaint_dist.tracking import plots

ROOT = Path(__file__).parents[2]
LIMIT = 90.0
"""Seconds that anything may take on a busy machine."""


def until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert met


def is_alive(process: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Ranks:
    """A run of one or more processes."""

    run: Path
    out: Path
    processes: list[int]

    def said(self, rank: int = 0) -> str:
        """What a rank has printed so far."""
        path = self.out / f"rank-{rank}.txt"
        return path.read_text() if path.exists() else ""

    def until(self, text: str, rank: int = 0, times: int = 1) -> None:
        """Wait until a rank has said something, so often."""
        until(lambda: self.said(rank).count(text) >= times or self.codes() is not None)
        assert self.said(rank).count(text) >= times, self.said(rank)

    def send(self, number: int, *ranks: int) -> None:
        """Signal these ranks; without any, all of them."""
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank], number)

    def codes(self) -> list[int] | None:
        """The exit codes, when all have ended."""
        paths = [self.out / f"rank-{rank}.code" for rank in range(len(self.processes))]
        return [int(path.read_text()) for path in paths] if all(path.exists() for path in paths) else None

    def ended(self, seconds: float = LIMIT) -> list[int]:
        """Wait for the end of all; their exit codes."""
        until(lambda: self.codes() is not None, seconds)
        return self.codes() or []

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints; anything else in their folder is a failure."""
        names = sorted(path.name for path in (self.run / "checkpoints").glob("*"))
        assert all(name.startswith("step-") for name in names), names
        return [int(name.removeprefix("step-")) for name in names]


@dataclass
class Nursery:
    """Starts runs on the small shards, of processes that are warm already."""

    process: "subprocess.Popen[str]"
    shards: Path
    tiny: Sequence[str]
    started: list[Ranks] = field(default_factory=list)

    def start(self, run: Path, *flags: str, world: int = 1, code: str = "", **environment: str) -> Ranks:
        """Start a run of `world` ranks, each of which first runs `code`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        out = run.with_name(f"{run.name}-{len(self.started)}")
        out.mkdir(parents=True)
        words = ["unet", "--shards", str(self.shards), "--output-dir", str(run), *self.tiny, "--cpu"]
        words += ["--global-batch-size", "4", "--report-every", "1", "--workers", "0", *flags]
        asked = {"flags": words, "world": world, "port": free_port(), "out": str(out), "code": code}
        self.process.stdin.write(f"{json.dumps({**asked, 'environment': environment})}\n")
        self.process.stdin.flush()
        self.started.append(Ranks(run, out, json.loads(self.process.stdout.readline())))
        return self.started[-1]


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="session")
def warm(shards: Path, tiny: tuple[str, ...]) -> Iterator[Nursery]:
    """The process that forks ranks, started once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        yield Nursery(process, shards, tiny)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(LIMIT)


@pytest.fixture
def nursery(warm: Nursery) -> Iterator[Nursery]:
    """Starts runs; those still there at the test's end are killed."""
    yield warm
    for ranks in warm.started:
        for process in ranks.processes if ranks.codes() is None else []:
            if is_alive(process):
                os.kill(process, signal.SIGKILL)
        ranks.ended()
    warm.started.clear()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and pictures take most of the time of a run of a few steps."""
    for name in ("draw_losses", "draw_grid"):
        monkeypatch.setattr(plots, name, lambda *_, **__: None)
