"""The run folder: whether a run may start, go on or is done; what it keeps. Written by rank 0 alone."""

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from inpaint_dist import checkpoint
from inpaint_dist.checkpoint import Checkpoint
from inpaint_dist.config import TrainConfig, to_json
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import written_whole
from inpaint_dist.launch import Launch

CONFIG = "config.json"
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


def find_start(config: TrainConfig, shaping: Mapping[str, object], launch: Launch) -> Start:
    """Decide on rank 0, for all ranks, whether the run starts anew or goes on. Collective.

    Raises:
        UsageError: where the folder holds something else, or a run that differs in what shapes it.
    """
    found: Start | str | None = None
    if launch.is_main:
        try:
            found = _find_start(config, shaping)
        except UserError as error:
            found = str(error)
    found = launch.share(found)  # pyright: ignore[reportAssignmentType]
    if not isinstance(found, Start):
        raise UsageError(str(found))
    return found


def _find_start(config: TrainConfig, shaping: Mapping[str, object]) -> Start:
    folder = config.run_folder
    if not folder.exists() or not any(folder.iterdir()):
        return Start(0, None, [])
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: holds files but no run; choose another --output-dir")
    if config.overwrite:
        return Start(0, None, [f"{folder}: the run there is replaced (--overwrite)"])
    _refuse_another(folder, shaping)
    newest, notes = checkpoint.newest(folder / "checkpoints")
    if newest is None:
        return Start(0, None, [*notes, f"{folder}: no checkpoint yet, the run starts from its beginning"])
    return Start(int(newest.name.removeprefix("step-")), newest, [*notes, f"going on from {newest}"])


def _refuse_another(folder: Path, shaping: Mapping[str, object]) -> None:
    try:
        before: dict[str, object] = json.loads((folder / CONFIG).read_text())["shaping"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG}: cannot be read ({error}); use --overwrite or another --output-dir"
        ) from error
    now = json.loads(json.dumps(shaping))
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differing:
        changes = ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in differing)
        raise UserError(
            f"{folder}: holds a run that differs in what shapes it: {changes}\n"
            "give its flags again, or another --output-dir, or --overwrite to replace it"
        )


def prepare(config: TrainConfig, shaping: Mapping[str, object], start: Start, launch: Launch) -> None:
    """Make the folder and write down what runs, by which command, with what. Rank 0 writes, the others wait."""
    if launch.is_main:
        folder = config.run_folder
        if start.checkpoint is None and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / CONFIG, {"config": to_json(config), "shaping": shaping})
        _write(folder / "env.json", environment(launch))
        with (folder / "command.txt").open("a") as file:
            file.write(f"{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}\n")
    launch.wait()


def environment(launch: Launch) -> dict[str, Any]:
    """Versions, processes and device of the run; nothing of the user's environment."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "processes": launch.world,
        "device": launch.device.type,
        "precision": launch.precision,
        "threads": launch.threads,
    }


def read_checkpoint(start: Start) -> Checkpoint | None:
    """The checkpoint to go on from, which every rank reads for itself.

    Raises:
        UserError: where this rank cannot see what rank 0 saw.
    """
    if start.checkpoint is None:
        return None
    if not start.checkpoint.is_dir():
        raise UserError(f"{start.checkpoint}: not on this machine; several nodes need --output-dir on a shared disk")
    return checkpoint.load(start.checkpoint)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write(path: Path, plain: object) -> None:
    with written_whole(path) as part:
        part.write_text(json.dumps(plain, indent=1))
