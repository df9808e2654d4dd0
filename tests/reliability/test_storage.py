"""A disk that is full, read-only or gone for a while: training goes on, and nothing is lost that a disk could hold."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from inpaint_dist import checkpoint, cli, train
from inpaint_dist import weights as weights_module
from inpaint_dist.batch import Batch
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.saving import Writer
from inpaint_dist.trainer import Trainer

Runner = Callable[..., Path]
EACH = ("--report-every", "1", "--checkpoint-every", "2", "--eval-every", "2", "--sample-every", "2")
SAME = (*EACH, "--batch-size", "2", "--lr-schedule", "constant")
TIMING = ("images_per_second", "data_wait", "eta_seconds")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 2,000 bytes: a file can be begun, and is cut, whoever writes it."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def read_only_disk() -> Iterator[None]:
    """Whatever would change the disk is refused; a file's mode would not stop root."""

    def refuse(*given: Any, **named: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(given[0]))

    def reading(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        return real(path, mode, *given, **named) if not set("wax+") & set(mode) else refuse(path)

    import io

    real = io.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("io.open", reading)
        patch.setattr("builtins.open", reading)
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "truncate"):
            patch.setattr(os, name, refuse)
        for module in (checkpoint, weights_module):
            patch.setattr(module, "save_file", lambda tensors, path, *_: refuse(path))
        yield


