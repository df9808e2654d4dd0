"""Signals: a run that is asked to stop saves a checkpoint of the step it is at, and the same command goes on."""

import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inpaint_dist import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as Linux has them")

NO_OTHERS = ("--checkpoint-every", "100000", "--eval-every", "100000", "--sample-every", "100000")
SLOW_STEPS = """
import time
from inpaint_dist.trainer import Trainer
step = Trainer.step
Trainer.step = lambda self, batch, **more: (time.sleep(0.03), step(self, batch, **more))[-1]
"""


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "generator.safetensors").read_bytes()).hexdigest()


def steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "g/loss" in line]


@pytest.fixture(scope="module")
def unbroken(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """World → weights of a run of 60 steps that nobody disturbed."""
    runs = {world: tmp_path_factory.mktemp("unbroken") / "run" for world in (1, 2)}
    ranks = [warm.start(run, *NO_OTHERS, "--max-steps", "60", world=world) for world, run in runs.items()]
    assert [one.ended() for one in ranks] == [[0], [0, 0]]
    return {world: sha256(run) for world, run in runs.items()}


@pytest.mark.parametrize(
    ("number", "world", "whom"),
    [
        (signal.SIGTERM, 1, ()),
        (signal.SIGINT, 1, ()),
        (signal.SIGUSR1, 1, ()),
        (signal.SIGTERM, 2, ()),
        (signal.SIGINT, 2, (1,)),
        (signal.SIGUSR1, 2, (0,)),
    ],
    ids=str,
)
def test_a_signalled_run_saves_the_step_it_is_at_and_the_same_command_ends_in_the_same_bits(
    number: signal.Signals, world: int, whom: tuple[int, ...], nursery: Any, unbroken: dict[int, str], tmp_path: Path
):
    run = tmp_path / "run"
    flags = (*NO_OTHERS, "--max-steps", "60")
    ranks = nursery.start(run, *flags, world=world, code=SLOW_STEPS)
    ranks.until("step 5/")
    ranks.send(number, *whom)
    assert ranks.ended() == [75] * world
    (saved,) = ranks.checkpoints()
    assert 5 <= saved < 60
    assert steps(run) == [*range(1, saved + 1)]
    name = number.name if 0 in whom or not whom else "a signal to another process"
    ending = f"stopped: by {name} after step {saved}; {run}/checkpoints/step-{saved:07d} is written, and the same "
    assert [line for line in ranks.said().splitlines() if line.startswith("stopped")] == [f"{ending}command goes on"]
    assert ending in (run / "log.txt").read_text()
    assert "Traceback" not in ranks.said() + ranks.said(world - 1)
    again = nursery.start(run, *flags, world=world)
    assert again.ended() == [0] * world
    assert steps(run) == [*range(1, 61)]
    assert sha256(run) == unbroken[world]


@pytest.mark.parametrize(
    ("during", "code"),
    [
        ("save", "from inpaint_dist import checkpoint as room; what = 'save_file'"),
        ("evaluate", "from inpaint_dist import run as room; what = 'evaluate'"),
        ("draw", "from inpaint_dist.tracking import plots as room; what = 'draw_grid'"),
    ],
)
def test_a_signal_during_anything_else_lets_it_end_and_the_checkpoint_is_whole(
    during: str, code: str, nursery: Any, tmp_path: Path
):
    run = tmp_path / "run"
    slow = f"""
import os, time
{code}
ordinary = getattr(room, what)
def slowly(*words, **more):
    os.write(1, b"within\\n")
    time.sleep(0.4)
    return ordinary(*words, **more)
setattr(room, what, slowly)
"""
    every = ["--checkpoint-every", "1000", "--eval-every", "1000", "--sample-every", "1000"]
    every[{"save": 1, "evaluate": 3, "draw": 5}[during]] = "20"
    ranks = nursery.start(run, *every, "--max-steps", "60", world=2, code=slow)
    ranks.until("within")
    ranks.send(signal.SIGTERM)
    assert ranks.ended() == [75, 75]
    saved = ranks.checkpoints()  # ranks ask each other twice a second, so the run may stop some steps later
    assert saved[-1] >= 20
    assert (saved[0] == 20) or during != "save"
    for step in saved:
        assert checkpoint.load(run / "checkpoints" / checkpoint.folder_name(step)).state["trainer"]["step"] == step


def test_a_signal_before_the_first_step_ends_the_run_at_once_and_leaves_nothing_half_written(
    nursery: Any, tmp_path: Path
):
    run = tmp_path / "run"
    slow = """
import os, time
from inpaint_dist import train
ordinary = train.build_trainer
def slowly(*words):
    os.write(1, b"building\\n")
    time.sleep(600)
train.build_trainer = slowly
"""
    ranks = nursery.start(run, "--max-steps", "60", world=2, code=slow)
    ranks.until("building")
    ranks.until("building", 1)
    ranks.send(signal.SIGTERM)
    assert ranks.ended(10) == [75, 75]
    assert "stopped: by SIGTERM before the first step" in ranks.said()
    assert not run.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_run_at_once(number: signal.Signals, code: int, nursery: Any, tmp_path: Path):
    run = tmp_path / "run"
    stuck = "import time\nfrom inpaint_dist.trainer import Trainer\nTrainer.step = lambda *a, **k: time.sleep(600)"
    ranks = nursery.start(run, "--max-steps", "60", code=stuck)
    ranks.until("run folder")
    time.sleep(1)  # from the last word before the first step into it
    ranks.send(number)
    ranks.until(f"{number.name}: the run stops after this step")
    ranks.send(number)  # the same one, sent on by somebody
    time.sleep(1.2)
    assert ranks.codes() is None
    ranks.send(number)
    assert ranks.ended(10) == [code]
    assert f"{number.name} again: stopped at once" in ranks.said()
    assert ranks.checkpoints() == []


def test_a_notice_and_then_sigterm_is_no_second_signal(nursery: Any, tmp_path: Path):
    run = tmp_path / "run"
    slow = SLOW_STEPS.replace("time.sleep(0.03)", "print('within', flush=True), time.sleep(2.5)")
    ranks = nursery.start(run, *NO_OTHERS, "--max-steps", "60", code=slow)
    ranks.until("within\n", times=2)
    ranks.send(signal.SIGUSR1)
    time.sleep(1.2)
    ranks.send(signal.SIGTERM)
    assert ranks.ended() == [75]
    assert "stopped: by SIGUSR1 after step 2" in ranks.said()
