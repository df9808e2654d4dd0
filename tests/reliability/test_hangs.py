"""A run that stands still ends, and says because of whom."""

import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inpaint_dist.errors import UsageError
from inpaint_dist.launch import LaunchConfig
from inpaint_dist.watch import Sign, culprits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as Linux has them")

T = 3
QUIET = ("--hang-timeout", str(T), "--checkpoint-every", "100000", "--eval-every", "100000", "--sample-every", "100000")
HANGS = {
    "data": """
from inpaint_dist.data.loader import SampleDecoder as room
what = "fill"
""",
    "step": """
from inpaint_dist.gan import InpaintingGAN as room
what = "generator_loss"
""",
}
HANG = """
import os, time
calls = []
ordinary = getattr(room, what)
def never(*words, **more):
    calls.append(1)
    if len(calls) == 8 and os.environ["RANK"] == WHO:
        os.write(1, b"asleep\\n")
        time.sleep(600)
    return ordinary(*words, **more)
setattr(room, what, never)
"""


def verdict(text: str) -> str:
    (line,) = re.findall(r"^error: the run has stood still .*$", text, re.MULTILINE)
    return line


@pytest.mark.parametrize(
    ("world", "who", "phase"), [(1, 0, "data"), (1, 0, "step"), (2, 1, "data"), (2, 0, "step")], ids=str
)
def test_a_rank_that_sleeps_is_named_with_its_phase_and_line_and_all_end(
    world: int, who: int, phase: str, nursery: Any, tmp_path: Path
):
    code = HANGS[phase] + HANG.replace("WHO", repr(str(who)))
    ranks = nursery.start(tmp_path / "run", *QUIET, "--max-steps", "100000", world=world, code=code)
    ranks.until("asleep", who)
    began = time.monotonic()
    assert ranks.ended(T + 10) == [1] * world
    assert time.monotonic() - began >= T
    assert f"(rank {who} on " in verdict(ranks.said(0))
    assert (tmp_path / "run" / "log.txt").read_text().count(verdict(ranks.said(0)).strip()) == 1
    assert f" in step 8, {phase}, at " in verdict(ranks.said(0))
    assert len(re.findall(r"rank \d", verdict(ranks.said(0)))) == 1
    for rank in range(world):
        assert f"rank {rank} of {world}, in step 8, " in ranks.said(rank)
        assert "Current thread" in ranks.said(rank)
    assert re.search(r"File .* in never$", ranks.said(who), re.MULTILINE)


@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_killed(who: int, nursery: Any, tmp_path: Path):
    """Rank 0 holds the store through which ranks hear of each other, and takes it with it."""
    ranks = nursery.start(tmp_path / "run", *QUIET, "--max-steps", "100000", world=2)
    ranks.until("step 5/")
    ranks.send(signal.SIGSTOP, who)
    codes = ranks.ended(T + 10)
    assert (codes[who], codes[1 - who]) == (-signal.SIGKILL, 1)
    said = verdict(ranks.said(1 - who))
    assert said.strip() in (tmp_path / "run" / "log.txt").read_text()
    assert re.search(rf"\(rank {who} on \S+ tells nothing any more, last in step \d+, \w+: it was stopped", said)


def test_slow_work_that_goes_on_is_left_alone(nursery: Any, tmp_path: Path):
    """Steps, and an evaluation whose parts together last longer than a pause may."""
    code = f"""
import time
from inpaint_dist.trainer import Trainer
from inpaint_dist.evaluation import Ruler
step, score = Trainer.step, Ruler.score
Trainer.step = lambda self, *a, **k: (time.sleep({T} / 2), step(self, *a, **k))[1]
Ruler.score = lambda self, *a: (time.sleep({T} * 0.7), score(self, *a))[1]
from inpaint_dist import evaluation
evaluation.TOGETHER = 1
"""
    flags = ["--hang-timeout", str(T), "--start-timeout", "0", "--max-steps", "3", "--sample-every", "100000"]
    flags += ["--eval-every", "3"]
    ranks = nursery.start(tmp_path / "run", *flags, world=2, code=code)
    assert ranks.ended() == [0, 0]


def test_a_run_that_was_suspended_goes_on(nursery: Any, tmp_path: Path):
    flags = (*QUIET, "--start-timeout", "0", "--max-steps", "100000")
    ranks = nursery.start(tmp_path / "run", *flags)
    ranks.until("step 5/")
    ranks.send(signal.SIGSTOP)
    time.sleep(T + 1)
    ranks.send(signal.SIGCONT)
    time.sleep(1)
    ranks.send(signal.SIGTERM)
    assert ranks.ended() == [75]


def sign(rank: int, step: int, phase: str, *, waits: bool = False, silent: float = 0.0) -> Sign:
    return Sign(rank, 1, "host", step=step, phase=phase, waits=waits, silent=silent, quiet=60.0)


@pytest.mark.parametrize(
    ("signs", "named"),
    [
        ([sign(0, 5, "step", waits=True), sign(1, 5, "step")], [1]),
        ([sign(0, 5, "save"), sign(1, 5, "save", waits=True)], [0]),
        ([sign(0, 5, "draw"), sign(1, 6, "step", waits=True)], [0]),
        ([sign(0, 7, "report"), sign(1, 6, "data"), sign(2, 7, "report")], [1]),  # a GPU's queue runs ahead
        ([sign(0, 5, "step", waits=True), sign(1, 5, "step", waits=True)], [0, 1]),
        ([sign(0, 5, "step"), sign(1, 5, "data"), sign(2, 5, "step", silent=30.0)], [2]),
    ],
)
def test_who_holds_the_others_up(signs: list[Sign], named: list[int]):
    assert [one.rank for one in culprits({one.rank: one for one in signs})] == named


def test_a_negative_time_is_refused():
    with pytest.raises(UsageError, match="--hang-timeout -1: give 0 or more"):
        LaunchConfig(hang_timeout=-1.0)
