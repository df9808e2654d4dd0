"""Checkpoints that are whole or not there: tensors in safetensors files, the rest in JSON, a manifest over both.

    checkpoints/step-0001000/  NAME.safetensors …  state.json  MANIFEST.json (sha256 and size of each; written last)

A checkpoint is written to a temporary folder, synced, and renamed. The latest one is not recorded anywhere: it is the
newest that verifies.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from inpaint_dist.errors import UserError
from inpaint_dist.host import parse_json, sync_to_disk
from inpaint_dist.tensor_files import read_tensors, refuse_what_is_no_file

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
LARGEST_JSON = 16 * 2**20
"""Bytes of a manifest or a state, which have thousands."""
_FILE = re.compile(r"\w+\.(safetensors|json)", re.ASCII)
_TEMPORARY = ".writing-"
_REPLACED = f"{_TEMPORARY}replaced-"


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds."""

    step: int
    """Steps done when it was written."""
    tensors: dict[str, dict[str, Tensor]]
    """Groups of named tensors: "generator", "optimizer_g" …"""
    state: dict[str, Any]
    """Everything else, as JSON has it."""


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint under `root`; it appears under its name when all of it is on the disk, or not at all.

    Raises:
        UserError: where the disk is full or cannot be written; what was there before stays as it was.
    """
    final = root / folder_name(step)
    temporary = root / f"{_TEMPORARY}{folder_name(step)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        temporary.mkdir()
        for name, group in tensors.items():
            flat = {key: tensor.detach().contiguous().cpu() for key, tensor in group.items()}
            save_file(flat, temporary / f"{name}.safetensors")
        (temporary / STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*temporary.iterdir(), temporary):
            sync_to_disk(path)
        if final.exists():  # a step saved before, and done again after a return to an earlier checkpoint
            final.rename(root / f"{_REPLACED}{final.name}")
        temporary.rename(final)
        sync_to_disk(root)
        _sweep(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            _give_names_back(root)
        raise UserError(
            f"{final}: the checkpoint could not be written ({error}); free space or mend the disk"
        ) from error
    return final


def refuse_not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Look at all that is to be saved; on a GPU this waits for it.

    Raises:
        UserError: naming the first tensor in which a number is not finite.
    """
    named = {f"{group}.{name}": tensor for group, some in tensors.items() for name, tensor in some.items()}
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in named.values()]).tolist()
    if broken := [name for name, good in zip(named, finite, strict=True) if not good]:
        raise UserError(f"{broken[0]} is not finite: nothing of this step is saved")


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        UserError: naming the file that is missing, differs from the manifest, or is not what a checkpoint holds.
    """
    manifest = verify(folder)
    names = [name for name in manifest["files"] if name.endswith(".safetensors")]
    try:
        state = dict(parse_json((folder / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / STATE}: not a checkpoint's state ({error})") from None
    return Checkpoint(manifest["step"], {Path(name).stem: read_tensors(folder / name)[0] for name in names}, state)


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Raises:
        UserError: naming the first file at fault.
    """
    try:
        refuse_what_is_no_file(folder / MANIFEST, LARGEST_JSON)
        manifest = parse_json((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: not a checkpoint's manifest ({error})") from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST}: checkpoint format {manifest.get('format')}, this version reads {FORMAT}")
    if manifest.keys() != {"format", "step", "files"} or folder.name != f"step-{manifest['step']!s:0>7}":
        raise UserError(f"{folder / MANIFEST}: not the manifest of {folder.name} (damaged on disk?)")
    if type(manifest["step"]) is not int or STATE not in files:
        raise UserError(f"{folder / MANIFEST}: no manifest (it lacks {STATE}, or its step is no number)")
    for name, expected in files.items():
        path = folder / name
        if not _FILE.fullmatch(name):
            raise UserError(f"{folder / MANIFEST}: {name!r} is not the name of a checkpoint's file")
        try:
            if not path.is_file():
                raise UserError(f"{path}: missing from the checkpoint")
            refuse_what_is_no_file(path, LARGEST_JSON if name == STATE else None)
            is_as_written = _describe(path) == expected
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if not is_as_written:
            raise UserError(f"{path}: differs from the checkpoint's manifest (damaged on disk?)")
    return manifest


def newest(root: Path, before: int | None = None) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies, and say which newer ones were passed over and why.

    With `before`, it is one of an earlier step.

    One that a kill caught while another of its step was about to take its name gets the name back.
    """
    _give_names_back(root)
    passed_over: list[str] = []
    for folder in reversed(list_checkpoints(root)):
        if before is not None and step_of(folder) >= before:
            continue
        try:
            verify(folder)
        except UserError as error:
            passed_over.append(f"passed over {folder.name}: {error}")
        else:
            return folder, passed_over
    return None, passed_over


def prune(root: Path, step: int, keep: int, protected: Collection[str] = ()) -> None:
    """Remove all but the `keep` newest checkpoints up to `step`; those named in `protected` stay too.

    What lies beyond `step` was found damaged when the run went back behind it: it goes as well, and must not count.
    """
    folders = list_checkpoints(root)
    whole = [folder for folder in folders if step_of(folder) <= step]
    kept = {folder.name for folder in whole[-keep:]} | set(protected)
    for folder in folders:
        if folder.name not in kept:
            doomed = folder.rename(folder.with_name(f"{_TEMPORARY}{folder.name}"))  # half-removed never looks whole
            shutil.rmtree(doomed)


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first, whole or not."""
    folders = (path for path in root.glob("step-*") if path.is_dir() and path.name[5:].isdigit())
    return sorted(folders, key=step_of)


def folder_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:07d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def _give_names_back(root: Path) -> None:
    """To checkpoints that were about to be replaced, where nothing came in their place."""
    for replaced in root.glob(f"{_REPLACED}*"):
        if not (final := root / replaced.name.removeprefix(_REPLACED)).exists():
            replaced.rename(final)


def _sweep(root: Path) -> None:
    """Remove what killed runs left half-written."""
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
