"""Tracker, which rank 0 holds, and NullTracker for the others. The only file that imports wandb, and late."""

import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inpaint_dist.errors import UsageError
from inpaint_dist.host import written_whole
from inpaint_dist.tracking import history as histories
from inpaint_dist.tracking import plots
from inpaint_dist.tracking.log_line import log_line
from inpaint_dist.tracking.wandb_mode import choose_mode

Status = Literal["finished", "failed", "interrupted"]

LOG = "log.txt"
"""Of a run folder: what was printed, with the time."""
INIT_TIMEOUT = 8.0
"""Seconds that a wandb server may take to answer at the start; wandb's own 90 leave the other ranks waiting."""
FINISH_TIMEOUT = 10.0
"""Seconds that the last upload may take: a server that hangs would hold the GPUs, and a launcher's patience ends;
`wandb sync` sends the rest. The environment's WANDB_FINISH_TIMEOUT gives more."""
PLOT_SHARE = 0.02
"""The largest share of a run's time that drawing curves may take."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What a run reports, and how often."""

    report_every: int = 10
    """Steps between two reports: a line of history.jsonl, of the log and of wandb."""
    sample_every: int | None = None
    """Steps between two grids of samples; about twenty over the run where it is not given."""
    report_to: Literal["wandb", "none"] = "wandb"
    """wandb: online when logged in, else offline inside the run folder; none: history, log and plots alone."""
    run_name: str | None = None
    """The run's name in wandb and over its plots; the run folder's name where it is not given."""

    def __post_init__(self) -> None:
        if self.report_every < 1:
            raise UsageError(f"--report-every {self.report_every}: must be 1 or more")
        if self.sample_every is not None and self.sample_every < 1:
            raise UsageError(f"--sample-every {self.sample_every}: must be 1 or more")

    def sample_interval(self, total_steps: int) -> int:
        """Steps between two grids in a run of that length: 20 for 315 steps, 2000 for 35,000."""
        if self.sample_every is not None:
            return self.sample_every
        scale = 1
        while True:
            for leading in (1, 2, 5):
                if leading * scale * 20 >= total_steps:
                    return leading * scale
            scale *= 10


class NullTracker:
    """The tracker of every rank but 0: takes what Tracker takes and does nothing."""

    def report(self, step: int, values: Mapping[str, float | int]) -> None:
        """Do nothing."""

    def samples(self, step: int, columns: Sequence[tuple[str, np.ndarray]]) -> None:
        """Do nothing."""

    def images(self, step: int, name: str, path: Path) -> None:
        """Do nothing."""

    def go_back(self, step: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def plot(self, *, force: bool = False) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self, status: Status) -> None:
        """Do nothing."""


