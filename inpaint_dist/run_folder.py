"""The run folder: whether a run may start, go on or is done; what it keeps. Written by rank 0 alone."""

import difflib
import errno
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inpaint_dist import checkpoint
from inpaint_dist.checkpoint import Checkpoint
from inpaint_dist.config import RESUMABLE, SECTIONS, TrainConfig, to_json
from inpaint_dist.data.remote import redacted
from inpaint_dist.errors import Preempted, UsageError, UserError
from inpaint_dist.faults import Fault
from inpaint_dist.host import alone_in, parse_json, versions, written_whole
from inpaint_dist.launch import Launch
from inpaint_dist.tracking.tracker import LOG
from inpaint_dist.weights import BEST, CARD, CONFIG, GENERATOR

CHECKPOINTS, FAULTS = "checkpoints", "faults.jsonl"
DATASET, GLOBAL_BATCH = "dataset", "global_batch"
"""What shapes a run beside its config: the samples it reads, and how many a step."""
OURS = (
    *(CONFIG, CHECKPOINTS, FAULTS, GENERATOR, BEST, CARD),
    *("command.txt", "env.json", LOG, "history.jsonl", "plots", "samples", "wandb"),
)
"""What a run writes into its folder."""

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)
"""What is no mistake of the command: a supervisor tries it again."""

Result = TypeVar("Result")

_PACKAGES = ("torch", "accelerate", "numpy", "opencv-python", "simplejpeg", "webdataset", "wandb")


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    step: int
    """Steps already done."""
    checkpoint: Path | None
    """What to go on from."""
    notes: list[str]
    """What the user should know about it."""
    is_new: bool = False
    """Whether the folder has still to be made."""


def find_start(config: TrainConfig, shaping: Mapping[str, object], launch: Launch, held: ExitStack) -> Start:
    """Decide on rank 0, for all ranks, whether the run starts anew or goes on. Collective.

    A folder that is there is locked until `held` closes, so that nobody else writes to it meanwhile.

    Raises:
        UsageError: where the folder holds something else, or a run that differs in what shapes it, or one under way.
    """
    return _by_main(lambda: _find_start(config, shaping, held), launch)


def prepare(config: TrainConfig, shaping: Mapping[str, object], start: Start, launch: Launch, held: ExitStack) -> None:
    """Make the folder and write down what runs, by which command, with what. Collective; rank 0 writes.

    A new folder is locked until `held` closes.

    Raises:
        UsageError: where the folder cannot be written, or another run has just made it.
    """
    _by_main(lambda: _prepare(config, shaping, start, launch, held), launch)


def _by_main(action: Callable[[], Result], launch: Launch) -> Result:
    """Let rank 0 act and all ranks have its result, or its refusal."""
    outcome: tuple[Result | None, str | None] = (None, None)
    passes = False
    if launch.is_main:
        try:
            outcome = (action(), None)
        except UserError as error:
            outcome = (None, str(error))
        except OSError as error:
            outcome = (None, f"--output-dir{f' {error.filename}' if error.filename else ''}: {error.strerror}")
            passes = error.errno in _MAY_PASS
    (result, refusal), passes = launch.share((outcome, passes))  # pyright: ignore[reportGeneralTypeIssues]
    if refusal is not None:
        raise UserError(refusal) if passes else UsageError(refusal)
    return result


def _taken(folder: Path) -> UserError:
    return UserError(f"{folder}: another run is writing there; wait for its end, or choose another --output-dir")


def _find_start(config: TrainConfig, shaping: Mapping[str, object], held: ExitStack) -> Start:
    folder = config.run_folder
    if not folder.exists():
        return Start(0, None, [], is_new=True)
    held.enter_context(alone_in(folder, _taken(folder)))
    if not any(folder.iterdir()):
        return Start(0, None, [])
    before = _read_shaping(folder)
    if config.overwrite:
        return Start(0, None, [f"{folder}: the run there is replaced (--overwrite)"])
    changed = _refuse_another(folder, before, shaping, config.allow_changed)
    newest, notes = checkpoint.newest(folder / CHECKPOINTS)
    notes = [*notes, *changed]
    if newest is None and notes:
        listed = "\n".join(notes)
        raise UserError(f"{folder}: no checkpoint can be read; --overwrite starts the run anew\n{listed}")
    if newest is None:
        return Start(0, None, [f"{folder}: no checkpoint yet, the run starts from its beginning"])
    return Start(checkpoint.step_of(newest), newest, [*notes, f"going on from {newest}"])