DISKS = {"full": full_disk, "read-only": read_only_disk}


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have a disk from the beginning of one step to the beginning of the one after another, or to the test's end.

    What the steps before had to save is on the disk by then.
    """
    real, begin = Trainer.step, Writer.begin
    works: list[Future[None]] = []

    def begin_and_note(self: Writer, *given: Callable[[], None]) -> None:
        begin(self, *given)
        works.extend(self._under_way)

    monkeypatch.setattr(Writer, "begin", begin_and_note)
    with ExitStack() as held:

        def have(disk: Callable[[], Any], first: int, last: int | None = None) -> None:
            def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
                number = self.step_count + 1
                if number in (first, last and last + 1):
                    wait(works)
                if number == first:
                    held.enter_context(disk())
                elif last is not None and number == last + 1:
                    held.close()
                return real(self, batch, **more)

            monkeypatch.setattr(Trainer, "step", step)

        yield have


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]


def digest(run: Path, step: int) -> dict[str, Any]:
    return checkpoint.verify(run / "checkpoints" / checkpoint.folder_name(step))["files"]


@pytest.fixture(scope="module")
def whole(shards: Path, tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    train.main(["unet", "--shards", str(shards), "--output-dir", str(run), "--max-steps", "8", *SAME, *tiny])
    return run


@pytest.mark.parametrize("kind", DISKS)
def test_a_run_trains_on_over_a_bad_disk_and_ends_as_if_nothing_had_been(
    kind: str, whole: Path, run_train: Runner, during: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys
):
    """From step 3 to step 6: two checkpoints, four reports and two grids fail."""
    during(DISKS[kind], 3, 6)
    real, newest = checkpoint.save, []

    def save(root: Path, *given: Any) -> Path:
        newest.append(checkpoint.newest(root)[0])
        return real(root, *given)

    monkeypatch.setattr(checkpoint, "save", save)
    run = run_train("--max-steps", "8", *SAME)
    assert [path and path.name for path in newest] == [None, "step-0000002", "step-0000002", "step-0000002"]
    assert rows(run) == rows(whole)
    assert len(rows(run)) == 8 and "val/psnr" in rows(run)[3]
    assert digest(run, 8) == digest(whole, 8)
    said = capsys.readouterr().out
    failures = [line for line in said.splitlines() if line.startswith("warning: ")]
    told = {
        "could not be written": 2,  # checkpoints
        "generator.safetensors": 2,
        "generator-best.safetensors": None,  # whenever there was a best
        "history.jsonl: cannot be written": 1,
        "was not drawn": None,
        "log.txt cannot be written": None,
    }
    for words, count in told.items():
        found = [line for line in failures if words in line]
        assert count is None or len(found) == count, (words, failures)
        failures = [line for line in failures if line not in found]
    assert failures == []
    assert said.count("history.jsonl: written again, with all that was kept") == 1
    assert [path.name for path in run.rglob("*.part")] == []


def test_a_run_folder_that_is_removed_is_made_anew_with_its_whole_history(
    whole: Path, run_train: Runner, during: Callable[..., None], tmp_path: Path, capsys
):
    run = tmp_path / "run"

    @contextmanager
    def removed() -> Iterator[None]:
        shutil.rmtree(run)
        yield

    during(removed, 5, 5)
    run_train("--max-steps", "8", *SAME)
    assert rows(run) == rows(whole)
    assert digest(run, 8) == digest(whole, 8)
    assert capsys.readouterr().out.count(f"warning: {run} was removed: it is made anew") == 1
    during(nullcontext, 99)
    run_train("--max-steps", "8", *SAME)
    assert f"{run}: this run is complete (8 steps)" in capsys.readouterr().out
    run_train("--max-steps", "9", *SAME)
    assert [row["step"] for row in rows(run)] == list(range(1, 10))


def test_a_disk_that_stays_full_fails_the_run_at_its_end_and_the_same_command_makes_it_good(
    whole: Path, run_train: Runner, during: Callable[..., None], tmp_path: Path, capsys
):
    limits = ExitStack()
    during(lambda: limits.enter_context(full_disk()) or nullcontext(), 5)
    with limits, pytest.raises(UserError, match=r"cannot be written .*free space or mend the disk"):
        run_train("--max-steps", "8", *SAME)
    during(nullcontext, 99)
    run = tmp_path / "run"
    assert checkpoint.newest(run / "checkpoints") == (run / "checkpoints/step-0000004", [])
    run_train("--max-steps", "8", *SAME)
    assert rows(run) == rows(whole)
    assert digest(run, 8) == digest(whole, 8)


def test_a_history_that_cannot_be_written_to_the_end_is_an_error_though_all_else_is_saved(
    run_train: Runner, shards: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
):
    real, file = Trainer.step, tmp_path / "run/history.jsonl"

    def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
        if self.step_count == 2:
            file.unlink()
            file.mkdir()
        return real(self, batch, **more)

    monkeypatch.setattr(Trainer, "step", step)
    words = ["unet", "--shards", str(shards), "--output-dir", str(file.parent), "--max-steps", "4", *SAME, *tiny]
    assert cli.run(train.main, words) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {file}: cannot be written (") and said.err.count("\n") == 1
    assert said.out.count(f"warning: {file}: cannot be written (") == 1
    assert checkpoint.newest(file.parent / "checkpoints")[0] == file.parent / "checkpoints/step-0000004"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stdout_that_cannot_be_written_ends_no_training(run_train: Runner, monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        run = run_train("--max-steps", "3", *EACH)
        log = (run / "log.txt").read_text()
    assert log.count("nothing is printed from here on") == 1 and "done: 3 steps" in log
    assert (run / "checkpoints/step-0000003").is_dir()


def test_a_folder_that_a_kill_left_half_cleared_can_be_replaced(run_train: Runner, monkeypatch):
    run = run_train("--max-steps", "2", *SAME)
    real = shutil.rmtree

    def killed(path: Path, *given: Any, **named: Any) -> None:
        real(path, *given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_train("--max-steps", "2", *SAME, "--overwrite")
    assert not (run / "checkpoints").exists()
    run_train("--max-steps", "2", *SAME, "--overwrite")
    assert (run / "checkpoints/step-0000002").is_dir()


def test_best_weights_that_could_not_be_written_are_not_said_to_be_there(run_train: Runner, monkeypatch):
    real = weights_module.export_generator
    refused: list[Path] = []

    def refuse_once(path: Path, *given: Any, **named: Any) -> None:
        if not refused:
            refused.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path, *given, **named)

    monkeypatch.setattr("inpaint_dist.run.export_generator", refuse_once)
    run = run_train("--max-steps", "6", "--checkpoint-every", "2", "--eval-every", "2", "--keep-checkpoints", "9")
    assert [path.name for path in refused] == ["generator-best.safetensors"]
    assert json.loads((run / "checkpoints/step-0000002/state.json").read_text())["best"] == {}
    best = json.loads((run / "checkpoints/step-0000006/state.json").read_text())["best"]
    about = weights_module.read_generator(run / "generator-best.safetensors")[2]
    assert best["step"] == int(about["step"])


@pytest.mark.parametrize(("number", "is_usage"), [(errno.ENOSPC, False), (errno.EACCES, True)])
def test_a_disk_that_is_full_at_the_start_is_no_wrong_flag(run_train: Runner, monkeypatch, number: int, is_usage: bool):
    """A supervisor tries it again."""

    def refuse(*given: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("inpaint_dist.run_folder.describe_run", refuse)
    with pytest.raises(UserError, match=rf"--output-dir: {os.strerror(number)}") as caught:
        run_train("--max-steps", "2")
    assert isinstance(caught.value, UsageError) == is_usage


def test_ranks_go_on_together_where_the_best_weights_could_not_be_written(nursery: Any, tmp_path: Path):
    """A best step is saved by all of them; were rank 0 alone to know that it is none, they would wait for ever."""
    code = """
import inpaint_dist.run as run
real, refused = run.export_generator, []
def refuse_once(*given, **named):
    if not refused:
        refused.append(given)
        raise OSError(5, "Input/output error")
    real(*given, **named)
run.export_generator = refuse_once
"""
    run = tmp_path / "run"
    flags = ("--max-steps", "5", "--eval-every", "1", "--checkpoint-every", "4")
    ranks = nursery.start(run, *flags, world=2, code=code)
    assert ranks.ended() == [0, 0]
    assert "warning: [Errno 5] Input/output error; training goes on" in (run / "log.txt").read_text()


def test_a_run_folder_whose_name_is_no_text_is_refused_before_it_is_made(run_train: Runner, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_train("--max-steps", "2", name=os.fsdecode(b"x\xff"))
    assert ended.value.code == 2 and "bytes that are no UTF-8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