class Tracker:
    """Writes what a run tells: history.jsonl (the truth), log.txt, plots, samples, and wandb.

    On resume the history is cut back to the checkpoint's step, so that it has each step once.

    Args:
        run_folder: where everything goes.
        config: the run's settings as plain values, shown by wandb.
        report_to: "wandb" or "none".
        run_name: the name in wandb and over the plots; the folder's where None.
        total_steps: the run's length.
        resume_step: the step of the checkpoint that the run goes on from, 0 for a new run.

    Raises:
        UserError: the history of the run to resume is damaged in its middle, or cannot be written.
    """

    def __init__(
        self,
        run_folder: Path,
        config: Mapping[str, Any],
        *,
        report_to: Literal["wandb", "none"],
        run_name: str | None,
        total_steps: int,
        resume_step: int,
    ) -> None:
        self.run_folder = run_folder
        self._name = run_name or run_folder.resolve().name
        self._total_steps = total_steps
        self._history = histories.History(run_folder / "history.jsonl")
        self._undrawn, self._next_plot, self._plot_warned, self._closed = False, 0.0, False, False
        self._log_warned = self._history_warned = False
        if removed := self._history.truncate_to(resume_step):
            self._say_cut(resume_step, removed)
        self._wandb = None
        if report_to == "wandb":
            self._wandb = _Wandb.open(run_folder, config, self._name, self.message)

    def _say_cut(self, step: int, removed: int) -> None:
        self.message(f"history: cut back to step {step} (lines removed: {removed}); those steps are made again")

    def go_back(self, step: int) -> None:
        """Cut the history back to a step, from which the run goes on.

        Raises:
            UserError: the history is damaged in its middle.
        """
        with self._patience():
            if removed := self._history.truncate_to(step):
                self._say_cut(step, removed)

    def report(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write the values of a step to the history, the log and wandb; names as in `log_line`.

        A history that cannot be written is one warning line: it is kept in memory until it can be.
        """
        with self._patience():
            self._history.append(step, values)
        self._undrawn = True
        self.message(log_line(step, self._total_steps, values))
        if self._wandb:
            self._wandb.log(step, {"iteration": step, **values})

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Take it as a warning, said once, that the history cannot be written; and say when it could be again."""
        try:
            yield
        except histories.NotWritten as error:
            if not self._history_warned:
                self.message(f"warning: {error}; it is kept in memory and tried again at each report")
            self._history_warned = True
        else:
            if self._history_warned:
                self.message(f"{self._history.path}: written again, with all that was kept")
            self._history_warned = False

    def flush(self) -> None:
        """Write what of the history could not be written so far.

        Raises:
            UserError: it still cannot.
        """
        self._history.flush()

    def samples(self, step: int, columns: Sequence[tuple[str, np.ndarray]]) -> None:
        """Draw titled columns of uint8 RGB images (N,H,W,3) to samples/step-NNNNNNN.png and show it in wandb."""
        path = self.run_folder / "samples" / f"step-{step:07d}.png"
        try:
            plots.draw_grid(path, columns)
        except Exception as error:  # noqa: BLE001 - no picture is worth the end of a training
            self.message(f"warning: {path} was not drawn: {_brief(error)}")
            return
        self.images(step, "samples", path)

    def images(self, step: int, name: str, path: Path) -> None:
        """Show an image file in wandb under a name."""
        if self._wandb:
            self._wandb.log_image(step, name, path)

    def plot(self, *, force: bool = False) -> None:
        """Redraw plots/losses.png if something new was reported; a plot that fails is one warning line.

        May be called at every report: unless forced, it draws only so often that drawing stays under 2 % of the time.
        """
        started = time.monotonic()
        if not self._undrawn or (started < self._next_plot and not force):
            return
        try:
            plots.draw_losses(
                histories.rows(self._history.path), self.run_folder / "plots" / "losses.png", title=self._name
            )
            self._undrawn = False
        except Exception as error:  # noqa: BLE001 - no picture is worth the end of a training
            if not self._plot_warned:
                self.message(f"warning: plots/losses.png was not drawn: {_brief(error)}")
            self._plot_warned = True
        ended = time.monotonic()
        self._next_plot = ended + (ended - started) / PLOT_SHARE

    def message(self, text: str) -> None:
        """Print a line and keep it in log.txt, with the time there; that either cannot be written is one warning."""
        text = text.encode(errors="backslashreplace").decode()  # a path may hold bytes that are no text
        self._keep(text)
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except OSError as error:  # whoever read it is gone, as `head` or the `tee` of a Ctrl-C is, or its disk is full
            self._keep(f"warning: nothing is printed from here on, all is in {LOG}: {_brief(error)}")
            _print_nowhere()

    def _keep(self, text: str) -> None:
        try:
            with (self.run_folder / LOG).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            if not self._log_warned:
                self._log_warned = True
                self.message(f"warning: {self.run_folder / LOG} cannot be written: {_brief(error)}")

    def close(self, status: Status) -> None:
        """Draw the curves a last time and end the wandb run; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.plot(force=True)
        if self._wandb:
            self._wandb.finish(status)


def _print_nowhere() -> None:
    """Lead what is printed away, what the interpreter still holds and writes at its end included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):  # a stream that is no file is nobody's pipe
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _Wandb:
    """A wandb run whose failures are one warning line and never the end of a training."""

    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        self._run, self._say, self._warned = run, say, False

    @classmethod
    def open(
        cls, run_folder: Path, config: Mapping[str, Any], name: str, say: Callable[[str], None]
    ) -> "_Wandb | None":
        """Start online or offline as the user has set it up, without ever asking; None where neither works."""
        mode, why = choose_mode(os.environ, Path.home(), Path.cwd())
        if mode == "none":
            say(f"wandb: off ({why})")
            return None
        try:
            import wandb
        except Exception as error:  # noqa: BLE001 - missing or broken: either way the run goes on without it
            say(f"wandb: cannot be imported ({_brief(error)}); history.jsonl and the plots are written all the same")
            return None
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                with _no_questions():
                    run = _start(wandb, attempt, run_folder, config, name)
            except Exception as error:  # noqa: BLE001 - a server that is away raises many kinds
                why = _brief(error)
                say(f"wandb: cannot start {attempt}: {why}")
                _stop_service(wandb)  # it would hold on to the id: "run ID is in use"
                continue
            say(_where(attempt, why, run, run_folder))
            return cls(run, say)
        return None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send values under a step; those of one step become one row."""
        self._guard(lambda: self._run.log(dict(values), step=step))

    def log_image(self, step: int, name: str, path: Path) -> None:
        """Send a copy of an image file."""

        def send() -> None:
            import wandb

            self._run.log({"iteration": step, name: wandb.Image(str(path))}, step=step)

        self._guard(send)

    def finish(self, status: Status) -> None:
        """End the run: finished is a success, everything else is not."""

        def end() -> None:
            if status == "interrupted":
                self._run.mark_preempting()
            with suppress(TimeoutError):
                self._run.finish(exit_code=0 if status == "finished" else 1)
                return
            self._say(
                "warning: wandb: the server has not taken the last data in time (WANDB_FINISH_TIMEOUT gives it more "
                f"seconds); send it with: wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"
            )

        self._guard(end)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a reporter's failure must not end a training
            if not self._warned:
                self._say(f"warning: wandb: {_brief(error)} (said once; history.jsonl has everything)")
            self._warned = True


def _start(wandb: Any, mode: str, run_folder: Path, config: Mapping[str, Any], name: str) -> Any:
    wanted = {
        "init_timeout": INIT_TIMEOUT,
        "finish_timeout": FINISH_TIMEOUT,
        "finish_timeout_raises": True,
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "label_disable": True,  # reads the script for comments otherwise
        "x_disable_meta": True,  # command line, user, program
        "x_save_requirements": False,
    }
    mine = (key for key in wanted if f"WANDB_{key.upper()}" not in os.environ)  # else wandb reads it itself
    known = {key: wanted[key] for key in mine if key in wandb.Settings.model_fields}
    settings = wandb.Settings(**known)
    wandb.setup(settings=settings)  # the login, before init, prints and asks by these
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "inpaint-dist",
        dir=str(run_folder),
        id=_run_id(run_folder / "wandb" / "id.txt"),
        name=name,
        config=json.loads(json.dumps(config, default=str)),
        mode=mode,
        resume="allow",
        reinit="create_new",
        settings=settings,
    )
    run.define_metric("iteration")
    run.define_metric("*", step_metric="iteration")
    return run


def _run_id(path: Path) -> str:
    """The run's id in wandb, the same at every resume."""
    found = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if found.isalnum():
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_hex(4)
    with written_whole(path) as part:
        part.write_text(f"{made}\n", encoding="utf-8")
    return made


def _where(mode: str, why: str, run: Any, run_folder: Path) -> str:
    if mode == "online":
        return f"wandb: {run.url}"
    return f"wandb: offline ({why}); upload later with: wandb sync {run_folder}/wandb/offline-run-*"


@contextmanager
def _no_questions() -> Iterator[None]:
    """Without a terminal to read from, a login that is missing raises instead of asking while other ranks wait."""
    terminal = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = terminal


def _stop_service(wandb: Any) -> None:
    with suppress(Exception):  # it is being thrown away, and the next attempt says what matters
        wandb.teardown()


def _brief(error: Exception) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
