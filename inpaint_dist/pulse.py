"""Where this process is: its step, what it does there, and how it ended. Read by its own watch and by `supervise`.

Standard library alone.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

WATCHED = "INPAINT_DIST_WATCHED"
"""The environment variable by which `supervise` names the folder where each process says where it is."""
_LENGTH = 256  # bytes of a file that is overwritten in place


@dataclass
class Place:
    """Where a process is."""

    pid: int
    rank: int = 0
    world: int = 1
    step: int = 0
    """The step under way, counted from 1; 0 before the first."""
    phase: str = "start"
    """What it does: start, data, step, report, draw, evaluate, save, end."""
    code: int | None = None
    """Its exit code, once it is about to end."""


class Pulse:
    """This process's place, and how often it was told: who stands still does not tell."""

    def __init__(self) -> None:
        self.beats = 0
        self.place = Place(os.getpid())
        self._file: int | None = None

    def begin(self) -> None:
        """Start anew, as the rank that the launcher named, and under supervision say so in its file."""
        rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        self.place = Place(os.getpid(), rank, world)
        if self._file is None and (folder := os.environ.get(WATCHED)):
            with suppress(OSError):  # a run goes on without its supervisor's knowing
                self._file = os.open(Path(folder) / f"{os.getpid()}.json", os.O_WRONLY | os.O_CREAT, 0o600)
        self._tell()

    def enter(self, phase: str, step: int | None = None) -> None:
        """Note that something else begins."""
        self.place.phase = phase
        if step is not None:
            self.place.step = step
        self._tell()

    def beat(self) -> None:
        """Note that a part of it is done."""
        self.beats += 1

    def beating(self, action: Callable[P, Result]) -> Callable[P, Result]:
        """The same action, each call of which is noted."""

        def act(*words: P.args, **more: P.kwargs) -> Result:
            self.beat()
            return action(*words, **more)

        return act

    def end(self, code: int) -> None:
        """Note the exit code, before it is one."""
        self.place.code = code
        self._tell()

    def _tell(self) -> None:
        self.beats += 1
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, json.dumps(asdict(self.place)).encode().ljust(_LENGTH), 0)


def read_places(folder: Path) -> list[Place]:
    """The places that processes have told in a folder, by rank; none of what is half written."""
    places: list[Place] = []
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            places.append(Place(**json.loads(path.read_text())))
    return sorted(places, key=lambda place: place.rank)


PULSE = Pulse()
"""This process's own."""