def _read_shaping(folder: Path) -> dict[str, object]:
    """What shaped the run that a folder holds; refuse a folder that holds none."""
    try:
        return dict(parse_json((folder / CONFIG).read_text())["shaping"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: holds files but no run; choose another --output-dir") from None


def _refuse_another(
    folder: Path, before: Mapping[str, object], shaping: Mapping[str, object], allowed: Sequence[str]
) -> list[str]:
    """Refuse a run that differs from the one in the folder, but for what is allowed to; say what that is."""
    now: dict[str, object] = json.loads(json.dumps(shaping))
    allowed = [_known(name, now) for name in allowed]
    compared = sorted((before.keys() | now.keys()) - RESUMABLE)  # of older folders too, which list more
    keys = [key for key in compared if before.get(key) != now.get(key)]
    refused = [key for key in keys if key not in allowed or _is_of_a_network(key)]
    if refused:
        listed = "\n".join(
            f"{_difference(key, before.get(key), now.get(key))} "
            + ("(another network: never)" if _is_of_a_network(key) else f"(--allow-changed {key})")
            for key in refused
        )
        raise UserError(
            f"{folder}: holds a run that differs in what shapes it; give its flags again, or another --output-dir, or "
            f"--overwrite to replace it, or --allow-changed to go on all the same\n{listed}"
        )
    return [f"changed since the run began:{_difference(key, before.get(key), now.get(key))[1:]}" for key in keys]


def _is_of_a_network(key: str) -> bool:
    return key.partition(".")[0] in ("generator", "discriminator")


def _known(name: str, shaping: Mapping[str, object]) -> str:
    """The key that the user means: dataset, trainer.lr, and lr or --lr too.

    Raises:
        UserError: there is none.
    """
    plain = name.lstrip("-").replace("-", "_")
    for key in (plain, *(f"{section}.{plain}" for section in SECTIONS)):
        if key in shaping:
            return key
    near = difflib.get_close_matches(plain, shaping, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--allow-changed {name}: {hint}Nothing of that name shapes a run; see `shaping` in {CONFIG}")


def _difference(key: str, before: object, now: object) -> str:
    """One difference in the user's words: the flag that makes it, then and now."""
    if key == DATASET:
        return "  --shards, --limit: other training photos or masks"
    if key == GLOBAL_BATCH:
        return f"  images a step over all processes: then {before}, now {now}; give --global-batch-size {before}"
    section, _, name = key.partition(".")
    flag = name if section in SECTIONS else key
    return f"  --{flag.replace('_', '-')}: then {before}, now {now}"


def _prepare(config: TrainConfig, shaping: Mapping[str, object], start: Start, launch: Launch, held: ExitStack) -> None:
    folder = config.run_folder
    if start.is_new:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # made since we looked: of several runs one comes first
            raise _taken(folder) from None
        held.enter_context(alone_in(folder, _taken(folder)))
    if start.checkpoint is None:
        _clear(folder)
    describe_run(config, shaping, launch)
    words = [redacted(word) for word in sys.argv[1:]]
    with (folder / "command.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{shlex.join(['accelerate', 'launch', '-m', 'inpaint_dist.train', *words])}\n")


def describe_run(config: TrainConfig, shaping: Mapping[str, object], launch: Launch) -> None:
    """Write down what runs, and with what; the folder is made where it is not there.

    Raises:
        OSError: it cannot be written.
    """
    config.run_folder.mkdir(parents=True, exist_ok=True)
    _write(config.run_folder / CONFIG, {"config": to_json(config), "shaping": shaping})  # first: it makes it a run's
    _write(config.run_folder / "env.json", environment(launch))


def _clear(folder: Path) -> None:
    """Remove what a run writes, and nothing that somebody else put there.

    Its config.json stays until the next one takes its place: a folder that a kill left half-cleared is still a run's.
    """
    for path in (folder / name for name in OURS if name != CONFIG):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def environment(launch: Launch) -> dict[str, Any]:
    """Versions, processes and device of the run; nothing of the user's environment."""
    return {
        "versions": versions(_PACKAGES),
        "processes": launch.world,
        "device": launch.device.type,
        "precision": launch.precision,
        "threads": launch.threads,
    }


def preempted(folder: Path, step: int, asked_by: str | None) -> Preempted:
    """What ends a run that stops after a step; it says whether the folder has a checkpoint of it."""
    saved = folder / CHECKPOINTS / checkpoint.folder_name(step)
    where = f"{saved} is written, and" if saved.is_dir() else "no checkpoint of it could be written;"
    who = asked_by or "a signal to another process"
    return Preempted(f"by {who} after step {step:,}; {where} the same command goes on", by_all=True)


def read_checkpoint(path: Path | None) -> Checkpoint | None:
    """The checkpoint to go on from, where there is one; every rank reads it for itself.

    Raises:
        UserError: where this rank cannot see what rank 0 saw.
    """
    if path is None:
        return None
    if not path.is_dir():
        raise UserError(f"{path}: not on this machine; several nodes need --output-dir on a shared disk")
    saved = checkpoint.load(path)
    with understood(path):
        state = saved.state
        counts = [state["trainer"]["step"], state["total_steps"], state.get("passed_over", 0)]
        scores = [*state["scores"].values(), *state["best"].values()]
        if counts[0] != saved.step or not all(type(count) is int and 0 <= count < 2**40 for count in counts):
            raise ValueError(f"its counts are {counts}")
        if not all(isinstance(score, int | float) for score in scores):
            raise ValueError(f"its scores are {scores}")
    return saved


@contextmanager
def understood(path: Path | None) -> Iterator[None]:
    """Where a checkpoint is taken over: its checksums are right, but they do not tell what it holds.

    Raises:
        UserError: it holds what no run of these networks saves.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        about = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a checkpoint of this run ({about}); remove it, or --overwrite") from error


def newest_in_health(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies and was not saved between skipped steps; which were passed over, and why."""
    notes: list[str] = []
    before: int | None = None
    while True:
        path, more = checkpoint.newest(root, before)
        notes += more
        if path is None or not parse_json((path / checkpoint.STATE).read_text())["trainer"].get("in_a_row", 0):
            return path, notes
        notes.append(f"passed over {path.name}: it was saved between the skipped steps")
        before = checkpoint.step_of(path)


def note_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Add a line a skipped step: which it was, what was not finite, on which ranks, and the keys of their samples."""
    lines = [
        {"step": fault.step, "term": fault.term, "ranks": [fault.first_rank, fault.last_rank], "samples": fault.samples}
        for fault in faults
    ]
    with path.open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def _write(path: Path, plain: object) -> None:
    with written_whole(path) as part:
        part.write_text(json.dumps(plain, indent=1))
