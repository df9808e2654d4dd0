"""A save killed anywhere, and a checkpoint damaged anywhere: the run goes on from one whole step, by itself."""

import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inpaint_dist import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")

Runner = Callable[..., Path]
GROUPS = ("discriminator", "ema", "generator", "optimizer_d", "optimizer_g")
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
"""What python tells of every change of a file system, whoever makes it."""


def save(root: Path, step: int, *, keep: int = 2) -> None:
    """A checkpoint that tells in each of its parts which step it is of, and the pruning that follows it."""
    tensors = {group: {"w": torch.full((512,), float(step)), "n": torch.tensor(step)} for group in GROUPS}
    checkpoint.save(root, step, tensors, {"step": step, "padding": "x" * 2000})
    checkpoint.prune(root, step, keep)


class Axe:
    """In a process of its own: kills it, as kill -9 does, before the change number `point`, or in the midst of it."""

    def __init__(self, point: int) -> None:
        self.left = point

    def blow(self) -> bool:
        """Whether it falls now."""
        self.left -= 1
        return self.left < 0

    def hang_over(self, root: Path) -> None:
        """Watch the file system below `root`, what Rust writes, and what is brought to the disk."""
        here = str(root)
        save_file, write_text, fsync = checkpoint.save_file, Path.write_text, os.fsync

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            named = event in WATCHED and arguments and str(arguments[0]).startswith(here)
            inside_rmtree = event in {"os.remove", "os.rmdir"} and arguments[-1] != -1  # named within an open folder
            reading = event == "open" and not {"w", "a", "+", "x"} & set(str(arguments[1]))
            if (named or inside_rmtree) and not reading and self.blow():
                os.kill(os.getpid(), signal.SIGKILL)

        def save_half(flat: object, path: Path) -> None:
            if self.blow():
                os.kill(os.getpid(), signal.SIGKILL)
            save_file(flat, path)
            if self.blow():
                os.truncate(path, path.stat().st_size // 2)
            if self.left < 0 or self.blow():
                os.kill(os.getpid(), signal.SIGKILL)

        def write_half(path: Path, text: str) -> None:
            if self.blow():
                write_text(path, text[: len(text) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write_text(path, text)

        def sync(descriptor: int) -> None:
            if self.blow():
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        checkpoint.save_file, Path.write_text, os.fsync = save_half, write_half, sync  # type: ignore[assignment]
        sys.addaudithook(watch)


def killed(root: Path, point: int, action: Callable[[], None]) -> bool:
    """Do something in a child that dies at a point; whether it got that far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child touches files alone, no thread's locks
        child = os.fork()
    if child == 0:
        try:
            Axe(point).hang_over(root)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status)


def step_held(root: Path) -> int:
    """The one step that every part of the newest checkpoint is of."""
    newest, notes = checkpoint.newest(root)
    assert newest is not None and notes == []
    loaded = checkpoint.load(newest)
    steps = {int(tensor.flatten()[0]) for group in loaded.tensors.values() for tensor in group.values()}
    assert steps == {loaded.step} == {loaded.state["step"]} == {int(newest.name.removeprefix("step-"))}
    assert set(loaded.tensors) == set(GROUPS)
    return loaded.step


@pytest.mark.parametrize(
    ("before", "saved", "least"),
    [((1,), 2, 24), ((1, 2, 3), 4, 24), ((3,), 3, 24)],
    ids=["the second save", "a save that prunes", "the same step again"],
)
def test_a_save_killed_with_9_anywhere_leaves_one_whole_step_to_go_on_from(
    before: tuple[int, ...], saved: int, least: int, tmp_path: Path
):
    for step in before:
        save(tmp_path / "start", step)
    held: list[int] = []
    while True:
        root = tmp_path / str(len(held))
        shutil.copytree(tmp_path / "start", root)
        dead = killed(root, len(held), lambda root=root: save(root, saved))
        held.append(step_held(root))
        if not dead:
            break
        save(root, saved + 1)
        assert step_held(root) == saved + 1
        whole = [path.name for path in checkpoint.list_checkpoints(root)]
        assert sorted(path.name for path in root.iterdir()) == whole, "what the kill left is swept up"
    assert len(held) - 1 >= least, "fewer places to be killed at than there are changes of the disk"
    assert held == sorted(held), "from some place on, and not before, it is the new step that counts"
    assert held[0] == before[-1] and held[-1] == saved


@pytest.fixture
def a_run(run_train: Runner, undrawn: None) -> Path:
    return run_train("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "99", "--sample-every", "99")


def test_one_bit_flipped_in_any_file_of_a_runs_checkpoint_is_found_named_and_gone_round(
    a_run: Path, run_train: Runner, tmp_path: Path
):
    """The log names the file, the run goes on from the checkpoint before, and ends in the same bits."""
    names = sorted(path.name for path in (a_run / "checkpoints/step-0000004").iterdir())
    assert names == sorted([*(f"{group}.safetensors" for group in GROUPS), "MANIFEST.json", "state.json"])
    expected = {name: (a_run / "checkpoints/step-0000004" / name).read_bytes() for name in names}
    for place, name in enumerate(names):
        path = a_run / "checkpoints/step-0000004" / name
        data = bytearray(expected[name])
        data[len(data) * place // len(names)] ^= 1 << place
        path.write_bytes(data)
        (a_run / "log.txt").unlink()
        run_train("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "99", "--sample-every", "99")
        log = (a_run / "log.txt").read_text()
        assert f"passed over step-0000004: {path}: " in log
        assert f"going on from {a_run / 'checkpoints/step-0000002'}" in log
        assert {name: (a_run / "checkpoints/step-0000004" / name).read_bytes() for name in names} == expected


def test_a_manifest_with_any_byte_changed_is_not_a_manifest(tmp_path: Path):
    """It vouches for every other file: nothing vouches for it but its own form."""
    save(tmp_path, 10)
    path = tmp_path / "step-0000010" / checkpoint.MANIFEST
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        newest, notes = checkpoint.newest(tmp_path)
        assert newest is None, f"byte {place}: {json.loads(changed)}"
        assert len(notes) == 1 and notes[0].startswith("passed over step-0000010: ")
    path.write_bytes(data)
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-0000010", [])
