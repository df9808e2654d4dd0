"""Saving in a thread: the steps go on meanwhile, and what is written is of its own step."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inpaint_dist import checkpoint
from inpaint_dist.batch import Batch
from inpaint_dist.errors import UserError
from inpaint_dist.saving import Snapshot, Writer, copy_to_host
from inpaint_dist.trainer import Trainer

Runner = Callable[..., Path]
FLAGS = (
    "--max-steps",
    "7",
    "--batch-size",
    "2",
    "--checkpoint-every",
    "2",
    "--keep-checkpoints",
    "9",
    "--eval-every",
    "99",
)
LIMIT = 60.0


def digests(run: Path) -> dict[str, Any]:
    return {folder.name: checkpoint.verify(folder)["files"] for folder in (run / "checkpoints").iterdir()}


@pytest.fixture
def undisturbed(run_train: Runner) -> dict[str, Any]:
    """What a run writes whose saves end before the next step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "begin", lambda _, *works: [work() for work in works])
        return digests(run_train(*FLAGS, name="undisturbed"))


def test_steps_go_on_while_a_save_is_under_way_and_it_holds_its_own_step(
    undisturbed: dict[str, Any], run_train: Runner, monkeypatch: pytest.MonkeyPatch
):
    """A save waits for the step after the next one to be done: the loop that waited for it would end here."""
    real_step, real_save = Trainer.step, checkpoint.save
    done, last, under_way, most = threading.Event(), 0, 0, 0

    def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
        nonlocal last
        losses = real_step(self, batch, **more)
        last = self.step_count
        done.set()
        return losses

    def save(root: Path, number: int, *given: Any) -> Path:
        nonlocal under_way, most
        under_way, most = under_way + 1, max(most, under_way + 1)
        while number < 7 and last < number + 1:
            assert done.wait(LIMIT)
            done.clear()
        written = real_save(root, number, *given)
        under_way -= 1
        return written

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(checkpoint, "save", save)
    run = run_train(*FLAGS)
    assert digests(run) == undisturbed
    assert undisturbed.keys() == {f"step-000000{step}" for step in (2, 4, 6, 7)}
    assert most == 1


def test_a_snapshot_shares_no_memory_with_what_it_is_of():
    weight, entries = torch.arange(6.0).view(2, 3).T, [["a", "b"]]
    made = Snapshot(step=3, tensors={"group": {"w": weight}}, state={"bad_samples": entries}).apart()
    weight += 1
    entries[0].append("c")
    assert torch.equal(made.tensors["group"]["w"], torch.arange(6.0).view(2, 3).T)
    assert made.state == {"bad_samples": [["a", "b"]]} and made.step == 3


def test_work_is_done_in_its_turn_and_failures_are_kept_until_asked_for():
    writer, order, go = Writer(), [], threading.Event()

    def refuse() -> None:
        assert go.wait(LIMIT)
        raise UserError("the disk is full")

    writer.begin(refuse, lambda: order.append("after it"))
    assert writer.failures(wait=False) == []
    go.set()
    assert [str(error) for error in writer.failures(wait=True)] == ["the disk is full"]
    assert order == ["after it"]
    assert writer.failures(wait=True) == []


def test_a_bug_in_a_save_ends_the_run_with_its_traceback():
    writer = Writer()
    writer.begin(lambda: [].pop())
    with pytest.raises(IndexError):
        writer.failures(wait=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_from_a_gpu_is_whole_though_the_next_step_changes_the_weights_at_once():
    weight = torch.arange(2.0**24, device="cuda")
    made = copy_to_host({"group": {"w": weight}})["group"]["w"]
    weight.zero_()
    assert made.is_pinned() and torch.equal(made, torch.arange(2.0**24))
