import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from inpaint_dist import checkpoint
from inpaint_dist.errors import UserError


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {group: {"w": torch.full((64,), value), "n": torch.tensor(int(value))} for group in ("generator", "ema")}


def save(root: Path, step: int) -> Path:
    return checkpoint.save(root, step, tensors(step), {"step": step})


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path):
    loaded = checkpoint.load(save(tmp_path, 7))
    assert loaded.step == 7 and loaded.state == {"step": 7}
    for group, named in tensors(7).items():
        assert all(torch.equal(loaded.tensors[group][name], tensor) for name, tensor in named.items())


class Killed(BaseException):
    """A kill -9: no handler of ours may see it as an error to clean up after."""


WRITERS = ("mkdir", "save_file", "write_text", "sync_to_disk", "rename", "rmtree")


def killed_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Save step 2 over and over, killed before the first, second, … change on the disk; count those points."""
    point = 0
    while True:
        root = tmp_path / f"kill-{point}"
        save(root, 1)
        left = [point]

        def guard(function, left=left):
            def guarded(*args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return function(*args, **kwargs)

            return guarded

        with monkeypatch.context() as patch:
            for name in ("mkdir", "write_text", "rename"):
                patch.setattr(Path, name, guard(getattr(Path, name)))
            patch.setattr(checkpoint, "save_file", guard(checkpoint.save_file))
            patch.setattr(checkpoint, "sync_to_disk", guard(checkpoint.sync_to_disk))
            patch.setattr(checkpoint.shutil, "rmtree", guard(shutil.rmtree))
            try:
                save(root, 2)
                checkpoint.prune(root, 2, keep=1)
                return point
            except Killed:
                pass
        newest, notes = checkpoint.newest(root)
        assert newest is not None and notes == [], f"killed at point {point}"
        loaded = checkpoint.load(newest)
        assert all(float(named["w"][0]) == loaded.step for named in loaded.tensors.values())
        save(root, 3)
        checkpoint.prune(root, 3, keep=1)
        assert [path.name for path in root.iterdir()] == ["step-0000003"]
        point += 1


def test_a_save_killed_at_any_point_leaves_one_consistent_step_and_the_next_sweeps_up(tmp_path, monkeypatch):
    assert killed_saves(tmp_path, monkeypatch) >= 14


@pytest.mark.parametrize("name", ["generator.safetensors", "ema.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_named(tmp_path: Path, name: str, damage: str):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    newest, notes = checkpoint.newest(tmp_path)
    assert newest is not None and newest.name == "step-0000001"
    assert len(notes) == 1 and "step-0000002" in notes[0] and name in notes[0]


def test_where_every_checkpoint_is_damaged_there_is_none_and_each_is_named(tmp_path: Path):
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").unlink()
    newest, notes = checkpoint.newest(tmp_path)
    assert newest is None and len(notes) == 2


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path):
    manifest = save(tmp_path, 1) / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.verify(tmp_path / "step-0000001")


def test_a_save_that_fails_leaves_the_earlier_ones_and_says_what_to_do(tmp_path: Path, monkeypatch):
    save(tmp_path, 1)

    from safetensors import SafetensorError

    def full(*_: object) -> None:  # what safetensors raises where the disk is full; no OSError
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"step-0000002.*No space left.*free space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


def test_pruning_keeps_the_newest_and_the_protected(tmp_path: Path):
    for step in (1, 2, 3, 9999999, 10000000):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 10000000, keep=2, protected={"step-0000002"})
    kept = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert kept == ["step-0000002", "step-9999999", "step-10000000"]


def test_a_damaged_checkpoint_that_the_run_went_back_behind_does_not_push_out_whole_ones(tmp_path: Path):
    for step in (2, 3, 8):
        save(tmp_path, step)
    (tmp_path / "step-0000008/ema.safetensors").unlink()
    save(tmp_path, 4)
    checkpoint.prune(tmp_path, 4, keep=1)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-0000004"]


@pytest.mark.parametrize("limit", [100, 20_000])
def test_on_a_disk_that_fills_up_a_save_fails_as_one_clear_error(tmp_path: Path, limit: int):
    """A real limit on the size of files, in a process of its own, stands in for the full disk."""
    import subprocess
    import sys

    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from inpaint_dist import checkpoint\n"
        "from inpaint_dist.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try: checkpoint.save(Path(sys.argv[1]), 1, {'generator': {'w': torch.zeros(10_000)}}, {})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, tensors(5), {"again": True})
    assert checkpoint.load(tmp_path / "step-0000001").state == {"again": True}
    assert os.listdir(tmp_path) == ["step-0000001"]  # noqa: PTH208


def test_a_checkpoint_that_the_disk_cannot_read_is_passed_over(tmp_path: Path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"ema": {"weight": torch.ones(2)}}, {})
    real = checkpoint._describe

    def describe(path: Path) -> dict[str, object]:
        if path.parent.name == "step-0000002" and path.suffix == ".safetensors":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(checkpoint, "_describe", describe)
    path, notes = checkpoint.newest(tmp_path)
    assert path == tmp_path / "step-0000001"
    assert len(notes) == 1 and "ema.safetensors: cannot be read (Input/output error)" in notes[0]


def test_a_checkpoint_that_was_to_be_replaced_has_its_name_back_where_that_fails(tmp_path: Path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"ema": {"weight": torch.ones(2)}}, {"try": 1})
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(checkpoint._TEMPORARY) and "replaced" not in self.name:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="could not be written"):
        checkpoint.save(tmp_path, 1, {"ema": {"weight": torch.zeros(2)}}, {"try": 2})
    assert checkpoint.load(tmp_path / "step-0000001").state == {"try": 1}
